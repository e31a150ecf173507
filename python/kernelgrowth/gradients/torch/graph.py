"""The autograd graph of one forward pass: which operations read a parameter, and which of its entries."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Graph", "Use", "edge_of", "find_uses", "numbers_up_to", "output_shape", "settings_of", "short_name"]

Node = Any


class Graph:
    """All operations between parameters and outputs, in an order that depends on the graph alone.

    Parameters
    ----------
    outputs : Tensor
        With a gradient function.

    Attributes
    ----------
    nodes : list
        Of `torch.autograd.graph.Node`, none twice.
    readers : dict of int to list of (int, int)
        Place in `nodes` -> the operations that read this one's result, each with the number of the input.
    leaves : dict of int to int
        Identity of a parameter -> the place of its node.
    passed : set of int
        Operations that `find_uses` looked through.
    signature : tuple
        Equal for two forward passes of the same operations on the same parameters.
    """

    def __init__(self, outputs: Any) -> None:
        self.nodes: list[Node] = []
        self.readers: dict[int, list[tuple[int, int]]] = {}
        self.leaves: dict[int, int] = {}
        places: dict[Node, int] = {}
        self.passed: set[int] = set()
        edges: list[tuple[int, ...]] = []
        waiting = [outputs.grad_fn]
        while waiting:
            node = waiting.pop()
            if node in places:
                continue
            places[node] = len(self.nodes)
            self.nodes.append(node)
            if hasattr(node, "variable"):
                self.leaves[id(node.variable)] = places[node]
            waiting += [following for following, _ in reversed(node.next_functions) if following is not None]
        for place, node in enumerate(self.nodes):
            for number, (following, _) in enumerate(node.next_functions):
                if following is not None:
                    self.readers.setdefault(places[following], []).append((place, number))
            edges.append(tuple(-1 if f is None else places[f] for f, _ in node.next_functions))
        owners = {place: owner for owner, place in self.leaves.items()}
        self.signature = tuple(
            (short_name(node), edges[place], owners.get(place, 0), _is_training(node))
            for place, node in enumerate(self.nodes)
        )


def _is_training(node: Node) -> bool:
    """Whether it is a batch normalisation with the batch's own statistics."""
    return "BatchNorm" in node.name() and bool(getattr(node, "_saved_training", False))


def short_name(node: Node) -> str:
    """Return the operation's name without what autograd puts around it: "Addmm", "Convolution", ..."""
    name = node.name().rsplit("::", 1)[-1]
    return str(name.rstrip("0123456789").removesuffix("Backward"))


def output_shape(node: Node, number: int = 0) -> tuple[int, ...]:
    """Return the shape of an operation's result."""
    return tuple(int(size) for size in node._input_metadata[number].shape)


def settings_of(node: Node) -> dict[str, Any]:
    """Return what an operation was called with and keeps, by name: sizes, numbers, indices."""
    names = [name for name in dir(node) if name.startswith("_saved_") and not name.startswith("_saved_tensors")]
    kept = {name: getattr(node, name) for name in names}
    return {name: value.detach().clone() if isinstance(value, torch.Tensor) else value for name, value in kept.items()}


def edge_of(node: Node) -> Any:
    """Return what `torch.autograd.grad` takes as an input to hand out the gradient of an operation's result."""
    return torch.autograd.graph.GradientEdge(node, 0)


@dataclass(frozen=True)
class Use:
    """One place where the network reads a parameter, or a view of it.

    Attributes
    ----------
    parameter : str
    place : int
        Of the operation, in the graph's nodes.
    number : int
        Which of the operation's inputs it is; -1 if it is the operation's own result (the parameter was copied to
        every example there).
    entries : Tensor of integers
        Of the shape that is read: which entry of the parameter stands where.
    factor : float
        By which the parameter is multiplied before it is read.
    """

    parameter: str
    place: int
    number: int
    entries: Any
    factor: float = 1.0


def _reshaped(entries: Any, node: Node, number: int) -> Any:
    return entries.reshape(output_shape(node, number))


def _split(entries: Any, node: Node, number: int) -> Any:
    size, dim = int(node._saved_split_size), int(_signed(node._saved_dim))
    return torch.split(entries, size, dim)[number]


def _sliced(entries: Any, node: Node, _: int) -> Any:
    dim = _signed(node._saved_dim)
    index: list[Any] = [slice(None)] * entries.ndim
    stop = min(int(node._saved_end), entries.shape[dim]) if _signed(node._saved_end) >= 0 else _signed(node._saved_end)
    index[dim] = slice(_signed(node._saved_start), stop, int(node._saved_step))
    return entries[tuple(index)]


def _signed(value: Any) -> int:
    """Negative numbers come out of autograd's attributes as unsigned ones."""
    number = int(value)
    return number - 2**64 if number >= 2**63 else number


