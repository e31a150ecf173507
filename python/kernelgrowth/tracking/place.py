"""Where the files of a run lie: a local folder, or any place that fsspec knows by a URL.

Every file is replaced as a whole and never half-written; only a local file may also grow at its end. Every failure is a
`RunFolderError` that names the file and the reason, but for a missing file, which is a `FileNotFoundError` on reading.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from kernelgrowth._backend.errors import RunFolderError
from kernelgrowth._backend.files import atomic_writer

__all__ = ["LocalPlace", "Place", "RemotePlace", "is_url", "open_place"]


class Place(Protocol):
    """Files by name, names being paths with slashes."""

    grows: bool
    """Whether appending to a file takes no longer the larger it is."""

    def name(self, file: str = "") -> str:
        """Return the full name of a file, for messages."""

    def exists(self, file: str = "") -> bool:
        """Whether there is such a file, or a folder of this name."""

    def read(self, file: str) -> bytes:
        """Return what a file holds."""

    def write(self, file: str, content: Any, *, durable: bool = False) -> None:
        """Replace a file by `content`, bytes or a buffer; on return it is on the disk if `durable`."""

    def append(self, file: str, content: bytes) -> None:
        """Add to the end of a file that exists; what fails in part is taken back."""

    def remove(self, file: str) -> None:
        """Remove a file, if there is one."""

    def entries(self, folder: str = "") -> list[str]:
        """Return the names of files and folders in a folder, without the path to it; none if there is no folder."""

    def sync(self) -> None:
        """Return when all that was written is on the disk and not only with the operating system."""

    def claim(self) -> None:
        """Be the one writer here, made if need be, until `release` or the process ends, however it ends."""

    def release(self) -> None:
        """Let others write here."""

    def zarr_store(self) -> Any:
        """Return the Zarr store whose keys are this place's files, to read."""


