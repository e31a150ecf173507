"""The experiments of a sweep, each in a run folder of its own, on as many processes as there are."""

from __future__ import annotations

import contextlib
import csv
import io
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernelgrowth._backend.checks import check_integer
from kernelgrowth._backend.cluster import connected, limited_threads, started
from kernelgrowth._backend.errors import DivergedError, RunFolderError
from kernelgrowth._backend.files import atomic_write_text
from kernelgrowth._backend.tasks import Outcome, work_through
from kernelgrowth.experiments.config import ExperimentConfig, differing_keys
from kernelgrowth.experiments.run import report_run, run_experiment, stored_config
from kernelgrowth.experiments.summary import TIMINGS, read_summary
from kernelgrowth.experiments.sweep_config import SweepConfig, SweepRun
from kernelgrowth.report import write_sweep_report
from kernelgrowth.tracking import load_run

__all__ = ["SweepProgress", "SweepResult", "sweep_experiments"]

TABLE, _TIMES, _SIGN = "table.csv", "times.csv", "sweep.txt"
_ERROR = ".error.txt"
# Words of a summary that a table of numbers can do without.
_LEFT_OUT = ("title", "verdict_sentence", "status")
# How a run that needs no further work may have ended.
_ENDED = ("completed", "diverged")


@dataclass(frozen=True)
class SweepProgress:
    """Where a sweep stands: numbers of runs."""

    done: int
    failed: int
    total: int


@dataclass(frozen=True)
class SweepResult:
    """A sweep that has ended.

    Attributes
    ----------
    folder : Path
    rows : list of dict
        Of ``table.csv``.
    failed : dict of str to Path
        For each run that failed the file with its traceback.
    report : Path or None
        The page, None if no run has anything to show.
    """

    folder: Path
    rows: list[dict[str, Any]]
    failed: dict[str, Path]
    report: Path | None


def sweep_experiments(
    sweep: SweepConfig,
    out: str | os.PathLike[str],
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    on_progress: Callable[[SweepProgress], None] | None = None,
) -> SweepResult:
    """Make all runs of a sweep that are not made yet, and write table and report.

    Parameters
    ----------
    sweep : SweepConfig
        What to do.
    out : path-like
        Folder for ``table.csv``, ``times.csv``, ``report.html`` and a run folder for each run. With a scheduler, one
        that all its workers see under this name.
    workers : int, optional
        Processes of this machine, one run each at a time; by default as many as its processors allow.
    scheduler : str, optional
        Address of a Dask scheduler whose workers make the runs, in place of processes started here.
    on_progress : callable, optional
        Called with a `SweepProgress` when a run ends, and at the beginning.

    Returns
    -------
    SweepResult

    Raises
    ------
    RunFolderError
        If the folder holds something else, or runs of these names with another configuration; nothing is run then.
    BackendError
        If Dask is not installed or the scheduler does not answer.
    ValueError
        If both `workers` and `scheduler` are given.

    Notes
    -----
    Runs, table and report do not depend on the number of workers. A run whose process dies is continued by another one
    from its last checkpoint; one that raises is tried again `sweep.retries` times, after 1, 2, 4, ... seconds; and
    one that fails for good stops no other: its traceback is kept in ``<run>.error.txt``, and the same call tries it
    again. A run that diverged has a row that says so. Killed at any moment, the same call does what is missing.
    """
    if workers is not None and scheduler is not None:
        raise ValueError("workers and scheduler exclude each other: give one of them")
    if workers is not None:
        check_integer("workers", workers, minimum=1)
    folder = Path(out)
    _claim(folder, sweep)
    missing = [run for run in sweep.runs if not _has_ended(folder / run.name)]
    failed: dict[str, Path] = {}
    done = len(sweep.runs) - len(missing)

    def tell() -> None:
        if on_progress is not None:
            on_progress(SweepProgress(done, len(failed), len(sweep.runs)))

    tell()
    if missing:
        jobs = {run.name: (run.config.to_dict(), str((folder / run.name).resolve()), sweep.threads) for run in missing}
        resources = {"GPU": float(sweep.gpus)} if sweep.gpus else None
        with (
            _client(sweep, workers, scheduler, len(missing)) as client,
            contextlib.closing(
                work_through(client, _run, jobs, retries=sweep.retries, resources=resources)
            ) as outcomes,
        ):
            for name, outcome in outcomes:
                error = folder / f"{name}{_ERROR}"
                if outcome.error is None:
                    error.unlink(missing_ok=True)
                    done += 1
                else:
                    failed[name] = error
                    _write(error, _explanation(outcome))
                tell()
    rows = _rows(folder, sweep.runs, failed)
    _write(folder / TABLE, _csv([{k: v for k, v in row.items() if k not in TIMINGS} for row in rows]))
    _write(folder / _TIMES, _csv([{k: v for k, v in row.items() if k in ("run", *TIMINGS)} for row in rows]))
    return SweepResult(folder, rows, failed, _report(folder, sweep, rows))


