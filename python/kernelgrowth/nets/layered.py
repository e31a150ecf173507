"""What networks of layers z = m W h + m_b b have in common: parameters, initialisation, checks."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kernelgrowth._backend.arrays import array_namespace, float_dtype, to_cuda
from kernelgrowth._backend.checks import check_choice, check_integer, check_number
from kernelgrowth.nets.activations import ACTIVATIONS
from kernelgrowth.nets.factors import GradientFactors, LayerFactors
from kernelgrowth.nets.parameterizations import PARAMETERIZATIONS, LayerScales

__all__ = ["Layer", "Layered", "Place", "scaled"]

# So many numbers are looked at one by one sooner than bounded.
_FEW = 1 << 19


@dataclass(frozen=True)
class Place:
    """Where a layer with weights stands: whether none come before it, or none after it; σ where it has its own."""

    weight_shape: tuple[int, ...]
    first: bool
    last: bool
    sigma: float | None = None


@dataclass(frozen=True)
class Layer:
    """A layer with weights: its name, the shape (fan_out, ...) of its weight, and its scales."""

    name: str
    weight_shape: tuple[int, ...]
    has_bias: bool
    scales: LayerScales
    sigma: float

    @property
    def fan_out(self) -> int:
        """Outputs (of a convolution, channels)."""
        return self.weight_shape[0]

    @property
    def fan_in(self) -> int:
        """Inputs of one output."""
        return math.prod(self.weight_shape[1:])

    @property
    def weight(self) -> str:
        """The weight's name."""
        return f"{self.name}.weight"

    @property
    def bias(self) -> str:
        """The bias' name."""
        return f"{self.name}.bias"

    @property
    def common(self) -> float:
        """The multiplier common to weight and bias, which a gradient block carries as its scale."""
        return self.scales.bias if self.has_bias else self.scales.weight


