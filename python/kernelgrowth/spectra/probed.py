"""A symmetric matrix or operator as an algorithm with random vectors sees it: rows, dtype, and products in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kernelgrowth._backend.arrays import FloatArray, as_array, check_finite, host_product, to_numpy
from kernelgrowth.kernels.products import stored_multiply
from kernelgrowth.spectra.operand import is_operator, operator_dtype
from kernelgrowth.spectra.symmetry import check_square, check_symmetric, symmetry_tolerance

__all__ = ["Probed", "as_probed", "norm_from_probes"]

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Probed:
    """A square matrix or operator with n rows.

    Attributes
    ----------
    name : str
        The argument's name, for messages.
    given : object
        As it came, the template of results.
    stored : (n, n) ndarray or None
        The matrix where it is one, symmetric up to rounding.
    rows : int
        n.
    dtype : numpy.dtype
        float32 or float64, of the matrix or of what the operator computes in.
    """

    name: str
    given: Any
    stored: FloatArray | None
    rows: int
    dtype: np.dtype[Any]

    def rounded(self, block: Float64Array) -> Float64Array:
        """Return the vectors that `product` multiplies by exactly, those of `block` up to rounding."""
        return block if self.stored is not None else block.astype(self.dtype).astype(np.float64)

    def product(self, block: Float64Array) -> Float64Array:
        """Return ``K @ block`` in float64, (n, b): a stored matrix is multiplied in float64, else as the operator does.

        Raises
        ------
        ValueError
            If the product has another shape or is not finite.
        """
        if self.stored is not None:
            return stored_multiply(self.stored, block, check_finite=True).astype(np.float64, copy=False)
        product = host_product(self.given, block.astype(self.dtype, order="C"))
        if product.shape != block.shape:
            raise ValueError(f"{self.name} @ V must have shape {block.shape} for V of that shape, got {product.shape}")
        check_finite(f"{self.name} @ V", product)
        return product.astype(np.float64)

    def check_corner(self, corner: Float64Array, scale: float) -> None:
        """Refuse an operator whose ``Vᵀ K V`` for orthonormal V is not symmetric, against a norm of K."""
        gap = float(np.abs(corner - corner.T).max(initial=0.0))
        if gap > symmetry_tolerance(self.dtype) * scale:
            raise ValueError(
                f"{self.name} must be symmetric, got products with u·Kv and v·Ku {gap / scale:.1e} ||K|| apart"
            )


def as_probed(name: str, given: Any) -> Probed:
    """Return a matrix or operator, checked by name.

    Raises
    ------
    TypeError
        If it is neither a real floating array nor has ``shape`` and ``@``, or computes in another dtype.
    ValueError
        If it is not square; or, stored, not finite or not symmetric.
    """
    if is_operator(given):
        return Probed(name, given, None, check_square(name, tuple(given.shape)), operator_dtype(name, given))
    stored = to_numpy(as_array(name, given, ndim=2))
    rows = check_square(name, stored.shape)
    check_symmetric(name, stored)
    return Probed(name, given, stored, rows, stored.dtype)


def norm_from_probes(squares: float, count: int) -> float:
    """Return a bound on ``||E||`` that holds with probability 0.99, from ``Σ ||E g||²`` of so many Gaussian probes g.

    E must not depend on the probes. Each ``E g`` is at least ``||E||`` times a standard normal number, so the sum is at
    least ``||E||² χ²``, and is divided by the 1 % quantile of that.
    """
    # Imported when used: it takes longer than everything else here.
    from scipy.special import gammaincinv

    return math.sqrt(squares / (2.0 * float(gammaincinv(count / 2, 0.01))))
