"""`NTKTracker`: follows the kernel of a network through its training, and survives being killed."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from kernelgrowth._backend.arrays import array_namespace, to_numpy
from kernelgrowth._backend.checks import check_choice, check_integer
from kernelgrowth._backend.errors import RunFolderError
from kernelgrowth.gradients import GradientFeatures, from_net
from kernelgrowth.tracking.history import History
from kernelgrowth.tracking.metrics import Measurement, Reference, cross_kernel, measure
from kernelgrowth.tracking.packing import matrix_size
from kernelgrowth.tracking.resume import TrackerState, open_store
from kernelgrowth.tracking.schedule import is_due, kernel_capacity, retained
from kernelgrowth.tracking.series import Record
from kernelgrowth.tracking.settings import Probe, Settings, describe_run
from kernelgrowth.tracking.store import MemoryStore, RunStore
from kernelgrowth.tracking.targets import holds_labels, target_matrix

__all__ = ["NTKTracker", "TrackedTraining"]

LossFunction = Callable[[Any, Any], float]


class TrackedTraining(Protocol):
    """What the tracker reads of a trainer's state at a step; `kernelgrowth.training.TrainingState` is one."""

    net: Any
    params: Any
    step: int
    time: float
    loss: float
    loss_function: Any
    resume: bool
    status: Any
    seconds: float

    @property
    def is_last(self) -> bool:
        """Whether no update follows this step."""


