"""The compiled eigensolver: block Krylov iterations, and a look at a stored matrix before one."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kernelgrowth import _core
from kernelgrowth._backend import cuda
from kernelgrowth._backend.arrays import FloatArray, is_cupy
from kernelgrowth._backend.native import num_threads

__all__ = ["KrylovPairs", "Symmetry", "block_krylov", "symmetry"]


@dataclass(frozen=True)
class KrylovPairs:
    """Ritz pairs of a symmetric operator A scaled by ``2**-exponent``, and what the iteration saw outside them.

    Attributes
    ----------
    values, vectors, residuals : ndarray
        (k,) float64, descending; (n, k) in the operator's dtype; (k,) float64, ``||A v - value v||``. Fewer than were
        wanted only where the iteration was interrupted.
    scale : float
        Largest Ritz value, or the norm that A has shown on a unit vector, whichever is larger.
    exponent : int
        All numbers here are of ``2**-exponent A``.
    passes : int
        Products with a block of vectors.
    accepted, exhausted : bool
        Whether the tolerance was met; whether the basis Q spans the whole space, so that nothing can have been missed.
    next_value : float
        The Ritz value after those wanted; -inf if the basis has none.
    projected_squares, projected_trace : float
        ``||QᵀAQ||_F²`` and its trace.
    rest_squares, rest_norm : float
        ``||AQ - Q QᵀAQ||``, Frobenius norm squared, and spectral norm.
    probe_squares : float
        ``||(I - QQᵀ) A (I - QQᵀ) probes||_F²``; NaN without probes.
    interrupted : BaseException or None
        The KeyboardInterrupt that ended the iteration.
    """

    values: npt.NDArray[np.float64]
    vectors: FloatArray
    residuals: npt.NDArray[np.float64]
    scale: float
    exponent: int
    passes: int
    accepted: bool
    exhausted: bool
    next_value: float
    projected_squares: float
    projected_trace: float
    rest_squares: float
    rest_norm: float
    probe_squares: float
    interrupted: BaseException | None

    def leading(self, k: int) -> KrylovPairs:
        """Return the first k pairs, the others being outside them."""
        if k >= len(self.values):
            return self
        return dataclasses.replace(
            self,
            values=self.values[:k],
            vectors=self.vectors[:, :k],
            residuals=self.residuals[:k],
            next_value=float(self.values[k]),
        )


def block_krylov(
    operator: FloatArray | Callable[[FloatArray], FloatArray],
    start: FloatArray,
    *,
    wanted: int,
    width: int,
    tol: float,
    max_passes: int,
    symmetry_tolerance: float,
    locked: FloatArray | None = None,
    probes: FloatArray | None = None,
    required: int = 0,
    least_scale: float = 0.0,
    threshold: float = math.inf,
    time_limit: float = math.inf,
    first_check: int = 1,
    pass_flops: float = math.inf,
    exponent: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    isa: str = "",
) -> KrylovPairs:
    """Return the `wanted` largest eigenpairs of a symmetric operator on the complement of the locked vectors.

    Parameters
    ----------
    operator : (n, n) ndarray of any strides, or callable
        The matrix, or a function that returns A V, contiguous and in the dtype of V, for contiguous V (n, b).
    start, locked, probes : (n, m) ndarray
        Contiguous, float32 or float64. First block of the iteration; orthonormal vectors that are projected out;
        normally distributed vectors to be multiplied by what A is outside the basis, in the end. Where they are CuPy's,
        all vectors stay on their GPU, and the operator's function gets and returns CuPy arrays.
    wanted, width : int
        Pairs; most vectors in a product. The basis is restarted when it has ``wanted + 10 width`` vectors.
    required : int
        How many of the pairs have to meet the tolerance; 0 for all.
    tol : float
        The iteration ends once residuals are at most ``tol * max(scale, least_scale)``, or, with a `threshold`, once
        the leading value is above it or has settled below it.
    max_passes, time_limit
        Products, and seconds, after which it ends as soon as it has `wanted` pairs.
    symmetry_tolerance : float
        How far u·Av and v·Au may be apart, relative to ``||A||``.
    first_check : int
        Products before which no small problem is solved: from a random start nothing has converged.
    pass_flops : float
        Operations of a product, where they are few: small problems are then not solved after each.
    exponent : int, optional
        Scale; chosen by the first product that is not zero unless given.
    seed : int
        Of directions that replace those which run dry.

    Raises
    ------
    ValueError
        If a product is not finite or the operator not symmetric; and what the operator raises.
    """
    options = {
        "wanted": wanted,
        "required": required,
        "width": width,
        "tolerance": tol,
        "least_scale": least_scale,
        "threshold": threshold,
        "max_passes": max_passes,
        "time_limit": time_limit,
        "first_check": first_check,
        "pass_operations": pass_flops,
        "symmetry_tolerance": symmetry_tolerance,
        "seed": seed,
    }
    if exponent is not None:
        options["exponent"] = exponent
    if is_cupy(start):
        vectors, found = cuda.block_krylov(operator, start, locked, probes, _lapack(), options)
    else:
        _hand_over_lapack()
        vectors = np.zeros((len(start), wanted), start.dtype)
        found = _core.block_krylov(
            operator, start, locked, probes, vectors, threads=num_threads(threads), isa=isa, **options
        )
    return KrylovPairs(vectors=vectors[:, : len(found["values"])], **found)


@functools.cache
def _lapack() -> dict[str, Any]:
    # Imported when used: SciPy's linear algebra takes longer to import than this package.
    import scipy.linalg.cython_lapack as lapack

    return {name: lapack.__pyx_capi__[name] for name in ("dsyevd", "dsyevr")}


@functools.cache
def _hand_over_lapack() -> None:
    _core.set_lapack(**_lapack())


@dataclass(frozen=True)
class Symmetry:
    """What one reading of a square matrix tells: its size, and how far it is from symmetric.

    Attributes
    ----------
    largest : float
        Largest absolute entry.
    gap : float
        Largest difference of two mirrored entries, at `row` and `column`.
    row, column : int
    squared_norm, trace : float
        Sums in float64; the norm is 0 or inf where squares leave its range.
    finite : bool
        Whether all entries are; if not, the other numbers mean nothing.
    """

    largest: float
    gap: float
    row: int
    column: int
    squared_norm: float
    trace: float
    finite: bool


def symmetry(matrix: FloatArray, *, threads: int | None = None, isa: str = "") -> Symmetry:
    """Compare every entry of a square float32 or float64 matrix with its mirror image, in one pass over it.

    A CuPy array is read on its GPU.
    """
    if is_cupy(matrix):
        return Symmetry(**cuda.symmetry(matrix))
    usable = matrix.strides[1] == matrix.itemsize and matrix.strides[0] % matrix.itemsize == 0
    rows = matrix if usable else np.ascontiguousarray(matrix)
    return Symmetry(**_core.symmetry(rows, threads=num_threads(threads), isa=isa))