class Layered(ABC):
    """A network whose layers with weights are `_layers`, with the same nonlinearity after each of them but the last."""

    activation: str
    parameterization: str
    sigma: float
    bias: bool | Literal["hidden"]
    _layers: tuple[Layer, ...]
    _num_sums: int

    def _set_layers(self, places: Mapping[str, Place], num_sums: int = 0) -> None:
        """Check the arguments that all networks share, and set `_layers` from their names and places.

        `num_sums` is in how many places the network adds up what two of its parts make.
        """
        check_choice("activation", self.activation, ACTIVATIONS)
        check_choice("parameterization", self.parameterization, PARAMETERIZATIONS)
        if not isinstance(self.bias, bool) and self.bias != "hidden":
            raise ValueError(f"bias must be True, False or 'hidden', got {self.bias!r}")
        sigma = check_number("sigma", self.sigma, minimum=0)
        layers = tuple(
            Layer(
                name=name,
                weight_shape=place.weight_shape,
                has_bias=self.bias is True or (self.bias == "hidden" and not place.last),
                scales=PARAMETERIZATIONS[self.parameterization](
                    math.prod(place.weight_shape[1:]), place.weight_shape[0], place.first, place.last
                ),
                sigma=sigma if place.sigma is None else place.sigma,
            )
            for name, place in places.items()
        )
        object.__setattr__(self, "sigma", sigma)
        object.__setattr__(self, "_layers", layers)
        object.__setattr__(self, "_num_sums", num_sums)

    @abstractmethod
    def _check_inputs(self, x: Any, check_finite: bool) -> Any:
        """Return x as an array, checked."""

    @property
    def depth(self) -> int:
        """L, the number of layers with weights."""
        return len(self._layers)

    @property
    def layer_names(self) -> list[str]:
        """Names of the layers with weights, in the order of the forward pass."""
        return [layer.name for layer in self._layers]

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every parameter, in the order of the forward pass."""
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in self._layers:
            shapes[layer.weight] = layer.weight_shape
            if layer.has_bias:
                shapes[layer.bias] = (layer.fan_out,)
        return shapes

    @property
    def num_parameters(self) -> int:
        """P, the number of trained scalars."""
        return sum(math.prod(shape) for shape in self.parameter_shapes.values())

    @property
    def homogeneity_degree(self) -> int | None:
        """The k with f(c θ) = c^k f(θ) for every c > 0, or None where there is none.

        It is L for linear and ReLU nets without biases after the first layer. A first-layer bias scales with the
        first-layer weights, so a two-layer net with hidden biases keeps the degree 2.
        """
        if not ACTIVATIONS[self.activation].positively_homogeneous and self.depth > 1:
            return None
        return None if any(layer.has_bias for layer in self._layers[1:]) else self.depth

    def init(
        self, seed: int = 0, dtype: npt.DTypeLike = np.float64, device: Literal["cpu", "cuda"] = "cpu"
    ) -> dict[str, Any]:
        """Draw initial parameters.

        The normal numbers are drawn in float64 on the host whatever `dtype` and `device`, so the same seed gives the
        same parameters up to rounding, and the same applied weights m W for every parameterisation up to the factors
        that tell them apart.

        Parameters
        ----------
        seed : int
            At least 0.
        dtype : dtype
            float64 or float32.
        device : {"cpu", "cuda"}
            Where the parameters live: NumPy arrays, or CuPy arrays on the current CUDA device.

        Returns
        -------
        dict of str to array
            Shapes as in `parameter_shapes`.

        Raises
        ------
        BackendError
            If CuPy or a device is missing.
        """
        seed = check_integer("seed", seed, minimum=0)
        wanted = np.dtype(dtype)
        if wanted not in (np.dtype(np.float32), np.dtype(np.float64)):
            raise TypeError(f"dtype must be float32 or float64, got {wanted}")
        check_choice("device", device, ("cpu", "cuda"))
        rng = np.random.default_rng(seed)
        params: dict[str, Any] = {}
        for layer in self._layers:
            weight = rng.standard_normal(layer.weight_shape) * (layer.sigma * layer.scales.std)
            params[layer.weight] = weight.astype(wanted)
            if layer.has_bias:
                params[layer.bias] = np.zeros(layer.fan_out, dtype=wanted)
        return params if device == "cpu" else to_cuda(params)

    def _check(self, params: Mapping[str, Any], x: Any, check_finite: bool) -> Any:
        if not isinstance(params, Mapping):
            raise TypeError(f"params must be a dict of arrays, got {type(params).__name__}")
        shapes = self.parameter_shapes
        for name in shapes:
            if name not in params:
                raise ValueError(f"params must hold {', '.join(map(repr, shapes))}, but {name!r} is missing")
        for name in params:
            if name not in shapes:
                raise ValueError(f"params must hold {', '.join(map(repr, shapes))} only, got {name!r} as well")
        x = self._check_inputs(x, check_finite)
        for name, shape in shapes.items():
            array = params[name]
            if not hasattr(array, "dtype") or tuple(array.shape) != shape:
                raise ValueError(f"params[{name!r}] must be an array of shape {shape}, got {_describe(array)}")
        array_namespace(x, *params.values())
        float_dtype(**{f"params[{name!r}]": params[name] for name in shapes}, x=x)
        return x

    def _gradient_factors(
        self, params: Mapping[str, Any], x: Any, predictions: Any, blocks: dict[str, LayerFactors]
    ) -> GradientFactors:
        numbers = sum(block.activations.size + block.backprops.size for block in blocks.values())
        return GradientFactors(predictions, blocks, lambda: numbers > _FEW and self._cannot_overflow(params, x))

    def _cannot_overflow(self, params: Mapping[str, Any], x: Any) -> bool:
        """Whether bounds show that all values of a forward and a backward sweep from unit vectors are finite.

        Entry by entry |W h| <= max_o Σ_i |W_oi| max |h|, and alike for the transpose, where a pixel shows in every
        place of the window; pooling is a mean and φ and φ' are at most 2/√π times their argument and 1. Where a factor
        is below 1 it is taken as 1, so a bound holds for whatever is computed on the way to it. A bound for all layers
        one behind the other then holds for each of two parts side by side, and twice it for their sum.
        """
        forward, backward = _largest(x), 1.0
        for layer in self._layers:
            size = abs(params[layer.weight])
            inputs, outputs = (
                _largest(size.sum(axis=tuple(d for d in range(size.ndim) if d != kept), dtype=np.float64))
                for kept in (0, 1)
            )
            common, weight, bias = layer.common, layer.scales.weight, layer.scales.bias
            multiplier = math.prod(max(1.0, m) for m in (common, weight, weight / common, 2 / math.sqrt(math.pi)))
            forward = forward * max(1.0, inputs) * multiplier
            backward = backward * max(1.0, outputs) * multiplier
            if layer.has_bias:
                forward += _largest(params[layer.bias]) * max(1.0, bias) * multiplier
        # Half of it: sums are rounded.
        return max(forward, backward) < float(np.finfo(x.dtype).max) / 2 * 2.0**-self._num_sums


def _largest(array: Any) -> float:
    """Return the largest absolute value, infinity where one is not finite."""
    largest = max(float(array.max()), -float(array.min()))
    return largest if math.isfinite(largest) else math.inf


def scaled(array: Any, factor: float, *, copy: bool = False) -> Any:
    """Return factor·array, in place unless `copy`; a factor of 1 costs nothing and returns `array` itself."""
    if factor == 1:
        return array
    if copy:
        return array * factor
    array *= factor
    return array


def _describe(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if hasattr(value, "shape") else type(value).__name__
