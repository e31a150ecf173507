"""Gradient features of any PyTorch module."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kernelgrowth._backend.checks import check_choice, check_integer
from kernelgrowth._backend.errors import MemoryLimitError
from kernelgrowth._backend.memory import format_bytes, resolve_memory_limit
from kernelgrowth.gradients.features import Block, Embedding, GradientFeatures, OuterProduct, Rows
from kernelgrowth.gradients.torch.graph import Graph, edge_of
from kernelgrowth.gradients.torch.module import Forward, Inputs, check_module, tracked_parameters, unwrapped
from kernelgrowth.gradients.torch.per_example import fill_per_example
from kernelgrowth.gradients.torch.recipe import LookupRecipe, OuterRecipe, Recipe, RowsRecipe
from kernelgrowth.gradients.torch.storage import storage_of
from kernelgrowth.gradients.torch.structure import NotVanishing, OtherOperations, Structure, find_structure
from kernelgrowth.gradients.torch.verify import verify_features

__all__ = ["ModuleFeatures", "gradient_features", "parameter_groups"]

OUTPUTS = ("full", "trace", "mean_trace", "diagonal", "sum_logits")
# What fits into caches is swept faster, few examples at a time slower: at least so many, unless they are huge.
_CHUNK_BYTES = 2**26
_FEWEST = 8
_MOST_BYTES = 2**30


class ModuleFeatures(GradientFeatures):
    """`GradientFeatures` of a module, which know the parameters that their blocks hold.

    Attributes
    ----------
    parameters : dict of str to list of str
        Block name -> the module's parameters in it.
    """

    def __init__(self, blocks: Mapping[str, Block], recipes: Mapping[str, Recipe], *, predictions: Any) -> None:
        super().__init__(blocks, predictions=predictions)
        self._recipes = dict(recipes)
        self.parameters = {name: list(recipe.parameters) for name, recipe in recipes.items()}

    def by_block(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """Return tensors by parameter (learning rates, a gradient, a step) by block.

        Parameters
        ----------
        arrays : mapping of str to Tensor
            One of its parameter's shape for each name in `parameters`; others are not looked at.

        Returns
        -------
        dict of str to Tensor or (Tensor, Tensor)
            What `empirical_ntk` and `NTKOperator` take as `preconditioner`, and `gradients.jvp` as `tangent`.

        Raises
        ------
        ValueError
            If one is missing or of another number of entries than its parameter.
        """
        return {name: _by_recipe(recipe, arrays) for name, recipe in self._recipes.items()}


def _by_recipe(recipe: Recipe, arrays: Mapping[str, Any]) -> Any:
    def flat(name: str, size: int | None = None) -> Any:
        if name not in arrays:
            raise ValueError(f"arrays must hold parameter {name!r}, got {list(arrays)}")
        array = arrays[name].detach().flatten()
        if size is not None and len(array) != size:
            raise ValueError(f"arrays[{name!r}] must have the {size} entries of its parameter, got {len(array)}")
        return array

    if isinstance(recipe, OuterRecipe):
        weight = flat(recipe.parameters[0])[recipe.entries]
        return (weight, flat(recipe.parameters[1], len(weight))) if len(recipe.parameters) > 1 else weight
    if isinstance(recipe, LookupRecipe):
        return flat(recipe.parameters[0], recipe.shape[0] * recipe.shape[1]).reshape(recipe.shape)
    return torch.cat([flat(slot.parameter, slot.size) for slot in recipe.slots])


def gradient_features(
    module: Any,
    x: Any,
    *,
    outputs: str = "full",
    batch_size: int | None = None,
    parameters: Sequence[str] | Callable[[str, Any], bool] | None = None,
    output: Callable[[Any], Any] | None = None,
    memory_limit: int | None = None,
    verify: str = "sample",
    check_finite: bool = True,
) -> ModuleFeatures:
    """Return the gradients of every output of `module` with respect to every parameter, at the examples `x`.

    Every use of a parameter is an edge of the graph that autograd records in a forward pass, so no parameter is missed
    and none counted wrongly, whatever the module is made of: products of matrices, convolutions and embeddings become
    structured blocks, normalisation, gains and biases explicit rows, and what is not understood is differentiated
    example by example. Weights used several times, or tied, are exact.

    Parameters
    ----------
    module : torch.nn.Module
        Of float32 or float64 parameters; compiled modules and those in `DataParallel` are unwrapped. It is left as it
        was found: parameters, gradients, buffers, hooks, mode and random numbers. Autocast does not apply.
    x : Tensor (N, ...), tuple of Tensor, or mapping of str to Tensor
        Examples along the first axis of each tensor; a tuple is passed as positional, a mapping as keyword arguments.
    outputs : {"full", "trace", "mean_trace", "diagonal", "sum_logits"}
        "sum_logits" takes the gradient of Σ_c f_c alone, in one backward sweep, as if the network had one output; for
        all others all C are taken.
    batch_size : int, optional
        Examples in a sweep; by default as many as keep what a sweep takes at 64 MiB, but eight unless these take more
        than a gibibyte.
    parameters : sequence of str, or callable, optional
        Names of parameters or of parts of the module, or a function of name and tensor that says which ones to take;
        by default all. Frozen ones (``requires_grad`` false) are never taken.
    output : callable, optional
        From what the module returns to outputs (N,) or (N, C); by default the tensor, or ``logits`` where it has them.
    memory_limit : int, optional
        Bytes that the features may take; half of the available memory by default.
    verify : {"sample", "always", "never"}
        Whether inner products of two gradients are compared with those of autograd on single examples: the first time
        a module is seen, always, or never.
    check_finite : bool
        Whether values that are not finite are refused.

    Returns
    -------
    ModuleFeatures
        Blocks named by the part of the module whose parameters they hold; `predictions` are filled in. They share
        memory with tensors on the module's device, and kernels of them come back as such tensors. Parameters that the
        outputs do not depend on are left out. Costs one forward and C backward sweeps without weight gradients, and
        the first time those of some single examples.

    Raises
    ------
    TypeError, ValueError
        If an argument is unusable; if outputs are random or depend on other examples of the batch (batch
        normalisation or dropout in training mode, ...), naming the part or a parameter and the way out; if a value is
        not finite, or `verify` finds another gradient than autograd does.
    MemoryLimitError
        If the features do not fit `memory_limit`; no sweep over all examples has been made then.

    Notes
    -----
    What is found out about a module, and verified, is kept with it and used again for inputs of the same shapes, if its
    forward pass still consists of the same operations: later calls cost the sweeps alone.

    A view that copies a parameter, or a batch size, to every example is understood by comparing graphs of two and of
    three examples. Which numbers of a gradient belong to which example is found out by weighting examples by powers of
    two; the same tells examples that depend on one another.

    Examples
    --------
    >>> feats = kernelgrowth.torch.gradient_features(model, images, outputs="mean_trace")
    >>> kernel = kernelgrowth.empirical_ntk(feats, outputs="mean_trace")
    """
    check_choice("verify", verify, ("sample", "always", "never"))
    if batch_size is not None:
        batch_size = check_integer("batch_size", batch_size, minimum=1)
    limit = resolve_memory_limit(memory_limit)
    forward, inputs, tracked = _checked(module, x, outputs, parameters, output)
    module = forward.module
    with forward.left_as_found():
        found = _look_at(forward, inputs, tracked)
        try:
            feats = _features(forward, inputs, tracked, found.structure, batch_size, limit, check_finite)
        except OtherOperations as change:
            found = _look_at(forward, inputs, tracked, again=True, thin=not isinstance(change, NotVanishing))
            feats = _features(forward, inputs, tracked, found.structure, batch_size, limit, check_finite)
        if verify == "always" or (verify == "sample" and not found.verified):
            verify_features(feats, forward, inputs, tracked)
            found.verified = True
    return feats


@dataclass
class _Found:
    """What was found out about a module, and whether features were compared with autograd's gradients."""

    structure: Structure
    verified: bool = False


