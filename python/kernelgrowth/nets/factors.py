"""Per-example gradients of a network's layers, kept as outer products and never expanded."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["GradientFactors", "LayerFactors"]


@dataclass(frozen=True)
class LayerFactors:
    """Gradients of one layer's weight, as a matrix (d_out, d_in), for N examples and C outputs.

    ``∂f_c(x_n)/∂W = √scale · Σ_t backprops[n, c, t] activations[n, t]ᵀ`` and, with a bias,
    ``∂f_c(x_n)/∂b = √scale · Σ_t backprops[n, c, t]``, t running over the positions at which the layer is applied.

    Attributes
    ----------
    activations : array (N, d_in) of a dense layer, or (N, T, d_in) of a convolution
        The layer's input, times (weight multiplier / bias multiplier) where there is a bias and these differ.
    backprops : array (N, C, d_out) or (N, C, T, d_out)
        ∂f_c(x_n)/∂z of the layer's pre-activation z.
    bias : bool
        Whether the layer has a trained bias.
    scale : float
        Square of the multiplier common to weight and bias.
    """

    activations: Any
    backprops: Any
    bias: bool
    scale: float


@dataclass(frozen=True)
class GradientFactors:
    """All of ∂f/∂θ for N examples, layer by layer.

    Attributes
    ----------
    predictions : array (N, C)
        The outputs f(x).
    blocks : dict of str to LayerFactors
        Layer name -> factors, in the order of the forward pass.
    proof : callable, optional
        Tells whether bounds on parameters and inputs show that every value is finite.
    """

    predictions: Any
    blocks: dict[str, LayerFactors]
    proof: Callable[[], bool] = lambda: False

    @functools.cached_property
    def finite(self) -> bool:
        """True where every value is known to be finite, which is found out when it is asked; False says nothing."""
        return self.proof()
