"""Convolutional networks: the layers' columns once, matrix products, and one backward sweep, in parts that fit caches.

Images are channels-last inside, so that what a window shows is a few contiguous runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from kernelgrowth._backend.arrays import array_namespace, as_array, is_cupy
from kernelgrowth._backend.checks import check_integer
from kernelgrowth._backend.parallel import for_each
from kernelgrowth.nets.activations import ACTIVATIONS
from kernelgrowth.nets.factors import GradientFactors, LayerFactors
from kernelgrowth.nets.layered import Layer, Layered, scaled
from kernelgrowth.nets.layers import LAYERS, LayerKind, layer_to_config
from kernelgrowth.nets.products import matrix_product
from kernelgrowth.nets.stages import FixedStage, Stage, WeightStage, make_stage

__all__ = ["CNN"]

# Examples go through the whole network in parts whose largest columns take about so many bytes: small enough to stay in
# a cache, large enough for the matrix products (calibrated on Zen 4). Parts depend on shapes alone, so sums do too.
_PART_BYTES = 3 << 20
_PART_BYTES_CUDA = 256 << 20


@dataclass(frozen=True)
class _Weights:
    """A layer's parameters as its products take them: z = up-product of ratio·h, and its transpose."""

    ratio: float  # what the inputs are multiplied with, so that weight and bias have one multiplier
    up: Any  # (d_in, d_out)
    down: Any  # (d_out, d_in)
    bias: Any  # (T·d_out,) or None


@dataclass(frozen=True)
class _Trace:
    """What the backward sweep needs of some examples: each layer's input times its ratio, and φ' behind it or None."""

    inputs: list[Any]
    derivatives: list[Any]


