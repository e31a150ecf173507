"""The sections of an experiment's configuration: frozen dataclasses that check themselves."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from kernelgrowth.experiments.checkers import (
    choice,
    flag,
    flag_or,
    integer,
    integer_or_steps,
    list_of,
    number,
    optional,
    rates,
    text,
    whitening,
)

__all__ = [
    "ConfigError",
    "DataConfig",
    "NetConfig",
    "OutputConfig",
    "Section",
    "TrackingConfig",
    "TrainingConfig",
    "unknown_key",
]

_SHARED = frozenset({"name", "n_train", "n_test", "whitening", "seed"})
_IMAGES = _SHARED | {"classes", "targets", "reduce"}
_TEACHER = frozenset({"dim", "spectrum", "power_law", "teacher", "s", "outputs", "teacher_width", "noise"})
_DATA_KEYS = {
    "digits": _IMAGES,
    "mnist": _IMAGES | {"root"},
    "cifar10": _IMAGES | {"root"},
    "gaussian_teacher": _SHARED | _TEACHER,
}
_OPTIMIZER_KEYS = {
    "gd": (),
    "momentum": ("beta", "nesterov"),
    "adam": ("beta1", "beta2", "eps"),
    "rmsprop": ("alpha", "eps"),
}


class ConfigError(ValueError):
    """A key or value of a configuration is wrong.

    Attributes
    ----------
    key : str
        Dotted path of the key, or "" where the text is no TOML.
    problem : str
        What is wrong, naming the key.
    source : str or None
        The file.
    line : int or None
        The line in it, counted from 1.
    """

    def __init__(self, key: str, problem: str, *, source: str | None = None, line: int | None = None) -> None:
        super().__init__(key, problem)
        self.key = key
        self.problem = problem
        self.source = source
        self.line = line

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.source, self.line) if part is not None)
        return f"{place}: {self.problem}" if place else self.problem


def _key(check: Any, default: Any = dataclasses.MISSING) -> Any:
    return field(default=default, metadata={"check": check})


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section whose fields carry their checks."""

    section: ClassVar[str]

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            path = f"{self.section}.{item.name}"
            try:
                value = item.metadata["check"](path, getattr(self, item.name))
            except (TypeError, ValueError) as error:
                raise ConfigError(path, str(error)) from None
            object.__setattr__(self, item.name, value)

    @classmethod
    def from_dict(cls, table: Any) -> Self:
        """Build the section from a table of plain values; unknown and missing keys are a `ConfigError`."""
        if not isinstance(table, Mapping):
            raise ConfigError(cls.section, f"{cls.section} must be a table, [{cls.section}], got {table!r}")
        names = [item.name for item in dataclasses.fields(cls)]
        for key in table:
            if key not in names:
                raise unknown_key(f"{cls.section}.{key}", key, names, f"[{cls.section}]")
        for item in dataclasses.fields(cls):
            if item.default is dataclasses.MISSING and item.name not in table:
                raise ConfigError(cls.section, f"{cls.section}.{item.name} is missing")
        return cls(**table)

    def to_dict(self) -> dict[str, Any]:
        """Return the keys that have a value, as plain values that TOML can hold."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return {
            key: list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value
            for key, value in values.items()
            if value is not None and value != {}
        }


@dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    """``[data]``: what is learnt. Keys that the chosen data set does not use are refused.

    Attributes
    ----------
    name : {"digits", "mnist", "cifar10", "gaussian_teacher"}
    root : str, optional
        Folder of the files, for "mnist" and "cifar10".
    classes : tuple of int, optional
        Labels to keep, for images; all by default ("digits": 0 and 1).
    n_train, n_test : int, optional
        Numbers of examples; see the data set for the defaults.
    whitening : bool or float
        True whitens the inputs, False leaves them, gamma in [0, 1] whitens partially (0.0 is True, 1.0 only rescales).
    reduce : bool, optional
        Whether whitened images are coordinates in the span of the training set instead of pixels.
    targets : str, optional
        Form of the targets of images; by default what the loss takes.
    seed : int
        Chooses examples, or draws inputs and teacher.
    dim, spectrum, power_law, teacher, s, outputs, teacher_width, noise
        Of "gaussian_teacher", as in `kernelgrowth.datasets.gaussian_teacher`.
    """

    section: ClassVar[str] = "data"

    name: str = _key(choice("digits", "mnist", "cifar10", "gaussian_teacher"))
    root: str | None = _key(optional(text), None)
    classes: tuple[int, ...] | None = _key(optional(list_of(integer(0), at_least=2, distinct=True)), None)
    n_train: int | None = _key(optional(integer(1)), None)
    n_test: int | None = _key(optional(integer(0)), None)
    whitening: bool | float = _key(whitening, True)
    targets: str | None = _key(optional(choice("auto", "sign", "centered", "one-hot", "index")), None)
    reduce: bool | None = _key(optional(flag), None)
    seed: int = _key(integer(0), 0)
    dim: int | None = _key(optional(integer(1)), None)
    spectrum: tuple[float, ...] | None = _key(optional(list_of(number(0.0), at_least=1)), None)
    power_law: float | None = _key(optional(number(0.0)), None)
    teacher: str | None = _key(optional(choice("linear", "relu", "mlp")), None)
    s: float | None = _key(optional(number(0.0, exclusive=True)), None)
    outputs: int | None = _key(optional(integer(1)), None)
    teacher_width: int | None = _key(optional(integer(1)), None)
    noise: float | None = _key(optional(number(0.0)), None)

    def __post_init__(self) -> None:
        super().__post_init__()
        allowed = _DATA_KEYS[self.name]
        for key in self.to_dict():
            if key not in allowed:
                raise ConfigError(f"data.{key}", f"data.{key} is no key of data set {self.name!r}")
        if "root" in allowed and self.root is None:
            raise ConfigError("data", f"data.root is missing: data set {self.name!r} needs the folder of its files")

    def options(self) -> dict[str, Any]:
        """Return the keys given, but for `name` and `whitening`, by the argument names of the data set's maker."""
        return {key: value for key, value in self.to_dict().items() if key not in ("name", "whitening", "targets")}


