"""Putting what is measured into a store, and dropping the kernels that it has no room for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kernelgrowth._backend.arrays import FloatArray, to_numpy
from kernelgrowth.gradients import GradientFeatures, from_net
from kernelgrowth.tracking.columns import Series
from kernelgrowth.tracking.history import History
from kernelgrowth.tracking.metrics import cross_kernel
from kernelgrowth.tracking.packing import matrix_size
from kernelgrowth.tracking.schedule import kernel_capacity, kernel_stride, retained
from kernelgrowth.tracking.series import Record
from kernelgrowth.tracking.settings import Probe, Settings
from kernelgrowth.tracking.store import RunStore

__all__ = ["Recorder"]


class Recorder:
    """A run being recorded.

    Parameters
    ----------
    store : RunStore
        Open, and holding the steps that the run goes on from.
    settings : Settings
    probe : Probe

    Attributes
    ----------
    store
        As given.
    series : Series
        All tracked steps.
    """

    def __init__(self, store: RunStore, settings: Settings, probe: Probe) -> None:
        self.store = store
        self.series: Series = store.series()
        self._settings = settings
        self._probe = probe
        self._info = store.read_info()
        # Between which kernels are kept; None if any may have to be dropped.
        self._stride: int | None = None

    @property
    def history(self) -> History:
        """Everything recorded so far."""
        return History(self.store, self._info, self.series.snapshot())

    def read_again(self) -> None:
        """Take the series from the store: fewer steps after a failed write, perhaps one more after Ctrl-C."""
        self.series = self.store.series()

    def describe(self, kernel: FloatArray, features: GradientFeatures) -> None:
        """Add what only the first measurement, a packed kernel on the whole probe set, tells of the run."""
        self._info |= {
            "num_outputs": features.num_outputs,
            "kernel_size": matrix_size(len(kernel)),
            "dtype": str(kernel.dtype),
        }
        self.store.write_info(self._info)

    def append(self, record: Record) -> None:
        """Add the record of a step whose kernel is stored, and drop the kernels that it makes superfluous."""
        self.store.append(record)
        self.series.append(record)
        size, itemsize = int(self._info["kernel_size"]), np.dtype(self._info["dtype"]).itemsize
        capacity, count = kernel_capacity(self._settings.kernel_budget, size, itemsize), len(self.series)
        stride = kernel_stride(count, capacity)
        # With the stride unchanged only the one that was the newest can have become superfluous.
        candidates = self.series.steps[-2:-1].tolist() if stride == self._stride else self.store.kernel_steps()
        for step in candidates:
            row = self.series.row_of(step)
            if row is None or not retained(row, count, capacity):
                self.store.drop_kernel(step)
        self._stride = stride

    def save_end(
        self,
        name: str,
        step: int,
        net: Any,
        params: Any,
        features: GradientFeatures,
        preconditioner: Mapping[str, Any] | None,
    ) -> None:
        """Keep predictions and K(x_test, x_probe) as those of the "first" or the "last" tracked step."""
        arrays: dict[str, Any] = {"step": np.int64(step), "predictions": to_numpy(features.predictions)}
        if self._probe.x_test is not None:
            test = from_net(net, params, self._probe.x_test, check_finite=False)
            arrays["test_predictions"] = to_numpy(test.predictions)
            arrays["test_kernel"] = cross_kernel(test, features, self._settings.outputs, preconditioner)
        self.store.save_arrays(name, arrays)

    def finish(self, status: str) -> None:
        """End the run: everything is on the disk then, and others may write here."""
        self._info["status"] = status
        try:
            self.store.move_tail()
            self.store.sync()
            self.store.write_info(self._info)
        finally:
            self.store.release()
