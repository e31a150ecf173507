"""Arrays at the boundary: which library they belong to, whether they are usable, and how results go back."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from kernelgrowth._backend.errors import BackendError

__all__ = [
    "FloatArray",
    "array_namespace",
    "as_array",
    "as_indices",
    "check_finite",
    "float_dtype",
    "gpu_of",
    "host_product",
    "is_cupy",
    "like",
    "place",
    "special_functions",
    "to_cuda",
    "to_numpy",
]

FloatArray = npt.NDArray[np.floating[Any]]

_LOOKED_AT = 2**20  # entries of which those that are not finite are listed at a time
_DLPACK_CUDA = 2  # the type of NVIDIA's devices in DLPack
_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def is_cupy(x: Any) -> bool:
    """Whether `x` is a CuPy array, without importing CuPy."""
    return type(x).__module__.split(".", 1)[0] == "cupy"


def array_namespace(*arrays: Any) -> Any:
    """Return `numpy`, or `cupy` when the arrays live there; a mixture is refused.

    Raises
    ------
    TypeError
        If NumPy and CuPy arrays are mixed.
    """
    kinds = {is_cupy(x) for x in arrays if x is not None}
    if kinds == {True, False}:
        raise TypeError("arrays must all be NumPy or all be CuPy arrays, got both: move one side first")
    return importlib.import_module("cupy") if kinds == {True} else np


def as_array(
    name: str,
    x: Any,
    *,
    ndim: int | tuple[int, ...] | None = None,
    dtype: npt.DTypeLike | None = None,
    finite: bool = True,
) -> FloatArray:
    """Return `x` as a float32 or float64 array without a copy where possible, checked by name.

    Integers and booleans become float64; float16 and long double are refused rather than cast.
    Anything that speaks DLPack is taken without a copy, as a CuPy array where it lives on an NVIDIA GPU; CuPy arrays
    are returned as they are.

    Parameters
    ----------
    name : str
        The argument's name, for the message.
    x : array_like
        NumPy array, CuPy array, DLPack exporter, or nested sequence of numbers.
    ndim : int or tuple of int, optional
        Number of dimensions wanted.
    dtype : dtype, optional
        Exact dtype wanted; another one is refused, never cast silently.
    finite : bool
        Whether non-finite values are refused.

    Raises
    ------
    TypeError
        If `x` is no real floating array, or of another dtype than asked.
    BackendError
        If its library hands out no view of it, or it lives on a GPU and CuPy is not installed.
    ValueError
        If the number of dimensions is wrong or a value is not finite.
    """
    _refuse_mask(name, x)
    if isinstance(x, np.ndarray):
        x = np.require(x, requirements="A")  # a copy where records or buffers put numbers at odd addresses
    array = x if isinstance(x, np.ndarray) or is_cupy(x) else _import_array(name, x)
    if array.dtype.kind in "iub":
        array = array.astype(np.float64)
    if array.dtype not in _FLOATS or not array.dtype.isnative:
        raise TypeError(f"{name} must be float32 or float64, got dtype {array.dtype}")
    if dtype is not None and array.dtype != np.dtype(dtype):
        raise TypeError(
            f"{name} must be {np.dtype(dtype)} like the other arrays, got {array.dtype}: convert it explicitly"
        )
    if ndim is not None:
        wanted = (ndim,) if isinstance(ndim, int) else ndim
        if array.ndim not in wanted:
            text = " or ".join(str(n) for n in wanted)
            raise ValueError(f"{name} must have {text} dimension(s), got shape {array.shape}")
    if finite:
        check_finite(name, array)
    return array  # type: ignore[no-any-return]


def as_indices(name: str, x: Any, size: int, *, ndim: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Return `x` as int64 numbers in [0, `size`), without a copy where possible, checked by name.

    Raises
    ------
    TypeError
        If `x` holds no integers, or is a masked array.
    BackendError
        As `as_array` does.
    ValueError
        If the number of dimensions is wrong, or a number out of range.
    """
    _refuse_mask(name, x)
    array = x if isinstance(x, np.ndarray) or is_cupy(x) else _import_array(name, x)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got dtype {array.dtype}")
    if array.ndim not in ndim:
        text = " or ".join(str(n) for n in ndim)
        raise ValueError(f"{name} must have {text} dimension(s), got shape {array.shape}")
    if array.size and not 0 <= int(array.min()) <= int(array.max()) < size:
        raise ValueError(f"{name} must lie in [0, {size}), got {int(array.min())} to {int(array.max())}")
    return array.astype(np.int64, copy=False)  # type: ignore[no-any-return]


def _refuse_mask(name: str, x: Any) -> None:
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name} must not be a masked array: its mask would be ignored")


