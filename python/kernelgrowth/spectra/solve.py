"""`eigsh`: the top eigenpairs of a kernel, stored or as an operator."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import numpy as np

from kernelgrowth._backend.arrays import FloatArray, as_array, like, to_numpy
from kernelgrowth._backend.checks import check_integer, check_number
from kernelgrowth._backend.errors import NotConvergedWarning
from kernelgrowth.spectra.dense import scaled_symmetric, top_eigenpairs
from kernelgrowth.spectra.krylov import BlockProduct, RitzPairs, block_krylov
from kernelgrowth.spectra.result import EigenResult
from kernelgrowth.spectra.symmetry import check_square, check_symmetric

__all__ = ["eigsh"]

# Up to this many rows LAPACK on the stored matrix takes a fraction of a second and has no tolerance to choose.
_DENSE_ROWS = 1000
# From this fraction of the spectrum on, an iteration saves nothing over a factorisation.
_DENSE_FRACTION = 0.125
# Vectors beyond k in a default block: they let the last wanted pairs converge about as fast as the first.
_EXTRA_COLUMNS = 8
# How small the residual of the complement's largest Ritz value must be against its distance from the answer.
_SEARCH_MARGIN = 1e-3


def eigsh(
    A: Any,
    k: int,
    *,
    tol: float = 1e-6,
    v0: Any = None,
    block_size: int | None = None,
    max_passes: int = 100,
    seed: int = 0,
) -> EigenResult:
    """Return the `k` largest eigenvalues of a symmetric matrix or operator, and their eigenvectors.

    Eigenvalues are ordered algebraically, descending, and a repeated one comes as often as it is repeated
    (a single-vector Lanczos iteration would give 10, 9, 8 for the spectrum 10, 10, 10, 9, 8).

    Parameters
    ----------
    A : (n, n) array, NTKOperator, or linear operator
        A float32 or float64 array (NumPy, CuPy, or through DLPack), symmetric up to rounding, of which the symmetric
        part is used; an object with ``.gram()``; or anything with ``.shape``, ``.dtype`` and ``A @ V`` for V of shape
        (n, b), such as SciPy's `LinearOperator` or a sparse matrix.
    k : int
        Number of eigenpairs, 1 to n.
    tol : float
        A pair counts as converged when ``||K v - λ v|| <= tol * λ_1`` (for an indefinite K, the largest absolute
        eigenvalue known stands for λ_1).
    v0 : (n,) or (n, m) array, optional
        Start vectors of the iteration, such as the eigenvectors of a similar matrix. The direct solver needs none.
    block_size : int, optional
        Most vectors in one product of the iteration, ``k + 8`` unless given.
    max_passes : int
        Products with a block of vectors after which the iteration stops; it makes at least those that k vectors and
        their residuals take.
    seed : int
        Seed of the random start vectors: the same seed gives the same result.

    Returns
    -------
    EigenResult
        Arrays of the kind and dtype that came in (NumPy for an operator without stored matrix). ``missed_bound`` is
        NaN: neither solver used here computes one.

    Warns
    -----
    NotConvergedWarning
        If a residual is above the tolerance, or if `max_passes` ended the search for left-out eigenvalues. The result
        is returned all the same, and is the attribute ``partial`` of the warning.

    Raises
    ------
    ValueError
        If `A` is not square, not symmetric or not finite, `k` is not in 1..n, or `v0` has another number of rows.
    TypeError
        If `A` is neither a real floating array nor an operator, or an argument is of the wrong type.

    Notes
    -----
    Stored matrices and Gram operators of up to 1000 rows, and larger stored ones when k exceeds an eighth of the
    spectrum, are solved directly by LAPACK in float64: O(n³) work, ``passes`` 0. Everything else goes to a block Krylov
    iteration, in float64 on products made in the dtype of `A`: each pass is one product with at most ``block_size``
    vectors, two bases of up to ``7 * block_size`` vectors are held, and the last pass computes the residuals of the
    vectors as returned. A block of at least k random vectors reaches k copies of a repeated eigenvalue; when it is
    narrower, or `v0` was given, the complement of the answer is searched from fresh random vectors until nothing in it
    exceeds the smallest eigenvalue returned.
    """
    k = check_integer("k", k, minimum=1)
    tol = check_number("tol", tol, minimum=0.0)
    max_passes = check_integer("max_passes", max_passes, minimum=1)
    seed = check_integer("seed", seed, minimum=0)
    if block_size is not None:
        block_size = check_integer("block_size", block_size, minimum=1)

    is_operator = not hasattr(A, "__dlpack__") and hasattr(A, "shape") and hasattr(A, "__matmul__")
    stored = None if is_operator else as_array("A", A, ndim=2)
    n = check_square("A", tuple(A.shape) if stored is None else stored.shape)
    if k > n:
        raise ValueError(f"k must be at most the number of rows of A, {n}, got {k}")
    start = None if v0 is None else _check_start(v0, n)
    if stored is None and hasattr(A, "gram") and n <= _DENSE_ROWS:
        stored = as_array("A.gram()", A.gram(), ndim=2)

    template = stored if is_operator else A
    if stored is not None:
        matrix = to_numpy(stored)
        largest = check_symmetric("A", matrix)
        if n <= _DENSE_ROWS or k > _DENSE_FRACTION * n:
            return _solve_stored(matrix, largest, k, tol, template)
    operator, dtype = (A, _operator_dtype(A)) if stored is None else (matrix, matrix.dtype)
    product = BlockProduct(operator, n, dtype, min(n, k + _EXTRA_COLUMNS if block_size is None else block_size))
    return _solve_operator(product, k, start, tol, max_passes, np.random.default_rng(seed), template)


def _check_start(v0: Any, n: int) -> FloatArray:
    start = to_numpy(as_array("v0", v0, ndim=(1, 2))).astype(np.float64)
    start = start.reshape(len(start), -1)
    if start.shape[0] != n or start.shape[1] > n:
        raise ValueError(f"v0 must have the {n} rows of A and at most as many columns, got shape {start.shape}")
    return start


def _operator_dtype(operator: Any) -> np.dtype[Any]:
    given = getattr(operator, "dtype", None)
    dtype = np.dtype(np.float64 if given is None else given)
    if dtype.kind in "iub":
        return np.dtype(np.float64)
    if dtype not in (np.float32, np.float64):
        raise TypeError(f"A must compute in float32 or float64, got dtype {dtype}")
    return dtype


def _solve_stored(matrix: FloatArray, largest: float, k: int, tol: float, template: Any) -> EigenResult:
    scaled, exponent = scaled_symmetric(matrix, largest)
    values, vectors = top_eigenpairs(scaled, k)
    values, vectors = _rounded(values, exponent, matrix.dtype), vectors.astype(matrix.dtype)
    wide = vectors.astype(np.float64)
    residuals = np.linalg.norm(scaled @ wide - wide * values, axis=0)
    # No entry of a symmetric matrix exceeds its norm; of a semi-definite one, none exceeds λ_1.
    scale = max(float(np.abs(values).max()), float(np.abs(scaled).max()))
    return _result(values, vectors, residuals, exponent, tol * scale, passes=0, searched=True, template=template)


def _solve_operator(
    product: BlockProduct,
    k: int,
    v0: FloatArray | None,
    tol: float,
    max_passes: int,
    rng: np.random.Generator,
    template: Any,
) -> EigenResult:
    pairs, searched = _search(product, k, v0, tol, max_passes - product.cost(k), rng)
    exponent = product.exponent or 0
    values, vectors = _rounded(pairs.values, exponent, product.dtype), pairs.vectors.astype(product.dtype)
    wide = vectors.astype(np.float64)
    residuals = np.linalg.norm(product(wide) - wide * values, axis=0)
    limit, passes = tol * pairs.scale, product.passes
    return _result(values, vectors, residuals, exponent, limit, passes=passes, searched=searched, template=template)


def _search(
    product: BlockProduct, k: int, v0: FloatArray | None, tol: float, max_passes: int, rng: np.random.Generator
) -> tuple[RitzPairs, bool]:
    """Return the top pairs, and whether larger eigenvalues outside them have been ruled out."""
    n, width = product.rows, product.width
    nothing = np.empty((n, 0))
    start = rng.standard_normal((n, width))
    if v0 is not None:
        start = np.concatenate([v0, start], axis=1)[:, : max(width, v0.shape[1] + min(width, _EXTRA_COLUMNS))]
    while True:
        # Half of the tolerance is kept for the rounding of the vectors to the dtype of the result.
        pairs = block_krylov(
            product,
            start,
            k,
            locked=nothing,
            accept=functools.partial(_all_converged, tol=0.5 * tol),
            max_passes=max_passes,
            rng=rng,
        )
        if pairs.exhausted or (v0 is None and width >= k):
            return pairs, True
        if product.passes >= max_passes:
            return pairs, False
        tolerance = tol * pairs.scale
        threshold = float(pairs.values[-1]) + tolerance
        outside = block_krylov(
            product,
            rng.standard_normal((n, width)),
            1,
            locked=pairs.vectors,
            accept=functools.partial(_settled, tolerance=tolerance, threshold=threshold),
            max_passes=max_passes,
            rng=rng,
        )
        if outside.values[0] <= threshold:
            return pairs, outside.accepted or outside.exhausted
        start = np.concatenate([pairs.vectors, outside.vectors], axis=1)


def _all_converged(_values: FloatArray, residuals: FloatArray, scale: float, *, tol: float) -> bool:
    return bool(np.all(residuals <= tol * scale))


def _settled(values: FloatArray, residuals: FloatArray, _scale: float, *, tolerance: float, threshold: float) -> bool:
    """Whether the largest Ritz value of the complement settles that it holds an eigenvalue above `threshold`, or none.

    A Ritz value above it does. One below it proves nothing by itself: it must have converged, or be so much closer to
    an eigenvalue than to the threshold that a random start would have had to be all but blind to what is above.
    """
    value, residual = float(values[0]), float(residuals[0])
    return value > threshold or residual <= max(tolerance, _SEARCH_MARGIN * (threshold - value))


def _rounded(values: FloatArray, exponent: int, dtype: np.dtype[Any]) -> FloatArray:
    """Scaled eigenvalues as the caller will see them: rounded to `dtype`, then scaled again."""
    return np.ldexp(np.ldexp(values, exponent).astype(dtype).astype(np.float64), -exponent)


def _result(
    values: FloatArray,
    vectors: FloatArray,
    residuals: FloatArray,
    exponent: int,
    limit: float,
    *,
    passes: int,
    searched: bool,
    template: Any,
) -> EigenResult:
    converged = residuals <= limit
    result = EigenResult(
        eigenvalues=like(np.ldexp(values, exponent).astype(vectors.dtype), template),
        eigenvectors=like(vectors, template),
        residuals=like(np.ldexp(residuals, exponent).astype(vectors.dtype), template),
        converged=like(converged, template),
        passes=passes,
        missed_bound=float("nan"),
    )
    problems = []
    if not converged.all():
        problems.append(
            f"{np.count_nonzero(~converged)} of {len(converged)} eigenpairs have a residual above the tolerance "
            f"(largest {residuals.max():.1e}, allowed {limit:.1e}, in units of 2**{exponent})"
        )
    if not searched:
        problems.append("the search for left-out eigenvalues was not finished")
    if problems:
        message = f"eigsh after {passes} passes: {'; '.join(problems)}; raise max_passes or tol"
        warnings.warn(NotConvergedWarning(message, partial=result), stacklevel=4)
    return result
