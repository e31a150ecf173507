"""The report of a sweep: a small picture of every run, and one table."""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kernelgrowth._backend.errors import RunFolderError
from kernelgrowth._backend.files import atomic_write_text, atomic_writer
from kernelgrowth.report.page import template, text_of
from kernelgrowth.report.style import ALIGNMENT, BLACK, GREY, LOSS, NORM, new_figure, png_bytes, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["sweep_figure", "write_sweep_report"]

# Pictures beyond these would be too small to read, or too many to look at.
_MOST_COLUMNS, _MOST_PICTURES = 6, 60
_WIDTH, _HEIGHT = 2.3, 1.75
_CURVES = (
    ("loss", LOSS, r"loss  $\mathcal{L}\,/\,\mathcal{L}_0$"),
    ("kernel_norm", NORM, r"norm  $\|K\|_F\,/\,\|K_\infty\|_F$"),
    ("alignment", ALIGNMENT, r"alignment  $A(K)$"),
)
_SHOWN = {
    "status": "status",
    "verdict": "verdict",
    "silent_alignment_score": "silent score",
    "alignment_final": "final alignment",
    "growth": "growth",
    "loss_final": "final loss",
    "predictor_error_final": "error of K∞",
}


def sweep_figure(runs: Mapping[str, Mapping[str, Any]], histories: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw loss, kernel norm and alignment of every run against time, small, on axes of one scale.

    Parameters
    ----------
    runs : mapping of str to mapping
        The settings of each run; where the last one has few values, those are the columns.
    histories : mapping of str to mapping
        "time", "loss", "kernel_norm" and "alignment" of the runs that have something to show.
    """
    names = list(runs)[:_MOST_PICTURES]
    columns = _columns([runs[name] for name in names])
    rows = -(-len(names) // columns)
    figure = new_figure(max(4.6, columns * _WIDTH), rows * _HEIGHT + 0.7)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    times = [t for history in histories.values() for t in np.asarray(history["time"], float) if t > 0]
    for place, axes in enumerate(grid.flat):
        if place >= len(names):
            axes.set_axis_off()
            continue
        name = names[place]
        history = histories.get(name)
        if history is None:
            axes.text(0.5, 0.5, "nothing recorded", transform=axes.transAxes, ha="center", color=GREY, fontsize=8.0)
        else:
            time = np.asarray(history["time"], float)
            for key, colour, _ in _CURVES:
                axes.plot(time, _scaled(key, np.asarray(history[key], float)), color=colour, linewidth=1.3)
        axes.set_ylim(-0.04, 1.12)
        if times and max(times) > 30 * min(times):
            axes.set_xscale("symlog", linthresh=min(times))
        tidy(axes)
        axes.tick_params(labelsize=7.0)
        axes.set_title(_title(runs[name]), fontsize=7.5, color=BLACK, pad=3.0)
    handles = [grid.flat[0].plot([], [], color=colour, label=label)[0] for _, colour, label in _CURVES]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False, fontsize=8.5, labelcolor=BLACK)
    figure.supxlabel(r"time  $t$  (learning rate $\times$ steps)", fontsize=8.5, color=BLACK)
    return figure


def write_sweep_report(
    folder: str | os.PathLike[str],
    *,
    runs: Mapping[str, Mapping[str, Any]],
    histories: Mapping[str, Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
) -> Path:
    """Write ``sweep.png`` and ``report.html`` into a sweep's folder, and return the page.

    Parameters
    ----------
    folder : path-like
        An existing folder; files of these names are replaced.
    runs, histories
        As `sweep_figure` takes them.
    rows : sequence of mapping
        Of the table, each with "run", the run's settings and the numbers of its summary.

    Raises
    ------
    BackendError
        If Matplotlib or Jinja is not installed.
    RunFolderError
        If a file cannot be written.
    """
    target = Path(folder)
    page_of_sweep = template("sweep.html")
    image = png_bytes(sweep_figure(runs, histories))
    varied = list(dict.fromkeys(key for settings in runs.values() for key in settings))
    shown = {key: title for key, title in _SHOWN.items() if any(_says(row.get(key)) for row in rows)}
    page = page_of_sweep.render(
        title=target.resolve().name,
        count=len(rows),
        pictures=min(len(runs), _MOST_PICTURES),
        image=base64.b64encode(image).decode("ascii"),
        heads=[*varied, *shown.values()],
        rows=[
            {
                "run": row["run"],
                "link": (target / str(row["run"]) / "report.html").exists(),
                "cells": [text_of(row[key]) if _says(row.get(key)) else "" for key in (*varied, *shown)],
            }
            for row in rows
        ],
    )
    path = target / "sweep.png"
    try:
        with atomic_writer(path) as stream:
            stream.write(image)
        path = target / "report.html"
        atomic_write_text(path, page)
    except OSError as error:
        raise RunFolderError(f"{path}: cannot write: {error.strerror or error}") from error
    return path


def _says(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def _columns(settings: Sequence[Mapping[str, Any]]) -> int:
    """Return how many pictures stand in a row: as many as the setting that varies fastest has values, if it can be."""
    keys = list(settings[0]) if settings else []
    values = {repr(one.get(keys[-1])) for one in settings} if keys else set()
    if 1 < len(values) <= _MOST_COLUMNS and len(settings) % len(values) == 0:
        return len(values)
    return min(4, len(settings))


def _scaled(key: str, values: Any) -> Any:
    reference = {"loss": values[0], "kernel_norm": values[-1]}.get(key, 1.0)
    return values / reference if reference > 0 else np.full(len(values), np.nan)


def _title(settings: Mapping[str, Any]) -> str:
    return ",  ".join(f"{key.rpartition('.')[2]} {text_of(value)}" for key, value in settings.items())
