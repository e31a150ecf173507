"""From a configuration to the objects of an experiment: data set, network, optimizer, tracker."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from kernelgrowth import datasets, nets
from kernelgrowth.experiments.config import ConfigError, DataConfig, ExperimentConfig, NetConfig
from kernelgrowth.tracking import NTKTracker
from kernelgrowth.training import optim

__all__ = ["build_dataset", "build_net", "build_optimizer", "build_tracker", "network_targets"]

_TARGETS = {"mse": "auto", "logistic": "sign", "cross_entropy": "index"}
_TEACHER_SIZES = {"n_train": 200, "dim": 30, "n_test": 100}


def build_dataset(config: ExperimentConfig) -> datasets.Dataset:
    """Load or draw the data set, in the dtype of training.

    Raises
    ------
    ConfigError
        If the data set refuses an argument, or a file is missing or not what it should be.
    """
    data = config.data
    options: dict[str, Any] = {**data.options(), "whiten": data.whitening, "dtype": np.dtype(config.training.dtype)}
    if data.name == "gaussian_teacher":
        options = _TEACHER_SIZES | options
    else:
        targets = data.targets or "auto"
        options["targets"] = _TARGETS[config.training.loss] if targets == "auto" else targets
    try:
        dataset: datasets.Dataset = _maker(data)(**options)
    except (TypeError, ValueError, OSError) as error:
        raise ConfigError("data", f"data set {data.name!r}: {_message(error)}") from error
    return dataset


def _maker(data: DataConfig) -> Any:
    return {
        "digits": datasets.digits,
        "mnist": datasets.mnist,
        "cifar10": datasets.cifar10,
        "gaussian_teacher": datasets.gaussian_teacher,
    }[data.name]


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)


def network_targets(dataset: datasets.Dataset) -> int:
    """Return how many outputs a network needs for the targets of a data set."""
    if np.dtype(dataset.y.dtype).kind in "iu":
        return len(dataset.info["classes"])
    return 1 if dataset.y.ndim == 1 else int(dataset.y.shape[1])


def build_net(config: NetConfig, dataset: datasets.Dataset) -> nets.MLP:
    """Build the network whose inputs and outputs fit the data set.

    Raises
    ------
    ConfigError
        If `net.widths` does not fit.
    """
    inputs, outputs = dataset.num_features, network_targets(dataset)
    if config.widths is not None:
        for name, given, needed in (("first", config.widths[0], inputs), ("last", config.widths[-1], outputs)):
            if given != needed:
                raise ConfigError(
                    "net.widths",
                    f"net.widths must have {needed} as its {name} entry for this data set, got {given}; "
                    f"net.hidden leaves it to the data",
                )
    widths = config.widths or (inputs, *(config.hidden or ()), outputs)
    return nets.MLP(
        widths=list(widths),
        activation=config.activation,
        parameterization=config.parameterization,
        sigma=config.sigma,
        bias=config.bias,  # type: ignore[arg-type]
    )


def build_optimizer(config: ExperimentConfig) -> optim.Optimizer:
    """Build the optimizer of ``[training]``."""
    return optim.OPTIMIZERS[config.training.optimizer](**config.training.optimizer_options())


def build_tracker(config: ExperimentConfig, dataset: datasets.Dataset, out: str | os.PathLike[str]) -> NTKTracker:
    """Build the tracker that records the kernel on the probe set to the run folder `out`.

    Raises
    ------
    ConfigError
        If more probe examples are asked for than the training set has.
    """
    tracking = config.tracking
    n_probe = dataset.num_examples if tracking.n_probe is None else tracking.n_probe
    if n_probe > dataset.num_examples:
        raise ConfigError(
            "tracking.n_probe",
            f"tracking.n_probe must be at most the {dataset.num_examples} training examples, got {n_probe}",
        )
    return NTKTracker(
        dataset.x[:n_probe],
        dataset.y[:n_probe],
        every=tracking.schedule(config.training.steps),
        top_k=tracking.top_k,
        x_test=dataset.x_test,
        out=Path(out),
        max_overhead=tracking.max_overhead,
        outputs=tracking.outputs,
        kernel_budget=tracking.kernel_budget,
        metadata={"experiment": config.to_dict()},
    )
