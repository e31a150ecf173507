"""What all figures share: colours, axes, and the drawing surface."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from kernelgrowth._backend.errors import BackendError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["ALIGNMENT", "BLACK", "FINAL", "GREY", "INITIAL", "LOSS", "NORM", "TURN", "new_figure", "png_bytes", "tidy"]

# From the palettes of Okabe and Ito and of Tol: distinguishable with every common colour-vision deficiency.
LOSS = "#D55E00"
NORM = "#0072B2"
TURN = "#009E73"
ALIGNMENT = "#AA3377"
FINAL = "#0072B2"
INITIAL = "#E69F00"
BLACK = "#222222"
GREY = "#8A8A8A"

_DPI = 160


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of the given size in inches, independent of pyplot and its global state.

    Raises
    ------
    BackendError
        If Matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise BackendError('figures need Matplotlib: pip install "kernelgrowth[run]"') from error
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def tidy(axes: Axes, *, xlabel: str = "", ylabel: str = "") -> None:
    """Give axes the house style: two thin spines, a faint grid behind the data, labels in one font."""
    axes.set_axisbelow(True)
    axes.grid(True, which="major", color="#E8E8E8", linewidth=0.8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GREY)
    axes.tick_params(which="both", color=GREY, labelcolor=BLACK, labelsize=9.0)
    if xlabel:
        axes.set_xlabel(xlabel, color=BLACK, fontsize=10.0)
    if ylabel:
        axes.set_ylabel(ylabel, color=BLACK, fontsize=10.0)


def png_bytes(figure: Figure) -> bytes:
    """Return the figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()
