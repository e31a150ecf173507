"""Which numbers of an operation's result belong to which example, found out on a handful of examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from kernelgrowth.gradients.torch.graph import Graph, edge_of, output_shape, short_name

__all__ = ["Layout", "axes_of_examples", "by_example", "find_layouts", "order_of_inputs"]

UNCLEAR = -1
"""Of an operation whose result grows with the examples in a way that is not along one axis."""

# Gradients of different examples that are weighted by powers of two must follow to the bit, but for the order of sums.
_WEIGHTS = (1.0, 2.0, 4.0)
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}


@dataclass(frozen=True)
class Layout:
    """Where an operation's result has its examples.

    Attributes
    ----------
    axis : int
        Of the size N·k.
    minor : bool
        Whether the number of the example runs faster along it than the k that belong to one: (k, N), not (N, k).
    """

    axis: int
    minor: bool


def axes_of_examples(fewer: Graph, more: Graph, sizes: tuple[int, int]) -> list[int | None]:
    """Return the axis of each operation's result that grows with the examples; None if it does not grow at all.

    Parameters
    ----------
    fewer, more : Graph
        Of the same operations on `sizes` examples.
    """
    axes: list[int | None] = []
    for a, b in zip(fewer.nodes, more.nodes, strict=True):
        if not a._input_metadata:
            axes.append(None)
            continue
        small, large = output_shape(a), output_shape(b)
        grown = [i for i, (s, t) in enumerate(zip(small, large, strict=False)) if s != t]
        if len(small) != len(large) or len(grown) > 1:
            axes.append(UNCLEAR)
        elif not grown:
            axes.append(None)
        else:
            i = grown[0]
            axes.append(i if small[i] * sizes[1] == large[i] * sizes[0] else UNCLEAR)
    return axes


def by_example(array: Any, layout: Layout, num_examples: int) -> Any:
    """Return (N, k, ...), the axes other than that of the examples following in their order."""
    moved = array.movedim(layout.axis, 0)
    rest = moved.shape[1:]
    if layout.minor:
        return moved.reshape(-1, num_examples, *rest).transpose(0, 1)
    return moved.reshape(num_examples, -1, *rest)


def find_layouts(
    predictions: Any, graph: Graph, places: list[int], axes: list[int | None]
) -> tuple[dict[int, Layout], dict[int, Any], set[int], set[int]]:
    """Return where the operations at `places` have their examples.

    The gradient of a sum over the examples is compared with that of a weighted sum: where no example's output depends
    on another example, each number is multiplied by its own example's weight, which tells whose it is.

    Parameters
    ----------
    predictions : Tensor (n, C)
        Outputs of a few examples, three or more; `graph` is theirs.
    graph : Graph
    places : list of int
        Operations of which `axes` gives an axis.
    axes : list of int or None

    Returns
    -------
    layouts : dict of int to Layout
    gradients : dict of int to Tensor or None
        Of a combination of all outputs.
    undecided : set of int
        Places where both orders fit, as where gradients vanish; `layouts` has the major one of them.
    mixed : set of int
        Places where none fits: outputs depend on other examples.
    """
    n, c = predictions.shape
    generator = torch.Generator().manual_seed(n)
    directions = (0.5 + torch.rand(c, generator=generator, dtype=torch.float64)).to(predictions)
    weights = torch.tensor([_WEIGHTS[i % len(_WEIGHTS)] for i in range(n)]).to(predictions)
    edges = [edge_of(graph.nodes[place]) for place in places]
    seed = directions.expand(n, c)
    plain = _gradients(predictions, edges, seed)
    weighted = _gradients(predictions, edges, weights[:, None] * seed)
    layouts, gradients, undecided, mixed = {}, dict(zip(places, plain, strict=True)), set(), set()
    for place, first, second in zip(places, plain, weighted, strict=True):
        axis = axes[place]
        assert axis is not None
        one = output_shape(graph.nodes[place])[axis] == n
        orders = [Layout(axis, False)] if one else [Layout(axis, False), Layout(axis, True)]
        if first is not None and second is not None:
            orders = [order for order in orders if _fits(first, second, order, weights)]
        if not orders:
            mixed.add(place)
            continue
        layouts[place] = orders[0]
        if len(orders) > 1:
            undecided.add(place)
    return layouts, gradients, undecided, mixed


def _gradients(predictions: Any, edges: list[Any], seed: Any) -> Any:
    if not edges:
        return []
    return torch.autograd.grad(predictions, edges, seed, retain_graph=True, allow_unused=True)


def _fits(plain: Any, weighted: Any, layout: Layout, weights: Any) -> bool:
    n = len(weights)
    first, second = by_example(plain, layout, n).reshape(n, -1), by_example(weighted, layout, n).reshape(n, -1)
    largest = torch.maximum(first.abs().amax(1), second.abs().amax(1) / weights)
    error = (second - weights[:, None] * first).abs().amax(1)
    # What is not finite tells nothing.
    return not bool((error > _TOLERANCE[plain.dtype] * weights * largest).any())


# The saved input that has its examples where the result has them.
_ALONGSIDE = {"Addmm": "_saved_mat1", "Mm": "_saved_self"}


def order_of_inputs(fewer: Any, more: Any, axis: int, sizes: tuple[int, int]) -> Layout | None:
    """Return the order of examples in which both of an operation's inputs begin with the same ones, if only one fits.

    Parameters
    ----------
    fewer, more : Node
        The same operation for `sizes` examples, of which the first are the same.
    axis : int
    sizes : tuple of int
    """
    name = _ALONGSIDE.get(short_name(more))
    if name is None or axis != 0:
        return None
    small, large = (getattr(node, name).detach() for node in (fewer, more))
    fitting = []
    for order in (Layout(axis, False), Layout(axis, True)):
        a, b = by_example(small, order, sizes[0]), by_example(large, order, sizes[1])[: sizes[0]]
        if not float((a - b).abs().amax()) > _TOLERANCE[a.dtype] * float(b.abs().amax()):
            fitting.append(order)
    return fitting[0] if len(fitting) == 1 else None
