"""Figures and the HTML page of a run. Everything drawn here was computed elsewhere."""

from kernelgrowth.report.figures import dynamics_figure, predictions_figure, spectrum_figure
from kernelgrowth.report.page import write_report

__all__ = ["dynamics_figure", "predictions_figure", "spectrum_figure", "write_report"]
