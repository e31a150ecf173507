"""Figures 3 and E.1-E.3: how long networks of L layers are silent, and how far their kernels align."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kernelgrowth import theory
from kernelgrowth.datasets import gaussian_teacher
from kernelgrowth.experiments.figures.figure import PaperFigure
from kernelgrowth.experiments.figures.following import crossing, kernel_history
from kernelgrowth.nets import MLP
from kernelgrowth.report.panels import Curve, Panel, colours, panels_figure
from kernelgrowth.training import optim

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FIGURE_3", "FIGURE_E"]

_DIM, _WIDTH, _LR = 30, 50, 0.05
# Where networks of so many layers are silent for long, and still learn within thousands of steps.
_SIGMAS = {2: (0.1, 0.03, 0.01), 3: (0.08, 0.03, 0.015), 4: (0.15, 0.1, 0.06), 5: (0.25, 0.18, 0.13)}
_FULL_SIGMAS = {
    2: (0.3, 0.1, 0.03, 0.01, 0.003),
    3: (0.3, 0.1, 0.05, 0.02, 0.01),
    4: (0.3, 0.2, 0.1, 0.06, 0.04),
    5: (0.3, 0.25, 0.2, 0.15, 0.1),
}
_POINTS = 200


def _run(seed: int, depth: int, sigma: float, activation: str) -> dict[str, Any]:
    dataset = gaussian_teacher(_DIM, _DIM, whiten=True, seed=seed)
    net = MLP([_DIM, *[_WIDTH] * (depth - 1), 1], activation, sigma=sigma)
    # Twice as long as theory says that the loss needs to fall, and some more to converge.
    slower = 1.0 if activation == "linear" else 2.0 ** (depth - 1)
    silent = math.log(1.0 / sigma) if depth == 2 else sigma ** (2 - depth) / (depth - 2)
    steps = int((2.0 * silent + 15.0) * slower / _LR)
    history = kernel_history(
        net,
        dataset,
        steps=steps,
        every=max(1, steps // _POINTS),
        seed=seed,
        optimizer=optim.GD(_LR),
        metrics=("kernel_norm", "alignment"),
    )
    time, loss, alignment = (np.asarray(history[name], dtype=np.float64) for name in ("time", "loss", "alignment"))
    return {
        "half_loss_time": crossing(time, loss, loss[0] / 2),
        "alignment_time": crossing(time, alignment, (alignment[0] + alignment[-1]) / 2),
        "final_alignment": float(alignment[-1]),
        "final_loss": float(loss[-1] / loss[0]),
        "time": time.tolist(),
        "loss": (loss / loss[0]).tolist(),
        "alignment": alignment.tolist(),
    }


def _settings(full: bool, seeds: int, data: str | None) -> list[dict[str, Any]]:
    sigmas = _FULL_SIGMAS if full else _SIGMAS
    return [
        {"seed": seed, "depth": depth, "sigma": sigma, "activation": "linear"}
        for seed in range(seeds)
        for depth, values in sigmas.items()
        for sigma in values
    ]


def _deep_settings(full: bool, seeds: int, data: str | None) -> list[dict[str, Any]]:
    scales = {"linear": {2: 0.02, 3: 0.03, 4: 0.07, 5: 0.12}, "relu": {2: 0.05, 3: 0.2}}
    if full:
        scales["relu"] = {2: 0.02, 3: 0.1, 4: 0.25}
    return [
        {"seed": seed, "depth": depth, "sigma": sigma, "activation": activation}
        for seed in range(seeds)
        for activation, values in scales.items()
        for depth, sigma in values.items()
    ]


def _of_depth(rows: Sequence[Mapping[str, Any]], depth: int) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["depth"] == depth]


def _findings(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return exponents of the half-loss time in σ between the two smallest σ, and how much earlier kernels align."""
    found = {}
    for depth in sorted({row["depth"] for row in rows}):
        of_depth = _of_depth(rows, depth)
        small = sorted({float(row["sigma"]) for row in of_depth})[:2]
        times = [np.mean([row["half_loss_time"] for row in of_depth if row["sigma"] == sigma]) for sigma in small]
        found[f"exponent_{depth}"] = float(np.log(times[0] / times[1]) / np.log(small[0] / small[1]))
        ratios = [row["alignment_time"] / row["half_loss_time"] for row in of_depth]
        found[f"latest_alignment_{depth}"] = float(max(ratios))
    return found


