"""`nystrom`: a low-rank approximation of a positive semidefinite kernel from one product, with a bound on its error."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.linalg

from kernelgrowth._backend.arrays import like
from kernelgrowth._backend.checks import check_integer
from kernelgrowth.kernels.operator import NTKOperator
from kernelgrowth.spectra.probed import Probed, as_probed, norm_from_probes
from kernelgrowth.spectra.symmetry import symmetry_tolerance

__all__ = ["NystromResult", "nystrom"]

Float64Array = npt.NDArray[np.float64]

# Gaussian vectors that test the approximation of an operator whose trace is not known. With ten, the bound is about
# twice the Frobenius norm of the error.
_PROBES = 10
# Rounding of a product, relative to its norm and in units of the dtype's spacing at 1.
_PRODUCT_ROUNDING = 4


@dataclass(frozen=True, eq=False)
class NystromResult:
    """A positive semidefinite approximation ``K̂ = V diag(λ) Vᵀ`` of K with n rows.

    Attributes
    ----------
    eigenvalues : (rank,) array
        Descending, not negative, in the dtype of K. None exceeds that of K by more than rounding.
    eigenvectors : (n, rank) array
        Orthonormal columns, in the dtype of K.
    error_bound : float
        Bound on ``||K - K̂||₂``.
    bound_kind : {"trace", "probes"}
        "trace": certain, ``tr K`` less the trace of the approximation before its truncation, plus what truncation took
        from the largest eigenvalue left out. "probes": from Gaussian vectors that had no part in the approximation; it
        holds with probability at least 0.99, over them, whatever K is.
    """

    eigenvalues: Any
    eigenvectors: Any
    error_bound: float
    bound_kind: str


def nystrom(op: Any, rank: int, *, oversampling: int = 10, seed: int = 0) -> NystromResult:
    """Approximate a positive semidefinite matrix or operator from one product with ``rank + oversampling`` vectors.

    Parameters
    ----------
    op : (n, n) array, NTKOperator, or linear operator
        K, symmetric positive semidefinite up to rounding: a float32 or float64 array (NumPy, CuPy, or through DLPack),
        or anything with ``.shape``, ``.dtype`` and ``op @ V`` for V of shape (n, b).
    rank : int
        1 to n.
    oversampling : int
        Vectors beyond `rank`, at least 0. The expected error is within ``1 + rank / (oversampling - 1)`` times the sum
        of the eigenvalues that the best approximation of this rank leaves out (Tropp et al. 2017).
    seed : int
        The same seed gives the same result.

    Returns
    -------
    NystromResult
        Arrays of the kind and dtype of `op` (NumPy for an operator).

    Raises
    ------
    ValueError
        If `op` is not square, not symmetric, not finite, or if its product shows a negative eigenvalue beyond rounding;
        if `rank` is not in 1..n; or if an `NTKOperator` was given two sets of features.
    TypeError
        If `op` is neither a real floating array nor an operator, or an argument is of the wrong type.

    Notes
    -----
    One product with ``l = min(n, rank + oversampling)`` vectors, and ten more for an operator without known trace; the
    kernel of an `NTKOperator` is not formed unless its own plan does; ``O(n l²)`` beside it, and six blocks of l
    vectors in float64.

    With orthonormal Ω and ``Y = K Ω + ν Ω``, ``N = Y (Ωᵀ Y)⁻¹ Yᵀ`` is the Nyström approximation of ``K + ν I``, whose
    eigenvalues are then lowered by ν and cut off after `rank`: Tropp, Yurtsever, Udell and Cevher, "Fixed-rank
    approximation of a positive-semidefinite matrix from streaming data" (2017), Algorithm 3. The shift ν is the
    rounding of the product.

    The trace bound: ``K + ν I - N`` is semidefinite, and its n - l eigenvalues that are not zero by construction are at
    least ν each, so its norm is at most ``tr K - tr N + (l + 1) ν``; truncation adds at most the (rank + 1)-th
    eigenvalue. That K is semidefinite is taken for granted; what one product can show against it is refused. The
    probes are `norm_from_probes`.
    """
    given = as_probed("op", op)
    rank = check_integer("rank", rank, minimum=1)
    if rank > given.rows:
        raise ValueError(f"rank must be at most the number of rows of op, {given.rows}, got {rank}")
    oversampling = check_integer("oversampling", oversampling, minimum=0)
    rng = np.random.default_rng(check_integer("seed", seed, minimum=0))
    trace = _known_trace(given)

    basis = given.rounded(np.linalg.qr(rng.standard_normal((given.rows, min(given.rows, rank + oversampling))))[0])
    probes = given.rounded(rng.standard_normal((given.rows, _PROBES if trace is None else 0)))
    product = given.product(np.concatenate([basis, probes], axis=1))
    largest = max(float(np.abs(product).max()), abs(trace or 0.0))
    # A power of two keeps every bit, and squares of small kernels above zero.
    exponent = math.frexp(largest)[1]
    np.ldexp(product, -exponent, out=product)
    sketch, tested = product[:, : basis.shape[1]], product[:, basis.shape[1] :]

    parts = _approximation(given, basis, sketch)
    values, vectors = np.maximum(parts.values[:rank] - parts.shift, 0.0), parts.vectors[:, :rank]
    if trace is None:
        missed = tested - vectors @ (values[:, None] * (vectors.T @ probes))
        bound = norm_from_probes(float(np.sum(missed**2)), _PROBES) + parts.rounding
    else:
        bound = _trace_bound(parts, math.ldexp(trace, -exponent), rank)
    return NystromResult(
        eigenvalues=like(np.ldexp(values, exponent).astype(given.dtype), op),
        eigenvectors=like(vectors.astype(given.dtype), op),
        error_bound=math.ldexp(bound, exponent),
        bound_kind="probes" if trace is None else "trace",
    )


@dataclass(frozen=True, eq=False)
class _Approximation:
    """``N = V diag(values) Vᵀ`` of ``K + shift I``, l columns, values descending; `rounding` is that of the product."""

    values: Float64Array
    vectors: Float64Array
    shift: float
    rounding: float


def _known_trace(given: Probed) -> float | None:
    if given.stored is not None:
        return float(np.trace(given.stored, dtype=np.float64))
    return given.given.trace() if isinstance(given.given, NTKOperator) else None


def _approximation(given: Probed, basis: Float64Array, sketch: Float64Array) -> _Approximation:
    # The vectors multiplied were rounded to the dtype of K: an exact change of basis makes them orthonormal again.
    factor = scipy.linalg.cholesky(basis.T @ basis, lower=True)
    basis, sketch = (
        scipy.linalg.solve_triangular(factor, block.T, lower=True, check_finite=False).T for block in (basis, sketch)
    )
    core = basis.T @ sketch
    scale = float(np.linalg.norm(sketch, 2))
    given.check_corner(core, scale)
    skew = float(np.linalg.norm(core - core.T, 2))
    rounding = max(_PRODUCT_ROUNDING * float(np.finfo(given.dtype).eps) * scale, skew)
    values, rotation = scipy.linalg.eigh((core + core.T) / 2, driver="evd", check_finite=False)
    lowest = float(values[0])
    if lowest < -symmetry_tolerance(given.dtype) * scale:
        raise ValueError(
            f"{given.name} must be positive semidefinite, got a product that shows an eigenvalue of at most "
            f"{lowest / scale:.1e} ||K||"
        )
    if scale == 0.0:
        return _Approximation(np.zeros(basis.shape[1]), basis, 0.0, 0.0)
    shift = rounding + 2.0 * max(0.0, -lowest)
    whole = ((sketch + shift * basis) @ rotation) / np.sqrt(values + shift)
    vectors, singular, _ = np.linalg.svd(whole, full_matrices=False)
    return _Approximation(singular**2, vectors, shift, rounding)


def _trace_bound(parts: _Approximation, trace: float, rank: int) -> float:
    """Bound the norm of ``K - K̂ = (K + ν I - N) + (N - K̂) - ν I`` for semidefinite K of this trace.

    The rounding F of the product makes N the approximation of a matrix that differs from ``K + ν I`` by at most about
    2 ||F||, in a subspace of 2 l dimensions: it moves the trace by l ||F|| and the smallest eigenvalues by 4 l ||F||.
    """
    columns = len(parts.values)
    missing = max(0.0, trace - float(parts.values.sum()) + (columns + 1) * parts.shift)
    truncated = float(parts.values[rank]) if rank < columns else 0.0
    return missing + max(truncated - parts.shift, 0.0) + parts.shift + (5 * columns + 2) * parts.rounding
