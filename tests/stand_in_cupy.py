"""CuPy as far as this library asks for it, on memory of the host's: what surrounds GPU kernels, tried without one.

It is stricter than NumPy where CuPy is: arrays are no NumPy arrays and do not become them by themselves, the two are
not mixed, reductions give arrays, and functions that are not listed here do not exist (list those that CuPy has).
"""

from __future__ import annotations

import operator
import sys
import threading
import types
from dataclasses import dataclass

import numpy as np
import scipy.special

from kernelgrowth import _core
from kernelgrowth._backend import cuda

_current = threading.local()


def _stack(name, bottom):
    if not hasattr(_current, name):
        setattr(_current, name, [bottom])
    return getattr(_current, name)


@dataclass(frozen=True)
class Device:
    id: int = 0
    compute_capability: str = "90"

    def __enter__(self):
        _stack("devices", Device()).append(self)
        return self

    def __exit__(self, *error):
        _stack("devices", Device()).pop()


Device.__module__ = "cupy.cuda.device"
Device.__hash__ = None


def _device():
    return _stack("devices", Device())[-1]


class Stream:
    """Work on it is done at once. The null stream has the pointer 17."""

    def __init__(self, null=False, non_blocking=False, ptr=18):
        self.ptr = ptr

    def __enter__(self):
        _stack("streams", NULL).append(self)
        return self

    def __exit__(self, *error):
        _stack("streams", NULL).pop()

    def synchronize(self):
        pass


NULL = Stream(ptr=17)


class Memory:
    """Memory of the device, or page-locked memory of the host's, as an allocation of CuPy's."""

    def __init__(self, size):
        self._host = bytearray(max(size, 1))
        self.ptr = np.frombuffer(self._host, np.uint8).ctypes.data

    def __buffer__(self, flags):
        return memoryview(self._host)


class ndarray:
    """An array on a device."""

    def __init__(self, host, device=None):
        self._host, self.device = np.asarray(host), device or _device()

    @property
    def data(self):
        return types.SimpleNamespace(ptr=self._host.ctypes.data)

    @property
    def __cuda_array_interface__(self):
        return {**self._host.__array_interface__, "version": 3}

    @property
    def flags(self):
        flags = self._host.flags
        return types.SimpleNamespace(c_contiguous=flags.c_contiguous, f_contiguous=flags.f_contiguous)

    @property
    def T(self):
        return ndarray(self._host.T, self.device)

    def get(self, stream=None, order="C", out=None):
        if out is None:
            return self._host.copy(order)
        out[...] = self._host
        return out

    def set(self, host, stream=None):
        assert type(host) is np.ndarray
        assert (host.shape, host.dtype) == (self.shape, self.dtype)
        self._host[...] = host

    def __len__(self):
        return len(self._host)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key):
        return ndarray(self._host[_on_host(key)], self.device)

    def __setitem__(self, key, value):
        if isinstance(value, np.ndarray):
            raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        self._host[_on_host(key)] = _on_host(value)

    def __array__(self, dtype=None, copy=None):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        if method != "__call__":
            raise TypeError(f"CuPy has no {ufunc.__name__}.{method}")
        targets = {} if out is None else {"out": _on_host(out)}
        result = _called(ufunc, *inputs, **targets, **options)
        return result if out is None else out[0]

    def __array_function__(self, func, kinds, args, options):
        if func.__name__ not in FUNCTIONS:
            raise TypeError(f"not known to be CuPy's: {func.__name__}")
        return _called(func, *args, **options)

    def __dlpack_device__(self):
        return (2, self.device.id)

    def __dlpack__(self, **options):
        raise BufferError("there is no device")

    def __bool__(self):
        return bool(self._host)

    def __int__(self):
        return int(self._host)

    def __float__(self):
        return float(self._host)

    def __getattr__(self, name):
        if name in ATTRIBUTES:
            return getattr(self._host, name)
        if name not in METHODS:
            raise AttributeError(f"not known to be CuPy's: ndarray.{name}")
        return lambda *args, **options: _called(getattr(type(self._host), name), self, *args, **options)


