"""The folder a tracked run is recorded to: plain files, readable at any moment, also after a process was killed.

================  =====================================================================================================
``run.json``      format and its version, status, configuration, shapes; its presence makes the folder a run folder
``series.jsonl``  one JSON object per tracked step, appended; a step counts as tracked once its line is complete
``kernels/``      ``<step>.npy``: upper triangle of the kernel, row after row, in the kernel's dtype
``probe.npz``     the targets of the probe set, and the order in which subsamples of it are drawn
``first.npz``     step, predictions on the probe set and, with a test set, predictions on it and K(test, probe)
``last.npz``      the same for the last tracked step, written when the run ends
================  =====================================================================================================

Every file but ``series.jsonl`` is replaced as a whole and never half-written. A series may end in a line cut short,
which readers leave out; a kernel without its line in the series was never recorded. One process at a time writes.
Kernels and series are forced to the disk when a checkpoint is taken and when the run ends: a power cut, unlike the end
of a process, may damage what came after the last checkpoint, from which a resumed run starts.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import weakref
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kernelgrowth._backend.arrays import FloatArray
from kernelgrowth._backend.errors import RunFolderError
from kernelgrowth._backend.files import atomic_save_array, atomic_save_arrays, atomic_write_text
from kernelgrowth.tracking.series import Record, decode_lines, encode_record

__all__ = ["FORMAT", "FORMAT_VERSION", "RunFolder"]

FORMAT = "kernelgrowth run"
FORMAT_VERSION = 1

_KERNEL_NAME = re.compile(r"(\d{8,})\.npy")
_LEFTOVER = re.compile(r"\.(run\.json|(probe|first|last)\.npz|\d{8,}\.npy)\.\d+\.tmp")
# What may lie in a folder before a run starts there: a trainer's checkpoint, a configuration, a log, hidden files.
_COMPANION = re.compile(r"checkpoint.*|.*\.toml|.*\.log|\..*")


_HELD: weakref.WeakValueDictionary[str, RunFolder] = weakref.WeakValueDictionary()


class RunFolder:
    """The files of one run. Every failure is a `RunFolderError` that names the file and the reason.

    Parameters
    ----------
    path : path-like
        The folder; nothing is touched before `create` or a method that writes.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._info_path = self.path / "run.json"
        self._series_path = self.path / "series.jsonl"
        self._kernel_folder = self.path / "kernels"
        self._release: weakref.finalize[..., RunFolder] | None = None
        # Steps whose kernel the operating system has, but perhaps not yet the disk.
        self._unsynced: set[int] = set()

    def holds_run(self) -> bool:
        """Whether the folder holds a run; False if a run may be started there.

        Raises
        ------
        RunFolderError
            If the path is no folder, cannot be read, or holds files that belong to no run.
        """
        with _explained(self.path, "read"):
            if not self.path.exists():
                return False
            if not self.path.is_dir():
                raise RunFolderError(f"{self.path}: is a file, not a folder")
            if self._info_path.exists():
                return True
            foreign = sorted(entry.name for entry in self.path.iterdir() if not _COMPANION.fullmatch(entry.name))
        if foreign:
            shown = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
            raise RunFolderError(
                f"{self.path}: holds files of something else ({shown}) and no run.json: choose a new or empty folder"
            )
        return False

    def create(self, info: Mapping[str, Any]) -> None:
        """Make the folder, if need be, and claim it for a run described by `info`."""
        with _explained(self.path, "create"):
            self.path.mkdir(parents=True, exist_ok=True)
        self.claim()
        self.write_info(info)
        self._prepare()

    def claim(self) -> None:
        """Be the one process that writes here, until `release` or the process ends, however it ends.

        Raises
        ------
        RunFolderError
            If another writer holds the folder.
        """
        if self._release is not None and self._release.alive:
            return
        place = str(self.path.resolve())
        # Another writer of this very process has been left behind: a loop of one's own need not close its tracker.
        if (earlier := _HELD.get(place)) is not None:
            earlier.release()
        with _explained(self.path, "open"):
            handle = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise RunFolderError(f"{self.path}: another process is recording here: wait for it, or stop it") from None
        except OSError:
            # A file system without locks.
            os.close(handle)
            return
        self._release = weakref.finalize(self, os.close, handle)
        _HELD[place] = self

    def release(self) -> None:
        """Let others write here."""
        if self._release is not None:
            self._release()

    def read_info(self) -> dict[str, Any]:
        """Return the content of ``run.json``, checked for format and version."""
        with _explained(self.path, "read"):
            if not self.path.exists():
                raise RunFolderError(f"{self.path}: no such folder")
            if not self.path.is_dir():
                raise RunFolderError(f"{self.path}: is a file, not a folder")
        with _explained(self._info_path, "read"):
            if not self._info_path.exists():
                raise RunFolderError(f"{self._info_path}: is missing, so {self.path} holds no recorded run")
            content = self._info_path.read_bytes()
        try:
            info = json.loads(content)
        except ValueError as error:
            raise RunFolderError(f"{self._info_path}: is corrupt: {error}") from error
        if not isinstance(info, dict) or info.get("format") != FORMAT:
            raise RunFolderError(f"{self._info_path}: does not describe a run of kernelgrowth")
        if info.get("format_version") != FORMAT_VERSION:
            raise RunFolderError(
                f"{self._info_path}: was written in format version {info.get('format_version')} "
                f"by kernelgrowth {info.get('kernelgrowth')}, this one reads version {FORMAT_VERSION}"
            )
        if not isinstance(info.get("config"), dict) or not isinstance(info.get("status"), str):
            raise RunFolderError(f"{self._info_path}: is corrupt: 'config' or 'status' is missing")
        return info

    def write_info(self, info: Mapping[str, Any]) -> None:
        """Replace ``run.json``, format and version added."""
        header = {"format": FORMAT, "format_version": FORMAT_VERSION}
        text = json.dumps(header | dict(info), indent=2) + "\n"
        with _explained(self._info_path, "write"):
            atomic_write_text(self._info_path, text)

    def records(self) -> list[Record]:
        """Return the records of all tracked steps, in order; a last line cut short is left out."""
        return self._read_series()[0]

    def _read_series(self) -> tuple[list[Record], list[int]]:
        with _explained(self._series_path, "read"):
            if not self._series_path.exists():
                return [], []
            content = self._series_path.read_bytes()
        try:
            return decode_lines(content)
        except ValueError as error:
            raise RunFolderError(f"{self._series_path}: is corrupt: {error}") from error

    def append(self, record: Record) -> None:
        """Add the line of one more tracked step: from here on the step counts as tracked."""
        line = encode_record(record).encode()
        # One unbuffered write per line: a killed process leaves it whole, absent, or without its newline.
        with _explained(self._series_path, "write"), open(self._series_path, "ab", buffering=0) as stream:
            end = stream.seek(0, os.SEEK_END)
            try:
                written = 0
                while written < len(line):
                    written += os.write(stream.fileno(), line[written:])
            except OSError:
                # A full disk may have taken part of the line; the next record must not be glued to it.
                with contextlib.suppress(OSError):
                    stream.truncate(end)
                raise

    def sync(self) -> None:
        """Return when kernels and records are on the disk and not only with the operating system."""
        for step in sorted(self._unsynced):
            path = self._kernel_path(step)
            # One that somebody has removed needs no disk.
            with _explained(path, "write"), contextlib.suppress(FileNotFoundError), open(path, "rb") as stream:
                os.fsync(stream.fileno())
        self._unsynced.clear()
        with _explained(self._series_path, "write"), open(self._series_path, "ab") as stream:
            os.fsync(stream.fileno())

    def _kernel_path(self, step: int) -> Path:
        return self._kernel_folder / f"{step:08d}.npy"

    def kernel_steps(self) -> list[int]:
        """Return the steps whose kernel is stored, in order."""
        with _explained(self._kernel_folder, "read"):
            if not self._kernel_folder.is_dir():
                return []
            matches = [_KERNEL_NAME.fullmatch(entry.name) for entry in self._kernel_folder.iterdir()]
        return sorted(int(match.group(1)) for match in matches if match)

    def save_kernel(self, step: int, packed: FloatArray) -> None:
        """Store the packed kernel of one step; only `sync` waits for the disk, which takes longer than many a step."""
        path = self._kernel_path(step)
        with _explained(path, "write"):
            atomic_save_array(path, packed, durable=False)
        self._unsynced.add(step)

    def load_kernel(self, step: int) -> FloatArray:
        """Return the packed kernel of one step; `KeyError` if there is none."""
        path = self._kernel_path(step)
        try:
            with _explained(path, "read"), open(path, "rb") as stream:
                packed = np.lib.format.read_array(stream, allow_pickle=False)
        except FileNotFoundError:
            raise KeyError(step) from None
        except ValueError as error:
            raise RunFolderError(f"{path}: is corrupt: {error}") from error
        if packed.ndim != 1 or packed.dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
            raise RunFolderError(f"{path}: holds no packed kernel but {packed.dtype} of shape {packed.shape}")
        return packed

    def drop_kernel(self, step: int) -> None:
        """Forget the kernel of one step, if there is one."""
        path = self._kernel_path(step)
        with _explained(path, "remove"):
            path.unlink(missing_ok=True)
        self._unsynced.discard(step)

    def save_arrays(self, name: str, arrays: Mapping[str, Any]) -> None:
        """Store named arrays as ``<name>.npz``."""
        path = self.path / f"{name}.npz"
        with _explained(path, "write"):
            atomic_save_arrays(path, arrays)

    def load_arrays(self, name: str) -> dict[str, Any]:
        """Return what `save_arrays` stored under that name; empty if nothing was."""
        path = self.path / f"{name}.npz"
        try:
            # From an open file, since np.load leaves one it opened itself open when the archive is broken.
            with _explained(path, "read"), open(path, "rb") as stream, np.load(stream, allow_pickle=False) as archive:
                return {key: archive[key] for key in archive.files}
        except FileNotFoundError:
            return {}
        except (ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
            raise RunFolderError(f"{path}: is corrupt: {error}") from error

    def truncate(self, step: int) -> None:
        """Forget everything recorded at `step` and later, and what a killed process left half-done."""
        records, ends = self._read_series()
        kept = sum(record["step"] < step for record in records)
        # The series first: whatever is killed after this line leaves only files that no record refers to.
        if self._series_path.exists():
            with _explained(self._series_path, "write"):
                os.truncate(self._series_path, ends[kept - 1] if kept else 0)
        for stored in self.kernel_steps():
            if stored >= step:
                self.drop_kernel(stored)
        for name in ("first", "last"):
            if int(self.load_arrays(name).get("step", -1)) >= step:
                with _explained(self.path / f"{name}.npz", "remove"):
                    (self.path / f"{name}.npz").unlink()
        self._prepare()

    def _prepare(self) -> None:
        """Make what a run expects to find, and clear away temporary files of killed processes."""
        with _explained(self._kernel_folder, "create"):
            self._kernel_folder.mkdir(exist_ok=True)
        with _explained(self.path, "clean"):
            for entry in [*self.path.iterdir(), *self._kernel_folder.iterdir()]:
                if _LEFTOVER.fullmatch(entry.name):
                    entry.unlink(missing_ok=True)
        with _explained(self._series_path, "create"):
            self._series_path.touch()


@contextlib.contextmanager
def _explained(path: Path, action: str) -> Iterator[None]:
    """Turn an `OSError` into a `RunFolderError` that names `path`; on reading a missing file stays what it is."""
    try:
        yield
    except FileNotFoundError as error:
        if action == "read":
            raise
        raise RunFolderError(f"{path}: cannot {action}: {error.strerror}") from error
    except OSError as error:
        raise RunFolderError(f"{path}: cannot {action}: {error.strerror or error}") from error