@contextlib.contextmanager
def _client(sweep: SweepConfig, workers: int | None, scheduler: str | None, runs: int) -> Iterator[Any]:
    if scheduler is not None:
        with connected(scheduler) as client:
            yield client
        return
    number = workers or max(1, (os.cpu_count() or 1) // sweep.threads)
    with started(min(number, runs), threads=sweep.threads, gpus=sweep.gpus) as client:
        yield client


def _run(config: Mapping[str, Any], folder: str, threads: int) -> None:
    """Make one run, in a worker."""
    with limited_threads(threads):
        try:
            run_experiment(ExperimentConfig.from_dict(config), folder, resume=True)
        except DivergedError:
            with contextlib.suppress(RunFolderError):  # with fewer than two steps there is nothing to sum up
                report_run(folder)


def _claim(folder: Path, sweep: SweepConfig) -> None:
    """Make the folder, or refuse one that holds something else."""
    try:
        sign = folder / _SIGN
        if folder.is_dir() and any(folder.iterdir()) and not sign.exists():
            raise RunFolderError(f"{folder}: holds something else: choose a new or empty folder")
        for run in sweep.runs:
            stored = stored_config(folder / run.name)
            if stored is not None and (keys := differing_keys(stored, run.config)):
                raise RunFolderError(
                    f"{folder / run.name}: holds a run of another configuration, {', '.join(keys)} differ(s): choose "
                    "another folder"
                )
        folder.mkdir(parents=True, exist_ok=True)
        if not sign.exists():
            atomic_write_text(sign, "A sweep of kernelgrowth: a folder for each run.\n")
    except OSError as error:
        raise RunFolderError(f"{folder}: cannot use: {error.strerror or error}") from error


def _status(folder: Path) -> str:
    try:
        return load_run(folder).status
    except RunFolderError:
        return "missing"


def _has_ended(folder: Path) -> bool:
    status = _status(folder)
    return status in _ENDED and (status == "diverged" or bool(read_summary(folder)))


def _explanation(outcome: Outcome) -> str:
    times = "once" if outcome.attempts == 1 else f"{outcome.attempts} times"
    return f"{outcome.traceback}Tried {times}.\n"


def _rows(folder: Path, runs: Sequence[SweepRun], failed: Mapping[str, Path]) -> list[dict[str, Any]]:
    rows = []
    for run in runs:
        status = "failed" if run.name in failed else _status(folder / run.name)
        summary = {key: value for key, value in read_summary(folder / run.name).items() if key not in _LEFT_OUT}
        rows.append({"run": run.name, **run.settings, "status": status, **({} if run.name in failed else summary)})
    return rows


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _write(path: Path, text: str) -> None:
    try:
        atomic_write_text(path, text)
    except OSError as error:
        raise RunFolderError(f"{path}: cannot write: {error.strerror or error}") from error


def _report(folder: Path, sweep: SweepConfig, rows: Sequence[Mapping[str, Any]]) -> Path | None:
    histories = {}
    for run in sweep.runs:
        with contextlib.suppress(RunFolderError):
            history = load_run(folder / run.name)
            if len(history.steps) > 1:
                histories[run.name] = {name: history[name] for name in ("time", "loss", "kernel_norm", "alignment")}
    if not histories:
        return None
    return write_sweep_report(
        folder,
        runs={run.name: run.settings for run in sweep.runs},
        histories=histories,
        rows=[{key: math.nan if value is None else value for key, value in row.items()} for row in rows],
    )
