"""`NTKTracker`: follows the kernel of a network through its training, and survives being killed."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, SupportsFloat

from kernelgrowth._backend.arrays import to_numpy
from kernelgrowth._backend.checks import check_choice, check_integer
from kernelgrowth._backend.errors import RunFolderError
from kernelgrowth.gradients import from_net
from kernelgrowth.tracking.columns import Series
from kernelgrowth.tracking.comparison import Reference
from kernelgrowth.tracking.history import History
from kernelgrowth.tracking.meter import LossFunction, ProbeMeter
from kernelgrowth.tracking.overhead import Overhead
from kernelgrowth.tracking.place import is_url
from kernelgrowth.tracking.recorder import Recorder
from kernelgrowth.tracking.resume import TrackerState, open_store
from kernelgrowth.tracking.sampling import Subsamples
from kernelgrowth.tracking.schedule import count_due, is_due
from kernelgrowth.tracking.series import Record
from kernelgrowth.tracking.settings import Probe, Settings, check_metadata, describe_run
from kernelgrowth.tracking.store import MemoryStore, RunStore
from kernelgrowth.tracking.zarr_files import check_zarr

__all__ = ["NTKTracker", "TrackedTraining"]


class TrackedTraining(Protocol):
    """What the tracker reads of a trainer's state at a step; `kernelgrowth.training.TrainingState` is one.

    Also `steps`, how many there will be, where a state has it.
    """

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
    values, such as the first velocity or the alignment of a zero kernel, are NaN. With `max_overhead` also
    ``num_examples`` (m, those measured) and the standard errors ``loss_error``, ``kernel_norm_error``, ``trace_error``,
    ``alignment_error`` and ``alignment_centered_error``, which are 0 where m = N.

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
    out : path-like or str, optional
        Where to record to: a folder, new or empty, or a URL that fsspec knows (``s3://bucket/run``); None keeps the
        run in memory. A recorded run is a Zarr group (package `zarr`): whatever was recorded before a process is killed
        is read by `load_run`, and checkpoints of the trainer stay small.
    max_overhead : float, optional
        Keep the cost of tracking within this fraction of the training time, by skipping due steps and, where fewer than
        eight would be left between the first and the last, by measuring them on a subsample (see Notes). Which steps
        are tracked then depends on the machine. The first and the last are tracked whatever they cost.
    outputs : {"full", "trace", "mean_trace", "sum_logits"}
        How C > 1 outputs enter the kernel: n = N·C rows ``n*C + c`` for "full", n = N otherwise.
    kernel_budget : int
        Bytes of kernels to keep, upper triangles; n (n + 1) / 2 entries each. Once they are used up every second kernel
        is dropped and only every second, then fourth, ... kept; the first and the newest always are.
    metadata : mapping, optional
        What else to keep with the run, values that JSON can hold: seeds, names, a configuration. Versions, machine and
        commit are kept anyway; `History.info` has all, and `Runs.table` a column for each single value.

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
    each of these, three over the whole kernel, and its top eigenpairs. These are exact up to n = 256; beyond, residuals
    are at most 3e-4 of the largest eigenvalue, and they are started from those of the step before. Memory: two kernels
    while measuring, three packed ones in between, and n² more numbers where x_probe is the input of a dense layer.

    With `max_overhead` a step is expected to cost 25 % more than the dearest of the last three. What the first and the
    last cost is set aside, the rest of the fraction is spent evenly over the expected training time, and the number m
    of examples is halved as often as it takes to afford eight steps in between (or all that are due, if fewer), but not
    below 64 or 2 `top_k`. A fraction of 0.05 is kept within 0.06 while no step costs 50 % more than the dearest of
    three before it. In a loop of your own, training is the time between calls of `update`; since nobody knows how long
    it will go on, steps are only skipped.

    On a subsample (random, the same at every step but for its halvings, which are nested; `History.examples` names it)
    norms, traces, alignments, `velocity`, `rotation` and ``distance_to_final`` are estimates of their values on the
    whole probe set, pairs of different examples being weighted against those of an example with itself. `loss` is
    that of the subsample, taken as a mean over examples, and eigenvalues are multiplied by N / m; `effective_rank`,
    `eigenvector_alignment` and `subspace_overlap` are those of the subsample's kernel. Two steps are compared on the
    examples that both are on. Standard errors are those of a value; the differences of steps on one subsample, which
    share most of their error, are known better. Where m changes, series may jump by the errors given.
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
        metadata: Mapping[str, Any] | None = None,
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
        self._out = out if out is None or is_url(out) else Path(out)
        self._metadata = None if metadata is None else check_metadata(metadata)
        if out is not None:
            check_zarr()
        self._restored: Mapping[str, Any] | None = None
        self._recorder: Recorder | None = None
        self._meter = ProbeMeter(self._probe, self._settings, None)
        self._overhead = Overhead(self._settings.max_overhead, len(self._probe.x))
        self._newest_step_seen = -1
        # The newest tracked step with its network and parameters, until its predictions are saved.
        self._network: tuple[int, Any, Any] | None = None
        # What training has taken; in a loop of one's own the time between calls, since `_left`.
        self._training_seconds = 0.0
        self._left: float | None = None

    @property
    def history(self) -> History:
        """Everything recorded so far."""
        if self._recorder is None:
            return History(MemoryStore(), describe_run(self._settings, self._probe), Series())
        return self._recorder.history

    @property
    def started(self) -> bool:
        """Whether a run is followed, or was."""
        return self._recorder is not None

    def on_start(self, state: TrackedTraining) -> None:
        """Claim the run folder, or find the place in it from which a resumed run continues."""
        self._start(state.step, resume=state.resume, net=state.net, training=state)

    def on_step(self, state: TrackedTraining) -> None:
        """Track the step if it is the first, the last, or due."""
        self._newest_step_seen = state.step
        self._training_seconds = state.seconds
        size = self._everything if state.is_last else self._wanted_size(state.step, getattr(state, "steps", None))
        if size:
            self._track(state, state.loss, size, last=state.is_last)

    def on_end(self, state: TrackedTraining) -> None:
        """Write the run's last predictions and final status.

        After Ctrl-C the step that was reached is tracked too, so that the kernel training stopped at is kept; a run
        resumed from there forgets it again.
        """
        try:
            if state.status != "completed":
                self._running.read_again()
            # Within a step parameters and step may not belong together; at its beginning they do, but not the loss.
            if state.status == "interrupted" and state.step > self._newest_step_seen:
                self._track(state, math.nan, self._everything, last=True)
            self._save_last()
        finally:
            self._running.finish(str(state.status))

    def update(
        self,
        net: Any,
        params: Any,
        *,
        step: int,
        time: float | None = None,
        loss: float | LossFunction = math.nan,
        train_loss: SupportsFloat = math.nan,
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
            Loss on the training data; read only where the step is tracked.
        last : bool
            Whether training ends here.

        Returns
        -------
        bool
            Whether the step was tracked.
        """
        step = check_integer("step", step, minimum=0)
        if self._recorder is None or self._restored is not None:
            self._start(step, resume=self._restored is not None, net=net, training=None)
        if step <= self._newest_step_seen:
            raise ValueError(f"step must be larger than {self._newest_step_seen}, that of the call before, got {step}")
        self._newest_step_seen = step
        self._training_seconds += self._since_left()
        size = self._everything if last else self._wanted_size(step, None)
        if size:
            function = loss if callable(loss) else lambda f, y: float(loss)
            now = float(step if time is None else time)
            self._track_network(net, params, step, now, function, float(train_loss), size, last=last)
        self._since_left()
        return size > 0

    def close(self, status: str = "completed") -> None:
        """End a run recorded by `update`; `status` is what its history will say of it.

        One of "completed", "interrupted", "diverged" and "failed".
        """
        self._running.finish(check_choice("status", status, ("completed", "interrupted", "diverged", "failed")))

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint has to hold so that a resumed run continues the series bit for bit.

        With a run folder that is the newest kernel and eigenvectors, and the folder keeps the rest, now safely on disk;
        without one it is everything recorded.
        """
        if self._recorder is None:
            return {}
        store, references = self._recorder.store, self._meter.references
        store.sync()
        # Where a later step than the newest tracked one has begun, resuming can only need the newest.
        needed = 2 if references and references[-1].step >= self._newest_step_seen else 1
        return TrackerState(
            steps=self._recorder.series.steps.tolist(),
            references=references[-needed:],
            overhead=self._overhead.state_dict(),
            training_seconds=self._training_seconds,
            memory=store.state_dict() if isinstance(store, MemoryStore) else None,
        ).to_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` returned; the run continues from it when training starts."""
        self._restored = dict(state)

    @property
    def _running(self) -> Recorder:
        if self._recorder is None:
            raise RuntimeError("the tracker follows no run yet: hand it to train, or call update")
        return self._recorder

    @property
    def _everything(self) -> int:
        return len(self._probe.x)

    def _start(self, step: int, *, resume: bool, net: Any, training: Any) -> None:
        if self._recorder is not None and not resume:
            raise ValueError("this NTKTracker holds a run already: make a new one for another run")
        state = TrackerState.from_dict(self._restored, step) if self._restored else None
        info = describe_run(self._settings, self._probe, training, net, self._metadata)
        store = open_store(self._out, info, state, step, resume=resume)
        state = TrackerState() if state is None else state
        first, limit = None, self._settings.max_overhead
        if not state.steps:
            arrays: dict[str, Any] = {"y_probe": to_numpy(self._probe.y)}
            if limit is not None:
                arrays["sample_order"] = Subsamples.draw(self._everything)
            store.save_arrays("probe", arrays)
        elif "rotation" in self._settings.metrics:
            first = self._load_first(store, state.steps[0])
        # A run that was begun without a bound has no place for standard errors in its series.
        order = store.load_arrays("probe").get("sample_order")
        fewest = self._everything if order is None else 2 * self._settings.top_k
        self._meter = ProbeMeter(self._probe, self._settings, order)
        self._meter.start_from(state.references[-1:], first)
        self._overhead = Overhead(limit, self._everything, fewest)
        if state.overhead:
            self._overhead.load_state_dict(state.overhead)
        self._training_seconds, self._left = state.training_seconds, None
        self._recorder = Recorder(store, self._settings, self._probe)
        self._newest_step_seen = step - 1
        self._network = self._restored = None

    def _load_first(self, store: RunStore, step: int) -> Reference:
        try:
            return Reference(step, self._everything, store.load_kernel(step))
        except KeyError:
            raise RunFolderError(f"{self._out}: the kernel of its first tracked step, {step}, is missing") from None

    def _wanted_size(self, step: int, steps: int | None) -> int:
        """Return on how many examples a step that is not the last is measured; 0 if it is not."""
        every = self._settings.every
        if not len(self._running.series):
            return self._everything
        if not is_due(every, step):
            return 0
        training = self._training_seconds
        if steps is None:
            return self._overhead.affordable(training, None, 0)
        return self._overhead.affordable(training, training * steps / (step + 1), count_due(every, steps))

    def _since_left(self) -> float:
        """Return the seconds since the call before, of which there were none before the first."""
        now = time.perf_counter()
        before, self._left = self._left, now
        return 0.0 if before is None else now - before

    def _track(self, state: TrackedTraining, train_loss: float, size: int, *, last: bool) -> None:
        function = state.loss_function
        self._track_network(state.net, state.params, state.step, state.time, function, train_loss, size, last=last)
        # A trainer replaces parameters and never writes to them, so these stay those of the step just tracked.
        if not last and size == self._everything:
            self._network = (state.step, state.net, state.params)

    def _track_network(
        self,
        net: Any,
        params: Any,
        step: int,
        now: float,
        loss_function: LossFunction,
        train_loss: float,
        size: int,
        *,
        last: bool,
    ) -> None:
        start = time.perf_counter()
        recorder = self._running
        values, reference, features, preconditioner = self._meter.measure(net, params, step, size, loss_function)
        if not len(recorder.series):
            recorder.describe(reference.kernel, features)
            recorder.save_end("first", step, net, params, features, preconditioner)
        recorder.store.save_kernel(step, reference.kernel)
        loss = values.pop("loss")
        record: Record = {"step": step, "time": float(now), "loss": loss, "train_loss": float(train_loss)}
        recorder.append(record | values | {"seconds": time.perf_counter() - start})
        self._meter.remember(reference)
        if last:
            recorder.save_end("last", step, net, params, features, preconditioner)
        self._overhead.note(size, time.perf_counter() - start)

    def _save_last(self) -> None:
        """Keep predictions and K(x_test, x_probe) of the newest tracked step, if its parameters are known."""
        steps = self._running.series.steps
        if self._network is not None and len(steps) and self._network[0] == steps[-1]:
            step, net, params = self._network
            start = time.perf_counter()
            features = from_net(net, params, self._probe.x, check_finite=False)
            preconditioner = net.preconditioner(features) if hasattr(net, "preconditioner") else None
            self._running.save_end("last", step, net, params, features, preconditioner)
            self._overhead.seconds += time.perf_counter() - start
            self._network = None