@dataclass(frozen=True, kw_only=True)
class NetConfig(Section):
    """``[net]``: a multilayer perceptron.

    Attributes
    ----------
    hidden : tuple of int, optional
        Widths of the hidden layers; inputs and outputs follow from the data. (100,) unless `widths` is given.
    widths : tuple of int, optional
        All widths from inputs to outputs, instead of `hidden`; they have to fit the data.
    activation, parameterization, sigma, bias
        As in `kernelgrowth.nets.MLP`.
    """

    section: ClassVar[str] = "net"

    hidden: tuple[int, ...] | None = _key(optional(list_of(integer(1))), None)
    widths: tuple[int, ...] | None = _key(optional(list_of(integer(1), at_least=2)), None)
    activation: str = _key(choice("relu", "linear", "tanh", "erf"), "relu")
    parameterization: str = _key(choice("standard", "ntk", "mup"), "standard")
    sigma: float = _key(number(0.0, exclusive=True), 1.0)
    bias: bool | str = _key(flag_or(choice("hidden")), False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden is not None and self.widths is not None:
            raise ConfigError("net.widths", "net.widths and net.hidden exclude each other: give one of them")
        if self.hidden is None and self.widths is None:
            object.__setattr__(self, "hidden", (100,))


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Section):
    """``[training]``: loss, optimizer and length of the run.

    Attributes
    ----------
    loss : {"mse", "logistic", "cross_entropy"}
    optimizer : {"gd", "momentum", "adam", "rmsprop"}
    lr : float
        Learning rate.
    steps : int
        Number of updates.
    batch_size : int, optional
        Examples per step; all of them by default.
    layer_lr : dict of str to float
        Multiplier of the learning rate by layer, as ``{layer1 = 0.5}``.
    beta, nesterov
        Of "momentum". `beta1`, `beta2`, `eps`: of "adam". `alpha`, `eps`: of "rmsprop".
    seed : int
        Initial parameters and the order of the batches.
    dtype : {"float64", "float32"}
    checkpoint_every : int
        Steps between two checkpoints.
    """

    section: ClassVar[str] = "training"

    loss: str = _key(choice("mse", "logistic", "cross_entropy"), "mse")
    optimizer: str = _key(choice(*_OPTIMIZER_KEYS), "gd")
    lr: float = _key(number(0.0, exclusive=True))
    steps: int = _key(integer(1))
    batch_size: int | None = _key(optional(integer(1)), None)
    layer_lr: Mapping[str, float] | None = _key(optional(rates), None)
    beta: float | None = _key(optional(number(0.0, 1.0)), None)
    nesterov: bool | None = _key(optional(flag), None)
    beta1: float | None = _key(optional(number(0.0, 1.0)), None)
    beta2: float | None = _key(optional(number(0.0, 1.0)), None)
    alpha: float | None = _key(optional(number(0.0, 1.0)), None)
    eps: float | None = _key(optional(number(0.0, exclusive=True)), None)
    seed: int = _key(integer(0), 0)
    dtype: str = _key(choice("float64", "float32"), "float64")
    checkpoint_every: int = _key(integer(1), 500)

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in dict.fromkeys(key for keys in _OPTIMIZER_KEYS.values() for key in keys):
            if getattr(self, key) is None:
                continue
            if key not in _OPTIMIZER_KEYS[self.optimizer]:
                owners = " or ".join(repr(owner) for owner, keys in _OPTIMIZER_KEYS.items() if key in keys)
                raise ConfigError(
                    f"training.{key}", f"training.{key} is for optimizer {owners}, not for {self.optimizer!r}"
                )
            if key.startswith(("alpha", "beta")) and getattr(self, key) == 1:
                raise ConfigError(f"training.{key}", f"training.{key} must be less than 1, got 1")

    def optimizer_options(self) -> dict[str, Any]:
        """Return the learning rate and the options given for the chosen optimizer, by its argument names."""
        given = {key: getattr(self, key) for key in _OPTIMIZER_KEYS[self.optimizer]}
        return {"lr": self.lr, **{key: value for key, value in given.items() if value is not None}}


