"""The configuration of an experiment: five checked sections, read from TOML.

Every error names the key by its path (``training.lr``) and, where the text of the file is at hand, its line.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from kernelgrowth.experiments.sections import (
    ConfigError,
    DataConfig,
    NetConfig,
    OutputConfig,
    Section,
    TrackingConfig,
    TrainingConfig,
    unknown_key,
)
from kernelgrowth.experiments.toml_text import format_toml, key_lines

__all__ = [
    "ConfigError",
    "DataConfig",
    "ExperimentConfig",
    "NetConfig",
    "OutputConfig",
    "TrackingConfig",
    "TrainingConfig",
    "differing_keys",
    "load_config",
    "parse_config",
    "parse_toml",
    "read_text",
]

_Built = TypeVar("_Built")

_TARGETS_OF_LOSS = {
    "mse": ("auto", "sign", "centered", "one-hot"),
    "logistic": ("auto", "sign"),
    "cross_entropy": ("auto", "index", "one-hot"),
}
_SECTIONS: tuple[type[Section], ...] = (DataConfig, NetConfig, TrainingConfig, TrackingConfig, OutputConfig)


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """A whole experiment. Building one, from Python or from TOML, checks it."""

    data: DataConfig
    net: NetConfig = field(default_factory=NetConfig)
    training: TrainingConfig
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    output: OutputConfig = field(default_factory=OutputConfig)

    def __post_init__(self) -> None:
        loss, targets = self.training.loss, self.data.targets
        if self.data.name == "gaussian_teacher" and loss != "mse":
            problem = f"training.loss must be 'mse' for the real targets of a teacher, got {loss!r}"
            raise ConfigError("training.loss", problem)
        if targets is not None and targets not in _TARGETS_OF_LOSS[loss]:
            fitting = ", ".join(_TARGETS_OF_LOSS[loss])
            problem = f"data.targets must be one of {fitting} for loss {loss!r}, got {targets!r}"
            raise ConfigError("data.targets", problem)

    @classmethod
    def from_dict(cls, tables: Mapping[str, Any]) -> ExperimentConfig:
        """Build a configuration from a dict of sections.

        Raises
        ------
        ConfigError
            If a section or key is unknown or missing, or a value impossible.
        """
        names = [section.section for section in _SECTIONS]
        for key in tables:
            if key == "sweep":
                raise ConfigError(key, "[sweep] makes it several runs: use `kernelgrowth sweep`")
            if key not in names:
                raise unknown_key(key, key, names, "the configuration")
        for required in ("data", "training"):
            if required not in tables:
                raise ConfigError(required, f"the section [{required}] is missing")
        parts: dict[str, Any] = {
            part.section: part.from_dict(tables[part.section]) for part in _SECTIONS if part.section in tables
        }
        return cls(**parts)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return the sections as plain values; `from_dict` builds an equal configuration."""
        return {section.section: getattr(self, section.section).to_dict() for section in _SECTIONS}

    def to_toml(self) -> str:
        """Return the configuration as TOML; `parse_config` builds an equal one."""
        return format_toml(self.to_dict())


def parse_config(content: str, source: str | None = None) -> ExperimentConfig:
    """Read a configuration from TOML text.

    Parameters
    ----------
    content : str
        The text.
    source : str, optional
        The file's name, for messages.

    Raises
    ------
    ConfigError
        With `line` filled in where the key stands in the text.
    """
    return parse_toml(content, ExperimentConfig.from_dict, source)


def parse_toml(content: str, build: Callable[[dict[str, Any]], _Built], source: str | None = None) -> _Built:
    """Return what `build` makes of the tables of a TOML text; its `ConfigError` gets source and line."""
    try:
        tables = tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        place = re.search(r"\(at line (\d+), column \d+\)$", message)
        line = int(place.group(1)) if place else content.count("\n") + 1
        what = message[: place.start()].strip() if place else message
        raise ConfigError("", f"is not valid TOML: {what}", source=source, line=line) from None
    except (RecursionError, ValueError) as error:
        # Nesting without end, or an integer of thousands of digits.
        raise ConfigError("", f"cannot be read as TOML: {error}", source=source) from None
    try:
        return build(tables)
    except ConfigError as error:
        lines = key_lines(content)
        path = error.key
        while path and path not in lines:
            path = path.rpartition(".")[0]
        raise ConfigError(error.key, error.problem, source=source, line=lines.get(path)) from None


def read_text(path: str | os.PathLike[str]) -> str:
    """Return what a configuration file holds; a `ConfigError` names it if it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError("", f"cannot be read: {error.strerror or error}", source=str(path)) from None
    except UnicodeDecodeError:
        raise ConfigError("", "is not UTF-8 text", source=str(path)) from None


def load_config(path: str | os.PathLike[str]) -> ExperimentConfig:
    """Read a configuration from a TOML file.

    Raises
    ------
    ConfigError
        Naming file, line and key; also if the file cannot be read.
    """
    return parse_config(read_text(path), source=str(path))


def differing_keys(first: ExperimentConfig, second: ExperimentConfig) -> list[str]:
    """Return the dotted keys in which two configurations describe different runs; ``[output]`` does not count."""
    left, right = first.to_dict(), second.to_dict()
    differing: list[str] = []
    for section in ("data", "net", "training", "tracking"):
        keys = [*left[section], *(key for key in right[section] if key not in left[section])]
        differing.extend(f"{section}.{key}" for key in keys if left[section].get(key) != right[section].get(key))
    return differing
