"""One experiment from its configuration to its report, in a run folder that survives being killed."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kernelgrowth._backend import native
from kernelgrowth._backend.errors import RunFolderError
from kernelgrowth._backend.files import atomic_write_text
from kernelgrowth.experiments.build import build_dataset, build_net, build_optimizer, build_tracker
from kernelgrowth.experiments.config import ConfigError, ExperimentConfig, differing_keys, load_config
from kernelgrowth.experiments.facts import experiment_facts, read_facts, write_facts
from kernelgrowth.experiments.summary import TIMINGS, Predictions, read_summary, summarise, write_summary
from kernelgrowth.report import write_report
from kernelgrowth.tracking import History, NTKTracker, load_run
from kernelgrowth.tracking.run_group import RUN_FILES, RUN_GROUPS, RunGroup
from kernelgrowth.training import Callback, TrainingState, train

__all__ = ["ExperimentResult", "FolderTakenError", "Progress", "report_run", "run_experiment", "stored_config"]

CONFIG_FILE = "experiment.toml"
_CHECKPOINT = "checkpoint.npz"
# All that a run of an experiment leaves in its folder, by the path from there; the last line is of earlier versions.
_OURS = re.compile(
    RUN_FILES.pattern
    + r"|(predictions|checkpoint)\.npz|experiment\.(toml|json)|summary\.json"
    + r"|(dynamics|predictions|spectrum)\.png|report\.html|\.[^/]*\.tmp"
    + r"|run\.json|series\.jsonl|(first|last|probe)\.npz|kernels/(\d{8,}\.npy|\.[^/]*\.tmp)"
)
# Any of these makes a folder that of a run.
_SIGNS = ("zarr.json", "tail.jsonl", "run.json", "series.jsonl", _CHECKPOINT)
_SECONDS_BETWEEN_CALLS = 0.1


class FolderTakenError(RunFolderError):
    """The folder holds another run, and it was asked neither to resume nor to overwrite it.

    Attributes
    ----------
    folder : Path
        The folder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(f"{folder}: holds another run: choose another folder, resume it or overwrite it")
        self.folder = folder


@dataclass(frozen=True)
class Progress:
    """Where a run stands; kernel norm and alignment are those of the newest tracked step."""

    step: int
    steps: int
    time: float
    loss: float
    kernel_norm: float
    alignment: float


@dataclass(frozen=True)
class ExperimentResult:
    """A finished experiment.

    Attributes
    ----------
    folder : Path
        The run folder.
    summary : dict
        The numbers of ``summary.json``, NaN where it has null.
    history : History
        The recorded run.
    predictions : Predictions or None
        Predictions for the examples held out.
    report : Path or None
        The page, if one was written.
    """

    folder: Path
    summary: dict[str, Any]
    history: History
    predictions: Predictions | None
    report: Path | None


