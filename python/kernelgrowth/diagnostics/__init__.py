"""What kernels say about a task: alignment, rank, regression with one or along a path, and silent alignment."""

from kernelgrowth.diagnostics.alignment import (
    eigenvector_alignment,
    kernel_alignment,
    kernel_distance,
    kernel_target_alignment,
    subspace_overlap,
)
from kernelgrowth.diagnostics.path_kernel import path_kernel, path_prediction
from kernelgrowth.diagnostics.path_regression import PathRegression
from kernelgrowth.diagnostics.phases import SilentAlignment, silent_alignment
from kernelgrowth.diagnostics.rank import effective_rank
from kernelgrowth.diagnostics.regression import KernelRegression

__all__ = [
    "KernelRegression",
    "PathRegression",
    "SilentAlignment",
    "effective_rank",
    "eigenvector_alignment",
    "kernel_alignment",
    "kernel_distance",
    "kernel_target_alignment",
    "path_kernel",
    "path_prediction",
    "silent_alignment",
    "subspace_overlap",
]