class NTKTracker:
    """Follow the neural tangent kernel on a probe set through training.

    Hand it to `train` as a callback, or call `update` from your own loop and `close` after it. At each tracked step one
    kernel is computed exactly, measured, and recorded; `history` has the series at any time.

    Series (T tracked steps): ``step``, ``time`` (gradient-flow time), ``loss`` (on the probe set), ``train_loss``,
    ``kernel_norm`` (Frobenius), ``trace``, ``alignment`` and ``alignment_centered`` (with the targets), ``eigenvalues``
    (T, k), ``eigenvector_alignment`` (T, k; squared cosines with the targets), ``effective_rank`` (entropy; where k < n
    a lower bound that is exact for a flat rest of the spectrum), ``velocity`` and ``rotation`` (1 − cosine to the
    tracked step before, and to the first), ``subspace_overlap`` (of the top eigenvectors with those before),
    ``layers/<name>/norm`` and ``layers/<name>/alignment``, and ``seconds`` (what tracking the step cost). Undefined
    values, such as the first velocity or the alignment of a zero kernel, are NaN.

    Parameters
    ----------
    x_probe : array (N, ...)
        Inputs of the probe set, float32 or float64 like the network's parameters.
    y_probe : array (N,) or (N, C)
        Their targets, as the training loss takes them; for C > 1 outputs, integer labels (N,) are read as one-hot rows.
        Alignments are with these values, not centred; the centred ones subtract the mean over the kernel's rows from
        kernel and targets.
    every : int or sequence of int
        Track every so many steps, or at these steps. The first step and the last are always tracked.
    top_k : int
        Eigenpairs per tracked step, cut to the kernel's order n.
    metrics : "default" or sequence of str
        Record only these of ``kernel_norm, trace, alignment, alignment_centered, eigenvalues, eigenvector_alignment,
        effective_rank, velocity, rotation, subspace_overlap, layers``; what none of them needs is not computed.
    x_test : array (N_test, ...), optional
        Held-out inputs: K(x_test, x_probe) and predictions on them are kept for the first and the last tracked step.
    out : path-like, optional
        Run folder to record to, new or empty; None keeps the run in memory. With a folder, whatever was recorded
        before a process is killed is read by `load_run`, and checkpoints of the trainer stay small.
    max_overhead : float, optional
        Skip a due step, never the first or the last, while tracking has cost more than this fraction of the training
        time so far. Which steps are tracked then depends on the machine.
    outputs : {"full", "trace", "mean_trace", "sum_logits"}
        How C > 1 outputs enter the kernel: n = N·C rows ``n*C + c`` for "full", n = N otherwise.
    kernel_budget : int
        Bytes of kernels to keep, upper triangles; n (n + 1) / 2 entries each. Once they are used up every second kernel
        is dropped and only every second, then fourth, ... kept; the first and the newest always are.

    Raises
    ------
    ValueError, TypeError
        If an argument is not usable, by name. A `y_probe` that does not fit the network's outputs: at the first step.
    RunFolderError
        When training starts, if `out` holds another run, is not a folder or not writable; later, if a file cannot be
        written (a full disk). The message names the file, and what was recorded before stays readable.

    Notes
    -----
    Cost of a tracked step: forward and backward on N examples, one Gram matrix per layer (n² entries each), a pass over
    each of these, three over the whole kernel, and its top eigenpairs. Memory: two kernels while measuring, and three
    packed ones in between.
    """

    def __init__(
        self,
        x_probe: Any,
        y_probe: Any,
        *,
        every: int | Sequence[int] = 10,
        top_k: int = 20,
        metrics: str | Sequence[str] = "default",
        x_test: Any = None,
        out: str | os.PathLike[str] | None = None,
        max_overhead: float | None = None,
        outputs: str = "full",
        kernel_budget: int = 2**30,
    ) -> None:
        self._probe = Probe.checked(x_probe, y_probe, x_test)
        self._settings = Settings.checked(
            every=every,
            top_k=top_k,
            metrics=metrics,
            max_overhead=max_overhead,
            outputs=outputs,
            kernel_budget=kernel_budget,
        )
        if out is not None and not isinstance(out, str | os.PathLike):
            raise TypeError(f"out must be a path or None, got {out!r}")
        self._out = None if out is None else Path(out)
        self._restored: Mapping[str, Any] | None = None
        self._store: RunStore | None = None
        self._info: dict[str, Any] = {}
        self._records: list[Record] = []
        # The two newest tracked steps: a checkpoint may be taken before or after the newest one's step is over.
        self._references: list[Reference] = []
        self._first: Reference | None = None
        self._newest_step_seen = -1
        # The newest tracked step with its network and parameters, until its predictions are saved.
        self._network: tuple[int, Any, Any] | None = None
        self._seconds = 0.0

    @property
    def history(self) -> History:
        """Everything recorded so far."""
        if self._store is None:
            return History(MemoryStore(), describe_run(self._settings, self._probe), [])
        return History(self._store, self._info, list(self._records))

    def on_start(self, state: TrackedTraining) -> None:
        """Claim the run folder, or find the place in it from which a resumed run continues."""
        self._start(state.step, resume=state.resume, training=state)

    def on_step(self, state: TrackedTraining) -> None:
        """Track the step if it is the first, the last, or due."""
        self._newest_step_seen = state.step
        if self._is_wanted(state.step, state.seconds) or state.is_last:
            self._track(state, state.loss)
        if state.is_last:
            self._save_last()

    def on_end(self, state: TrackedTraining) -> None:
        """Write the run's last predictions and final status.

        After Ctrl-C the step that was reached is tracked too, so that the kernel training stopped at is kept; a run
        resumed from there forgets it again.
        """
        if state.status == "interrupted":
            # It may have come between the writing of a line and its being noted here.
            self._records = self._running.records()
            # Within a step parameters and step may not belong together; at its beginning they do, but not the loss.
            if state.step > self._newest_step_seen:
                self._track(state, math.nan)
        self._save_last()
        self._finish(str(state.status))

    def update(
        self,
        net: Any,
        params: Any,
        *,
        step: int,
        time: float | None = None,
        loss: float | LossFunction = math.nan,
        train_loss: float = math.nan,
        last: bool = False,
    ) -> bool:
        """Track a step of a training loop of your own, if it is the first, due, or said to be the last.

        Parameters
        ----------
        net : Network
            Anything `kernelgrowth.gradients.from_net` takes.
        params : dict of arrays
            Its parameters at this step.
        step : int
            Updates done so far; larger than at the call before.
        time : float, optional
            Gradient-flow time, the sum of the learning rates so far; `step` unless given.
        loss : float or callable
            Loss on the probe set, or a function of outputs (N, C) and `y_probe` that returns it.
        train_loss : float
            Loss on the training data.
        last : bool
            Whether training ends here.

        Returns
        -------
        bool
            Whether the step was tracked.
        """
        step = check_integer("step", step, minimum=0)
        if self._store is None or self._restored is not None:
            self._start(step, resume=self._restored is not None, training=None)
        if step <= self._newest_step_seen:
            raise ValueError(f"step must be larger than {self._newest_step_seen}, that of the call before, got {step}")
        self._newest_step_seen = step
        if not (last or self._is_wanted(step, math.inf)):
            return False
        function = loss if callable(loss) else lambda f, y: float(loss)
        now = float(step if time is None else time)
        self._track_network(net, params, step, now, function, float(train_loss))
        if last:
            self._network = (step, net, params)
            self._save_last()
        return True

    def close(self, status: str = "completed") -> None:
        """End a run recorded by `update`; `status` is what its history will say of it.

        One of "completed", "interrupted", "diverged" and "failed".
        """
        self._finish(check_choice("status", status, ("completed", "interrupted", "diverged", "failed")))

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint has to hold so that a resumed run continues the series bit for bit.

        With a run folder that is the newest kernel and eigenvectors, and the folder keeps the rest, now safely on disk;
        without one it is everything recorded.
        """
        if self._store is None:
            return {}
        self._store.sync()
        # Where a later step than the newest tracked one has begun, resuming can only need the newest.
        needed = 2 if self._references and self._references[-1].step >= self._newest_step_seen else 1
        return TrackerState(
            steps=[record["step"] for record in self._records],
            references=self._references[-needed:],
            seconds=self._seconds,
            memory=self._store.state_dict() if isinstance(self._store, MemoryStore) else None,
        ).to_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` returned; the run continues from it when training starts."""
        self._restored = dict(state)

    @property
    def _running(self) -> RunStore:
        if self._store is None:
            raise RuntimeError("the tracker follows no run yet: hand it to train, or call update")
        return self._store

    def _start(self, step: int, *, resume: bool, training: Any) -> None:
        if self._store is not None and not resume:
            raise ValueError("this NTKTracker holds a run already: make a new one for another run")
        state = TrackerState.from_dict(self._restored, step) if self._restored else None
        info = describe_run(self._settings, self._probe, training)
        store = open_store(self._out, info, state, step, resume=resume)
        state = TrackerState() if state is None else state
        self._first = None
        if not state.steps:
            store.save_arrays("probe", {"y_probe": to_numpy(self._probe.y)})
        elif "rotation" in self._settings.metrics:
            self._first = self._load_first(store, state.steps[0])
        self._references, self._seconds = state.references[-1:], state.seconds
        self._store, self._info, self._records = store, store.read_info(), store.records()
        self._newest_step_seen = step - 1
        self._network = self._restored = None

    def _load_first(self, store: RunStore, step: int) -> Reference:
        try:
            return Reference(step, store.load_kernel(step))
        except KeyError:
            raise RunFolderError(f"{self._out}: the kernel of its first tracked step, {step}, is missing") from None

    def _is_wanted(self, step: int, training_seconds: float) -> bool:
        if not self._records:
            return True
        overhead = self._settings.max_overhead
        affordable = overhead is None or self._seconds <= overhead * training_seconds
        return affordable and is_due(self._settings.every, step)

    def _track(self, state: TrackedTraining, train_loss: float) -> None:
        self._track_network(state.net, state.params, state.step, state.time, state.loss_function, train_loss)
        # A trainer replaces parameters and never writes to them, so these stay those of the step just tracked.
        self._network = (state.step, state.net, state.params)

    def _track_network(
        self, net: Any, params: Any, step: int, now: float, loss_function: LossFunction, train_loss: float
    ) -> None:
        start = time.perf_counter()
        store, settings = self._running, self._settings
        features = from_net(net, params, self._probe.x)
        predictions = features.predictions
        targets = target_matrix(self._probe.y, features.num_outputs)
        y = self._probe.y
        if holds_labels(y, features.num_outputs):
            # One-hot rows are what every loss takes for C > 1 outputs.
            y = array_namespace(predictions).asarray(targets, dtype=features.dtype)
        loss = float(loss_function(predictions, y))
        measured = measure(
            features,
            targets,
            names=settings.metrics,
            top_k=settings.top_k,
            outputs=settings.outputs,
            previous=self._references[-1] if self._references else None,
            first=self._first,
        )
        if not self._records:
            self._describe_shapes(measured, features)
            self._save_end("first", step, net, params, features)
        store.save_kernel(step, measured.kernel)
        record: Record = {"step": step, "time": float(now), "loss": loss, "train_loss": float(train_loss)}
        record |= measured.values | {"seconds": time.perf_counter() - start}
        store.append(record)
        self._records.append(record)
        # What no metric compares with is not kept, here and in checkpoints.
        kernel = measured.kernel if "velocity" in settings.metrics else measured.kernel[:0].copy()
        vectors = measured.vectors if "subspace_overlap" in settings.metrics else None
        self._references = [*self._references[-1:], Reference(step, kernel, vectors)]
        if len(self._records) == 1 and "rotation" in settings.metrics:
            self._first = Reference(step, measured.kernel)
        self._drop_kernels(measured)
        self._seconds += time.perf_counter() - start

    def _describe_shapes(self, measured: Measurement, features: GradientFeatures) -> None:
        self._info |= {
            "num_outputs": features.num_outputs,
            "kernel_size": matrix_size(len(measured.kernel)),
            "dtype": str(measured.kernel.dtype),
        }
        self._running.write_info(self._info)

    def _drop_kernels(self, measured: Measurement) -> None:
        kernel = measured.kernel
        capacity = kernel_capacity(self._settings.kernel_budget, matrix_size(len(kernel)), kernel.itemsize)
        count = len(self._records)
        index = {record["step"]: i for i, record in enumerate(self._records)}
        for step in self._running.kernel_steps():
            if step not in index or not retained(index[step], count, capacity):
                self._running.drop_kernel(step)

    def _save_last(self) -> None:
        """Keep predictions and K(x_test, x_probe) of the newest tracked step, if its parameters are known."""
        if self._network is not None and self._records and self._network[0] == self._records[-1]["step"]:
            step, net, params = self._network
            start = time.perf_counter()
            self._save_end("last", step, net, params, from_net(net, params, self._probe.x))
            self._seconds += time.perf_counter() - start
            self._network = None

    def _save_end(self, name: str, step: int, net: Any, params: Any, features: GradientFeatures) -> None:
        arrays: dict[str, Any] = {"step": np.int64(step), "predictions": to_numpy(features.predictions)}
        if self._probe.x_test is not None:
            test = from_net(net, params, self._probe.x_test)
            arrays["test_predictions"] = to_numpy(test.predictions)
            arrays["test_kernel"] = cross_kernel(test, features, self._settings.outputs)
        self._running.save_arrays(name, arrays)

    def _finish(self, status: str) -> None:
        self._running.sync()
        self._info["status"] = status
        try:
            self._running.write_info(self._info)
        finally:
            self._running.release()
