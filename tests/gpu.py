"""The GPU that tests of CuPy arrays run on: the machine's, or where there is none a stand-in."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from stand_in_cupy import stand_in

__all__ = ["Gpu", "find_gpu"]


class Gpu:
    """CuPy, real or not, and the CUDA module that stands in for the compiled one (None where that runs)."""

    def __init__(self, cupy: Any, module: Any) -> None:
        self.cupy, self.module = cupy, module

    @property
    def is_real(self) -> bool:
        return self.module is None

    def __call__(self, array: Any) -> Any:
        """Return an array of the host's on the GPU."""
        return self.cupy.asarray(array)

    def holds(self, *arrays: Any) -> bool:
        """Whether all arrays are CuPy's."""
        return all(isinstance(array, self.cupy.ndarray) for array in arrays)

    def agree(self, found: Any, wanted: Any, tolerance: float) -> None:
        """Check an array on the GPU against one of the CPU's, to a fraction of its largest entry.

        Where the stand-in makes the same calls of the CPU's core, a tolerance of 0 is kept by it alone: the promise of
        the dtype is then the GPU's.
        """
        if self.is_real and tolerance == 0:
            tolerance = 1e-5 if wanted.dtype == np.float32 else 1e-12
        assert self.holds(found)
        assert found.dtype == wanted.dtype
        assert found.shape == wanted.shape
        largest = float(np.abs(wanted).max(initial=0.0))
        np.testing.assert_allclose(found.get(), wanted, rtol=0, atol=tolerance * largest)


def find_gpu(monkeypatch: Any, compiled: Any) -> Gpu:
    try:
        cupy = importlib.import_module("cupy")
        if cupy.cuda.runtime.getDeviceCount() > 0:
            return Gpu(cupy, None)
    except (ImportError, RuntimeError):
        pass
    module = stand_in(monkeypatch, compiled)
    return Gpu(importlib.import_module("cupy"), module)