def is_url(path: Any) -> bool:
    """Whether a path names a place by a URL, such as ``s3://bucket/run``."""
    return isinstance(path, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]*(::|://)", path) is not None


def open_place(path: str | os.PathLike[str]) -> Place:
    """Return the place of that path or URL; nothing is touched or connected to yet."""
    return RemotePlace(path) if isinstance(path, str) and is_url(path) else LocalPlace(path)


_HELD: weakref.WeakValueDictionary[str, LocalPlace] = weakref.WeakValueDictionary()


class LocalPlace:
    """A folder."""

    grows = True

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._release: weakref.finalize[..., LocalPlace] | None = None
        # Files that the operating system has, but perhaps not yet the disk.
        self._unsynced: set[str] = set()

    def name(self, file: str = "") -> str:
        """Return the full name of a file, for messages."""
        return str(self.path / file)

    def exists(self, file: str = "") -> bool:
        """Whether there is such a file, or a folder of this name."""
        with self._explained(file, "read"):
            return (self.path / file).exists()

    def read(self, file: str) -> bytes:
        """Return what a file holds."""
        with self._explained(file, "read"):
            return (self.path / file).read_bytes()

    def write(self, file: str, content: Any, *, durable: bool = False) -> None:
        """Replace a file by `content`, bytes or a buffer; on return it is on the disk if `durable`."""
        target = self.path / file
        with self._explained(file, "write"):
            if not target.parent.is_dir():
                target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_writer(target, durable=durable) as stream:
                stream.write(content)
        if durable:
            self._unsynced.discard(file)
        else:
            self._unsynced.add(file)

    def append(self, file: str, content: bytes) -> None:
        """Add to the end of a file that exists; what fails in part is taken back."""
        # One unbuffered write: a killed process leaves it whole, absent, or cut short.
        with self._explained(file, "write"), open(self.path / file, "ab", buffering=0) as stream:
            end = stream.seek(0, os.SEEK_END)
            try:
                written = 0
                while written < len(content):
                    written += os.write(stream.fileno(), content[written:])
            except OSError:
                # A full disk may have taken part of it; what comes next must not be glued to that.
                with contextlib.suppress(OSError):
                    stream.truncate(end)
                raise
        self._unsynced.add(file)

    def remove(self, file: str) -> None:
        """Remove a file, if there is one."""
        with self._explained(file, "remove"):
            (self.path / file).unlink(missing_ok=True)
        self._unsynced.discard(file)

    def entries(self, folder: str = "") -> list[str]:
        """Return the names of files and folders in a folder, without the path to it; none if there is no folder."""
        try:
            with self._explained(folder, "read"):
                return os.listdir(self.path / folder)
        except FileNotFoundError:
            return []

    def sync(self) -> None:
        """Return when all that was written is on the disk and not only with the operating system."""
        for file in sorted(self._unsynced):
            # One that somebody has removed needs no disk.
            with (
                self._explained(file, "write"),
                contextlib.suppress(FileNotFoundError),
                open(self.path / file, "rb") as stream,
            ):
                os.fsync(stream.fileno())
        self._unsynced.clear()

    def claim(self) -> None:
        """Be the one writer here, made if need be, until `release` or the process ends, however it ends.

        Raises
        ------
        RunFolderError
            If another process holds the folder, or it cannot be made.
        """
        if self._release is not None and self._release.alive:
            return
        with self._explained("", "create"):
            self.path.mkdir(parents=True, exist_ok=True)
        resolved = str(self.path.resolve())
        # Another writer of this very process has been left behind: a loop of one's own need not close its tracker.
        if (earlier := _HELD.get(resolved)) is not None:
            earlier.release()
        with self._explained("", "open"):
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
        _HELD[resolved] = self

    def release(self) -> None:
        """Let others write here."""
        if self._release is not None:
            self._release()

    def zarr_store(self) -> Any:
        """Return the Zarr store whose keys are this place's files, to read."""
        from zarr.storage import LocalStore

        return LocalStore(self.path, read_only=True)

    @contextlib.contextmanager
    def _explained(self, file: str, action: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError) as error:
            if action == "read":
                raise FileNotFoundError(error.errno, error.strerror, self.name(file)) from None
            raise RunFolderError(f"{self.name(file)}: cannot {action}: {error.strerror}") from error
        except OSError as error:
            raise RunFolderError(f"{self.name(file)}: cannot {action}: {error.strerror or error}") from error


class RemotePlace:
    """A folder of a file system or object store that fsspec knows. Nothing keeps a second writer out."""

    grows = False

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._connected: tuple[Any, str] | None = None
        # What has been appended to, since objects are only written whole.
        self._content: dict[str, bytes] = {}

    def name(self, file: str = "") -> str:
        """Return the full name of a file, for messages."""
        return f"{self._url}/{file}" if file else self._url

    def exists(self, file: str = "") -> bool:
        """Whether there is such a file, or a folder of this name."""
        with self._explained(file, "read") as (files, root):
            return bool(files.exists(f"{root}/{file}" if file else root))

    def read(self, file: str) -> bytes:
        """Return what a file holds."""
        with self._explained(file, "read") as (files, root):
            return bytes(files.cat_file(f"{root}/{file}"))

    def write(self, file: str, content: Any, *, durable: bool = False) -> None:
        """Replace a file by `content`, bytes or a buffer; on return it is on the disk if `durable`."""
        with self._explained(file, "write") as (files, root):
            files.pipe_file(f"{root}/{file}", bytes(content))
        self._content.pop(file, None)

    def append(self, file: str, content: bytes) -> None:
        """Add to the end of a file that exists; what fails in part is taken back."""
        whole = (self._content[file] if file in self._content else self.read(file)) + content
        self.write(file, whole)
        self._content[file] = whole

    def remove(self, file: str) -> None:
        """Remove a file, if there is one."""
        self._content.pop(file, None)
        with self._explained(file, "remove") as (files, root), contextlib.suppress(FileNotFoundError):
            files.rm_file(f"{root}/{file}")

    def entries(self, folder: str = "") -> list[str]:
        """Return the names of files and folders in a folder, without the path to it; none if there is no folder."""
        try:
            with self._explained(folder, "read") as (files, root):
                files.invalidate_cache()
                found = files.ls(f"{root}/{folder}" if folder else root, detail=False)
        except FileNotFoundError:
            return []
        return [str(path).rstrip("/").rpartition("/")[2] for path in found]

    def sync(self) -> None:
        """Nothing is left to do: every write waits for the other side."""

    def claim(self) -> None:
        """Nothing to hold: an object store has no locks."""

    def release(self) -> None:
        """Nothing was held."""

    def zarr_store(self) -> Any:
        """Return the Zarr store whose keys are this place's files, to read."""
        from zarr.storage import FsspecStore

        return FsspecStore.from_url(self._url, read_only=True)

    @contextlib.contextmanager
    def _explained(self, file: str, action: str) -> Iterator[tuple[Any, str]]:
        try:
            if self._connected is None:
                from fsspec.core import url_to_fs

                files, root = url_to_fs(self._url)
                self._connected = files, root.rstrip("/")
            yield self._connected
        except (FileNotFoundError, NotADirectoryError) as error:
            if action != "write":
                raise FileNotFoundError(*error.args) from None
            raise RunFolderError(f"{self.name(file)}: cannot {action}: {error}") from error
        except ImportError as error:
            raise RunFolderError(f"{self._url}: cannot {action}: {error}") from error
        except (OSError, ValueError, RuntimeError) as error:
            raise RunFolderError(f"{self.name(file)}: cannot {action}: {error}") from error
