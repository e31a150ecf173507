"""Many experiments in one TOML file: a configuration, and in ``[sweep]`` what varies from run to run."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kernelgrowth.experiments.config import ConfigError, ExperimentConfig, parse_toml, read_text
from kernelgrowth.experiments.sections import unknown_key

__all__ = ["SweepConfig", "SweepRun", "load_sweep", "parse_sweep"]

_OPTIONS = {"threads": 1, "gpus": 0, "retries": 0}
_KEYS = ("grid", "runs", *_OPTIONS)
_LONGEST_NAME = 100


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep.

    Attributes
    ----------
    name : str
        Of its folder, made of the settings.
    settings : dict
        What varies, by dotted key.
    config : ExperimentConfig
    """

    name: str
    settings: dict[str, Any]
    config: ExperimentConfig


@dataclass(frozen=True)
class SweepConfig:
    """A sweep.

    Attributes
    ----------
    runs : tuple of SweepRun
        In order; the last setting of a grid varies fastest.
    threads : int
        Processors of each run. Results depend on it, but not on how many runs there are at a time.
    gpus : int
        GPUs of each run, as the resource ``GPU`` that workers declare.
    retries : int
        How often a run that failed is tried again.
    """

    runs: tuple[SweepRun, ...]
    threads: int = 1
    gpus: int = 0
    retries: int = 2

    @classmethod
    def from_dict(cls, tables: Mapping[str, Any]) -> SweepConfig:
        """Build a sweep from a dict of an experiment's sections and ``sweep``.

        Raises
        ------
        ConfigError
            If a key or value is impossible, in `sweep` or in one of the runs, or two runs are the same.
        """
        base = {name: table for name, table in tables.items() if name != "sweep"}
        sweep = tables.get("sweep")
        if not isinstance(sweep, Mapping):
            raise ConfigError("sweep", "the table [sweep.grid] or [[sweep.runs]] is missing")
        for key in sweep:
            if key not in _KEYS:
                raise unknown_key(f"sweep.{key}", key, list(_KEYS), "[sweep]")
        options = {key: _integer(f"sweep.{key}", sweep[key], least) for key, least in _OPTIONS.items() if key in sweep}
        varied = _varied(sweep)
        names = _names(varied)
        runs: dict[str, SweepRun] = {}
        for name, settings in zip(names, varied, strict=True):
            run = SweepRun(name, settings, _configured(base, name, settings))
            same = next((other.name for other in runs.values() if other.config == run.config), None)
            if same is not None:
                raise ConfigError("sweep", f"sweep has two runs that are the same: {same} and {name}")
            runs[name] = run
        return cls(tuple(runs.values()), **options)


def parse_sweep(content: str, source: str | None = None) -> SweepConfig:
    """Read a sweep from TOML text; `ConfigError` as of `parse_config`."""
    return parse_toml(content, SweepConfig.from_dict, source)


def load_sweep(path: str | os.PathLike[str]) -> SweepConfig:
    """Read a sweep from a TOML file; `ConfigError` as of `load_config`."""
    return parse_sweep(read_text(path), source=str(path))


def _varied(sweep: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the settings of each run."""
    listed = sweep.get("runs", [{}])
    if not isinstance(listed, Sequence) or isinstance(listed, str) or not all(isinstance(o, Mapping) for o in listed):
        raise ConfigError("sweep.runs", "sweep.runs must be tables: write [[sweep.runs]] before each")
    grid = _flat("sweep.grid", sweep.get("grid", {}))
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"sweep.grid.{key}", f"sweep.grid.{key} must be a list of at least one value")
    if not grid and "runs" not in sweep:
        raise ConfigError("sweep", "the table [sweep.grid] or [[sweep.runs]] is missing")
    varied = []
    for one in listed:
        own = _flat("sweep.runs", one)
        if both := sorted(own.keys() & grid.keys()):
            raise ConfigError(f"sweep.grid.{both[0]}", f"{both[0]} is both in [sweep.grid] and in [[sweep.runs]]")
        for values in itertools.product(*grid.values()):
            varied.append(own | dict(zip(grid, values, strict=True)))
    return varied


def _flat(where: str, table: Any, prefix: str = "") -> dict[str, Any]:
    """Return the values of a table by dotted keys, which may be written as such or as nested tables."""
    if not isinstance(table, Mapping):
        raise ConfigError(where, f"{where} must be a table")
    flat: dict[str, Any] = {}
    for key, value in table.items():
        path = f"{prefix}{key}"
        flat |= _flat(where, value, f"{path}.") if isinstance(value, Mapping) else {path: value}
    return flat


def _configured(base: Mapping[str, Any], name: str, settings: Mapping[str, Any]) -> ExperimentConfig:
    tables: dict[str, Any] = copy.deepcopy(dict(base))
    for key, value in settings.items():
        *sections, last = key.split(".")
        table = tables
        for section in sections:
            inner = table.setdefault(section, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"sweep.grid.{key}", f"{key} cannot be set: {section} is no table")
            table = inner
        if not sections:
            raise ConfigError(f"sweep.grid.{key}", f"{key} must name a section and a key, such as training.lr")
        table[last] = value
    try:
        return ExperimentConfig.from_dict(tables)
    except ConfigError as error:
        where = f"sweep.grid.{error.key}" if error.key in settings else error.key
        raise ConfigError(where, f"{error.problem} (in run {name})") from None


def _integer(key: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(key, f"{key} must be an integer of at least {least}, got {value!r}")
    return value


def _names(varied: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a name for each run: its settings, by as much of their keys as tells them apart."""
    keys = list(dict.fromkeys(itertools.chain.from_iterable(varied)))
    lasts = [key.rpartition(".")[2] for key in keys]
    shown = {key: last if lasts.count(last) == 1 else key for key, last in zip(keys, lasts, strict=True)}
    names = []
    for settings in varied:
        name = "_".join(f"{shown[key]}={_text(value)}" for key, value in settings.items()) or "base"
        names.append(re.sub(r"[^A-Za-z0-9._=+-]", "-", name))
    return [
        name if len(name) <= _LONGEST_NAME and names.count(name) == 1 else f"{name[:_LONGEST_NAME]}_{_hash(settings)}"
        for name, settings in zip(names, varied, strict=True)
    ]


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "-".join(_text(item) for item in value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _hash(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:8]
