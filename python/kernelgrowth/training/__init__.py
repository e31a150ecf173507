"""Training loops that callbacks can follow: losses, optimizers, checkpoints that resume bit for bit."""

from kernelgrowth.training import losses, optim
from kernelgrowth.training.blocks import by_block
from kernelgrowth.training.callbacks import Callback
from kernelgrowth.training.losses import LOSSES, Loss
from kernelgrowth.training.optim import OPTIMIZERS, Optimizer
from kernelgrowth.training.state import Run, TrainingState
from kernelgrowth.training.trainer import train

__all__ = [
    "LOSSES",
    "OPTIMIZERS",
    "Callback",
    "Loss",
    "Optimizer",
    "Run",
    "TrainingState",
    "by_block",
    "losses",
    "optim",
    "train",
]