ndarray.__module__ = "cupy"

ATTRIBUTES = {"shape", "dtype", "ndim", "size", "nbytes", "itemsize", "strides", "item", "tolist"}
METHODS = {
    *(
        "all",
        "any",
        "argmax",
        "argmin",
        "argsort",
        "astype",
        "copy",
        "cumsum",
        "diagonal",
        "dot",
        "fill",
        "max",
        "mean",
    ),
    *("min", "prod", "ravel", "repeat", "reshape", "squeeze", "std", "sum", "swapaxes", "take", "trace", "transpose"),
    *("var", "view", "clip", "flatten", "mean"),
}
FUNCTIONS = {
    *("abs", "add", "all", "any", "arange", "argmax", "argsort", "argwhere", "array", "asarray", "ascontiguousarray"),
    *("broadcast_to", "clip", "concatenate", "cos", "count_nonzero", "cumsum", "diag", "diagonal", "dot", "einsum"),
    *("empty", "empty_like", "equal", "exp", "expand_dims", "expm1", "eye", "frexp", "full", "full_like", "hypot"),
    *("isfinite", "isnan", "ldexp", "linspace", "log", "log1p", "logaddexp", "matmul", "max", "maximum", "mean", "min"),
    *("minimum", "moveaxis", "multiply", "nonzero", "ones", "ones_like", "outer", "pad", "ravel", "repeat", "reshape"),
    *("result_type", "sign", "sin", "sqrt", "square", "squeeze", "stack", "subtract", "sum", "swapaxes", "take"),
    *("tanh", "tensordot", "tile", "trace", "transpose", "tril", "triu", "unique", "where", "zeros", "zeros_like"),
}

for _name in (
    *("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor"),
    *("lt", "le", "gt", "ge", "eq", "ne"),
):

    def _binary(name):
        function = getattr(operator, f"{name}_" if name in ("and", "or") else name)

        def forward(self, other):
            return _called(function, self, other)

        def reflected(self, other):
            return _called(function, other, self)

        def in_place(self, other):
            _called(getattr(operator, f"i{name}"), self, other)
            return self

        return forward, reflected, in_place

    _forward, _reflected, _in_place = _binary(_name)
    setattr(ndarray, f"__{_name}__", _forward)
    if _name not in ("lt", "le", "gt", "ge", "eq", "ne"):
        setattr(ndarray, f"__r{_name}__", _reflected)
        setattr(ndarray, f"__i{_name}__", _in_place)
ndarray.__neg__ = lambda self: _called(operator.neg, self)
ndarray.__abs__ = lambda self: _called(operator.abs, self)
ndarray.__invert__ = lambda self: _called(operator.invert, self)
ndarray.__hash__ = None


def _on_host(x):
    """Return what arrays in `x` hold, however they are nested."""
    if isinstance(x, ndarray):
        return x._host
    if isinstance(x, dict):
        return {name: _on_host(value) for name, value in x.items()}
    if isinstance(x, tuple):
        return tuple(map(_on_host, x))
    return [_on_host(part) for part in x] if isinstance(x, list) else x


def _arrays_in(x):
    if isinstance(x, ndarray | np.ndarray):
        yield x
    elif isinstance(x, list | tuple | dict):
        for part in x.values() if isinstance(x, dict) else x:
            yield from _arrays_in(part)


def _placed(x, device):
    if isinstance(x, np.ndarray | np.bool | np.number):
        return ndarray(x, device)
    return type(x)(_placed(part, device) for part in x) if type(x) in (list, tuple) else x


def _called(function, *args, **options):
    """Call a function of NumPy's with what arrays of one device hold."""
    found = list(_arrays_in((args, options)))
    if any(isinstance(array, np.ndarray) and array.ndim for array in found):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    devices = [array.device for array in found if isinstance(array, ndarray)]
    if any(device != devices[0] for device in devices):
        raise ValueError(f"Array device must be same as the current device: arrays on {devices}")
    with np.errstate(all="ignore"):
        result = function(*_on_host(args), **_on_host(options))
    return _placed(result, devices[0] if devices else None)