@dataclass(frozen=True)
class CNN(Layered):
    """A convolutional network, with the same nonlinearity after every layer with weights but the last.

    Parameters
    ----------
    input_shape : (C_in, H, W) or (H, W)
        Of an example; (H, W) has one channel.
    layers : sequence of Conv, AveragePool, GlobalAveragePool, Flatten, Dense
        From `kernelgrowth.nets`, in the order of the forward pass: at least one with weights, and a vector at the end.
    activation : {"relu", "linear", "tanh", "erf"}
        φ, the same in every hidden layer.
    parameterization : {"standard", "ntk", "mup"}
        Multipliers and initial variances, see `kernelgrowth.nets.PARAMETERIZATIONS`; a convolution's fan_in is
        C_in·kh·kw.
    sigma : float
        Scale of the weights at initialisation, at least 0: every weight is proportional to it.
    bias : bool or "hidden"
        Trained biases nowhere, in every layer, or in every layer but the last. They start at 0.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is of the wrong type or out of range, or the layer that does not fit what comes before.

    Notes
    -----
    Parameters are a dict ``{"conv1.weight": (C_out, C_in, kh, kw), "conv1.bias": (C_out,), ..., "dense1.weight":
    (d_out, d_in), ...}`` of NumPy or CuPy arrays of one dtype, float32 or float64; each kind of layer counts from 1.
    Inputs are images (N, C_in, H, W), or rows (N, C_in·H·W) in that order, of the same kind and dtype; nothing is cast.

    A convolution's gradient block is a matrix (C_out, kh·kw·C_in) with columns in the order (row, column, channel);
    `block_matrix` brings an array of the weight's shape, such as a preconditioner, into that form.

    Examples
    --------
    >>> import kernelgrowth as kg
    >>> from kernelgrowth.nets import CNN, Conv, Dense, Flatten
    >>> net = CNN((3, 32, 32), [Conv(32), Conv(64, stride=2), Conv(64, stride=2), Flatten(), Dense(10)])
    >>> net.layer_names
    ['conv1', 'conv2', 'conv3', 'dense1']
    """

    input_shape: Sequence[int]
    layers: Sequence[LayerKind]
    activation: str = "relu"
    parameterization: str = "standard"
    sigma: float = 1.0
    bias: bool | Literal["hidden"] = False
    _stages: tuple[Stage, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "input_shape", _check_input_shape(self.input_shape))
        stages = _make_stages(self.input_shape, self.layers)
        object.__setattr__(self, "layers", tuple(self.layers))
        object.__setattr__(self, "_stages", stages)
        counts: dict[str, int] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for stage in stages:
            if isinstance(stage, WeightStage):
                counts[stage.prefix] = counts.get(stage.prefix, 0) + 1
                shapes[f"{stage.prefix}{counts[stage.prefix]}"] = stage.weight_shape
        self._set_layers(shapes)

    @property
    def num_inputs(self) -> int:
        """C_in·H·W."""
        return math.prod(self.input_shape)

    @property
    def num_outputs(self) -> int:
        """C."""
        return self._stages[-1].out_shape[0]

    def config(self) -> dict[str, Any]:
        """Return a JSON-able description; `kernelgrowth.nets.from_config` rebuilds the net from it."""
        return {
            "kind": "cnn",
            "input_shape": list(self.input_shape),
            "layers": [layer_to_config(layer) for layer in self.layers],
            "activation": self.activation,
            "parameterization": self.parameterization,
            "sigma": self.sigma,
            "bias": self.bias,
        }

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
        layers = {layer.name: stage for layer, stage in zip(self._layers, self._weight_stages, strict=True)}
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
        weights = self._prepare(params)
        outputs = array_namespace(x).empty((len(x), self.num_outputs), dtype=x.dtype)

        def sweep(part: slice) -> None:
            outputs[part], _ = self._propagate(weights, self._images(x[part]), keep=False)

        _for_each(sweep, self._parts(x), x)
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
        weights = self._prepare(params)
        outputs = array_namespace(x).empty((len(x), self.num_outputs), dtype=x.dtype)
        parts = self._parts(x)
        traces = [_Trace([], []) for _ in parts]

        def sweep(index: int) -> None:
            part = parts[index]
            outputs[part], traces[index] = self._propagate(weights, self._images(x[part]), keep=True)

        _for_each(sweep, range(len(parts)), x)

        @np.errstate(invalid="ignore")
        def pullback(df: Any) -> dict[str, Any]:
            df = as_array("df", df, ndim=2, dtype=outputs.dtype, finite=False)
            if df.shape != outputs.shape:
                raise ValueError(f"df must have the shape {outputs.shape} of the outputs, got {df.shape}")
            xp = array_namespace(outputs)
            matrices = [xp.zeros((stage.d_out, stage.d_in), dtype=outputs.dtype) for stage in self._weight_stages]
            biases = [xp.zeros(stage.d_out, dtype=outputs.dtype) for stage in self._weight_stages]
            for part, trace in zip(parts, traces, strict=True):
                for index, delta in self._backpropagate(weights, trace, df[part][:, None]):
                    stage = self._weight_stages[index]
                    rows = delta.reshape(-1, stage.d_out)
                    columns = _gather(stage, trace.inputs[index])
                    matrices[index] += matrix_product(rows.T, columns.reshape(-1, stage.d_in))
                    if self._layers[index].has_bias:
                        biases[index] += rows.sum(axis=0)
            grads: dict[str, Any] = {}
            for layer, stage, matrix, bias in zip(self._layers, self._weight_stages, matrices, biases, strict=True):
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
        weights = self._prepare(params)
        xp = array_namespace(x)
        n, c = len(x), self.num_outputs
        outputs = xp.empty((n, c), dtype=x.dtype)
        stages = self._weight_stages
        activations = [xp.empty((n, stage.positions, stage.d_in), dtype=x.dtype) for stage in stages]
        backprops = [xp.empty((n, c, stage.positions * stage.d_out), dtype=x.dtype) for stage in stages]
        # One row of unit vectors serves all examples: broadcasting grows it only where φ' tells the examples apart.
        unit = xp.eye(c, dtype=x.dtype)[None]
        together = self._examples_together(x, c)

        def sweep(part: slice) -> None:
            columns = [array[part] for array in activations]
            outputs[part], trace = self._propagate(weights, self._images(x[part]), keep=True, columns=columns)
            for some in _slices(len(outputs[part]), together):
                targets = [array[part][some] for array in backprops]
                derivatives = [None if d is None else d[some] for d in trace.derivatives]
                for _ in self._backpropagate(weights, _Trace([], derivatives), unit, targets):
                    pass

        _for_each(sweep, self._parts(x), x)
        blocks = {
            layer.name: _factors(layer, stage, a, d)
            for layer, stage, a, d in zip(self._layers, stages, activations, backprops, strict=True)
        }
        return self._gradient_factors(params, x, outputs, blocks)

    def _prepare(self, params: Mapping[str, Any]) -> list[_Weights]:
        prepared = []
        for layer, stage in zip(self._layers, self._weight_stages, strict=True):
            xp = array_namespace(params[layer.weight])
            matrix = stage.matrix(params[layer.weight])
            bias = None
            if layer.has_bias:
                bias = xp.tile(params[layer.bias] * layer.scales.bias, stage.positions)
            prepared.append(
                _Weights(
                    ratio=layer.scales.weight / layer.common,
                    up=xp.ascontiguousarray(matrix.T) * layer.common,
                    down=xp.ascontiguousarray(matrix) * layer.scales.weight,
                    bias=bias,
                )
            )
        return prepared

    @np.errstate(invalid="ignore")
    def _propagate(
        self, weights: Sequence[_Weights], h: Any, *, keep: bool, columns: Sequence[Any] | None = None
    ) -> tuple[Any, _Trace]:
        """Return the outputs at the images h, and their trace; `columns` receives every layer's."""
        activation = ACTIVATIONS[self.activation]
        trace = _Trace([], [])
        index = 0
        for stage in self._stages:
            if isinstance(stage, FixedStage):
                h = stage.forward(h)
                continue
            applied = weights[index]
            h = scaled(h, applied.ratio, copy=True)
            filled = _gather(stage, h, None if columns is None else columns[index])
            z = matrix_product(filled.reshape(-1, stage.d_in), applied.up).reshape(len(h), -1)
            if applied.bias is not None:
                z += applied.bias
            last = index == len(weights) - 1
            value = z if last else activation.value(z)
            if keep:
                known = last or activation.derivative is None
                trace.inputs.append(h if columns is None else None)
                trace.derivatives.append(None if known else activation.derivative(z, value))  # type: ignore[misc]
            h = value.reshape(len(h), *stage.out_shape)
            index += 1
        return h, trace

    def _backpropagate(
        self, weights: Sequence[_Weights], trace: _Trace, seed: Any, targets: Sequence[Any] | None = None
    ) -> Iterator[tuple[int, Any]]:
        """Yield (ℓ, Σ_c seed[n, k, c] ∂f_c(x_n)/∂z_ℓ) for every layer ℓ from the last to the first.

        `seed` is (n, K, C), or (1, K, C) where all examples share it; what is yielded is (n, K, T·d_out), or
        (1, K, T·d_out) where all examples share that. `targets` of shape (n, K, T·d_out) receive it.
        """
        xp = array_namespace(seed)
        num_vectors = seed.shape[1]
        delta = seed.reshape(-1, *self._stages[-1].out_shape)
        index = len(weights) - 1
        for stage in reversed(self._stages):
            if isinstance(stage, FixedStage):
                delta = stage.backward(delta)
                continue
            delta = delta.reshape(-1, num_vectors, stage.positions * stage.d_out)
            derivative = trace.derivatives[index]
            target = None if targets is None else targets[index]
            if derivative is not None:
                delta = xp.multiply(delta, derivative[:, None, :], out=target)
            elif target is not None:
                target[...] = delta
            yield index, delta
            if index == 0:
                return
            delta = _pull(stage, weights[index].down, delta.reshape(-1, stage.positions, stage.d_out))
            index -= 1

    @property
    def _weight_stages(self) -> list[WeightStage]:
        return [stage for stage in self._stages if isinstance(stage, WeightStage)]

    def _images(self, x: Any) -> Any:
        """Return examples as contiguous channels-last images."""
        images = x.reshape(len(x), *self.input_shape).transpose(0, 2, 3, 1)
        return array_namespace(x).ascontiguousarray(images)

    def _parts(self, x: Any) -> list[slice]:
        """Divide the examples into those that go through the network together."""
        return list(_slices(len(x), self._examples_together(x, 1)))

    def _examples_together(self, x: Any, num_vectors: int) -> int:
        """Return how many examples go together, so many vectors each."""
        largest = max(max(math.prod(s.in_shape) * num_vectors, s.positions * s.d_in) for s in self._weight_stages)
        return max(1, _part_bytes(x) // int(largest * x.dtype.itemsize))

    def _check_inputs(self, x: Any, check_finite: bool) -> Any:
        x = as_array("x", x, ndim=(2, 4), finite=check_finite)
        if len(x) == 0 or x.shape[1:] not in (self.input_shape, (self.num_inputs,)):
            images = ", ".join(map(str, self.input_shape))
            raise ValueError(f"x must have shape (N, {images}) or (N, {self.num_inputs}) with N >= 1, got {x.shape}")
        return x


def _check_input_shape(value: Any) -> tuple[int, ...]:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence | np.ndarray):
        raise TypeError(f"input_shape must be (channels, height, width) or (height, width), got {value!r}")
    if len(value) not in (2, 3):
        raise ValueError(f"input_shape must be (channels, height, width) or (height, width), got {tuple(value)}")
    shape = tuple(check_integer(f"input_shape[{i}]", size, minimum=1) for i, size in enumerate(value))
    return shape if len(shape) == 3 else (1, *shape)


