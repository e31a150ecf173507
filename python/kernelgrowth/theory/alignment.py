"""How far the kernel of a trained linear network can align with its task."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

from kernelgrowth._backend.checks import check_integer, check_number

__all__ = ["LayerRates", "check_layer_rates", "max_alignment", "spike_strength"]

LayerRates = Sequence[float] | Mapping[str, float]


def max_alignment(depth: int, rank: int, layer_lr: LayerRates | None = None, *, explained: float = 1.0) -> float:
    """Alignment of the final kernel of a deep linear network trained from small initialisation on whitened data.

    ``A = (1 + a) / sqrt((1 + a)^2 + r - 1)`` with the spike strength ``a = eta_1 sum_{l>=2} 1/eta_l``, which is
    ``L - 1`` for equal rates: then ``A = L / sqrt(L^2 + r - 1)``.

    Parameters
    ----------
    depth : int
        Number of weight layers L, at least 1.
    rank : int
        Rank r of the whitened inputs, at least 1.
    layer_lr : sequence of L floats or mapping, optional
        Learning rates of the layers, input layer first, or by name ("layer1", ..., missing ones are 1); only their
        ratios matter. Equal by default.
    explained : float in [0, 1]
        Fraction R^2 of the squared targets that a linear function of the inputs explains; the result is multiplied
        by it.

    Returns
    -------
    float
        ``y^T K y / (|y|^2 |K|_F)`` of the plain (not rate-weighted) final kernel.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or out of range.

    Notes
    -----
    Derivation: at the end ``K = c X [I + a beta beta^T] X^T`` (see `final_kernel`); on whitened inputs its
    eigenvalues are ``c N`` times ``1 + a`` (once, along ``X beta``) and 1 (r - 1 times). The linear part of the
    targets lies along ``X beta`` and the rest in the null space of K, so ``y^T K y = R^2 |y|^2 c N (1 + a)``,
    divided by ``|y|^2 c N sqrt((1 + a)^2 + r - 1)``.

    Valid for linear networks at vanishing initial scale (error of order sigma^2); for ReLU networks a guide, not a
    bound.
    """
    depth = check_integer("depth", depth, minimum=1)
    rank = check_integer("rank", rank, minimum=1)
    explained = check_number("explained", explained, minimum=0.0, maximum=1.0)
    spike = 1.0 + spike_strength(check_layer_rates(layer_lr, depth))
    return explained * spike / math.hypot(spike, math.sqrt(rank - 1))


def spike_strength(rates: Sequence[float]) -> float:
    """Return ``a = eta_1 sum_{l>=2} 1/eta_l``: the final kernel is that of ``I + a beta beta^T``, up to a factor."""
    return sum(rates[0] / rate for rate in rates[1:])


def check_layer_rates(layer_lr: Any, depth: int) -> tuple[float, ...]:
    """Return the rates of the `depth` layers, input layer first; 1 for each when `layer_lr` is None."""
    if layer_lr is None:
        return (1.0,) * depth
    names = [f"layer{number}" for number in range(1, depth + 1)]
    if isinstance(layer_lr, Mapping):
        unknown = [name for name in layer_lr if name not in names]
        if unknown:
            raise ValueError(f"layer_lr must name layers among {names}, got {unknown[0]!r}")
        values = [layer_lr.get(name, 1.0) for name in names]
    else:
        if isinstance(layer_lr, (str, bytes, numbers.Number)) or not hasattr(layer_lr, "__iter__"):
            raise TypeError(f"layer_lr must be a sequence of {depth} rates or a mapping, got {layer_lr!r}")
        values = list(layer_lr)
        if len(values) != depth:
            raise ValueError(f"layer_lr must have one rate for each of the {depth} layers, got {len(values)}")
    return tuple(
        check_number(f"layer_lr of {name}", value, minimum=0.0, exclusive_minimum=True)
        for name, value in zip(names, values, strict=True)
    )
