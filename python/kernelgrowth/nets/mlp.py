"""The multilayer perceptron: one layered forward pass and one backward sweep, for training and for kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from kernelgrowth._backend.arrays import array_namespace, as_array
from kernelgrowth._backend.checks import check_integer
from kernelgrowth.nets.activations import ACTIVATIONS
from kernelgrowth.nets.factors import GradientFactors, LayerFactors
from kernelgrowth.nets.layered import Layered, Place, scaled
from kernelgrowth.nets.products import matrix_product

__all__ = ["MLP"]


@dataclass(frozen=True)
class _Trace:
    """What the backward sweep needs of a forward pass: each layer's input, and φ' at each hidden pre-activation."""

    inputs: list[Any]
    derivatives: list[Any]


@dataclass(frozen=True)
class MLP(Layered):
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

    def __post_init__(self) -> None:
        if isinstance(self.widths, str | bytes) or not isinstance(self.widths, Sequence | np.ndarray):
            raise TypeError(f"widths must be a sequence of integers, got {self.widths!r}")
        if len(self.widths) < 2:
            raise ValueError(f"widths must hold at least the input's and the output's width, got {list(self.widths)}")
        widths = tuple(check_integer(f"widths[{i}]", width, minimum=1) for i, width in enumerate(self.widths))
        object.__setattr__(self, "widths", widths)
        last = len(widths) - 2
        self._set_layers(
            {f"layer{i + 1}": Place((widths[i + 1], widths[i]), first=i == 0, last=i == last) for i in range(last + 1)}
        )

    @property
    def num_inputs(self) -> int:
        """The width of the input."""
        return self.widths[0]

    @property
    def num_outputs(self) -> int:
        """C."""
        return self.widths[-1]

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
                grads[layer.weight] = scaled(matrix_product(delta.T, inputs), layer.scales.weight)
                if layer.has_bias:
                    grads[layer.bias] = scaled(delta.sum(axis=0), layer.scales.bias)
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
        blocks: dict[str, LayerFactors] = {}
        deltas = self._backpropagate(params, trace, unit)
        for layer, inputs, delta in zip(self._layers, trace.inputs, deltas, strict=True):
            blocks[layer.name] = LayerFactors(
                activations=xp.ascontiguousarray(scaled(inputs, layer.scales.weight / layer.common, copy=True)),
                backprops=xp.ascontiguousarray(xp.broadcast_to(delta, (len(x), *delta.shape[1:]))),
                bias=layer.has_bias,
                scale=layer.common**2,
            )
        return self._gradient_factors(params, x, outputs, blocks)

    # Checks of values find what is not finite.
    @np.errstate(invalid="ignore")
    def _propagate(self, params: Mapping[str, Any], x: Any, *, keep: bool) -> tuple[Any, _Trace]:
        activation = ACTIVATIONS[self.activation]
        trace = _Trace([], [])
        h = z = x
        for layer in self._layers:
            if keep:
                trace.inputs.append(h)
            z = scaled(matrix_product(h, params[layer.weight].T), layer.scales.weight)
            if layer.has_bias:
                z += scaled(params[layer.bias], layer.scales.bias, copy=True)
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
            flat = matrix_product(delta.reshape(-1, layer.fan_out), params[layer.weight])
            delta = scaled(flat, layer.scales.weight).reshape(*delta.shape[:2], layer.fan_in)
            deltas.append(delta if derivative is None else delta * derivative[:, None, :])
        return deltas[::-1]

    def _check_inputs(self, x: Any, check_finite: bool) -> Any:
        x = as_array("x", x, ndim=2, finite=check_finite)
        if x.shape[0] == 0 or x.shape[1] != self.num_inputs:
            raise ValueError(f"x must have shape (N, {self.num_inputs}) with N >= 1, got {x.shape}")
        return x
