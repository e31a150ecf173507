"""The file that says which tiles of a kernel are finished, so that a killed computation can be continued.

The first line is a JSON header that says what is computed; then one line for each finished tile, appended after the
tile's numbers were written and flushed; a last one when all of them are. A line counts once its newline is written.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from kernelgrowth._backend.errors import RunFolderError

__all__ = ["Progress"]

FORMAT = "kernelgrowth tiles"
FORMAT_VERSION = 1
_BEGINNING = f'{{"format": "{FORMAT}"'.encode()


class Progress:
    """A progress file, held by this process alone until it is closed or the process ends, however it ends.

    Parameters
    ----------
    path : path-like
        Created if it does not exist.

    Attributes
    ----------
    header : dict or None
        What the file says is being computed; None if it is new.
    done : dict
        Checksum by finished tile.

    Raises
    ------
    RunFolderError
        If another process holds the file.
    ValueError
        If the file exists and is something else, or of another format version.
    OSError
        If it cannot be opened, read or written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.header: dict[str, Any] | None = None
        self.done: dict[tuple[int, int], int] = {}
        self._complete = False
        self._end = 0
        self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115
        try:
            self._lock()
            self._read()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunFolderError(
                f"progress {self.path}: another process is computing this kernel: wait for it, or stop it"
            ) from None
        except OSError:
            return  # a file system without locks

    def _read(self) -> None:
        self._file.seek(0)
        first = self._file.readline()
        if not first.endswith(b"\n"):
            # A header cut short is no progress yet; anything else is not ours to overwrite.
            if first[: len(_BEGINNING)] != _BEGINNING[: len(first)]:
                raise ValueError(f"progress {self.path} exists and is no progress file: choose another path")
            return
        try:
            header = json.loads(first)
        except ValueError:
            header = None
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise ValueError(f"progress {self.path} exists and is no progress file: choose another path")
        if header.get("format_version") != FORMAT_VERSION:
            raise ValueError(
                f"progress {self.path} has format version {header.get('format_version')}, this one reads version "
                f"{FORMAT_VERSION}: remove it to start anew"
            )
        self.header = header
        self._end = len(first)
        for line in self._file:
            if not line.endswith(b"\n") or not self._take(line):
                break  # cut short, or after a power cut unreadable: what follows is computed again
            self._end += len(line)

    def _take(self, line: bytes) -> bool:
        try:
            record = json.loads(line)
            if "complete" in record:
                self._complete = True
            else:
                i, j = record["tile"]
                self.done[int(i), int(j)] = int(record["checksum"])
        except (ValueError, KeyError, TypeError):
            return False
        return True

    def begin(self, header: Mapping[str, Any]) -> None:
        """Start anew: a file with nothing but the header."""
        self.header = {"format": FORMAT, "format_version": FORMAT_VERSION, **header}
        self.done = {}
        self._complete = False
        self._file.truncate(0)
        self._append(json.dumps(self.header))

    def check(self, header: Mapping[str, Any]) -> None:
        """Refuse the file unless its header says the same as this one."""
        assert self.header is not None
        for name, value in json.loads(json.dumps(header)).items():
            if self.header.get(name) != value:
                raise ValueError(
                    f"progress {self.path} was written for another kernel: its {name} is {self.header.get(name)}, "
                    f"this call's is {value}; with resume=False the kernel is computed anew"
                )

    def resume(self) -> None:
        """Continue the file after its last whole line."""
        self._file.truncate(self._end)

    def add(self, tile: tuple[int, int], checksum: int) -> None:
        """Say that a tile is finished; its numbers must have been flushed."""
        self._append(json.dumps({"tile": tile, "checksum": checksum}))
        self.done[tile] = checksum

    def complete(self) -> None:
        """Say that all tiles are."""
        if not self._complete:
            self._append(json.dumps({"complete": True}))
            self._complete = True

    def _append(self, text: str) -> None:
        content = (text + "\n").encode()
        written = self._file.write(content)
        if written != len(content):
            raise OSError(f"progress {self.path}: only {written} of {len(content)} bytes could be written")
        os.fsync(self._file.fileno())