def _import_array(name: str, x: Any) -> Any:
    if hasattr(x, "__dlpack__"):
        if getattr(x, "requires_grad", False):
            x = x.detach()
        if _is_on_gpu(x):
            return _cupy(name).from_dlpack(x)
        try:
            return np.from_dlpack(x)
        except (BufferError, RuntimeError, ValueError) as error:
            raise BackendError(f"{name}: no NumPy view of this {type(x).__name__} through DLPack: {error}") from error
    try:
        array = np.asarray(x)
    except ValueError as error:
        raise ValueError(f"{name} is not a rectangular array: {error}") from error
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} must be an array of real numbers, got {type(x).__name__} with dtype {array.dtype}")
    return array


def _is_on_gpu(x: Any) -> bool:
    return hasattr(x, "__dlpack_device__") and int(x.__dlpack_device__()[0]) == _DLPACK_CUDA


def _cupy(name: str) -> Any:
    try:
        return importlib.import_module("cupy")
    except ImportError as error:
        raise BackendError(f"{name} is on a GPU, which needs CuPy: install kernelgrowth[cuda13]") from error


def check_finite(name: str, array: Any) -> None:
    """Raise `ValueError` naming the first non-finite entry of `array`, if there is one."""
    xp = array_namespace(array)
    # One pass that allocates nothing in the good case: a sum is finite only if every entry is (or it overflows).
    with np.errstate(over="ignore", invalid="ignore"):
        if bool(xp.isfinite(array.sum())):
            return
    # A part at a time, for the array may be larger than memory.
    step = max(1, _LOOKED_AT * len(array) // array.size) if array.ndim else 1
    count, first = 0, None
    for begin in range(0, len(array) if array.ndim else 1, step):
        bad = xp.argwhere(~xp.isfinite(array[begin : begin + step] if array.ndim else array))
        count += len(bad)
        if first is None and len(bad):
            first = tuple(int(i) + (begin if axis == 0 else 0) for axis, i in enumerate(bad[0]))
    if first is not None:
        raise ValueError(f"{name} must be finite, got {float(array[first])} at index {first} ({count} such value(s))")


def float_dtype(**arrays: Any) -> np.dtype[Any]:
    """Return the one dtype that all named arrays share; a mixture is a `TypeError` that names both."""
    first, reference = next(iter(arrays.items()))
    for name, array in arrays.items():
        if array.dtype != reference.dtype:
            raise TypeError(f"{name} is {array.dtype} but {first} is {reference.dtype}: convert one of them explicitly")
    dtype: np.dtype[Any] = np.dtype(reference.dtype)
    return dtype


def to_numpy(array: Any) -> FloatArray:
    """Copy a CuPy array to the host; a NumPy array is returned as it is."""
    return array.get() if is_cupy(array) else array  # type: ignore[no-any-return]


def gpu_of(x: Any) -> Any:
    """Return the GPU, a `cupy.cuda.Device`, where an array lies or an operator with ``.device`` computes; else None."""
    device = getattr(x, "device", None)
    return device if is_cupy(device) else None


def place(array: Any, gpu: Any) -> Any:
    """Return `array` on a GPU, or with None on the host; where it is there already, it is returned as it is."""
    if gpu is None:
        return to_numpy(array)
    with gpu:
        return importlib.import_module("cupy").asarray(array)


def host_product(operator: Any, block: FloatArray) -> npt.NDArray[Any]:
    """Return ``operator @ block`` for a block and a result on the host, wherever the operator computes."""
    return np.asarray(to_numpy(operator @ place(block, gpu_of(operator))))


def to_cuda(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Copy named arrays to the current CUDA device as CuPy arrays.

    Raises
    ------
    BackendError
        If CuPy is not installed or finds no usable device.
    """
    try:
        cupy = importlib.import_module("cupy")
        return {name: cupy.asarray(array) for name, array in arrays.items()}
    except ImportError as error:
        raise BackendError("device='cuda' needs CuPy: install kernelgrowth[cuda13]") from error
    except RuntimeError as error:
        raise BackendError(f"device='cuda' found no usable CUDA device: {error}") from error


def special_functions(array: Any) -> Any:
    """Return the library's `scipy.special` or CuPy's equivalent of it."""
    return importlib.import_module("cupyx.scipy.special" if is_cupy(array) else "scipy.special")


def like(result: npt.NDArray[Any], template: Any) -> Any:
    """Return `result` as the kind of array that `template` is: through its library's DLPack import, else as NumPy."""
    if isinstance(template, np.ndarray) or not hasattr(template, "__dlpack__"):
        return result
    if is_cupy(template):
        return importlib.import_module("cupy").asarray(result)
    # The array API standard asks arrays for their namespace; torch has none but follows its function names.
    if hasattr(template, "__array_namespace__"):
        return template.__array_namespace__().from_dlpack(result)
    library = sys.modules[type(template).__module__.split(".", 1)[0]]
    return library.from_dlpack(result) if hasattr(library, "from_dlpack") else result
