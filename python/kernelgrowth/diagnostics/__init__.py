"""What a kernel says about a task: alignment, effective rank, kernel regression, and whether alignment was silent."""

from kernelgrowth.diagnostics.alignment import (
    eigenvector_alignment,
    kernel_alignment,
    kernel_distance,
    kernel_target_alignment,
    subspace_overlap,
)
from kernelgrowth.diagnostics.phases import SilentAlignment, silent_alignment
from kernelgrowth.diagnostics.rank import effective_rank
from kernelgrowth.diagnostics.regression import KernelRegression

__all__ = [
    "KernelRegression",
    "SilentAlignment",
    "effective_rank",
    "eigenvector_alignment",
    "kernel_alignment",
    "kernel_distance",
    "kernel_target_alignment",
    "silent_alignment",
    "subspace_overlap",
]
