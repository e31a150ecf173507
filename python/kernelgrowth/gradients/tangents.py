"""What a step of the parameters does to the outputs, to first order: products with the Jacobian."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from kernelgrowth._backend import cuda
from kernelgrowth._backend.arrays import array_namespace, like
from kernelgrowth.gradients.features import Block, Embedding, GradientFeatures, OuterProduct
from kernelgrowth.gradients.identity import arrays_of
from kernelgrowth.gradients.parameters import parameter_arrays

__all__ = ["jvp"]

_CHUNK_BYTES = 1 << 24  # temporaries, in float64, of the examples taken together


def jvp(feats: GradientFeatures, tangent: Mapping[str, Any]) -> Any:
    """Return the outputs' derivative along a direction in parameter space, J v.

    With v = −η_t m_t, the step that an optimizer is about to make, this is the change of the outputs to first order,
    whatever m_t is an average of; `K_η r` is that change only where m_t = Jᵀ r.

    Parameters
    ----------
    feats : GradientFeatures
        N examples, C outputs; CuPy arrays are multiplied on their GPU.
    tangent : mapping of str to array
        v by block, in the form of `empirical_ntk`'s preconditioner, of any sign: (d_out, d_in), or a tuple of that and
        (d_out,) for a layer with bias, or (V, d), or (p,). `training.by_block` makes it of arrays by parameter.

    Returns
    -------
    array (N, C)
        Of the features' dtype and array library. Sums are made in float64.

    Raises
    ------
    TypeError, ValueError
        If `feats` is something else, or `tangent` has other blocks, shapes, dtypes or places, or is not finite.

    Notes
    -----
    `N T d_out (d_in + C)` multiplications a block, and 16 MiB of temporaries or those of one example.
    """
    if not isinstance(feats, GradientFeatures):
        raise TypeError(f"feats must be GradientFeatures, got {type(feats).__name__}")
    gpu = cuda.device_of(feats=arrays_of(feats))
    arrays = parameter_arrays("tangent", feats, tangent)
    with cuda.on(gpu):
        total: Any = array_namespace(*arrays_of(feats)).zeros((feats.num_examples, feats.num_outputs), np.float64)
        for name, block in feats.items():
            directions = [array.astype(np.float64) for array in arrays[name]]
            step = max(1, _CHUNK_BYTES // _example_bytes(block))
            for start in range(0, feats.num_examples, step):
                part = block.examples(start, start + step)
                total[start : start + step] += math.sqrt(block.scale) * _product(part, directions)
        return like(total.astype(feats.dtype), next(iter(feats.blocks.values())).source)


def _example_bytes(block: Block) -> int:
    if isinstance(block, Embedding):
        return 8 * block.num_positions * (block.num_outputs + 1) * int(block.backprops.shape[3])
    if not isinstance(block, OuterProduct):
        return 8 * block.num_outputs * block.num_parameters
    t, d_in = block.activations.shape[1:]
    return 8 * int(t) * (int(d_in) + (block.num_outputs + 1) * int(block.backprops.shape[3]))


def _product(block: Block, directions: list[Any]) -> Any:
    if not isinstance(block, OuterProduct):
        return block.rows.astype(np.float64) @ directions[0]
    if isinstance(block, Embedding):
        changes = directions[0][block.indices]
    else:
        changes = block.activations.astype(np.float64) @ directions[0].T
    if block.bias:
        changes += directions[1]
    n, c = block.backprops.shape[:2]
    return (block.backprops.astype(np.float64).reshape(n, c, -1) @ changes.reshape(n, -1, 1))[:, :, 0]
