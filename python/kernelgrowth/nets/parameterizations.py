"""How a layer's trained parameters relate to the weights it applies: multipliers and initial scales."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["PARAMETERIZATIONS", "LayerScales"]


@dataclass(frozen=True)
class LayerScales:
    """Scales of one layer z = m W h + m_b b.

    Attributes
    ----------
    weight : float
        m, the multiplier of the trained weight.
    bias : float
        m_b, the multiplier of the trained bias.
    std : float
        Standard deviation of the trained weight's entries at initialisation for σ = 1.
    """

    weight: float
    bias: float
    std: float


def _standard(fan_in: int, fan_out: int, first: bool, last: bool) -> LayerScales:
    return LayerScales(weight=1.0, bias=1.0, std=1 / math.sqrt(fan_in))


def _ntk(fan_in: int, fan_out: int, first: bool, last: bool) -> LayerScales:
    return LayerScales(weight=1 / math.sqrt(fan_in), bias=1.0, std=1.0)


def _mup(fan_in: int, fan_out: int, first: bool, last: bool) -> LayerScales:
    if first and last:
        return _standard(fan_in, fan_out, first, last)
    if first:
        return LayerScales(weight=math.sqrt(fan_out), bias=math.sqrt(fan_out), std=1 / math.sqrt(fan_in * fan_out))
    if last:
        return LayerScales(weight=1 / math.sqrt(fan_in), bias=1.0, std=1 / math.sqrt(fan_in))
    return LayerScales(weight=1.0, bias=math.sqrt(fan_out), std=1 / math.sqrt(fan_in))


PARAMETERIZATIONS: dict[str, Callable[[int, int, bool, bool], LayerScales]] = {
    "standard": _standard,
    "ntk": _ntk,
    "mup": _mup,
}
"""Name -> function of (fan_in, fan_out, whether first, whether last) that returns a layer's scales.

A convolution's fan_in is C_in·kh·kw and its fan_out the number of its channels.

``"standard"``
    m = 1, W ~ N(0, σ²/fan_in).
``"ntk"``
    m = 1/√fan_in, W ~ N(0, σ²) (Jacot et al. 2018).
``"mup"``
    The maximal-update parameterisation in the form in which SGD has one learning rate for all layers and widths
    (Yang & Hu 2021, table 1: a = −½, 0, ½, b = ½, c = 0, the input dimension being no width): m = √n_1 for the first
    layer and 1/√fan_in for the last; m W starts as N(0, σ²/fan_in) in every layer but the last, where W does.
    Hidden biases act like first-layer weights, m_b = √fan_out. A net without hidden layers has no width, so there
    it is the standard one.
"""
