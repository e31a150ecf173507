"""How a gradient block is computed: the terms of the Gram that it becomes, by strategy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kernelgrowth._backend.arrays import FloatArray
from kernelgrowth._backend.native import Factor, FactorSide, GramTerm, OuterProductRows, WeightedRows

__all__ = ["LoweredBlock", "Pair", "expanded", "explicit_rows", "hadamard", "position_pairs"]

Pair = tuple[FloatArray, FloatArray]

# Gradients are written out in pieces of about so many entries, each a term of its own. Where the pieces end depends on
# the block's shape alone, so an entry of the kernel is the same sum however many of them fit the memory. Calibrated on
# Zen 4, where as many of them as a vector has lanes share the second-level cache.
PIECE = 6144
# A piece's columns: whole panels of every instruction set, and few enough that its rows are many too, because a piece
# reads (rows + columns) numbers a position to multiply rows * columns of them.
COLUMNS = 96
# Long rows exist already and are only cut, into terms of so many entries, so that packing them takes less memory.
LONGEST_ROWS = 2**12
# Terms are added one after another: more of them would let the rounding of equal ones grow beyond the promise.
MOST_TERMS = 512


@dataclass(frozen=True)
class LoweredBlock:
    """A block as terms of the Gram, always added in their order.

    Attributes
    ----------
    name : str
    strategy : str
        "hadamard" for `(A Aᵀ + offset) ∘ (D Dᵀ)`; "rows" for one-factor terms, the pieces of long rows; "expand" for
        gradients that are written out while they are packed, in pieces; "pairs" for
        `Σ_tu (a_t·a_u + offset)(δ_t·δ_u)` over all pairs of positions.
    terms : tuple of GramTerm
    nbytes, itemsize : int
        Bytes of the features, and of one number.
    """

    name: str
    strategy: str
    terms: tuple[GramTerm, ...]
    nbytes: int
    itemsize: int


def _slices(length: int, step: int) -> list[slice]:
    """Cut into parts of `step`, of which the last may be up to half as long again."""
    count = max(1, (length + step // 2) // step)
    return [slice(i * step, length if i == count - 1 else (i + 1) * step) for i in range(count)]


def _fold(rows: FloatArray) -> FloatArray:
    """Concatenate the outputs' vectors: Σ_c <g_nc, g_mc> is one inner product of that longer vector."""
    return rows.reshape(rows.shape[0], 1, -1)


def hadamard(name: str, pairs: tuple[Pair, ...], scale: float, fold: bool, bias: bool) -> LoweredBlock:
    """Return a weight used at one position: the entrywise product of two Grams."""
    activations = Factor(*(a[:, :1] for a, _ in pairs))
    backprops = Factor(*(_fold(d[:, :, 0]) if fold else d[:, :, 0] for _, d in pairs))
    term = GramTerm(activations, backprops, offset=float(bias), scale=scale)
    return LoweredBlock(name, "hadamard", (term,), sum(a.nbytes + d.nbytes for a, d in pairs), pairs[0][0].itemsize)


def position_pairs(name: str, pairs: tuple[Pair, ...], scale: float, fold: bool, bias: bool) -> LoweredBlock:
    """Return a weight used at several positions as a sum over all pairs of them: the gradients are never written out.

    With `fold`, the backprops of all outputs are one longer vector, for which they are copied.
    """

    def folded(d: FloatArray) -> FloatArray:
        n, _, positions, _ = d.shape
        return d.transpose(0, 2, 1, 3).reshape(n, 1, positions, -1) if fold else d

    activations = Factor(*(a[:, None] for a, _ in pairs))
    backprops = Factor(*(folded(d) for _, d in pairs))
    term = GramTerm(activations, backprops, offset=float(bias), scale=scale)
    return LoweredBlock(name, "pairs", (term,), sum(a.nbytes + d.nbytes for a, d in pairs), pairs[0][0].itemsize)


def explicit_rows(
    name: str, rows: tuple[FloatArray, ...], weights: tuple[FloatArray, ...], scale: float, fold: bool
) -> LoweredBlock:
    """Return rows (N, C, p) as they stand, or times the square roots of their preconditioner."""
    folded = [_fold(g) if fold else g for g in rows]
    roots = np.tile(weights[0], rows[0].shape[1] if fold else 1) if weights else None

    def side(g: FloatArray, part: slice) -> FactorSide:
        return g[..., part] if roots is None else WeightedRows(g[..., part], roots[part])

    length = folded[0].shape[2]
    parts = _slices(length, max(LONGEST_ROWS, -(-length // MOST_TERMS)))
    terms = tuple(GramTerm(Factor(*(side(g, part) for g in folded)), scale=scale) for part in parts)
    return LoweredBlock(name, "rows", terms, sum(g.nbytes for g in rows), rows[0].itemsize)


def expanded(
    name: str, pairs: tuple[Pair, ...], weights: tuple[FloatArray, ...], scale: float, fold: bool, bias: bool
) -> LoweredBlock:
    """Return a weight's gradients, to be written out in pieces of some rows and columns; the last hold the bias.

    `pairs` are the activations (N, T, d_in) and backprops (N, C, T, d_out) of each side, `weights` the square roots of
    the preconditioner of the weight and of the bias, if there is one.
    """
    outputs, d_in, d_out = pairs[0][1].shape[1], pairs[0][0].shape[2], pairs[0][1].shape[3]
    piece = max(PIECE, -(-d_in * d_out * (outputs if fold else 1) // MOST_TERMS))
    width = max(COLUMNS, piece // d_out // COLUMNS * COLUMNS)
    terms = []
    for columns in _slices(d_in, width):
        with_bias = bias and columns.stop == d_in
        for rows in _slices(d_out, max(1, piece // min(width, d_in))):
            entries = (rows.stop - rows.start) * (columns.stop - columns.start + int(with_bias))
            for part in _slices(outputs, max(1, piece // entries)) if fold else [slice(None)]:
                roots = None
                if weights:
                    root = weights[0][rows, columns]
                    if with_bias:
                        root = np.concatenate([root, weights[1][rows, None]], axis=1)
                    roots = np.tile(root.ravel(), part.stop - part.start if fold else 1)
                sides = (
                    OuterProductRows(a[..., columns], d[:, part, :, rows], with_bias, fold, roots) for a, d in pairs
                )
                terms.append(GramTerm(Factor(*sides), scale=scale))
    return LoweredBlock(name, "expand", tuple(terms), sum(a.nbytes + d.nbytes for a, d in pairs), pairs[0][0].itemsize)
