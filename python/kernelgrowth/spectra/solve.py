"""`eigsh`: the top eigenpairs of a kernel, stored or as an operator."""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from typing import Any

import numpy as np

from kernelgrowth._backend.arrays import FloatArray, array_namespace, as_array, place, to_numpy
from kernelgrowth._backend.checks import check_integer, check_number
from kernelgrowth._backend.eigen import KrylovPairs, block_krylov
from kernelgrowth._backend.errors import NotConvergedWarning, SolveInterrupted
from kernelgrowth.spectra.dense import scaled_symmetric, top_eigenpairs
from kernelgrowth.spectra.missed import draw_probes, missed_bound
from kernelgrowth.spectra.operand import Operand, as_operand, random_block
from kernelgrowth.spectra.result import EigenResult
from kernelgrowth.spectra.symmetry import symmetry_tolerance

__all__ = ["default_width", "eigsh", "is_dense", "krylov_result", "raise_interruption", "solve_dense"]

# Up to this many rows LAPACK on the stored matrix takes a few milliseconds and has no tolerance to choose; up to so
# many times the vectors of a block, the small problems of an iteration take as long.
_DENSE_ROWS, _DENSE_BLOCKS = 256, 9
# Products after which a random start may have become something.
_COLD_PASSES = 3
# Vectors beyond k in a block: they let the last wanted pairs converge about as fast as the first. Where more of them
# cost little, up to 12 more take the place of passes (for k = 20 on whitened digits, 6 in place of 8).
_EXTRA_COLUMNS, _CHEAP_COLUMNS = 8, 12


def eigsh(
    A: Any,
    k: int,
    *,
    tol: float = 1e-6,
    v0: Any = None,
    block_size: int | None = None,
    max_passes: int = 100,
    time_limit: float | None = None,
    seed: int = 0,
) -> EigenResult:
    """Return the `k` largest eigenvalues of a symmetric matrix or operator, and their eigenvectors.

    Eigenvalues are ordered algebraically, descending, and a repeated one comes as often as it is repeated
    (a single-vector Lanczos iteration would give 10, 9, 8 for the spectrum 10, 10, 10, 9, 8).

    Parameters
    ----------
    A : (n, n) array, NTKOperator, or linear operator
        A float32 or float64 array (NumPy, CuPy, or through DLPack), symmetric up to rounding; an NTKOperator; or
        anything with ``.shape``, ``.dtype`` and ``A @ V`` for V of shape (n, b), such as SciPy's `LinearOperator` or a
        sparse matrix. What lies on a GPU (an operator says so by ``.device``, CuPy's) is solved there: vectors stay on
        it, and an operator gets and returns CuPy arrays.
    k : int
        Number of eigenpairs, 1 to n.
    tol : float
        A pair counts as converged when ``||K v - λ v|| <= tol * λ_1`` (for an indefinite K, the largest absolute
        eigenvalue known stands for λ_1). In float32, products are good to about 3e-7 λ_1, and to 1e-5 λ_1 where all
        entries are equal.
    v0 : (n,) or (n, m) array, optional
        Start vectors of the iteration, such as the eigenvectors of a similar matrix. The direct solver needs none.
    block_size : int, optional
        Most vectors in one product of the iteration; ``k + 8`` unless given, and up to 12 more where K is stored or
        computed by tiles, so that they cost little.
    max_passes : int
        Products with a block of vectors after which the iteration stops, once it has k vectors.
    time_limit : float, optional
        Seconds after which it stops likewise; which products those are depends on the machine.
    seed : int
        Seed of the random start vectors: the same seed gives the same result.

    Returns
    -------
    EigenResult
        Arrays of the kind and dtype that came in; for an operator, NumPy's, or CuPy's where it computes on a GPU.

    Warns
    -----
    NotConvergedWarning
        If a residual is above the tolerance, or if `max_passes` or `time_limit` ended the search for left-out
        eigenvalues. The result is returned all the same, and is the attribute ``partial`` of the warning.

    Raises
    ------
    ValueError
        If `A` is not square, not symmetric or not finite, `k` is not in 1..n, or `v0` has another number of rows.
    TypeError
        If `A` is neither a real floating array nor an operator, or an argument is of the wrong type.
    SolveInterrupted
        On Ctrl-C once there are pairs to hand over: a KeyboardInterrupt whose ``partial`` is the result so far.

    Notes
    -----
    Stored matrices and Gram operators of up to 256 rows, and stored ones of up to nine times the vectors of a block,
    are solved directly by LAPACK in float64: O(n³) work, ``passes`` 0. Everything else goes to the compiled
    block Krylov iteration: vectors are in the dtype of `A`, their inner products in float64. Each pass is one product
    with at most ``block_size`` vectors; memory is a basis of up to ``k + 10 * block_size`` vectors. A block of at least
    k random vectors reaches k copies of a repeated eigenvalue; when it is narrower, or `v0` was given, the complement
    of the answer is searched from fresh random vectors until nothing in it exceeds the smallest eigenvalue returned.
    """
    k = check_integer("k", k, minimum=1)
    tol = check_number("tol", tol, minimum=0.0)
    max_passes = check_integer("max_passes", max_passes, minimum=1)
    seed = check_integer("seed", seed, minimum=0)
    limit = math.inf if time_limit is None else check_number("time_limit", time_limit, minimum=0.0)
    if block_size is not None:
        block_size = check_integer("block_size", block_size, minimum=1)

    operand = as_operand("A", A, dense_rows=_DENSE_ROWS)
    if k > operand.n:
        raise ValueError(f"k must be at most the number of rows of A, {operand.n}, got {k}")
    start = None if v0 is None else _check_start(v0, operand)
    if is_dense(operand, k):
        return solve_dense(operand, k, tol)
    width = default_width(operand, k) if block_size is None else min(operand.n, block_size)
    solver = _Solver(operand, k, width, tol, max_passes, limit, seed)
    pairs, searched = solver.search(start)
    result = dataclasses.replace(krylov_result(pairs, operand, tol), passes=solver.passes)
    raise_interruption(pairs, result)
    _warn(result, pairs, tol, searched)
    return result


