"""The kernel's diagonal from squared gradient norms, without the kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from kernelgrowth._backend.arrays import FloatArray, array_namespace, is_cupy
from kernelgrowth._backend.errors import MemoryLimitError
from kernelgrowth._backend.memory import format_bytes
from kernelgrowth.gradients.features import Block, Embedding, GradientFeatures, OuterProduct
from kernelgrowth.gradients.identity import arrays_of

__all__ = ["diagonal"]

Float64Array = npt.NDArray[np.float64]

# Temporaries, in float64, of the examples taken together. How many those are depends on the shapes alone.
_CHUNK_BYTES, _CHUNK_BYTES_ON_GPU = 1 << 23, 1 << 26


def diagonal(
    feats: GradientFeatures, outputs: str, preconditioner: Mapping[str, tuple[FloatArray, ...]], memory_limit: int
) -> Float64Array:
    """Return the kernel's diagonal in float64, shape (N·C,) with outputs="full", else (N,).

    With T positions a gradient's norm is `Σ_tu (a_t·a_u)(δ_t·δ_u)`, or is taken of the gradient written out, whichever
    is cheaper by count. An embedding's a_t·a_u is 1 where both look up the same row.

    Raises
    ------
    MemoryLimitError
        If the result and a chunk of temporaries exceed `memory_limit`; nothing has been computed then.
    """
    n, c = feats.num_examples, feats.num_outputs
    rows = c if outputs == "full" else 1
    sizes = {name: _example_bytes(block, weighted=name in preconditioner) for name, block in feats.items()}
    together = _CHUNK_BYTES_ON_GPU if is_cupy(arrays_of(feats)[0]) else _CHUNK_BYTES
    chunks = {name: max(1, min(n, together // size)) for name, size in sizes.items()}
    weights_bytes = {name: sum(8 * array.size for array in preconditioner.get(name, ())) for name in feats}
    needed = 2 * n * rows * 8 + max(chunks[name] * size + weights_bytes[name] for name, size in sizes.items())
    if needed > memory_limit:
        raise MemoryLimitError(
            f"the diagonal needs {format_bytes(needed)}, but memory_limit is {format_bytes(memory_limit)}",
            needed=needed,
            limit=memory_limit,
        )
    total: Float64Array = array_namespace(arrays_of(feats)[0]).zeros((n, rows), np.float64)
    for name, block in feats.items():
        weights = tuple(array.astype(np.float64) for array in preconditioner.get(name, ()))
        for start in range(0, n, chunks[name]):
            part = block.examples(start, start + chunks[name])
            with np.errstate(over="ignore", invalid="ignore"):
                norms = block.scale * _squared_norms(part, weights, outputs == "sum_logits")
            if outputs in ("trace", "mean_trace"):
                norms = norms.sum(axis=1, keepdims=True) / (c if outputs == "mean_trace" else 1)
            sums = total[start : start + chunks[name]]
            sums += norms
    return total.ravel()


def _sizes(block: OuterProduct) -> tuple[int, int, int, int]:
    """Return T, C, d_in, d_out."""
    _, t, d_in = block.activations.shape
    return int(t), block.num_outputs, int(d_in), int(block.backprops.shape[3])


def _example_bytes(block: Block, *, weighted: bool) -> int:
    """Return what one example's temporaries take at most, in float64."""
    if not isinstance(block, OuterProduct):
        return 16 * block.num_outputs * block.num_parameters
    if isinstance(block, Embedding):
        t, c = block.num_positions, block.num_outputs
        return 8 * t * ((3 * c + 1) * int(block.backprops.shape[3]) + (1 + c) * t)
    t, c, d_in, d_out = _sizes(block)
    factors = 2 * t * d_in + 3 * c * t * d_out + c * d_in
    if t == 1:
        return 8 * factors
    pairs = not weighted and _by_position_pairs(block)
    return 8 * (factors + (t * t * (2 + c) if pairs else 2 * c * d_in * _units(block)))


def _by_position_pairs(block: OuterProduct) -> bool:
    t, c, d_in, d_out = _sizes(block)
    return t * t * (d_in + c * d_out) <= c * t * d_in * d_out


def _units(block: OuterProduct) -> int:
    """Return how many rows of the gradient are written out at a time."""
    _, c, d_in, d_out = _sizes(block)
    return max(1, min(d_out, _CHUNK_BYTES // (16 * c * d_in)))


def _squared_norms(block: Block, weights: tuple[Float64Array, ...], total: bool) -> Any:
    """Return Σ η g² for each example and output, (N, C); of the outputs' summed gradient, (N, 1), if `total`."""
    if not isinstance(block, OuterProduct):
        g: Any = block.rows.astype(np.float64)
        if total:
            g = g.sum(axis=1, keepdims=True)
        g *= g
        return g @ weights[0] if weights else g.sum(axis=2)
    d: Any = block.backprops.astype(np.float64)
    if total:
        d = d.sum(axis=1, keepdims=True)
    if isinstance(block, Embedding):
        products = (d * weights[0][block.indices][:, None] if weights else d) @ d.transpose(0, 1, 3, 2)
        products *= (block.indices[:, :, None] == block.indices[:, None])[:, None]
        return products.sum(axis=(2, 3))
    a: Any = block.activations.astype(np.float64)
    if block.num_positions == 1:
        a, d = a[:, 0], d[:, :, 0]
        return _one_position(a * a, d * d, block.bias, weights)
    if weights or not _by_position_pairs(block):
        return _written_out(block, a, d, weights)
    products = d @ d.transpose(0, 1, 3, 2)
    products *= (a @ a.transpose(0, 2, 1) + float(block.bias))[:, None]
    return products.sum(axis=(2, 3))


def _one_position(a2: Any, d2: Any, bias: bool, weights: tuple[Float64Array, ...]) -> Any:
    if not weights:
        return (a2.sum(axis=1) + float(bias))[:, None] * d2.sum(axis=2)
    n, c, d_out = d2.shape
    weighted = (d2.reshape(n * c, d_out) @ weights[0]).reshape(n, c, -1)
    weighted *= a2[:, None]
    norms = weighted.sum(axis=2)
    return norms + d2 @ weights[1] if bias else norms


def _written_out(block: OuterProduct, a: Any, d: Any, weights: tuple[Float64Array, ...]) -> Any:
    norms: Any = 0.0
    step = _units(block)
    for begin in range(0, d.shape[3], step):
        units = slice(begin, begin + step)
        gradients = d[..., units].transpose(0, 1, 3, 2) @ a[:, None]
        gradients *= gradients
        if weights:
            gradients *= weights[0][units]
        norms = norms + gradients.sum(axis=(2, 3))
    if block.bias:
        sums = d.sum(axis=2)
        sums *= sums
        norms = norms + (sums @ weights[1] if weights else sums.sum(axis=2))
    return norms