def _make_stages(input_shape: Sequence[int], layers: Any) -> tuple[Stage, ...]:
    if not isinstance(layers, Sequence) or isinstance(layers, str | bytes):
        raise TypeError(f"layers must be a sequence of layers of kernelgrowth.nets, got {layers!r}")
    stages: list[Stage] = []
    channels, height, width = input_shape
    shape: tuple[int, ...] = (height, width, channels)
    for i, layer in enumerate(layers):
        if not isinstance(layer, LayerKind):
            names = ", ".join(kind.__name__ for kind in LAYERS.values())
            raise TypeError(f"layers[{i}] must be one of {names}, got {layer!r}")
        try:
            stages.append(make_stage(layer, shape))
        except ValueError as error:
            raise ValueError(f"layers[{i}]: {error}") from None
        shape = stages[-1].out_shape
    if not any(isinstance(stage, WeightStage) for stage in stages):
        raise ValueError(f"layers must hold at least one Conv or Dense, got {list(layers)}")
    if len(shape) != 1:
        raise ValueError(f"layers must end with a vector: put Flatten or GlobalAveragePool last, got {layers[-1]}")
    return tuple(stages)


def _factors(layer: Layer, stage: WeightStage, activations: Any, backprops: Any) -> LayerFactors:
    n, c = backprops.shape[:2]
    if len(stage.out_shape) == 1:
        activations = activations.reshape(n, stage.d_in)
    else:
        backprops = backprops.reshape(n, c, stage.positions, stage.d_out)
    return LayerFactors(activations, backprops, bias=layer.has_bias, scale=layer.common**2)


