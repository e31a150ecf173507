"""PyTorch modules: their gradient features and kernels."""

from kernelgrowth.gradients.torch import ModuleFeatures, gradient_features
from kernelgrowth.torch.kernel import empirical_ntk

__all__ = ["ModuleFeatures", "empirical_ntk", "gradient_features"]
