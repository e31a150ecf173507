"""Preconditioned conjugate gradients for ``(K + μ I) α = b`` with many right-hand sides, K positive semi-definite.

This is the member of the family that minimises the residual, conjugate residuals (Stiefel 1955; Saad, Iterative Methods
for Sparse Linear Systems, 2003, alg. 6.20), for it stays defined where K is singular and b is not in its range: there
it ends in a least-squares solution, while the usual recurrence diverges. It differs from the textbook's in these ways.
Every right-hand side has a recurrence of its own and stops by itself, and all share one product a step. Search
directions hold no more digits than the operator takes, so that solution and residual stay consistent. What the
recurrence believes is checked against the true residual, from which it begins anew if that is still too large.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.linalg

from kernelgrowth._backend.arrays import FloatArray
from kernelgrowth.diagnostics.scaled_operator import ScaledOperator

__all__ = ["INDEFINITE", "IterativeSolution", "RidgeSystem", "solve"]

# A kernel whose most negative eigenvalue is beyond this share of the largest is not the Gram matrix of anything.
INDEFINITE = 1e-3

_MOST_SWEEPS = 12
# A sweep that leaves more than this share of the residual is held up by the rounding of the products.
_STALLED = 0.5
# Rounding of products, in units of eps ||K|| ||α||, that an accepted solution may leave.
_ROUNDING = 4.0
# How precisely the part of a residual that K can express is told from the rest.
_RANGE_TOLERANCE = 1e-8
# The recurrence goes a little beyond what is wanted, so that the true residual is there, too.
_MARGIN = 0.5


@dataclass(frozen=True, eq=False)
class RidgeSystem:
    """``K + μ I`` and its preconditioner.

    `cutoff` is the share of the norm of K at or below which a curvature counts as zero.
    """

    kernel: ScaledOperator
    ridge: float
    precondition: Callable[[FloatArray], FloatArray]
    cutoff: float

    @property
    def norm(self) -> float:
        """A lower bound on the largest eigenvalue, from the products made so far."""
        return self.kernel.norm + self.ridge


@dataclass(frozen=True, eq=False)
class IterativeSolution:
    """What `solve` found.

    Attributes
    ----------
    coefficients, images : (n, m) float64 arrays
        α and K α.
    residuals : (m,) float64 array
        ``||(K + μ I) α - b||``, computed from α.
    errors : (m,) float64 array
        Norms of the part of it that the system can express, all of it unless the system is singular.
    converged : (m,) bool array
    iterations : int
        Products with the block of search directions.
    smallest, largest : float
        Extreme Ritz values of the preconditioned system, NaN without an iteration.
    """

    coefficients: FloatArray
    images: FloatArray
    residuals: FloatArray
    errors: FloatArray
    converged: npt.NDArray[np.bool_]
    iterations: int
    smallest: float
    largest: float


def solve(system: RidgeSystem, targets: FloatArray, *, tol: float, max_iterations: int) -> IterativeSolution:
    """Return the solution for every column of `targets`, or what there is after `max_iterations`.

    Parameters
    ----------
    system : RidgeSystem
    targets : (n, m) float64 array
        b, columns of about unit size.
    tol : float
        A column has converged when ``||(K + μ I) α - b|| <= tol ||b||``, in a singular system without the part of b
        outside its range; or when that gets no smaller and α is exact for a kernel which differs from K by the rounding
        of its dtype.
    max_iterations : int

    Raises
    ------
    ValueError
        If a direction of clearly negative curvature shows that K is not positive semi-definite.

    Notes
    -----
    Work: a product with at most m columns an iteration. Memory: eight blocks (n, m). A singular system is solved for
    the part of the residual in its range, found by a solve of its own, so that rounding in the part outside, which may
    be the larger one, does not hide it.
    """
    state = _Columns(system, targets, tol * np.linalg.norm(targets, axis=0))
    iterations, smallest, largest = 0, math.nan, math.nan
    for sweep in range(_MOST_SWEEPS):
        iterations += state.assess(max_iterations - iterations)
        at = np.flatnonzero(state.open)
        if not len(at) or iterations >= max_iterations:
            break
        descent = _descend(system, state.error[:, at], _MARGIN * state.wanted[at], max_iterations - iterations)
        iterations += descent.iterations
        if sweep == 0:
            smallest, largest = _ritz_extremes(descent)
        state.add(at, descent)
    sizes, errors = np.linalg.norm(state.residual, axis=0), np.linalg.norm(state.error, axis=0)
    return IterativeSolution(
        state.solution, state.images, sizes, errors, state.converged, iterations, smallest, largest
    )


class _Columns:
    """The right-hand sides, how far each has come, and which of them are still open.

    `error` is the part of `residual` that the system can express, and that a converged column has little of: all of it,
    except in columns where the iteration has met the null space.
    """

    def __init__(self, system: RidgeSystem, targets: FloatArray, wanted: FloatArray) -> None:
        self._system, self._targets, self.wanted = system, targets, wanted
        self.solution, self.images = np.zeros_like(targets), np.zeros_like(targets)
        self.residual, self.error = targets.copy(), targets.copy()
        self.open, self.converged = np.ones(len(wanted), bool), np.zeros(len(wanted), bool)
        self._outside = np.zeros(len(wanted), bool)
        self._sizes = np.full(len(wanted), np.inf)

    def assess(self, budget: int) -> int:
        """Close the columns that have converged, or that rounding keeps from it; return the iterations this took."""
        self.error[:, self.open] = self.residual[:, self.open]
        at = np.flatnonzero(self.open & self._outside & (np.linalg.norm(self.residual, axis=0) > self.wanted))
        known, spent = self.open.copy(), 0
        if len(at):
            self.error[:, at], known[at], spent = _in_range(self._system, self.residual[:, at], budget)
        sizes = np.linalg.norm(self.error, axis=0)
        rounding = _ROUNDING * self._system.kernel.eps * self._system.norm * np.linalg.norm(self.solution, axis=0)
        small = known & (sizes <= self.wanted)
        stalled = known & ~small & (sizes > _STALLED * self._sizes)
        self.converged |= small | (stalled & (sizes <= rounding))
        self.open &= ~(small | stalled)
        self._sizes[known] = sizes[known]
        return spent

    def add(self, at: npt.NDArray[np.intp], descent: _Descent) -> None:
        """Take the step that was found for the columns `at`, and compute their residual from the solution."""
        self._outside[at] |= descent.outside
        solution, outside = self.solution[:, at] + descent.solution, self._outside[at]
        remaining = self.residual[:, at] - descent.image
        solution[:, outside] = _without(solution[:, outside], remaining[:, outside])
        self.solution[:, at], self.images[:, at] = solution, self._system.kernel.exact(solution)
        self.residual[:, at] = self._targets[:, at] - self.images[:, at] - self._system.ridge * solution


@dataclass(frozen=True, eq=False)
class _Descent:
    """A step for each column, its image under K + μ I, and whether what remains lies outside the range.

    `steps` and `ratios` are the coefficients of the recurrence, one array (m,) an iteration, NaN where a column rested.
    """

    solution: FloatArray
    image: FloatArray
    outside: npt.NDArray[np.bool_]
    steps: list[FloatArray]
    ratios: list[FloatArray]

    @property
    def iterations(self) -> int:
        return len(self.steps)


def _descend(system: RidgeSystem, targets: FloatArray, wanted: FloatArray, budget: int) -> _Descent:
    """Iterate until the recurrence's residual is as small as `wanted`, or the budget is spent."""
    width = targets.shape[1]
    descent = _Descent(np.zeros_like(targets), np.zeros_like(targets), np.zeros(width, bool), [], [])
    residual, lifted = targets.copy(), system.precondition(targets)
    directions, images, curvature = np.zeros_like(targets), np.zeros_like(targets), np.full(width, np.inf)
    at = np.arange(width)
    while True:
        at = at[np.linalg.norm(residual[:, at], axis=0) > wanted[at]]
        if not len(at) or descent.iterations >= budget:
            return descent
        vectors = system.kernel.rounded(lifted[:, at])
        products = system.kernel @ vectors
        _check_curvature(system, vectors, products)
        products += system.ridge * vectors
        rising = _dots(vectors, products)
        flat = rising <= system.cutoff * system.norm * np.abs(_dots(vectors, residual[:, at]))
        descent.outside[at[flat]] = True
        at, vectors, products, rising = at[~flat], vectors[:, ~flat], products[:, ~flat], rising[~flat]
        if not len(at):
            return descent
        ratio = rising / curvature[at]
        directions[:, at] = vectors + ratio * directions[:, at]
        images[:, at] = products + ratio * images[:, at]
        curvature[at] = rising
        corrections = system.precondition(images[:, at])
        step = rising / _dots(images[:, at], corrections)
        descent.solution[:, at] += step * directions[:, at]
        descent.image[:, at] += step * images[:, at]
        residual[:, at] -= step * images[:, at]
        lifted[:, at] -= step * corrections
        for history, values in ((descent.steps, step), (descent.ratios, ratio)):
            history.append(np.full(width, np.nan))
            history[-1][at] = values


