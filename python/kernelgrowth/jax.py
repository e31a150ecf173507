"""JAX functions: their gradient features, which `kernelgrowth.empirical_ntk` and all else takes."""

from kernelgrowth.gradients.jax import gradient_features

__all__ = ["gradient_features"]
