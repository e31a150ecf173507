"""The Zarr group that a tracked run is recorded to: readable at any moment, also after a process was killed.

=====================  ================================================================================================
``zarr.json``          the group. Attributes: format and its version, ``run`` (status, configuration, machine, ...),
                       ``series`` (their names) and ``rows``, how many tracked steps the arrays hold
``series/<name>``      arrays (rows,) or (rows, k), a row a tracked step
``tail.jsonl``         the tracked steps that the arrays do not hold yet: a line that says how many they hold, and one
                       JSON object for each step; a step counts as tracked once its line is complete
``kernels/<n>``        array (rows, n (n + 1) / 2), a chunk a row: the upper triangle of the (n, n) kernel, row after
                       row. Steps whose kernel is not kept have no chunk
``probe``              group: the targets of the probe set, and the order in which subsamples of it are drawn
``first``, ``last``    groups: step, predictions on the probe set and, with a test set, predictions on it and
                       K(test, probe), at the first tracked step and the last
=====================  ================================================================================================

Every file but the tail is replaced as a whole. What the tail holds is moved to the arrays when it has grown long and
when the run ends: arrays first, then ``rows``, then a new tail, so that at every moment arrays up to ``rows`` and the
tail beyond them are the whole run. A tail may end in a line cut short, which readers leave out; a kernel without its
step was never recorded. One process at a time writes; kernels and lines are written in their order by a thread of its
own, so that training goes on meanwhile, and a process that is killed may take the last few steps with it.
Kernels and tail are forced to the disk when a checkpoint is taken and when the run ends: a power cut, unlike the end
of a process, may damage what came after the last checkpoint, from which a resumed run starts.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import urllib.parse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kernelgrowth._backend.arrays import FloatArray
from kernelgrowth._backend.errors import RunFolderError
from kernelgrowth.tracking.background import Background
from kernelgrowth.tracking.columns import Series
from kernelgrowth.tracking.packing import matrix_size, packed_size
from kernelgrowth.tracking.place import LocalPlace, open_place
from kernelgrowth.tracking.series import Record, decode_lines, encode_record
from kernelgrowth.tracking.zarr_files import CHUNK, META, ArrayFiles, read_array, write_group

__all__ = ["FORMAT", "FORMAT_VERSION", "RUN_FILES", "RUN_GROUPS", "RunGroup", "holds_group"]

FORMAT = "kernelgrowth run"
FORMAT_VERSION = 2

# Rows of a series in a chunk, and of a tail before it is moved; fewer where every line writes the whole tail again.
_ROWS = {True: 4096, False: 256}
# A reader that meets a run between two of a writer's files looks again.
_LOOKS = 20

_TAIL = "tail.jsonl"
_CHUNK = re.compile(CHUNK)
RUN_GROUPS = ("series", "kernels", "probe", "first", "last")
# All that a run leaves in a folder, by the path from there; what killed processes leave ends in ".tmp".
RUN_FILES = re.compile(
    r"zarr\.json|tail\.jsonl|\.(zarr\.json|tail\.jsonl)\.\d+\.tmp"
    rf"|({'|'.join(RUN_GROUPS)})/(.*/)?(zarr\.json|" + CHUNK + r"|\..+\.\d+\.tmp)"
)
# What may lie in a folder before a run starts there: a trainer's checkpoint, a configuration, a log, hidden files.
_COMPANION = re.compile(r"checkpoint.*|.*\.toml|.*\.log|\..*")


class RunGroup:
    """The group of one run. Every failure is a `RunFolderError` that names the file and the reason.

    Parameters
    ----------
    path : path-like
        A folder, or a URL that fsspec knows; nothing is touched before `create` or a method that writes.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.place = open_place(path)
        self._path = path
        self._arrays: dict[str, ArrayFiles] = {}
        self._info: dict[str, Any] = {}
        self._series = Series()
        self._background = Background()
        # How many steps the arrays hold.
        self._moved = 0
        # For a writer, which would have to ask at every step: the order n of the kernel stored for a row.
        self._kernels: dict[int, int] | None = None

    def holds_run(self) -> bool:
        """Whether a run is there; False if one may be started.

        Raises
        ------
        RunFolderError
            If the path is no folder, cannot be read, or holds files that belong to no run.
        """
        if isinstance(self.place, LocalPlace) and self.place.exists() and not self.place.path.is_dir():
            raise RunFolderError(f"{self.place.name()}: is a file, not a folder")
        entries = sorted(self.place.entries())
        if "run.json" in entries:
            return True
        if META in entries and holds_group(self._path):
            return True
        foreign = [entry for entry in entries if not _COMPANION.fullmatch(entry)]
        if foreign:
            shown = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
            raise RunFolderError(
                f"{self.place.name()}: holds files of something else ({shown}) and no run: choose a new or empty folder"
            )
        return False

    def create(self, info: Mapping[str, Any]) -> None:
        """Make the group, if need be, and claim it for a run described by `info`."""
        self.claim()
        self._clear_temporary()
        self._moved, self._series, self._kernels = 0, Series(), {}
        self.write_info(info)
        self._write_tail()
        for name in ("series", "kernels"):
            write_group(self.place, name, {})

    def claim(self) -> None:
        """Be the one process that writes here, until `release` or the process ends, however it ends."""
        self.place.claim()

    def release(self) -> None:
        """Let others write here."""
        try:
            self._wait()
        finally:
            self._background.close()
            self.place.release()

    # --- the run as a whole ---

    def read_info(self) -> dict[str, Any]:
        """Return what is known of the run as a whole, once format and version are checked."""
        attributes = self._read_attributes()
        info = attributes.get("run")
        if not isinstance(info, dict) or not isinstance(info.get("config"), dict) or "status" not in info:
            raise RunFolderError(f"{self.place.name(META)}: is corrupt: 'config' or 'status' is missing")
        self._info = info
        return dict(info)

    def _read_attributes(self) -> dict[str, Any]:
        name = self.place.name(META)
        try:
            content = self.place.read(META)
        except FileNotFoundError:
            raise self._nothing_there() from None
        try:
            meta = json.loads(content)
        except ValueError as error:
            raise RunFolderError(f"{name}: is corrupt: {error}") from error
        attributes = meta.get("attributes") if isinstance(meta, dict) else None
        if not isinstance(attributes, dict) or attributes.get("format") != FORMAT:
            raise RunFolderError(f"{name}: does not describe a run of kernelgrowth")
        if attributes.get("format_version") != FORMAT_VERSION:
            by = attributes.get("run", {}).get("kernelgrowth")
            raise RunFolderError(
                f"{name}: was written in format version {attributes.get('format_version')} by kernelgrowth {by}, "
                f"this one reads versions 1 to {FORMAT_VERSION}"
            )
        return attributes

    def _nothing_there(self) -> RunFolderError:
        if not self.place.exists():
            return RunFolderError(f"{self.place.name()}: no such folder")
        if isinstance(self.place, LocalPlace) and not self.place.path.is_dir():
            return RunFolderError(f"{self.place.name()}: is a file, not a folder")
        if self.place.exists("run.json"):
            return RunFolderError(
                f"{self.place.name()}: was recorded in format version 1, which is read but not continued: choose "
                "another folder"
            )
        return RunFolderError(f"{self.place.name(META)}: is missing, so {self.place.name()} holds no recorded run")

    def write_info(self, info: Mapping[str, Any]) -> None:
        """Replace what is known of the run as a whole."""
        self._info = dict(info)
        write_group(
            self.place,
            "",
            {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "rows": self._moved,
                "series": list(self._series),
                "run": self._info,
            },
        )

    # --- the series ---

    def series(self) -> Series:
        """Return everything tracked so far; a last line cut short is left out."""
        self._wait()
        return self._read_series().snapshot()

    def _read_series(self) -> Series:
        for _ in range(_LOOKS):
            attributes = self._read_attributes()
            moved = int(attributes.get("rows", 0))
            before, records = self._read_tail()
            # A tail that begins beyond what the attributes say was written after they were read.
            if before <= moved and (series := self._stored_series(attributes.get("series", []), moved)) is not None:
                break
        else:
            raise RunFolderError(
                f"{self.place.name()}: is corrupt: {_TAIL} and the arrays of series do not fit together"
            )
        try:
            series.extend(records[moved - before :])
        except ValueError as error:
            raise RunFolderError(f"{self.place.name(_TAIL)}: is corrupt: {error}") from error
        self._moved, self._series = moved, series
        return series

    def _read_tail(self) -> tuple[int, list[Record]]:
        """Return how many rows come before the tail's, and its own."""
        try:
            content = self.place.read(_TAIL)
        except FileNotFoundError:
            return 0, []
        head, newline, lines = content.partition(b"\n")
        if not newline:
            # A power cut took what was written after all of it had been moved.
            return 0, []
        try:
            return int(json.loads(head)["rows"]), decode_lines(lines)
        except (ValueError, KeyError, TypeError) as error:
            raise RunFolderError(f"{self.place.name(_TAIL)}: is corrupt: {error}") from error

    def _stored_series(self, names: list[str], rows: int) -> Series | None:
        """Return the rows in the arrays; None if a writer is about to change them."""
        if not rows:
            return Series()
        columns = {}
        for name in names:
            column = read_array(self.place, _path_of(name), rows)
            if column is None:
                return None
            columns[name] = column
        return Series(columns)

    def append(self, record: Record) -> None:
        """Add one more tracked step: from here on it counts as tracked."""
        self._series.append(record)
        self._do(self._append_line, record)
        if len(self._series) - self._moved >= _ROWS[self.place.grows]:
            self.move_tail()

    def _append_line(self, record: Record) -> None:
        self.place.append(_TAIL, encode_record(record).encode())

    def move_tail(self) -> None:
        """Move what the tail holds to the arrays."""
        self._wait()
        rows, first = len(self._series), self._moved
        if rows == first:
            return
        for name in self._series:
            column = self._series[name]
            names = ("row", "index")[: column.ndim]
            array = self._array(_path_of(name), column.shape[1:], column.dtype, _ROWS[self.place.grows], names)
            array.write_rows(first, column)
            array.resize(rows)
        self._moved = rows
        self.write_info(self._info)
        self._write_tail()

    def _write_tail(self, *, durable: bool = False) -> None:
        lines = [json.dumps({"rows": self._moved}) + "\n"]
        lines += [encode_record(self._series.record(row)) for row in range(self._moved, len(self._series))]
        self.place.write(_TAIL, "".join(lines).encode(), durable=durable)

    def sync(self) -> None:
        """Return when kernels and steps are on the disk and not only with the operating system."""
        self._wait()
        self.place.sync()

    def _do(self, deed: Callable[..., None], *args: Any) -> None:
        """Have something written while training goes on."""
        try:
            self._background.do(deed, *args)
        except BaseException:
            self._go_back()
            raise

    def _wait(self) -> None:
        try:
            self._background.wait()
        except BaseException:
            self._go_back()
            raise

    def _go_back(self) -> None:
        """Know again what is stored, after a failure behind which nothing was written."""
        self._arrays.clear()
        with contextlib.suppress(RunFolderError):
            self._read_series()
            self._kernels = None
            self._kernels = self._stored_kernels()

    # --- kernels ---

    def kernel_steps(self) -> list[int]:
        """Return the steps whose kernel is stored, in order."""
        steps = self._series.steps
        return [int(steps[row]) for row in sorted(self._stored_kernels()) if row < len(steps)]

    def _stored_kernels(self) -> dict[int, int]:
        """Return the order n of every kernel, by row."""
        if self._kernels is not None:
            return self._kernels
        found = {}
        for size in self.place.entries("kernels"):
            for entry in self.place.entries(f"kernels/{size}") if size.isdigit() else ():
                if _CHUNK.fullmatch(entry):
                    found[int(entry.split(".")[1])] = int(size)
        return found

    def _row(self, step: int) -> int:
        """Return the row of a step; that of one which has no record yet is the next."""
        row = self._series.row_of(step)
        return len(self._series) if row is None else row

    def save_kernel(self, step: int, packed: FloatArray) -> None:
        """Store the packed kernel of one step; only `sync` waits for the disk, which takes longer than many a step."""
        row, n = self._row(step), matrix_size(len(packed))
        self._do(self._write_kernel, row, n, packed)
        if self._kernels is not None:
            self._kernels[row] = n

    def _write_kernel(self, row: int, n: int, packed: FloatArray) -> None:
        array = self._array(f"kernels/{n}", packed.shape, packed.dtype, 1)
        if array.rows is None or array.rows <= row:
            array.resize(max(row + 1, 2 * (array.rows or 0), 64))
        array.write_chunk(row, packed[None])

    def load_kernel(self, step: int) -> FloatArray:
        """Return the packed kernel of one step; `KeyError` if there is none."""
        self._wait()
        row = self._row(step)
        n = self._stored_kernels().get(row)
        if n is None:
            raise KeyError(step)
        path = f"kernels/{n}"
        try:
            rows = read_array(self.place, path, 1, first=row)
        except RunFolderError:
            # Dropped in this moment.
            if not self.place.exists(f"{path}/c.{row}.0"):
                raise KeyError(step) from None
            raise
        if rows is None or rows.shape != (1, packed_size(n)):
            raise RunFolderError(f"{self.place.name(path)}: is corrupt: holds no kernels of {n} rows")
        packed: FloatArray = rows[0]
        return packed

    def drop_kernel(self, step: int) -> None:
        """Forget the kernel of one step, if there is one."""
        self._drop_row(self._row(step))

    def _drop_row(self, row: int) -> None:
        n = self._stored_kernels().get(row)
        if n is not None:
            self._do(self.place.remove, f"kernels/{n}/c.{row}.0")
        if self._kernels is not None:
            self._kernels.pop(row, None)

    # --- named arrays ---

    def save_arrays(self, name: str, arrays: Mapping[str, Any]) -> None:
        """Store named arrays as a group, single numbers as its attributes."""
        plain = {key: np.asarray(value) for key, value in arrays.items()}
        # The group's own file comes last, and is gone while its arrays change.
        self.place.remove(f"{name}/{META}")
        for key, value in plain.items():
            if value.ndim:
                array = ArrayFiles(
                    self.place,
                    f"{name}/{key}",
                    value.shape[1:],
                    value.dtype,
                    chunk_rows=max(1, len(value)),
                    durable=True,
                )
                array.write_chunk(0, value)
                array.resize(len(value))
        numbers = {key: value.item() for key, value in plain.items() if not value.ndim}
        write_group(self.place, name, numbers | {"arrays": [key for key in plain if plain[key].ndim]})

    def load_arrays(self, name: str) -> dict[str, Any]:
        """Return what `save_arrays` stored under that name; empty if nothing was."""
        try:
            attributes = json.loads(self.place.read(f"{name}/{META}"))["attributes"]
            keys = list(attributes.pop("arrays"))
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError) as error:
            raise RunFolderError(f"{self.place.name(f'{name}/{META}')}: is corrupt: {error}") from error
        loaded: dict[str, Any] = {key: np.asarray(value) for key, value in attributes.items()}
        for key in keys:
            array = read_array(self.place, f"{name}/{key}")
            if array is None:
                raise RunFolderError(f"{self.place.name(f'{name}/{key}')}: is corrupt: a file is missing")
            loaded[key] = array
        return loaded

    def _array(
        self, path: str, row_shape: tuple[int, ...], dtype: Any, chunk_rows: int, names: tuple[str, ...] | None = None
    ) -> ArrayFiles:
        """Return an array to write to, anew if it held rows of another kind."""
        array = self._arrays.get(path)
        if array is None or not array.fits(row_shape, dtype):
            # Only the chunk of a kernel is never written again.
            array = ArrayFiles(
                self.place, path, row_shape, dtype, chunk_rows=chunk_rows, names=names, durable=chunk_rows > 1
            )
            self._arrays[path] = array
        return array

    # --- going back ---

    def truncate(self, step: int) -> None:
        """Forget everything recorded at `step` and later, and what a killed process left half-done."""
        self.series()
        self._clear_temporary()
        self._arrays.clear()
        kept = int(np.searchsorted(self._series.steps, step))
        self._series = self._series.first(kept)
        # The tail before the attributes: at every moment the run reads as some beginning of what it was.
        shorter = kept < self._moved
        self._moved = min(self._moved, kept)
        self._write_tail(durable=True)
        if shorter:
            self.write_info(self._info or self.read_info())
        self._kernels = None
        self._kernels = self._stored_kernels()
        for row in [row for row in self._kernels if row >= kept]:
            self._drop_row(row)
        for name in ("first", "last"):
            if int(self.load_arrays(name).get("step", -1)) >= step:
                self.place.remove(f"{name}/{META}")

    def _clear_temporary(self) -> None:
        """Clear away what killed processes were writing."""
        if not isinstance(self.place, LocalPlace):
            return
        for folder, _, files in os.walk(self.place.path):
            for file in files:
                path = Path(folder, file).relative_to(self.place.path).as_posix()
                if path.endswith(".tmp") and RUN_FILES.fullmatch(path):
                    self.place.remove(path)


def holds_group(path: str | os.PathLike[str]) -> bool:
    """Whether a run of this format, or of a later one, is there."""
    try:
        meta = json.loads(open_place(path).read(META))
        return bool(meta["attributes"]["format"] == FORMAT)
    except (OSError, RunFolderError, ValueError, KeyError, TypeError):
        return False


def _path_of(series: str) -> str:
    """Return where the array of a series lies; names may hold signs that no path can."""
    parts = [urllib.parse.quote(part, safe=" ") for part in series.split("/")]
    return "/".join(["series", *(part if part.strip(".") else f"%{len(part)}" for part in parts)])
