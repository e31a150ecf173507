"""The top of a kernel's spectrum: eigenvalues, eigenvectors, and how far they can be trusted."""

from kernelgrowth.spectra.result import EigenResult
from kernelgrowth.spectra.solve import eigsh

__all__ = ["EigenResult", "eigsh"]
