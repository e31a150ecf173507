"""What an operation's incoming gradient and saved inputs say of the gradient of the parameter that it reads."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kernelgrowth.gradients.torch.graph import Graph, Use, numbers_up_to, output_shape, short_name
from kernelgrowth.gradients.torch.layout import Layout, by_example
from kernelgrowth.gradients.torch.windows import windows

__all__ = ["Entries", "Gather", "Outer", "Piece", "read"]


@dataclass(frozen=True)
class Outer:
    """A matrix of entries whose gradient is Σ_t δ_nt a_ntᵀ.

    Attributes
    ----------
    use : Use
    entries : Tensor of integers (d_out, d_in)
        Of the parameter.
    positions : int
        T.
    activations : callable
        (graph, N) -> (N, T, d_in).
    backprops : callable
        (graph, N, gradient of the operation's result) -> (N, T, d_out).
    """

    use: Use
    entries: Any
    positions: int
    activations: Callable[[Graph, int], Any]
    backprops: Callable[[Graph, int, Any], Any]


@dataclass(frozen=True)
class Gather:
    """Rows of the parameter (V, d), looked up by integers: indices (N, T) and backprops (N, T, d)."""

    use: Use
    positions: int
    padding: int
    indices: Callable[[Graph, int], Any]
    backprops: Callable[[Graph, int, Any], Any]


@dataclass(frozen=True)
class Entries:
    """Entries that are read one by one: `gradient` is (N, k, ...), and `entries` (1, k or 1, ...) says whose it is."""

    use: Use
    gradient: Callable[[Graph, int, Any], Any]
    entries: Any


Piece = Outer | Gather | Entries


def read(graph: Graph, use: Use, layout: Layout, num_examples: int) -> list[Piece] | None:
    """Return the gradient of what `use` reads, in pieces; None if the operation is not one that is understood here.

    Parameters
    ----------
    graph : Graph
        Of `num_examples` examples.
    use : Use
    layout : Layout
        Of the operation's result.
    num_examples : int
    """
    node = graph.nodes[use.place]
    if use.number == -1:
        return _copied(use, layout, num_examples)
    reader = _READERS.get((short_name(node), use.number))
    return None if reader is None else reader(node, use, layout, num_examples)


def _copied(use: Use, layout: Layout, n: int) -> list[Piece] | None:
    """Read a view that has an axis of examples: its gradient is the parameter's, example by example."""
    entries = by_example(use.entries, layout, n)
    if not bool((entries == entries[:1]).all()):
        return None

    def gradient(graph: Graph, count: int, delta: Any) -> Any:
        return by_example(delta, layout, count)

    return [Entries(use, gradient, entries[:1])]


def _elementwise(slope: Callable[[Any], Any]) -> Callable[[Any, Use, Layout, int], list[Piece] | None]:
    """Read a parameter entry by entry, the last axes of the result, of which `slope(node)` is the derivative."""

    def reader(node: Any, use: Use, layout: Layout, n: int) -> list[Piece] | None:
        shape = output_shape(node)
        aligned = use.entries.reshape((1,) * (len(shape) - use.entries.ndim) + use.entries.shape)
        if aligned.shape[layout.axis] != 1:
            return None
        entries = aligned.movedim(layout.axis, 0)[:, None]

        def gradient(graph: Graph, count: int, delta: Any) -> Any:
            factor = slope(graph.nodes[use.place])
            return by_example(delta if factor is None else delta * factor, layout, count)

        return [Entries(use, gradient, entries)]

    return reader


def _channelwise(slope: Callable[[Any], Any]) -> Callable[[Any, Use, Layout, int], list[Piece] | None]:
    """Read a parameter (channels,) in the same way, where channels are the result's second axis."""
    aligned = _elementwise(slope)

    def reader(node: Any, use: Use, layout: Layout, n: int) -> list[Piece] | None:
        trailing = len(output_shape(node)) - 2
        if use.entries.ndim != 1 or trailing < 0:
            return None
        entries = use.entries.reshape(-1, *(1,) * trailing)
        return aligned(node, dataclasses.replace(use, entries=entries), layout, n)

    return reader


def _identity(_: Any) -> None:
    return None


def _normalized_by_layer(node: Any) -> Any:
    return (node._saved_input - node._saved_result1) * node._saved_result2


def _normalized_by_group(node: Any) -> Any:
    x, groups = node._saved_input, int(node._saved_group)
    grouped = x.reshape(len(x), groups, -1)
    mean, rstd = (s.reshape(len(x), groups, 1) for s in (node._saved_result1, node._saved_result2))
    return ((grouped - mean) * rstd).reshape(x.shape)


def _normalized_by_batch(node: Any) -> Any:
    x = node._saved_input
    if bool(node._saved_training):
        mean, rstd = node._saved_result1, node._saved_result2
    else:
        epsilon = node._saved_epsilon if hasattr(node, "_saved_epsilon") else node._saved_eps  # cuDNN's, and others
        mean, rstd = node._saved_running_mean, (node._saved_running_var + float(epsilon)).rsqrt()
    shape = (1, -1, *(1,) * (x.ndim - 2))
    return (x - mean.reshape(shape)) * rstd.reshape(shape)


def _normalized_by_root(node: Any) -> Any:
    return node._saved_input * node._saved_result1


def _matrix_of(use: Use, transposed: bool) -> Any:
    if use.entries.ndim != 2:
        return None
    return use.entries.t() if transposed else use.entries


def _product(inputs: str, *, first: bool) -> Callable[[Any, Use, Layout, int], list[Piece] | None]:
    """Read a factor of a matrix product: the left one with `first`, else the right one."""
    axis = 1 if first else 0

    def reader(node: Any, use: Use, layout: Layout, n: int) -> list[Piece] | None:
        entries = _matrix_of(use, transposed=not first)
        if entries is None or layout.axis != axis:
            return None

        def activations(graph: Graph, count: int) -> Any:
            return by_example(getattr(graph.nodes[use.place], inputs), layout, count)

        def backprops(graph: Graph, count: int, delta: Any) -> Any:
            alpha = float(getattr(graph.nodes[use.place], "_saved_alpha", 1.0))
            return by_example(delta if alpha == 1.0 else alpha * delta, layout, count)

        return [Outer(use, entries, output_shape(node)[axis] // n, activations, backprops)]

    return reader


_MOST_MATRICES = 64


def _batched_product(inputs: str, *, first: bool) -> Callable[[Any, Use, Layout, int], list[Piece] | None]:
    """Read several matrices of a parameter, each a factor of a product of its own."""
    axis = 2 if first else 1

    def reader(node: Any, use: Use, layout: Layout, n: int) -> list[Piece] | None:
        if use.entries.ndim != 3 or layout.axis != axis or len(use.entries) > _MOST_MATRICES:
            return None
        pieces: list[Piece] = []
        for b in range(len(use.entries)):
            entries = use.entries[b] if first else use.entries[b].t()
            inner = Layout(layout.axis - 1, layout.minor)

            def activations(graph: Graph, count: int, b: int = b, inner: Layout = inner) -> Any:
                return by_example(getattr(graph.nodes[use.place], inputs)[b], inner, count)

            def backprops(graph: Graph, count: int, delta: Any, b: int = b, inner: Layout = inner) -> Any:
                return by_example(delta[b], inner, count)

            pieces.append(Outer(use, entries, output_shape(node)[axis] // n, activations, backprops))
        return pieces

    return reader


def _convolution(node: Any, use: Use, layout: Layout, n: int) -> list[Piece] | None:
    transposed, groups = bool(node._saved_transposed), int(node._saved_groups)
    if layout.axis != 0 or use.entries.ndim != len(output_shape(node)):
        return None
    # A transposed convolution's weight is (inputs, outputs / groups, ...): it sees windows of its result's gradient.
    weight = use.entries.movedim(1, -1).reshape(groups, len(use.entries) // groups, -1)
    kernel = tuple(int(size) for size in use.entries.shape[2:])
    per_example = output_shape(node)[0] // n
    spatial = tuple(int(s) for s in (node._saved_input.shape[2:] if transposed else output_shape(node)[2:]))
    positions = per_example * math.prod(spatial)

    def columns(graph: Graph, count: int, array: Any, group: int) -> Any:
        now = graph.nodes[use.place]
        return by_example(
            windows(_group(array, group, groups), kernel, now, limit=spatial), Layout(0, layout.minor), count
        ).flatten(1, 2)

    def pixels(graph: Graph, count: int, array: Any, group: int) -> Any:
        part = _group(array, group, groups).flatten(2).transpose(1, 2)
        return by_example(part, Layout(0, layout.minor), count).flatten(1, 2)

    pieces: list[Piece] = []
    for g in range(groups):

        def inputs(graph: Graph, count: int, g: int = g) -> Any:
            array = graph.nodes[use.place]._saved_input
            return pixels(graph, count, array, g) if transposed else columns(graph, count, array, g)

        def gradients(graph: Graph, count: int, delta: Any, g: int = g) -> Any:
            return columns(graph, count, delta, g) if transposed else pixels(graph, count, delta, g)

        entries = weight[g].t() if transposed else weight[g]
        pieces.append(Outer(use, entries, positions, inputs, gradients))
    return pieces


def _group(array: Any, group: int, groups: int) -> Any:
    width = array.shape[1] // groups
    return array[:, group * width : (group + 1) * width]


def _embedding(node: Any, use: Use, layout: Layout, n: int) -> list[Piece] | None:
    if bool(node._saved_scale_grad_by_freq) or use.entries.ndim != 2:
        return None
    if not bool((use.entries.flatten() == numbers_up_to(use.entries.numel(), use.entries.device)).all()):
        return None

    def indices(graph: Graph, count: int) -> Any:
        return by_example(graph.nodes[use.place]._saved_indices, layout, count).flatten(1)

    def backprops(graph: Graph, count: int, delta: Any) -> Any:
        return by_example(delta, layout, count).flatten(1, -2)

    padding = int(node._saved_padding_idx)
    padding = -1 if padding >= 2**63 else padding
    return [Gather(use, node._saved_indices.numel() // n, padding, indices, backprops)]


_Reader = Callable[[Any, Use, Layout, int], "list[Piece] | None"]

# By an operation's name and the number of the input that is the parameter.
_READERS: Mapping[tuple[str, int], _Reader] = {
    ("Addmm", 0): _elementwise(lambda node: _not_one(node._saved_beta)),
    ("Addmm", 1): _product("_saved_mat2", first=True),
    ("Addmm", 2): _product("_saved_mat1", first=False),
    ("Mm", 0): _product("_saved_mat2", first=True),
    ("Mm", 1): _product("_saved_self", first=False),
    ("Bmm", 0): _batched_product("_saved_mat2", first=True),
    ("Bmm", 1): _batched_product("_saved_self", first=False),
    ("Convolution", 1): _convolution,
    ("Convolution", 2): _channelwise(_identity),
    ("Embedding", 0): _embedding,
    ("Add", 0): _elementwise(_identity),
    ("Add", 1): _elementwise(lambda node: _not_one(node._saved_alpha)),
    ("Sub", 0): _elementwise(_identity),
    ("Sub", 1): _elementwise(lambda node: -float(node._saved_alpha)),
    ("Mul", 0): _elementwise(lambda node: node._saved_other),
    ("Mul", 1): _elementwise(lambda node: node._saved_self),
    ("Div", 0): _elementwise(lambda node: 1.0 / node._saved_other),
    ("PreluKernel", 1): _elementwise(lambda node: node._saved_self.clamp(max=0.0)),
    ("NativeLayerNorm", 1): _elementwise(_normalized_by_layer),
    ("NativeLayerNorm", 2): _elementwise(_identity),
    ("FusedRmsNorm", 1): _elementwise(_normalized_by_root),
    ("NativeGroupNorm", 1): _channelwise(_normalized_by_group),
    ("NativeGroupNorm", 2): _channelwise(_identity),
    ("NativeBatchNorm", 1): _channelwise(_normalized_by_batch),
    ("NativeBatchNorm", 2): _channelwise(_identity),
    ("CudnnBatchNorm", 1): _channelwise(_normalized_by_batch),
    ("CudnnBatchNorm", 2): _channelwise(_identity),
}


def _not_one(number: Any) -> float | None:
    return None if float(number) == 1.0 else float(number)