def default_width(operand: Operand, k: int) -> int:
    """Return how many vectors a block has."""
    return min(operand.n, k + _EXTRA_COLUMNS + (min(k, _CHEAP_COLUMNS) if operand.wide else 0))


def is_dense(operand: Operand, k: int, rows: int = _DENSE_ROWS, blocks: int = _DENSE_BLOCKS) -> bool:
    """Whether LAPACK on the stored matrix is the way to solve it: up to so many rows, or blocks of vectors."""
    return operand.matrix is not None and operand.n <= max(rows, blocks * default_width(operand, k))


def solve_dense(operand: Operand, k: int, tol: float) -> EigenResult:
    """Return the result of LAPACK on a stored matrix."""
    assert operand.matrix is not None
    scaled, exponent = scaled_symmetric(to_numpy(operand.matrix), operand.largest)
    # One more than asked for, which bounds what is left out.
    all_values, all_vectors = top_eigenpairs(scaled, min(k + 1, operand.n))
    values = _rounded(all_values[:k], exponent, operand.dtype)
    vectors = all_vectors[:, :k].astype(operand.dtype)
    wide = vectors.astype(np.float64)
    residuals = np.linalg.norm(scaled @ wide - wide * values, axis=0)
    # No entry of a symmetric matrix exceeds its norm; of a semi-definite one, none exceeds λ_1.
    scale = max(float(np.abs(values).max()), float(np.abs(scaled).max()))
    missed = -math.inf
    if k < operand.n:
        rounding = operand.n * float(np.finfo(np.float64).eps) * scale
        missed = float(np.ldexp(all_values[k] + rounding, exponent))
    return _result(operand, values, vectors, residuals, exponent, tol * scale, passes=0, missed=missed)


def krylov_result(pairs: KrylovPairs, operand: Operand, tol: float) -> EigenResult:
    """Return the result of an iteration, its values rounded to the dtype of the operand."""
    values = _rounded(pairs.values, pairs.exponent, operand.dtype)
    # The residual of a Ritz pair is orthogonal to its vector, along which rounding the value moves it.
    residuals = np.hypot(pairs.residuals, values - pairs.values)
    missed = missed_bound(pairs, operand)
    limit = tol * pairs.scale
    vectors = array_namespace(pairs.vectors).ascontiguousarray(pairs.vectors)
    return _result(operand, values, vectors, residuals, pairs.exponent, limit, passes=pairs.passes, missed=missed)


def raise_interruption(pairs: KrylovPairs, result: EigenResult) -> None:
    """Raise the Ctrl-C that ended an iteration, with its result so far."""
    if pairs.interrupted is not None:
        raise SolveInterrupted(f"interrupted after {result.passes} passes", partial=result) from pairs.interrupted


