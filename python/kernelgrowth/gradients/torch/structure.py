"""What is found out about a module before its features are computed, on a handful of examples."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from kernelgrowth.gradients.torch.consumers import Outer, Piece, read
from kernelgrowth.gradients.torch.graph import Graph, Use, find_uses, output_shape, settings_of, short_name
from kernelgrowth.gradients.torch.layout import Layout, axes_of_examples, find_layouts, order_of_inputs
from kernelgrowth.gradients.torch.module import Forward, Inputs
from kernelgrowth.gradients.torch.recipe import Recipe, RowsRecipe, recipes

__all__ = ["NotVanishing", "OtherOperations", "Structure", "find_structure"]

_FEWER, _MORE = 2, 3
_RECURRENT = ("MkldnnRnnLayer", "CudnnRnn", "MiopenRnn")
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-8}


class OtherOperations(ValueError):
    """A forward pass is not what it was before."""


class NotVanishing(OtherOperations):
    """Gradients that vanished where they were looked at do not elsewhere."""


@dataclass(frozen=True)
class Structure:
    """A module's graph, and the blocks that its gradients are held in.

    Attributes
    ----------
    recipes : dict of str to Recipe
    depths : dict of str to int
        How far a backward sweep goes for a block: the smaller, the farther from the outputs.
    places : list of int
        Operations in the graph whose gradients the blocks are filled from.
    signature : tuple
        Of the graph.
    settings : dict of int to dict
        Of the operations that lie between parameters and those that read them.
    num_outputs : int
        C.
    bytes_per_example, graph_bytes_per_example : int
        That features take, and that the sweeps take besides.
    plain_recurrence : bool
        Of the `Forward` it was found with.
    lasting : bool
        Whether it holds for other values of the parameters too.
    """

    recipes: dict[str, Recipe]
    depths: dict[str, int]
    places: list[int]
    signature: tuple[Any, ...]
    settings: dict[int, dict[str, Any]]
    num_outputs: int
    bytes_per_example: int
    graph_bytes_per_example: int
    plain_recurrence: bool
    lasting: bool

    def by_depth(self) -> list[tuple[list[str], int]]:
        """Return parameters whose blocks belong together, and how many numbers an example takes, outputs first."""
        joined: dict[str, tuple[list[str], int, int]] = {}
        for name, recipe in self.recipes.items():
            names, numbers, depth = joined.get(recipe.parameters[0], ([], 0, self.depths[name]))
            joined[recipe.parameters[0]] = (
                names + [parameter for parameter in recipe.parameters if parameter not in names],
                numbers + recipe.numbers(self.num_outputs),
                min(depth, self.depths[name]),
            )
        ordered = sorted(joined.values(), key=lambda entry: -entry[2])
        return [(names, numbers) for names, numbers, _ in ordered]

    def check_same(self, graph: Graph, num_outputs: int) -> None:
        """Refuse a forward pass of other operations, or of another number of outputs, than those looked at."""
        same = (graph.signature, num_outputs) == (self.signature, self.num_outputs) and all(
            _equal(settings_of(graph.nodes[place]), settings) for place, settings in self.settings.items()
        )
        if not same:
            raise OtherOperations(
                "module computes other operations for some examples than for others, or for another number of them: "
                "what it does must not depend on the data"
            )


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(_equal(p, q) for p, q in zip(a, b, strict=True))
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.shape == b.shape and torch.equal(a, b)
    return bool(a == b)


def find_structure(forward: Forward, inputs: Inputs, tracked: Mapping[str, Any], *, thin: bool = True) -> Structure:
    """Find out how the module uses its parameters, and where operations have their examples.

    With `thin`, positions at which gradients vanish are left out: those of a last layer of which one is looked at.

    Raises
    ------
    ValueError
        If outputs depend on other examples, or calling the module twice gives different ones.
    """
    small, large = inputs.cycled(_FEWER), inputs.cycled(_MORE)
    values = forward(large)
    if any(short_name(node).startswith(_RECURRENT) for node in Graph(values).nodes):
        forward.plain_recurrence = True
        values = forward(large)
    before = forward(small)
    _check_independent(before.detach(), values.detach())
    graph, fewer = Graph(values), Graph(before)
    if graph.signature != fewer.signature:
        raise ValueError("module computes other operations for two examples than for three: it must not depend on them")
    _check_operations(graph)
    axes = axes_of_examples(fewer, graph, (_FEWER, _MORE))
    uses = {
        name: find_uses(graph, name, tensor, lambda place: axes[place] is not None) for name, tensor in tracked.items()
    }
    places = sorted({use.place for found in uses.values() for use in found if _has_axis(axes, use)})
    layouts, gradients = _layouts(values, graph, fewer, places, axes, uses)
    pieces = {name: _pieces(graph, found, layouts) for name, found in uses.items()}
    if thin:
        pieces = {
            name: None if found is None else [_thinned(graph, piece, gradients) for piece in found]
            for name, found in pieces.items()
        }
    num_outputs = int(values.shape[1])
    made = recipes(graph, tracked, pieces, num_outputs)
    if not made:
        raise ValueError("module's outputs depend on none of the parameters to be differentiated by")
    itemsize = values.element_size()
    return Structure(
        made,
        {name: _depth(graph, recipe) for name, recipe in made.items()},
        _places(made.values()),
        graph.signature,
        {place: settings_of(graph.nodes[place]) for place in sorted(graph.passed)},
        num_outputs,
        max(1, itemsize * sum(recipe.numbers(num_outputs) for recipe in made.values())),
        itemsize * (_numbers_of(graph, axes) // _MORE + _numbers_kept(made)),
        plain_recurrence=forward.plain_recurrence,
        lasting=all(place in layouts for place in places),
    )


def _check_independent(two: Any, three: Any) -> None:
    error, scale = float((three[: len(two)] - two).abs().amax()), float(three.abs().amax())
    if error > _TOLERANCE[two.dtype] * scale:
        raise ValueError(
            f"module's outputs for two examples change by {error:.3g} when a third joins them: either they depend on "
            "the batch, or calling the module twice gives different outputs; both make a matrix that is no kernel"
        )


def _check_operations(graph: Graph) -> None:
    for node in graph.nodes:
        if short_name(node) == "CheckpointFunction":
            raise ValueError(
                "module uses torch.utils.checkpoint with use_reentrant=True, which hides the parameters within: use "
                "use_reentrant=False"
            )


def _has_axis(axes: list[int | None], use: Use) -> bool:
    axis = axes[use.place]
    return axis is not None and axis >= 0


def _layouts(
    values: Any,
    graph: Graph,
    fewer: Graph,
    places: list[int],
    axes: list[int | None],
    uses: Mapping[str, list[Use]],
) -> tuple[dict[int, Layout], dict[int, Any]]:
    layouts, gradients, undecided, mixed = find_layouts(values, graph, places, axes)
    if mixed:
        name = next(name for name, found in uses.items() if any(use.place in mixed for use in found))
        raise ValueError(
            f"the gradient of parameter {name!r} shows that an example's outputs depend on other examples of the "
            "batch: normalise within examples, or call module.eval(), and see that no layer mixes along the first axis"
        )
    for place in undecided:
        # Gradients vanish there, as below weights that begin at zero; what is multiplied may tell.
        order = order_of_inputs(fewer.nodes[place], graph.nodes[place], layouts[place].axis, (_FEWER, _MORE))
        if order is None:
            del layouts[place]
        else:
            layouts[place] = order
    return layouts, gradients


def _thinned(graph: Graph, piece: Piece, gradients: Mapping[int, Any]) -> Piece:
    """Return a piece without the positions at which these gradients, of a few examples, are exactly zero."""
    gradient = gradients[piece.use.place]
    if not isinstance(piece, Outer) or piece.positions == 1 or gradient is None:
        return piece
    with torch.no_grad():
        alive = (piece.backprops(graph, _MORE, gradient) != 0).flatten(2).any(2).any(0)
    kept, left_out = alive.nonzero()[:, 0], (~alive).nonzero()[:, 0]
    if not len(kept) or not len(left_out):
        return piece

    def activations(graph: Graph, count: int) -> Any:
        return piece.activations(graph, count)[:, kept]

    def backprops(graph: Graph, count: int, delta: Any) -> Any:
        everything = piece.backprops(graph, count, delta)
        if bool(everything[:, left_out].any()):
            raise NotVanishing("module's gradients vanish at some positions for some examples, but not for others")
        return everything[:, kept]

    return dataclasses.replace(piece, positions=len(kept), activations=activations, backprops=backprops)


def _pieces(graph: Graph, uses: list[Use], layouts: Mapping[int, Layout]) -> list[Piece] | None:
    pieces: list[Piece] = []
    for use in uses:
        found = read(graph, use, layouts[use.place], _MORE) if use.place in layouts else None
        if found is None:
            return None
        pieces += found
    return pieces


def _numbers_of(graph: Graph, axes: list[int | None]) -> int:
    return sum(math.prod(output_shape(node)) for node, axis in zip(graph.nodes, axes, strict=True) if axis is not None)


def _numbers_kept(made: Mapping[str, Recipe]) -> int:
    """Return how many numbers an example's inputs take of matrices whose gradients are written out."""
    slots = [slot for recipe in made.values() if isinstance(recipe, RowsRecipe) for slot in recipe.slots]
    outer = [piece for slot in slots for piece in slot.pieces if isinstance(piece, Outer)]
    return sum(piece.positions * int(piece.entries.shape[1]) for piece in outer)


def _depth(graph: Graph, recipe: Recipe) -> int:
    places = _places([recipe])
    # Without places it is differentiated example by example, through the whole module.
    return min((int(graph.nodes[place]._sequence_nr()) for place in places), default=-1)


def _places(made: Iterable[Recipe]) -> list[int]:
    found = set()
    for recipe in made:
        slots = recipe.slots if isinstance(recipe, RowsRecipe) else [recipe]
        found |= {piece.use.place for slot in slots for piece in slot.pieces}
    return sorted(found)
