"""The kernel's diagonal from squared gradient norms, without the kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kernelgrowth._backend.arrays import FloatArray
from kernelgrowth.kernels.lowering import Expansion, FusedTerm, LoweredBlock

__all__ = ["block_diagonal"]

Float64Array = npt.NDArray[np.float64]


def block_diagonal(block: LoweredBlock) -> Float64Array:
    """Return one block's part of the diagonal, shape (rows,), in float64."""
    if isinstance(block, FusedTerm):
        first = _squared_norms(block.term.first.left) + block.term.offset
        second = 1.0 if block.term.second is None else _squared_norms(block.term.second.left)
        values: Float64Array = block.term.scale * first * second
        return values.ravel()
    return _expanded_diagonal(block)


def _squared_norms(vectors: FloatArray) -> Any:
    return np.einsum("ncd,ncd->nc", vectors, vectors, dtype=np.float64)


def _expanded_diagonal(block: Expansion) -> Float64Array:
    (a, d), *_ = block.sides
    total: Float64Array = np.zeros(d.shape[:2])
    for n in range(d.shape[0]):
        gradients = np.matmul(d[n].transpose(0, 2, 1), a[n]).astype(np.float64)
        if block.weights:
            gradients *= block.weights[0]
        total[n] = np.square(gradients).sum(axis=(1, 2))
        if block.bias:
            summed = d[n].sum(axis=1, dtype=np.float64) * (block.weights[1] if block.weights else 1.0)
            total[n] += np.square(summed).sum(axis=1)
    total *= block.scale
    return total.sum(axis=1) if block.fold else total.ravel()
