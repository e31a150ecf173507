"""Whether a stored matrix may be treated as symmetric."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernelgrowth._backend.arrays import FloatArray, check_finite
from kernelgrowth._backend.eigen import Symmetry, symmetry

__all__ = ["check_square", "check_symmetric", "seen_symmetric", "symmetry_tolerance"]


def symmetry_tolerance(dtype: np.dtype[Any]) -> float:
    """Asymmetry, relative to the largest entry, that rounding in a Gram matrix of this dtype can explain."""
    return 1e-4 if dtype == np.float32 else 1e-10


def check_square(name: str, shape: tuple[int, ...]) -> int:
    """Return n of an (n, n) `shape` with n >= 1; anything else is a `ValueError`."""
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] < 1:
        raise ValueError(f"{name} must be a square matrix with at least one row, got shape {tuple(shape)}")
    return int(shape[0])


def check_symmetric(name: str, matrix: FloatArray) -> float:
    """Return the largest absolute entry of a square matrix, as `seen_symmetric` does all that it has seen."""
    return seen_symmetric(name, matrix).largest


def seen_symmetric(name: str, matrix: FloatArray) -> Symmetry:
    """Return what one pass over a square matrix tells, refusing one that is not finite or not symmetric.

    Raises
    ------
    ValueError
        If an entry is not finite, or two mirrored entries differ by more than rounding explains (`symmetry_tolerance`).
    """
    seen = symmetry(matrix)
    if not seen.finite:
        check_finite(name, matrix)
    if not seen.gap <= symmetry_tolerance(matrix.dtype) * seen.largest:
        i, j = seen.row, seen.column
        raise ValueError(
            f"{name} must be symmetric, got {float(matrix[i, j]):g} at {(i, j)} but {float(matrix[j, i]):g} at {(j, i)}"
        )
    return seen
