"""CuPy as far as this library asks for it, on memory of the host's: what surrounds GPU kernels, tried without one.

It is stricter than NumPy where CuPy is: arrays are no NumPy arrays and do not become them by themselves, the two are
not mixed, reductions give arrays, and functions that are not listed here do not exist (list those that CuPy has).
"""

from __future__ import annotations

import collections
import itertools
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

    def synchronize(self):
        pass


Device.__module__ = "cupy.cuda.device"
Device.__hash__ = None


def _device():
    return _stack("devices", Device())[-1]


class Stream:
    """Work on it is done at once, but copies from and to page-locked memory land as late as they may.

    The null stream has the pointer 17.
    """

    _pointers = itertools.count(18)

    def __init__(self, null=False, non_blocking=False, ptr=None):
        self.ptr = next(self._pointers) if ptr is None else ptr
        self.device_id = -1 if null else _device().id
        self.landed, self._copies = 0, collections.deque()

    def __enter__(self):
        if self.device_id not in (-1, _device().id):
            raise RuntimeError(f"The device that the stream is created on ({self.device_id}) does not match")
        _stack("streams", NULL).append(self)
        return self

    def __exit__(self, *error):
        _stack("streams", NULL).pop()

    def copy(self, target, source):
        self._copies.append((target, source))
        if not (_is_page_locked(target) or _is_page_locked(source)):
            self.synchronize()

    def position(self):
        return self.landed + len(self._copies)

    def synchronize(self, until=None):
        for _ in range(len(self._copies) if until is None else until - self.landed):
            target, source = self._copies.popleft()
            target[...] = source
            self.landed += 1


NULL = Stream(null=True, ptr=17)


def _stream():
    return _stack("streams", NULL)[-1]


class Event:
    def __init__(self, block=False, disable_timing=False, interprocess=False):
        self._stream, self._position = NULL, 0

    def record(self, stream=None):
        self._stream = stream or _stream()
        self._position = self._stream.position()

    def synchronize(self):
        self._stream.synchronize(self._position)


class Memory(bytearray):
    """Memory of the device as an allocation of CuPy's."""

    def __init__(self, size):
        super().__init__(max(size, 1))
        self.ptr = np.frombuffer(self, np.uint8).ctypes.data


class PageLockedMemory(Memory):
    """Memory of the host's, as much as CuPy's pool makes of it."""

    def __init__(self, size):
        super().__init__(1 << (max(size, 512) - 1).bit_length())


def _is_page_locked(array):
    while isinstance(array, np.ndarray):
        array = array.base
    return isinstance(array, memoryview) and isinstance(array.obj, PageLockedMemory)


class CUDARuntimeError(RuntimeError):
    pass


class OutOfMemoryError(MemoryError):
    pass


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

    def get(self, stream=None, order="C", out=None, blocking=True):
        stream = stream or _stream()
        if out is None:
            out, blocking = np.empty_like(self._host, order=order), True
        assert (out.shape, out.dtype) == (self.shape, self.dtype)
        assert out.flags.c_contiguous or out.flags.f_contiguous
        stream.copy(out, self._host)
        if blocking:
            stream.synchronize()
        return out

    def set(self, host, stream=None):
        assert type(host) is np.ndarray
        assert (host.shape, host.dtype) == (self.shape, self.dtype)
        assert self._host.flags.c_contiguous or self._host.flags.f_contiguous
        (stream or _stream()).copy(self._host, host)

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
        if func.__name__ not in (LINALG if func.__module__ == "numpy.linalg" else FUNCTIONS):
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
    *("isfinite", "isnan", "ldexp", "linspace", "log", "log1p", "logaddexp", "matmul", "max", "maximum", "mean"),
    *("min", "minimum", "moveaxis", "multiply", "ndim", "nonzero", "ones", "ones_like", "outer", "pad", "ravel"),
    *("repeat", "reshape", "result_type", "sign", "sin", "sqrt", "square", "squeeze", "stack", "subtract", "sum"),
    *("swapaxes", "take", "take_along_axis", "tanh", "tensordot", "tile", "trace", "transpose", "tril", "triu"),
    *("searchsorted", "unique", "where", "zeros", "zeros_like"),
}
LINALG = {"norm", "svd"}

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
    if isinstance(x, tuple):
        return tuple(_placed(part, device) for part in x)
    return [_placed(part, device) for part in x] if isinstance(x, list) else x


def _called(function, *args, **options):
    """Call a function of NumPy's with what arrays of one device hold."""
    found = list(_arrays_in((args, options)))
    if any(isinstance(array, np.ndarray) and array.ndim for array in found):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    devices = [array.device for array in found if isinstance(array, ndarray)]
    if any(device != devices[0] for device in devices):
        raise ValueError(f"Array device must be same as the current device: arrays on {devices}")
    _stream().synchronize()
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
            Event=Event,
            alloc=Memory,
            alloc_pinned_memory=PageLockedMemory,
            get_current_stream=_stream,
            memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            runtime=types.SimpleNamespace(
                memGetInfo=lambda: (free - 2**20, 2 * free),
                getDeviceCount=lambda: count,
                CUDARuntimeError=CUDARuntimeError,
            ),
        )
        self.lib = types.SimpleNamespace(
            stride_tricks=types.SimpleNamespace(
                as_strided=lambda x, shape=None, strides=None: ndarray(
                    np.lib.stride_tricks.as_strided(x._host, shape, strides), x.device
                )
            )
        )
        pool = types.SimpleNamespace(free_bytes=lambda: 2**20, free_all_blocks=lambda stream=None: None)
        self.get_default_memory_pool = lambda: pool

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
        given = getattr(scipy.special, name)
        return (lambda *args: _called(given, *args)) if callable(given) else given


class Module:
    """The CUDA module, that computes with the CPU's core and remembers how it was called."""

    def __init__(self, module, failure=None):
        self.gram_workspace, self.statistics_layout = module.gram_workspace, module.statistics_layout
        self.failure, self.calls = failure, []

    def _call(self, **about):
        if self.failure:
            raise RuntimeError(self.failure)
        assert about["stream"] == _stream().ptr
        _stream().synchronize()
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
