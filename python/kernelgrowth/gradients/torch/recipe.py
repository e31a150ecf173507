"""From the uses of all parameters to gradient blocks: what each block is made of, known before it is filled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from kernelgrowth.gradients.torch.consumers import Gather, Outer, Piece
from kernelgrowth.gradients.torch.graph import Graph, numbers_up_to, short_name

__all__ = ["LookupRecipe", "OuterRecipe", "Recipe", "RowsRecipe", "Slot", "recipes"]


@dataclass
class OuterRecipe:
    """A block of outer products: pieces with the same entries of one parameter, at positions one after another.

    Attributes
    ----------
    parameters : list of str
        The weight, and the bias where it is part of the block.
    pieces : list of Outer
    """

    parameters: list[str]
    pieces: list[Outer]

    @property
    def entries(self) -> Any:
        """Of the weight, (d_out, d_in)."""
        return self.pieces[0].entries

    @property
    def positions(self) -> int:
        """T."""
        return sum(piece.positions for piece in self.pieces)

    def numbers(self, outputs: int) -> int:
        """Return how many numbers an example takes."""
        d_out, d_in = self.entries.shape
        return self.positions * (int(d_in) + outputs * int(d_out))


@dataclass
class LookupRecipe:
    """A block of an embedding's gradients."""

    parameters: list[str]
    pieces: list[Gather]
    shape: tuple[int, int]

    @property
    def positions(self) -> int:
        """T."""
        return sum(piece.positions for piece in self.pieces)

    def numbers(self, outputs: int) -> int:
        """Return how many numbers an example takes."""
        return self.positions * (1 + outputs * self.shape[1])


@dataclass
class Slot:
    """A parameter's gradient in full, within a block of rows; without pieces it is taken example by example."""

    parameter: str
    size: int
    pieces: list[Piece] = field(default_factory=list)


@dataclass
class RowsRecipe:
    """A block of explicit gradients, of one parameter after another."""

    slots: list[Slot]

    @property
    def parameters(self) -> list[str]:
        """Names, in the order of the block."""
        return [slot.parameter for slot in self.slots]

    @property
    def size(self) -> int:
        """Length of the rows."""
        return sum(slot.size for slot in self.slots)

    def numbers(self, outputs: int) -> int:
        """Return how many numbers an example takes."""
        return outputs * self.size


Recipe = OuterRecipe | LookupRecipe | RowsRecipe


def recipes(
    graph: Graph, parameters: Mapping[str, Any], pieces: Mapping[str, list[Piece] | None], outputs: int
) -> dict[str, Recipe]:
    """Return the blocks that hold every entry of every parameter once.

    Parameters
    ----------
    graph : Graph
    parameters : mapping of str to Parameter
    pieces : mapping of str to list, or None
        The parameter's gradient in pieces, empty if the outputs do not depend on it; None if that is not known.
    outputs : int
        C.

    Notes
    -----
    A matrix is held as whichever takes less memory, outer products or their sums. Uses of the same entries are further
    positions; uses of overlapping entries in different arrangements, as of tied embeddings, are summed into rows.
    """
    made: list[OuterRecipe | LookupRecipe] = []
    slots: dict[str, list[Slot]] = {}
    for name, tensor in parameters.items():
        parts = pieces[name]
        if parts is not None and not parts:
            continue
        grouped = None if parts is None else _structured(name, tensor, parts)
        if grouped is not None and _smaller_than_rows(grouped, tensor.numel(), outputs):
            made += grouped
        else:
            slots.setdefault(_prefix(name), []).append(Slot(name, tensor.numel(), parts or []))
    _merge_biases(graph, made, slots)
    return _named(made, slots)


def _prefix(name: str) -> str:
    return name.rpartition(".")[0]


def _smaller_than_rows(grouped: list[OuterRecipe | LookupRecipe], size: int, outputs: int) -> bool:
    # The kernel of a dense layer's outer products also takes less work than that of its rows, whatever the memory.
    if all(isinstance(block, OuterRecipe) and block.positions == 1 for block in grouped):
        return True
    return sum(block.numbers(outputs) for block in grouped) <= outputs * size