def _indexed(entries: Any, node: Node, _: int) -> Any:
    indices = node._saved_indices
    return entries[tuple(slice(None) if index is None else index for index in indices)]


# How an operation that only moves or repeats a parameter's entries does it to their numbers.
_VIEWS: Mapping[str, Callable[[Any, Node, int], Any]] = {
    "T": lambda entries, *_: entries.t(),
    "Transpose": lambda entries, node, _: entries.transpose(_signed(node._saved_dim0), _signed(node._saved_dim1)),
    "Permute": lambda entries, node, _: entries.permute([_signed(dim) for dim in node._saved_dims]),
    "View": _reshaped,
    "UnsafeView": _reshaped,
    "ReshapeAlias": _reshaped,
    "Unsqueeze": _reshaped,
    "Squeeze": _reshaped,
    "Alias": lambda entries, *_: entries,
    "Clone": lambda entries, *_: entries,
    "Expand": lambda entries, node, number: entries.expand(output_shape(node, number)),
    "Repeat": lambda entries, node, _: entries.repeat([int(count) for count in node._saved_repeats]),
    "Slice": _sliced,
    "Select": lambda entries, node, _: entries.select(_signed(node._saved_dim), _signed(node._saved_index)),
    "Split": _split,
    "UnsafeSplit": _split,
    "SplitWithSizes": lambda entries, node, number: torch.split(
        entries, [int(size) for size in node._saved_split_sizes], _signed(node._saved_dim)
    )[number],
    "Unbind": lambda entries, node, number: torch.unbind(entries, _signed(node._saved_dim))[number],
    "Index": _indexed,
    "IndexSelect": lambda entries, node, _: entries.index_select(_signed(node._saved_dim), node._saved_index),
    "Embedding": lambda entries, node, _: entries[node._saved_indices],
}


_numbers: dict[Any, Any] = {}


def numbers_up_to(count: int, device: Any) -> Any:
    """Return 0 to `count` - 1, as a view of what all parameters share: entries that are only moved take no memory."""
    kept = _numbers.get(device)
    if kept is None or len(kept) < count:
        dtype = torch.int32 if count < 2**31 else torch.int64
        kept = _numbers[device] = torch.arange(count, dtype=dtype, device=device)
    return kept[:count]


def find_uses(graph: Graph, parameter: str, tensor: Any, examples_in: Callable[[int], bool]) -> list[Use]:
    """Return every place where the network reads a parameter.

    Parameters
    ----------
    graph : Graph
    parameter : str
    tensor : Parameter
    examples_in : callable
        Whether the result of the operation at a place has an axis of examples.

    Returns
    -------
    list of Use
        In the graph's order; empty if the outputs do not depend on the parameter. Operations that only move its entries
        are looked through, up to those that read them, or that copy them to every example.
    """
    start = graph.leaves.get(id(tensor))
    if start is None:
        return []
    uses = []
    entries = numbers_up_to(tensor.numel(), tensor.device).reshape(tensor.shape)
    waiting = [(start, 0, entries, 1.0)]
    while waiting:
        place, output, entries, factor = waiting.pop()
        for reader, number in reversed(graph.readers.get(place, [])):
            node = graph.nodes[reader]
            if node.next_functions[number][1] != output:
                continue
            name = short_name(node)
            if not examples_in(reader):
                graph.passed.add(reader)
            if name == "Embedding" and examples_in(reader):
                uses.append(Use(parameter, reader, number, entries, factor))
            elif name in _VIEWS:
                if examples_in(reader):
                    uses.append(Use(parameter, reader, -1, _VIEWS[name](entries, node, 0), factor))
                    continue
                for result in range(len(node._input_metadata)):
                    waiting.append((reader, result, _VIEWS[name](entries, node, result), factor))
            elif not examples_in(reader) and (constant := _constant_factor(node, number)) is not None:
                waiting.append((reader, 0, entries, factor * constant))
            else:
                uses.append(Use(parameter, reader, number, entries, factor))
    return sorted(uses, key=lambda use: (use.place, use.number))


def _constant_factor(node: Node, number: int) -> float | None:
    """Return the number by which an operation multiplies its input, None if that is not all it does."""
    name = short_name(node)
    if name == "Neg":
        return -1.0
    if name not in ("Mul", "Div") or (name == "Div" and number == 1) or len(node.next_functions) < 2:
        return None
    if node.next_functions[1 - number][0] is not None:
        return None
    other = node._saved_other if number == 0 else node._saved_self
    if other is None or other.numel() != 1:
        return None
    value = float(other)
    if name == "Div":
        return None if value == 0.0 else 1.0 / value
    return value if math.isfinite(value) else None