class _Solver:
    """An iteration for the pairs wanted, and others in the complement of what was found, within one budget."""

    def __init__(
        self, operand: Operand, k: int, width: int, tol: float, max_passes: int, time_limit: float, seed: int
    ) -> None:
        self._operand, self._k, self._width, self._tol = operand, k, width, tol
        self._max_passes = max_passes
        self._end = time.monotonic() + time_limit
        self._seed = seed
        self._rng = np.random.default_rng(seed)
        self._probes = draw_probes(operand, self._rng)
        self.passes = 0

    def search(self, v0: FloatArray | None) -> tuple[KrylovPairs, bool]:
        """Return the top pairs, and whether larger eigenvalues outside them have been ruled out."""
        k, width, n = self._k, self._width, self._operand.n
        start = self._random(width)
        xp = array_namespace(start)
        warm = v0 is not None
        if v0 is not None:
            start = xp.concatenate([v0, start], axis=1)[:, : max(width, v0.shape[1] + min(width, _EXTRA_COLUMNS))]
        pairs: KrylovPairs | None = None
        try:
            while True:
                pairs = self._iterate(start[:, :n], k, 1 if warm else _COLD_PASSES, probes=self._probes)
                warm = True
                if pairs.exhausted or pairs.interrupted or (v0 is None and width >= k):
                    return pairs, True
                if self._spent():
                    return pairs, False
                tolerance = self._tol * pairs.scale
                threshold = float(pairs.values[-1]) + tolerance
                outside = self._iterate(
                    self._random(width),
                    1,
                    locked=xp.ascontiguousarray(pairs.vectors),
                    threshold=threshold,
                    least_scale=pairs.scale,
                    exponent=pairs.exponent,
                )
                if outside.interrupted:
                    return dataclasses.replace(pairs, interrupted=outside.interrupted), False
                if outside.values[0] <= threshold:
                    return pairs, outside.accepted or outside.exhausted
                start = xp.concatenate([pairs.vectors, outside.vectors], axis=1)
        except KeyboardInterrupt as interrupted:
            # In an iteration's first product, before it has pairs.
            if pairs is None:
                raise
            return dataclasses.replace(pairs, interrupted=interrupted), False

    def _iterate(self, start: FloatArray, wanted: int, first_check: int = 1, **options: Any) -> KrylovPairs:
        pairs = block_krylov(
            self._operand.product,
            array_namespace(start).ascontiguousarray(start, self._operand.dtype),
            wanted=wanted,
            width=self._width,
            tol=self._tol,
            max_passes=max(1, self._max_passes - self.passes),
            time_limit=max(0.0, self._end - time.monotonic()),
            first_check=first_check,
            pass_flops=self._operand.pass_flops * self._width,
            seed=self._seed,
            symmetry_tolerance=symmetry_tolerance(self._operand.dtype),
            **options,
        )
        self.passes += pairs.passes
        return pairs

    def _random(self, columns: int) -> FloatArray:
        return random_block(self._rng, self._operand, columns)

    def _spent(self) -> bool:
        return self.passes >= self._max_passes or time.monotonic() > self._end


def _check_start(v0: Any, operand: Operand) -> FloatArray:
    start = to_numpy(as_array("v0", v0, ndim=(1, 2))).astype(np.float64)
    start = start.reshape(len(start), -1)
    if start.shape[0] != operand.n or start.shape[1] > operand.n:
        raise ValueError(f"v0 must have the {operand.n} rows of A and at most as many columns, got shape {start.shape}")
    # Columns of moderate size, whose squares neither vanish nor overflow.
    largest = np.abs(start).max(axis=0)
    moderate: FloatArray = place((start / np.where(largest > 0, largest, 1.0)).astype(operand.dtype), operand.gpu)
    return moderate


def _rounded(values: FloatArray, exponent: int, dtype: np.dtype[Any]) -> FloatArray:
    """Scaled eigenvalues as the caller will see them: rounded to `dtype`, then scaled again."""
    return np.ldexp(np.ldexp(values, exponent).astype(dtype).astype(np.float64), -exponent)


def _result(
    operand: Operand,
    values: FloatArray,
    vectors: FloatArray,
    residuals: FloatArray,
    exponent: int,
    limit: float,
    *,
    passes: int,
    missed: float,
) -> EigenResult:
    return EigenResult(
        eigenvalues=operand.result(np.ldexp(values, exponent).astype(operand.dtype)),
        eigenvectors=operand.result(vectors),
        residuals=operand.result(np.ldexp(residuals, exponent).astype(operand.dtype)),
        converged=operand.result(residuals <= limit),
        passes=passes,
        missed_bound=missed,
    )


def _warn(result: EigenResult, pairs: KrylovPairs, tol: float, searched: bool) -> None:
    problems = []
    if not bool(result.converged.all()):
        count = int((result.converged == 0).sum())
        problems.append(
            f"{count} of {len(pairs.values)} eigenpairs have a residual above the tolerance "
            f"(largest {pairs.residuals.max():.1e}, allowed {tol * pairs.scale:.1e}, in units of 2**{pairs.exponent})"
        )
    if not searched:
        problems.append("the search for left-out eigenvalues was not finished")
    if problems:
        message = f"eigsh after {result.passes} passes: {'; '.join(problems)}; raise max_passes or tol"
        warnings.warn(NotConvergedWarning(message, partial=result), stacklevel=3)
