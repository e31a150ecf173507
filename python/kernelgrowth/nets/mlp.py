"""The multilayer perceptron: one layered forward pass and one backward sweep, for training and for kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kernelgrowth._backend.arrays import array_namespace, as_array, float_dtype, to_cuda
from kernelgrowth._backend.checks import check_choice, check_integer, check_number
from kernelgrowth.nets.activations import ACTIVATIONS
from kernelgrowth.nets.factors import DenseFactors, GradientFactors
from kernelgrowth.nets.parameterizations import PARAMETERIZATIONS, LayerScales

__all__ = ["MLP", "from_config"]


@dataclass(frozen=True)
class _Layer:
    name: str
    fan_in: int
    fan_out: int
    has_bias: bool
    scales: LayerScales

    @property
    def weight(self) -> str:
        return f"{self.name}.weight"

    @property
    def bias(self) -> str:
        return f"{self.name}.bias"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {self.weight: (self.fan_out, self.fan_in)}
        if self.has_bias:
            shapes[self.bias] = (self.fan_out,)
        return shapes


@dataclass(frozen=True)
class _Trace:
    """What the backward sweep needs of a forward pass: each layer's input, and φ' at each hidden pre-activation."""

    inputs: list[Any]
    derivatives: list[Any]


@dataclass(frozen=True)
class MLP:
    """A fully connected network f(x) = z_L, z_ℓ = m_ℓ W_ℓ φ(z_{ℓ−1}) + m_bℓ b_ℓ, without a nonlinearity at the output.

    Parameters
    ----------
    widths : sequence of int
        ``[d_in, h_1, ..., C]``: L + 1 numbers for L layers, each at least 1.
    activation : {"relu", "linear", "tanh", "erf"}
        φ, the same in every hidden layer.
    parameterization : {"standard", "ntk", "mup"}
        Multipliers and initial variances, see `kernelgrowth.nets.PARAMETERIZATIONS`.
    sigma : float
        Scale of the weights at initialisation, at least 0: every W_ℓ is proportional to it.
    bias : bool or "hidden"
        Trained biases nowhere, in every layer, or in every layer but the last. They start at 0.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is of the wrong type or out of range.

    Notes
    -----
    Parameters are a dict ``{"layer1.weight": (d_out, d_in), "layer1.bias": (d_out,), "layer2.weight": ...}`` of NumPy
    or CuPy arrays of one dtype, float32 or float64; inputs have to be of the same kind and dtype, nothing is cast.
    Without biases the standard linear net is the product W_L ⋯ W_1 x of the stored matrices, so that gradient flow
    conserves W_ℓ W_ℓᵀ − W_{ℓ+1}ᵀ W_{ℓ+1}.
    """

    widths: Sequence[int]
    activation: str = "relu"
    parameterization: str = "standard"
    sigma: float = 1.0
    bias: bool | Literal["hidden"] = False
    _layers: tuple[_Layer, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.widths, str | bytes) or not isinstance(self.widths, Sequence | np.ndarray):
            raise TypeError(f"widths must be a sequence of integers, got {self.widths!r}")
        if len(self.widths) < 2:
            raise ValueError(f"widths must hold at least the input's and the output's width, got {list(self.widths)}")
        widths = tuple(check_integer(f"widths[{i}]", width, minimum=1) for i, width in enumerate(self.widths))
        check_choice("activation", self.activation, ACTIVATIONS)
        check_choice("parameterization", self.parameterization, PARAMETERIZATIONS)
        if not isinstance(self.bias, bool) and self.bias != "hidden":
            raise ValueError(f"bias must be True, False or 'hidden', got {self.bias!r}")
        depth = len(widths) - 1
        layers = tuple(
            _Layer(
                name=f"layer{index + 1}",
                fan_in=widths[index],
                fan_out=widths[index + 1],
                has_bias=self.bias is True or (self.bias == "hidden" and index < depth - 1),
                scales=PARAMETERIZATIONS[self.parameterization](widths, index),
            )
            for index in range(depth)
        )
        object.__setattr__(self, "widths", widths)
        object.__setattr__(self, "sigma", check_number("sigma", self.sigma, minimum=0))
        object.__setattr__(self, "_layers", layers)

    @property
    def depth(self) -> int:
        """L, the number of layers with weights."""
        return len(self._layers)

    @property
    def layer_names(self) -> list[str]:
        """``["layer1", ..., "layerL"]``."""
        return [layer.name for layer in self._layers]

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every parameter, in the order of the forward pass."""
        return {name: shape for layer in self._layers for name, shape in layer.shapes.items()}

    @property
    def num_inputs(self) -> int:
        """The width of the input."""
        return self.widths[0]

    @property
    def num_outputs(self) -> int:
        """C."""
        return self.widths[-1]

    @property
    def num_parameters(self) -> int:
        """P, the number of trained scalars."""
        return sum(int(np.prod(shape)) for shape in self.parameter_shapes.values())

    @property
    def homogeneity_degree(self) -> int | None:
        """The k with f(c θ) = c^k f(θ) for every c > 0, or None where there is none.

        It is L for linear and ReLU nets without biases after the first layer. A first-layer bias scales with the
        first-layer weights, so a two-layer net with hidden biases keeps the degree 2.
        """
        if not ACTIVATIONS[self.activation].positively_homogeneous and self.depth > 1:
            return None
        return None if any(layer.has_bias for layer in self._layers[1:]) else self.depth

    def config(self) -> dict[str, Any]:
        """Return a JSON-able description; `kernelgrowth.nets.from_config` rebuilds the net from it."""
        return {
            "kind": "mlp",
            "widths": list(self.widths),
            "activation": self.activation,
            "parameterization": self.parameterization,
            "sigma": self.sigma,
            "bias": self.bias,
        }

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
            weight = rng.standard_normal((layer.fan_out, layer.fan_in)) * (self.sigma * layer.scales.std)
            params[layer.weight] = weight.astype(wanted)
            if layer.has_bias:
                params[layer.bias] = np.zeros(layer.fan_out, dtype=wanted)
        return params if device == "cpu" else to_cuda(params)

    def forward(self, params: Mapping[str, Any], x: Any, *, check_finite: bool = True) -> Any:
        """Return the outputs f(x).

        Parameters
        ----------
        params : mapping of str to array
            As returned by `init`.
        x : array (N, d_in)
            N ≥ 1 examples in rows, of the parameters' dtype and kind.
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
            If a parameter is missing, unknown or of the wrong shape, or x is not (N, d_in) or not finite.
        """
        outputs, _ = self._propagate(params, self._check(params, x, check_finite), keep=False)
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
            dict like `params`. It costs about twice the forward pass and may be called repeatedly.
        """
        x = self._check(params, x, check_finite)
        outputs, trace = self._propagate(params, x, keep=True)

        @np.errstate(invalid="ignore")
        def pullback(df: Any) -> dict[str, Any]:
            df = as_array("df", df, ndim=2, dtype=outputs.dtype, finite=False)
            if df.shape != outputs.shape:
                raise ValueError(f"df must have the shape {outputs.shape} of the outputs, got {df.shape}")
            grads: dict[str, Any] = {}
            deltas = [delta[:, 0, :] for delta in self._backpropagate(params, trace, df[:, None, :])]
            for layer, inputs, delta in zip(self._layers, trace.inputs, deltas, strict=True):
                grads[layer.weight] = _scaled(delta.T @ inputs, layer.scales.weight)
                if layer.has_bias:
                    grads[layer.bias] = _scaled(delta.sum(axis=0), layer.scales.bias)
            return grads

        return outputs, pullback

    def gradient_factors(self, params: Mapping[str, Any], x: Any, *, check_finite: bool = True) -> GradientFactors:
        """Return every example's gradient of every output, factored layer by layer.

        Parameters
        ----------
        params, x, check_finite
            As for `forward`.

        Returns
        -------
        GradientFactors
            Arrays are contiguous but may share memory with `x`. Memory is N·(d_in + C·d_out) numbers for each layer,
            time that of C backward passes.
        """
        x = self._check(params, x, check_finite)
        outputs, trace = self._propagate(params, x, keep=True)
        xp = array_namespace(x)
        # One row of unit vectors serves all examples: broadcasting grows it only where φ' tells the examples apart.
        unit = xp.eye(self.num_outputs, dtype=x.dtype)[None]
        blocks: dict[str, DenseFactors] = {}
        deltas = self._backpropagate(params, trace, unit)
        for layer, inputs, delta in zip(self._layers, trace.inputs, deltas, strict=True):
            common = layer.scales.bias if layer.has_bias else layer.scales.weight
            blocks[layer.name] = DenseFactors(
                activations=xp.ascontiguousarray(_scaled(inputs, layer.scales.weight / common, copy=True)),
                backprops=xp.ascontiguousarray(xp.broadcast_to(delta, (len(x), *delta.shape[1:]))),
                bias=layer.has_bias,
                scale=common**2,
            )
        return GradientFactors(predictions=outputs, blocks=blocks)

    # OpenBLAS may raise the invalid flag from lanes that hold no result; checks of values find what is not finite.
    @np.errstate(invalid="ignore")
    def _propagate(self, params: Mapping[str, Any], x: Any, *, keep: bool) -> tuple[Any, _Trace]:
        activation = ACTIVATIONS[self.activation]
        trace = _Trace([], [])
        h = z = x
        for layer in self._layers:
            if keep:
                trace.inputs.append(h)
            z = _scaled(h @ params[layer.weight].T, layer.scales.weight)
            if layer.has_bias:
                z += _scaled(params[layer.bias], layer.scales.bias, copy=True)
            if layer is self._layers[-1]:
                break
            h = activation.value(z)
            if keep:
                trace.derivatives.append(None if activation.derivative is None else activation.derivative(z, h))
        return z, trace

    @np.errstate(invalid="ignore")
    def _backpropagate(self, params: Mapping[str, Any], trace: _Trace, seed: Any) -> list[Any]:
        """Return Σ_c seed[n, k, c] ∂f_c(x_n)/∂z_ℓ, shape (N, K, d_out) or (1, K, d_out), for every layer ℓ.

        `seed` is (N, K, C), or (1, K, C) where all examples share it.
        """
        deltas = [seed]
        for layer, derivative in zip(self._layers[:0:-1], trace.derivatives[::-1], strict=True):
            delta = deltas[-1]
            flat = delta.reshape(-1, layer.fan_out) @ params[layer.weight]
            delta = _scaled(flat, layer.scales.weight).reshape(*delta.shape[:2], layer.fan_in)
            deltas.append(delta if derivative is None else delta * derivative[:, None, :])
        return deltas[::-1]

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
        x = as_array("x", x, ndim=2, finite=check_finite)
        if x.shape[0] == 0 or x.shape[1] != self.num_inputs:
            raise ValueError(f"x must have shape (N, {self.num_inputs}) with N >= 1, got {x.shape}")
        for name, shape in shapes.items():
            array = params[name]
            if not hasattr(array, "dtype") or tuple(array.shape) != shape:
                raise ValueError(f"params[{name!r}] must be an array of shape {shape}, got {_describe(array)}")
        array_namespace(x, *params.values())
        float_dtype(**{f"params[{name!r}]": params[name] for name in shapes}, x=x)
        return x


def from_config(config: Mapping[str, Any]) -> MLP:
    """Rebuild a network from what its `config()` returned.

    Raises
    ------
    TypeError, ValueError
        If `config` is no mapping, of an unknown kind, or holds a key or value that the network does not take.
    """
    if not isinstance(config, Mapping):
        raise TypeError(f"config must be a mapping, got {type(config).__name__}")
    options = dict(config)
    check_choice("config['kind']", options.pop("kind", None), ("mlp",))
    known = ("widths", "activation", "parameterization", "sigma", "bias")
    for key in options:
        if key not in known:
            raise ValueError(f"config must hold only {', '.join(map(repr, known))} and 'kind', got {key!r} as well")
    if "widths" not in options:
        raise ValueError("config must hold 'widths'")
    return MLP(**options)


def _scaled(array: Any, factor: float, *, copy: bool = False) -> Any:
    """Return factor·array, in place unless `copy`; a factor of 1 costs nothing and returns `array` itself."""
    if factor == 1:
        return array
    if copy:
        return array * factor
    array *= factor
    return array


def _describe(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if hasattr(value, "shape") else type(value).__name__
