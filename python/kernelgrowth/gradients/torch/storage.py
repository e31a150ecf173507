"""The arrays of gradient blocks, filled for some examples at a time, one output after another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from kernelgrowth.gradients.torch.consumers import Entries, Gather, Outer
from kernelgrowth.gradients.torch.graph import Graph, numbers_up_to
from kernelgrowth.gradients.torch.recipe import LookupRecipe, OuterRecipe, Recipe, RowsRecipe, Slot

__all__ = ["Storage", "storage_of"]


class _OuterStorage:
    def __init__(self, recipe: OuterRecipe, n: int, c: int, like: Any) -> None:
        self.recipe = recipe
        d_out, d_in = recipe.entries.shape
        self.activations = like.new_empty((n, recipe.positions, d_in))
        self.backprops = like.new_empty((n, c, recipe.positions, d_out))
        self.arrays = [self.activations, self.backprops]

    def fill(self, graph: Graph, begin: int, end: int, output: int, deltas: Mapping[int, Any]) -> None:
        first = 0
        for piece in self.recipe.pieces:
            places = slice(first, first + piece.positions)
            first += piece.positions
            if output == 0:
                self.activations[begin:end, places] = _scaled(piece.activations(graph, end - begin), piece.use.factor)
            delta = deltas[piece.use.place]
            target = self.backprops[begin:end, output, places]
            if delta is None:
                target.zero_()
            else:
                target.copy_(piece.backprops(graph, end - begin, delta))


class _LookupStorage:
    def __init__(self, recipe: LookupRecipe, n: int, c: int, like: Any) -> None:
        self.recipe = recipe
        self.indices = torch.empty((n, recipe.positions), dtype=torch.int64, device=like.device)
        self.backprops = like.new_empty((n, c, recipe.positions, recipe.shape[1]))
        self.arrays = [self.backprops]

    def fill(self, graph: Graph, begin: int, end: int, output: int, deltas: Mapping[int, Any]) -> None:
        first = 0
        for piece in self.recipe.pieces:
            places = slice(first, first + piece.positions)
            first += piece.positions
            indices = piece.indices(graph, end - begin)
            self.indices[begin:end, places] = indices
            delta = deltas[piece.use.place]
            target = self.backprops[begin:end, output, places]
            if delta is None:
                target.zero_()
                continue
            target.copy_(piece.backprops(graph, end - begin, delta))
            if piece.padding >= 0:
                target[indices == piece.padding] = 0


class _RowsStorage:
    def __init__(self, recipe: RowsRecipe, n: int, c: int, like: Any) -> None:
        self.recipe = recipe
        self.rows = like.new_empty((n, c, recipe.size))
        self.arrays = [self.rows]
        # What outer products are made of is the same for every output.
        self._activations: dict[int, Any] = {}

    def fill(self, graph: Graph, begin: int, end: int, output: int, deltas: Mapping[int, Any]) -> None:
        n = end - begin
        self.rows[begin:end, output] = 0
        for slot, target in self.slots(begin, end):
            for piece in slot.pieces:
                if output == 0 and isinstance(piece, Outer):
                    self._activations[id(piece)] = piece.activations(graph, n)
                delta = deltas[piece.use.place]
                if delta is not None:
                    _add(target[:, output], piece, graph, n, delta, self._activations.get(id(piece)))
        if output + 1 == self.rows.shape[1]:
            self._activations.clear()

    def slots(self, begin: int, end: int) -> list[tuple[Slot, Any]]:
        """Return each slot with its part of the rows, (n, C, size)."""
        first, parts = 0, []
        for slot in self.recipe.slots:
            parts.append((slot, self.rows[begin:end, :, first : first + slot.size]))
            first += slot.size
        return parts


Storage = _OuterStorage | _LookupStorage | _RowsStorage


def storage_of(recipe: Recipe, num_examples: int, num_outputs: int, like: Any) -> Storage:
    """Return arrays for all examples, of the dtype and on the device of the tensor `like`."""
    if isinstance(recipe, OuterRecipe):
        return _OuterStorage(recipe, num_examples, num_outputs, like)
    if isinstance(recipe, LookupRecipe):
        return _LookupStorage(recipe, num_examples, num_outputs, like)
    return _RowsStorage(recipe, num_examples, num_outputs, like)


def _scaled(array: Any, factor: float) -> Any:
    return array if factor == 1.0 else array * factor


def _add(target: Any, piece: Outer | Gather | Entries, graph: Graph, n: int, delta: Any, activations: Any) -> None:
    """Add a piece's gradients to a parameter's, (n, size)."""
    if isinstance(piece, Outer):
        gradients = torch.bmm(piece.backprops(graph, n, delta).transpose(1, 2), activations).flatten(1)
        entries = piece.entries.flatten()
    elif isinstance(piece, Gather):
        indices, d = piece.indices(graph, n), piece.backprops(graph, n, delta)
        if piece.padding >= 0:
            d = d.masked_fill((indices == piece.padding)[:, :, None], 0)
        columns = torch.arange(d.shape[2], device=d.device)
        target.scatter_add_(
            1, (indices[:, :, None] * d.shape[2] + columns).flatten(1), _scaled(d, piece.use.factor).flatten(1)
        )
        return
    else:
        gradients = piece.gradient(graph, n, delta)
        summed = [axis for axis in range(1, gradients.ndim) if piece.entries.shape[axis] == 1]
        gradients = gradients.sum(summed, keepdim=True) if summed else gradients
        gradients, entries = gradients.flatten(1), piece.entries.flatten()
    gradients = _scaled(gradients, piece.use.factor)
    if len(entries) == target.shape[1] and bool((entries == numbers_up_to(len(entries), entries.device)).all()):
        target += gradients
    else:
        target.index_add_(1, entries, gradients)
