"""What a figure of the paper is here: runs of a sweep, the numbers that they show, and a picture of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernelgrowth._backend.files import atomic_writer
from kernelgrowth.experiments.sweep import run_sweep
from kernelgrowth.report.style import png_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Drawn", "PaperFigure", "draw_figure"]


@dataclass(frozen=True)
class PaperFigure:
    """A figure of Atanasov, Bordelon and Pehlevan, "The Silent Alignment Effect" (arXiv 2111.00034).

    Attributes
    ----------
    name : str
        As the paper numbers it.
    title : str
        What is to be seen.
    cost : str
        Of the quick setting and of the paper's, in words.
    run : callable
        One run of its sweep, as `run_sweep` calls it.
    settings : callable
        From ``full`` (the paper's setting in place of the quick one), the number of seeds and the folder of data files
        (or None) to the settings of all runs.
    findings : callable
        From all runs to the numbers that the figure stands for, by name.
    draw : callable
        From all runs to the picture.
    """

    name: str
    title: str
    cost: str
    run: Callable[..., Mapping[str, Any]]
    settings: Callable[[bool, int, str | None], list[dict[str, Any]]]
    findings: Callable[[Sequence[Mapping[str, Any]]], dict[str, float]]
    draw: Callable[[Sequence[Mapping[str, Any]]], Figure]


@dataclass(frozen=True)
class Drawn:
    """A figure that was drawn: its runs, what they show, and the picture's file (None where it was not written)."""

    rows: list[dict[str, Any]]
    findings: dict[str, float]
    picture: Path | None


def draw_figure(
    figure: PaperFigure,
    out: str | os.PathLike[str] | None = None,
    *,
    full: bool = False,
    seeds: int = 1,
    data: str | None = None,
    workers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Drawn:
    """Make the runs of a figure that `out` does not hold yet, and draw it there.

    Parameters
    ----------
    figure : PaperFigure
    out : path-like, optional
        Folder for the picture, ``figure-<name>.png``, and beside it the folder of its runs; without it nothing is
        written.
    full : bool
        The paper's setting: it takes longer, and some figures need data files for it.
    seeds : int
        Runs of each setting, from as many seeds.
    data : str, optional
        Folder of MNIST's or CIFAR-10's files.
    workers, on_progress
        As in `run_sweep`, which tells what may be raised too.
    """
    settings = figure.settings(full, seeds, data)
    folder = None if out is None else Path(out)
    name = f"figure-{figure.name}{'-full' if full else ''}"
    runs = None if folder is None else folder / name
    rows = run_sweep(figure.run, settings, runs, workers=workers, on_progress=on_progress)
    picture = None
    if folder is not None:
        picture = folder / f"{name}.png"
        image = png_bytes(figure.draw(rows))
        with atomic_writer(picture) as stream:
            stream.write(image)
    return Drawn(rows, figure.findings(rows), picture)
