"""The only importer of the compiled modules: Gram matrices, products, statistics, and what this build can do."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kernelgrowth._backend import cuda, cuda_products
from kernelgrowth._backend.arrays import FloatArray, array_namespace, as_array, gpu_of, is_cupy, place
from kernelgrowth._backend.checks import check_integer
from kernelgrowth._backend.errors import BackendError

try:
    from kernelgrowth import _core
except ImportError as error:
    raise BackendError(
        f"the compiled module kernelgrowth._core cannot be imported ({error}); install the package with "
        "'pip install .' instead of importing it from its source folder"
    ) from error

__all__ = [
    "Factor",
    "FactorSide",
    "GramTerm",
    "GramWorkspace",
    "KernelStatistics",
    "OuterProductRows",
    "WeightedRows",
    "active_isa",
    "col2im",
    "copy_bandwidth",
    "core_is_serial",
    "gemm",
    "gram",
    "gram_workspace",
    "has_bf16",
    "host_threads",
    "im2col",
    "info",
    "kernel_statistics",
    "matmul",
    "matmul_workspace",
    "multiply_add_peak",
    "num_threads",
]


class WeightedRows(NamedTuple):
    """Vectors (examples, outputs, length) that are multiplied by `weights`, entry by entry, while they are packed."""

    rows: FloatArray
    weights: FloatArray

    @property
    def shape(self) -> tuple[int, ...]:
        """(examples, outputs, length)."""
        return self.rows.shape


class OuterProductRows(NamedTuple):
    """Vectors `Σ_t δ_nct a_ntᵀ`, row by row, that are written out only while they are packed.

    Attributes
    ----------
    activations : ndarray, shape (examples, positions, columns)
    backprops : ndarray, shape (examples, outputs, positions, rows)
        Of any strides, like the activations.
    bias : bool
        Whether each row ends in one more entry, `Σ_t δ_nct`.
    fold : bool
        Whether the outputs' vectors follow one another in a single one.
    weights : ndarray, shape (length,), optional
        Contiguous; multiplies each vector entry by entry.
    """

    activations: FloatArray
    backprops: FloatArray
    bias: bool = False
    fold: bool = False
    weights: FloatArray | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """(examples, outputs, length)."""
        n, outputs, _, rows = self.backprops.shape
        length = rows * (self.activations.shape[2] + int(self.bias))
        return (n, 1, outputs * length) if self.fold else (n, outputs, length)

    @property
    def flops(self) -> int:
        """Floating-point operations of writing the vectors out once."""
        return int(self.backprops.size * (2 * self.activations.shape[2] + int(self.bias)))


FactorSide = FloatArray | WeightedRows | OuterProductRows


class Factor(NamedTuple):
    """Vectors of one factor, shape (examples, outputs, length) on each side; `right` is None in a symmetric Gram.

    Arrays (examples, outputs, positions, length) are summed over all pairs of positions: such terms have two factors,
    and all terms of a call the same positions.
    """

    left: FactorSide
    right: FactorSide | None = None


class GramTerm(NamedTuple):
    """`scale * (<first> + offset) * <second>`, or without `second` `scale * (<first> + offset)`."""

    first: Factor
    second: Factor | None = None
    offset: float = 0.0
    scale: float = 1.0


core_is_serial: ContextVar[bool] = ContextVar("core_is_serial", default=False)
"""Set where several threads of Python's call the core, each of which then takes one thread unless asked for more."""


def num_threads(requested: int | None = None) -> int:
    """Threads a call will use: as requested, else KERNELGROWTH_NUM_THREADS, else the CPUs this process may run on."""
    if requested is None:
        return 1 if core_is_serial.get() else _core.default_threads()
    return check_integer("num_threads", requested, minimum=1, maximum=4096)


def host_threads(array: FloatArray) -> int:
    """Threads that a call with `array` will use, 0 where it lives on a GPU."""
    return 0 if is_cupy(array) else num_threads()


