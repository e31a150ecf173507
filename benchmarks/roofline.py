"""The roofline picture: how near each case comes to what the machine allows, and where the best peer stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.case import OURS
from benchmarks.measure import Result

__all__ = ["draw"]

_OURS, _PEER, _ROOF, _INK = "#0072B2", "#D55E00", "#8A8A8A", "#222222"
_MARKERS = {"float32": "o", "float64": "s"}
_WIDTH, _DPI = 6.4, 200


def draw(results: Sequence[Result], about: Mapping[str, Any], path: Path) -> None:
    """Draw a numbered point for each case, ours joined to the best peer's, under the roofs measured beside them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, 4.8 + 0.2 * len(results)), dpi=_DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes, key = figure.subplots(2, height_ratios=[4.6, 0.2 * len(results) + 0.3])

    left, right = min(r.intensity for r in results) / 2, max(r.intensity for r in results) * 2.5
    _draw_roofs(axes, results, left, right)
    for number, result in enumerate(results, start=1):
        x, ours, peer = result.intensity, result.rate(OURS) / 1e9, result.rate(result.best_peer) / 1e9
        axes.plot([x, x], [ours, peer], color=_ROOF, linewidth=0.8, zorder=2)
        marker = _MARKERS[result.dtype]
        axes.plot(x, peer, marker, markersize=6, markerfacecolor="white", markeredgecolor=_PEER, zorder=3)
        axes.plot(x, ours, marker, markersize=10, color=_OURS, zorder=4)
        axes.annotate(
            str(number), (x, ours), color="white", fontsize=7, weight="bold", ha="center", va="center", zorder=5
        )
    axes.plot([], [], "o", markersize=9, color=_OURS, label=OURS)
    axes.plot([], [], "o", markersize=6, markerfacecolor="white", markeredgecolor=_PEER, label="best peer")
    axes.set(xscale="log", yscale="log", xlim=(left, right))
    axes.set_xlabel("needed flops per byte of input and output", color=_INK, fontsize=11)
    axes.set_ylabel("needed GFLOP a second", color=_INK, fontsize=11)
    figure.suptitle(f"{about['cpu']}, {about['threads']} threads, {about['isa']}", color=_INK, fontsize=11)
    axes.tick_params(which="both", color=_ROOF, labelcolor=_INK, labelsize=10)
    axes.grid(color="#E8E8E8", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=9, frameon=False)
    _draw_key(key, results)
    figure.savefig(path, format="png")


def _draw_roofs(axes: Any, results: Sequence[Result], left: float, right: float) -> None:
    """Draw the highest roofs that were measured, since points of a quieter minute would stand above any other."""

    bandwidth = max(r.bandwidth for r in results) / 1e9
    ceilings = {dtype: max((r.ceiling for r in results if r.dtype == dtype), default=0.0) / 1e9 for dtype in _MARKERS}
    top = max(ceilings.values())
    for (dtype, ceiling), style in zip(ceilings.items(), ("-", "--"), strict=True):
        if ceiling:
            start = max(left, ceiling / bandwidth)
            label = f"multiply-adds in {dtype}, {ceiling:.0f} GFLOP/s"
            axes.plot([start, right], [ceiling, ceiling], style, color=_ROOF, linewidth=1.5, label=label)
    if left * bandwidth < top:
        label = f"copies, {bandwidth:.0f} GB/s"
        axes.plot([left, top / bandwidth], [left * bandwidth, top], "-.", color=_ROOF, linewidth=1.5, label=label)


def _draw_key(axes: Any, results: Sequence[Result]) -> None:
    axes.axis("off")
    axes.set(xlim=(0, 1), ylim=(len(results), -1))
    columns = ((0.0, "left"), (0.045, "left"), (0.71, "right"), (0.73, "left"))
    head = ("", "", "of roof", "best peer takes")
    rows = [
        (
            str(number),
            result.name,
            f"{result.rate(OURS) / result.roof:.0%}",
            f"{result.timings[result.best_peer].median / result.timings[OURS].median:.2f}× ours: "
            + result.best_peer.split(",")[0],
        )
        for number, result in enumerate(results, start=1)
    ]
    for y, row in enumerate((head, *rows)):
        for (x, side), text in zip(columns, row, strict=True):
            weight = "bold" if x == 0 else "normal"
            color = _OURS if x == 0 else _INK
            axes.text(x, y - 0.5, text, ha=side, va="center", fontsize=8, weight=weight, color=color)
