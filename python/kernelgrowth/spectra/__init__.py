"""The top of a kernel's spectrum: eigenvalues, eigenvectors, and how far they can be trusted."""

from kernelgrowth.spectra.estimators import Estimate, estimate_frobenius_norm, estimate_trace, frobenius_norm
from kernelgrowth.spectra.low_rank import NystromResult, nystrom
from kernelgrowth.spectra.result import EigenResult
from kernelgrowth.spectra.solve import eigsh
from kernelgrowth.spectra.streaming import StreamingResult, StreamingTopK
from kernelgrowth.spectra.tracker import EigenTracker, TrackedEigenResult

__all__ = [
    "EigenResult",
    "EigenTracker",
    "Estimate",
    "NystromResult",
    "StreamingResult",
    "StreamingTopK",
    "TrackedEigenResult",
    "eigsh",
    "estimate_frobenius_norm",
    "estimate_trace",
    "frobenius_norm",
    "nystrom",
]
