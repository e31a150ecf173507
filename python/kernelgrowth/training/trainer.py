"""The training loop."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from kernelgrowth._backend.arrays import array_namespace, is_cupy
from kernelgrowth._backend.checks import check_integer
from kernelgrowth._backend.errors import DivergedError
from kernelgrowth.nets.network import Network
from kernelgrowth.training.arguments import check_callbacks, check_data, check_layer_lr, check_net, check_params
from kernelgrowth.training.batches import Batches
from kernelgrowth.training.checkpoints import Checkpoint, CheckpointFile, callback_keys, hash_arrays
from kernelgrowth.training.interrupts import InterruptGuard
from kernelgrowth.training.losses import get_loss
from kernelgrowth.training.optim import GD, Optimizer
from kernelgrowth.training.state import Run, TrainingState

__all__ = ["train"]


def train(
    net: Network,
    params: Mapping[str, Any],
    data: Any,
    *,
    loss: str = "mse",
    optimizer: Optimizer | None = None,
    steps: int,
    layer_lr: Mapping[str, float] | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    callbacks: Iterable[Any] = (),
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 100,
    resume: bool = False,
    progress: bool | Callable[[TrainingState], None] = False,
) -> Run:
    """Train a network.

    Parameters
    ----------
    net : Network
        Such as `kernelgrowth.nets.MLP`.
    params : mapping of str to array
        Initial parameters, as from ``net.init``; they are not changed.
    data : (x, y), or an object with attributes x and y
        N ≥ 1 examples in the rows of x, of the parameters' dtype and kind (NumPy or CuPy). y: (N,) or (N, C) for mse;
        labels −1 and +1, or 0 and 1, for logistic; integer labels (N,) or one-hot rows (N, C) for cross_entropy.
    loss : {"mse", "logistic", "cross_entropy"}
        Means over the examples; mse is ½ Σ_c (f_c − y_c)².
    optimizer : Optimizer, optional
        From `kernelgrowth.training.optim`; ``GD(lr=0.1)`` when None.
    steps : int
        Updates to do, counted from the beginning also when resuming; 0 only evaluates.
    layer_lr : mapping of str to float, optional
        Layer name -> multiplier of the optimizer's learning rate, at least 0 (which freezes the layer); 1 where absent.
    batch_size : int, optional
        Examples in a minibatch, at most N; None trains on all. Each epoch visits every example once in an order that
        follows from `seed` and the epoch; its last batch may be smaller.
    seed : int
        Decides the order of the minibatches, nothing else.
    callbacks : iterable of Callback
        Called in their order.
    checkpoint : path-like, optional
        File that holds the latest checkpoint. It is written at step 0, at every multiple of `checkpoint_every`, at the
        last step and on Ctrl-C.
    checkpoint_every : int
        Steps between checkpoints.
    resume : bool
        Continue from the checkpoint if there is one, else start from the beginning. The continued run equals an
        uninterrupted one bit for bit (on the same machine, libraries and number of threads).
    progress : bool or callable
        Whether to rewrite a line on stderr (where it is a terminal) with step, loss and time; or a function that is
        handed each step's state instead.

    Returns
    -------
    Run

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type, shape, dtype or value, named in the message; if `checkpoint` exists
        without `resume`, or belongs to a run with other arguments. Nothing has been written then.
    DivergedError
        When the loss is not finite; its `run` holds all up to that step, and the last checkpoint stands.
    RunFolderError
        If the checkpoint cannot be read or written.
    KeyboardInterrupt
        On Ctrl-C, after a checkpoint if one was asked for: at once while loss and gradient are computed, else when
        the callbacks and the update are done. A second Ctrl-C stops those too and leaves the checkpoint before.

    Notes
    -----
    At step t = 0 … steps: checkpoint if due; loss and gradient at the current parameters; callbacks' ``on_step``;
    update if t < steps. Whatever happens, ``on_end`` is called once for every callback whose ``on_start`` returned.
    """
    net = check_net(net)
    loss_function = get_loss(loss)
    optimizer = GD(lr=0.1) if optimizer is None else optimizer
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be GD, Momentum, Adam or RMSprop of kernelgrowth.optim, got {optimizer!r}")
    steps = check_integer("steps", steps, minimum=0)
    seed = check_integer("seed", seed, minimum=0)
    checkpoint_every = check_integer("checkpoint_every", checkpoint_every, minimum=1)
    scales = check_layer_lr(layer_lr, net.layer_names)
    every_callback = check_callbacks(callbacks, progress)
    start = check_params(params)
    x, y = check_data(data, net, start, loss_function)
    if batch_size is not None:
        batch_size = check_integer("batch_size", batch_size, minimum=1, maximum=len(x))
    if not isinstance(resume, bool):
        raise TypeError(f"resume must be True or False, got {resume!r}")
    if resume and checkpoint is None:
        raise ValueError("resume=True needs the checkpoint to resume from, got checkpoint=None")

    state = TrainingState(
        net=net,
        params=start,
        step=0,
        steps=steps,
        time=0.0,
        loss=math.nan,
        loss_function=loss_function,
        optimizer=optimizer,
        optimizer_state=optimizer.init(start),
        x=x,
        y=y,
        layer_lr=scales,
        resume=resume,
    )
    store = None
    if checkpoint is not None:
        store = CheckpointFile(checkpoint, _fingerprint(state, batch_size, seed))
        if not resume and store.exists():
            raise ValueError(
                f"checkpoint {store.path} exists already: pass resume=True to continue that run, or take another file"
            )
    loop = _Loop(state, Batches(x, y, batch_size, seed), every_callback, store, checkpoint_every)
    if resume and store is not None and store.exists():
        loop.restore(store)
    with InterruptGuard() as guard:
        return loop.run(guard)


class _Loop:
    """A run under way: its state, its losses, and whether it stands at the beginning of a step."""

    def __init__(
        self,
        state: TrainingState,
        batches: Batches,
        callbacks: Sequence[Any],
        store: CheckpointFile | None,
        checkpoint_every: int,
    ) -> None:
        self._state = state
        self._batches = batches
        self._callbacks = callbacks
        self._store = store
        self._checkpoint_every = checkpoint_every
        self._losses: list[float] = []
        self._saved_step = -1
        self._at_beginning_of_step = False
        self._diverged = False

    def restore(self, store: CheckpointFile) -> None:
        state, saved = self._state, store.load()
        if saved.step > state.steps:
            raise ValueError(
                f"steps must be at least the {saved.step} done in checkpoint {store.path}, got {state.steps}"
            )
        keys = callback_keys(self._callbacks)
        for key in saved.callbacks:
            if key not in keys:
                raise ValueError(
                    f"callbacks must include {key.rpartition('-')[0]}, whose state is in checkpoint {store.path}"
                )
        for callback, key in zip(self._callbacks, keys, strict=True):
            if key in saved.callbacks:
                callback.load_state_dict(saved.callbacks[key])
        state.params = _alike(saved.params, state.params)
        state.optimizer_state = _alike(saved.optimizer_state, state.optimizer_state)
        state.step, state.seconds = saved.step, saved.seconds
        state.time = saved.step * state.optimizer.lr
        self._losses = [float(value) for value in saved.losses]
        self._saved_step = saved.step

    def run(self, guard: InterruptGuard) -> Run:
        state = self._state
        started: list[Any] = []
        failure: BaseException | None = None
        try:
            for callback in self._callbacks:
                callback.on_start(state)
                started.append(callback)
            self._take_steps(guard)
            state.status = "completed"
        except BaseException as error:
            failure = error
            if self._diverged:
                state.status = "diverged"
            elif isinstance(error, KeyboardInterrupt):
                state.status = "interrupted"
                self._save_interrupted(error)
            else:
                state.status = "failed"
        for callback in started:
            try:
                callback.on_end(state)
            except BaseException as error:
                if failure is None:
                    failure = error
                else:
                    failure.add_note(f"on_end of {type(callback).__name__} failed as well: {error!r}")
        if isinstance(failure, DivergedError) and self._diverged:
            failure.run = self._result()
        if failure is not None:
            raise failure
        return self._result()

    def _take_steps(self, guard: InterruptGuard) -> None:
        state = self._state
        while True:
            self._at_beginning_of_step = True
            guard.raise_if_pending()
            due = state.step % self._checkpoint_every == 0 or state.is_last
            if due and state.step != self._saved_step:
                self._save()
            with guard.interruptible():
                began = time.perf_counter()
                loss, gradient = self._evaluate()
                seconds = time.perf_counter() - began
            self._at_beginning_of_step = False
            state.loss, state.gradient = loss, gradient
            state.seconds += seconds
            self._losses.append(loss)
            if not math.isfinite(loss):
                self._diverged = True
                raise DivergedError(
                    f"the training loss is {loss} at step {state.step} (learning rate {state.optimizer.lr:g}): "
                    "lower the learning rate or the initial scale"
                )
            for callback in self._callbacks:
                callback.on_step(state)
            if gradient is None:
                return
            began = time.perf_counter()
            self._update(gradient)
            state.seconds += time.perf_counter() - began

    def _evaluate(self) -> tuple[float, dict[str, Any] | None]:
        """Return the loss at the current parameters, and its gradient unless no update follows."""
        state = self._state
        x, y = self._batches.at(state.step)
        # Overflow shows in the loss, where it is an error with a name.
        with np.errstate(all="ignore"):
            if state.is_last:
                outputs = state.net.forward(state.params, x, check_finite=False)
                return state.loss_function.evaluate(outputs, y)[0], None
            outputs, pullback = state.net.vjp(state.params, x, check_finite=False)
            value, gradient = state.loss_function.evaluate(outputs, y)
            return value, pullback(gradient)

    def _update(self, gradient: dict[str, Any]) -> None:
        state = self._state
        with np.errstate(all="ignore"):
            state.params, state.optimizer_state = state.optimizer.update(
                state.params, gradient, state.optimizer_state, state.layer_lr
            )
        state.gradient = None
        state.step += 1
        state.time = state.step * state.optimizer.lr

    def _save(self) -> None:
        if self._store is None:
            return
        state = self._state
        states = {
            key: callback.state_dict()
            for key, callback in zip(callback_keys(self._callbacks), self._callbacks, strict=True)
        }
        self._store.save(
            Checkpoint(
                step=state.step,
                seconds=state.seconds,
                losses=self._losses,
                params=state.params,
                optimizer_state=state.optimizer_state,
                callbacks={key: values for key, values in states.items() if values},
            )
        )
        self._saved_step = state.step

    def _save_interrupted(self, interrupt: BaseException) -> None:
        # Between the callbacks and the end of the update a step cannot be repeated: the last checkpoint stands then.
        if not self._at_beginning_of_step or self._state.step == self._saved_step:
            return
        try:
            self._save()
        except Exception as error:
            interrupt.add_note(f"and no checkpoint of step {self._state.step} was written: {error}")

    def _result(self) -> Run:
        state = self._state
        return Run(
            params=state.params,
            losses=np.array(self._losses, dtype=np.float64),
            time=state.time,
            step=state.step,
            status=state.status,
            seconds=state.seconds,
            optimizer_state=state.optimizer_state,
        )


def _fingerprint(state: TrainingState, batch_size: int | None, seed: int) -> dict[str, Any]:
    return {
        "net": state.net.config(),
        "params": hash_arrays(state.params),
        "data": hash_arrays({"x": state.x, "y": state.y}),
        "loss": state.loss_function.name,
        "optimizer": state.optimizer.config(),
        "layer_lr": state.layer_lr,
        "batch_size": batch_size,
        "seed": seed,
        "device": "cuda" if is_cupy(state.x) else "cpu",
    }


def _alike(saved: Mapping[str, Any], templates: Mapping[str, Any]) -> dict[str, Any]:
    """Return the saved arrays in the order and on the device of the arrays they replace."""
    return {name: array_namespace(template).asarray(saved[name]) for name, template in templates.items()}
