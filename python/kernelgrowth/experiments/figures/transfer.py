"""Figure F.1: what a kernel that has aligned with one task is worth for another that overlaps with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kernelgrowth import theory
from kernelgrowth.diagnostics import KernelRegression
from kernelgrowth.experiments.figures.figure import PaperFigure
from kernelgrowth.report.panels import Curve, Panel, colours, panels_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FIGURE"]

_DIM, _TEST = 25, 500
_EXAMPLES = (2, 5, 10, 15, 20)


def _run(seed: int, spike: float, overlap: float, draws: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    beta, across = np.eye(_DIM)[:2]
    target = overlap * beta + np.sqrt(1.0 - overlap**2) * across
    metric = np.eye(_DIM) + spike * np.outer(beta, beta)
    errors = []
    for count in _EXAMPLES:
        of_draws = []
        for _ in range(draws):
            x, x_test = rng.standard_normal((count, _DIM)), rng.standard_normal((_TEST, _DIM))
            fitted = KernelRegression(x @ metric @ x.T).fit(x @ target)
            of_draws.append(np.mean((fitted.predict(x_test @ metric @ x.T) - x_test @ target) ** 2))
        errors.append(float(np.mean(of_draws)))
    predicted = theory.transfer_curve(list(_EXAMPLES), _DIM, spike, overlap)
    return {"errors": errors, "theory": np.asarray(predicted).tolist()}


def _settings(full: bool, seeds: int, data: str | None) -> list[dict[str, Any]]:
    spikes, overlaps = (0.0, 1.0, 3.0, 10.0), (0.0, 0.5, 0.75, 1.0)
    draws = 3000 if full else 400
    return [
        {"seed": seed, "spike": spike, "overlap": overlap, "draws": draws}
        for seed in range(seeds)
        for overlap in overlaps
        for spike in spikes
    ]


def _findings(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the largest distance from theory, relative to E_g, and what a spike of 10 does to E_g at P = 10."""
    inside = [row for row in rows if row["overlap"] < 1.0]
    off = [np.abs(np.array(row["errors"]) / np.array(row["theory"]) - 1.0)[1:].max() for row in inside]
    at = _EXAMPLES.index(10)
    found = {"off_theory": float(np.max(off))}
    for overlap in sorted({row["overlap"] for row in rows}):
        error = {
            spike: np.mean([r["errors"][at] for r in rows if (r["overlap"], r["spike"]) == (overlap, spike)])
            for spike in (0.0, 10.0)
        }
        found[f"gain_{overlap:g}"] = float(error[0.0] / error[10.0])
    return found


def _draw(rows: Sequence[Mapping[str, Any]]) -> Figure:
    spikes = sorted({row["spike"] for row in rows})
    tints = dict(zip(spikes, colours(len(spikes)), strict=True))
    panels = []
    for overlap in sorted({row["overlap"] for row in rows}):
        curves = []
        for spike in spikes:
            of_kind = [row for row in rows if (row["overlap"], row["spike"]) == (overlap, spike)]
            mean = np.mean([row["errors"] for row in of_kind], axis=0)
            curves.append(Curve(_EXAMPLES, mean, rf"$A = {spike:g}$", tints[spike], "points"))
            continuous = np.linspace(0.0, 24.0, 97)
            predicted = theory.transfer_curve(continuous, _DIM, spike, overlap)
            curves.append(Curve(continuous, predicted, colour=tints[spike], kind="theory"))
        panels.append(Panel(curves, title=rf"$\alpha = {overlap:g}$", xlabel=r"examples  $P$", ylabel=r"error  $E_g$"))
    return panels_figure(panels, columns=2)


FIGURE = PaperFigure(
    name="F",
    title="F.1: a kernel aligned with one task learns an overlapping one faster, and others not much slower",
    cost="seconds; with many draws a minute",
    run=_run,
    settings=_settings,
    findings=_findings,
    draw=_draw,
)