def on_gpu(array, device=None):
    return ndarray(np.array(array._host if isinstance(array, ndarray) else array), device)


class CuPy(types.ModuleType):
    """The module. `free` bytes are said to be left on each of its `count` GPUs."""

    def __init__(self, free=2**30, count=1):
        super().__init__("cupy")
        self.ndarray = ndarray
        self.cuda = types.SimpleNamespace(
            Device=Device,
            Stream=Stream,
            alloc=Memory,
            alloc_pinned_memory=Memory,
            get_current_stream=lambda: _stack("streams", NULL)[-1],
            runtime=types.SimpleNamespace(
                memGetInfo=lambda: (free - 2**20, 2 * free), getDeviceCount=lambda: count, CUDARuntimeError=RuntimeError
            ),
        )
        self.lib = types.SimpleNamespace(
            stride_tricks=types.SimpleNamespace(
                as_strided=lambda x, shape=None, strides=None: ndarray(
                    np.lib.stride_tricks.as_strided(x._host, shape, strides), x.device
                )
            )
        )
        self.get_default_memory_pool = lambda: types.SimpleNamespace(free_bytes=lambda: 2**20)

    @staticmethod
    def asarray(x, dtype=None):
        if isinstance(x, ndarray) and x.device == _device() and dtype in (None, x.dtype):
            return x
        return ndarray(np.array(_on_host(x), dtype=dtype))

    def __getattr__(self, name):
        given = getattr(np, name)
        if isinstance(given, type) or not callable(given):
            return given
        if name not in FUNCTIONS:
            raise AttributeError(f"not known to be CuPy's: {name}")
        return lambda *args, **options: _called(given, *args, **options)


class Special(types.ModuleType):
    def __getattr__(self, name):
        return lambda *args: _called(getattr(scipy.special, name), *args)


class Module:
    """The CUDA module, that computes with the CPU's core and remembers how it was called."""

    def __init__(self, module, failure=None):
        self.gram_workspace, self.statistics_layout = module.gram_workspace, module.statistics_layout
        self.failure, self.calls = failure, []

    def _call(self, **about):
        if self.failure:
            raise RuntimeError(self.failure)
        self.calls.append(about)

    def statistics(self, kernel, targets, other, results, *, workspace, stream):
        self._call(stream=stream)
        assert workspace
        found = _core.statistics(*_on_host((kernel, targets, other)))
        count = 0 if targets is None else len(targets)
        layout, size, _ = self.statistics_layout(*kernel.shape, count, other is not None)
        assert results.shape == (size,)
        for name, place in layout.items():
            where = slice(place[0], place[0] + place[1]) if isinstance(place, tuple) else place
            results._host[where] = found[name]

    def gram(self, terms, out, *, symmetric, accumulate, precision, workspace, workspace_bytes, stream):
        self._call(precision=precision, workspace_bytes=workspace_bytes, stream=stream)
        assert workspace
        _core.gram(_on_host(terms), _on_host(out), symmetric=symmetric, accumulate=accumulate)

    def set_lapack(self, *, dsyevd, dsyevr):
        _core.set_lapack(dsyevd=dsyevd, dsyevr=dsyevr)

    def block_krylov(self, function, start, locked, probes, vectors, new_block, allocate, stream, **options):
        self._call(stream=stream)
        assert allocate(100).ptr

        def product(block):
            placed = new_block(*block.shape)
            placed.set(block)
            result = function(placed)
            assert isinstance(result, ndarray)
            assert result.flags.c_contiguous
            assert result.dtype == block.dtype
            assert result.device == start.device
            return result.get()

        return _core.block_krylov(product, *_on_host((start, locked, probes, vectors)), **options)


def stand_in(monkeypatch, module):
    """Put CuPy and the CUDA module aside for a test; return what answers for `module`."""
    answering = Module(module)
    monkeypatch.setitem(sys.modules, "cupy", CuPy())
    monkeypatch.setitem(sys.modules, "cupyx.scipy.special", Special("cupyx.scipy.special"))
    monkeypatch.setattr(cuda, "_module", lambda: answering)
    return answering
