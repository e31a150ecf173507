"""The forward and the backward sweep through a graph of stages, and the parts of the examples that go together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernelgrowth._backend.arrays import array_namespace, is_cupy
from kernelgrowth._backend.parallel import for_each
from kernelgrowth.nets.activations import Activation
from kernelgrowth.nets.graph import INPUTS, Graph, Nonlinearity, Sum
from kernelgrowth.nets.layered import Layer, scaled
from kernelgrowth.nets.products import matrix_product
from kernelgrowth.nets.stages import FixedStage, WeightStage

__all__ = [
    "Trace",
    "Weights",
    "backpropagate",
    "examples_together",
    "for_each_part",
    "gather",
    "prepare",
    "propagate",
    "slices",
]

# Examples go through the whole network in parts whose largest columns take about so many bytes: small enough to stay in
# a cache, large enough for the matrix products (calibrated on Zen 4). Parts depend on shapes alone, so sums do too.
_PART_BYTES = 3 << 20
_PART_BYTES_CUDA = 256 << 20


@dataclass(frozen=True)
class Weights:
    """A layer's parameters as its products take them: z = up-product of ratio·h, and its transpose."""

    ratio: float  # what the inputs are multiplied with, so that weight and bias have one multiplier
    up: Any  # (d_in, d_out)
    down: Any  # (d_out, d_in)
    bias: Any  # (T·d_out,) or None


@dataclass(frozen=True)
class Trace:
    """What the backward sweep needs of some examples."""

    inputs: list[Any]  # of each layer with weights, times its ratio
    derivatives: dict[int, Any]  # φ' at each node that applies φ, but where it is 1 everywhere

    def of(self, examples: slice) -> Trace:
        """Return the derivatives of some of the examples."""
        return Trace([], {node: derivative[examples] for node, derivative in self.derivatives.items()})


def prepare(layers: Sequence[Layer], stages: Sequence[WeightStage], params: Mapping[str, Any]) -> list[Weights]:
    """Return each layer's parameters as the sweeps take them."""
    prepared = []
    for layer, stage in zip(layers, stages, strict=True):
        xp = array_namespace(params[layer.weight])
        matrix = stage.matrix(params[layer.weight])
        bias = None
        if layer.has_bias:
            bias = xp.tile(params[layer.bias] * layer.scales.bias, stage.positions)
        prepared.append(
            Weights(
                ratio=layer.scales.weight / layer.common,
                up=xp.ascontiguousarray(matrix.T) * layer.common,
                down=xp.ascontiguousarray(matrix) * layer.scales.weight,
                bias=bias,
            )
        )
    return prepared


# Checks of values find what is not finite.
@np.errstate(invalid="ignore")
def propagate(
    graph: Graph,
    activation: Activation,
    weights: Sequence[Weights],
    images: Any,
    *,
    keep: bool,
    columns: Sequence[Any] | None = None,
) -> tuple[Any, Trace]:
    """Return the outputs at channels-last images, and their trace; `columns` receives every layer's."""
    trace = Trace([None] * len(weights), {})
    made = {INPUTS: images}
    for index, node in enumerate(graph.nodes):
        operation = node.operation
        h = made[node.sources[0]]
        if isinstance(operation, Sum):
            value = h + made[node.sources[1]]
        elif isinstance(operation, Nonlinearity):
            z = h.reshape(len(h), -1)
            value = activation.value(z)
            if keep and activation.derivative is not None:
                trace.derivatives[index] = activation.derivative(z, value)
            value = value.reshape(h.shape)
        elif isinstance(operation, FixedStage):
            value = operation.forward(h)
        else:
            applied = weights[node.layer]
            h = scaled(h, applied.ratio, copy=True)
            filled = gather(operation, h, None if columns is None else columns[node.layer])
            z = matrix_product(filled.reshape(-1, operation.d_in), applied.up).reshape(len(h), -1)
            if applied.bias is not None:
                z += applied.bias
            if keep and columns is None:
                trace.inputs[node.layer] = h
            value = z.reshape(len(h), *operation.out_shape)
        made[index] = value
        for source in node.spent:
            del made[source]
    return made[len(graph.nodes) - 1], trace