def _check_curvature(system: RidgeSystem, vectors: FloatArray, products: FloatArray) -> None:
    share = _dots(vectors, products) / np.maximum(_dots(vectors, vectors), np.finfo(float).tiny)
    if share.min() < -INDEFINITE * system.kernel.norm:
        raise ValueError(
            "K must be positive semi-definite up to rounding, got a direction of curvature "
            f"{share.min() / system.kernel.norm:.2g} times the norm of K"
        )


def _in_range(system: RidgeSystem, block: FloatArray, budget: int) -> tuple[FloatArray, npt.NDArray[np.bool_], int]:
    """Return the part r of `block` b that A = K + μ I can express, whether it was found, and the iterations it took.

    It solves ``A r = A b``, whose iteration begins in the range of A and stays there.
    """
    image = system.kernel.exact(block) + system.ridge * block
    wanted = _RANGE_TOLERANCE * np.linalg.norm(image, axis=0)
    found = _descend(system, image, wanted, budget)
    reached = found.outside | (np.linalg.norm(image - found.image, axis=0) <= wanted)
    return found.solution, reached, found.iterations


def _without(block: FloatArray, directions: FloatArray) -> FloatArray:
    """Return the columns of `block` without their components along those of `directions`.

    What a Krylov space of a singular system holds of its null space is one direction, that of the final residual
    (Liu, Milzarek, Roosta 2023, arXiv 2309.17096, there for MINRES), so the rest is the solution of minimum norm.
    """
    squares = _dots(directions, directions)
    return np.asarray(block - directions * (_dots(directions, block) / np.where(squares > 0, squares, 1.0)))


def _ritz_extremes(descent: _Descent) -> tuple[float, float]:
    """Return the extreme eigenvalues of the Lanczos matrices that the recurrences' coefficients make up.

    Those of conjugate gradients (Saad 2003, sec. 6.7.3), in the inner product of the system instead of the identity, in
    which directions that the system maps to zero have no weight.
    """
    smallest, largest = math.nan, math.nan
    if not descent.steps:
        return smallest, largest
    for steps, ratios in zip(np.transpose(descent.steps), np.transpose(descent.ratios), strict=True):
        made = np.isfinite(steps)
        if not made.any():
            continue
        step, ratio = steps[made], ratios[made]
        diagonal = 1 / step + np.concatenate([[0.0], ratio[1:] / step[:-1]])
        values = scipy.linalg.eigvalsh_tridiagonal(diagonal, np.sqrt(ratio[1:]) / step[:-1])
        smallest, largest = np.fmin(smallest, values[0]), np.fmax(largest, values[-1])
    return float(smallest), float(largest)


def _dots(left: FloatArray, right: FloatArray) -> FloatArray:
    """Return the inner products of the columns, (m,)."""
    return np.asarray(np.einsum("ij,ij->j", left, right))
