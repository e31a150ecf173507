"""Networks: forward, backward, initialisation and parameterisation, on NumPy or CuPy arrays."""

from kernelgrowth.nets.activations import ACTIVATIONS
from kernelgrowth.nets.cnn import CNN
from kernelgrowth.nets.config import from_config
from kernelgrowth.nets.factors import GradientFactors, LayerFactors
from kernelgrowth.nets.layers import AveragePool, Conv, Dense, Flatten, GlobalAveragePool, Residual
from kernelgrowth.nets.mlp import MLP
from kernelgrowth.nets.network import Network
from kernelgrowth.nets.parameterizations import PARAMETERIZATIONS
from kernelgrowth.nets.wide_resnet import WideResNet

__all__ = [
    "ACTIVATIONS",
    "CNN",
    "MLP",
    "PARAMETERIZATIONS",
    "AveragePool",
    "Conv",
    "Dense",
    "Flatten",
    "GlobalAveragePool",
    "GradientFactors",
    "LayerFactors",
    "Network",
    "Residual",
    "WideResNet",
    "from_config",
]
