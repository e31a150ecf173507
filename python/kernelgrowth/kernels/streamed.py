"""The kernel tile by tile, for whoever needs all of it once and cannot or need not keep it."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernelgrowth._backend.arrays import FloatArray, array_namespace, is_cupy
from kernelgrowth._backend.errors import MemoryLimitError
from kernelgrowth._backend.native import host_threads
from kernelgrowth.gradients.features import GradientFeatures
from kernelgrowth.gradients.identity import arrays_of
from kernelgrowth.kernels.evaluate import check_range, evaluate
from kernelgrowth.kernels.lowering import Problem, lower
from kernelgrowth.kernels.plan import Plan, make_plan

__all__ = ["StreamedKernel", "Tile", "add_products"]

# Rows and columns of a tile: whole examples, so many by the shape of the kernel alone. A GPU is full with more of them.
_ROWS, _ROWS_ON_GPU = 1024, 2048


@dataclass(frozen=True)
class Tile:
    """`values` are the kernel's `rows` x `columns`; a tile `mirrored` stands for its transpose below the diagonal too.

    The values are overwritten by the next tile.
    """

    rows: slice
    columns: slice
    values: FloatArray
    mirrored: bool


class StreamedKernel:
    """A kernel that is computed in tiles, in a fixed order; of a symmetric one, those on and above the diagonal."""

    def __init__(
        self,
        feats: GradientFeatures,
        feats2: GradientFeatures | None,
        outputs: str,
        roots: Mapping[str, tuple[FloatArray, ...]],
        precision: str = "",
    ) -> None:
        self._feats, self._feats2, self._outputs, self._roots = feats, feats2, outputs, roots
        self._precision, self._example = precision, arrays_of(feats)[0]
        self._rows_each = feats.num_outputs if outputs == "full" else 1
        self._counts = (feats.num_examples, (feats if feats2 is None else feats2).num_examples)
        self._examples = max(1, (_ROWS_ON_GPU if is_cupy(self._example) else _ROWS) // self._rows_each)

    def plans(self, memory_limit: int) -> list[tuple[Plan, int]]:
        """Return a plan for each kind of tile and how many there are of it; tiles of a kind have the same shapes.

        Raises
        ------
        MemoryLimitError
            If a tile does not fit `memory_limit`.
        """
        plans, refusals = [], []
        for rows, columns, count in self._kinds():
            try:
                plans.append((self._planned(rows, columns, memory_limit)[1], count))
            except MemoryLimitError as error:
                refusals.append(error)
        if refusals:
            raise max(refusals, key=lambda error: error.needed)
        return plans

    def tile_shape(self) -> tuple[int, int]:
        """Return the rows and columns of the largest tile."""
        rows, columns = (min(self._examples, count) * self._rows_each for count in self._counts)
        return rows, columns

    def tile_bytes(self) -> int:
        """Return the bytes of the largest tile."""
        return math.prod(self.tile_shape()) * self._feats.dtype.itemsize

    def tiles(self, memory_limit: int, *, check_finite: bool) -> Iterator[Tile]:
        """Compute one tile after another, within `memory_limit` bytes for each and its computation."""
        xp = array_namespace(self._example)
        buffer: FloatArray = xp.empty(self.tile_bytes() // self._feats.dtype.itemsize, self._feats.dtype)
        for rows, columns in self._pairs():
            problem, plan = self._planned(rows, columns, memory_limit)
            height, width = problem.shape
            values = buffer[: height * width].reshape(height, width)
            evaluate(problem, plan, values)
            if check_finite:
                check_range(problem, values)
            yield Tile(self._slice(rows), self._slice(columns), values, self._feats2 is None and rows != columns)

    def _ranges(self, feats: GradientFeatures) -> list[range]:
        n = feats.num_examples
        return [range(i, min(i + self._examples, n)) for i in range(0, n, self._examples)]

    def _pairs(self) -> Iterator[tuple[range, range]]:
        rows = self._ranges(self._feats)
        columns = rows if self._feats2 is None else self._ranges(self._feats2)
        for i, row in enumerate(rows):
            for column in columns[i:] if self._feats2 is None else columns:
                yield row, column

    def _kinds(self) -> Iterator[tuple[range, range, int]]:
        """Return a tile of each kind and how many there are: all ranges but the last are of one length."""
        rows = self._ranges(self._feats)
        whole = len(rows) - 1
        kinds = [(rows[0], rows[0], whole), (rows[-1], rows[-1], 1), (rows[0], rows[-1], whole)]
        if self._feats2 is None:
            kinds.append((rows[0], rows[min(1, whole)], whole * (whole - 1) // 2))
        else:
            columns = self._ranges(self._feats2)
            kinds = [(rows[0], columns[0], whole * (len(columns) - 1)), (rows[-1], columns[-1], 1)]
            kinds += [(rows[0], columns[-1], whole), (rows[-1], columns[0], len(columns) - 1)]
        return (kind for kind in kinds if kind[2] > 0)

    def _slice(self, examples: range) -> slice:
        return slice(examples.start * self._rows_each, examples.stop * self._rows_each)

    def _planned(self, rows: range, columns: range, memory_limit: int) -> tuple[Problem, Plan]:
        left = self._feats.examples(rows.start, rows.stop)
        right = None
        if self._feats2 is not None or rows != columns:
            right = (self._feats2 or self._feats).examples(columns.start, columns.stop)
        # The plan counts what has been copied for these few examples.
        problem = lower(
            left, right, self._outputs, self._roots, sys.maxsize, examples=self._counts, precision=self._precision
        )
        plan = make_plan(
            problem, output_bytes=self.tile_bytes(), memory_limit=memory_limit, threads=host_threads(self._example)
        )
        return problem, plan


def add_products(tile: Tile, vectors: FloatArray, products: Any, *, transposed: bool) -> None:
    """Add a tile's part of K V (or of Kᵀ V) to float64 `products`."""
    rows, columns, values = tile.rows, tile.columns, tile.values
    if transposed:
        rows, columns, values = columns, rows, values.T
    with np.errstate(over="ignore", invalid="ignore"):
        part = products[rows]
        part += values @ vectors[columns]
        if tile.mirrored:
            part = products[columns]
            part += values.T @ vectors[rows]
