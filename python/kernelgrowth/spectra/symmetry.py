"""Whether a stored matrix may be treated as symmetric."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernelgrowth._backend.arrays import FloatArray

__all__ = ["check_square", "check_symmetric", "symmetry_tolerance"]

_TILE = 512


def symmetry_tolerance(dtype: np.dtype[Any]) -> float:
    """Asymmetry, relative to the largest entry, that rounding in a Gram matrix of this dtype can explain."""
    return 1e-4 if dtype == np.float32 else 1e-10


def check_square(name: str, shape: tuple[int, ...]) -> int:
    """Return n of an (n, n) `shape` with n >= 1; anything else is a `ValueError`."""
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] < 1:
        raise ValueError(f"{name} must be a square matrix with at least one row, got shape {tuple(shape)}")
    return int(shape[0])


def check_symmetric(name: str, matrix: FloatArray) -> float:
    """Return the largest absolute entry of a square matrix, refusing one that is not symmetric.

    Every entry is compared, tile by tile so that no temporary of the matrix' size is made.

    Raises
    ------
    ValueError
        If two mirrored entries differ by more than rounding explains (`symmetry_tolerance`).
    """
    n = matrix.shape[0]
    largest, worst, where = 0.0, 0.0, (0, 0)
    for i in range(0, n, _TILE):
        for j in range(i, n, _TILE):
            upper, lower = matrix[i : i + _TILE, j : j + _TILE], matrix[j : j + _TILE, i : i + _TILE].T
            largest = max(largest, float(np.abs(upper).max()), float(np.abs(lower).max()))
            difference = np.abs(upper - lower)
            gap = float(difference.max())
            if gap > worst:
                at = np.unravel_index(int(difference.argmax()), difference.shape)
                worst, where = gap, (i + int(at[0]), j + int(at[1]))
    if worst > symmetry_tolerance(matrix.dtype) * largest:
        row, column = where
        raise ValueError(
            f"{name} must be symmetric, got {float(matrix[row, column]):g} at {(row, column)} "
            f"but {float(matrix[column, row]):g} at {(column, row)}"
        )
    return largest
