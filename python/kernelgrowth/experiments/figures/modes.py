"""Figure H.1: networks of several outputs learn the modes of a linear teacher one after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kernelgrowth.datasets import gaussian_teacher
from kernelgrowth.experiments.figures.figure import PaperFigure
from kernelgrowth.experiments.figures.following import crossing, followed
from kernelgrowth.nets import MLP
from kernelgrowth.report.panels import Curve, Panel, colours, panels_figure
from kernelgrowth.training import TrainingState

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FIGURE"]

_DIM, _WIDTH, _LR = 20, 60, 0.02
_STRENGTHS = (2.0, 1.2, 0.7)
# Networks whose product of initial scales is the same 1e-4, and the time until all modes are learnt.
_NETS = {"linear, L = 2": ("linear", 2), "linear, L = 4": ("linear", 4), "tanh, L = 3": ("tanh", 3)}
_SCALE = 1e-4
_TIMES = {2: 12.0, 3: 45.0, 4: 100.0}


def _run(seed: int, activation: str, depth: int) -> dict[str, Any]:
    dataset = gaussian_teacher(60, _DIM, s=list(_STRENGTHS), outputs=3, whiten=True, seed=seed)
    left, strengths, right = np.linalg.svd(dataset.info["B"])
    net = MLP([_DIM, *[_WIDTH] * (depth - 1), 3], activation, sigma=_SCALE ** (1.0 / depth))

    def look(state: TrainingState) -> Sequence[float]:
        # The linear part of the function, along each mode.
        outputs = net.forward(state.params, dataset.x)
        linear = np.asarray(outputs).T @ dataset.x / len(dataset.x)
        return state.time, state.loss, *np.einsum("ca,cd,ad->a", left[:, :3], linear, right[:3])

    steps = int(_TIMES[depth] / _LR)
    seen = followed(net, dataset, look, steps=steps, every=max(1, steps // 400), lr=_LR, seed=seed)
    time, loss, modes = seen[:, 0], seen[:, 1], seen[:, 2:]
    halves = [crossing(time, modes[:, a], strengths[a] / 2) for a in range(3)]
    return {
        **{f"half_time_{a}": half for a, half in enumerate(halves)},
        **{f"learnt_{a}": float(modes[-1, a] / strengths[a]) for a in range(3)},
        "time": time.tolist(),
        "loss": (loss / loss[0]).tolist(),
        "modes": modes.T.tolist(),
    }


def _settings(full: bool, seeds: int, data: str | None) -> list[dict[str, Any]]:
    return [
        {"seed": seed, "activation": activation, "depth": depth}
        for seed in range(10 * seeds if full else seeds)
        for activation, depth in _NETS.values()
    ]


def _findings(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return when each mode is half learnt, and how much of it is learnt in the end."""
    found = {}
    for activation, depth in _NETS.values():
        of_net = [row for row in rows if (row["activation"], row["depth"]) == (activation, depth)]
        times = np.array([[row[f"half_time_{a}"] for a in range(3)] for row in of_net]).mean(axis=0)
        for a in range(3):
            found[f"half_time_{activation}_{depth}_{a}"] = float(times[a])
            learnt = [row[f"learnt_{a}"] for row in of_net]
            found[f"learnt_{activation}_{depth}_{a}"] = float(np.mean(learnt))
    return found


def _draw(rows: Sequence[Mapping[str, Any]]) -> Figure:
    tints = colours(3)
    panels = []
    for title, (activation, depth) in _NETS.items():
        row = next(row for row in rows if (row["activation"], row["depth"]) == (activation, depth))
        curves = [Curve(row["time"], row["loss"], r"loss  $\mathcal{L}/\mathcal{L}_0$", "#222222")]
        for a, strength in enumerate(_STRENGTHS):
            label = rf"mode $s = {strength:g}$"
            curves.append(Curve(row["time"], np.array(row["modes"][a]) / strength, label, tints[a]))
        panels.append(
            Panel(curves, title=title, xlabel=r"time  $t$", ylabel=r"learnt  $z_\alpha^\top B(t) v_\alpha / s_\alpha$")
        )
    return panels_figure(panels)


FIGURE = PaperFigure(
    name="H",
    title="H.1: the loss of several outputs falls in steps, one for each mode of the teacher, the strongest first",
    cost="about 10 seconds; ten seeds a minute or two",
    run=_run,
    settings=_settings,
    findings=_findings,
    draw=_draw,
)
