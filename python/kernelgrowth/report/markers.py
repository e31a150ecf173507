"""Labels that keep out of each other's way."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["label_right", "mark_times", "spread"]


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move positions as little as possible so that neighbours are `gap` apart and all lie in [low, high].

    Parameters
    ----------
    wanted : sequence of float
        Positions, in any order; the order along the axis is kept.
    gap : float
        Least distance; shrunk when the positions would not fit between `low` and `high`.
    low, high : float
        Ends of the room.

    Returns
    -------
    list of float
        The position for each of `wanted`.
    """
    count = len(wanted)
    if count == 0:
        return []
    gap = min(gap, (high - low) / max(count - 1, 1))
    order = np.argsort(np.asarray(wanted), kind="stable")
    # Subtracting the gaps turns "at least gap apart" into "not descending": an isotonic regression, solved by
    # pooling neighbours that violate it at their mean.
    pools: list[tuple[float, int]] = []
    for rank, index in enumerate(order):
        mean, size = float(wanted[index]) - rank * gap, 1
        while pools and pools[-1][0] > mean:
            other, others = pools.pop()
            mean, size = (mean * size + other * others) / (size + others), size + others
        pools.append((mean, size))
    shifted = [mean for mean, size in pools for _ in range(size)]
    limit = high - (count - 1) * gap
    result = [0.0] * count
    for rank, index in enumerate(order):
        result[int(index)] = min(max(shifted[rank], low), limit) + rank * gap
    return result


def mark_times(panels: Sequence[Axes], moments: Mapping[str, tuple[float, str]]) -> None:
    """Draw a vertical line through all panels at each finite moment, labelled above the first panel.

    Parameters
    ----------
    panels : sequence of Axes
        Panels with a common time axis, from top to bottom; limits and scale already set.
    moments : mapping
        Symbol -> (time, colour). A moment that is not finite or lies outside the axis is left out.
    """
    top = panels[0]
    left, right = top.get_xlim()
    shown = [(f"{symbol} = {time:.3g}", time, colour) for symbol, (time, colour) in moments.items()]
    shown = [entry for entry in shown if math.isfinite(entry[1]) and left <= entry[1] <= right]
    if not shown:
        return
    for axes in panels:
        for _, time, colour in shown:
            axes.axvline(time, color=colour, linewidth=1.1, linestyle=(0, (1.5, 1.5)), zorder=1.8)
    # In fractions of the axis, so that a later change of layout moves labels and lines together.
    to_axes = top.transData + top.transAxes.inverted()
    positions = [float(to_axes.transform((time, 0.5))[0]) for _, time, _ in shown]
    width = _size(top)[0]
    half = 0.5 / width
    placed = spread(positions, gap=1.08 / width, low=half, high=1.0 - half)
    for (text, _, colour), position, place in zip(shown, positions, placed, strict=True):
        top.annotate(
            text,
            xy=(position, 1.0),
            xytext=(place, 1.075),
            xycoords="axes fraction",
            textcoords="axes fraction",
            ha="center",
            va="bottom",
            fontsize=9.5,
            color=colour,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.9, "shrinkA": 0.5, "shrinkB": 0.0},
        )


def label_right(axes: Axes, ends: Mapping[str, tuple[float, Any]]) -> None:
    """Write each symbol to the right of the axes at the height of its value, in its colour."""
    shown = [(symbol, float(value), colour) for symbol, (value, colour) in ends.items() if math.isfinite(value)]
    if not shown:
        return
    to_axes = axes.transData + axes.transAxes.inverted()
    right = axes.get_xlim()[1]
    heights = [float(to_axes.transform((right, value))[1]) for _, value, _ in shown]
    height = _size(axes)[1]
    placed = spread(heights, gap=0.2 / height, low=0.0, high=1.0)
    for (symbol, _, colour), place in zip(shown, placed, strict=True):
        axes.annotate(
            symbol, xy=(1.015, place), xycoords="axes fraction", ha="left", va="center", fontsize=10.5, color=colour
        )


def _size(axes: Axes) -> tuple[float, float]:
    """Return width and height of the axes in inches, as the layout will have them."""
    figure = axes.get_figure(root=True)
    if figure is None:
        raise ValueError("axes must belong to a figure")
    figure.draw_without_rendering()
    box, (width, height) = axes.get_position(), figure.get_size_inches()
    return box.width * float(width), box.height * float(height)