def has_bf16() -> bool:
    """Whether this machine multiplies pairs of bfloat16 numbers, and the instruction set in use allows it."""
    return _core.has_bf16() and _core.active_isa() == "avx512"


def active_isa() -> str:
    """Return the instruction set in use: KERNELGROWTH_ISA, else the fastest that this machine runs."""
    return _core.active_isa()


def _lower(terms: Sequence[GramTerm]) -> list[Any]:
    return [(*term.first, *(term.second or (None, None)), float(term.offset), float(term.scale)) for term in terms]


def gram(
    terms: Sequence[GramTerm],
    out: FloatArray,
    *,
    symmetric: bool,
    accumulate: bool = False,
    workspace: int = 0,
    threads: int | None = None,
    isa: str = "",
    precision: str = "",
    stacked: bool = False,
) -> None:
    """Write (or add) the sum of `terms` to `out`, rows example-major.

    Parameters
    ----------
    terms : sequence of GramTerm
        At least one; all of one dtype. A factor with one output is shared by all output pairs.
    out : ndarray, shape (rows, columns) or (C, rows, columns)
        float32 or float64 with contiguous rows. In three dimensions, C kernels of one row an example: the c-th takes
        output c of the factors that have C outputs, and all share the products of those that have one.
    symmetric : bool
        Read the left sides only, compute the upper triangle and mirror it exactly.
    accumulate : bool
        Add to `out` (whose upper triangle is read, in the symmetric case) instead of overwriting it.
    workspace : int
        Bytes for packed factors and scratch; 0 takes as many as help (`gram_workspace` tells).
    threads : int, optional
        The bits of the result do not depend on it.
    isa : str
        Instruction set; empty for the active one.
    precision : str
        In which vectors are multiplied; empty for that of their dtype. "bf16" rounds float32 vectors to bfloat16 and
        needs `has_bf16`; on a GPU, which is where CuPy arrays are multiplied, see `cuda.gram`.
    stacked : bool
        `out` has another axis in front, of S kernels: each is that of one of S equal parts of the examples, which all
        factors hold one after another, with the bits that it has alone. `workspace` is that of all threads together.
        On the CPU only.
    """
    if is_cupy(out):
        cuda.gram(
            _lower(terms),
            out,
            symmetric=symmetric,
            accumulate=accumulate,
            workspace=workspace,
            precision=precision or str(out.dtype),
        )
        return
    _core.gram(
        _lower(terms),
        out,
        symmetric=symmetric,
        accumulate=accumulate,
        workspace=workspace,
        threads=num_threads(threads),
        isa=isa,
        bf16=precision == "bf16",
        stacked=stacked,
    )


class GramWorkspace(NamedTuple):
    """Bytes of workspace below which `gram` refuses, above which more is not used, and the most a term alone needs."""

    minimum: int
    full: int
    one_term: int


def gram_workspace(
    terms: Sequence[GramTerm],
    shape: tuple[int, ...],
    *,
    symmetric: bool,
    threads: int | None = None,
    precision: str = "",
) -> GramWorkspace:
    """Return what `gram` would take for an `out` of this shape."""
    *kernels, rows, columns = shape
    count = kernels[0] if kernels else 1
    left = terms[0].first.left
    array = left[0] if isinstance(left, WeightedRows | OuterProductRows) else left
    if is_cupy(array):

        def needs(some: Sequence[GramTerm]) -> tuple[int, int]:
            name = precision or str(array.dtype)
            return cuda.gram_workspace(_lower(some), rows, columns, kernels=count, symmetric=symmetric, precision=name)

        return GramWorkspace(*needs(terms), max(needs([term])[0] for term in terms))
    need = _core.gram_workspace(
        _lower(terms), rows, columns, kernels=count, symmetric=symmetric, threads=num_threads(threads)
    )
    return GramWorkspace(*need)


