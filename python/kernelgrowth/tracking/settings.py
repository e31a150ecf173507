"""What a tracker was asked for: its settings checked by name, and their form in a recorded run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from kernelgrowth._backend.arrays import array_namespace, as_array, float_dtype, to_numpy
from kernelgrowth._backend.checks import check_choice, check_integer, check_number
from kernelgrowth._backend.errors import RunFolderError
from kernelgrowth.tracking.metrics import check_metrics
from kernelgrowth.tracking.provenance import package_version, provenance
from kernelgrowth.tracking.schedule import check_every
from kernelgrowth.tracking.targets import check_probe_targets

__all__ = ["OUTPUTS", "Probe", "Settings", "check_metadata", "check_same_run", "describe_run"]

OUTPUTS = ("full", "trace", "mean_trace", "sum_logits")
"""How a network's outputs may enter the tracked kernel, which has to be a matrix."""

# A resumed run may train for longer and be watched at another cost; everything else makes it another run.
_MAY_CHANGE = frozenset({"max_overhead", "steps"})


@dataclass(frozen=True)
class Settings:
    """The settings of a tracker; see `NTKTracker`."""

    every: int | tuple[int, ...]
    top_k: int
    metrics: tuple[str, ...]
    max_overhead: float | None
    outputs: str
    kernel_budget: int

    @classmethod
    def checked(
        cls, *, every: Any, top_k: Any, metrics: Any, max_overhead: Any, outputs: Any, kernel_budget: Any
    ) -> Settings:
        """Return the settings, or raise `ValueError` or `TypeError` naming the one that is impossible."""
        overhead = None
        if max_overhead is not None:
            overhead = check_number("max_overhead", max_overhead, minimum=0.0, exclusive_minimum=True)
        return cls(
            every=check_every(every),
            top_k=check_integer("top_k", top_k, minimum=1),
            metrics=check_metrics(metrics),
            max_overhead=overhead,
            outputs=check_choice("outputs", outputs, OUTPUTS),
            kernel_budget=check_integer("kernel_budget", kernel_budget, minimum=0),
        )


@runtime_checkable
class Examples(Protocol):
    """Examples of a network that takes something else than one floating array."""

    def __len__(self) -> int:
        """N."""

    def __getitem__(self, examples: Any) -> Any:
        """Return those numbered by an integer array."""

    def arrays(self) -> list[npt.NDArray[Any]]:
        """Return all that tells them from others."""


@dataclass(frozen=True)
class Probe:
    """The examples a kernel is followed on, N of them, and those held out for K(x_test, x_probe)."""

    x: Any
    y: Any
    x_test: Any | None

    @classmethod
    def checked(cls, x_probe: Any, y_probe: Any, x_test: Any) -> Probe:
        """Return the probe set, or raise `ValueError` or `TypeError` naming the array that is not usable."""
        x = _inputs("x_probe", x_probe)
        y = check_probe_targets(y_probe, len(x))
        if y.dtype.kind == "f" and hasattr(x, "dtype"):
            float_dtype(x_probe=x, y_probe=y)
        if x_test is None:
            return cls(x, y, None)
        test = _inputs("x_test", x_test)
        if not hasattr(x, "dtype"):
            return cls(x, y, test)
        float_dtype(x_probe=x, x_test=test)
        if test.shape[1:] != x.shape[1:]:
            raise ValueError(f"x_test must have examples of shape {x.shape[1:]} like x_probe, got {test.shape[1:]}")
        return cls(x, y, test)

    def part(self, examples: npt.NDArray[np.int64]) -> Probe:
        """Return these examples, without those held out."""
        y = self.y[array_namespace(self.y).asarray(examples)]
        x = self.x[array_namespace(self.x).asarray(examples)]
        return Probe(x, y, None)

    def fingerprint(self) -> str:
        """SHA-256 of shapes, dtypes and values: equal for equal probe sets only."""
        digest = hashlib.sha256()
        for part in (self.x, self.y, self.x_test):
            if part is None:
                digest.update(b"none")
                continue
            for array in [part] if hasattr(part, "dtype") else part.arrays():
                values = np.ascontiguousarray(to_numpy(array))
                digest.update(f"{values.dtype.str}{values.shape}".encode())
                digest.update(values.data if values.size else b"")
        return digest.hexdigest()


def _inputs(name: str, x: Any) -> Any:
    if isinstance(x, Examples):
        return x
    array = as_array(name, x)
    if array.ndim < 2:
        raise ValueError(f"{name} must be examples (N, ...) with at least 2 dimensions, got shape {array.shape}")
    if 0 in array.shape:
        raise ValueError(f"{name} must hold at least one example with at least one value, got shape {array.shape}")
    # Once, instead of in every forward sweep.
    return array_namespace(array).ascontiguousarray(array)


def describe_run(
    settings: Settings,
    probe: Probe,
    training: Any = None,
    net: Any = None,
    metadata: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return what is kept of a run that starts: version, status, configuration, probe set, where and of what it is.

    `training` is a trainer's state; of its net, optimizer and loss what they tell of themselves is kept. `net` is what
    is followed; one with a preconditioner has another kernel than without, so that is said too.
    """
    config = asdict(settings)
    if hasattr(net, "preconditioner"):
        config["preconditioner"] = str(getattr(net, "preconditioned_by", "unnamed"))
    for name in ("net", "optimizer"):
        owner = getattr(training, name, None)
        if callable(getattr(owner, "config", None)):
            config["network" if name == "net" else name] = owner.config()  # type: ignore[union-attr]
    for key, value in (
        ("loss", getattr(getattr(training, "loss_function", None), "name", None)),
        ("layer_lr", getattr(training, "layer_lr", None)),
        ("steps", getattr(training, "steps", None)),
    ):
        if value is not None:
            config[key] = value
    description = {
        "kernelgrowth": package_version("kernelgrowth"),
        "status": "running",
        "config": config,
        "num_examples": len(probe.x),
        "num_test": 0 if probe.x_test is None else len(probe.x_test),
        "probe_sha256": probe.fingerprint(),
        **provenance(),
    }
    if metadata:
        description["metadata"] = dict(metadata)
    # What is compared with a run read back has to have gone through JSON too.
    plain: dict[str, Any] = json.loads(json.dumps(description, default=_plain))
    return plain


def check_metadata(metadata: Any) -> dict[str, Any]:
    """Return what is to be kept with a run, as JSON gives it back; `TypeError` if JSON cannot hold it."""
    if not isinstance(metadata, Mapping):
        raise TypeError(f"metadata must be a mapping, got {type(metadata).__name__}")
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(metadata), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(f"metadata must hold values that JSON can: {error}") from error
    return plain


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else repr(value)


def check_same_run(recorded: dict[str, Any], wanted: dict[str, Any], where: Any) -> None:
    """Raise `RunFolderError` naming the first thing in which a recorded run is not the one to be resumed."""
    before, now = recorded["config"], wanted["config"]
    for key in sorted((before.keys() | now.keys()) - _MAY_CHANGE):
        if before.get(key) != now.get(key):
            raise RunFolderError(
                f"{where}: holds another run, {key} was {before.get(key)!r} and is now {now.get(key)!r}: "
                f"choose another folder, or resume with the same settings"
            )
    if recorded.get("probe_sha256") != wanted["probe_sha256"]:
        raise RunFolderError(f"{where}: holds a run on another probe set: x_probe, y_probe or x_test have changed")