def _deep_findings(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return alignments at the end, and how far those of linear networks are from theory, relatively."""
    found = {}
    for activation, depth in dict.fromkeys((row["activation"], row["depth"]) for row in rows):
        of_kind = [row["final_alignment"] for row in _of_depth(rows, depth) if row["activation"] == activation]
        found[f"alignment_{activation}_{depth}"] = float(np.mean(of_kind))
        if activation == "linear":
            wanted = theory.max_alignment(depth, _DIM)
            found[f"off_theory_{depth}"] = float(max(abs(value / wanted - 1.0) for value in of_kind))
    return found


def _draw(rows: Sequence[Mapping[str, Any]]) -> Figure:
    depths = sorted({row["depth"] for row in rows})
    tints = dict(zip(depths, colours(len(depths)), strict=True))
    times = []
    for depth in depths:
        of_depth = sorted(_of_depth(rows, depth), key=lambda row: float(row["sigma"]))
        sigmas = np.array([row["sigma"] for row in of_depth])
        halves = np.array([row["half_loss_time"] for row in of_depth])
        times.append(Curve(sigmas, halves, rf"$L = {depth}$", tints[depth], "points"))
        guide = (
            halves[0] + np.log(sigmas[0] / sigmas) if depth == 2 else halves[0] * (sigmas / sigmas[0]) ** (2 - depth)
        )
        times.append(Curve(sigmas, guide, colour=tints[depth], kind="theory"))
    panels = [
        Panel(
            times,
            title=r"dashed: $\sigma^{2-L}$ ($L = 2$: $\ln 1/\sigma$)",
            xlabel=r"$\sigma$",
            ylabel=r"half-loss time  $t_{1/2}$",
            xscale="log",
            yscale="log",
        )
    ]
    for name, ylabel in (("alignment", r"alignment  $A(K)$"), ("loss", r"loss  $\mathcal{L}/\mathcal{L}_0$")):
        curves = []
        for depth in depths:
            row = min(_of_depth(rows, depth), key=lambda row: float(row["sigma"]))
            label = rf"$L = {depth},\ \sigma = {row['sigma']:g}$"
            time = np.array(row["time"]) / row["half_loss_time"]
            seen = time <= 2.2
            curves.append(Curve(time[seen], np.array(row[name])[seen], label, tints[depth]))
            if name == "alignment":
                limit = theory.max_alignment(depth, _DIM)
                curves.append(Curve([0.0, 2.0], [limit, limit], colour=tints[depth], kind="theory"))
        panels.append(Panel(curves, xlabel=r"time  $t\,/\,t_{1/2}$", ylabel=ylabel))
    return panels_figure(panels)


def _deep_draw(rows: Sequence[Mapping[str, Any]]) -> Figure:
    panels = []
    for activation in ("linear", "relu"):
        of_kind = [row for row in rows if row["activation"] == activation]
        depths = sorted({row["depth"] for row in of_kind})
        tints = dict(zip(depths, colours(len(depths)), strict=True))
        curves = []
        for row in of_kind:
            depth = row["depth"]
            time = np.array(row["time"]) / row["half_loss_time"]
            curves.append(Curve(time, row["alignment"], rf"$L = {depth}$", tints[depth]))
            if activation == "linear":
                limit = theory.max_alignment(depth, _DIM)
                curves.append(Curve([0.0, time[-1]], [limit, limit], colour=tints[depth], kind="theory"))
        title = r"linear; dashed $L/\sqrt{L^2 + r - 1}$" if activation == "linear" else "ReLU"
        panels.append(Panel(curves, title=title, xlabel=r"time  $t\,/\,t_{1/2}$", ylabel=r"alignment  $A(K)$"))
    return panels_figure(panels)


FIGURE_3 = PaperFigure(
    name="3",
    title="time to half the loss grows as sigma^(2-L) with depth L, and kernels align before",
    cost="about 20 seconds; the paper's sigmas take minutes",
    run=_run,
    settings=_settings,
    findings=_findings,
    draw=_draw,
)
FIGURE_E = PaperFigure(
    name="E",
    title="E.1 to E.3: the deeper, the more the final kernel is aligned, as L/sqrt(L^2 + r - 1) in linear networks",
    cost="about 20 seconds; deeper ReLU networks take minutes",
    run=_run,
    settings=_deep_settings,
    findings=_deep_findings,
    draw=_deep_draw,
)
