"""Training of linear networks in time, in closed form or as one ordinary differential equation."""

from __future__ import annotations

import importlib
import math
from typing import Any, NamedTuple

import numpy as np

from kernelgrowth._backend.arrays import FloatArray, as_array
from kernelgrowth._backend.checks import check_integer, check_number

__all__ = ["TwoLayerSolution", "deep_linear", "two_layer"]

_TOLERANCE = 1e-11
# Up to this logit, c / s = 0.047, the time is a series that converges fast: 16 terms reach rounding error.
_EARLY = -3.0
_TERMS = 16
_HALVINGS = 64
# A time long after everything has happened, in the units of the equation.
_FOREVER = 1e200


class TwoLayerSolution(NamedTuple):
    """What `two_layer` returns; unpacks as ``q, r``.

    Attributes
    ----------
    q : ndarray of the shape of `t`
        ``(|W beta|^2 + |a|^2) / 2``: the kernel between inputs along beta is ``2 q`` times their product.
    r : ndarray of the shape of `t`
        ``a . W beta``: the strength that the network has learnt; the loss along beta is ``(s - r)^2 / 2``.
    """

    q: FloatArray
    r: FloatArray


def two_layer(s: float, q0: float, t: Any, r0: float = 0.0) -> TwoLayerSolution:
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
    ``r = c - m`` may be replaced by c, and ``c' = 2 c (s - c)`` is logistic.

    Valid for whitened inputs and small initial scale: the relative error is of order ``sigma^2 ln(1/sigma)``, the
    logarithm being the duration of the plateau (6e-3 at sigma = 0.1, 6e-5 at 0.01). The printed solution (Atanasov,
    Bordelon, Pehlevan 2022) is the case ``r0 = 0``.
    """
    s = check_number("s", s, minimum=0.0, exclusive_minimum=True)
    q0 = check_number("q0", q0, minimum=0.0, exclusive_minimum=True)
    r0 = check_number("r0", r0, minimum=-q0, maximum=q0)
    times = _check_times(t)
    # Written in 1 / E, which underflows harmlessly where E would overflow.
    decay = np.exp(-2.0 * s * times)
    grown = 0.5 * (q0 + r0)
    denominator = grown * (1.0 - decay) + s * decay
    with np.errstate(under="ignore", invalid="ignore"):
        rising = s * grown / denominator
        # decay^2 / denominator is 0/0 only where grown = 0 (r0 = -q0) and decay has underflown.
        falling = s * 0.5 * (q0 - r0) * np.where(decay > 0.0, decay * (decay / denominator), 0.0)
    rising = np.where(grown > 0.0, rising, 0.0)
    return TwoLayerSolution(_shaped(rising + falling, t), _shaped(rising - falling, t))


def deep_linear(s: float, c0: float, depth: int, t: Any) -> FloatArray:
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

    Valid once the weights are aligned with the teacher. The time to half of the loss is about
    ``c_0^(2/L - 1) / (s (L - 2))`` for L > 2.
    """
    s = check_number("s", s, minimum=0.0, exclusive_minimum=True)
    c0 = check_number("c0", c0, minimum=0.0, exclusive_minimum=True, maximum=s, exclusive_maximum=True)
    depth = check_integer("depth", depth, minimum=1)
    times = _check_times(t)
    if depth == 1:
        return _shaped(s + (c0 - s) * np.exp(-times), t)
    start = math.log(c0) - math.log(s - c0)
    # For two layers the logit is linear in time.
    logit = start + 2.0 * s * times if depth == 2 else _solve_logit(s, start, depth, times)
    with np.errstate(under="ignore"):
        # The sigmoid without overflow on either side.
        small = np.exp(-np.abs(logit))
    return _shaped(s * np.where(logit >= 0.0, 1.0, small) / (1.0 + small), t)


def _solve_logit(s: float, start: float, depth: int, times: FloatArray) -> FloatArray:
    """Solve ``z' = L s c^(1 - 2/L)``, ``c = s sigmoid(z)``, at each of the `times`, for L > 2."""
    power = 1.0 - 2.0 / depth
    with np.errstate(over="ignore"):
        # In units of 1 / (L s^(2 - 2/L)), where z' = sigmoid(z)^power.
        clock = np.minimum(times * (depth * s), _FOREVER / s**power) * s**power
    if start >= _EARLY:
        return _integrate_logit(start, power, clock)
    # A solver would add up its errors over the plateau, which can be longer by many orders than the rise after it.
    scaled = clock * math.exp(power * start)
    duration = float(_plateau_time(np.array(_EARLY), start, power))
    logit = _bisect_plateau(np.minimum(scaled, duration), start, power)
    late = scaled > duration
    if late.any():
        rest = np.maximum(clock[late] - duration * math.exp(-power * start), 0.0)
        logit[late] = _integrate_logit(_EARLY, power, rest)
    return logit


def _plateau_time(z: FloatArray, start: float, power: float) -> FloatArray:
    """Return ``exp(power start)`` times the integral of ``(1 + exp(-y))^power`` from `start` to `z` <= _EARLY."""
    x, x_start = np.exp(z), math.exp(start)
    at_z, at_start, binomial = np.zeros_like(x), 0.0, 1.0
    for k in range(_TERMS):
        # Term by term of the binomial series of (1 + x)^power x^(-power - 1), x = exp(y).
        at_z += binomial / (k - power) * x**k
        at_start += binomial / (k - power) * x_start**k
        binomial *= (power - k) / (k + 1)
    return np.asarray(np.exp(-power * (z - start)) * at_z - at_start)


def _bisect_plateau(scaled: FloatArray, start: float, power: float) -> FloatArray:
    """Return the logits between `start` and _EARLY at which `_plateau_time` is `scaled`."""
    low, high = np.full(scaled.shape, start), np.full(scaled.shape, _EARLY)
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        before = _plateau_time(middle, start, power) <= scaled
        low, high = np.where(before, middle, low), np.where(before, high, middle)
    return low


def _integrate_logit(start: float, power: float, clock: FloatArray) -> FloatArray:
    """Solve ``z' = sigmoid(z)^power`` from `start` at each of the times in `clock`."""
    # Imported when used: it costs as much time as the rest of the package.
    solve_ivp = importlib.import_module("scipy.integrate").solve_ivp

    def slope(_: float, z: FloatArray) -> FloatArray:
        return np.asarray(np.exp(-power * np.logaddexp(0.0, -z)))

    order, inverse = np.unique(clock, return_inverse=True)
    if order[-1] == 0.0:
        return np.full(clock.shape, start)
    solution = solve_ivp(
        slope, (0.0, float(order[-1])), [start], method="DOP853", t_eval=order, rtol=_TOLERANCE, atol=_TOLERANCE
    )
    return np.asarray(solution.y[0])[inverse].reshape(clock.shape)


def _check_times(t: Any) -> FloatArray:
    times = np.asarray(as_array("t", t), dtype=np.float64)
    if times.size == 0 or times.min() < 0.0:
        raise ValueError(f"t must hold at least one time, none negative, got {t!r}")
    return times


def _shaped(values: FloatArray, t: Any) -> FloatArray:
    """Give a scalar time a scalar result."""
    return values[()] if np.ndim(t) == 0 else values