def backpropagate(
    graph: Graph, weights: Sequence[Weights], trace: Trace, seed: Any, targets: Sequence[Any] | None = None
) -> Iterator[tuple[int, Any]]:
    """Yield (ℓ, Σ_c seed[n, k, c] ∂f_c(x_n)/∂z_ℓ) for every layer ℓ with weights, none before those that follow it.

    `seed` is (n, K, C), or (1, K, C) where all examples share it; what is yielded is (n, K, T·d_out), or
    (1, K, T·d_out) where all examples share that. `targets` of shape (n, K, T·d_out) receive it.
    """
    xp = array_namespace(seed)
    num_vectors = seed.shape[1]
    receivers: dict[int, Any] = {}
    if targets is not None:
        receivers = {i: targets[node.layer] for i, node in enumerate(graph.nodes) if node.layer >= 0}
    # By node, the derivatives with respect to what it makes; none of these arrays is changed, as sums share them.
    deltas = {len(graph.nodes) - 1: seed}
    for index in reversed(range(len(graph.nodes))):
        if index not in deltas:
            continue
        node, delta = graph.nodes[index], deltas.pop(index)
        operation = node.operation
        if isinstance(operation, WeightStage):
            target = receivers.get(index)
            if target is not None and delta is not target:
                target[...] = delta
            yield node.layer, delta
        if not node.trained_sources:
            continue
        if isinstance(operation, Nonlinearity):
            if index in trace.derivatives:
                source = node.sources[0]
                target = None if source in deltas else receivers.get(source)
                delta = xp.multiply(delta, trace.derivatives[index][:, None, :], out=target)
        elif isinstance(operation, FixedStage):
            delta = operation.backward(delta.reshape(-1, *operation.out_shape))
            delta = delta.reshape(-1, num_vectors, math.prod(operation.in_shape))
        elif isinstance(operation, WeightStage):
            delta = delta.reshape(-1, operation.positions, operation.d_out)
            delta = _pull(operation, weights[node.layer].down, delta)
            delta = delta.reshape(-1, num_vectors, math.prod(operation.in_shape))
        for source in node.trained_sources:
            deltas[source] = deltas[source] + delta if source in deltas else delta


def gather(stage: WeightStage, h: Any, columns: Any = None) -> Any:
    """Return the columns (n, T, d_in) of a layer's inputs, written to `columns` where these are given."""
    if columns is None:
        columns = array_namespace(h).empty((len(h), stage.positions, stage.d_in), dtype=h.dtype)
    stage.gather(array_namespace(h).ascontiguousarray(h), columns)
    return columns


def examples_together(stages: Sequence[WeightStage], x: Any, num_vectors: int) -> int:
    """Return how many examples go together, so many vectors each."""
    largest = max(max(math.prod(s.in_shape) * num_vectors, s.positions * s.d_in) for s in stages)
    return max(1, _part_bytes(x) // int(largest * x.dtype.itemsize))


def for_each_part(sweep: Callable[[Any], None], parts: Sequence[Any], x: Any) -> None:
    """Sweep parts of the examples, on CPUs several at a time."""
    if is_cupy(x):
        for part in parts:
            sweep(part)
    else:
        for_each(sweep, parts)


def slices(length: int, step: int) -> Iterator[slice]:
    """Divide `length` examples into parts of `step`."""
    return (slice(begin, min(begin + step, length)) for begin in range(0, length, step))


def _pull(stage: WeightStage, down: Any, delta: Any) -> Any:
    """Return the derivatives with respect to a layer's input (m, *in_shape), from those behind it (m, T, d_out)."""
    xp = array_namespace(delta)
    h = xp.empty((len(delta), *stage.in_shape), dtype=delta.dtype)
    together = max(1, _part_bytes(delta) // (stage.positions * stage.d_in * delta.dtype.itemsize))
    for part in slices(len(delta), together):
        columns = matrix_product(delta[part].reshape(-1, stage.d_out), down)
        stage.scatter(columns.reshape(-1, stage.positions, stage.d_in), h[part])
    return h


def _part_bytes(array: Any) -> int:
    return _PART_BYTES_CUDA if is_cupy(array) else _PART_BYTES
