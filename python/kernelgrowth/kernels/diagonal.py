"""The kernel's diagonal from squared gradient norms, without the kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kernelgrowth._backend.arrays import FloatArray
from kernelgrowth.kernels.lowering import Expansion, LoweredBlock

__all__ = ["block_diagonal"]

Float64Array = npt.NDArray[np.float64]


def block_diagonal(block: LoweredBlock) -> Float64Array:
    """Return one block's part of the diagonal, shape (rows,), in float64."""
    if isinstance(block, Expansion):
        return _expanded_diagonal(block)
    total: Any = 0.0
    for term in block.terms:
        second = 1.0 if term.second is None else _squared_norms(term.second.left)
        total = total + term.scale * (_squared_norms(term.first.left) + term.offset) * second
    return np.asarray(total, dtype=np.float64).ravel()


def _squared_norms(vectors: FloatArray) -> Any:
    return np.einsum("ncd,ncd->nc", vectors, vectors, dtype=np.float64)


def _expanded_diagonal(block: Expansion) -> Float64Array:
    total: Float64Array = np.zeros(block.shapes[0])
    for parameter, part, _ in block.pieces:
        total += _squared_norms(block.expand(block.sides[0], parameter, part))
    total *= block.scale
    return total.sum(axis=1) if block.fold else total.ravel()
