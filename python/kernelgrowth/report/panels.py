"""Figures of panels side by side: lines, points, dashed theory and filled contours, in the house style."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kernelgrowth.report.style import BLACK, GREY, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Curve", "Field", "Panel", "colours", "panels_figure"]

# Inches of a panel, so that a row of three fills a page and one fills a column.
_WIDTH, _HEIGHT = 3.6, 3.1


@dataclass(frozen=True)
class Curve:
    """One line or set of points.

    Attributes
    ----------
    x, y : array (T,)
        Points that are not finite are left out.
    label : str
        In the legend; none where it is empty.
    colour : str
    kind : {"line", "theory", "points", "guide"}
        A solid line; a dashed one, drawn above the others; markers; a thin grey line behind them.
    error : array (T,), optional
        Half the length of error bars, of "points".
    """

    x: Any
    y: Any
    label: str = ""
    colour: str = BLACK
    kind: str = "line"
    error: Any = None


@dataclass(frozen=True)
class Field:
    """A function on the plane, as level sets: ``values[i, j]`` at ``(x[j], y[i])``."""

    x: Any
    y: Any
    values: Any
    levels: int = 12


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes
    ----------
    curves : sequence of Curve
    title, xlabel, ylabel : str
        With the paper's symbols, in Matplotlib's mathtext.
    xscale, yscale : {"linear", "log"}
    field : Field, optional
        Behind the curves.
    equal : bool
        Whether a unit is as long on both axes.
    """

    curves: Sequence[Curve]
    title: str = ""
    xlabel: str = ""
    ylabel: str = ""
    xscale: str = "linear"
    yscale: str = "linear"
    field: Field | None = None
    equal: bool = False


def colours(count: int) -> list[str]:
    """Return colours from dark to light that every common colour-vision deficiency keeps in order."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colour) for colour in colormaps["viridis"](np.linspace(0.0, 0.85, max(count, 1)))]


def panels_figure(panels: Sequence[Panel], *, columns: int = 3) -> Figure:
    """Draw panels in rows of at most `columns`."""
    across = min(len(panels), columns)
    down = math.ceil(len(panels) / across)
    figure = new_figure(_WIDTH * across + 0.4, _HEIGHT * down)
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for axes, panel in zip(grid, panels, strict=False):
        _draw(axes, panel)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    return figure


def _draw(axes: Axes, panel: Panel) -> None:
    if panel.field is not None:
        field = panel.field
        axes.contourf(field.x, field.y, field.values, levels=field.levels, cmap="cividis", alpha=0.75)
        axes.contour(field.x, field.y, field.values, levels=field.levels, colors=BLACK, linewidths=0.4)
    for curve in panel.curves:
        _add(axes, curve)
    axes.set_xscale(panel.xscale)
    axes.set_yscale(panel.yscale)
    if panel.equal:
        axes.set_aspect("equal")
    tidy(axes, xlabel=panel.xlabel, ylabel=panel.ylabel)
    if panel.title:
        axes.set_title(panel.title, fontsize=10.0, color=BLACK)
    if any(curve.label for curve in panel.curves):
        axes.legend(frameon=False, fontsize=8.0, labelcolor=BLACK, handlelength=1.8)


def _add(axes: Axes, curve: Curve) -> None:
    x, y = (np.asarray(values, dtype=np.float64).ravel() for values in (curve.x, curve.y))
    kept = np.isfinite(x) & np.isfinite(y)
    label = curve.label or None
    if curve.kind == "points":
        error = None if curve.error is None else np.asarray(curve.error, dtype=np.float64).ravel()[kept]
        axes.errorbar(
            x[kept],
            y[kept],
            error,
            fmt="o",
            color=curve.colour,
            markersize=4.5,
            capsize=2.0,
            linewidth=1.0,
            label=label,
        )
        return
    style: dict[str, Any] = {
        "line": {"color": curve.colour, "linewidth": 1.8},
        "theory": {"color": curve.colour, "linewidth": 1.4, "linestyle": (0, (4, 2)), "zorder": 4},
        "guide": {"color": GREY, "linewidth": 1.0, "zorder": 1},
    }[curve.kind]
    axes.plot(x[kept], y[kept], label=label, solid_capstyle="round", **style)
