"""Products with an operator, in float64 and at order one, however large its entries are."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernelgrowth._backend.arrays import FloatArray, check_finite, host_product
from kernelgrowth.spectra.operand import operator_dtype
from kernelgrowth.spectra.symmetry import check_square, symmetry_tolerance

__all__ = ["ScaledOperator", "probed"]


class ScaledOperator:
    """The products ``2**-exponent K V``, (rows, m) float64 for V (columns, m) float64.

    Columns are scaled by powers of two to order one before they are handed over and back afterwards, so that neither
    they nor the products leave the range of float32. They are handed over as float64, holding no more digits than the
    operator's dtype: an operator that computes in float32 loses nothing of them, and one that has a float32 matrix and
    multiplies in float64 does not round its product.

    Parameters
    ----------
    name : str
        What messages call the operator.
    operator : object with ``shape`` and ``operator @ V``
    dtype : dtype
        float32 or float64, what it computes in.
    exponent : int

    Attributes
    ----------
    shape : (int, int)
    dtype : dtype
        As given; products are float64 all the same.
    eps : float
        Its rounding.
    norm : float
        Largest ``||K v|| / ||v||`` of a square operator's products so far, scaled: a lower bound on the norm of K.
    """

    def __init__(self, name: str, operator: Any, dtype: np.dtype[Any], exponent: int = 0) -> None:
        rows, columns = operator.shape
        self._name, self._operator, self.dtype = name, operator, dtype
        self.shape = (int(rows), int(columns))
        self.exponent = exponent
        self.eps = float(np.finfo(dtype).eps)
        self.norm = 0.0

    def rounded(self, block: FloatArray) -> FloatArray:
        """Return the float64 values nearest to `block` that a product takes without rounding them."""
        if self.dtype == np.float64:
            return block
        scaled, exponents = _to_order_one(block)
        return np.asarray(np.ldexp(scaled.astype(self.dtype).astype(np.float64), exponents))

    def __matmul__(self, block: FloatArray) -> FloatArray:
        """Return the product with the rounded `block`.

        Raises
        ------
        ValueError
            If the operator's product has another shape or is not finite.
        """
        scaled, exponents = _to_order_one(block)
        vectors = scaled.astype(self.dtype).astype(np.float64)
        return np.asarray(np.ldexp(self._scaled(vectors, self._product(vectors)), exponents))

    def probe(self, vectors: FloatArray) -> FloatArray:
        """Return the product with rounded vectors of order one, after choosing the exponent by its largest entry."""
        raw = self._product(vectors)
        self.exponent = int(np.frexp(np.abs(raw).max())[1])
        return self._scaled(vectors, raw)

    def exact(self, block: FloatArray) -> FloatArray:
        """Return the product with `block` itself: what rounding leaves of it gets columns of its own."""
        if self.dtype == np.float64:
            return self @ block
        rounded = self.rounded(block)
        both = self @ np.concatenate([rounded, block - rounded], axis=1)
        return np.asarray(both[:, : block.shape[1]] + both[:, block.shape[1] :])

    def _scaled(self, vectors: FloatArray, raw: FloatArray) -> FloatArray:
        product = np.asarray(np.ldexp(raw, -self.exponent))
        lengths = np.linalg.norm(vectors, axis=0)
        if self.shape[0] == self.shape[1] and lengths.any():
            seen = lengths > 0
            self.norm = max(self.norm, float((np.linalg.norm(product, axis=0)[seen] / lengths[seen]).max()))
        return product

    def _product(self, vectors: FloatArray) -> FloatArray:
        product = host_product(self._operator, vectors)
        wanted = (self.shape[0], vectors.shape[1])
        if product.shape != wanted:
            raise ValueError(
                f"{self._name} @ V must have shape {wanted} for V of shape {vectors.shape}, got {product.shape}"
            )
        check_finite(f"{self._name} @ V", product)
        return product.astype(np.float64)


def probed(name: str, operator: Any, seed: int) -> ScaledOperator:
    """Return a symmetric operator scaled to order one, from its product with two random vectors.

    Raises
    ------
    ValueError
        If it is not square, a product is not finite, or ``u·Kv`` and ``v·Ku`` differ by more than rounding.
    TypeError
        If it computes neither in float32 nor in float64.
    """
    n = check_square(name, tuple(operator.shape))
    scaled = ScaledOperator(name, operator, operator_dtype(name, operator))
    vectors = scaled.rounded(np.random.default_rng(seed).standard_normal((n, 2)))
    product = scaled.probe(vectors)
    lengths = np.linalg.norm(vectors, axis=0)
    gap = abs(float(vectors[:, 0] @ product[:, 1]) - float(vectors[:, 1] @ product[:, 0]))
    unit = float(lengths.prod()) * scaled.norm
    if gap > symmetry_tolerance(scaled.dtype) * unit:
        raise ValueError(
            f"{name} must be symmetric, got products with u·Kv and v·Ku {gap / unit:.1e} |u| |v| ||K|| apart"
        )
    return scaled


def _to_order_one(block: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return `block` with columns scaled by powers of two to entries of at most one, and their exponents."""
    exponents = np.frexp(np.abs(block).max(axis=0))[1]
    return np.ldexp(block, -exponents), exponents
