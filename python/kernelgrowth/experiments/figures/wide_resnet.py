"""Figures 1d, 1e and J.1 to J.3: the kernels of wide residual networks without normalisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kernelgrowth.datasets import Dataset, cifar10, whiten
from kernelgrowth.experiments.figures.figure import PaperFigure
from kernelgrowth.experiments.figures.following import early_steps, kernel_history
from kernelgrowth.experiments.figures.silent import silent_panels
from kernelgrowth.experiments.summary import summarise
from kernelgrowth.nets import WideResNet
from kernelgrowth.report.panels import Curve, Panel, colours, panels_figure
from kernelgrowth.training import optim

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FIGURE_1D", "FIGURE_J"]

_SIGMA = 0.3


def _images(root: str | None, examples: int, side: int, whitened: bool, seed: int) -> Dataset:
    if root is not None:
        return cifar10(root, classes=(0, 1), n_train=examples, n_test=examples, whiten=whitened, seed=seed)
    # Smooth random images with a linear teacher in their span, and others of the same covariance held out.
    rng = np.random.default_rng(seed)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side))) * side
    noise = np.fft.fft2(rng.standard_normal((examples, 3, side, side)))
    x = np.fft.ifft2(noise / (1.0 + frequency) ** 1.5).real.reshape(examples, -1)
    x *= examples / np.linalg.norm(x)
    x = whiten(x) if whitened else x
    _, singular, basis = np.linalg.svd(x, full_matrices=False)
    x_test = (rng.standard_normal((examples, len(singular))) * singular / np.sqrt(examples)) @ basis
    teacher = rng.standard_normal(len(singular)) @ basis
    size = np.sqrt(np.mean((x @ teacher) ** 2))
    arrays = {"x": x, "y": x @ teacher / size, "x_test": x_test, "y_test": x_test @ teacher / size}
    single = {name: array.astype(np.float32) for name, array in arrays.items()}
    return Dataset(**single, name="smooth random images")


def _run(
    seed: int,
    widening: int,
    blocks: int,
    whitened: bool,
    root: str | None,
    examples: int,
    side: int,
    first_sigma: float,
    lr: float,
    steps: int,
) -> dict[str, Any]:
    dataset = _images(root, examples, side, whitened, seed)
    net = WideResNet((3, side, side), 1, widening=widening, blocks=blocks, sigma=_SIGMA, first_sigma=first_sigma)
    history = kernel_history(
        net, dataset, steps=steps, every=early_steps(steps), seed=seed, optimizer=optim.Adam(lr), on_gpu=True
    )
    summary, predictions = summarise(history, {"loss": "mse"})
    assert predictions is not None
    names = ("silent_alignment_score", "growth", "t_align", "t_loss", "t_grow", "loss_ratio", "alignment_initial")
    errors = ("predictor_error_final", "predictor_error_final_matched", "predictor_error_initial")
    return {
        "verdict": summary["verdict"],
        **{name: summary[name] for name in (*names, *errors, "alignment_final")},
        **{name: history[name].tolist() for name in ("time", "loss", "kernel_norm", "alignment")},
        "network": predictions.network.ravel().tolist(),
        "final": predictions.final.ravel().tolist(),
        "initial": predictions.initial.ravel().tolist(),
    }


def _common(full: bool, data: str | None) -> dict[str, Any]:
    if not full:
        return {"root": None, "examples": 40, "side": 8, "first_sigma": 1.0, "lr": 3e-4, "steps": 600}
    if data is None:
        raise ValueError("data is missing: this figure needs the folder of CIFAR-10's files")
    return {"root": data, "examples": 100, "side": 32, "first_sigma": 6.0, "lr": 1e-5, "steps": 20000}


def _settings(full: bool, seeds: int, data: str | None) -> list[dict[str, Any]]:
    shape = {"widening": 4 if full else 2, "blocks": 1, "whitened": True}
    return [{"seed": seed, **shape, **_common(full, data)} for seed in range(seeds)]


def _shapes(full: bool, seeds: int, data: str | None) -> list[dict[str, Any]]:
    largest = 4 if full else 2
    shapes = [(largest, 1, False)]
    shapes += [(largest, blocks, True) for blocks in range(1, largest + 1)]
    shapes += [(widening, 1, True) for widening in range(1, largest)]
    return [
        {"seed": seed, "widening": widening, "blocks": blocks, "whitened": whitened, **_common(full, data)}
        for seed in range(seeds)
        for widening, blocks, whitened in shapes
    ]


def _findings(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return means over seeds."""
    names = (
        *("silent_alignment_score", "growth", "alignment_initial", "alignment_final", "loss_ratio"),
        *("predictor_error_final", "predictor_error_initial"),
    )
    return {name: float(np.mean([row[name] for row in rows])) for name in names}


def _findings_by_shape(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    found = {}
    for shape in dict.fromkeys(_label(row) for row in rows):
        of_shape = [row for row in rows if _label(row) == shape]
        for name in ("silent_alignment_score", "growth", "loss_ratio", "predictor_error_final"):
            found[f"{name}: {shape}"] = float(np.mean([row[name] for row in of_shape]))
    return found


def _label(row: Mapping[str, Any]) -> str:
    return f"k = {row['widening']}, b = {row['blocks']}" + ("" if row["whitened"] else ", not whitened")


def _draw(rows: Sequence[Mapping[str, Any]]) -> Figure:
    return panels_figure(silent_panels(rows[0]))


def _draw_shapes(rows: Sequence[Mapping[str, Any]]) -> Figure:
    shapes = list(dict.fromkeys(_label(row) for row in rows))
    panels = []
    for name, ylabel in (("alignment", r"alignment  $A(K)$"), ("loss", r"loss  $\mathcal{L}/\mathcal{L}_0$")):
        curves = []
        for shape, tint in zip(shapes, colours(len(shapes)), strict=True):
            row = next(row for row in rows if _label(row) == shape)
            time, values = np.array(row["time"]), np.array(row[name])
            late = time > 0
            scaled = values if name == "alignment" else values / values[0]
            curves.append(Curve(time[late], scaled[late], shape, tint))
        panels.append(Panel(curves, xlabel=r"time  $t$", ylabel=ylabel, xscale="log"))
    return panels_figure(panels)


FIGURE_1D = PaperFigure(
    name="1d",
    title="1d and 1e: a wide residual network trained by Adam; K_inf predicts what it learnt, K_0 does not",
    cost="10 seconds on random images; with CIFAR-10's files on a GPU, where there is one, or hours",
    run=_run,
    settings=_settings,
    findings=_findings,
    draw=_draw,
)
FIGURE_J = PaperFigure(
    name="J",
    title="J.1 to J.3: wide residual networks not whitened, and of several depths and widths",
    cost="half a minute on random images; with CIFAR-10's files on a GPU, where there is one, or days",
    run=_run,
    settings=_shapes,
    findings=_findings_by_shape,
    draw=_draw_shapes,
)