def im2col(
    images: FloatArray,
    columns: FloatArray,
    *,
    kernel: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    threads: int | None = None,
) -> None:
    """Write what a convolution's window shows of each image, place by place, to `columns`.

    Parameters
    ----------
    images : ndarray, shape (N, H, W, C)
        Channels-last, contiguous, float32 or float64. Values are not checked.
    columns : ndarray, shape (N, T, kh·kw·C)
        Overwritten; contiguous, of the images' dtype. T = ⌊(H + 2 ph − kh) / sh + 1⌋ · ⌊(W + 2 pw − kw) / sw + 1⌋
        places in row order; a place's entries are in the order (row of the window, column of the window, channel).
    kernel, stride : (int, int)
        Height and width, (kh, kw) and (sh, sw), at least 1; the kernel fits into the padded image.
    padding : (int, int)
        Zeros added above and below, and left and right: (ph, pw), at least 0.
    threads : int, optional
        The bits of the result do not depend on it.

    Raises
    ------
    TypeError, ValueError
        If an array or a number is not as described.
    """
    arrays = _check_windows(images, columns, kernel, stride, padding)
    _core.im2col(*arrays, kernel=kernel, stride=stride, padding=padding, threads=num_threads(threads))


def col2im(
    columns: FloatArray,
    images: FloatArray,
    *,
    kernel: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    threads: int | None = None,
) -> None:
    """Overwrite `images` with the sums of the columns that show a pixel: the transpose of `im2col`, same arguments."""
    images, columns = _check_windows(images, columns, kernel, stride, padding)
    _core.col2im(columns, images, kernel=kernel, stride=stride, padding=padding, threads=num_threads(threads))