# By the choice of outputs and parameters, and the shapes of inputs.
_known: weakref.WeakKeyDictionary[Any, dict[tuple[Any, ...], _Found]] = weakref.WeakKeyDictionary()


def _look_at(
    forward: Forward, inputs: Inputs, tracked: Mapping[str, Any], *, again: bool = False, thin: bool = True
) -> _Found:
    known = _known.setdefault(forward.module, {})
    key = (forward.total, *inputs.signature, *tracked)
    found = None if again else known.get(key)
    if found is None:
        found = _Found(find_structure(forward, inputs, tracked, thin=thin))
        known.pop(key, None)
        if found.structure.lasting:
            known[key] = found
    forward.plain_recurrence = found.structure.plain_recurrence
    return found


def parameter_groups(
    module: Any,
    x: Any,
    *,
    outputs: str,
    parameters: Sequence[str] | Callable[[str, Any], bool] | None,
    output: Callable[[Any], Any] | None,
    memory: int,
) -> list[list[str]]:
    """Divide parameters into groups whose features at the examples `x` take at most `memory` bytes each.

    The first groups are those next to the outputs, which a backward sweep reaches soonest. A group of one block may
    take more.
    """
    forward, inputs, tracked = _checked(module, x, outputs, parameters, output)
    with forward.left_as_found():
        structure = _look_at(forward, inputs, tracked).structure
    itemsize = next(iter(tracked.values())).element_size()
    groups: list[list[str]] = []
    left = 0
    for names, numbers in structure.by_depth():
        size = numbers * itemsize * inputs.num_examples
        if not groups or size > left:
            groups.append([])
            left = memory
        groups[-1] += names
        left -= size
    return groups


