"""Figures and the HTML pages of runs and sweeps. Everything drawn here was computed elsewhere."""

from kernelgrowth.report.figures import dynamics_figure, predictions_figure, spectrum_figure
from kernelgrowth.report.page import write_report
from kernelgrowth.report.sweep_page import sweep_figure, write_sweep_report

__all__ = [
    "dynamics_figure",
    "predictions_figure",
    "spectrum_figure",
    "sweep_figure",
    "write_report",
    "write_sweep_report",
]
