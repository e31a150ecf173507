"""When linear networks learn: durations of their plateaus."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kernelgrowth._backend.checks import check_integer, check_number
from kernelgrowth.theory.arguments import as_curve, check_values
from kernelgrowth.theory.logit import time_between

__all__ = ["half_loss_time", "mode_times"]


def half_loss_time(s: float, c0: float, depth: int) -> float:
    """Time at which a balanced linear network of L layers has halved its loss, on whitened inputs.

    For small ``c_0 = sigma^L`` it grows as ``(1/s) ln(1/sigma)`` for two layers and is about
    ``sigma^(2-L) / (s (L-2))`` for more.

    Parameters
    ----------
    s : float
        Strength of the teacher ``y = s beta . x`` with ``|beta| = 1``, > 0.
    c0 : float
        Initial strength, 0 < c0 < s. At random weights of initial scale sigma, about ``sigma^L``; for two layers
        ``(q_0 + r_0)/2`` of `two_layer`.
    depth : int
        Number of weight layers L, at least 1.

    Returns
    -------
    float
        In units of gradient flow on the loss ``mean (f - y)^2 / 2``: for descent at rate eta, steps times eta. Infinite
        where it leaves the range of floats.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type, not finite or out of range.

    Notes
    -----
    Derivation: ``c' = L c^(2 - 2/L) (s - c)`` (see `deep_linear`), and the loss ``(s - c)^2 / 2`` is halved at
    ``s - c = (s - c_0) / sqrt(2)``: the time is the integral of ``dc / c'`` up to there. While ``c << s`` it is
    ``[c_0^(2/L - 1) - c^(2/L - 1)] / (s (L - 2))``, whose first term is left for small ``c_0``.

    Exact for balanced weights in line with the teacher. From random weights the power of sigma is right (exponents
    within 0.05 of ``2 - L`` below sigma = 0.1); the time itself with ``c_0 = sigma^L`` is so within about a third, for
    it depends on the widths and on the draw.
    """
    s = check_number("s", s, minimum=0.0, exclusive_minimum=True)
    c0 = check_number("c0", c0, minimum=0.0, exclusive_minimum=True, maximum=s, exclusive_maximum=True)
    depth = check_integer("depth", depth, minimum=1)
    left = (s - c0) / math.sqrt(2.0)
    return time_between(s, _logit(s, c0), math.log(s - left) - math.log(left), depth)


def mode_times(s: Any, c0: Any, depth: int) -> Any:
    """Return the times at which a linear network with several outputs has learnt half of each mode of its teacher.

    For two layers ``t_a = ln(s_a / c_a - 1) / (2 s_a)``, with ``c_a`` the initial strength of mode a.

    Parameters
    ----------
    s : float or array_like
        Strengths of the modes, > 0: the singular values ``s_a`` of the teacher ``y = B x``,
        ``B = sum_a s_a z_a v_a^T``.
    c0 : float or array_like
        Initial strength of all modes or of each, ``0 < c0 < s_a / 2``. At random weights of initial scale sigma, about
        ``sigma^L``; for two layers ``f = A W x`` exactly ``|W v_a + A^T z_a|^2 / 4``.
    depth : int
        Number of weight layers L, at least 1.

    Returns
    -------
    float or ndarray, float64
        Of the shape of `s` and `c0` together, in units of gradient flow on the loss ``mean |f - y|^2 / 2``: for descent
        at rate eta, steps times eta.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type, not finite or out of range.

    Notes
    -----
    Derivation: weights in line with the singular vectors of B stay so, and every mode then obeys the equation of a
    network with one output, ``c' = L c^(2 - 2/L) (s_a - c)``; the time is the integral of ``dc / c'`` from ``c_0`` to
    ``s_a / 2``. For two layers the logit of ``c / s_a`` grows at the rate ``2 s_a``. (The printed time of Atanasov,
    Bordelon, Pehlevan 2022, ``ln(s_a / u_0^2) / s_a``, is twice as long as that on this loss.)

    Exact for balanced weights in line with the modes, on whitened inputs. From random weights modes are not quite
    independent: at sigma = 0.01 the times of two layers are right within 1 %; for more layers the powers of sigma are,
    and the times with ``c_0 = sigma^L`` within a quarter.
    """
    strengths = check_values("s", s, "strength", minimum=0.0)
    initial = check_values("c0", c0, "strength", minimum=0.0)
    depth = check_integer("depth", depth, minimum=1)
    try:
        strengths, initial = np.broadcast_arrays(strengths, initial)
    except ValueError:
        raise ValueError(f"c0 must have the shape {strengths.shape} of s, got {initial.shape}") from None
    if strengths.min() == 0.0:
        raise ValueError("s must be greater than 0 in every mode: what is zero is not learnt")
    if initial.min() == 0.0 or (initial >= 0.5 * strengths).any():
        raise ValueError(f"c0 must be greater than 0 and less than half of every strength in s, got {c0!r}")
    times = [
        time_between(float(strength), _logit(float(strength), float(c)), 0.0, depth)
        for strength, c in zip(strengths.flat, initial.flat, strict=True)
    ]
    return as_curve(np.array(times).reshape(strengths.shape), s)


def _logit(s: float, c: float) -> float:
    return math.log(c) - math.log(s - c)
