"""Cosines between kernels, and between a kernel and a target."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernelgrowth._backend.arrays import FloatArray, as_array, float_dtype, to_numpy
from kernelgrowth._backend.native import kernel_statistics
from kernelgrowth.diagnostics.kernel_input import as_kernel, as_targets

__all__ = [
    "eigenvector_alignment",
    "kernel_alignment",
    "kernel_distance",
    "kernel_target_alignment",
    "subspace_overlap",
]

# Centring by sums loses the digits that the mean has in common with the entries. Once the centred squared norm is below
# this share of the whole, the matrix is centred entry by entry instead.
_SUMS_SUFFICE = 1e-6
# Sums of squares outside this range have lost digits to underflow, or overflowed.
_SQUARES = (1e-270, 1e270)


def kernel_target_alignment(K: Any, y: Any, *, centered: bool = False) -> float:
    """Return the alignment ``yᵀKy / (|y|² ||K||_F)`` of a kernel with a target, the cosine of K and ``y yᵀ``.

    Parameters
    ----------
    K : (n, n) array or NTKOperator
        Symmetric kernel, float32 or float64.
    y : (N,) or (N, C) array
        Targets. For a kernel of N * C rows they are flattened example-major; for one of N rows that all outputs share
        (a trace kernel), the numerator is ``tr(YᵀKY)``.
    centered : bool
        Replace K by ``HKH``, H = I - 11ᵀ/n over all its rows, and y by its deviation from the mean, output by output
        (Cortes, Mohri and Rostamizadeh 2012).

    Returns
    -------
    float
        In [0, 1] for a positive semi-definite K, in [-1, 1] for any. NaN where there is nothing to compare: a zero
        kernel or target; and, when centred, one that is constant up to rounding.

    Raises
    ------
    ValueError
        If K is not square, y does not fit it, or an entry is not finite.

    Notes
    -----
    One pass over K with float64 sums; independent of the scale of K and of y, down to the smallest normal numbers.
    Reference: Cristianini et al., On kernel-target alignment, 2001.
    """
    kernel = as_kernel("K", K, square=True)
    targets, per_row = as_targets("y", y, kernel.shape[0])
    largest = float(np.abs(targets).max())
    targets = np.ldexp(targets, -_exponent(largest))
    if centered:
        norm = float(np.linalg.norm(targets))
        targets = targets - targets.mean(axis=0)
        if float(np.linalg.norm(targets)) <= 8 * np.finfo(np.float64).eps * norm:
            return math.nan
    if per_row:
        targets = targets.reshape(-1, 1)
    moments = _moments(kernel, targets=np.ascontiguousarray(targets), centered=centered)
    return _cosine(moments.product, float(np.sum(targets**2)) * math.sqrt(moments.squares))


def kernel_alignment(K1: Any, K2: Any, *, centered: bool = False) -> float:
    """Return the cosine ``<K1, K2>_F / (||K1||_F ||K2||_F)`` of two kernels.

    Parameters
    ----------
    K1, K2 : (n, m) arrays or NTKOperators
        Of one shape and dtype.
    centered : bool
        Centre both, rows and columns: centred kernel alignment (CKA; Kornblith et al. 2019).

    Returns
    -------
    float
        In [-1, 1], in [0, 1] for positive semi-definite kernels; NaN if one is zero or, when centred, constant.

    Raises
    ------
    ValueError
        If the shapes differ or an entry is not finite.
    TypeError
        If the dtypes differ.
    """
    first, second = as_kernel("K1", K1), as_kernel("K2", K2)
    if first.shape != second.shape:
        raise ValueError(f"K2 must have the shape of K1, {first.shape}, got {second.shape}")
    float_dtype(K1=first, K2=second)
    moments = _moments(first, other=second, centered=centered)
    return _cosine(moments.product, math.sqrt(moments.squares) * math.sqrt(moments.other_squares))


def kernel_distance(K1: Any, K2: Any) -> float:
    """Return ``1 - cos(K1, K2)``, in [0, 2]: 0 for kernels equal up to scale (see `kernel_alignment`)."""
    return 1.0 - kernel_alignment(K1, K2)


def eigenvector_alignment(vectors: Any, y: Any) -> FloatArray:
    """Return the squared cosines of a target with each eigenvector.

    Parameters
    ----------
    vectors : EigenResult or (n, k) array
        Eigenvectors in columns; their lengths do not matter.
    y : (N,) or (N, C) array
        Target, with n = N * C (flattened example-major) or n = N (then summed over outputs).

    Returns
    -------
    (k,) float64 array
        Each in [0, 1], with a sum of at most 1 for orthonormal vectors; NaN for a zero vector, and all NaN for a zero
        target.

    Raises
    ------
    ValueError
        If y does not fit the vectors or an entry is not finite.
    """
    columns = _columns("vectors", vectors)
    targets, per_row = as_targets("y", y, columns.shape[0])
    if per_row:
        targets = targets.reshape(-1, 1)
    targets = np.ldexp(targets, -_exponent(float(np.abs(targets).max())))
    lengths = np.sum(columns**2, axis=0) * np.sum(targets**2)
    squares = np.sum((columns.T @ targets) ** 2, axis=1)
    cosines: FloatArray = np.divide(squares, lengths, out=np.full(len(squares), np.nan), where=lengths > 0)
    return cosines


def subspace_overlap(V1: Any, V2: Any) -> float:
    """Return the mean squared cosine of the principal angles between two column spaces.

    That is ``||Q1ᵀQ2||_F² / min(k1, k2)`` for orthonormal bases: 1 if one space contains the other, 0 if they are
    orthogonal.

    Parameters
    ----------
    V1, V2 : EigenResult or (n, k1) and (n, k2) arrays
        Linearly independent columns, at least one.

    Raises
    ------
    ValueError
        If the numbers of rows differ, a column is missing, or columns are linearly dependent.
    """
    first, second = _orthonormal("V1", V1), _orthonormal("V2", V2)
    if first.shape[0] != second.shape[0]:
        raise ValueError(f"V2 must have the {first.shape[0]} rows of V1, got {second.shape[0]}")
    overlap = float(np.sum((first.T @ second) ** 2)) / min(first.shape[1], second.shape[1])
    return float(min(1.0, overlap))


@dataclass(frozen=True)
class _Moments:
    """Squared norms and the product of interest of kernels scaled by powers of two."""

    squares: float
    product: float
    other_squares: float = math.nan


def _moments(
    kernel: FloatArray, *, targets: FloatArray | None = None, other: FloatArray | None = None, centered: bool
) -> _Moments:
    """Return ||K||², ||K'||² and <K, K'> or tr(YᵀKY), of centred kernels if asked; the caller centres Y."""
    s = kernel_statistics(kernel, targets=targets, other=other)
    if not (_in_range(s.squared_norm) and (other is None or _in_range(s.other_squared_norm))):
        rescaled = _normalised(kernel), None if other is None else _normalised(other)
        if rescaled[0] is None or (other is not None and rescaled[1] is None):
            return _Moments(0.0, 0.0, 0.0)
        kernel, other = rescaled[0], rescaled[1]
        s = kernel_statistics(kernel, targets=targets, other=other)
    product = float(np.sum(s.quadratic_forms)) if other is None else float(s.inner_product)
    moments = _Moments(s.squared_norm, product, math.nan if other is None else s.other_squared_norm)
    if not centered:
        return moments

    squares = _centred_product(s.squared_norm, s.row_sums, s.row_sums, s.column_sums, s.column_sums)
    enough = squares > _SUMS_SUFFICE * s.squared_norm
    if other is not None:
        product = _centred_product(s.inner_product, s.row_sums, s.other_row_sums, s.column_sums, s.other_column_sums)
        other_squares = _centred_product(
            s.other_squared_norm, s.other_row_sums, s.other_row_sums, s.other_column_sums, s.other_column_sums
        )
        enough = enough and other_squares > _SUMS_SUFFICE * s.other_squared_norm
    else:
        other_squares = math.nan
    if enough:
        return _Moments(squares, product, other_squares)

    centred = _centred(kernel)
    other_centred = None if other is None else _centred(other)
    if centred is None or (other is not None and other_centred is None):
        return _Moments(0.0, 0.0, 0.0)
    return _moments(centred, targets=targets, other=other_centred, centered=False)


def _in_range(squares: float) -> bool:
    return _SQUARES[0] < squares < _SQUARES[1]


def _exponent(largest: float) -> int:
    return math.frexp(largest)[1] if largest > 0 else 0


def _normalised(kernel: FloatArray) -> FloatArray | None:
    """Return the kernel in float64 scaled by a power of two to entries of at most 1; None for a zero kernel."""
    largest = float(np.abs(kernel).max())
    return np.ldexp(kernel.astype(np.float64), -_exponent(largest)) if largest > 0 else None


def _centred_product(
    product: float, rows: FloatArray, other_rows: FloatArray, columns: FloatArray, other_columns: FloatArray
) -> float:
    """Return <HKH, HK'H> from <K, K'> and the row and column sums of both."""
    n, m = len(rows), len(columns)
    mean = rows.sum() * other_rows.sum() / (n * m)
    return float(product - rows @ other_rows / m - columns @ other_columns / n + mean)


def _centred(kernel: FloatArray) -> FloatArray | None:
    """Return HKH entry by entry, up to a power of two; None for a kernel that is constant up to its rounding."""
    scaled = _normalised(kernel)
    if scaled is None:
        return None
    # The grand mean goes first: what remains is small, and so is its rounding.
    centred = scaled - scaled.mean()
    centred -= centred.mean(axis=1, keepdims=True)
    centred -= centred.mean(axis=0, keepdims=True)
    nothing = 8 * np.finfo(kernel.dtype).eps * np.linalg.norm(scaled)
    return centred if np.linalg.norm(centred) > nothing else None


def _cosine(product: float, norms: float) -> float:
    return min(1.0, max(-1.0, product / norms)) if norms > 0 else math.nan


def _columns(name: str, vectors: Any) -> FloatArray:
    columns = to_numpy(as_array(name, getattr(vectors, "eigenvectors", vectors), ndim=2)).astype(np.float64)
    if min(columns.shape) < 1:
        raise ValueError(f"{name} must have at least one row and one column, got shape {columns.shape}")
    return columns


def _orthonormal(name: str, vectors: Any) -> FloatArray:
    columns = _columns(name, vectors)
    lengths = np.linalg.norm(columns, axis=0)
    if columns.shape[1] > columns.shape[0] or not lengths.all():
        raise ValueError(f"{name} must have linearly independent columns, got shape {columns.shape}")
    basis, triangle = np.linalg.qr(columns / lengths)
    if np.linalg.svd(triangle, compute_uv=False)[-1] <= len(columns) * np.finfo(np.float64).eps:
        raise ValueError(f"{name} must have linearly independent columns, got ones that are dependent up to rounding")
    return basis
