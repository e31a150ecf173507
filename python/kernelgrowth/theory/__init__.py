"""Closed forms for linear networks that learn their kernel."""

from kernelgrowth.theory.alignment import max_alignment
from kernelgrowth.theory.dynamics import TwoLayerSolution, deep_linear, two_layer
from kernelgrowth.theory.final_kernel import final_kernel, final_kernel_multi

__all__ = ["TwoLayerSolution", "deep_linear", "final_kernel", "final_kernel_multi", "max_alignment", "two_layer"]
