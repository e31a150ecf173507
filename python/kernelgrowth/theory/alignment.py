"""How far the kernel of a trained linear network can align with its task."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kernelgrowth._backend.checks import check_integer, check_number
from kernelgrowth.theory.arguments import LayerRates, check_layer_rates

__all__ = ["max_alignment", "spike_alignment", "spike_strength"]


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
        ``y^T K y / (|y|^2 |K|_F)`` of the plain final kernel. That of the rate-weighted kernel is the one for equal
        rates.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or out of range.

    Notes
    -----
    Derivation: at the end ``K = c X [I + a beta beta^T] X^T`` (see `final_kernel`), whose alignment is
    `spike_alignment`.

    Valid for linear networks at vanishing initial scale (error of order sigma^2); for ReLU networks a guide, not a
    bound.
    """
    depth = check_integer("depth", depth, minimum=1)
    rank = check_integer("rank", rank, minimum=1)
    explained = check_number("explained", explained, minimum=0.0, maximum=1.0)
    return spike_alignment(spike_strength(check_layer_rates(layer_lr, depth)), rank, explained=explained)


def spike_alignment(spike: float, rank: int, *, explained: float = 1.0) -> float:
    """Alignment with the targets ``X beta`` of a kernel ``X [I + a beta beta^T] X^T`` on whitened data.

    ``A = (1 + a) / sqrt((1 + a)^2 + r - 1)``.

    Parameters
    ----------
    spike : float
        Spike strength a, at least 0: how much stronger the kernel is along the teacher than across it, less 1.
    rank : int
        Rank r of the whitened inputs, at least 1.
    explained : float in [0, 1]
        Fraction R^2 of the squared targets that a linear function of the inputs explains; the result is multiplied
        by it.

    Returns
    -------
    float
        ``y^T K y / (|y|^2 |K|_F)``, whatever factor K has.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or out of range.

    Notes
    -----
    Derivation: on N whitened inputs the eigenvalues of K are ``N (1 + a)`` (once, along ``X beta``) and N (r - 1
    times). The linear part of the targets lies along ``X beta`` and the rest in the null space of K, so
    ``y^T K y = R^2 |y|^2 N (1 + a)``, divided by ``|y|^2 N sqrt((1 + a)^2 + r - 1)``.

    Exact for such a kernel where `beta` lies in the span of the inputs.
    """
    strength = 1.0 + check_number("spike", spike, minimum=0.0)
    rank = check_integer("rank", rank, minimum=1)
    explained = check_number("explained", explained, minimum=0.0, maximum=1.0)
    return explained * strength / math.hypot(strength, math.sqrt(rank - 1))


def spike_strength(rates: Sequence[float]) -> float:
    """Return ``a = eta_1 sum_{l>=2} 1/eta_l``: the final kernel is that of ``I + a beta beta^T``, up to a factor."""
    return sum((rates[0] / rate for rate in rates[1:]), start=0.0)
