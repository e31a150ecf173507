"""The numbers of a run: verdict, alignment, and how well kernel regression predicts the network."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kernelgrowth._backend.arrays import FloatArray
from kernelgrowth._backend.errors import RunFolderError
from kernelgrowth._backend.files import atomic_save_arrays, atomic_write_text
from kernelgrowth.diagnostics import KernelRegression, silent_alignment
from kernelgrowth.tracking import History

__all__ = ["Predictions", "kernel_predictions", "predictor_error", "read_summary", "summarise", "write_summary"]

_FILE = "summary.json"
TIMINGS = ("seconds_total", "seconds_training", "seconds_tracking")


@dataclass(frozen=True)
class Predictions:
    """Outputs (M, C) for the M examples held out: the network's and those of three kernel regressions.

    Attributes
    ----------
    network : ndarray
        The trained network's.
    final : ndarray
        Kernel regression with K_∞.
    final_matched : ndarray or None
        Kernel flow with K_∞, stopped where its training loss equals the network's; None where that never happens, or
        the loss is not "mse".
    initial : ndarray
        Kernel regression with K_0.
    """

    network: FloatArray
    final: FloatArray
    final_matched: FloatArray | None
    initial: FloatArray

    def errors(self) -> dict[str, float]:
        """Return `predictor_error` of each regression by its attribute name, NaN where there is none."""
        named = {"final": self.final, "final_matched": self.final_matched, "initial": self.initial}
        return {
            name: math.nan if values is None else predictor_error(values, self.network)
            for name, values in named.items()
        }

    def arrays(self) -> dict[str, FloatArray]:
        """Return the arrays by name, without those there are not."""
        named = {"network": self.network, "final": self.final, "initial": self.initial}
        return named if self.final_matched is None else named | {"final_matched": self.final_matched}


def predictor_error(predicted: Any, network: Any) -> float:
    """Return ``|f_kernel − f_net| / |f_net|``, root mean squares over examples and outputs; NaN for f_net = 0."""
    kernel, net = np.asarray(predicted, dtype=np.float64), np.asarray(network, dtype=np.float64)
    size = float(np.linalg.norm(net))
    return float(np.linalg.norm(kernel - net)) / size if size > 0 else math.nan


def kernel_predictions(history: History, loss: str = "mse") -> Predictions | None:
    """Return what kernel regression with the first and the last recorded kernel predicts, beside the network.

    Both start from the initial network: ``f_0(x) + k(x)ᵀ K⁻¹ (y − f_0)``, in which y are the targets for the loss
    "mse". Other losses have no finite minimum at their labels, so there y are the network's final outputs on the
    training set: the question is then whether the function between the training examples is the kernel's.

    Parameters
    ----------
    history : History
        A run whose probe set was the training set, tracked with `x_test`.
    loss : str
        Its training loss.

    Returns
    -------
    Predictions or None
        None without held-out examples, before the run has ended, and for outputs "sum_logits", whose kernel predicts no
        single output.
    """
    steps = history.steps
    if len(steps) < 2 or history.config.get("outputs") == "sum_logits":
        return None
    first, last = int(steps[0]), int(steps[-1])
    try:
        kernels = {step: (history.kernel(step), history.test_kernel(step)) for step in (first, last)}
        f0, f0_test = history.predictions(first), history.test_predictions(first)
        trained, network = history.predictions(last), history.test_predictions(last)
        targets = history.targets.reshape(trained.shape) if loss == "mse" else trained
    except KeyError:
        return None
    fitted = {step: KernelRegression(kernel).fit(targets, f0=f0) for step, (kernel, _) in kernels.items()}
    matched = None
    if loss == "mse":
        reached = 0.5 * float(np.mean(np.sum((trained.astype(np.float64) - targets) ** 2, axis=1)))
        try:
            matched = fitted[last].predict_at(kernels[last][1], train_loss=reached, f0=f0_test)
        except ValueError:
            # A kernel without full rank never gets to that loss.
            matched = None
    return Predictions(
        network=network,
        final=fitted[last].predict(kernels[last][1], f0=f0_test),
        final_matched=matched,
        initial=fitted[first].predict(kernels[first][1], f0=f0_test),
    )


def summarise(
    history: History, facts: Mapping[str, Any], timings: Mapping[str, float] | None = None
) -> tuple[dict[str, Any], Predictions | None]:
    """Return the summary of a recorded run, as ``summary.json`` holds it but with NaN for what is undefined.

    Parameters
    ----------
    history : History
        The run, of at least two tracked steps.
    facts : mapping
        What `experiment_facts` says of it; may be empty for a run recorded without an experiment.
    timings : mapping, optional
        "seconds_total" and "seconds_training".

    Returns
    -------
    summary : dict
    predictions : Predictions or None
        None where they are not comparable: see `kernel_predictions`, and where the probe set is not the training set.

    Raises
    ------
    RunFolderError
        If fewer than two steps are recorded.
    """
    if len(history.steps) < 2:
        raise RunFolderError(f"the run has {len(history.steps)} tracked step(s): there is nothing to summarise yet")
    verdict = silent_alignment(history)
    loss_name = str(facts.get("loss") or history.config.get("loss", "mse"))
    predictions = kernel_predictions(history, loss_name) if _probe_is_training_set(history, facts) else None
    errors = predictions.errors() if predictions is not None else {}
    loss, norm = history["loss"], history["kernel_norm"]
    limit = facts.get("alignment_max_theory")
    timed = dict.fromkeys(TIMINGS, math.nan) | dict(timings or {})
    timed["seconds_tracking"] = float(np.sum(history["seconds"]))
    return {
        "title": str(facts.get("title") or "Run"),
        "status": history.status,
        "verdict": verdict.verdict,
        "verdict_sentence": verdict.summary(),
        "silent_alignment_score": verdict.score,
        "weighted_score": verdict.weighted_score,
        "rotation": verdict.rotation,
        "growth": verdict.growth,
        "t_align": verdict.t_align,
        "t_grow": verdict.t_grow,
        "t_loss": verdict.t_loss,
        "alignment_initial": float(history["alignment"][0]),
        "alignment_final": float(history["alignment"][-1]),
        "alignment_max_theory": math.nan if limit is None else float(limit),
        "predictor_error_final": errors.get("final", math.nan),
        "predictor_error_final_matched": errors.get("final_matched", math.nan),
        "predictor_error_initial": errors.get("initial", math.nan),
        "loss_initial": float(loss[0]),
        "loss_final": float(loss[-1]),
        "loss_ratio": float(loss[-1] / loss[0]) if loss[0] > 0 else math.nan,
        "kernel_norm_initial": float(norm[0]),
        "kernel_norm_final": float(norm[-1]),
        "steps": int(history.steps[-1]),
        "tracked_steps": len(history.steps),
        **timed,
    }, predictions


def _probe_is_training_set(history: History, facts: Mapping[str, Any]) -> bool:
    known = facts.get("probe_is_training_set")
    if known is not None:
        return bool(known)
    # A run recorded without an experiment: full-batch training on the probe set has one loss on both.
    whole = history["loss_error"] == 0.0 if "loss_error" in history else np.full(len(history.steps), True)
    return bool(np.allclose(history["loss"][whole], history["train_loss"][whole], rtol=1e-4, atol=0.0))


def write_summary(folder: Path, summary: Mapping[str, Any], predictions: Predictions | None) -> None:
    """Write ``summary.json`` (null for NaN) and ``predictions.npz``; a `RunFolderError` names a file that cannot be."""
    path = folder / _FILE
    plain = {key: _null_for_nan(value) for key, value in summary.items()}
    try:
        atomic_write_text(path, json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        if predictions is not None:
            path = folder / "predictions.npz"
            atomic_save_arrays(path, predictions.arrays())
    except OSError as error:
        raise RunFolderError(f"{path}: cannot write: {error.strerror or error}") from error


def read_summary(folder: Path) -> dict[str, Any]:
    """Return what ``summary.json`` holds; nothing if there is none yet or it cannot be read."""
    try:
        summary = json.loads((folder / _FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return summary if isinstance(summary, dict) else {}


def _null_for_nan(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