def _gather(stage: WeightStage, h: Any, columns: Any = None) -> Any:
    if columns is None:
        columns = array_namespace(h).empty((len(h), stage.positions, stage.d_in), dtype=h.dtype)
    stage.gather(array_namespace(h).ascontiguousarray(h), columns)
    return columns


def _pull(stage: WeightStage, down: Any, delta: Any) -> Any:
    """Return the derivatives with respect to a layer's input (m, *in_shape), from those behind it (m, T, d_out)."""
    xp = array_namespace(delta)
    h = xp.empty((len(delta), *stage.in_shape), dtype=delta.dtype)
    together = max(1, _part_bytes(delta) // (stage.positions * stage.d_in * delta.dtype.itemsize))
    for part in _slices(len(delta), together):
        columns = matrix_product(delta[part].reshape(-1, stage.d_out), down)
        stage.scatter(columns.reshape(-1, stage.positions, stage.d_in), h[part])
    return h


def _for_each(sweep: Callable[[Any], None], parts: Sequence[Any], x: Any) -> None:
    """Sweep parts of the examples, on CPUs several at a time."""
    if is_cupy(x):
        for part in parts:
            sweep(part)
    else:
        for_each(sweep, parts)


def _part_bytes(array: Any) -> int:
    return _PART_BYTES_CUDA if is_cupy(array) else _PART_BYTES


def _slices(length: int, step: int) -> Iterator[slice]:
    return (slice(begin, min(begin + step, length)) for begin in range(0, length, step))
