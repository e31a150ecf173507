"""Kernels and targets as the diagnostics take them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kernelgrowth._backend.arrays import FloatArray, as_array, host_product, to_numpy
from kernelgrowth._backend.errors import MemoryLimitError
from kernelgrowth._backend.memory import format_bytes
from kernelgrowth.spectra.operand import is_operator, operator_dtype
from kernelgrowth.spectra.symmetry import check_square

__all__ = [
    "as_kernel",
    "as_offset",
    "as_targets",
    "cross_kernel",
    "is_factorised",
    "mean_diagonal",
    "stored_kernel",
]

# Up to this many rows a factorisation takes about a second on two cores, less than most iterations.
_FACTORISED_ROWS = 4096


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


def is_factorised(name: str, kernel: Any, method: str, memory_limit: int) -> bool:
    """Whether "auto", "direct" or "cg" means to factorise a square kernel.

    Raises
    ------
    MemoryLimitError
        If "direct" of an operator needs more than `memory_limit` bytes.
    ValueError
        If an operator is not square.
    """
    if not is_operator(kernel):
        return method != "cg"
    n = check_square(name, tuple(kernel.shape))
    # The kernel itself, its scaled copy, and the eigenvectors with their workspace.
    needed = n * n * (operator_dtype(name, kernel).itemsize + 4 * 8)
    if method == "direct" and needed > memory_limit:
        raise MemoryLimitError(
            f"factorising {name} of shape {(n, n)} needs {format_bytes(needed)}, but memory_limit is "
            f"{format_bytes(memory_limit)}: take method='cg'",
            needed=needed,
            limit=memory_limit,
        )
    return method == "direct" or (method == "auto" and n <= _FACTORISED_ROWS and needed <= memory_limit)


def stored_kernel(name: str, kernel: Any) -> FloatArray:
    """Return a square kernel as a matrix on the host, an operator's from its Gram matrix or its product with I."""
    if is_operator(kernel) and not hasattr(kernel, "gram"):
        name, kernel = f"{name} @ I", host_product(kernel, np.eye(kernel.shape[1], dtype=operator_dtype(name, kernel)))
    return as_kernel(name, kernel, square=True)


def cross_kernel(name: str, kernel: Any) -> Any:
    """Return a kernel to multiply with: a matrix on the host, or an operator that is too large for that or opaque."""
    if is_operator(kernel):
        if len(kernel.shape) != 2 or min(kernel.shape) < 1:
            raise ValueError(f"{name} must have at least one row and one column, got shape {tuple(kernel.shape)}")
        if not hasattr(kernel, "gram") or kernel.shape[0] * kernel.shape[1] > _FACTORISED_ROWS**2:
            return kernel
    return as_kernel(name, kernel)


def mean_diagonal(name: str, operator: Any) -> float:
    """Return the mean diagonal entry of an operator that tells it.

    Raises
    ------
    ValueError
        If it has neither ``.trace()`` nor ``.diagonal()``, or they are not finite.
    """
    if hasattr(operator, "trace"):
        total = float(operator.trace())
    elif hasattr(operator, "diagonal"):
        total = float(np.sum(to_numpy(as_array(f"{name}.diagonal()", operator.diagonal(), ndim=1)), dtype=np.float64))
    else:
        raise ValueError(
            f"diag_reg is relative to the mean diagonal entry of {name}, but {name} has neither .trace() nor "
            ".diagonal(): give the ridge itself, with absolute=True"
        )
    if not math.isfinite(total):
        raise ValueError(f"the trace of {name} must be finite, got {total}")
    return total / int(operator.shape[0])


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


def as_offset(f0: Any, shape: tuple[int, ...]) -> FloatArray:
    """Return predictions before training, named f0 in messages, as a float64 array of `shape` (examples, outputs)."""
    offset = to_numpy(as_array("f0", f0, ndim=(1, 2))).astype(np.float64)
    if offset.ndim == 1 or (shape[1] == 1 and offset.size == shape[0]):
        # Predictions (N, C) beside targets over the N * C rows of the kernel are in the same order.
        offset = offset.reshape(-1, 1)
    if offset.shape != shape:
        raise ValueError(f"f0 must have shape {shape} (examples, outputs), got {offset.shape}")
    return offset
