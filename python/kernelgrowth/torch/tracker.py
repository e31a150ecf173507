"""`NTKTracker` for PyTorch: the kernel of a module followed through a training loop of one's own."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import torch

from kernelgrowth._backend.checks import check_integer
from kernelgrowth.torch.loggers import scalars
from kernelgrowth.torch.probe import FollowedModule, FollowedWithOptimizer, Parameters, ProbeInputs, probe_loss
from kernelgrowth.tracking import History
from kernelgrowth.tracking import NTKTracker as Tracker

__all__ = ["NTKTracker"]


class NTKTracker:
    """Follow the neural tangent kernel of a PyTorch module on a probe set through your own training loop.

    Call `step` once an iteration, before ``optimizer.step()``, and `close` at the end (or use it as a context manager).
    `history` has the series at any time; they are those of `kernelgrowth.NTKTracker`.

    Parameters
    ----------
    module : torch.nn.Module
        Followed in evaluation mode, whatever mode it is in: batch normalisation uses its running statistics, dropout
        drops nothing. It is left as it was, random numbers included: training takes the same course with and without.
    x_probe : Tensor (N, ...), tuple of Tensor, or mapping of str to Tensor
        Inputs of the probe set, as the module takes them, on its device; integers too.
    y_probe : Tensor (N,) or (N, C)
        Their targets; for C > 1 outputs, integer labels (N,) are read as one-hot rows.
    every : int or sequence of int
        Track every so many steps, or at these. The first step and the last are always tracked.
    top_k : int
        Eigenpairs per tracked step.
    optimizer : torch.optim.Optimizer, optional
        Follow the kernel J diag(η_t) Jᵀ of its update instead of J Jᵀ: SGD with or without momentum, Adam, AdamW,
        RMSprop; see `preconditioner`. `step` then has to be called when the gradients are those that the update will
        be made of: after ``loss.backward()``, and after they are clipped or unscaled. At the end, η_t is that of the
        last update.
    log : callable, optional
        Called as ``log(dict, step)`` with the numbers of each tracked step, after they are recorded: ``wandb.log`` and
        ``mlflow.log_metrics`` as they are, `loggers.tensorboard` of a writer.
    out : path-like, optional
        Run folder to record to, new or empty; None keeps the run in memory.
    max_overhead : float, optional
        Keep tracking within this fraction of training, by skipping steps.
    metrics, x_test, outputs, kernel_budget
        As in `kernelgrowth.NTKTracker`; `x_test` as `x_probe`.
    loss : callable, optional
        Of outputs and `y_probe`, tensors, for the series ``loss``: by default the cross-entropy for class labels
        (integers (N,) and several outputs), else the mean squared error. Labels arrive as integers, all other targets
        in the outputs' dtype.
    batch_size, parameters, output, verify
        As in `gradient_features`.

    Raises
    ------
    TypeError, ValueError
        If an argument is not usable, by name; what the module refuses, at the first step.

    Examples
    --------
    >>> tracker = kernelgrowth.torch.NTKTracker(model, x_probe, y_probe, every=100, out="runs/cnn")
    >>> for x, y in loader:
    ...     loss = criterion(model(x), y)
    ...     loss.backward()
    ...     tracker.step(loss=loss)
    ...     optimizer.step()
    ...     optimizer.zero_grad()
    >>> tracker.close()
    """

    def __init__(
        self,
        module: Any,
        x_probe: Any,
        y_probe: Any,
        *,
        every: int | Sequence[int] = 100,
        top_k: int = 20,
        optimizer: Any = None,
        log: Callable[[dict[str, float], int], Any] | None = None,
        out: str | os.PathLike[str] | None = None,
        max_overhead: float | None = None,
        metrics: str | Sequence[str] = "default",
        x_test: Any = None,
        outputs: str = "full",
        kernel_budget: int = 2**30,
        loss: Callable[[Any, Any], Any] | None = None,
        batch_size: int | None = None,
        parameters: Parameters = None,
        output: Callable[[Any], Any] | None = None,
        verify: str = "sample",
    ) -> None:
        for name, function in (("log", log), ("loss", loss)):
            if function is not None and not callable(function):
                raise TypeError(f"{name} must be callable, got {type(function).__name__}")
        options = {"batch_size": batch_size, "parameters": parameters, "output": output, "verify": verify}
        self.followed = (
            FollowedModule(module, options) if optimizer is None else FollowedWithOptimizer(module, options, optimizer)
        )
        targets = y_probe.detach() if isinstance(y_probe, torch.Tensor) else torch.as_tensor(y_probe)
        self._tracker = Tracker(
            ProbeInputs(x_probe, "x_probe"),
            targets,
            every=every,
            top_k=top_k,
            metrics=metrics,
            x_test=None if x_test is None else ProbeInputs(x_test, "x_test"),
            out=out,
            max_overhead=max_overhead,
            outputs=outputs,
            kernel_budget=kernel_budget,
        )
        self._loss = probe_loss(loss, targets)
        self._log = log
        self._steps = 0
        self._closed = False

    @property
    def history(self) -> History:
        """Everything recorded so far."""
        return self._tracker.history

    @property
    def steps(self) -> int:
        """How many steps were seen."""
        return self._steps

    def step(self, loss: Any = None, *, step: int | None = None) -> bool:
        """Say that an update is about to be made; track the kernel before it if it is the first, or due.

        Parameters
        ----------
        loss : float or Tensor, optional
            Loss on the training data, recorded as ``train_loss``; a tensor is read only at steps that are tracked.
        step : int, optional
            Updates made before; by default those counted.

        Returns
        -------
        bool
            Whether the step was tracked.

        Raises
        ------
        RuntimeError
            If the tracker is closed.
        """
        if self._closed:
            raise RuntimeError("this NTKTracker is closed: make a new one for another run")
        if step is not None:
            self._steps = check_integer("step", step, minimum=0)
        try:
            tracked = self._record(loss, last=False)
            self._log_newest(tracked)
        finally:
            # Whoever catches what `log` raises can go on with the next step.
            self._steps += 1
        return tracked

    def close(self, status: str = "completed", *, track: bool = True) -> None:
        """Track the module as it is after the last update, and end the run; a second call does nothing.

        Parameters
        ----------
        status : {"completed", "interrupted", "diverged", "failed"}
            What the history will say of the run.
        track : bool
            Whether to track the module; not if it is no longer what the last update made of it. Where an optimizer is
            followed that has made no update, there is nothing to track.
        """
        if self._closed or self._steps == 0:
            return
        self._closed = True
        if track and isinstance(self.followed, FollowedWithOptimizer):
            track = self.followed.turn_to_last_update()
        try:
            tracked = track and self._record(None, last=True)
        except BaseException:
            self._end("failed")
            raise
        self._end(status)
        self._log_newest(tracked)

    def __enter__(self) -> NTKTracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif issubclass(kind, KeyboardInterrupt):
            self.close("interrupted")
        else:
            # The module may be what failed: what was recorded stays, and nothing is added.
            self.close("failed", track=False)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint has to hold so that a resumed run continues the series: numbers, texts and tensors.

        Take it where the module's and the optimizer's are taken.
        """
        return {"steps": self._steps, "tracker": _to_tensors(self._tracker.state_dict())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` returned; the run continues with the next `step`."""
        self._steps = int(state["steps"])
        if state["tracker"]:
            self._tracker.load_state_dict(_to_arrays(state["tracker"]))

    def _record(self, loss: Any, *, last: bool) -> bool:
        return self._tracker.update(
            self.followed, None, step=self._steps, loss=self._loss, train_loss=_Lazy(loss), last=last
        )

    def _end(self, status: str) -> None:
        # What could not even begin, in a folder of another run, has nothing to end.
        if self._tracker.started:
            self._tracker.close(status)

    def _log_newest(self, tracked: bool) -> None:
        if tracked and self._log is not None:
            self._log(scalars(self.history), self._steps)


class _Lazy:
    """A number that is read, and waited for on a GPU, when it is needed."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __float__(self) -> float:
        value = self._value.detach() if isinstance(self._value, torch.Tensor) else self._value
        return math.nan if value is None else float(value)


def _to_tensors(state: Any) -> Any:
    if isinstance(state, Mapping):
        return {key: _to_tensors(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [_to_tensors(value) for value in state]
    if isinstance(state, np.ndarray):
        return torch.from_numpy(state.copy(order="C"))
    return state.item() if isinstance(state, np.generic) else state


def _to_arrays(state: Any) -> Any:
    if isinstance(state, Mapping):
        return {key: _to_arrays(value) for key, value in state.items()}
    if isinstance(state, list):
        return [_to_arrays(value) for value in state]
    return state.cpu().numpy() if isinstance(state, torch.Tensor) else state
