"""Embeddings as outer products with the few inputs that occur, where it is known on which examples they meet."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from kernelgrowth._backend.arrays import FloatArray, array_namespace
from kernelgrowth._backend.errors import MemoryLimitError
from kernelgrowth._backend.memory import format_bytes
from kernelgrowth.gradients.features import Block, Embedding, GradientFeatures, OuterProduct
from kernelgrowth.gradients.parameters import parameter_arrays

__all__ = ["beside_embeddings", "knowing_indices", "resolved", "without_embeddings"]

Sides = tuple[GradientFeatures, GradientFeatures | None]


def without_embeddings(
    feats: GradientFeatures, feats2: GradientFeatures | None, preconditioner: Any, memory_limit: int
) -> tuple[GradientFeatures, GradientFeatures | None, Any, int]:
    """Return the same kernel's features with an `OuterProduct` in the place of each `Embedding`.

    Parameters
    ----------
    feats, feats2 : GradientFeatures
        Of the same blocks.
    preconditioner : mapping of str to array or tuple of array, or None
        Over the parameters; an embedding's is (V, d).
    memory_limit : int
        Bytes that what is made for embeddings may take.

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
        If what is made would take more than `memory_limit`; nothing has been made then.

    Notes
    -----
    Rows of the table that are looked up on one side alone contribute nothing to a kernel, so the inputs are those
    that occur on both.
    """
    names = _embeddings(feats)
    if not names:
        return feats, feats2, preconditioner, 0
    weights = {} if preconditioner is None else parameter_arrays("preconditioner", feats, preconditioner)
    for name in names:
        # Of rows that do not occur nobody else will see it.
        if any(array.min() < 0 for array in weights.get(name, ())):
            raise ValueError(f"preconditioner[{name!r}] must not be negative")
    sides, found, nbytes = resolved((feats, feats2), weights, memory_limit)
    return *sides, found or None, nbytes


def resolved(
    sides: Sides, weights: Mapping[str, tuple[FloatArray, ...]], memory_limit: int
) -> tuple[Sides, Mapping[str, tuple[FloatArray, ...]], int]:
    """Return what `without_embeddings` does, of weights by block that are known to fit, or none."""
    tables = {name: _tables(sides, name) for name in _embeddings(sides[0])}
    if not tables:
        return sides, weights, 0
    known = {name: _in_common(blocks) for name, blocks in tables.items()}
    numbers = {
        name: sum(block.indices.size for block in blocks) + sum(array.shape[1] for array in weights.get(name, ()))
        for name, blocks in tables.items()
    }
    nbytes = sum(numbers[name] * len(indices) for name, indices in known.items()) * sides[0].dtype.itemsize
    if nbytes > memory_limit:
        counts = ", ".join(f"{len(indices)} in {name!r}" for name, indices in known.items())
        raise MemoryLimitError(
            f"inputs of embeddings, one for each index that occurs ({counts}), need {format_bytes(nbytes)}, but "
            f"memory_limit is {format_bytes(memory_limit)}: take fewer examples, or empirical_ntk of ChunkedFeatures",
            needed=nbytes,
            limit=memory_limit,
        )
    made = [dict(side.blocks) for side in sides if side is not None]
    gathered = dict(weights)
    for name, indices in known.items():
        for blocks, block in zip(made, tables[name], strict=True):
            blocks[name] = _among(block, indices)
        if name in weights:
            gathered[name] = (array_namespace(indices).ascontiguousarray(weights[name][0][indices].T),)
    first, *others = map(GradientFeatures, made)
    return (first, others[0] if others else None), gathered, nbytes


def knowing_indices(feats: GradientFeatures, *, at_most: bool = False) -> GradientFeatures:
    """Return the same features, of which parts are resolved with the indices that occur in all of them.

    The entries of a kernel then do not depend on the parts it is computed in. With `at_most`, parts are resolved with
    as many indices as might occur in other features of this size: for plans that all of them have to fit.
    """
    names = _embeddings(feats)
    if not names:
        return feats
    blocks: dict[str, Block] = dict(feats.blocks)
    for name in names:
        (table,) = _tables((feats, None), name)
        block = copy.copy(table)
        block.occurring = np.arange(min(block.num_embeddings, block.indices.size)) if at_most else _occurring(table)
        blocks[name] = block
    return GradientFeatures(blocks, predictions=feats.predictions)


@contextmanager
def beside_embeddings(nbytes: int, memory_limit: int) -> Iterator[None]:
    """Let refusals of what was left of `memory_limit`, once `nbytes` were taken for embeddings, speak of all of it."""
    try:
        yield
    except MemoryLimitError as error:
        if nbytes == 0 or error.limit == memory_limit:
            raise
        raise MemoryLimitError(
            f"{format_bytes(nbytes)} of the {format_bytes(memory_limit)} that memory_limit allows are taken by inputs "
            f"of embeddings: {error}",
            needed=error.needed + nbytes,
            limit=memory_limit,
        ) from None


def _embeddings(feats: GradientFeatures) -> list[str]:
    return [name for name, block in feats.items() if isinstance(block, Embedding)]


def _tables(sides: Sides, name: str) -> list[Embedding]:
    blocks = [side[name] for side in sides if side is not None]
    return [block for block in blocks if isinstance(block, Embedding)]


def _occurring(block: Embedding) -> npt.NDArray[np.int64]:
    if block.occurring is not None:
        return block.occurring
    return array_namespace(block.indices).unique(block.indices)  # type: ignore[no-any-return]


def _in_common(sides: list[Embedding]) -> npt.NDArray[np.int64]:
    known, *others = map(_occurring, sides)
    if not others:
        return known
    both = known[_find(known, others[0])[1]]
    # A block needs an input; this one is 0 on one side.
    return both if len(both) else known[:1]


def _among(block: Embedding, known: npt.NDArray[np.int64]) -> OuterProduct:
    """Return the gradients of some rows of the table alone."""
    xp = array_namespace(known)
    n, t = block.indices.shape
    inputs = xp.zeros((n, t, len(known)), block.dtype)
    places, found = _find(block.indices, known)
    inputs[xp.arange(n)[:, None], xp.arange(t), places] = found.astype(block.dtype)
    part = OuterProduct(inputs, block.backprops, scale=block.scale, check_finite=False)
    part.source = block.source
    return part


def _find(indices: npt.NDArray[np.int64], known: npt.NDArray[np.int64]) -> tuple[Any, Any]:
    """Return the place of each index among those that are known, in order, and whether it is there at all."""
    xp = array_namespace(indices, known)
    places = xp.minimum(xp.searchsorted(known, indices), len(known) - 1)
    return places, known[places] == indices
