"""Figures C.2 and C.3: two-layer linear networks, whose loss, half-loss time, q and r have closed forms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kernelgrowth import theory
from kernelgrowth.datasets import gaussian_teacher
from kernelgrowth.experiments.figures.figure import PaperFigure
from kernelgrowth.experiments.figures.following import crossing, followed
from kernelgrowth.nets import MLP
from kernelgrowth.report.panels import Curve, Panel, colours, panels_figure
from kernelgrowth.training import TrainingState

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FIGURE"]

_DIM, _WIDTH, _LR = 30, 50, 0.01


def _run(seed: int, sigma: float) -> dict[str, Any]:
    dataset = gaussian_teacher(_DIM + 10, _DIM, whiten=True, seed=seed)
    beta = dataset.info["beta"]
    net = MLP([_DIM, _WIDTH, 1], "linear", sigma=sigma)

    def look(state: TrainingState) -> Sequence[float]:
        w, a = state.params["layer1.weight"], state.params["layer2.weight"][0]
        along = w @ beta
        # On the time of gradient flow: a step of descent multiplies what grows as exp(t) by 1 + lr.
        time = state.step * math.log1p(_LR)
        return time, state.loss, 0.5 * (along @ along + a @ a), a @ along

    steps = int((2.0 * math.log(1.0 / sigma) / 2.0 + 5.0) / _LR)
    seen = followed(net, dataset, look, steps=steps, every=10, lr=_LR, seed=seed)
    time, loss, q, r = seen.T
    q_theory, r_theory = theory.two_layer(1.0, float(q[0]), time, float(r[0]))
    return {
        "half_loss_time": crossing(time, loss, loss[0] / 2),
        "error": float(max(np.abs(q - q_theory).max(), np.abs(r - r_theory).max())),
        **{name: values.tolist() for name, values in zip(("time", "loss", "q", "r"), seen.T, strict=True)},
        "q_theory": q_theory.tolist(),
        "r_theory": r_theory.tolist(),
    }


def _settings(full: bool, seeds: int, data: str | None) -> list[dict[str, Any]]:
    sigmas = np.geomspace(1e-1, 1e-4, 13 if full else 5)
    return [{"seed": seed, "sigma": float(sigma)} for seed in range(seeds) for sigma in sigmas]


def _findings(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the slope of the half-loss time in ln(1/σ), and how far q and r are off theory at the smallest σ."""
    logs = np.log([row["sigma"] for row in rows])
    return {
        "half_loss_time_slope": float(-np.polyfit(logs, [row["half_loss_time"] for row in rows], 1)[0]),
        "error_at_least_sigma": min(rows, key=lambda row: float(row["sigma"]))["error"],
    }


def _draw(rows: Sequence[Mapping[str, Any]]) -> Figure:
    first = [row for row in rows if row["seed"] == rows[0]["seed"]]
    tints = colours(len(first))
    losses, strengths = [], []
    for row, tint in zip(first, tints, strict=True):
        label = rf"$\sigma = {row['sigma']:.0e}$"
        predicted = 0.5 * (1.0 - np.array(row["r_theory"])) ** 2
        losses += [
            Curve(row["time"], np.array(row["loss"]) / row["loss"][0], label, tint),
            Curve(row["time"], predicted / predicted[0], colour="#222222", kind="theory"),
        ]
        strengths += [
            Curve(row["time"], row["q"], label, tint),
            Curve(row["time"], row["r"], colour=tint),
            Curve(row["time"], row["q_theory"], colour="#222222", kind="theory"),
            Curve(row["time"], row["r_theory"], colour="#222222", kind="theory"),
        ]
    sigmas = np.array([row["sigma"] for row in rows])
    times = np.array([row["half_loss_time"] for row in rows])
    slope = times[0] + np.log(sigmas[0] / sigmas)
    return panels_figure(
        [
            Panel(losses, xlabel=r"time  $t$", ylabel=r"loss  $\mathcal{L}/\mathcal{L}_0$"),
            Panel(
                [
                    Curve(sigmas, times, "gradient descent", tints[0], "points"),
                    Curve(np.sort(sigmas), slope[np.argsort(sigmas)], r"$\frac{1}{s} \ln 1/\sigma$", kind="theory"),
                ],
                xlabel=r"$\sigma$",
                ylabel=r"half-loss time  $t_{1/2}$",
                xscale="log",
            ),
            Panel(strengths, xlabel=r"time  $t$", ylabel=r"$q(t)$ and, below, $r(t)$", yscale="log"),
        ]
    )


FIGURE = PaperFigure(
    name="C",
    title="C.2 and C.3: two-layer linear networks follow their closed forms; the half-loss time grows as ln(1/sigma)",
    cost="seconds; the paper's sigmas take a minute",
    run=_run,
    settings=_settings,
    findings=_findings,
    draw=_draw,
)
