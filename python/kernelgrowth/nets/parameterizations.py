"""How a layer's trained parameters relate to the weights it applies: multipliers and initial scales."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["PARAMETERIZATIONS", "LayerScales"]


@dataclass(frozen=True)
class LayerScales:
    """Scales of one dense layer z = m W h + m_b b.

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


def _standard(widths: Sequence[int], layer: int) -> LayerScales:
    return LayerScales(weight=1.0, bias=1.0, std=1 / math.sqrt(widths[layer]))


def _ntk(widths: Sequence[int], layer: int) -> LayerScales:
    return LayerScales(weight=1 / math.sqrt(widths[layer]), bias=1.0, std=1.0)


def _mup(widths: Sequence[int], layer: int) -> LayerScales:
    fan_in, fan_out = widths[layer], widths[layer + 1]
    first, last = layer == 0, layer == len(widths) - 2
    if first and last:
        return _standard(widths, layer)
    if first:
        return LayerScales(weight=math.sqrt(fan_out), bias=math.sqrt(fan_out), std=1 / math.sqrt(fan_in * fan_out))
    if last:
        return LayerScales(weight=1 / math.sqrt(fan_in), bias=1.0, std=1 / math.sqrt(fan_in))
    return LayerScales(weight=1.0, bias=math.sqrt(fan_out), std=1 / math.sqrt(fan_in))


PARAMETERIZATIONS: dict[str, Callable[[Sequence[int], int], LayerScales]] = {
    "standard": _standard,
    "ntk": _ntk,
    "mup": _mup,
}
"""Name -> function of (widths, index of the layer from 0) that returns the layer's scales.

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
