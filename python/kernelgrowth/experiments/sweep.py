"""Many independent runs in parallel processes: each is recorded when it ends, and a killed sweep goes on from there."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kernelgrowth._backend.checks import check_integer
from kernelgrowth._backend.cluster import started
from kernelgrowth._backend.errors import RunFolderError
from kernelgrowth._backend.files import atomic_write_text
from kernelgrowth._backend.tasks import work_through

__all__ = ["TABLE", "run_sweep"]

TABLE = "table.csv"
_RECORDS, _ABOUT = "runs.jsonl", "sweep.json"

Settings = Mapping[str, Any]
Result = dict[str, Any]


def run_sweep(
    function: Callable[..., Mapping[str, Any]],
    settings: Sequence[Settings],
    out: str | os.PathLike[str] | None = None,
    *,
    workers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Result]:
    """Call a function with each of the settings, in parallel processes, and return all results in order.

    Parameters
    ----------
    function : callable
        Of a module's top level; it takes the settings as keywords and returns numbers, texts and lists by name. The
        same settings have to give the same results.
    settings : sequence of mapping
        Keywords of each run, values that JSON can hold; no two alike.
    out : path-like, optional
        Folder for ``runs.jsonl``, one line for each finished run, and ``table.csv``, written at the end: a row for each
        run in the order of `settings`, with settings and the results that are no lists. Runs that the folder has are
        not made again.
    workers : int, optional
        Processes, as many as there are processors unless given; 1 calls the function in this one.
    on_progress : callable, optional
        Called with the numbers of finished and of all runs.

    Returns
    -------
    list of dict
        Settings and results of each run.

    Raises
    ------
    RunFolderError
        If the folder holds another sweep or something else, or a file cannot be written.
    ValueError
        If two runs have the same settings.

    Notes
    -----
    A run counts once its line's end is on the disk: a killed process loses the runs that were under way, and a process
    of `workers` that is killed has its run made again by another. An error of one run ends the sweep once those under
    way are done, and is raised; what was finished is recorded. Several workers need the package `distributed`; each
    has one processor.
    """
    keys = [_key(one) for one in settings]
    if len(set(keys)) < len(keys):
        raise ValueError("settings must be distinct, but two runs have the same")
    number = os.cpu_count() or 1 if workers is None else check_integer("workers", workers, minimum=1)
    records = _Records(None if out is None else Path(out), function)
    results = {key: records.finished[key] for key in keys if key in records.finished}
    missing = [(key, one) for key, one in zip(keys, settings, strict=True) if key not in results]
    done = len(results)
    if on_progress is not None:
        on_progress(done, len(keys))
    with records, contextlib.closing(_finished(function, missing, number)) as finished:
        for key, result in finished:
            results[key] = dict(result)
            records.add(key, results[key])
            done += 1
            if on_progress is not None:
                on_progress(done, len(keys))
    rows = [{**one, **results[key]} for key, one in zip(keys, settings, strict=True)]
    records.write_table(rows)
    return rows


def _finished(
    function: Callable[..., Mapping[str, Any]], jobs: Sequence[tuple[str, Settings]], workers: int
) -> Generator[tuple[str, Mapping[str, Any]], None, None]:
    """Yield keys and results in the order in which runs end."""
    if workers == 1 or len(jobs) < 2:
        for key, one in jobs:
            yield key, _plain(function(**one))
        return
    workers, failed = min(workers, len(jobs)), None
    arguments = {key: (function, dict(one)) for key, one in jobs}
    with started(workers) as client:
        # No process is without work while the next task is on its way.
        tasks = work_through(client, _call, arguments, at_once=2 * workers, until_failure=True)
        with contextlib.closing(tasks):
            for key, outcome in tasks:
                if outcome.error is None:
                    yield key, outcome.result
                else:
                    failed = failed or outcome.error
    if failed is not None:
        raise failed


def _call(function: Callable[..., Mapping[str, Any]], settings: Result) -> Mapping[str, Any]:
    return _plain(function(**settings))


def _plain(result: Mapping[str, Any]) -> Result:
    """Return what JSON gives back, so that results are the same whether they were read or made."""
    plain: Result = json.loads(json.dumps(dict(result), default=lambda value: value.tolist()))
    return plain


def _key(settings: Settings) -> str:
    return json.dumps(dict(settings), sort_keys=True)


class _Records(contextlib.AbstractContextManager["_Records"]):
    """The finished runs of a sweep, by their settings, in a folder or nowhere."""

    def __init__(self, folder: Path | None, function: Callable[..., Any]) -> None:
        self._folder = folder
        self._stream: Any = None
        self.finished: dict[str, Result] = {}
        if folder is None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._claim(f"{function.__module__}.{function.__qualname__}")
            self._read()
        except OSError as error:
            raise RunFolderError(f"{folder}: cannot use: {error.strerror or error}") from error

    def _claim(self, name: str) -> None:
        assert self._folder is not None
        about = self._folder / _ABOUT
        if not about.exists():
            if any(self._folder.iterdir()):
                raise RunFolderError(f"{self._folder}: holds something else: choose another folder")
            atomic_write_text(about, json.dumps({"function": name}) + "\n")
        elif json.loads(about.read_text(encoding="utf-8")).get("function") != name:
            raise RunFolderError(f"{self._folder}: holds another sweep: choose another folder")

    def _read(self) -> None:
        assert self._folder is not None
        path = self._folder / _RECORDS
        if not path.exists():
            return
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            # The line that a killed process was writing.
            with open(path, "r+b") as stream:
                stream.truncate(len(whole))
        for line in whole.decode("utf-8").splitlines():
            record = json.loads(line)
            self.finished[_key(record["settings"])] = record["result"]

    def add(self, key: str, result: Result) -> None:
        if self._folder is None:
            return
        try:
            if self._stream is None:
                self._stream = open(self._folder / _RECORDS, "ab")  # noqa: SIM115 - closed by the context
            line = json.dumps({"settings": json.loads(key), "result": result}) + "\n"
            self._stream.write(line.encode("utf-8"))
            self._stream.flush()
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise RunFolderError(f"{self._folder / _RECORDS}: cannot write: {error.strerror or error}") from error

    def write_table(self, rows: Sequence[Result]) -> None:
        if self._folder is None or not rows:
            return
        names = list(dict.fromkeys(name for row in rows for name, value in row.items() if not isinstance(value, list)))
        text = io.StringIO()
        writer = csv.DictWriter(text, names, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        atomic_write_text(self._folder / TABLE, text.getvalue())

    def __exit__(self, *error: object) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
