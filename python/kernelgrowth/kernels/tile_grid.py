"""Where the tiles of a kernel begin and end, and in which order they are computed. All lengths are in examples."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

__all__ = ["aligned", "edges", "order", "pieces", "write_unit"]


def write_unit(out: Any, shape: tuple[int, ...]) -> int:
    """Return what tiles must be a multiple of, so that every chunk that `out` is stored in is written once and whole.

    Half-written chunks would have to be read again, and a kill could then spoil a part that was finished.
    """
    chunks = getattr(out, "shards", None) or getattr(out, "chunks", None)
    if not isinstance(chunks, tuple) or len(chunks) != len(shape):
        return 1
    across = slice(1, 3) if len(shape) == 3 else slice(0, 2)
    return math.lcm(*(int(length) for length in chunks[across]))


def aligned(tile: int, unit: int, chunks: Sequence[int | None]) -> int:
    """Round a tile down to multiples of `unit`, and of the chunks that features come in where it is no part of one."""
    grain = unit
    for chunk in chunks:
        if chunk is not None and math.lcm(grain, chunk) <= tile:
            grain = math.lcm(grain, chunk)
    return max(tile - tile % grain, unit)


def edges(length: int, tile: int, chunk: int | None, unit: int) -> tuple[int, ...]:
    """Return where tiles begin along a side, and the side's length; tiles smaller than a chunk begin with every one."""
    if chunk is None or tile >= chunk or chunk % unit != 0:
        return (*range(0, length, tile), length)
    begins = (b for c in range(0, length, chunk) for b in range(c, min(c + chunk, length), tile))
    return (*begins, length)


def order(
    rows: tuple[int, ...], columns: tuple[int, ...], chunks: tuple[int | None, int | None], symmetric: bool
) -> Iterator[tuple[int, int]]:
    """Yield the tiles between two sides' edges, those on and above the diagonal in the symmetric case.

    All tiles of two chunks come together. A row of chunks is kept while those of the columns are swept to and fro, so
    that at every turn one of them is kept too.
    """
    across = _by_chunk(columns, chunks[1])
    for turn, tall in enumerate(_by_chunk(rows, chunks[0])):
        for wide in across if turn % 2 == 0 else reversed(across):
            for step, i in enumerate(tall):
                for j in wide if step % 2 == 0 else reversed(wide):
                    if i <= j or not symmetric:
                        yield i, j


def pieces(begin: int, end: int, chunk: int | None) -> list[tuple[int, int]]:
    """Cut a range of examples where one chunk ends and another begins."""
    if chunk is None:
        return [(begin, end)]
    inner = range(-(-(begin + 1) // chunk) * chunk, end, chunk)
    return list(itertools.pairwise((begin, *inner, end)))


def _by_chunk(sides: tuple[int, ...], chunk: int | None) -> list[list[int]]:
    """Return the numbers of the tiles in groups of those that begin in one chunk."""
    numbers = range(len(sides) - 1)
    if chunk is None:
        return [[i] for i in numbers]
    return [list(group) for _, group in itertools.groupby(numbers, key=lambda i: sides[i] // chunk)]
