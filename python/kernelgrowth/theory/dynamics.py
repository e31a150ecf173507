"""Training of linear networks in time, in closed form or as one ordinary differential equation."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from kernelgrowth._backend.arrays import FloatArray
from kernelgrowth._backend.checks import check_integer, check_number
from kernelgrowth.theory.arguments import as_curve, check_values
from kernelgrowth.theory.logit import logit_at

__all__ = ["TwoLayerSolution", "deep_linear", "two_layer"]


class TwoLayerSolution(NamedTuple):
    """What `two_layer` and `early_growth` return; unpacks as ``q, r``.

    Attributes
    ----------
    q : ndarray of the shape of `t`
        ``(|W beta|^2 + |a|^2) / 2``: the kernel between inputs along beta is ``2 q`` times their product.
    r : ndarray of the shape of `t`
        ``a . W beta``: the strength that the network has learnt; the loss along beta is ``(s - r)^2 / 2``.
    """

    q: FloatArray
    r: FloatArray

    @property
    def c(self) -> FloatArray:
        """``(q + r) / 2 = |W beta + a|^2 / 4``, the part that grows, along a logistic curve; soon ``q = r = c``."""
        return 0.5 * (self.q + self.r)


def two_layer(s: float, q0: float, t: Any, r0: float = 0.0, *, drag: float = 0.0) -> TwoLayerSolution:
    """Gradient flow of the two-layer linear network ``f(x) = a . W x`` on whitened inputs.

    With ``E = exp(2 s t)`` and ``c_0 = (q_0 + r_0)/2``,
    ``q = s [c_0 E + (q_0 - r_0)/(2 E)] / (c_0 (E - 1) + s)`` and
    ``r = s [c_0 E - (q_0 - r_0)/(2 E)] / (c_0 (E - 1) + s)``.

    Parameters
    ----------
    s : float
        Strength of the teacher ``y = s beta . x`` with ``|beta| = 1``, > 0.
    q0, r0 : float
        Initial values of ``q = (|W beta|^2 + |a|^2)/2``, > 0, and of ``r = a . W beta``, with ``|r0| <= q0``.
        Leaving ``r0`` at 0 costs 1 to 34 % at any initial scale: it grows at the same rate as ``q``.
    t : float or array_like
        Times of gradient flow on the loss ``mean (f - y)^2 / 2``, >= 0. For descent at rate eta, step k is compared
        at ``ln(1 + eta s) k / s``.
    drag : float
        ``mu = |W_perp^T p|^2 / |p|^2`` at the start, with ``p = W beta + a`` and ``W_perp = W (I - beta beta^T)``; less
        than 2 s. It is about ``sigma^2`` at random weights, and slows the clock by the factor ``1 - mu / (2 s)``.

    Returns
    -------
    TwoLayerSolution
        ``q`` and ``r`` in float64, of the shape of `t`.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type, not finite or out of range.

    Notes
    -----
    Derivation: ``(W beta)' = (s - r) a`` and ``a' = (s - r) W beta``, so ``q + r = 2 c`` and ``q - r = 2 m`` obey
    ``c' = 2 (s - r) c`` and ``m' = -2 (s - r) m``. While m is of the order of the initial scale squared,
    ``r = c - m`` may be replaced by c, and ``c' = 2 c (s - c)`` is logistic. The rest of W adds ``-W_perp W_perp^T a``
    to ``a'``, which takes ``mu c`` from ``c'`` on the plateau and ``mu (1 - c/s) c`` later, for ``p^T W_perp`` shrinks
    as c grows: the same curve, on a clock slower by ``1 - mu / (2 s)``.

    Valid for whitened inputs and small initial scale. The error relative to s is at most ``0.5 sigma^2`` with the drag
    (1e-6 to 4e-5 at sigma = 0.01); without it of order ``sigma^2 ln(1/sigma)``, the logarithm being the duration of the
    plateau (up to 2e-4 at sigma = 0.01). The printed solution (Atanasov, Bordelon, Pehlevan 2022) has neither drag nor
    ``r0``.
    """
    s = check_number("s", s, minimum=0.0, exclusive_minimum=True)
    q0 = check_number("q0", q0, minimum=0.0, exclusive_minimum=True)
    r0 = check_number("r0", r0, minimum=-q0, maximum=q0)
    drag = check_number("drag", drag, minimum=0.0, maximum=2.0 * s, exclusive_maximum=True)
    times = check_values("t", t, "time", minimum=0.0) * (1.0 - drag / (2.0 * s))
    # Written in 1 / E, which underflows harmlessly where E would overflow.
    decay = np.exp(-2.0 * s * times)
    grown = 0.5 * (q0 + r0)
    denominator = grown * (1.0 - decay) + s * decay
    with np.errstate(under="ignore", invalid="ignore"):
        rising = s * grown / denominator
        # decay^2 / denominator is 0/0 only where grown = 0 (r0 = -q0) and decay has underflown.
        falling = s * 0.5 * (q0 - r0) * np.where(decay > 0.0, decay * (decay / denominator), 0.0)
    rising = np.where(grown > 0.0, rising, 0.0)
    return TwoLayerSolution(as_curve(rising + falling, t), as_curve(rising - falling, t))


def deep_linear(s: float, c0: float, depth: int, t: Any) -> Any:
    """Strength ``c(t)`` that a balanced linear network of L layers has learnt after gradient flow for a time t.

    Solves ``c' = L c^(2 - 2/L) (s - c)``, ``c(0) = c_0``, on whitened inputs; the loss is ``(s - c)^2 / 2``.

    Parameters
    ----------
    s : float
        Strength of the teacher ``y = s beta . x`` with ``|beta| = 1``, > 0.
    c0 : float
        Initial strength, 0 < c0 < s.
    depth : int
        Number of weight layers L, at least 1.
    t : float or array_like
        Times of gradient flow on the loss ``mean (f - y)^2 / 2``, >= 0, in any order.

    Returns
    -------
    ndarray of the shape of `t`, float64
        ``c``, to 9 digits, or to as many as the rounding of `t` leaves after a long plateau.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type, not finite or out of range.

    Notes
    -----
    Derivation: balanced rank-one weights all have the strength ``u = c^(1/L)``; the gradient of
    ``(s - u^L)^2 / 2`` gives ``u' = u^(L-1) (s - u^L)``, and ``c' = L u^(L-1) u'``. (The printed equation in
    Atanasov, Bordelon, Pehlevan 2022 lacks the factor L.) The logit ``z = ln(c / (s - c))`` obeys
    ``z' = L s c^(1 - 2/L)``, which is exact for L = 2 (the logistic curve) and smooth for all others.

    Valid once the weights are aligned with the teacher; at random weights of initial scale sigma, ``c_0`` of the order
    of ``sigma^L`` gives the right power of sigma, not the exact time. `half_loss_time` is the duration of the plateau.
    """
    s = check_number("s", s, minimum=0.0, exclusive_minimum=True)
    c0 = check_number("c0", c0, minimum=0.0, exclusive_minimum=True, maximum=s, exclusive_maximum=True)
    depth = check_integer("depth", depth, minimum=1)
    times = check_values("t", t, "time", minimum=0.0)
    if depth == 1:
        return as_curve(s + (c0 - s) * np.exp(-times), t)
    start = math.log(c0) - math.log(s - c0)
    # For two layers the logit is linear in time.
    logit = start + 2.0 * s * times if depth == 2 else logit_at(s, start, depth, times)
    with np.errstate(under="ignore"):
        # The sigmoid without overflow on either side.
        small = np.exp(-np.abs(logit))
    return as_curve(s * np.where(logit >= 0.0, 1.0, small) / (1.0 + small), t)
