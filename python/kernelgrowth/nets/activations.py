"""Activation functions with their derivatives, elementwise, for NumPy and CuPy arrays."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kernelgrowth._backend.arrays import array_namespace, special_functions

__all__ = ["ACTIVATIONS", "Activation"]


@dataclass(frozen=True)
class Activation:
    """An elementwise nonlinearity.

    Attributes
    ----------
    name : str
    value : callable
        z -> φ(z), same shape and dtype.
    derivative : callable or None
        (z, φ(z)) -> φ'(z), same shape, to be multiplied with: boolean where φ' is 0 or 1 only; None where φ' = 1
        everywhere.
    positively_homogeneous : bool
        Whether φ(c z) = c φ(z) for every c > 0.
    """

    name: str
    value: Callable[[Any], Any]
    derivative: Callable[[Any, Any], Any] | None
    positively_homogeneous: bool


def _identity(z: Any) -> Any:
    return z


def _relu(z: Any) -> Any:
    # A row of zeros, because NumPy does not vectorise the maximum of an array and a number.
    xp = array_namespace(z)
    return xp.maximum(z, xp.zeros(z.shape[-1:], dtype=z.dtype))


def _relu_derivative(z: Any, h: Any) -> Any:
    return z > 0


def _tanh(z: Any) -> Any:
    return array_namespace(z).tanh(z)


def _tanh_derivative(z: Any, h: Any) -> Any:
    return 1 - h * h


def _erf(z: Any) -> Any:
    # Imported when used: CuPy may be absent, and `import kernelgrowth` should not pay for scipy.special.
    return special_functions(z).erf(z)


def _erf_derivative(z: Any, h: Any) -> Any:
    return array_namespace(z).exp(-z * z) * (2 / math.sqrt(math.pi))


ACTIVATIONS: dict[str, Activation] = {
    activation.name: activation
    for activation in (
        Activation("linear", _identity, None, True),
        Activation("relu", _relu, _relu_derivative, True),
        Activation("tanh", _tanh, _tanh_derivative, False),
        Activation("erf", _erf, _erf_derivative, False),
    )
}
"""Every activation by name; the derivative of ReLU at 0 is 0."""
