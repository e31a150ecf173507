"""Figures 1a to 1c: a ReLU network aligns its kernel long before its loss falls, and ends as a kernel machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kernelgrowth import theory
from kernelgrowth.datasets import cifar10, digits, mnist
from kernelgrowth.experiments.facts import linearly_explained
from kernelgrowth.experiments.figures.figure import PaperFigure
from kernelgrowth.experiments.figures.following import early_steps, kernel_history
from kernelgrowth.experiments.summary import summarise
from kernelgrowth.nets import MLP
from kernelgrowth.report.panels import Curve, Panel, panels_figure
from kernelgrowth.report.style import ALIGNMENT, FINAL, INITIAL, LOSS, NORM
from kernelgrowth.training import optim

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FIGURE_1A", "FIGURE_1C", "silent_panels"]

_WIDTH = 100


def _dataset(name: str, root: str | None, seed: int, examples: int) -> Any:
    options: dict[str, Any] = {"classes": (0, 1), "n_train": examples, "whiten": True, "seed": seed}
    if root is None:
        return digits(**options, n_test=120)
    maker = {"mnist": mnist, "cifar10": cifar10}[name]
    return maker(root, **options, n_test=200, dtype=np.float32)


def _run(seed: int, data: str, root: str | None, examples: int, sigma: float, lr: float, steps: int) -> dict[str, Any]:
    dataset = _dataset(data, root, seed, examples)
    net = MLP([dataset.num_features, _WIDTH, 1], "relu", sigma=sigma)
    history = kernel_history(net, dataset, steps=steps, every=early_steps(steps), seed=seed, optimizer=optim.GD(lr))
    summary, predictions = summarise(history, {"loss": "mse"})
    assert predictions is not None
    explained = linearly_explained(dataset.x, dataset.y)
    names = ("silent_alignment_score", "weighted_score", "growth", "t_align", "t_loss", "t_grow", "loss_ratio")
    errors = ("predictor_error_final", "predictor_error_final_matched", "predictor_error_initial")
    return {
        "verdict": summary["verdict"],
        **{name: summary[name] for name in (*names, *errors)},
        "alignment_final": summary["alignment_final"],
        "alignment_theory": theory.max_alignment(2, int(dataset.info["whitening"].rank), explained=explained),
        **{name: history[name].tolist() for name in ("time", "loss", "kernel_norm", "alignment")},
        "network": predictions.network.ravel().tolist(),
        "final": predictions.final.ravel().tolist(),
        "initial": predictions.initial.ravel().tolist(),
    }


def _settings(full: bool, seeds: int, data: str | None) -> list[dict[str, Any]]:
    chosen: dict[str, Any] = {"data": "digits", "root": None, "examples": 240, "sigma": 0.01, "lr": 0.2, "steps": 4000}
    if full:
        chosen = {
            "data": "mnist",
            "root": _required(data, "MNIST"),
            "examples": 1000,
            "sigma": 0.01,
            "lr": 0.2,
            "steps": 8000,
        }
    return [{"seed": seed, **chosen} for seed in range(seeds)]


def _cifar_settings(full: bool, seeds: int, data: str | None) -> list[dict[str, Any]]:
    root = _required(data, "CIFAR-10")
    chosen = {"data": "cifar10", "root": root, "examples": 1000 if full else 200, "sigma": 0.1, "lr": 0.2}
    return [{"seed": seed, **chosen, "steps": 4000} for seed in range(seeds)]


def _required(data: str | None, name: str) -> str:
    if data is None:
        raise ValueError(f"data is missing: this figure needs the folder of {name}'s files")
    return data


def _findings(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return means over seeds, the share of silent runs, and when K aligned over when the loss fell."""
    names = (
        *("silent_alignment_score", "weighted_score", "growth", "alignment_final", "alignment_theory"),
        *("predictor_error_final", "predictor_error_final_matched", "predictor_error_initial"),
    )
    found = {name: float(np.mean([row[name] for row in rows])) for name in names}
    found["silent"] = float(np.mean([row["verdict"] == "silent" for row in rows]))
    found["align_before_loss"] = float(np.mean([row["t_align"] / row["t_loss"] for row in rows]))
    return found


def silent_panels(row: Mapping[str, Any]) -> list[Panel]:
    """Return panels of a run: loss and norm, alignment (and its limit where it is known), predictions held out."""
    time, loss, norm = (np.array(row[name]) for name in ("time", "loss", "kernel_norm"))
    late = time > 0
    alignment = [Curve(time[late], np.array(row["alignment"])[late], r"$A(K)$", ALIGNMENT)]
    if "alignment_theory" in row:
        limit = row["alignment_theory"]
        alignment.append(Curve([time[late][0], time[-1]], [limit, limit], r"linear theory  $A_\infty$", kind="theory"))
    ends = [min(row["network"]), max(row["network"])]
    return [
        Panel(
            [
                Curve(time[late], loss[late] / loss[0], r"loss  $\mathcal{L}/\mathcal{L}_0$", LOSS),
                Curve(time[late], norm[late] / norm[-1], r"norm  $\|K\|/\|K_\infty\|$", NORM),
            ],
            xlabel=r"time  $t$",
            ylabel="normalised",
            xscale="log",
        ),
        Panel(
            alignment,
            xlabel=r"time  $t$",
            ylabel=r"alignment  $A(K)$",
            xscale="log",
        ),
        Panel(
            [
                Curve(row["network"], row["initial"], r"$K_0$", INITIAL, "points"),
                Curve(row["network"], row["final"], r"$K_\infty$", FINAL, "points"),
                Curve(ends, ends, kind="guide"),
            ],
            xlabel=r"trained network  $f(x)$",
            ylabel="kernel regression",
        ),
    ]


def _draw(rows: Sequence[Mapping[str, Any]]) -> Figure:
    return panels_figure(silent_panels(rows[0]))


FIGURE_1A = PaperFigure(
    name="1",
    title="1a and 1b: a ReLU network aligns silently on whitened digits, and K_inf predicts what it learnt",
    cost="seconds on digits; with MNIST's files minutes",
    run=_run,
    settings=_settings,
    findings=_findings,
    draw=_draw,
)
FIGURE_1C = PaperFigure(
    name="1c",
    title="the same for CIFAR-10's first two classes",
    cost="needs CIFAR-10's files; a minute, with all examples several",
    run=_run,
    settings=_cifar_settings,
    findings=_findings,
    draw=_draw,
)
