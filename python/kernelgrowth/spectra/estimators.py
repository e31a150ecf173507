"""Trace and Frobenius norm of a kernel from a few products, each with its standard error."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kernelgrowth._backend.arrays import FloatArray, as_array, to_numpy
from kernelgrowth._backend.checks import check_integer, check_number
from kernelgrowth.kernels.operator import NTKOperator
from kernelgrowth.spectra.probed import Probed, as_probed

__all__ = ["Estimate", "estimate_frobenius_norm", "estimate_trace", "frobenius_norm"]

Float64Array = npt.NDArray[np.float64]

# Operators of up to so many rows are stored and added up in a fraction of a second.
_SMALL_ROWS = 1000
# Rows, or vectors of the identity, that are taken together where a norm or a trace is computed exactly.
_SLAB = 256
# Random vectors with which `frobenius_norm` begins, and the most that it then adds at a time.
_FIRST_SAMPLES, _MOST_AT_ONCE = 16, 64


@dataclass(frozen=True)
class Estimate:
    """A number, and how far it may be off.

    Attributes
    ----------
    value : float
    standard_error : float
        Of `value`: from the spread of the samples, and what rounding in the dtype of the products amounts to; 0 where
        it was computed exactly. The error over it has about Student's distribution with ``samples - 1`` degrees of
        freedom.
    samples : int
        Random vectors whose results were averaged; 0 where it was computed exactly.
    passes : int
        Products with a block of vectors that were made.
    """

    value: float
    standard_error: float
    samples: int
    passes: int


def estimate_trace(op: Any, *, samples: int = 20, seed: int = 0) -> Estimate:
    """Estimate the trace of a symmetric matrix or operator that may be indefinite, without bias.

    Parameters
    ----------
    op : (n, n) array, NTKOperator, or linear operator
        As in `nystrom`.
    samples : int
        Random vectors m, at least 2. Two products are made, with m and with 2 m vectors.
    seed : int
        The same seed gives the same result.

    Returns
    -------
    Estimate
        Exact, without a sample, for a stored array, for an `NTKOperator`, which knows its trace, and where 3 m vectors
        are as many as K has rows.

    Raises
    ------
    ValueError
        If `op` is not square, not symmetric or not finite, if `samples` is less than 2, or if an `NTKOperator` was
        given two sets of features.
    TypeError
        If `op` is neither a real floating array nor an operator, or an argument is of the wrong type.

    Notes
    -----
    Hutch++ (Meyer, Musco, Musco and Woodruff 2021): with Q an orthonormal basis of ``K Ω``, Ω random with m columns,
    ``tr K = tr QᵀKQ + tr PKP``, ``P = I - Q Qᵀ``. The second is the mean of ``rᵀ K r`` over m vectors r, independent of
    Ω and uniform on the sphere of radius ``sqrt(n - m)`` in the range of P (as in Epperly, Tropp and Webber 2024; less
    variance than Gaussian ones). Their XTrace needs fewer vectors for the same error, but its samples are correlated,
    and the error that it states was measured to be a fifth to a third too small. O(n m²) beside the products, and
    seven blocks of m vectors in float64.
    """
    given = as_probed("op", op)
    samples = check_integer("samples", samples, minimum=2)
    rng = np.random.default_rng(check_integer("seed", seed, minimum=0))
    if given.stored is not None:
        return Estimate(float(np.trace(given.stored, dtype=np.float64)), 0.0, 0, 0)
    if isinstance(op, NTKOperator):
        return Estimate(op.trace(), 0.0, 0, 0)
    if 3 * samples >= given.rows:
        parts = [float(np.trace(slab, offset=-start)) for start, slab in _columns(given)]
        return Estimate(math.fsum(parts), 0.0, 0, len(parts))
    found = _deflated(given, samples, rng)
    mean, error = _mean(np.sum(found.probes * found.products, axis=0))
    diagonal = np.diag(found.corner)
    error = math.hypot(error, _rounding(given) * float(np.abs(diagonal).sum()))
    value = float(diagonal.sum()) + mean
    return Estimate(math.ldexp(value, found.exponent), math.ldexp(error, found.exponent), samples, 2)


def estimate_frobenius_norm(op: Any, *, samples: int = 20, seed: int = 0) -> Estimate:
    """Estimate ``||K||_F`` of a symmetric matrix or operator that may be indefinite.

    Parameters
    ----------
    op : (n, n) array, NTKOperator, or linear operator
        As in `nystrom`.
    samples : int
        Random vectors m, at least 2. Two products are made, with m and with 2 m vectors.
    seed : int
        The same seed gives the same result.

    Returns
    -------
    Estimate
        The square of ``value`` is an unbiased estimate of ``||K||_F²``; the standard error is that of the square,
        divided by twice the value. Exact, without a sample, for a stored array, and where 3 m vectors are as many as K
        has rows.

    Raises
    ------
    ValueError
        If `op` is not square, not symmetric or not finite, or if `samples` is less than 2.
    TypeError
        If `op` is neither a real floating array nor an operator, or an argument is of the wrong type.

    Notes
    -----
    With Q an orthonormal basis of ``K Ω`` and ``P = I - Q Qᵀ``, a symmetric K has
    ``||K||_F² = ||K Q||_F² + ||P K Q||_F² + ||P K P||_F²``. The first two are computed. The third, what a few vectors
    could not find, is the mean of ``||P K r||²`` over vectors r uniform on the sphere of radius ``sqrt(n - m)`` in the
    range of P, independent of Ω: deflation as in `estimate_trace`, for K². O(n m²)
    beside the products, and eight blocks of m vectors in float64.
    """
    given = as_probed("op", op)
    samples = check_integer("samples", samples, minimum=2)
    rng = np.random.default_rng(check_integer("seed", seed, minimum=0))
    if given.stored is not None or 3 * samples >= given.rows:
        return _exact_norm(given)
    return next(_norm_estimates(given, samples, rng))


def frobenius_norm(op: Any, *, rtol: float = 0.01, seed: int = 0) -> Estimate:
    """Return ``||K||_F``, exactly where that is cheap, else to a relative standard error of ``rtol / 2``.

    Parameters
    ----------
    op : (n, m) array, NTKOperator, or linear operator
        An operator other than `NTKOperator` must be symmetric.
    rtol : float
        Relative error wanted of an estimate, greater than 0: two of its standard errors.
    seed : int
        Of the random vectors; the same seed gives the same result.

    Returns
    -------
    Estimate
        With ``standard_error`` 0 where it is exact: for a stored array; for an `NTKOperator` that has up to 1000 rows,
        or whose products are made from the stored kernel or from tiles of it, or that has two sets of features; and
        where an estimate would take as many vectors as K has rows.

    Raises
    ------
    ValueError
        If `op` is an operator that is not square or not symmetric, or if `rtol` is not positive.
    TypeError
        If `op` is neither a real floating array nor an operator, or an argument is of the wrong type.
    MemoryLimitError
        If an `NTKOperator` finds no way to make its products within its limit.

    Notes
    -----
    `estimate_frobenius_norm` with 16 vectors, followed by products with 16, 32, 64, 64, … more as long as the standard
    error calls for it. Stopping as soon as it is small favours samples that happen to agree, an effect of a fraction of
    the standard error.
    """
    rtol = check_number("rtol", rtol, minimum=0.0, exclusive_minimum=True)
    rng = np.random.default_rng(check_integer("seed", seed, minimum=0))
    if isinstance(op, NTKOperator):
        if _is_cheap(op):
            return Estimate(op.frobenius_norm(), 0.0, 0, 0)
    elif hasattr(op, "__dlpack__") or not hasattr(op, "shape"):
        return Estimate(_stored_norm(to_numpy(as_array("op", op, ndim=2))), 0.0, 0, 0)
    given = as_probed("op", op)
    if given.rows > 3 * _FIRST_SAMPLES:
        for estimate in _norm_estimates(given, _FIRST_SAMPLES, rng):
            if estimate.standard_error <= rtol / 2 * estimate.value:
                return estimate
            # Vectors multiplied: these, those that found the basis, the basis.
            if estimate.samples + 2 * _FIRST_SAMPLES + _MOST_AT_ONCE >= given.rows:
                break
    return Estimate(op.frobenius_norm(), 0.0, 0, 0) if isinstance(op, NTKOperator) else _exact_norm(given)


def _is_cheap(op: NTKOperator) -> bool:
    """Whether the exact norm costs no more than a few products: by tiles, each of these computes all of K."""
    if op.shape[0] != op.shape[1] or op.shape[0] <= _SMALL_ROWS or op.product_plan().way != "factored":
        return True
    try:
        op.trace()
    except ValueError:
        return True  # not symmetric by construction, or beyond the range of floats, which the exact norm says too
    return False


@dataclass(frozen=True, eq=False)
class _Deflated:
    """An orthonormal Q, ``K Q``, ``Qᵀ K Q``, random vectors outside Q, K times these; K is scaled by 2**-exponent."""

    basis: Float64Array
    basis_images: Float64Array
    corner: Float64Array
    probes: Float64Array
    products: Float64Array
    exponent: int


def _deflated(given: Probed, samples: int, rng: np.random.Generator) -> _Deflated:
    """Make two products: one finds the directions that matter most, the other takes these and random ones."""
    images = given.product(_scaled_to(rng.standard_normal((given.rows, samples)), 1.0))
    exponent = _exponent(images)
    basis = np.linalg.qr(np.ldexp(images, -exponent))[0]
    probes = _probes(basis, samples, rng)
    products = np.ldexp(given.product(np.concatenate([basis, probes], axis=1)), -exponent)
    basis_images = products[:, :samples]
    corner = basis.T @ basis_images
    given.check_corner(corner, float(np.linalg.norm(basis_images, 2)))
    return _Deflated(basis, basis_images, corner, probes, products[:, samples:], exponent)


def _norm_estimates(given: Probed, samples: int, rng: np.random.Generator) -> Iterator[Estimate]:
    """Yield estimates of the norm from `samples` vectors, then from twice as many, and on by some at a time."""
    start = _deflated(given, samples, rng)
    outside = start.basis_images - start.basis @ start.corner
    known = float(np.square(start.basis_images).sum() + np.square(outside).sum())
    squares, products = np.empty(0), start.products
    for passes in itertools.count(2):
        missed = products - start.basis @ (start.basis.T @ products)
        squares = np.concatenate([squares, np.square(missed).sum(axis=0)])
        mean, error = _mean(squares)
        value = math.sqrt(known + mean)
        error = math.hypot(error / (2 * value), _rounding(given) * value) if value > 0 else 0.0
        yield Estimate(math.ldexp(value, start.exponent), math.ldexp(error, start.exponent), len(squares), passes)
        probes = _probes(start.basis, min(len(squares), _MOST_AT_ONCE), rng)
        products = np.ldexp(given.product(probes), -start.exponent)


def _probes(basis: Float64Array, count: int, rng: np.random.Generator) -> Float64Array:
    """Return vectors orthogonal to `basis`, uniform on the sphere whose radius gives them unit covariance there."""
    n, m = basis.shape
    block = rng.standard_normal((n, count))
    for _ in range(2):  # once more for the rounding of the first
        block -= basis @ (basis.T @ block)
    return _scaled_to(block, math.sqrt(n - m))


def _exact_norm(given: Probed) -> Estimate:
    if given.stored is not None:
        return Estimate(_stored_norm(given.stored), 0.0, 0, 0)
    norms = [_stored_norm(slab) for _, slab in _columns(given)]
    return Estimate(math.hypot(*norms), 0.0, 0, len(norms))


def _stored_norm(matrix: FloatArray) -> float:
    """Return sqrt(Σ K_ij²) in float64, some rows at a time, whatever the size of the entries."""
    norms = [0.0]
    for start in range(0, len(matrix), _SLAB):
        slab = matrix[start : start + _SLAB].astype(np.float64)
        exponent = _exponent(slab)
        norms.append(math.ldexp(float(np.linalg.norm(np.ldexp(slab, -exponent))), exponent))
    return math.hypot(*norms)


def _columns(given: Probed) -> Iterator[tuple[int, Float64Array]]:
    """Yield the columns of K, some at a time, with the index of the first."""
    for start in range(0, given.rows, _SLAB):
        yield start, given.product(np.eye(given.rows, min(_SLAB, given.rows - start), -start))


def _mean(samples: Float64Array) -> tuple[float, float]:
    """Return the mean of independent numbers and its standard error."""
    return float(samples.mean()), float(samples.std(ddof=1)) / math.sqrt(len(samples))


def _rounding(given: Probed) -> float:
    return float(np.finfo(given.dtype).eps)


def _scaled_to(columns: Float64Array, length: float) -> Float64Array:
    norms = np.linalg.norm(columns, axis=0)
    return np.asarray(columns * (length / np.where(norms > 0, norms, 1.0)))


def _exponent(array: Float64Array) -> int:
    return math.frexp(float(np.abs(array).max(initial=0.0)))[1]
