"""What a tracker needs of the place it records to, and that place in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from kernelgrowth._backend.arrays import FloatArray
from kernelgrowth.tracking.columns import Series
from kernelgrowth.tracking.series import Record, decode_lines, encode_record

__all__ = ["MemoryStore", "RunStore", "StoredRun"]


class StoredRun(Protocol):
    """What of a recorded run is read when it is asked for."""

    def kernel_steps(self) -> list[int]:
        """Return the steps whose kernel is stored, in order."""

    def load_kernel(self, step: int) -> FloatArray:
        """Return the packed kernel of one step; `KeyError` if there is none."""

    def load_arrays(self, name: str) -> dict[str, Any]:
        """Return what is stored under one of the names "probe", "first" and "last"; empty if nothing is."""


class RunStore(StoredRun, Protocol):
    """Where a run is recorded. A Zarr group and a run in memory do the same, so everything above sees no difference."""

    def read_info(self) -> dict[str, Any]:
        """Return what is known of the run as a whole: format, status, configuration, shapes."""

    def write_info(self, info: Mapping[str, Any]) -> None:
        """Replace what is known of the run as a whole."""

    def series(self) -> Series:
        """Return everything tracked so far, as a snapshot."""

    def append(self, record: Record) -> None:
        """Add the record of one more tracked step: from here on the step counts as tracked."""

    def save_kernel(self, step: int, packed: FloatArray) -> None:
        """Store the packed kernel of one step."""

    def drop_kernel(self, step: int) -> None:
        """Forget the kernel of one step, if there is one."""

    def save_arrays(self, name: str, arrays: Mapping[str, Any]) -> None:
        """Store named arrays under one of the names "probe", "first" and "last"."""

    def truncate(self, step: int) -> None:
        """Forget everything recorded at `step` and later."""

    def release(self) -> None:
        """Let others write here: the run has ended."""

    def sync(self) -> None:
        """Return when all appended records would survive a crash of the machine."""

    def move_tail(self) -> None:
        """Bring what was appended to the form in which it is kept when the run has ended."""


class MemoryStore:
    """A run that lives as long as its tracker.

    Its state goes whole into the trainer's checkpoint, kernels included; a run folder keeps checkpoints small.
    """

    def __init__(self) -> None:
        self._info: dict[str, Any] = {}
        self._series = Series()
        self._kernels: dict[int, FloatArray] = {}
        self._arrays: dict[str, dict[str, Any]] = {}

    def read_info(self) -> dict[str, Any]:
        """Return what is known of the run as a whole."""
        return self._info

    def write_info(self, info: Mapping[str, Any]) -> None:
        """Replace what is known of the run as a whole."""
        self._info = dict(info)

    def series(self) -> Series:
        """Return everything tracked so far, as a snapshot."""
        return self._series.snapshot()

    def append(self, record: Record) -> None:
        """Add the record of one more tracked step."""
        self._series.append(record)

    def kernel_steps(self) -> list[int]:
        """Return the steps whose kernel is stored, in order."""
        return sorted(self._kernels)

    def save_kernel(self, step: int, packed: FloatArray) -> None:
        """Store the packed kernel of one step."""
        self._kernels[step] = packed

    def load_kernel(self, step: int) -> FloatArray:
        """Return the packed kernel of one step; `KeyError` if there is none."""
        return self._kernels[step]

    def drop_kernel(self, step: int) -> None:
        """Forget the kernel of one step, if there is one."""
        self._kernels.pop(step, None)

    def save_arrays(self, name: str, arrays: Mapping[str, Any]) -> None:
        """Store named arrays as "probe", "first" or "last"."""
        self._arrays[name] = dict(arrays)

    def load_arrays(self, name: str) -> dict[str, Any]:
        """Return what `save_arrays` stored under that name; empty if nothing was."""
        return dict(self._arrays.get(name, {}))

    def truncate(self, step: int) -> None:
        """Forget everything recorded at `step` and later."""
        self._series = self._series.first(int(np.searchsorted(self._series.steps, step)))
        self._kernels = {at: kernel for at, kernel in self._kernels.items() if at < step}
        for name in ("first", "last"):
            if name in self._arrays and int(self._arrays[name]["step"]) >= step:
                del self._arrays[name]

    def release(self) -> None:
        """Nobody else could write here."""

    def sync(self) -> None:
        """Nothing here outlives the process."""

    def move_tail(self) -> None:
        """There is one form only."""

    def state_dict(self) -> dict[str, Any]:
        """Return everything recorded as a flat dict of arrays and JSON values."""
        state: dict[str, Any] = {
            "info": self._info,
            "series": "".join(encode_record(self._series.record(row)) for row in range(len(self._series))),
        }
        state |= {f"kernel/{step}": kernel for step, kernel in self._kernels.items()}
        for name, arrays in self._arrays.items():
            state |= {f"arrays/{name}/{key}": np.asarray(value) for key, value in arrays.items()}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace everything recorded by what `state_dict` returned."""
        self._info = dict(state["info"])
        self._series = Series()
        self._series.extend(decode_lines(str(state["series"]).encode()))
        self._kernels, self._arrays = {}, {}
        for key, value in state.items():
            kind, _, name = key.partition("/")
            if kind == "kernel":
                self._kernels[int(name)] = np.asarray(value)
            elif kind == "arrays":
                group, _, field = name.partition("/")
                self._arrays.setdefault(group, {})[field] = np.asarray(value)
