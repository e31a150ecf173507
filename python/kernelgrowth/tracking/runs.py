"""Many recorded runs as one table."""

from __future__ import annotations

import glob
import importlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kernelgrowth._backend.errors import RunFolderError
from kernelgrowth.tracking.history import History, load_run
from kernelgrowth.tracking.place import is_url
from kernelgrowth.tracking.run_group import holds_group

__all__ = ["Runs", "load_runs"]

_Column = npt.NDArray[Any]


class Runs(Mapping[str, History]):
    """Recorded runs, by the paths of their folders, in the order of these. Made by `load_runs`."""

    def __init__(self, histories: Mapping[str, History]) -> None:
        self._histories = dict(sorted(histories.items()))

    def __getitem__(self, path: str) -> History:
        return self._histories[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._histories)

    def __len__(self) -> int:
        return len(self._histories)

    def __repr__(self) -> str:
        return f"Runs({len(self)} runs, {sum(len(history.steps) for history in self.values())} tracked steps)"

    def table(self, names: Iterable[str] | None = None) -> dict[str, _Column]:
        """Return all tracked steps of all runs as columns of one length, a row a step.

        Parameters
        ----------
        names : iterable of str, optional
            Of series; by default all that were recorded. ``"distance_to_final"`` reads the stored kernels.

        Returns
        -------
        dict of numpy.ndarray
            ``"run"`` (the folder) and ``"status"``, what the configurations say in single values as
            ``"config.<section>.<name>"``, single values of the metadata (an experiment's configuration as
            ``"experiment.<section>.<name>"``), ``"step"``, and the series; one of k numbers a step as
            ``"eigenvalues[0]"`` to ``"eigenvalues[k - 1]"``. What a run lacks is NaN, or None among words. Costs one
            look at each number.

        Raises
        ------
        KeyError
            If no run recorded a series of that name.
        """
        chosen = None if names is None else list(dict.fromkeys(["step", *names]))
        parts = [self._rows(path, history, chosen) for path, history in self.items()]
        found = dict.fromkeys(itertools.chain.from_iterable(parts))
        for name in chosen or ():
            if not any(column == name or column.startswith(f"{name}[") for column in found) and parts:
                raise KeyError(f"{name}: no run recorded it")
        lengths = [len(history.steps) for history in self.values()]
        columns: dict[str, list[Any]] = {name: [] for name in found}
        for part, length in zip(parts, lengths, strict=True):
            for name, values in columns.items():
                values.extend(part.get(name, [None] * length))
        return {name: _column(values) for name, values in columns.items()}

    def to_pandas(self, names: Iterable[str] | None = None) -> Any:
        """Return `table` as a ``pandas.DataFrame``; with an index it is xarray's, too.

        Raises
        ------
        ImportError
            If pandas is not installed.

        Examples
        --------
        >>> runs.to_pandas().set_index(["run", "step"]).to_xarray()
        """
        try:
            pandas = importlib.import_module("pandas")
        except ImportError as error:
            raise ImportError(f"to_pandas needs pandas ({error}); table() gives NumPy arrays") from error
        return pandas.DataFrame(self.table(names))

    def _rows(self, path: str, history: History, chosen: list[str] | None) -> dict[str, list[Any]]:
        length = len(history.steps)
        about = {"run": path, "status": history.status, **_flat("config", history.config)}
        for name, value in history.info.get("metadata", {}).items():
            about |= _flat(name, value)
        columns = {name: [value] * length for name, value in about.items()}
        recorded = history.newest() if length else {}
        for name in recorded if chosen is None else [name for name in chosen if name in history]:
            series = history[name]
            if series.ndim == 1:
                columns[name] = series.tolist()
            else:
                flat = series.reshape(length, -1)
                columns |= {f"{name}[{k}]": flat[:, k].tolist() for k in range(flat.shape[1])}
        return columns


def load_runs(folders: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> Runs:
    """Read recorded runs; also such as are still being written, or whose process was killed.

    Parameters
    ----------
    folders : path-like or iterable of path-like
        Folders or URLs, or patterns of them such as ``"sweep/*"``, ``"results/**"`` and ``"s3://bucket/sweep/*"``;
        those that hold a run are read.

    Returns
    -------
    Runs
        Their histories by path, and one table of all.

    Raises
    ------
    RunFolderError
        If no run is there; or as `load_run`, of the first folder that holds a run and cannot be read.

    Examples
    --------
    >>> runs = kernelgrowth.load_runs("sweep/*")
    >>> frame = runs.to_pandas(["alignment", "kernel_norm", "train_loss"])
    """
    patterns = [folders] if isinstance(folders, str | os.PathLike) else list(folders)
    paths: dict[str, None] = {}
    for pattern in [str(pattern) for pattern in patterns]:
        paths |= dict.fromkeys(path for path in _matches(pattern) if holds_group(path) or _is_earlier(path))
    if not paths:
        raise RunFolderError(f"{', '.join(str(pattern) for pattern in patterns)}: no recorded run there")
    return Runs({path: load_run(path) for path in paths})


def _matches(pattern: str) -> list[str]:
    if is_url(pattern):
        from fsspec.core import url_to_fs

        files, path = url_to_fs(pattern)
        # Of a folder without a pattern too, which glob alone would take for what it is.
        return [
            files.unstrip_protocol(found.rpartition("/")[0]) for found in files.glob(f"{path.rstrip('/')}/zarr.json")
        ]
    # A folder may have a name that would be a pattern.
    matches = [pattern] if os.path.isdir(pattern) else glob.glob(pattern, recursive=True)
    return [str(Path(match)) for match in matches]


def _is_earlier(path: str) -> bool:
    return not is_url(path) and os.path.isfile(os.path.join(path, "run.json"))


def _flat(prefix: str, value: Any) -> dict[str, Any]:
    """Return the single values in nested mappings, by their names joined with dots."""
    if isinstance(value, Mapping):
        return {k: v for name, inner in value.items() for k, v in _flat(f"{prefix}.{name}", inner).items()}
    return {prefix: value} if value is None or isinstance(value, bool | int | float | str) else {}


def _column(values: list[Any]) -> _Column:
    kinds = {type(value) for value in values}
    if kinds in ({bool}, {int}, {str}):
        return np.array(values)
    if kinds <= {int, float, type(None)} and kinds != {type(None)}:
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column
