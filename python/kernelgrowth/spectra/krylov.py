"""Thick-restarted block Krylov iteration for the top of a symmetric operator's spectrum.

It differs from textbook block Lanczos in four ways: the basis is kept and orthogonalised in full, and the projected
matrix is formed from it instead of from the three-term recurrence; directions that run dry are replaced by random ones;
a set of locked vectors can be projected out exactly, so that the complement of an answer can be searched; and it stops
on residuals relative to the largest eigenvalue, so that a rapidly decaying spectrum does not ask for digits of its tail
that the product does not have.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg

from kernelgrowth._backend.arrays import FloatArray, check_finite, to_numpy
from kernelgrowth.spectra.symmetry import symmetry_tolerance

__all__ = ["BlockProduct", "RitzPairs", "block_krylov"]

# Directions of unit columns whose squared length is below this are linearly dependent as far as a Gram matrix can tell.
_DEPENDENT = 1e-12
_ROUNDS = 3


class BlockProduct:
    """The products of an operator with blocks of vectors: counted, checked, and scaled to order one.

    Parameters
    ----------
    operator : object with ``operator @ V``
        Symmetric, n rows; V is handed over as (n, b) in `dtype`.
    dtype : dtype
        float32 or float64, what the operator computes in. The iteration itself runs in float64.
    width : int
        Most vectors in one product.

    Attributes
    ----------
    passes : int
        Products made so far.
    exponent : int or None
        What products are scaled by, ``2**-exponent``; None as long as all were zero.
    norm : float
        Largest norm of a scaled product with a unit vector so far, a lower bound on that of the scaled operator.
    """

    def __init__(self, operator: Any, n: int, dtype: np.dtype[Any], width: int) -> None:
        self._operator = operator
        self.rows = n
        self.dtype = dtype
        self.width = width
        self.passes = 0
        self.exponent: int | None = None
        self.norm = 0.0

    def cost(self, columns: int) -> int:
        """Return how many passes a product with this many vectors takes."""
        return -(-columns // self.width)

    def __call__(self, block: FloatArray) -> FloatArray:
        """Return ``A @ block * 2**-exponent`` in float64, (n, b)."""
        parts = [self._one_pass(block[:, i : i + self.width]) for i in range(0, block.shape[1], self.width)]
        product = np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]
        if self.exponent is None:
            largest = float(np.abs(product).max())
            if largest == 0.0:
                return product
            # The first product fixes the scale of all later ones, so that no norm can underflow.
            self.exponent = int(np.frexp(largest)[1])
        product = np.asarray(np.ldexp(product, -self.exponent))
        self.norm = max(self.norm, float(np.linalg.norm(product, axis=0).max()))
        return product

    def _one_pass(self, block: FloatArray) -> FloatArray:
        product = np.asarray(to_numpy(self._operator @ block.astype(self.dtype, order="C")))
        self.passes += 1
        if product.shape != block.shape:
            raise ValueError(f"A @ V must have shape {block.shape} for V of that shape, got {product.shape}")
        check_finite("A @ V", product)
        return product.astype(np.float64)


@dataclass(frozen=True, eq=False)
class RitzPairs:
    """Approximate eigenpairs of the scaled operator, values descending, and how the iteration that found them ended.

    `scale` is the largest absolute Ritz value; `accepted` says that the caller's test was met; `exhausted` that the
    basis spans the whole space, so that the pairs are exact up to rounding and none can have been missed.
    """

    values: FloatArray
    vectors: FloatArray
    residuals: FloatArray
    scale: float
    accepted: bool
    exhausted: bool


def block_krylov(
    product: BlockProduct,
    start: FloatArray,
    wanted: int,
    *,
    locked: FloatArray,
    accept: Callable[[FloatArray, FloatArray, float], bool],
    max_passes: int,
    rng: np.random.Generator,
) -> RitzPairs:
    """Return the `wanted` largest Ritz pairs of ``(I - LLᵀ) A (I - LLᵀ)`` on the complement of the locked vectors L.

    Parameters
    ----------
    product : BlockProduct
        The operator A, n rows.
    start : (n, b) float64 array
        First block; need not be orthonormal. Its width is that of every later block.
    wanted : int
        Number of pairs, at most n minus the number of locked vectors.
    locked : (n, l) float64 array
        Orthonormal columns, l = 0 for none.
    accept : callable
        ``accept(values, residuals, scale)`` of the leading Ritz pairs, `scale` the largest absolute Ritz value:
        True ends the iteration.
    max_passes : int
        Ends it too, once `product` has made this many and there are `wanted` pairs.
    rng : numpy.random.Generator
        Source of replacement directions.

    Notes
    -----
    Memory: two bases of at most ``max(wanted + 6 b, 3 wanted + 20)`` columns in float64.
    """
    n, width = start.shape
    space = n - locked.shape[1]
    columns = min(space, max(wanted + 6 * width, 3 * wanted + 20))
    basis, images = np.empty((n, columns), order="F"), np.empty((n, columns), order="F")
    projected = np.zeros((columns, columns))
    size = 0
    block = _orthonormal_block(start[:, :space], [locked], product.dtype, rng)
    while True:
        image = product(block)
        end = size + block.shape[1]
        corner = block.T @ image
        _check_corner(corner, product)
        image -= locked @ (locked.T @ image)
        basis[:, size:end], images[:, size:end] = block, image
        projected[:size, size:end] = basis[:, :size].T @ image
        projected[size:end, :size] = projected[:size, size:end].T
        projected[size:end, size:end] = (corner + corner.T) / 2
        size = end

        values, rotation = scipy.linalg.eigh(projected[:size, :size], driver="evd", check_finite=False)
        values, rotation = values[::-1], rotation[:, ::-1]
        scale = float(np.abs(values).max())
        leading = min(wanted, size)
        vectors = basis[:, :size] @ rotation[:, :leading]
        residuals = np.linalg.norm(images[:, :size] @ rotation[:, :leading] - vectors * values[:leading], axis=0)
        accepted = leading == wanted and accept(values[:leading], residuals, scale)
        spent = leading == wanted and product.passes + product.cost(width) > max_passes
        if accepted or spent or size == space:
            return RitzPairs(values[:leading].copy(), vectors, residuals, scale, accepted, size == space)

        room = min(width, space - size)
        following = _orthonormal_block(image[:, :room], [locked, basis[:, :size]], product.dtype, rng)
        if size + room > columns:
            keep = min(wanted + width, columns - room)
            basis[:, :keep] = basis[:, :size] @ rotation[:, :keep]
            images[:, :keep] = images[:, :size] @ rotation[:, :keep]
            projected[:keep, :keep] = np.diag(values[:keep])
            size = keep
        block = following


def _check_corner(corner: FloatArray, product: BlockProduct) -> None:
    gap = float(np.abs(corner - corner.T).max())
    if gap > symmetry_tolerance(product.dtype) * product.norm:
        raise ValueError(f"A must be symmetric, got products with u·Av and v·Au {gap / product.norm:.1e} ||A|| apart")


def _orthonormal_block(
    block: FloatArray, bases: list[FloatArray], dtype: np.dtype[Any], rng: np.random.Generator
) -> FloatArray:
    """Return as many orthonormal columns as `block` has, spanning it outside `bases`, topped up at random.

    The columns are combined by the eigenvectors of their small Gram matrix (Stathopoulos and Wu 2002) rather than by a
    QR factorisation: a few matrix products instead of many short ones, which oversubscribed threads would stall on.
    """
    n, width = block.shape
    block = _project_out(_unit_columns(block, 0.0), bases)
    # What is left of a unit vector below this is the rounding of the product it came from.
    dry = 16 * float(np.finfo(dtype).eps)
    # The first round divides by what may be small, and so amplifies rounding; two more make good for it. Random
    # directions complete the block at once: the caller asks for no more than the complement has.
    for rounds in itertools.count(1):
        block = _unit_columns(_project_out(block, bases), dry if rounds == 1 else 0.0)
        if block.shape[1]:
            weights, rotation = scipy.linalg.eigh(block.T @ block, driver="evd", check_finite=False)
            keep = weights > _DEPENDENT
            block = block @ (rotation[:, keep] / np.sqrt(weights[keep]))
        missing = width - block.shape[1]
        if rounds >= _ROUNDS and not missing:
            break
        block = np.concatenate([block, rng.standard_normal((n, missing)) / np.sqrt(n)], axis=1)
    return block


def _unit_columns(block: FloatArray, dry: float) -> FloatArray:
    """Return the columns longer than `dry`, scaled to length one."""
    norms = np.linalg.norm(block, axis=0)
    kept = norms > dry
    return np.asarray(block[:, kept] / norms[kept])


def _project_out(block: FloatArray, bases: list[FloatArray]) -> FloatArray:
    for basis in bases:
        block = block - basis @ (basis.T @ block)
    return block