def _structured(name: str, tensor: Any, parts: list[Piece]) -> list[OuterRecipe | LookupRecipe] | None:
    if all(isinstance(part, Gather) for part in parts):
        lookups = [part for part in parts if isinstance(part, Gather)]
        if any(part.use.factor != 1.0 for part in lookups):
            return None
        return [LookupRecipe([name], lookups, tuple(tensor.shape))]
    if not all(isinstance(part, Outer) for part in parts):
        return None
    groups: list[OuterRecipe | LookupRecipe] = []
    for part in parts:
        assert isinstance(part, Outer)
        for group in groups:
            assert isinstance(group, OuterRecipe)
            if group.entries.shape == part.entries.shape and bool((group.entries == part.entries).all()):
                group.pieces.append(part)
                break
        else:
            groups.append(OuterRecipe([name], [part]))
    numbers = torch.cat([group.entries.flatten() for group in groups if isinstance(group, OuterRecipe)])
    return groups if int(torch.bincount(numbers).max()) == 1 else None


def _merge_biases(graph: Graph, made: list[OuterRecipe | LookupRecipe], slots: dict[str, list[Slot]]) -> None:
    """Move biases that are added by the very operations that multiply a matrix into that matrix' block."""
    by_places = {
        tuple(piece.use.place for piece in block.pieces): block
        for block in made
        if isinstance(block, OuterRecipe) and all(_takes_bias(graph, piece) for piece in block.pieces)
    }
    for prefix, members in list(slots.items()):
        for slot in list(members):
            block = by_places.get(tuple(piece.use.place for piece in slot.pieces)) if slot.pieces else None
            if block is None or len(block.parameters) > 1 or not _is_bias(graph, slot, block):
                continue
            block.parameters.append(slot.parameter)
            members.remove(slot)
        if not members:
            del slots[prefix]


def _takes_bias(graph: Graph, piece: Outer) -> bool:
    node = graph.nodes[piece.use.place]
    if short_name(node) == "Addmm":
        return piece.use.number == 2 and float(node._saved_alpha) == 1.0 and float(node._saved_beta) == 1.0
    return short_name(node) == "Convolution" and not bool(node._saved_transposed) and int(node._saved_groups) == 1


def _is_bias(graph: Graph, slot: Slot, block: OuterRecipe) -> bool:
    d_out = int(block.entries.shape[0])
    if slot.size != d_out:
        return False
    for piece in slot.pieces:
        number = {"Addmm": 0, "Convolution": 2}[short_name(graph.nodes[piece.use.place])]
        entries = piece.use.entries.flatten()
        if piece.use.number != number or piece.use.factor != 1.0 or len(entries) != d_out:
            return False
        if not bool((entries == numbers_up_to(d_out, entries.device)).all()):
            return False
    return True


def _named(made: list[OuterRecipe | LookupRecipe], slots: dict[str, list[Slot]]) -> dict[str, Recipe]:
    """Name a block by the part of the module whose parameters it holds, or what is left of them; else by parameters."""
    blocks: list[Recipe] = [*made, *(RowsRecipe(members) for members in slots.values())]
    owners: dict[str, int] = {}
    for block in blocks:
        for prefix in {_prefix(name) for name in block.parameters}:
            owners[prefix] = owners.get(prefix, 0) + 1
    named: dict[str, Recipe] = {}
    for block in blocks:
        prefixes = {_prefix(name) for name in block.parameters}
        prefix = next(iter(prefixes))
        alone = len(prefixes) == 1 and owners[prefix] == 1
        several = isinstance(block, RowsRecipe) and len(block.slots) > 1
        base = prefix if prefix and (alone or several) else "+".join(block.parameters)
        name, count = base, 0
        while name in named:
            count += 1
            name = f"{base}[{count}]"
        named[name] = block
    return named
