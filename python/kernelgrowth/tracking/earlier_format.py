"""Runs as earlier versions recorded them: read, and never written.

Format version 1 was a folder of ``run.json``, ``series.jsonl`` (one JSON object a tracked step), ``kernels/<step>.npy``
(upper triangles) and ``probe.npz``, ``first.npz``, ``last.npz``.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from kernelgrowth._backend.arrays import FloatArray
from kernelgrowth._backend.errors import RunFolderError
from kernelgrowth.tracking.columns import Series
from kernelgrowth.tracking.series import decode_lines

__all__ = ["RunOfVersion1"]

_KERNEL_NAME = re.compile(r"(\d{8,})\.npy")


class RunOfVersion1:
    """The folder of one run. Every failure is a `RunFolderError` that names the file and the reason.

    Parameters
    ----------
    path : path-like
        The folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)

    def read_info(self) -> dict[str, Any]:
        """Return the content of ``run.json``, checked for format and version."""
        path = self._path / "run.json"
        try:
            info = json.loads(path.read_bytes())
        except OSError as error:
            raise RunFolderError(f"{path}: cannot read: {error.strerror or error}") from error
        except ValueError as error:
            raise RunFolderError(f"{path}: is corrupt: {error}") from error
        if not isinstance(info, dict) or info.get("format") != "kernelgrowth run":
            raise RunFolderError(f"{path}: does not describe a run of kernelgrowth")
        if info.get("format_version") != 1:
            raise RunFolderError(f"{path}: was written in format version {info.get('format_version')}, wanted 1")
        if not isinstance(info.get("config"), dict) or not isinstance(info.get("status"), str):
            raise RunFolderError(f"{path}: is corrupt: 'config' or 'status' is missing")
        return info

    def series(self) -> Series:
        """Return everything tracked; a last line cut short is left out."""
        path, series = self._path / "series.jsonl", Series()
        try:
            series.extend(decode_lines(path.read_bytes()))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise RunFolderError(f"{path}: cannot read: {error.strerror or error}") from error
        except ValueError as error:
            raise RunFolderError(f"{path}: is corrupt: {error}") from error
        return series

    def kernel_steps(self) -> list[int]:
        """Return the steps whose kernel is stored, in order."""
        try:
            matches = [_KERNEL_NAME.fullmatch(name) for name in os.listdir(self._path / "kernels")]
        except FileNotFoundError:
            return []
        return sorted(int(match.group(1)) for match in matches if match)

    def load_kernel(self, step: int) -> FloatArray:
        """Return the packed kernel of one step; `KeyError` if there is none."""
        path = self._path / "kernels" / f"{step:08d}.npy"
        try:
            with open(path, "rb") as stream:
                packed = np.lib.format.read_array(stream, allow_pickle=False)
        except FileNotFoundError:
            raise KeyError(step) from None
        except ValueError as error:
            raise RunFolderError(f"{path}: is corrupt: {error}") from error
        if packed.ndim != 1 or packed.dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
            raise RunFolderError(f"{path}: holds no packed kernel but {packed.dtype} of shape {packed.shape}")
        return packed

    def load_arrays(self, name: str) -> dict[str, Any]:
        """Return what ``<name>.npz`` holds; empty if there is none."""
        path = self._path / f"{name}.npz"
        try:
            # From an open file, since np.load leaves one it opened itself open when the archive is broken.
            with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as archive:
                return {key: archive[key] for key in archive.files}
        except FileNotFoundError:
            return {}
        except (ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
            raise RunFolderError(f"{path}: is corrupt: {error}") from error
