"""Direct solution of a stored symmetric eigenvalue problem by LAPACK."""

from __future__ import annotations

import math

import numpy as np
import scipy.linalg

from kernelgrowth._backend.arrays import FloatArray

__all__ = ["scaled_symmetric", "top_eigenpairs"]

# Above this fraction of the spectrum, divide and conquer for all of it is faster than the subset driver and its
# vectors are orthogonal to rounding (measured at n = 1000 and 2000 with OpenBLAS).
_ALL_FROM = 0.25


def scaled_symmetric(matrix: FloatArray, largest: float) -> tuple[FloatArray, int]:
    """Return ``(S, e)`` in float64 with ``S = (A + A^T) / 2 * 2**-e`` and its largest entry in [1/2, 1].

    A power of two keeps every bit, so that squares of entries near 1e-20 (float32) or 1e-200 (float64) cannot
    underflow. `largest` is the largest absolute entry of `matrix`; the matrix is copied, never changed.
    """
    exponent = math.frexp(largest)[1] if largest > 0 else 0
    scaled = np.ldexp(matrix.astype(np.float64), -exponent)
    scaled += scaled.T.copy()
    scaled *= 0.5
    return scaled, exponent


def top_eigenpairs(matrix: FloatArray, k: int) -> tuple[FloatArray, FloatArray]:
    """Return the `k` algebraically largest eigenvalues, descending, and their vectors, of a float64 matrix.

    Cost: O(n^3), 2 to 3 times the memory of `matrix`.
    """
    n = matrix.shape[0]
    if k < _ALL_FROM * n:
        try:
            values, vectors = scipy.linalg.eigh(matrix, driver="evr", subset_by_index=(n - k, n - 1))
        except scipy.linalg.LinAlgError:
            values, vectors = scipy.linalg.eigh(matrix, driver="evd", check_finite=False)
    else:
        values, vectors = scipy.linalg.eigh(matrix, driver="evd", check_finite=False)
    return values[::-1][:k].copy(), vectors[:, ::-1][:, :k].copy()
