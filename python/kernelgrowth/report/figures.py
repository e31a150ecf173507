"""The three pictures of a run: its dynamics, its predictions, its spectrum.

Each function takes arrays that were computed elsewhere and returns a Matplotlib figure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kernelgrowth.report.markers import label_right, mark_times
from kernelgrowth.report.style import ALIGNMENT, BLACK, FINAL, GREY, INITIAL, LOSS, NORM, TURN, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["dynamics_figure", "predictions_figure", "spectrum_figure"]

_TIME_LABEL = r"time  $t$  (learning rate $\times$ steps)"


def dynamics_figure(history: Mapping[str, Any], summary: Mapping[str, Any]) -> Figure:
    """Draw loss, kernel norm and the kernel's turn against time, and below them its alignment with the task.

    Parameters
    ----------
    history : mapping
        One-dimensional series of equal length T: "time", "loss", "kernel_norm", "alignment", and "distance_to_final"
        (NaN where no kernel was kept).
    summary : mapping
        "t_align", "t_loss", "t_grow" are marked where they are finite numbers, "alignment_max_theory" is dashed.

    Returns
    -------
    matplotlib.figure.Figure
    """
    time = _series(history, "time")
    loss, norm, alignment = (_series(history, name) for name in ("loss", "kernel_norm", "alignment"))
    turn = 1.0 - _series(history, "distance_to_final") if "distance_to_final" in history else np.full(len(time), np.nan)
    moments = {name: _number(summary.get(name)) for name in ("t_align", "t_loss", "t_grow")}

    figure = new_figure(8.2, 5.4)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(1.35, 1.0))
    logarithmic = _time_axis(upper, time, list(moments.values()))
    _line(upper, time, _relative(loss, loss[0]), LOSS, r"loss  $\mathcal{L}\,/\,\mathcal{L}_0$")
    _line(upper, time, _relative(norm, norm[-1]), NORM, r"norm  $\|K\|_F\,/\,\|K_\infty\|_F$")
    kept = np.isfinite(turn)
    _line(upper, time[kept], turn[kept], TURN, r"direction  $\cos(K,\,K_\infty)$")
    tidy(upper, ylabel="normalised")
    upper.set_ylim(-0.03, max(1.05, _finite_max(_relative(loss, loss[0]), 1.5) + 0.05))

    _line(lower, time, alignment, ALIGNMENT, r"alignment  $A(K)$")
    limit = _number(summary.get("alignment_max_theory"))
    if math.isfinite(limit):
        label = rf"theory  $A_\infty = {limit:.3f}$"
        lower.axhline(limit, color=BLACK, linestyle=(0, (5, 3)), linewidth=1.2, label=label)
    tidy(lower, xlabel=_TIME_LABEL + (", log scale" if logarithmic else ""), ylabel=r"alignment  $A$")
    top = np.nanmax(np.append(alignment[np.isfinite(alignment)], [limit, 0.05]))
    bottom = min(0.0, float(np.nanmin(np.append(alignment[np.isfinite(alignment)], 0.0))))
    lower.set_ylim(bottom * 1.1, top * 1.18)

    for axes in (upper, lower):
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9.0, labelcolor=BLACK)
    mark_times(
        (upper, lower),
        {
            r"$t_\mathrm{align}$": (moments["t_align"], ALIGNMENT),
            r"$t_\mathrm{loss}$": (moments["t_loss"], LOSS),
            r"$t_\mathrm{grow}$": (moments["t_grow"], NORM),
        },
    )
    return figure


def predictions_figure(predictions: Mapping[str, Any]) -> Figure:
    """Draw the predictions of kernel regression with K_0 and K_∞ against the trained network's, held-out points.

    Parameters
    ----------
    predictions : mapping
        "network" (M,) or (M, C), and any of "final", "final_matched", "initial" of the same shape; for each of these a
        number "error_<name>" for the legend. Of the first two, "final_matched" is drawn where it is given.

    Returns
    -------
    matplotlib.figure.Figure
    """
    network = np.asarray(predictions["network"], dtype=np.float64).ravel()
    figure = new_figure(5.7, 5.5)
    axes = figure.subplots()
    drawn = [network]
    axes.axline((0.0, 0.0), slope=1.0, color=GREY, linewidth=1.0, zorder=1.5)
    # The matched flow where there is one: the network has not fitted what the inverse of K_∞ would.
    final = "final_matched" if _given(predictions, "final_matched") else "final"
    for name, colour, marker, label in (
        ("initial", INITIAL, "s", rf"$K_0$   error {_percent(predictions, 'initial')}"),
        (final, FINAL, "o", _final_label(predictions)),
    ):
        if not _given(predictions, name):
            continue
        points = np.asarray(predictions[name], dtype=np.float64).ravel()
        style: dict[str, Any] = {"s": 26.0, "alpha": 0.75, "linewidths": 0.4, "edgecolors": "white"}
        axes.scatter(network, points, c=colour, marker=marker, label=label, **style)
        drawn.append(points)
    low, high = _range(np.concatenate(drawn))
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_aspect("equal")
    tidy(axes, xlabel=r"trained network  $f(x)$", ylabel=r"kernel regression  $f_0(x) + k(x)^\top K^{-1}(y - f_0)$")
    axes.legend(loc="upper left", framealpha=0.92, edgecolor="none", fontsize=9.5, labelcolor=BLACK, handletextpad=0.3)
    return figure


def spectrum_figure(history: Mapping[str, Any], summary: Mapping[str, Any] | None = None) -> Figure:
    """Draw the top eigenvalues of the kernel against time, on a logarithmic scale.

    Parameters
    ----------
    history : mapping
        "time" (T,) and "eigenvalues" (T, k), descending.
    summary : mapping, optional
        "t_align", "t_loss", "t_grow", marked where they are finite.

    Returns
    -------
    matplotlib.figure.Figure
    """
    from matplotlib import colormaps

    time = _series(history, "time")
    values = np.asarray(history["eigenvalues"], dtype=np.float64).reshape(len(time), -1)
    # A logarithm has no place for the zeros (and the rounding below them) of a kernel without full rank.
    scale = _finite_max(values, 1.0)
    values = np.where(values > 1e-12 * scale, values, np.nan) if scale > 0 else np.full_like(values, np.nan)
    moments = {name: _number((summary or {}).get(name)) for name in ("t_align", "t_loss", "t_grow")}

    figure = new_figure(8.2, 4.6)
    axes = figure.subplots()
    logarithmic = _time_axis(axes, time, list(moments.values()))
    colours = colormaps["cividis"](np.linspace(0.0, 0.7, max(values.shape[1], 2)))
    for i in range(values.shape[1]):
        axes.plot(time, values[:, i], color=colours[i], linewidth=2.2 if i == 0 else 1.1, zorder=3.0 - 0.01 * i)
    if np.isfinite(values).any():
        axes.set_yscale("log")
    tidy(axes, xlabel=_TIME_LABEL + (", log scale" if logarithmic else ""), ylabel=r"eigenvalues  $\lambda_i(K_t)$")
    ends = {rf"$\lambda_{{{i + 1}}}$": (values[-1, i], colours[i]) for i in _labelled(values.shape[1])}
    label_right(axes, ends)
    mark_times(
        (axes,),
        {
            r"$t_\mathrm{align}$": (moments["t_align"], ALIGNMENT),
            r"$t_\mathrm{loss}$": (moments["t_loss"], LOSS),
            r"$t_\mathrm{grow}$": (moments["t_grow"], NORM),
        },
    )
    return figure


def _given(predictions: Mapping[str, Any], name: str) -> bool:
    values = predictions.get(name)
    return values is not None and bool(np.isfinite(np.asarray(values, dtype=np.float64)).any())


def _percent(predictions: Mapping[str, Any], name: str) -> str:
    error = _number(predictions.get(f"error_{name}"))
    return f"{100 * error:.1f} %" if math.isfinite(error) else "undefined"


def _final_label(predictions: Mapping[str, Any]) -> str:
    end = _percent(predictions, "final")
    if not _given(predictions, "final_matched"):
        return rf"$K_\infty$   error {end}"
    matched = _percent(predictions, "final_matched")
    return rf"$K_\infty$   error {matched}" + (f" (without early stop {end})" if end != matched else "")


def _labelled(count: int) -> list[int]:
    return sorted({0, 1, 2, count - 1} & set(range(count)))


def _series(history: Mapping[str, Any], name: str) -> Any:
    return np.asarray(history[name], dtype=np.float64).ravel()


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _finite_max(values: Any, cap: float) -> float:
    finite = values[np.isfinite(values)]
    return float(min(finite.max(), cap)) if finite.size and cap > 0 else cap


def _relative(values: Any, reference: float) -> Any:
    return values / reference if np.isfinite(reference) and reference != 0 else np.full(len(values), np.nan)


def _line(axes: Axes, x: Any, y: Any, colour: str, label: str) -> None:
    # A series of few points shows where they are; a dense one is a line.
    marker = "o" if len(x) <= 12 else None
    axes.plot(x, y, color=colour, linewidth=2.0, marker=marker, markersize=4.0, label=label, solid_capstyle="round")


def _time_axis(axes: Axes, time: Any, moments: list[float]) -> bool:
    """Choose a logarithmic time axis when everything worth seeing happens in the first eighth."""
    positive = time[time > 0]
    early = [t for t in moments if math.isfinite(t) and t > 0]
    logarithmic = len(positive) > 2 and bool(early) and min(early) < positive[-1] / 8
    if logarithmic:
        axes.set_xscale("log")
        # From a little before the first event: the silent beginning need not take half of the picture.
        axes.set_xlim(max(positive[0], min(early) / 12), positive[-1])
    elif len(positive):
        axes.set_xlim(0.0, positive[-1])
    return logarithmic


def _range(values: Any) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (-1.0, 1.0)
    margin = 0.06 * (high - low) or 1.0
    return low - margin, high + margin
