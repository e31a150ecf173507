"""A symmetric kernel as its upper triangle: half the memory, half the disk, and symmetric again to the bit."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kernelgrowth._backend.arrays import FloatArray
from kernelgrowth._backend.native import kernel_statistics

__all__ = [
    "PackedProducts",
    "matrix_size",
    "pack_triangle",
    "packed_cosine",
    "packed_products",
    "packed_size",
    "unpack_triangle",
]

_ROW = 1024


class PackedProducts(NamedTuple):
    """Frobenius products of two packed kernels: ⟨A, B⟩, ‖A‖² and ‖B‖² of the full matrices."""

    inner: float
    squared_norm: float
    other_squared_norm: float


def packed_size(n: int) -> int:
    """Return the number of entries on and above the diagonal of an (n, n) matrix."""
    return n * (n + 1) // 2


def matrix_size(length: int) -> int:
    """Return n for a packed triangle of `length` = n (n + 1) / 2 entries; another length is a `ValueError`."""
    n = (math.isqrt(8 * length + 1) - 1) // 2
    if packed_size(n) != length:
        raise ValueError(f"a packed triangle has n (n + 1) / 2 entries, got {length}")
    return n


def pack_triangle(kernel: FloatArray) -> FloatArray:
    """Return the upper triangle of `kernel` (n, n), row after row, as one array of n (n + 1) / 2 entries.

    The order is that of ``kernel[np.triu_indices(n)]``.
    """
    n = len(kernel)
    packed = np.empty(packed_size(n), dtype=kernel.dtype)
    start = 0
    # A copy per row: index arrays for a whole triangle would take several times the kernel's memory.
    for i in range(n):
        packed[start : start + n - i] = kernel[i, i:]
        start += n - i
    return packed


def unpack_triangle(packed: FloatArray) -> FloatArray:
    """Return the symmetric (n, n) matrix whose upper triangle is `packed`."""
    n = matrix_size(len(packed))
    kernel = np.empty((n, n), dtype=packed.dtype)
    start = 0
    for i in range(n):
        row = packed[start : start + n - i]
        kernel[i, i:] = row
        kernel[i:, i] = row
        start += n - i
    return kernel


def packed_products(a: FloatArray, b: FloatArray, *, rows_each: int = 1, pair_weight: float = 1.0) -> PackedProducts:
    """Return the Frobenius products of two packed kernels of one size and dtype, summed in float64.

    Entries of two different examples, of `rows_each` rows each, count `pair_weight` times.
    """
    n = matrix_size(len(a))
    rows = np.arange(n)
    starts = rows * n - rows * (rows - 1) // 2
    # Cut into rows, since the statistics are threaded over rows; what is left is a short row of its own.
    whole = len(a) // _ROW * _ROW
    parts = [kernel_statistics(u[None, :], other=v[None, :]) for u, v in [(a[whole:], b[whole:])] if len(u)]
    if whole:
        parts.append(kernel_statistics(a[:whole].reshape(-1, _ROW), other=b[:whole].reshape(-1, _ROW)))
    # Every entry off the diagonal stands for two of the full matrix. What overflows is the caller's to notice.
    with np.errstate(over="ignore", invalid="ignore"):
        sums = np.array([[p.inner_product, p.squared_norm, p.other_squared_norm] for p in parts]).sum(axis=0)
        diagonal = _products(a, b, starts)
        products = 2.0 * sums - diagonal
        if pair_weight != 1.0:
            own = diagonal.copy()
            for shift in range(1, rows_each):
                within = starts[rows % rows_each < rows_each - shift] + shift
                own += 2.0 * _products(a, b, within)
            products = pair_weight * (products - own) + own
    return PackedProducts(*products.tolist())


def _products(a: FloatArray, b: FloatArray, places: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    u, v = a[places].astype(np.float64), b[places].astype(np.float64)
    return np.array([u @ v, u @ u, v @ v])


def packed_cosine(a: FloatArray, b: FloatArray, *, rows_each: int = 1, pair_weight: float = 1.0) -> float:
    """Cosine ⟨A, B⟩ / (‖A‖ ‖B‖) of two packed kernels; exactly 1 for A = B, NaN if one is zero or not finite.

    `rows_each` and `pair_weight` are those of `packed_products`.
    """

    def products_of(a: FloatArray, b: FloatArray) -> PackedProducts:
        return packed_products(a, b, rows_each=rows_each, pair_weight=pair_weight)

    products = products_of(a, b)
    if not (_in_range(products.squared_norm) and _in_range(products.other_squared_norm)):
        scaled = _scaled(a), _scaled(b)
        if scaled[0] is None or scaled[1] is None:
            return math.nan
        products = products_of(scaled[0], scaled[1])
    inner, squared_norm, other_squared_norm = products
    cosine = (inner / squared_norm) * math.sqrt(squared_norm / other_squared_norm)
    # The sums that ⟨A, A⟩ and ‖A‖² are may differ in their last bits.
    if cosine > 1.0 - 1e-14 and np.array_equal(a, b):
        return 1.0
    return min(1.0, max(-1.0, cosine))


def _in_range(squared_norm: float) -> bool:
    # Outside, squares have lost digits to underflow, or overflowed.
    return 1e-270 < squared_norm < 1e270


def _scaled(packed: FloatArray) -> FloatArray | None:
    """Return `packed` in float64 times a power of two, its largest entry about 1; None if that cannot be."""
    largest = float(np.abs(packed).max())
    if not 0.0 < largest < math.inf:
        return None
    return np.ldexp(packed.astype(np.float64), -math.frexp(largest)[1])
