"""A recorded run as arrays: its series, its kernels, and what kernel regression on it needs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kernelgrowth._backend.arrays import FloatArray
from kernelgrowth.diagnostics import SilentAlignment, silent_alignment
from kernelgrowth.tracking.columns import Series
from kernelgrowth.tracking.comparison import Reference, distance, in_common
from kernelgrowth.tracking.earlier_format import RunOfVersion1
from kernelgrowth.tracking.packing import unpack_triangle
from kernelgrowth.tracking.place import is_url
from kernelgrowth.tracking.run_group import RunGroup
from kernelgrowth.tracking.sampling import Subsamples
from kernelgrowth.tracking.store import StoredRun
from kernelgrowth.tracking.targets import kernel_targets, target_matrix

__all__ = ["History", "load_run"]

_DISTANCE = "distance_to_final"


class History(Mapping[str, npt.NDArray[Any]]):
    """The series of a tracked run, T tracked steps, as a read-only mapping from names to arrays.

    ``history["alignment"]`` is an array (T,), ``history["eigenvalues"]`` one (T, k); `step` and `num_examples` are
    int64, all else float64. Beside the recorded names there is ``"distance_to_final"``: 1 − cos(K_t, K_last) from the
    stored kernels, on the examples that both are on, NaN at steps whose kernel was not kept. Undefined values are NaN.

    The series are those recorded when the history was made; kernels are read when asked for. Made by
    `NTKTracker.history` and `load_run`.
    """

    def __init__(self, store: StoredRun, info: Mapping[str, Any], series: Series) -> None:
        self._store = store
        self._info = dict(info)
        self._series = series
        self._distance: FloatArray | None = None

    @property
    def steps(self) -> npt.NDArray[np.int64]:
        """Tracked steps (T,), ascending."""
        return self._series.steps.copy()

    @property
    def status(self) -> str:
        """How the run ended: "completed", "interrupted", "diverged", "failed"; "running" also if it was killed."""
        return str(self._info["status"])

    @property
    def config(self) -> dict[str, Any]:
        """The tracker's settings and, where known, the configurations of network and optimizer."""
        return dict(self._info["config"])

    @property
    def info(self) -> dict[str, Any]:
        """Everything known of the run as a whole, as its attributes hold it."""
        return dict(self._info)

    def newest(self) -> dict[str, Any]:
        """Return what was recorded of the newest tracked step, numbers and lists by name."""
        if not len(self._series):
            raise KeyError("no step is recorded yet")
        return self._series.record(-1)

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        if name == _DISTANCE:
            return self._distance_to_final()
        if not len(self._series):
            raise KeyError(f"{name}: no step is recorded yet")
        if name not in self._series:
            raise KeyError(f"{name}: not recorded; there are {', '.join(self)}")
        return self._series[name].copy()

    def __iter__(self) -> Iterator[str]:
        if len(self._series):
            yield from self._series
            yield _DISTANCE

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return any(name == known for known in self)

    # A mapping compares its values, and arrays have no single truth value.
    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        span = f", steps {self.steps[0]} to {self.steps[-1]}" if len(self._series) else ""
        return f"History({len(self._series)} tracked steps{span}, status {self.status!r}, {len(self)} series)"

    def to_dict(self) -> dict[str, npt.NDArray[Any]]:
        """Return all series, ``"distance_to_final"`` included, as a plain dict of arrays."""
        return {name: self[name] for name in self}

    @property
    def kernel_steps(self) -> list[int]:
        """Tracked steps whose kernel is stored, ascending."""
        return [step for step in self._store.kernel_steps() if self._series.row_of(step) is not None]

    def kernel(self, step: int) -> FloatArray:
        """Return the probe kernel (n, n) at a tracked step, symmetric to the bit, in the dtype it was computed in.

        It is on the examples that `examples` names, which with `max_overhead` may be some of the probe set only.

        Raises
        ------
        KeyError
            If no kernel of that step is stored; `kernel_steps` lists those that are.
        RunFolderError
            If its file is corrupt.
        """
        return unpack_triangle(self._packed(step))

    def examples(self, step: int) -> npt.NDArray[np.int64]:
        """Return the places in the probe set (m,) of the examples that the kernel of a tracked step is on, in order.

        Raises
        ------
        KeyError
            If the step was not tracked.
        """
        row = self._series.row_of(step)
        if row is None:
            raise KeyError(f"step {step} was not tracked; steps lists those that were")
        return self._subsamples().examples(self._size(row))

    def _subsamples(self) -> Subsamples:
        return Subsamples(int(self._info.get("num_examples", 0)), self._store.load_arrays("probe").get("sample_order"))

    def _size(self, row: int) -> int:
        if "num_examples" in self._series:
            return int(self._series["num_examples"][row])
        return int(self._info.get("num_examples", 0))

    def _packed(self, step: int) -> FloatArray:
        if step in self.kernel_steps:
            with contextlib.suppress(KeyError):
                return self._store.load_kernel(int(step))
        raise KeyError(f"no kernel is stored for step {step}; kernel_steps lists those that are")

    def _distance_to_final(self) -> FloatArray:
        if self._distance is None:
            distances: FloatArray = np.full(len(self._series), np.nan)
            subsamples = self._subsamples()
            # The last kernel, and by size what of it is on a subsample.
            final: dict[int, Reference] = {}
            for step in reversed(self.kernel_steps):
                i = int(np.searchsorted(self._series.steps, step))
                size = self._size(i)
                # A run still being written may drop a kernel at any moment, the newest one too.
                with contextlib.suppress(KeyError):
                    kernel = Reference(step, size, self._store.load_kernel(step))
                    last = final.setdefault(max(final, default=size), kernel)
                    kernel, there = in_common(kernel, final.get(size, last), subsamples)
                    final[there.size] = there
                    distances[i] = distance(kernel, there, subsamples)
            self._distance = distances
        return self._distance.copy()

    @property
    def y_probe(self) -> npt.NDArray[Any]:
        """The targets of the probe set as they were given: (N,) or (N, C)."""
        arrays = self._store.load_arrays("probe")
        if "y_probe" not in arrays:
            raise KeyError("no targets are recorded")
        return np.asarray(arrays["y_probe"])

    @property
    def targets(self) -> FloatArray:
        """The targets over the kernel's n rows, labels one-hot: (n,), or (n, C) where the kernel merges C outputs."""
        matrix = target_matrix(self.y_probe, int(self._info["num_outputs"]))
        columns = kernel_targets(matrix, str(self._info["config"]["outputs"]))
        return columns[:, 0] if columns.shape[1] == 1 else columns

    def predictions(self, step: int) -> FloatArray:
        """Return the network's outputs (N, C) on the probe set, at the first or the last tracked step."""
        return self._end("predictions", step)

    def test_predictions(self, step: int) -> FloatArray:
        """Return the network's outputs (N_test, C) on the test set, at the first or the last tracked step."""
        return self._end("test_predictions", step)

    def test_kernel(self, step: int) -> FloatArray:
        """Return K(x_test, x_probe), at the first or the last tracked step, its columns like `kernel`'s.

        With `kernel`, `targets` and the predictions this is all that kernel regression with K_0 or K_∞ needs::

            m = KernelRegression(h.kernel(t)).fit(h.targets, f0=h.predictions(t))
            m.predict(h.test_kernel(t), f0=h.test_predictions(t))
        """
        return self._end("test_kernel", step)

    def _end(self, field: str, step: int) -> FloatArray:
        for name in ("first", "last"):
            arrays = self._store.load_arrays(name)
            if arrays and int(arrays["step"]) == step and field in arrays:
                return np.array(arrays[field])
        reason = (
            "it was tracked without x_test"
            if field != "predictions" and not self._info.get("num_test")
            else ("they are kept for the first and, once the run has ended, for the last tracked step")
        )
        raise KeyError(f"no {field.replace('_', ' ')} recorded at step {step}: {reason}")

    def silent_alignment(self) -> SilentAlignment:
        """Return the verdict of `kernelgrowth.diagnostics.silent_alignment` on this history."""
        return silent_alignment(self)


def load_run(path: str | os.PathLike[str]) -> History:
    """Read a recorded run from its folder; also one that is still being written, or whose process was killed.

    Parameters
    ----------
    path : path-like
        The folder that was `NTKTracker`'s `out`, or its URL.

    Returns
    -------
    History
        Everything recorded up to now.

    Raises
    ------
    RunFolderError
        If there is no such folder, it holds no run, was written in a later format version, or a file of it is corrupt;
        the message names the file.

    Notes
    -----
    A run is a Zarr group, which `zarr.open_group` opens too; runs of earlier versions, folders of plain files, are read
    as well. A run of 100,000 tracked steps opens in a fraction of a second.
    """
    if not is_url(path) and (Path(path) / "run.json").exists():
        earlier = RunOfVersion1(path)
        return History(earlier, earlier.read_info(), earlier.series())
    group = RunGroup(path)
    info = group.read_info()
    return History(group, info, group.series())
