"""Figure 2: the kernel's metric in the plane of inputs turns into an ellipse before the function moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kernelgrowth.datasets import gaussian_teacher
from kernelgrowth.experiments.figures.figure import PaperFigure
from kernelgrowth.experiments.figures.following import followed
from kernelgrowth.nets import MLP
from kernelgrowth.report.panels import Curve, Field, Panel, panels_figure
from kernelgrowth.report.style import FINAL, LOSS
from kernelgrowth.training import TrainingState

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FIGURE"]

_WIDTH, _SIGMA, _LR = 300, 0.01, 0.01
_BETA = (0.8, 0.6)


def _run(seed: int, sigma: float) -> dict[str, Any]:
    dataset = gaussian_teacher(20, 2, beta=list(_BETA), whiten=True, seed=seed)
    net = MLP([2, _WIDTH, 1], "linear", sigma=sigma)

    def look(state: TrainingState) -> Sequence[float]:
        w, a = state.params["layer1.weight"], state.params["layer2.weight"][0]
        # K(x, x') = x' M x for f = a . W x.
        metric = w.T @ w + (a @ a) * np.eye(2)
        return state.time, *(a @ w), *metric.ravel()

    steps = int((np.log(1.0 / sigma) + 5.0) / _LR)
    seen = followed(net, dataset, look, steps=steps, every=5, lr=_LR, seed=seed)
    learnt = np.linalg.norm(seen[:, 1:3], axis=1)
    # At the start, when the function has moved by a tenth at most, and at the end.
    moments = [0, int(np.flatnonzero(learnt <= 0.1)[-1]), len(seen) - 1]
    metrics = seen[moments, 3:].reshape(-1, 2, 2)
    spectra = np.linalg.eigvalsh(metrics)
    tops = np.linalg.eigh(metrics)[1][:, :, 1]
    return {
        "time": seen[moments, 0].tolist(),
        "path": seen[:, 1:3].tolist(),
        "learnt": seen[moments, 1:3].tolist(),
        "metric": metrics.tolist(),
        **{f"stretch_{i}": float(s[1] / s[0]) for i, s in enumerate(spectra)},
        **{f"cosine_{i}": float(abs(top @ np.array(_BETA))) for i, top in enumerate(tops)},
        **{f"learnt_{i}": float(learnt[moment]) for i, moment in enumerate(moments)},
    }


def _settings(full: bool, seeds: int, data: str | None) -> list[dict[str, Any]]:
    return [{"seed": seed, "sigma": _SIGMA / 10 if full else _SIGMA} for seed in range(seeds)]


def _findings(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return, at three moments, how long the metric is, its cosine with the teacher, and the length learnt."""
    names = [f"{name}_{i}" for name in ("stretch", "cosine", "learnt") for i in range(3)]
    return {name: float(np.mean([row[name] for row in rows])) for name in names}


def _draw(rows: Sequence[Mapping[str, Any]]) -> Figure:
    row = rows[0]
    axis = np.linspace(-1.3, 1.3, 121)
    plane = np.stack(np.meshgrid(axis, axis), axis=-1)
    panels = []
    for time, learnt, metric in zip(row["time"], row["learnt"], row["metric"], strict=True):
        inverse = np.linalg.inv(np.array(metric))
        values = np.sqrt(np.einsum("ijk,kl,ijl->ij", plane, inverse / np.trace(inverse), plane))
        path = np.array(row["path"])
        path = path[np.linalg.norm(path, axis=1) <= np.linalg.norm(learnt) + 1e-12]
        panels.append(
            Panel(
                [
                    Curve(path[:, 0], path[:, 1], colour="#FFFFFF"),
                    Curve([learnt[0]], [learnt[1]], colour=FINAL, kind="points"),
                    Curve([_BETA[0]], [_BETA[1]], colour=LOSS, kind="points"),
                ],
                title=rf"$t = {time:.1f}$ (blue: learnt, orange: teacher)" if time == 0 else rf"$t = {time:.1f}$",
                xlabel=r"$\beta_1$",
                ylabel=r"$\beta_2$",
                field=Field(axis, axis, values),
                equal=True,
            )
        )
    return panels_figure(panels)


FIGURE = PaperFigure(
    name="2",
    title="level sets of beta' M^-1 beta: a sphere turns into an ellipse along the teacher, then the function moves",
    cost="a second",
    run=_run,
    settings=_settings,
    findings=_findings,
    draw=_draw,
)