def run_experiment(
    config: ExperimentConfig,
    out: str | os.PathLike[str] | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> ExperimentResult:
    """Train the configured network while its kernel is followed, and write summary and report.

    Parameters
    ----------
    config : ExperimentConfig
        What to do.
    out : path-like, optional
        Run folder; by default the configuration's ``output.folder``.
    resume : bool
        Continue the run in the folder from its last checkpoint, bit for bit, if there is one.
    overwrite : bool
        Replace the run in the folder. A folder with files that are not a run's is refused.
    on_progress : callable, optional
        Called about ten times a second, and at the end of training.

    Returns
    -------
    ExperimentResult

    Raises
    ------
    ConfigError
        If data set, network and configuration do not fit; nothing has been written then.
    FolderTakenError
        If the folder holds another run.
    RunFolderError
        If the folder holds something else or another configuration's run to be resumed, or a file cannot be written.
    DivergedError, KeyboardInterrupt
        From training; what was recorded and the last checkpoint stay in the folder.

    Notes
    -----
    The folder holds ``experiment.toml`` (the configuration), ``experiment.json`` (what is known before training), the
    tracker's Zarr group, ``checkpoint.npz``, ``summary.json``, ``predictions.npz``, the pictures and ``report.html``.
    The summary's ``seconds_total`` lasts from the call to the summary: imports and drawing come on top.
    """
    began = time.perf_counter()
    if resume and overwrite:
        raise ValueError("resume and overwrite exclude each other: give one of them")
    where = out if out is not None else config.output.folder
    if where is None:
        raise ConfigError("output.folder", "output.folder is missing: say where the run is kept")
    folder = Path(where)
    if not overwrite:
        _check_free(folder, config, resume=resume)
    dataset = build_dataset(config)
    net = build_net(config.net, dataset)
    training = config.training
    _check_against_data(config, dataset.num_examples, net.layer_names)
    facts = experiment_facts(config, dataset, net)
    params = net.init(training.seed, np.dtype(training.dtype))
    tracker = build_tracker(config, dataset, folder)
    optimizer = build_optimizer(config)
    if overwrite:
        _clear(folder)
    native.info()  # an impossible KERNELGROWTH_ISA should not leave a claimed folder behind
    _store_config(folder, config)
    run = train(
        net,
        params,
        dataset,
        loss=training.loss,
        optimizer=optimizer,
        steps=training.steps,
        layer_lr=training.layer_lr,
        batch_size=training.batch_size,
        seed=training.seed,
        callbacks=[tracker, _Observer(tracker, folder, facts, on_progress)],
        checkpoint=folder / _CHECKPOINT,
        checkpoint_every=training.checkpoint_every,
        resume=resume,
    )
    # Of a resumed run the seconds spent before count, but not those in which nothing ran.
    tracked = float(np.sum(tracker.history["seconds"]))
    summary, predictions = summarise(tracker.history, facts, {"seconds_training": run.seconds})
    elapsed = time.perf_counter() - began
    summary["seconds_total"] = max(elapsed, run.seconds + tracked)
    write_summary(folder, summary, predictions)
    page = _report(folder, tracker.history, summary, predictions, config, facts) if config.output.report else None
    return ExperimentResult(folder, summary, tracker.history, predictions, page)


def report_run(folder: str | os.PathLike[str]) -> ExperimentResult:
    """Write summary and report of a recorded run from its folder alone, also of one that was interrupted.

    A folder that `NTKTracker` wrote without an experiment will do; what only the experiment knew is left out.

    Raises
    ------
    RunFolderError
        If the folder holds no run, fewer than two tracked steps, or a file that cannot be read or written.
    ConfigError
        If its ``experiment.toml`` was changed into something impossible.
    """
    path = Path(folder)
    history = load_run(path)
    facts = read_facts(path)
    config = stored_config(path)
    facts.setdefault("title", path.resolve().name)
    earlier = read_summary(path)
    timings = {key: float(earlier[key]) for key in TIMINGS if isinstance(earlier.get(key), (int, float))}
    try:
        summary, predictions = summarise(history, facts, timings)
    except RunFolderError as error:
        raise RunFolderError(f"{path}: {error}") from error
    write_summary(path, summary, predictions)
    page = _report(path, history, summary, predictions, config, facts)
    return ExperimentResult(path, summary, history, predictions, page)


def stored_config(folder: str | os.PathLike[str]) -> ExperimentConfig | None:
    """Return the configuration that a run folder keeps, None if it keeps none."""
    path = Path(folder) / CONFIG_FILE
    return load_config(path) if path.exists() else None


class _Observer(Callback):
    """Writes the experiment's facts once the tracker has claimed the folder, and reports progress."""

    def __init__(
        self,
        tracker: NTKTracker,
        folder: Path,
        facts: dict[str, Any],
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self._tracker = tracker
        self._folder = folder
        self._facts = facts
        self._on_progress = on_progress
        self._called = -float("inf")

    def on_start(self, state: TrainingState) -> None:
        write_facts(self._folder, self._facts)

    def on_step(self, state: TrainingState) -> None:
        now = time.monotonic()
        if self._on_progress is None or not (state.is_last or now - self._called >= _SECONDS_BETWEEN_CALLS):
            return
        self._called = now
        history = self._tracker.history
        self._on_progress(
            Progress(
                step=state.step,
                steps=state.steps,
                time=state.time,
                loss=state.loss,
                kernel_norm=float(history["kernel_norm"][-1]),
                alignment=float(history["alignment"][-1]),
            )
        )


def _check_free(folder: Path, config: ExperimentConfig, *, resume: bool) -> None:
    """Refuse a folder that cannot be used, before any work is done."""
    holds = _holds_run(folder)
    if not resume:
        if holds:
            raise FolderTakenError(folder)
        RunGroup(folder).holds_run()
        if (
            folder.is_dir()
            and (folder / CONFIG_FILE).exists()
            and differing_keys(load_config(folder / CONFIG_FILE), config)
        ):
            raise RunFolderError(f"{folder / CONFIG_FILE}: describes another experiment: choose another folder")
        return
    stored = stored_config(folder) if folder.is_dir() else None
    if stored is None:
        if holds:
            raise RunFolderError(f"{folder}: holds a run without {CONFIG_FILE}, which cannot be resumed from here")
        return
    differing = differing_keys(stored, config)
    if differing:
        raise RunFolderError(
            f"{folder}: holds a run of another configuration, {', '.join(differing)} differ(s): "
            f"resume it with its own {CONFIG_FILE}"
        )


def _holds_run(folder: Path) -> bool:
    try:
        if folder.exists() and not folder.is_dir():
            raise RunFolderError(f"{folder}: is a file, not a folder")
        return any((folder / name).exists() for name in _SIGNS)
    except OSError as error:
        raise RunFolderError(f"{folder}: cannot read: {error.strerror or error}") from error


def _check_against_data(config: ExperimentConfig, num_examples: int, layers: list[str]) -> None:
    batch = config.training.batch_size
    if batch is not None and batch > num_examples:
        raise ConfigError(
            "training.batch_size",
            f"training.batch_size must be at most the {num_examples} training examples, got {batch}",
        )
    for layer in config.training.layer_lr or ():
        if layer not in layers:
            raise ConfigError(
                f"training.layer_lr.{layer}",
                f"training.layer_lr.{layer} is no layer of this network: it has {', '.join(layers)}",
            )


def _clear(folder: Path) -> None:
    """Remove a run's files; a folder with any other file is left untouched."""
    try:
        if not folder.exists():
            return
        if not folder.is_dir():
            raise RunFolderError(f"{folder}: is a file, not a folder")
        files, folders = _tree(folder)
        foreign = [name for name, path in files.items() if path.is_symlink() or not _OURS.fullmatch(name)]
        foreign += [path.name for path in folders if path.parent == folder and path.name not in RUN_GROUPS]
        if files and not foreign and not _holds_run(folder):
            # Whose files they are cannot be told without a run beside them.
            foreign = [name for name in files if not name.startswith((CONFIG_FILE, "."))]
        if foreign:
            raise RunFolderError(f"{folder}: not overwritten, it also holds {', '.join(foreign[:3])}")
        held = RunGroup(folder)
        held.claim()
        held.release()
        # Without these it is no run any more, whatever is left if this is cut short.
        for name in sorted(files, key=lambda name: name not in ("zarr.json", "run.json")):
            files[name].unlink()
        for path in reversed(folders):
            path.rmdir()
    except OSError as error:
        raise RunFolderError(f"{folder}: cannot overwrite: {error.strerror or error}") from error


def _tree(folder: Path) -> tuple[dict[str, Path], list[Path]]:
    """Return all files below a folder by their path from there, and all folders, each after those it is in."""
    files: dict[str, Path] = {}
    folders: list[Path] = []
    for place, inner, names in os.walk(folder):
        # A link could lead out of the folder: it counts as a file.
        links = [name for name in inner if Path(place, name).is_symlink()]
        folders += [Path(place, name) for name in inner if name not in links]
        files |= {Path(place, name).relative_to(folder).as_posix(): Path(place, name) for name in sorted(names + links)}
    return files, folders


def _store_config(folder: Path, config: ExperimentConfig) -> None:
    path = folder / CONFIG_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A file that says the same stays as it is, with its comments.
        if not path.exists() or differing_keys(load_config(path), config):
            atomic_write_text(path, config.to_toml())
    except OSError as error:
        raise RunFolderError(f"{path}: cannot write: {error.strerror or error}") from error


def _report(
    folder: Path,
    history: History,
    summary: dict[str, Any],
    predictions: Predictions | None,
    config: ExperimentConfig | None,
    facts: dict[str, Any],
) -> Path:
    drawn: dict[str, Any] | None = None
    if predictions is not None:
        drawn = {**predictions.arrays(), **{f"error_{name}": error for name, error in predictions.errors().items()}}
    known = {
        "status": summary["status"],
        "steps": summary["steps"],
        "tracked steps": summary["tracked_steps"],
        **{key: facts[key] for key in ("n_train", "n_test", "num_parameters", "rank") if facts.get(key) is not None},
        **{str(name): version for name, version in facts.get("versions", {}).items()},
    }
    return write_report(
        folder,
        history=history,
        summary=summary,
        predictions=drawn,
        config=None if config is None else config.to_dict(),
        facts=known,
    )
