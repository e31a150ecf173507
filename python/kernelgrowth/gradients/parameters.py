"""Arrays over the parameters of gradient features, block by block: preconditioners and directions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kernelgrowth._backend import cuda
from kernelgrowth._backend.arrays import FloatArray, as_array
from kernelgrowth.gradients.features import Block, Embedding, GradientFeatures, OuterProduct
from kernelgrowth.gradients.identity import arrays_of

__all__ = ["parameter_arrays"]


def parameter_arrays(argument: str, feats: GradientFeatures, given: Any) -> dict[str, tuple[FloatArray, ...]]:
    """Return the arrays of every block, checked to have its parameters' shapes; messages call them `argument`.

    Raises
    ------
    TypeError
        If `given` is no mapping, or an array is of another dtype or array library than the features.
    ValueError
        If the blocks are not those of `feats`, or an array has another shape, is not finite or on another GPU.
    """
    if not isinstance(given, Mapping):
        raise TypeError(f"{argument} must map block names to arrays, got {type(given).__name__}")
    unknown = [name for name in given if name not in feats]
    missing = [name for name in feats if name not in given]
    if unknown or missing:
        raise ValueError(f"{argument} must have the blocks {list(feats)}; unknown {unknown}, missing {missing}")
    result = {}
    for name, block in feats.items():
        arrays = given[name] if isinstance(given[name], tuple | list) else (given[name],)
        shapes = _shapes(block)
        label = f"{argument}[{name!r}]"
        checked = [as_array(label, array, dtype=feats.dtype) for array in arrays]
        if [array.shape for array in checked] != shapes:
            wanted = " and ".join(str(shape) for shape in shapes)
            raise ValueError(f"{label} must have shape {wanted}, got {[array.shape for array in checked]}")
        cuda.device_of(feats=arrays_of(feats)[:1], **{label: checked})
        result[name] = tuple(checked)
    return result


def _shapes(block: Block) -> list[tuple[int, ...]]:
    if not isinstance(block, OuterProduct):
        return [(block.num_parameters,)]
    d_out = int(block.backprops.shape[3])
    if isinstance(block, Embedding):
        return [(block.num_embeddings, d_out)]
    return [(d_out, block.num_inputs)] + ([(d_out,)] if block.bias else [])
