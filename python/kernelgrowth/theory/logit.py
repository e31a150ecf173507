"""The strength of a balanced linear network in the logit ``z = ln(c / (s - c))``, where its equation is smooth.

``c' = L c^(2 - 2/L) (s - c)`` becomes ``z' = sigmoid(z)^p``, ``p = 1 - 2/L``, in units of ``1 / (L s^(2 - 2/L))``.
"""

from __future__ import annotations

import importlib
import math

import numpy as np

from kernelgrowth._backend.arrays import FloatArray

__all__ = ["logit_at", "time_between"]

_TOLERANCE = 1e-11
# Up to this logit, c / s = 0.047, the time is a series that converges fast: 16 terms reach rounding error.
_EARLY = -3.0
_TERMS = 16
_HALVINGS = 64
# From there to half of the strength a Gauss-Legendre rule of so many nodes reaches rounding error.
_NODES = 24
# A time long after everything has happened, in the units of the equation.
_FOREVER = 1e200


def logit_at(s: float, start: float, depth: int, times: FloatArray) -> FloatArray:
    """Return the logits at each of the `times` after `start`, for L > 2."""
    power = 1.0 - 2.0 / depth
    with np.errstate(over="ignore"):
        # In units of 1 / (L s^(2 - 2/L)), where z' = sigmoid(z)^power.
        clock = np.minimum(times * (depth * s), _FOREVER / s**power) * s**power
    if start >= _EARLY:
        return _integrate(start, power, clock)
    # A solver would add up its errors over the plateau, which can be longer by many orders than the rise after it.
    scaled = clock * math.exp(power * start)
    duration = float(_plateau_time(np.array(_EARLY), start, power))
    logit = _bisect_plateau(np.minimum(scaled, duration), start, power)
    late = scaled > duration
    if late.any():
        rest = np.maximum(clock[late] - duration * math.exp(-power * start), 0.0)
        logit[late] = _integrate(_EARLY, power, rest)
    return logit


def time_between(s: float, start: float, end: float, depth: int) -> float:
    """Return the time from one logit to a later one, no more than about 1 above both 0 and the first.

    It is infinite where it leaves the range of floats.
    """
    if depth == 2:
        return (end - start) / (2.0 * s)
    power = 1.0 - 2.0 / depth
    # Both parts times exp(power start), which may be out of range, as may the units: so logarithms are added up.
    plateau = float(_plateau_time(np.array(min(end, _EARLY)), start, power)) if start < _EARLY else 0.0
    begin = max(start, _EARLY)
    rise = 0.0
    if end > begin:
        nodes, weights = np.polynomial.legendre.leggauss(_NODES)
        z = 0.5 * (begin + end) + 0.5 * (end - begin) * nodes
        rise = 0.5 * (end - begin) * float(weights @ np.exp(power * (np.logaddexp(0.0, -z) + start)))
    log_time = math.log(plateau + rise) - power * start - (1.0 + power) * math.log(s) - math.log(depth)
    with np.errstate(over="ignore"):
        return float(np.exp(log_time))


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


def _integrate(start: float, power: float, clock: FloatArray) -> FloatArray:
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
