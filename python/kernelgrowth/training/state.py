"""What callbacks see of a run, and what a run leaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from kernelgrowth._backend.arrays import FloatArray
from kernelgrowth.nets.network import Network
from kernelgrowth.training.losses import Loss
from kernelgrowth.training.optim import Optimizer

__all__ = ["Run", "Status", "TrainingState"]

Status = Literal["running", "completed", "diverged", "interrupted", "failed"]


@dataclass
class TrainingState:
    """A run at one step, handed to callbacks; the same object throughout a run.

    Attributes
    ----------
    net : Network
    params : dict of str to array
        Current parameters. Updates replace the arrays and never write to them.
    step : int
        Updates done so far.
    steps : int
        Updates asked for.
    time : float
        Sum of the learning rate over the updates done: gradient-flow time.
    loss : float
        Training loss at `params`, of the full data or of this step's batch.
    loss_function : Loss
        Callable (f, y) -> float.
    optimizer : Optimizer
    optimizer_state : dict of str to array
    x : array (N, ...)
        Training inputs.
    y : array (N, C)
        Training targets as the loss reads them: columns for mse, −1 and +1 for logistic, one-hot for cross-entropy.
    layer_lr : dict of str to float
        Every layer's multiplier of the learning rate.
    resume : bool
        Whether `train` was called with ``resume=True``.
    status : str
        "running", and from `on_end` on "completed", "diverged", "interrupted" or "failed".
    seconds : float
        Wall time spent in training itself: no callbacks, no checkpoints.
    """

    net: Network
    params: dict[str, Any]
    step: int
    steps: int
    time: float
    loss: float
    loss_function: Loss
    optimizer: Optimizer
    optimizer_state: dict[str, Any]
    x: Any
    y: Any
    layer_lr: dict[str, float]
    resume: bool
    status: Status = "running"
    seconds: float = 0.0

    @property
    def is_last(self) -> bool:
        """Whether no update follows this step."""
        return self.step == self.steps


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes
    ----------
    params : dict of str to array
        Parameters after `step` updates.
    losses : float64 array (step + 1,)
        Training loss before update 0, 1, … and after the last; index = step.
    time : float
        Sum of the learning rate over the updates.
    step : int
        Updates done.
    status : str
        "completed", or "diverged" in a `DivergedError`.
    seconds : float
        Wall time spent in training itself.
    optimizer_state : dict of str to array
    """

    params: dict[str, Any]
    losses: FloatArray
    time: float
    step: int
    status: Status
    seconds: float
    optimizer_state: dict[str, Any]
