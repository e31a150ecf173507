"""The door to the CUDA module: Gram matrices of arrays that live on a GPU, in memory and on a stream of CuPy's."""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kernelgrowth._backend.arrays import is_cupy
from kernelgrowth._backend.errors import BackendError

__all__ = [
    "available_memory",
    "block_krylov",
    "check_built",
    "device_of",
    "first_gpu",
    "gram",
    "gram_workspace",
    "kernel_statistics",
    "on",
    "resolve_precision",
    "symmetry",
]

# Tensor cores that multiply bfloat16, TF32 and double came with this compute capability, times ten.
_TENSOR_CORES = 80

# Rows of a matrix that are compared with its columns at a time.
_ROWS = 1024


def device_of(**arrays: Iterable[Any]) -> Any:
    """Return the GPU, a `cupy.cuda.Device`, on which all arrays live; None where they all are NumPy's.

    Raises
    ------
    TypeError
        If NumPy and CuPy arrays are mixed.
    ValueError
        If CuPy arrays live on different GPUs.
    """
    found: dict[int | None, tuple[str, Any]] = {}  # by number, since CuPy's devices have no hash
    for name, group in arrays.items():
        for array in group:
            device = array.device if is_cupy(array) else None
            found.setdefault(None if device is None else device.id, (name, device))
    if None in found and len(found) > 1:
        (first, _), (second, _) = list(found.values())[:2]
        raise TypeError(f"{first} and {second} hold NumPy and CuPy arrays: move one side first")
    if len(found) > 1:
        places = ", ".join(f"{name} on GPU {device.id}" for name, device in found.values())
        raise ValueError(f"arrays must live on one GPU, got {places}: move one side first")
    return next(iter(found.values()), ("", None))[1]


def on(device: Any) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which what is allocated lies on a GPU; None changes nothing."""
    return contextlib.nullcontext() if device is None else device


def first_gpu() -> Any:
    """Return CuPy's current GPU; None where CuPy, the CUDA module or a GPU is missing."""
    try:
        cupy = importlib.import_module("cupy")
        _module()
        return cupy.cuda.Device() if int(cupy.cuda.runtime.getDeviceCount()) > 0 else None
    except (ImportError, RuntimeError):
        return None


def available_memory(device: Any) -> int:
    """Bytes that can still be taken on a GPU: what is free, and what CuPy's pool holds and nobody uses."""
    cupy = importlib.import_module("cupy")
    with device:
        return int(cupy.cuda.runtime.memGetInfo()[0]) + int(cupy.get_default_memory_pool().free_bytes())


def resolve_precision(precision: str, device: Any) -> str:
    """Return the way of multiplying that gives `precision` on a GPU.

    Raises
    ------
    BackendError
        If the GPU has no tensor cores for it.
    """
    if int(device.compute_capability) >= _TENSOR_CORES:
        return precision
    if precision == "float32":
        return "simt"
    raise BackendError(
        f"precision={precision!r} needs a GPU of compute capability 8.0 or newer, got "
        f"{int(device.compute_capability) / 10:.1f}"
    )


def gram_workspace(
    terms: Sequence[Any], rows: int, columns: int, *, kernels: int, symmetric: bool, precision: str
) -> tuple[int, int]:
    """Return the bytes of workspace below which `gram` refuses, and above which more is not used."""
    needs: tuple[int, int] = _module().gram_workspace(
        terms, rows, columns, kernels=kernels, symmetric=symmetric, precision=precision
    )
    return needs


def gram(terms: Sequence[Any], out: Any, *, symmetric: bool, accumulate: bool, workspace: int, precision: str) -> None:
    """Queue the sum of `terms` into `out` on CuPy's current stream; nothing waits for it.

    Parameters
    ----------
    terms : sequence of tuple
        As `native.gram` hands them to the compiled modules.
    out : cupy.ndarray
    symmetric, accumulate : bool
        As in `native.gram`.
    workspace : int
        Bytes that may be taken from CuPy's pool; 0 takes as many as help.
    precision : {"bf16", "tf32", "float32", "simt", "float64"}

    Raises
    ------
    BackendError
        If the build has no CUDA, or CUDA refuses; the message holds CUDA's own words.
    """
    cupy, module = importlib.import_module("cupy"), _module()
    *kernels, rows, columns = out.shape
    count = kernels[0] if kernels else 1
    _, full = module.gram_workspace(terms, rows, columns, kernels=count, symmetric=symmetric, precision=precision)
    size = min(workspace, full) if workspace else full
    with out.device:
        buffer = cupy.empty(size, dtype="uint8")
        try:
            module.gram(
                terms,
                out,
                symmetric=symmetric,
                accumulate=accumulate,
                precision=precision,
                workspace=buffer.data.ptr,
                workspace_bytes=size,
                stream=cupy.cuda.get_current_stream().ptr,
            )
        except RuntimeError as error:
            raise BackendError(str(error)) from error


