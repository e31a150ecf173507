"""Norms, alignments and their centred forms of two kernels: how fast memory is read, and how often."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.case import OURS, Case, Workload
from benchmarks.peers import jitted
from kernelgrowth._backend import native

__all__ = ["CASES", "statistics"]

# Sums of one entry: its square, the row, the column and y'Ky of one kernel; the product of the two; square, row and
# column of the other.
_FLOPS_PER_ENTRY = 2 + 1 + 1 + 2 + 2 + 2 + 1 + 1


def passes(kernel: Any, other: Any, y: Any) -> tuple[Any, ...]:
    """One after the other, in the kernels' dtype, in NumPy's and JAX's words alike."""
    return (
        (kernel * kernel).sum(),
        kernel.trace(),
        kernel.sum(axis=1),
        kernel.sum(axis=0),
        y @ (kernel @ y),
        (kernel * other).sum(),
        (other * other).sum(),
        other.sum(axis=1),
        other.sum(axis=0),
    )


def passes_by_blas(kernel: Any, other: Any, y: Any) -> tuple[Any, ...]:
    """The same with dot products for the sums of products, which write no temporary matrix."""
    k, k2 = kernel.ravel(), other.ravel()
    sums = (kernel.sum(axis=1), kernel.sum(axis=0), y @ (kernel @ y))
    return k @ k, kernel.trace(), *sums, k @ k2, k2 @ k2, other.sum(axis=1), other.sum(axis=0)


def passes_in_float64(kernel: Any, other: Any, y: Any) -> tuple[Any, ...]:
    """The same accumulated in float64, as ours are."""

    def dot(a: Any, b: Any) -> Any:
        return np.einsum("ij,ij->", a, b, dtype=np.float64)

    def sums(k: Any) -> tuple[Any, Any]:
        return k.sum(axis=1, dtype=np.float64), k.sum(axis=0, dtype=np.float64)

    form = np.einsum("i,ij,j->", y, kernel, y, dtype=np.float64, optimize=True)
    squares = dot(kernel, other), dot(other, other)
    return dot(kernel, kernel), kernel.trace(dtype=np.float64), *sums(kernel), form, *squares, *sums(other)


def statistics(n: int, dtype: str) -> Workload:
    rng = np.random.default_rng(0)
    kernels = []
    for _ in range(2):
        factor = rng.standard_normal((n, 64), dtype=np.dtype(dtype).type)
        kernels.append(factor @ factor.T)
    kernel, other = kernels
    y = rng.standard_normal(n, dtype=np.dtype(dtype).type)

    def ours() -> tuple[Any, ...]:
        s = native.kernel_statistics(kernel, y, other)
        firsts = (s.squared_norm, s.trace, s.row_sums, s.column_sums, s.quadratic_forms[0])
        return *firsts, s.inner_product, s.other_squared_norm, s.other_row_sums, s.other_column_sums

    exact = passes_in_float64(kernel.astype(np.float64), other.astype(np.float64), y.astype(np.float64))
    norm, trace, norm2 = np.sqrt(exact[0]), exact[1], np.sqrt(exact[6])
    row, row2 = norm * np.sqrt(n), norm2 * np.sqrt(n)
    scales = (norm**2, trace, row, row, norm * float(y @ y), norm * norm2, norm2**2, row2, row2)

    def error(answer: Any) -> float:
        wanted = zip(answer, exact, scales, strict=True)
        return float(max(np.max(np.abs(np.asarray(got) - value)) / scale for got, value, scale in wanted))

    return Workload(
        {
            OURS: ours,
            "NumPy, separate passes": lambda: passes(kernel, other, y),
            "NumPy, dot products": lambda: passes_by_blas(kernel, other, y),
            "NumPy, float64 sums": lambda: passes_in_float64(kernel, other, y),
            "JAX, jit": jitted(passes, kernel, other, y),
        },
        error,
        1e-4 if dtype == "float32" else 1e-12,  # the peers' sums in float32 are that far off
        flops=_FLOPS_PER_ENTRY * n * n,
        bytes=2 * kernel.nbytes,
    )


CASES = (Case("statistics of two kernels, n = 4000", statistics, {"n": 4000}, {"n": 33}),)
