"""Networks of convolutions: the layers' columns once, matrix products, and one backward sweep.

Images are channels-last inside, so that what a window shows is a few contiguous runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kernelgrowth._backend.arrays import array_namespace, as_array
from kernelgrowth.nets.activations import ACTIVATIONS
from kernelgrowth.nets.factors import GradientFactors, LayerFactors
from kernelgrowth.nets.graph import Graph, check_input_shape, make_graph
from kernelgrowth.nets.layered import Layer, Layered, scaled
from kernelgrowth.nets.products import matrix_product
from kernelgrowth.nets.stages import WeightStage
from kernelgrowth.nets.sweeps import (
    Trace,
    Weights,
    backpropagate,
    examples_together,
    for_each_part,
    gather,
    prepare,
    propagate,
    slices,
)

__all__ = ["Convolutional"]


class Convolutional(Layered):
    """A network on images whose layers are `_graph`."""

    input_shape: Sequence[int]
    _graph: Graph

    def _set_graph(self, layers: Any) -> None:
        """Check the arguments, and set what the network consists of."""
        object.__setattr__(self, "input_shape", check_input_shape(self.input_shape))
        object.__setattr__(self, "_graph", make_graph(self.input_shape, layers))
        self._set_layers(self._graph.places, self._graph.num_sums)

    @property
    def num_inputs(self) -> int:
        """C_in·H·W."""
        return math.prod(self.input_shape)

    @property
    def num_outputs(self) -> int:
        """C."""
        return self._graph.out_shape[0]

    @property
    def homogeneity_degree(self) -> int | None:
        """The k with f(c θ) = c^k f(θ) for every c > 0, or None where there is none.

        It is L for linear and ReLU nets without residual blocks and without biases after the first layer. The two ways
        through a residual block have one degree where as many layers with weights lie on each, which is rare.
        """
        return self._graph.homogeneity_degree(
            [layer.has_bias for layer in self._layers], ACTIVATIONS[self.activation].positively_homogeneous
        )

    def block_matrix(self, name: str, array: Any) -> Any:
        """Return an array of a weight's shape in the order of its gradient block.

        Parameters
        ----------
        name : str
            A layer, as in `layer_names`.
        array : array
            Of the shape of the layer's weight: (C_out, C_in, kh, kw) or (d_out, d_in).

        Returns
        -------
        array (d_out, d_in)
            The columns of a convolution in the order (row, column, channel); it may share memory with `array`.
        """
        layers = {layer.name: stage for layer, stage in zip(self._layers, self._graph.stages, strict=True)}
        if name not in layers:
            raise ValueError(f"name must be one of {', '.join(map(repr, layers))}, got {name!r}")
        if tuple(array.shape) != layers[name].weight_shape:
            raise ValueError(f"array must have the weight's shape {layers[name].weight_shape}, got {array.shape}")
        return layers[name].matrix(array)

    def forward(self, params: Mapping[str, Any], x: Any, *, check_finite: bool = True) -> Any:
        """Return the outputs f(x).

        Parameters
        ----------
        params : mapping of str to array
            As returned by `init`.
        x : array (N, C_in, H, W) or (N, C_in·H·W)
            N ≥ 1 examples, of the parameters' dtype and kind.
        check_finite : bool
            Whether NaN and infinite inputs are refused.

        Returns
        -------
        array (N, C)

        Raises
        ------
        TypeError
            If dtypes or kinds of arrays are mixed.
        ValueError
            If a parameter is missing, unknown or of the wrong shape, or x is of another shape or not finite.
        """
        x = self._check(params, x, check_finite)
        weights = prepare(self._layers, self._graph.stages, params)
        outputs = array_namespace(x).empty((len(x), self.num_outputs), dtype=x.dtype)

        def sweep(part: slice) -> None:
            outputs[part], _ = self._propagate(weights, self._images(x[part]), keep=False)

        for_each_part(sweep, self._parts(x), x)
        return outputs

    def vjp(
        self, params: Mapping[str, Any], x: Any, *, check_finite: bool = True
    ) -> tuple[Any, Callable[[Any], dict[str, Any]]]:
        """Return the outputs and the vector-Jacobian product at them.

        Parameters
        ----------
        params, x, check_finite
            As for `forward`.

        Returns
        -------
        outputs : array (N, C)
        pullback : callable
            df (N, C), of the outputs' dtype -> gradient of Σ_nc df_nc f_c(x_n) with respect to every parameter, as a
            dict like `params`. It costs about twice the forward pass and may be called repeatedly. What it keeps is
            each layer's input, not its columns.
        """
        x = self._check(params, x, check_finite)
        weights = prepare(self._layers, self._graph.stages, params)
        outputs = array_namespace(x).empty((len(x), self.num_outputs), dtype=x.dtype)
        parts = self._parts(x)
        traces = [Trace([], {}) for _ in parts]

        def sweep(index: int) -> None:
            part = parts[index]
            outputs[part], traces[index] = self._propagate(weights, self._images(x[part]), keep=True)

        for_each_part(sweep, range(len(parts)), x)

        @np.errstate(invalid="ignore")
        def pullback(df: Any) -> dict[str, Any]:
            df = as_array("df", df, ndim=2, dtype=outputs.dtype, finite=False)
            if df.shape != outputs.shape:
                raise ValueError(f"df must have the shape {outputs.shape} of the outputs, got {df.shape}")
            xp, stages = array_namespace(outputs), self._graph.stages
            matrices = [xp.zeros((stage.d_out, stage.d_in), dtype=outputs.dtype) for stage in stages]
            biases = [xp.zeros(stage.d_out, dtype=outputs.dtype) for stage in stages]
            for part, trace in zip(parts, traces, strict=True):
                for index, delta in backpropagate(self._graph, weights, trace, df[part][:, None]):
                    stage = stages[index]
                    rows = delta.reshape(-1, stage.d_out)
                    columns = gather(stage, trace.inputs[index])
                    matrices[index] += matrix_product(rows.T, columns.reshape(-1, stage.d_in))
                    if self._layers[index].has_bias:
                        biases[index] += rows.sum(axis=0)
            grads: dict[str, Any] = {}
            for layer, stage, matrix, bias in zip(self._layers, stages, matrices, biases, strict=True):
                grads[layer.weight] = stage.weight(scaled(matrix, layer.common))
                if layer.has_bias:
                    grads[layer.bias] = scaled(bias, layer.scales.bias)
            return grads

        return outputs, pullback

    # Checks of values find what is not finite.
    @np.errstate(invalid="ignore")
    def gradient_factors(self, params: Mapping[str, Any], x: Any, *, check_finite: bool = True) -> GradientFactors:
        """Return every example's gradient of every output, factored layer by layer.

        Parameters
        ----------
        params, x, check_finite
            As for `forward`.

        Returns
        -------
        GradientFactors
            Contiguous arrays: (N, T, d_in) and (N, C, T, d_out) of a convolution, (N, d_in) and (N, C, d_out) of a
            dense layer. Memory is N·T·(d_in + C·d_out) numbers for each layer and a few MiB of scratch a thread, time
            that of C backward passes without the weights' gradients.
        """
        x = self._check(params, x, check_finite)
        weights = prepare(self._layers, self._graph.stages, params)
        xp = array_namespace(x)
        n, c = len(x), self.num_outputs
        outputs = xp.empty((n, c), dtype=x.dtype)
        stages = self._graph.stages
        activations = [xp.empty((n, stage.positions, stage.d_in), dtype=x.dtype) for stage in stages]
        backprops = [xp.empty((n, c, stage.positions * stage.d_out), dtype=x.dtype) for stage in stages]
        # One row of unit vectors serves all examples: broadcasting grows it only where φ' tells the examples apart.
        unit = xp.eye(c, dtype=x.dtype)[None]
        together = examples_together(stages, x, c)

        def sweep(part: slice) -> None:
            columns = [array[part] for array in activations]
            outputs[part], trace = self._propagate(weights, self._images(x[part]), keep=True, columns=columns)
            for some in slices(len(outputs[part]), together):
                targets = [array[part][some] for array in backprops]
                for _ in backpropagate(self._graph, weights, trace.of(some), unit, targets):
                    pass

        for_each_part(sweep, self._parts(x), x)
        blocks = {
            layer.name: _factors(layer, stage, a, d)
            for layer, stage, a, d in zip(self._layers, stages, activations, backprops, strict=True)
        }
        return self._gradient_factors(params, x, outputs, blocks)

    def _propagate(
        self, weights: Sequence[Weights], images: Any, *, keep: bool, columns: Sequence[Any] | None = None
    ) -> tuple[Any, Trace]:
        return propagate(self._graph, ACTIVATIONS[self.activation], weights, images, keep=keep, columns=columns)

    def _images(self, x: Any) -> Any:
        """Return examples as contiguous channels-last images."""
        images = x.reshape(len(x), *self.input_shape).transpose(0, 2, 3, 1)
        return array_namespace(x).ascontiguousarray(images)

    def _parts(self, x: Any) -> list[slice]:
        """Divide the examples into those that go through the network together."""
        return list(slices(len(x), examples_together(self._graph.stages, x, 1)))

    def _check_inputs(self, x: Any, check_finite: bool) -> Any:
        x = as_array("x", x, ndim=(2, 4), finite=check_finite)
        if len(x) == 0 or x.shape[1:] not in (self.input_shape, (self.num_inputs,)):
            images = ", ".join(map(str, self.input_shape))
            raise ValueError(f"x must have shape (N, {images}) or (N, {self.num_inputs}) with N >= 1, got {x.shape}")
        return x


def _factors(layer: Layer, stage: WeightStage, activations: Any, backprops: Any) -> LayerFactors:
    n, c = backprops.shape[:2]
    if len(stage.out_shape) == 1:
        activations = activations.reshape(n, stage.d_in)
    else:
        backprops = backprops.reshape(n, c, stage.positions, stage.d_out)
    return LayerFactors(activations, backprops, bias=layer.has_bias, scale=layer.common**2)
