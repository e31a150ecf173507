"""Kernel regression by products with a kernel that is not factorised."""

from __future__ import annotations

import math

import numpy as np

from kernelgrowth._backend.arrays import FloatArray
from kernelgrowth.diagnostics.conjugate_gradients import IterativeSolution, RidgeSystem, solve
from kernelgrowth.diagnostics.krylov_flow import KrylovFlow
from kernelgrowth.diagnostics.low_rank import LowRankPreconditioner, preconditioner
from kernelgrowth.diagnostics.scaled_operator import ScaledOperator
from kernelgrowth.diagnostics.solution import Solution

__all__ = ["ROUNDING_CUTOFF", "IterativeSolver"]

# A curvature of at most so many eps ||K|| is what rounding makes of zero. The n eps of a factorisation, a bound for
# all its eigenvalues, would be a hundredth of ||K|| in float32 at the sizes that products are for.
ROUNDING_CUTOFF = 16.0


class IterativeSolver:
    """Solves ``(K + μ I) α = b`` by preconditioned conjugate gradients.

    Parameters
    ----------
    operator : ScaledOperator
        K, (n, n).
    ridge, cutoff : float
        As in `RidgeSystem`.
    rank : int or None
        As in `preconditioner`.
    tol, max_iterations, seed
        As in `KernelRegression`.
    memory_limit : int
        Bytes that making the preconditioner, or the bases of the flow, may take.
    """

    def __init__(
        self,
        operator: ScaledOperator,
        *,
        ridge: float,
        cutoff: float,
        rank: int | None,
        tol: float,
        max_iterations: int,
        seed: int,
        memory_limit: int,
    ) -> None:
        self._operator, self._ridge, self._cutoff = operator, ridge, cutoff
        self._rank, self._seed = rank, seed
        self._tol, self._max_iterations, self._limit = tol, max_iterations, memory_limit
        self._preconditioner: LowRankPreconditioner | None = None
        self._final: tuple[FloatArray, float, float] | None = None
        self._flow: KrylovFlow | None = None

    def solve(self, residuals: FloatArray, examples: int) -> Solution:
        """Return the solution for b of shape (n, m); `examples` is N, as in `flow`.

        Raises
        ------
        ValueError
            If K is seen to be clearly not positive semi-definite.
        MemoryLimitError
            If a preconditioner of the rank that was asked for does not fit.
        """
        if self._preconditioner is None:
            self._preconditioner = preconditioner(
                self._operator,
                self._rank,
                ridge=self._ridge,
                cutoff=self._cutoff,
                columns=residuals.shape[1],
                tol=self._tol,
                seed=self._seed,
                memory_limit=self._limit,
            )
        system = RidgeSystem(self._operator, self._ridge, self._preconditioner, self._cutoff)
        exponents = np.frexp(np.abs(residuals).max(axis=0))[1]
        scaled = np.ldexp(residuals, -exponents)
        found = solve(system, scaled, tol=self._tol, max_iterations=self._max_iterations)

        coefficients = np.ldexp(found.coefficients, exponents)
        remaining = np.ldexp(scaled - found.images, exponents)
        norms = np.linalg.norm(scaled, axis=0)
        error = float((found.errors / np.where(norms > 0, norms, 1.0)).max())
        self._final = coefficients, float(np.sum(remaining**2)) / (2 * examples), error
        self._flow = None
        # Relative to the largest column, so that no square leaves the range of float64.
        whole, missed = (
            np.linalg.norm(np.ldexp(size, exponents - exponents.max())) for size in (norms, found.residuals)
        )
        return Solution(
            coefficients,
            "cg",
            self._preconditioner.rank,
            self._condition(found),
            float(missed / whole) if whole > 0 else 0.0,
            found.iterations,
            self._shortfall(found, norms),
        )

    def flow(self, residuals: FloatArray, examples: int) -> KrylovFlow:
        """Return the flow of the residuals that were solved for last."""
        assert self._final is not None
        final, loss, error = self._final
        if self._flow is None:
            self._flow = KrylovFlow(
                self._operator,
                residuals,
                final=final,
                final_loss=loss,
                final_error=error,
                ridge=self._ridge,
                cutoff=self._cutoff,
                examples=examples,
                tol=self._tol,
                max_iterations=self._max_iterations,
                memory_limit=self._limit,
            )
        return self._flow

    def _condition(self, found: IterativeSolution) -> float:
        assert self._preconditioner is not None
        # Outside the span of the preconditioner's vectors it is the identity, and so the smallest Ritz value is of K.
        top = self._preconditioner.values
        largest = max(float(top[0]) + self._ridge, found.largest) if len(top) else found.largest
        return max(1.0, largest / found.smallest) if found.smallest > 0 else math.nan

    def _shortfall(self, found: IterativeSolution, norms: FloatArray) -> str:
        if found.converged.all():
            return ""
        worst = float((found.errors[~found.converged] / norms[~found.converged]).max())
        held = "max_iterations" if found.iterations >= self._max_iterations else "the rounding of the products"
        return (
            f"{np.count_nonzero(~found.converged)} of {len(norms)} right-hand sides have a residual above tolerance "
            f"after {found.iterations} iterations (relative {worst:.1e}, wanted {self._tol:.1e}), held up by {held}"
        )