def _checked(module: Any, x: Any, outputs: str, parameters: Any, output: Any) -> tuple[Forward, Inputs, dict[str, Any]]:
    check_choice("outputs", outputs, OUTPUTS)
    if output is not None and not callable(output):
        raise TypeError(f"output must be callable, got {type(output).__name__}")
    module = unwrapped(module)
    inputs = Inputs(x)
    tracked = tracked_parameters(module, parameters)
    check_module(module)
    return Forward(module, output, total=outputs == "sum_logits"), inputs, tracked


def _check_memory(structure: Structure, num_examples: int, limit: int) -> None:
    needed = num_examples * structure.bytes_per_example
    if needed > limit:
        raise MemoryLimitError(
            f"the gradient features of {num_examples} examples and {structure.num_outputs} outputs take "
            f"{format_bytes(needed)}, but memory_limit is {format_bytes(limit)}, which holds "
            f"{limit // structure.bytes_per_example} examples: take fewer, outputs='sum_logits', fewer parameters, or "
            "ChunkedFeatures",
            needed=needed,
            limit=limit,
        )


def _features(
    forward: Forward,
    inputs: Inputs,
    tracked: Mapping[str, Any],
    structure: Structure,
    batch_size: int | None,
    limit: int,
    check_finite: bool,
) -> ModuleFeatures:
    _check_memory(structure, inputs.num_examples, limit)
    n, c = inputs.num_examples, structure.num_outputs
    like = next(iter(tracked.values())).detach()
    step = batch_size or _examples_at_once(max(1, structure.graph_bytes_per_example))
    # With one example alone tensors are laid out differently, and with them the operations may be others: it is swept
    # twice, and the second row overwritten or left out.
    alone = step == 1 or n % step == 1
    storages = {name: storage_of(recipe, n + alone, c, like) for name, recipe in structure.recipes.items()}
    predictions = like.new_empty((n + alone, c))
    for begin in range(0, n, step):
        part = inputs.select(slice(begin, begin + step))
        part = part.cycled(2) if part.num_examples == 1 else part
        end = begin + part.num_examples
        values = forward(part)
        graph = Graph(values)
        structure.check_same(graph, values.shape[1])
        predictions[begin:end] = values.detach()
        places = structure.places
        edges = [edge_of(graph.nodes[place]) for place in places]
        for output in range(c):
            deltas: dict[int, Any] = {}
            if edges:
                seed = torch.zeros_like(values)
                seed[:, output] = 1
                # Saved inputs are read afterwards, so the graph is kept to the last.
                found = torch.autograd.grad(values, edges, seed, retain_graph=True, allow_unused=True)
                deltas = dict(zip(places, found, strict=True))
            # Saved inputs are part of the graph: without this, so would be all that is made of them.
            with torch.no_grad():
                for storage in storages.values():
                    storage.fill(graph, begin, end, output, deltas)
        del values, graph
        rows = {
            slot.parameter: target
            for storage in storages.values()
            if isinstance(storage.recipe, RowsRecipe)
            for slot, target in storage.slots(begin, end)
            if not slot.pieces
        }
        if rows:
            fill_per_example(forward, part, rows, tracked)
    blocks = {name: _block(storage, n, check_finite, name) for name, storage in storages.items()}
    return ModuleFeatures(blocks, structure.recipes, predictions=predictions[:n])


def _examples_at_once(bytes_each: int) -> int:
    return max(1, _CHUNK_BYTES // bytes_each, min(_FEWEST, _MOST_BYTES // bytes_each))


def _block(storage: Any, n: int, check_finite: bool, name: str) -> Block:
    recipe = storage.recipe
    # A sum that is finite has finite terms, and this one is made in several threads.
    check_finite = check_finite and not math.isfinite(sum(float(array[:n].sum()) for array in storage.arrays))
    try:
        if isinstance(recipe, OuterRecipe):
            return OuterProduct(
                storage.activations[:n],
                storage.backprops[:n],
                bias=len(recipe.parameters) > 1,
                check_finite=check_finite,
            )
        if isinstance(recipe, LookupRecipe):
            return Embedding(
                storage.indices[:n], storage.backprops[:n], num_embeddings=recipe.shape[0], check_finite=check_finite
            )
        return Rows(storage.rows[:n], check_finite=check_finite)
    except ValueError as error:
        raise ValueError(f"the gradient of {' and '.join(recipe.parameters)}, block {name!r}: {error}") from error