def _check_windows(
    images: Any, columns: Any, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> tuple[FloatArray, FloatArray]:
    images = as_array("images", images, ndim=4, finite=False)
    columns = as_array("columns", columns, ndim=3, dtype=images.dtype, finite=False)
    for name, pair in (("kernel", kernel), ("stride", stride), ("padding", padding)):
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise TypeError(f"{name} must be (height, width), got {pair!r}")
    wanted = (len(images), *_columns_shape(images.shape[1:], kernel, stride, padding))
    if columns.shape != wanted:
        raise ValueError(f"columns must have shape {wanted}, got {columns.shape}")
    for name, array in (("images", images), ("columns", columns)):
        if not array.flags.c_contiguous:
            raise ValueError(f"{name} must be contiguous, got strides {array.strides} for shape {array.shape}")
    return images, columns


@functools.lru_cache(maxsize=256)
def _columns_shape(
    image: tuple[int, ...], kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> tuple[int, int]:
    for name, pair, minimum in (("kernel", kernel, 1), ("stride", stride, 1), ("padding", padding, 0)):
        for value in pair:
            check_integer(name, value, minimum=minimum)
    height, width, channels = image
    if 0 in image:
        raise ValueError(f"images must have at least one pixel and channel, got {height} x {width} x {channels}")
    rows, columns = (
        (size + 2 * pad - window) // step + 1
        for size, pad, window, step in zip((height, width), padding, kernel, stride, strict=True)
    )
    if min(rows, columns) < 1:
        raise ValueError(f"kernel must fit into {height} x {width} pixels with padding {padding}, got {kernel}")
    return rows * columns, kernel[0] * kernel[1] * channels


def gemm(
    a: FloatArray, b: FloatArray, out: FloatArray | None = None, *, threads: int | None = None, isa: str = ""
) -> FloatArray:
    """Return the product of two matrices.

    Parameters
    ----------
    a, b : ndarray, shape (rows, depth) and (depth, cols)
        None of the three empty; any strides, float32 or float64. Values are not checked.
    out : ndarray, shape (rows, cols), optional
        Overwritten; its rows are contiguous, and it shares no memory with `a` and `b`.
    threads : int, optional
        The bits of the result do not depend on it, nor those of an entry on the other rows and columns.
    isa : str
        Instruction set; empty for the active one.

    Returns
    -------
    ndarray, shape (rows, cols)
        `out` where it is given.

    Raises
    ------
    TypeError, ValueError
        If an array is not as described.
    """
    # The core checks the rest, naming the argument: this is called many times for small matrices.
    if out is None:
        out = np.empty((*a.shape[:1], *b.shape[1:2]), dtype=a.dtype)
    elif np.may_share_memory(out, a) or np.may_share_memory(out, b):
        raise ValueError("out must not share memory with a or b")
    _core.gemm(a, b, out, threads=num_threads(threads), isa=isa)
    return out


Sides = tuple[FloatArray, FloatArray]


def matmul(
    left: Sides,
    right: Sides | None,
    v: FloatArray,
    out: npt.NDArray[np.float64],
    *,
    bias: bool,
    fold: bool,
    weights: Sequence[FloatArray] = (),
    scale: float = 1.0,
    accumulate: bool = False,
    workspace: int = 0,
    threads: int | None = None,
    isa: str = "",
) -> None:
    """Write (or add) the product of one block's kernel with vectors to `out`, without the kernel, linear in N.

    Parameters
    ----------
    left, right : tuple of ndarray
        Activations (N, T, d_in) and backprops (N, C, T, d_out), all of one dtype; `right` is None where it is `left`.
    v : ndarray, shape (rows of the right side, k)
        In the dtype of the factors, any strides.
    out : ndarray, shape (rows of the left side, k)
        float64 with contiguous rows.
    bias : bool
        Whether the gradient of a bias belongs to the block.
    fold : bool
        Whether outputs are traced over, so that a row is an example, not an (example, output).
    weights : sequence of ndarray
        Preconditioner (d_out, d_in) and with a bias (d_out,), contiguous; empty without one.
    scale : float
        Of the block.
    accumulate : bool
        Add to `out` instead of overwriting it.
    workspace : int
        Bytes; 0 takes as many as help (`matmul_workspace` tells).
    threads : int, optional
        The bits of the result do not depend on it.
    isa : str
        Instruction set; empty for the active one.
    """
    if is_cupy(out):
        cuda_products.matmul(
            left,
            right,
            v,
            out,
            bias=bias,
            fold=fold,
            weights=weights,
            scale=scale,
            accumulate=accumulate,
            workspace=workspace,
        )
        return
    _core.matmul(
        left,
        right,
        v,
        out,
        bias=bias,
        fold=fold,
        weights=weights[0] if weights else None,
        bias_weights=weights[1] if len(weights) > 1 else None,
        scale=scale,
        accumulate=accumulate,
        workspace=workspace,
        threads=num_threads(threads),
        isa=isa,
    )


def matmul_workspace(
    left: Sides, right: Sides | None, vectors: int, *, bias: bool, fold: bool, threads: int | None = None
) -> tuple[int, int]:
    """Return the bytes of workspace below which `matmul` refuses, and above which more is not used."""
    if is_cupy(left[0]):
        return cuda_products.matmul_workspace(left, right, vectors, bias=bias, fold=fold)
    return _core.matmul_workspace(left, right, vectors, bias=bias, fold=fold, threads=num_threads(threads))


@dataclass(frozen=True)
class KernelStatistics:
    """Sums over a kernel K, and over another K' of its shape, all accumulated in float64.

    Attributes
    ----------
    squared_norm : float
        Sum of squared entries.
    trace : float
        NaN unless K is square.
    row_sums, column_sums : ndarray
        Shapes (n1,) and (n2,).
    quadratic_forms : ndarray, shape (m,)
        yᵀKy for each target.
    inner_product, other_squared_norm : float
        <K, K'> and the sum of squared entries of K'; 0 without K'.
    other_row_sums, other_column_sums : ndarray
        Of K'; empty without K'.
    """

    squared_norm: float
    trace: float
    row_sums: npt.NDArray[np.float64]
    column_sums: npt.NDArray[np.float64]
    quadratic_forms: npt.NDArray[np.float64]
    inner_product: float
    other_squared_norm: float
    other_row_sums: npt.NDArray[np.float64]
    other_column_sums: npt.NDArray[np.float64]


def kernel_statistics(
    kernel: Any,
    targets: Any = None,
    other: Any = None,
    *,
    threads: int | None = None,
    isa: str = "",
) -> KernelStatistics:
    """Return what norms, alignments and their centred forms need, in one pass over the kernel.

    Parameters
    ----------
    kernel : array_like, shape (n1, n2)
        float32 or float64; a CuPy array is read on its GPU. Values are not checked to be finite: a NaN propagates.
    targets : array_like, shape (n,) or (n, m), optional
        Targets for a square kernel, any float dtype.
    other : array_like, shape (n1, n2), optional
        A second kernel of the same dtype.
    threads : int, optional
        The bits of the result do not depend on it.
    isa : str
        Instruction set; empty for the active one.

    Raises
    ------
    TypeError, ValueError
        If a dtype or shape is unusable, or arrays live in different places.
    BackendError
        If the kernel is a CuPy array and the build has no CUDA, or CUDA fails.
    """
    k = _rows_contiguous(as_array("kernel", kernel, ndim=2, finite=False))
    columns = None
    if targets is not None:
        y = as_array("targets", targets, ndim=(1, 2), finite=False)
        if k.shape[0] != k.shape[1] or y.shape[0] != k.shape[0]:
            raise ValueError(f"targets must have one row per row of a square kernel, got {y.shape} for {k.shape}")
        if is_cupy(y) and not is_cupy(k):
            raise TypeError("targets are a CuPy array, but the kernel is NumPy's: move one of them")
        columns = array_namespace(k).ascontiguousarray(place(y.reshape(k.shape[0], -1).T, gpu_of(k)), np.float64)
    k2 = None
    if other is not None:
        k2 = _rows_contiguous(as_array("other", other, ndim=2, dtype=k.dtype, finite=False))
        if k2.shape != k.shape:
            raise ValueError(f"other must have the kernel's shape {k.shape}, got {k2.shape}")
    if cuda.device_of(kernel=[k], other=[] if k2 is None else [k2]) is not None:
        return KernelStatistics(**cuda.kernel_statistics(k, columns, k2))
    return KernelStatistics(**_core.statistics(k, columns, k2, threads=num_threads(threads), isa=isa))


def _rows_contiguous(matrix: FloatArray) -> FloatArray:
    usable = matrix.strides[1] == matrix.itemsize and matrix.strides[0] % matrix.itemsize == 0
    return matrix if usable else array_namespace(matrix).ascontiguousarray(matrix)


def multiply_add_peak(dtype: npt.DTypeLike, *, threads: int | None = None, isa: str = "", quick: bool = False) -> float:
    """Measure the machine's ceiling: multiply-adds in registers, in operations a second.

    It takes about half a second, a `quick` measurement a tenth of that; the longer one is more sure to find a moment
    without interruption.
    """
    return _core.multiply_add_peak(
        double_precision=np.dtype(dtype) == np.float64, threads=num_threads(threads), isa=isa, quick=quick
    )


def copy_bandwidth(*, threads: int | None = None) -> float:
    """Measure how fast memory is copied, in bytes read and written a second (about a tenth of a second)."""
    return _core.copy_bandwidth(threads=num_threads(threads))


def info() -> dict[str, Any]:
    """Return what the compiled modules were built with and what they found on this machine.

    Returns
    -------
    dict
        `isa`, `available_isas`, `threads`, and `cuda`: a dict with `built`, `architectures`, `runtime_version`,
        `driver_version`, `devices` (a list of dicts) and `message` (CUDA's own words where there is no device).
    """
    return {
        "isa": _core.active_isa(),
        "available_isas": _core.available_isas(),
        "threads": _core.default_threads(),
        "cuda": _cuda_info(),
    }


def _cuda_info() -> dict[str, Any]:
    try:
        from kernelgrowth import _cuda
    except ImportError as error:
        return {"built": False, "architectures": "", "devices": [], "message": f"not built ({error})"}
    devices, message = _cuda.devices()
    return {
        "built": True,
        "architectures": _cuda.compiled_architectures(),
        "runtime_version": _cuda.runtime_version(),
        "driver_version": _cuda.driver_version(),
        "devices": devices,
        "message": message,
    }
