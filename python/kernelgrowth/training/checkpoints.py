"""One file that holds all of a run at the beginning of a step, written all or nothing, with nothing pickled in it."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kernelgrowth._backend.arrays import is_cupy, to_numpy
from kernelgrowth._backend.errors import RunFolderError
from kernelgrowth._backend.files import atomic_save_arrays

__all__ = ["Checkpoint", "CheckpointFile", "callback_keys", "hash_arrays"]

_FORMAT = "kernelgrowth checkpoint"
_FORMAT_VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """A run at the beginning of a step.

    Attributes
    ----------
    step : int
        Updates done.
    seconds : float
        As in `TrainingState`.
    losses : float64 array (step,)
        Losses of the steps before.
    params, optimizer_state : dict of str to NumPy array
    callbacks : dict of str to dict
        State of every callback that has one, by the names that `callback_keys` gives.
    """

    step: int
    seconds: float
    losses: Any
    params: dict[str, Any]
    optimizer_state: dict[str, Any]
    callbacks: dict[str, dict[str, Any]]


class CheckpointFile:
    """The file in which a run keeps its latest checkpoint.

    Parameters
    ----------
    path : path-like
        File; its folder is made with the first checkpoint.
    fingerprint : mapping of str to JSON value
        All that decides what a run computes. A checkpoint with another one is refused.
    """

    def __init__(self, path: str | os.PathLike[str], fingerprint: Mapping[str, Any]) -> None:
        self.path = Path(path)
        # Through JSON and back, so that what a file holds can be compared (tuples become lists).
        self._fingerprint: dict[str, Any] = json.loads(json.dumps(fingerprint))

    def exists(self) -> bool:
        """Whether a checkpoint, or something else, lies there."""
        return self.path.exists()

    def save(self, checkpoint: Checkpoint) -> None:
        """Replace the file's checkpoint.

        Raises
        ------
        TypeError
            If a callback's state holds what is neither an array nor a JSON value.
        RunFolderError
            If the file cannot be written; the one before is left as it was.
        """
        arrays = {f"params/{name}": to_numpy(array) for name, array in checkpoint.params.items()}
        arrays |= {f"optimizer/{name}": to_numpy(array) for name, array in checkpoint.optimizer_state.items()}
        arrays["losses"] = np.asarray(checkpoint.losses, dtype=np.float64)
        values: dict[str, dict[str, Any]] = {}
        for key, state in checkpoint.callbacks.items():
            values[key] = {}
            for name, value in state.items():
                if isinstance(value, np.ndarray | np.generic) or is_cupy(value):
                    arrays[f"callbacks/{key}/{name}"] = _checked_array(key, name, value)
                else:
                    values[key][name] = _checked_json(key, name, value)
        header = {
            "format": _FORMAT,
            "format_version": _FORMAT_VERSION,
            "fingerprint": self._fingerprint,
            "step": checkpoint.step,
            "seconds": checkpoint.seconds,
            "callbacks": values,
        }
        arrays["header"] = np.frombuffer(json.dumps(header).encode("utf-8"), dtype=np.uint8)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            atomic_save_arrays(self.path, arrays)
        except OSError as error:
            raise RunFolderError(f"checkpoint {self.path} cannot be written: {error}") from error

    def load(self) -> Checkpoint:
        """Return the file's checkpoint.

        Raises
        ------
        ValueError
            If it belongs to another run; the message names what differs.
        RunFolderError
            If the file is no checkpoint, damaged, or of another format version.
        """
        header, arrays = self._read()
        self._refuse_another_run(header["fingerprint"])
        callbacks = {key: dict(values) for key, values in header["callbacks"].items()}
        for key, state in callbacks.items():
            state.update(_with_prefix(arrays, f"callbacks/{key}/"))
        return Checkpoint(
            step=header["step"],
            seconds=header["seconds"],
            losses=arrays["losses"],
            params=_with_prefix(arrays, "params/"),
            optimizer_state=_with_prefix(arrays, "optimizer/"),
            callbacks=callbacks,
        )

    def _read(self) -> tuple[dict[str, Any], dict[str, Any]]:
        try:
            # numpy.load leaves a file that it opened itself open when the archive is damaged.
            with open(self.path, "rb") as stream, np.load(stream, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            header = json.loads(arrays.pop("header").tobytes())
            known = header["format"] == _FORMAT
            version = header["format_version"]
        except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
            raise RunFolderError(f"checkpoint {self.path} cannot be read as a checkpoint: {error}") from error
        if not known or version != _FORMAT_VERSION:
            raise RunFolderError(
                f"checkpoint {self.path} has format {header['format']!r} version {version!r}, "
                f"wanted {_FORMAT!r} version {_FORMAT_VERSION}"
            )
        return header, arrays

    def _refuse_another_run(self, theirs: Mapping[str, Any]) -> None:
        differences = [
            name if name in ("data", "params") else f"{name} (there {theirs.get(name)!r}, here {mine!r})"
            for name, mine in self._fingerprint.items()
            if theirs.get(name) != mine
        ]
        if differences:
            raise ValueError(
                f"checkpoint {self.path} belongs to another run, it differs in: {', '.join(differences)}; "
                "repeat that run's arguments, or take another file"
            )


def hash_arrays(arrays: Mapping[str, Any]) -> str:
    """Return a SHA-256 of names, shapes, dtypes and contents, whatever the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        host = np.ascontiguousarray(to_numpy(arrays[name]))
        digest.update(f"{name} {host.dtype.str} {host.shape}\n".encode())
        digest.update(host.data)
    return digest.hexdigest()


def callback_keys(callbacks: Sequence[Any]) -> list[str]:
    """Name each callback by its class and its place among those of that class."""
    seen: dict[str, int] = {}
    keys = []
    for callback in callbacks:
        name = type(callback).__name__
        seen[name] = seen.get(name, 0) + 1
        keys.append(f"{name}-{seen[name]}")
    return keys


def _checked_array(key: str, name: str, value: Any) -> Any:
    array = np.asarray(to_numpy(value))
    if array.dtype.hasobject:
        raise TypeError(f"state_dict of callback {key}: {name!r} must be a numeric or string array, got objects")
    return array


def _checked_json(key: str, name: str, value: Any) -> Any:
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise TypeError(f"state_dict of callback {key}: {name!r} must be an array or a JSON value: {error}") from error


def _with_prefix(arrays: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
