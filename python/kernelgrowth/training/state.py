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
        Before the update of this step.
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
    gradient : dict of str to array, or None
        Of `loss` by every parameter, on the full data or on this step's batch. There is one in `on_step`, but at the
        last step, which no update follows.
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
    gradient: dict[str, Any] | None = None

    @property
    def is_last(self) -> bool:
        """Whether no update follows this step."""
        return self.step == self.steps

    def preconditioner(self) -> dict[str, Any]:
        """Return the learning rates η_t of the update that follows this step, by gradient block.

        In `on_step`, ``kg.empirical_ntk(feats, preconditioner=state.preconditioner())`` is the optimizer's kernel
        J diag(η_t) Jᵀ; `Optimizer.learning_rates` defines η_t, and `Optimizer.preconditioner` the form.

        Raises
        ------
        RuntimeError
            Where there is no `gradient`: before the first step, and at the last.
        """
        if self.gradient is None:
            raise RuntimeError("preconditioner is that of an update, and none is about to be made: ask in on_step")
        return self.optimizer.preconditioner(self.net, self.gradient, self.optimizer_state, self.layer_lr)


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
