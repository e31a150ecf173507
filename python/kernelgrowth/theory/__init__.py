"""Closed forms for linear networks that learn their kernel."""

from kernelgrowth.theory.alignment import max_alignment, spike_alignment
from kernelgrowth.theory.dynamics import TwoLayerSolution, deep_linear, two_layer
from kernelgrowth.theory.early import early_growth, early_kernel
from kernelgrowth.theory.final_kernel import final_kernel, final_kernel_multi, hidden_kernel
from kernelgrowth.theory.time_scales import half_loss_time, mode_times
from kernelgrowth.theory.transfer import transfer_curve

__all__ = [
    "TwoLayerSolution",
    "deep_linear",
    "early_growth",
    "early_kernel",
    "final_kernel",
    "final_kernel_multi",
    "half_loss_time",
    "hidden_kernel",
    "max_alignment",
    "mode_times",
    "spike_alignment",
    "transfer_curve",
    "two_layer",
]
