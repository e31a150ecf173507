"""Per-example gradients of a dense network, kept as outer products and never expanded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["DenseFactors", "GradientFactors"]


@dataclass(frozen=True)
class DenseFactors:
    """Gradients of one dense layer for N examples and C outputs.

    ``∂f_c(x_n)/∂W = √scale · backprops[n, c] activations[n]ᵀ`` and, with a bias,
    ``∂f_c(x_n)/∂b = √scale · backprops[n, c]``.

    Attributes
    ----------
    activations : array (N, d_in)
        The layer's input, times (weight multiplier / bias multiplier) where there is a bias and these differ.
    backprops : array (N, C, d_out)
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
    blocks : dict of str to DenseFactors
        Layer name -> factors, in the order of the forward pass.
    """

    predictions: Any
    blocks: dict[str, DenseFactors]
