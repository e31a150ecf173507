"""The figures of the paper: each a sweep of runs, what they have to show, and a picture."""

from kernelgrowth.experiments.figures import (
    depth,
    level_sets,
    modes,
    silent,
    transfer,
    two_layer,
    whitening,
    wide_resnet,
)
from kernelgrowth.experiments.figures.figure import Drawn, PaperFigure, draw_figure

__all__ = ["FIGURES", "Drawn", "PaperFigure", "draw_figure", "figure_named"]

FIGURES: tuple[PaperFigure, ...] = (
    silent.FIGURE_1A,
    silent.FIGURE_1C,
    wide_resnet.FIGURE_1D,
    level_sets.FIGURE,
    depth.FIGURE_3,
    whitening.FIGURE,
    two_layer.FIGURE,
    depth.FIGURE_E,
    transfer.FIGURE,
    modes.FIGURE,
    wide_resnet.FIGURE_J,
)


def figure_named(name: str) -> PaperFigure:
    """Return the figure that the paper numbers so, in capitals or not; a `ValueError` says which there are."""
    for figure in FIGURES:
        if figure.name.lower() == name.lower():
            return figure
    known = ", ".join(figure.name for figure in FIGURES)
    raise ValueError(f"no figure is named {name!r}: there are {known}")
