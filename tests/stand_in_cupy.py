"""CuPy as far as kernels of the GPU ask for it, with arrays of the host's: what surrounds them, tried without a GPU."""

from __future__ import annotations

import contextlib
import sys
import types
from dataclasses import dataclass

import numpy as np

from kernelgrowth import _core
from kernelgrowth._backend import cuda


@dataclass(frozen=True)
class Device(contextlib.AbstractContextManager):
    id: int = 0
    compute_capability: str = "90"

    def __exit__(self, *error):
        return None


class ndarray(np.ndarray):
    """An array that says it is CuPy's; `device` is that of the array it was made of."""

    device = Device()

    def __array_finalize__(self, source):
        self.device = source.device if isinstance(source, ndarray) else Device()

    def __array_function__(self, func, types, args, kwargs):
        result = super().__array_function__(func, types, args, kwargs)
        return result.view(ndarray) if type(result) is np.ndarray else result

    @property
    def data(self):
        return types.SimpleNamespace(ptr=self.ctypes.data)

    @property
    def __cuda_array_interface__(self):
        return {**self.__array_interface__, "version": 3}

    def get(self):
        return self.view(np.ndarray)


ndarray.__module__ = "cupy"


def on_gpu(array, device=None):
    result = np.array(array).view(ndarray)
    result.device = device or Device()
    return result


class CuPy(types.ModuleType):
    """The module. `free` bytes are said to be left on its GPU."""

    def __init__(self, free=2**30):
        super().__init__("cupy")
        runtime = types.SimpleNamespace(memGetInfo=lambda: (free - 2**20, 2 * free))
        stream = types.SimpleNamespace(ptr=17)
        self.cuda = types.SimpleNamespace(runtime=runtime, get_current_stream=lambda: stream)
        self.get_default_memory_pool = lambda: types.SimpleNamespace(free_bytes=lambda: 2**20)
        self.empty = lambda shape, dtype: np.empty(shape, dtype).view(ndarray)
        self.ascontiguousarray = lambda array, dtype=None: np.ascontiguousarray(array, dtype).view(ndarray)
        self.asarray = on_gpu

    def __getattr__(self, name):
        return getattr(np, name)


class Module:
    """The CUDA module, that computes with the CPU's core and remembers how it was called."""

    def __init__(self, module, failure=None):
        self.gram_workspace, self.statistics_layout = module.gram_workspace, module.statistics_layout
        self.failure, self.calls = failure, []

    def statistics(self, kernel, targets, other, results, *, workspace, stream):
        if self.failure:
            raise RuntimeError(self.failure)
        self.calls.append({"stream": stream})
        assert workspace
        found = _core.statistics(*(None if array is None else array.get() for array in (kernel, targets, other)))
        count = 0 if targets is None else len(targets)
        layout, size, _ = self.statistics_layout(*kernel.shape, count, other is not None)
        assert results.shape == (size,)
        for name, place in layout.items():
            results[slice(place[0], place[0] + place[1]) if isinstance(place, tuple) else place] = found[name]

    def gram(self, terms, out, *, symmetric, accumulate, precision, workspace, workspace_bytes, stream):
        if self.failure:
            raise RuntimeError(self.failure)
        self.calls.append({"precision": precision, "workspace_bytes": workspace_bytes, "stream": stream})
        assert workspace
        assert isinstance(out, ndarray)
        _core.gram(terms, out.view(np.ndarray), symmetric=symmetric, accumulate=accumulate)


def stand_in(monkeypatch, module):
    """Put CuPy and the CUDA module aside for a test; return what answers for `module`."""
    answering = Module(module)
    monkeypatch.setitem(sys.modules, "cupy", CuPy())
    monkeypatch.setattr(cuda, "_module", lambda: answering)
    return answering
