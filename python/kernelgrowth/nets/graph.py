"""Which operation of a convolutional network reads what, as a graph made of the list of its layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernelgrowth._backend.checks import check_integer
from kernelgrowth.nets.layered import Place
from kernelgrowth.nets.layers import Conv, Dense, LayerKind, PlainLayer, Residual, check_layers, check_weights
from kernelgrowth.nets.stages import FixedStage, Shape, WeightStage, make_stage

__all__ = ["INPUTS", "Graph", "Node", "Nonlinearity", "Sum", "check_input_shape", "make_graph"]

INPUTS = -1
"""What stands for the network's inputs among a node's sources."""


class Nonlinearity:
    """φ of one source."""


class Sum:
    """Two sources added up."""


Operation = FixedStage | WeightStage | Nonlinearity | Sum


@dataclass(frozen=True)
class Node:
    """An operation on what earlier nodes made.

    Attributes
    ----------
    operation : FixedStage, WeightStage, Nonlinearity or Sum
    sources : tuple of int
        The nodes that it reads, or `INPUTS`.
    spent : tuple of int
        Those of them that no later node reads.
    trained_sources : tuple of int
        Those of them that depend on weights, with respect to which derivatives are wanted.
    layer : int
        Its index among the layers with weights; -1 where it has none.
    """

    operation: Operation
    sources: tuple[int, ...]
    spent: tuple[int, ...]
    trained_sources: tuple[int, ...]
    layer: int


@dataclass(frozen=True)
class Graph:
    """The nodes in the order of the forward pass, the outputs last; the layers with weights among them."""

    nodes: tuple[Node, ...]
    stages: tuple[WeightStage, ...]
    places: dict[str, Place]  # by name, in the order of the stages
    out_shape: Shape

    @property
    def num_sums(self) -> int:
        """How many residual blocks there are."""
        return sum(isinstance(node.operation, Sum) for node in self.nodes)

    def homogeneity_degree(self, has_bias: Sequence[bool], positively_homogeneous: bool) -> int | None:
        """Return the k with f(c θ) = c^k f(θ) for c > 0, for a φ that is positively homogeneous or not."""
        degrees = {INPUTS: 0}
        for index, node in enumerate(self.nodes):
            of_sources = {degrees[source] for source in node.sources}
            degree = of_sources.pop()
            if of_sources or (isinstance(node.operation, Nonlinearity) and not positively_homogeneous):
                return None
            if isinstance(node.operation, WeightStage):
                if has_bias[node.layer] and degree > 0:
                    return None
                degree += 1
            degrees[index] = degree
        return degrees[len(self.nodes) - 1]


def make_graph(input_shape: Sequence[int], layers: Any) -> Graph:
    """Return the graph of layers on images (C_in, H, W); an error names the layer that does not fit."""
    layers = check_layers(layers)
    channels, height, width = input_shape
    builder = _Builder((height, width, channels))
    end = builder.chain("layers", layers, INPUTS, activate=False)
    check_weights(layers)
    if len(builder.shapes[end]) != 1:
        raise ValueError(f"layers must end with a vector: put Flatten or GlobalAveragePool last, got {layers[-1]}")
    return builder.graph()


def check_input_shape(value: Any) -> tuple[int, ...]:
    """Return the (C_in, H, W) of (C_in, H, W) or (H, W)."""
    if isinstance(value, str | bytes) or not isinstance(value, Sequence | np.ndarray):
        raise TypeError(f"input_shape must be (channels, height, width) or (height, width), got {value!r}")
    if len(value) not in (2, 3):
        raise ValueError(f"input_shape must be (channels, height, width) or (height, width), got {tuple(value)}")
    shape = tuple(check_integer(f"input_shape[{i}]", size, minimum=1) for i, size in enumerate(value))
    return shape if len(shape) == 3 else (1, *shape)


class _Builder:
    """Operations and their sources, one after the other, with the shape of one example behind each."""

    def __init__(self, input_shape: Shape) -> None:
        self.operations: list[Operation] = []
        self.sources: list[tuple[int, ...]] = []
        self.shapes: dict[int, Shape] = {INPUTS: input_shape}
        # Of the layers with weights, by node: what they do, their names' stem, and their σ.
        self.weighted: dict[int, tuple[WeightStage, str, float | None]] = {}

    def chain(self, name: str, layers: Sequence[LayerKind], source: int, *, activate: bool) -> int:
        """Put layers one behind the other, φ before the first where `activate`; return the node at their end."""
        last = max((i for i, layer in enumerate(layers) if isinstance(layer, Conv | Dense | Residual)), default=-1)
        for i, layer in enumerate(layers):
            if isinstance(layer, Residual):
                source = self.residual(f"{name}[{i}]", layer, source, activate=activate)
            else:
                if activate:
                    source = self.add(Nonlinearity(), (source,), self.shapes[source])
                source = self.plain(f"{name}[{i}]", layer, source)
            activate = isinstance(layer, Conv | Dense | Residual) and i != last
        return source

    def residual(self, name: str, block: Residual, source: int, *, activate: bool) -> int:
        branch = self.chain(f"{name}.layers", block.layers, source, activate=activate)
        shortcut = source
        if block.shortcut is not None:
            shortcut = self.plain(f"{name}.shortcut", block.shortcut, source, prefix="shortcut")
        made, carried = self.shapes[branch], self.shapes[shortcut]
        if made != carried:
            raise ValueError(
                f"{name}: its layers make {_describe(made)}, but the shortcut hands on {_describe(carried)}: "
                "both must have one shape"
            )
        return self.add(Sum(), (branch, shortcut), made)

    def plain(self, name: str, layer: PlainLayer, source: int, prefix: str | None = None) -> int:
        try:
            stage = make_stage(layer, self.shapes[source])
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        node = self.add(stage, (source,), stage.out_shape)
        if isinstance(layer, Conv | Dense) and isinstance(stage, WeightStage):
            self.weighted[node] = (stage, prefix or stage.prefix, layer.sigma)
        return node

    def add(self, operation: Operation, sources: tuple[int, ...], out: Shape) -> int:
        self.operations.append(operation)
        self.sources.append(sources)
        self.shapes[len(self.operations) - 1] = out
        return len(self.operations) - 1

    def graph(self) -> Graph:
        count = len(self.operations)
        readers: dict[int, list[int]] = {node: [] for node in range(-1, count)}
        trained = {INPUTS: False}
        for node, sources in enumerate(self.sources):
            trained[node] = node in self.weighted or any(trained[source] for source in sources)
            for source in sources:
                readers[source].append(node)
        # Whether weights come after a node.
        followed: dict[int, bool] = {}
        for node in reversed(range(count)):
            followed[node] = any(reader in self.weighted or followed[reader] for reader in readers[node])
        places: dict[str, Place] = {}
        counts: dict[str, int] = {}
        for node, (stage, prefix, sigma) in self.weighted.items():
            counts[prefix] = counts.get(prefix, 0) + 1
            places[f"{prefix}{counts[prefix]}"] = Place(
                weight_shape=stage.weight_shape,
                first=not trained[self.sources[node][0]],
                last=not followed[node],
                sigma=sigma,
            )
        layer_of = {node: layer for layer, node in enumerate(self.weighted)}
        nodes = tuple(
            Node(
                operation=self.operations[node],
                sources=self.sources[node],
                spent=tuple({source for source in self.sources[node] if readers[source][-1] == node}),
                trained_sources=tuple(source for source in self.sources[node] if trained[source]),
                layer=layer_of.get(node, -1),
            )
            for node in range(count)
        )
        return Graph(nodes, tuple(stage for stage, _, _ in self.weighted.values()), places, self.shapes[count - 1])


def _describe(shape: Shape) -> str:
    if len(shape) == 1:
        return f"a vector of {shape[0]} numbers"
    height, width, channels = shape
    return f"an image of {channels} channels and {height} x {width} pixels"
