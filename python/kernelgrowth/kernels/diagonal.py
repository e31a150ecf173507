"""The kernel's diagonal from squared gradient norms, without the kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kernelgrowth._backend import native
from kernelgrowth.kernels.blocks import LoweredBlock, expanded

__all__ = ["block_diagonal"]

Float64Array = npt.NDArray[np.float64]


def block_diagonal(block: LoweredBlock) -> Float64Array:
    """Return one block's part of the diagonal, shape (rows,), in float64."""
    if block.strategy == "pairs":
        block = _written_out(block)
    total: Any = 0.0
    for term in block.terms:
        second = 1.0 if term.second is None else _squared_norms(term.second.left)
        total = total + term.scale * (_squared_norms(term.first.left) + term.offset) * second
    return np.asarray(total, dtype=np.float64).ravel()


def _written_out(block: LoweredBlock) -> LoweredBlock:
    """Return the same gradients in pieces: their norms take time linear in the positions."""
    (term,) = block.terms
    activations, backprops = term.first.left, None if term.second is None else term.second.left
    assert isinstance(activations, np.ndarray)
    assert isinstance(backprops, np.ndarray)
    return expanded(block.name, ((activations[:, 0], backprops),), (), term.scale, False, term.offset != 0)


def _squared_norms(vectors: native.FactorSide) -> Any:
    if isinstance(vectors, np.ndarray):
        return np.einsum("ncd,ncd->nc", vectors, vectors, dtype=np.float64)
    return native.squared_norms(vectors).reshape(vectors.shape[:2])
