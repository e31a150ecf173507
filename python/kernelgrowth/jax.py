"""JAX functions: their gradient features, which `kernelgrowth.empirical_ntk` and all else takes."""

try:
    import jax as _jax  # noqa: F401
except ImportError as error:
    raise ImportError("kernelgrowth.jax needs JAX: install kernelgrowth[jax]") from error

from kernelgrowth.gradients.jax import gradient_features

__all__ = ["gradient_features"]
