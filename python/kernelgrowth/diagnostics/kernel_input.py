"""Kernels and targets as the diagnostics take them."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernelgrowth._backend.arrays import FloatArray, as_array, to_numpy

__all__ = ["as_kernel", "as_targets"]


def as_kernel(name: str, kernel: Any, *, square: bool = False) -> FloatArray:
    """Return a stored matrix on the host: `kernel` itself, or the Gram matrix of an operator."""
    if hasattr(kernel, "gram"):
        name, kernel = f"{name}.gram()", kernel.gram()
    if getattr(kernel, "ndim", 2) == 4:
        raise ValueError(
            f"{name} must be a matrix, got shape {tuple(kernel.shape)}: use NTKOperator.gram(), with rows (n, c)"
        )
    matrix = to_numpy(as_array(name, kernel, ndim=2))
    if min(matrix.shape) < 1:
        raise ValueError(f"{name} must have at least one row and one column, got shape {matrix.shape}")
    if square and matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"{name} must be square, got shape {matrix.shape}")
    return matrix


def as_targets(name: str, y: Any, rows: int) -> tuple[FloatArray, bool]:
    """Return targets as a float64 (N, C) array, and whether they fill `rows` kernel rows one entry a row.

    True for a kernel over examples and outputs, ``rows == N * C`` in example-major order; False for one that all
    outputs share, ``rows == N``. With one output both say the same, and False is returned.

    Raises
    ------
    ValueError
        If `y` fits the kernel in neither way.
    """
    targets = to_numpy(as_array(name, y, ndim=(1, 2))).astype(np.float64)
    columns = targets.reshape(len(targets), -1) if targets.size else targets
    if columns.size and columns.shape[0] == rows:
        return columns, False
    if columns.size and columns.size == rows:
        return columns, True
    raise ValueError(
        f"{name} must be (N,) or (N, C) with N or N * C the number of rows of the kernel, {rows}, "
        f"got shape {targets.shape}"
    )
