"""Embeddings as outer products with the few inputs that occur, where it is known on which examples they meet."""

from __future__ import annotations

from typing import Any

from kernelgrowth._backend.arrays import array_namespace
from kernelgrowth._backend.errors import MemoryLimitError
from kernelgrowth._backend.memory import format_bytes
from kernelgrowth.gradients.features import Embedding, GradientFeatures
from kernelgrowth.gradients.parameters import parameter_arrays

__all__ = ["without_embeddings"]


def without_embeddings(
    feats: GradientFeatures, feats2: GradientFeatures | None, preconditioner: Any, memory_limit: int
) -> tuple[GradientFeatures, GradientFeatures | None, Any, int]:
    """Return the same kernel's features with an `OuterProduct` in the place of each `Embedding`.

    Parameters
    ----------
    feats, feats2 : GradientFeatures
        Of the same blocks.
    preconditioner : mapping of str to array or tuple of array, or None
        Over the parameters; an embedding's is (d, V).
    memory_limit : int
        Bytes that the inputs of embeddings may take.

    Returns
    -------
    feats, feats2, preconditioner
        As given where there is no embedding.
    nbytes : int
        What was made for them.

    Raises
    ------
    TypeError, ValueError
        If `preconditioner` is not one of `feats`.
    MemoryLimitError
        If the inputs would take more than `memory_limit`.

    Notes
    -----
    Rows of the table that are looked up on one side alone contribute nothing to a kernel, so the inputs are those
    that occur on both.
    """
    names = [name for name, block in feats.items() if isinstance(block, Embedding)]
    if not names:
        return feats, feats2, preconditioner, 0
    arrays = None if preconditioner is None else parameter_arrays("preconditioner", feats, preconditioner)
    blocks = [dict(side.blocks) for side in (feats, feats2) if side is not None]
    used = 0
    for name in names:
        sides = [block for side in blocks if isinstance(block := side[name], Embedding)]
        known = _in_common(sides)
        used += sum(block.num_examples * block.num_positions for block in sides) * len(known) * feats.dtype.itemsize
        if used > memory_limit:
            raise MemoryLimitError(
                f"the inputs of the embedding {name!r}, {len(known)} of which occur, need {format_bytes(used)} with "
                f"those before, but memory_limit is {format_bytes(memory_limit)}",
                needed=used,
                limit=memory_limit,
            )
        for side, block in zip(blocks, sides, strict=True):
            side[name] = block.among(known)
        if arrays is not None:
            arrays[name] = (array_namespace(known).ascontiguousarray(arrays[name][0][:, known]),)
    made = [GradientFeatures(side) for side in blocks]
    return made[0], made[1] if len(made) > 1 else None, arrays, used


def _in_common(sides: list[Embedding]) -> Any:
    xp = array_namespace(*(block.indices for block in sides))
    known = xp.unique(sides[0].indices)
    for block in sides[1:]:
        known = xp.intersect1d(known, xp.unique(block.indices))
    # A block needs an input; this one is 0 on one side.
    return known if len(known) else sides[0].indices[:1, 0]