@dataclass(frozen=True, kw_only=True)
class TrackingConfig(Section):
    """``[tracking]``: when and how the kernel is recorded.

    Attributes
    ----------
    every : int or tuple of int
        Steps between two recordings, or the steps themselves. The first and the last step are always recorded.
    stretch : float
        At least 1. Each recorded step is at least `stretch` times the one before: dense early, sparse late.
    top_k : int
        Leading eigenvalues recorded.
    outputs : {"full", "trace", "mean_trace", "sum_logits"}
        How a kernel of several outputs is followed.
    n_probe : int, optional
        Examples on which the kernel is computed, the first of the training set; all by default.
    kernel_budget : int
        Bytes of kernels kept on disk.
    max_overhead : float, optional
        Largest share of the time that tracking may add; recordings are skipped beyond it.
    """

    section: ClassVar[str] = "tracking"

    every: int | tuple[int, ...] = _key(integer_or_steps, 10)
    stretch: float = _key(number(1.0), 1.0)
    top_k: int = _key(integer(1), 20)
    outputs: str = _key(choice("full", "trace", "mean_trace", "sum_logits"), "full")
    n_probe: int | None = _key(optional(integer(2)), None)
    kernel_budget: int = _key(integer(1), 2**30)
    max_overhead: float | None = _key(optional(number(0.0, exclusive=True)), None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.every, tuple) and self.stretch != 1.0:
            raise ConfigError("tracking.stretch", "tracking.stretch does not apply when tracking.every lists the steps")

    def schedule(self, steps: int) -> int | list[int]:
        """Return what `NTKTracker` takes as `every` in a run of `steps` steps."""
        if not isinstance(self.every, int):
            return list(self.every)
        if self.stretch == 1.0:
            return self.every
        tracked = [0]
        while tracked[-1] < steps:
            tracked.append(max(tracked[-1] + self.every, int(tracked[-1] * self.stretch)))
        return [step for step in tracked if step <= steps]


@dataclass(frozen=True, kw_only=True)
class OutputConfig(Section):
    """``[output]``: where the results go. It is no part of what identifies a run.

    Attributes
    ----------
    folder : str, optional
        The run folder.
    report : bool
        Whether the report is written.
    """

    section: ClassVar[str] = "output"

    folder: str | None = _key(optional(text), None)
    report: bool = _key(flag, True)


def unknown_key(path: str, key: str, known: Sequence[str], place: str) -> ConfigError:
    """Return the error for a key that is none of `known`, with a suggestion where one is close."""
    close = difflib.get_close_matches(str(key).lower(), known, n=1, cutoff=0.6)
    prefix = path[: len(path) - len(str(key))]
    hint = f'did you mean "{prefix}{close[0]}"?' if close else f"known are {', '.join(known)}"
    kind = "is no section" if not prefix else "is no key"
    return ConfigError(path, f"{path} {kind} of {place}; {hint}")
