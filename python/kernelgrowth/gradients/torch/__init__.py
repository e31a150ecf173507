"""Gradient features of PyTorch modules, read from the graph that autograd records."""

from kernelgrowth.gradients.torch.features import ModuleFeatures, gradient_features, parameter_groups

__all__ = ["ModuleFeatures", "gradient_features", "parameter_groups"]