def kernel_statistics(kernel: Any, targets: Any, other: Any) -> dict[str, Any]:
    """Return what `native.kernel_statistics` returns, by name, as numbers of the host's.

    Parameters
    ----------
    kernel, other : cupy.ndarray, shape (n1, n2)
        With contiguous rows, of one dtype; `other` may be None.
    targets : cupy.ndarray, shape (m, n)
        float64, contiguous; or None.

    Raises
    ------
    BackendError
        If the build has no CUDA, or CUDA refuses; the message holds CUDA's own words.
    """
    cupy, module = importlib.import_module("cupy"), _module()
    rows, columns = kernel.shape
    count = 0 if targets is None else len(targets)
    layout, size, workspace = module.statistics_layout(rows, columns, count, other is not None)
    with kernel.device:
        results, buffer = cupy.empty(size, dtype="float64"), cupy.empty(workspace, dtype="uint8")
        try:
            stream = cupy.cuda.get_current_stream().ptr
            module.statistics(kernel, targets, other, results, workspace=buffer.data.ptr, stream=stream)
        except RuntimeError as error:
            raise BackendError(str(error)) from error
        found = results.get()
    named: dict[str, Any] = {}
    for name, place in layout.items():
        named[name] = found[place[0] : place[0] + place[1]] if isinstance(place, tuple) else float(found[place])
    if rows != columns:
        named["trace"] = math.nan
    if other is None:
        named["inner_product"] = named["other_squared_norm"] = 0.0
    return named


def block_krylov(
    operator: Any, start: Any, locked: Any, probes: Any, lapack: Mapping[str, Any], options: Mapping[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Return the vectors of `eigen.block_krylov` on the GPU, and what the compiled iteration tells beside them.

    Parameters
    ----------
    operator : (n, n) cupy.ndarray, or callable
        The matrix, or a function of a contiguous block (n, b) that returns one of its dtype. Float32 products are
        cuBLAS's, in float32.
    start, locked, probes : cupy.ndarray, shape (n, m)
        Contiguous; `locked` and `probes` may be None.
    lapack : mapping
        Pointers to LAPACK's routines, by name.
    options : mapping
        As the compiled module names them.

    Raises
    ------
    BackendError
        If the build has no CUDA, or CUDA refuses; the message holds CUDA's own words.
    """
    cupy, module = importlib.import_module("cupy"), _module()
    module.set_lapack(**lapack)
    product = operator
    if is_cupy(operator):

        def product(block: Any) -> Any:
            return cupy.ascontiguousarray(operator @ block)

    with start.device:
        vectors = cupy.zeros((len(start), options["wanted"]), dtype=start.dtype)
        try:
            found = module.block_krylov(
                product,
                start,
                locked,
                probes,
                vectors,
                lambda rows, columns: cupy.empty((rows, columns), dtype=start.dtype),
                cupy.cuda.alloc,
                cupy.cuda.get_current_stream().ptr,
                **options,
            )
        except RuntimeError as error:
            # What the operator raises comes through as it is.
            if type(error) is not RuntimeError or "CUDA says" not in str(error):
                raise
            raise BackendError(str(error)) from error
    return vectors, found


def symmetry(matrix: Any) -> dict[str, Any]:
    """Return what `eigen.symmetry` tells of a square CuPy array, by name, as numbers of the host's."""
    cupy = importlib.import_module("cupy")
    n = len(matrix)
    with matrix.device:
        rows = []
        for begin in range(0, n, _ROWS):
            slab = matrix[begin : begin + _ROWS]
            gaps = cupy.abs(slab - matrix[:, begin : begin + _ROWS].T)
            numbers = (cupy.abs(slab).max(), gaps.max(), gaps.argmax(), cupy.square(slab.astype(cupy.float64)).sum())
            rows.append(cupy.stack([number.astype(cupy.float64) for number in numbers]))
        trace = matrix.diagonal().sum(dtype=cupy.float64)
        found = cupy.stack([*rows, cupy.stack([trace] * 4)]).get()
    parts = found[:-1]
    worst = int(parts[:, 1].argmax())
    row, column = divmod(int(parts[worst, 2]), n)
    return {
        "largest": float(parts[:, 0].max()),
        "gap": float(parts[worst, 1]),
        "row": worst * _ROWS + row,
        "column": column,
        "squared_norm": float(parts[:, 3].sum()),
        "trace": float(found[-1, 0]),
        "finite": bool(math.isfinite(float(parts[:, 0].sum()))),
    }


def check_built(name: str) -> None:
    """Refuse `name`, which needs a GPU, where the build has no CUDA."""
    try:
        _module()
    except BackendError as error:
        raise BackendError(f"{name}: {error}") from error


def _module() -> Any:
    try:
        return importlib.import_module("kernelgrowth._cuda")
    except ImportError as error:
        raise BackendError(
            f"CuPy arrays need the CUDA module, which this build lacks ({error}): install where there is a CUDA "
            "compiler; with -C cmake.define.KERNELGROWTH_CUDA=ON the installation says what is missing"
        ) from error
