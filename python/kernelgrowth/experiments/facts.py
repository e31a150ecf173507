"""What is known of an experiment before it is trained, kept beside its series in ``experiment.json``."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np

from kernelgrowth import theory
from kernelgrowth._backend.errors import RunFolderError
from kernelgrowth._backend.files import atomic_write_text
from kernelgrowth.datasets import Dataset
from kernelgrowth.experiments.config import ExperimentConfig
from kernelgrowth.nets import MLP

__all__ = ["experiment_facts", "linearly_explained", "read_facts", "write_facts"]

_FILE = "experiment.json"
_ACTIVATIONS = {"relu": "ReLU", "linear": "linear", "tanh": "tanh", "erf": "erf"}


def experiment_facts(config: ExperimentConfig, dataset: Dataset, net: MLP) -> dict[str, Any]:
    """Return what later steps need to know of data and network, as JSON values.

    Keys: ``title``, ``data``, ``n_train``, ``n_test``, ``num_features``, ``num_parameters``, ``depth``, ``loss``,
    ``probe_is_training_set``, ``rank`` (of the whitened inputs, None if they are not whitened),
    ``linearly_explained`` (R², None for several outputs), ``alignment_max_theory`` (None where the theory has no word),
    ``versions``, ``openblas_num_threads`` (None unless the environment sets it: eigenvalues' last bits depend on it).
    """
    whitening = dataset.info.get("whitening")
    rank = int(whitening.rank) if whitening is not None and whitening.gamma == 0.0 else None
    explained = linearly_explained(dataset.x, dataset.y) if net.num_outputs == 1 else None
    if explained is not None and not math.isfinite(explained):
        explained = None
    gamma = dataset.info.get("gamma")
    inputs = "not whitened" if gamma is None else "whitened" if gamma == 0.0 else f"whitened to γ = {gamma:g}"
    name = dataset.name[:1].upper() + dataset.name[1:]
    return {
        "title": f"{name}, {inputs}, {net.depth}-layer {_ACTIVATIONS[net.activation]} network",
        "data": dataset.name,
        "n_train": dataset.num_examples,
        "n_test": dataset.num_test,
        "num_features": dataset.num_features,
        "num_parameters": net.num_parameters,
        "depth": net.depth,
        "loss": config.training.loss,
        "probe_is_training_set": config.tracking.n_probe in (None, dataset.num_examples),
        "rank": rank,
        "linearly_explained": explained,
        "alignment_max_theory": _max_alignment(config, net, rank, explained),
        "versions": _versions(),
        "openblas_num_threads": os.environ.get("OPENBLAS_NUM_THREADS"),
    }


def linearly_explained(x: Any, y: Any) -> float:
    """Return R², the share of the squared targets that a linear function of the inputs explains (no constant term)."""
    inputs, targets = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64).ravel()
    total = float(targets @ targets)
    if total == 0.0:
        return math.nan
    left, singular, _ = np.linalg.svd(inputs, full_matrices=False)
    basis = left[:, singular > max(inputs.shape) * np.finfo(np.float64).eps * singular[0]]
    return min(1.0, float(np.sum((basis.T @ targets) ** 2)) / total)


def _max_alignment(config: ExperimentConfig, net: MLP, rank: int | None, explained: float | None) -> float | None:
    """Return A_∞ of the linear network of this depth where it was derived: full-batch descent on whitened inputs.

    It holds for every parameterisation: multipliers of weights change the balance of the layers, and the kernel in the
    same measure.
    """
    training = config.training
    derived = (
        rank is not None
        and explained is not None
        and net.depth >= 2
        and net.bias is False
        and training.loss == "mse"
        and training.optimizer == "gd"
        and training.batch_size is None
        and config.tracking.n_probe is None
    )
    rates = dict(training.layer_lr or {})
    if not derived or rank is None or explained is None or not all(rates.values()):
        return None
    return float(theory.max_alignment(net.depth, rank, rates or None, explained=explained))


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("kernelgrowth", "numpy", "scipy"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "unknown"
    return found


def write_facts(folder: Path, facts: dict[str, Any]) -> None:
    """Write ``experiment.json``; a failure is a `RunFolderError` naming the file."""
    path = folder / _FILE
    try:
        atomic_write_text(path, json.dumps(facts, indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise RunFolderError(f"{path}: cannot write: {error.strerror or error}") from error


def read_facts(folder: Path) -> dict[str, Any]:
    """Return what ``experiment.json`` holds; nothing if the run was recorded without one."""
    path = folder / _FILE
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path}: cannot be read: {error}") from error
    if not isinstance(facts, dict):
        raise RunFolderError(f"{path}: is corrupt: not an object")
    return facts
