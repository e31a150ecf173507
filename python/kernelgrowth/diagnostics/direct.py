"""Kernel regression by factorising a stored kernel."""

from __future__ import annotations

import math

import numpy as np
import scipy.linalg

from kernelgrowth._backend.arrays import FloatArray
from kernelgrowth.diagnostics.conjugate_gradients import INDEFINITE
from kernelgrowth.diagnostics.flow import KernelFlow
from kernelgrowth.diagnostics.solution import Solution

__all__ = ["DirectSolver"]


class DirectSolver:
    """Solves ``(K + μ I) α = b`` by Cholesky, or in the eigenbasis of K where that system is singular.

    Parameters
    ----------
    kernel : (n, n) float64 array
        K, symmetric, its largest entry about 1; kept, not changed.
    ridge : float
        μ >= 0.
    cutoff : float
        As in `KernelFlow`.
    """

    def __init__(self, kernel: FloatArray, ridge: float, cutoff: float) -> None:
        self._kernel, self._ridge, self._cutoff = kernel, ridge, cutoff
        self._eigen: tuple[FloatArray, FloatArray] | None = None
        self._flow: KernelFlow | None = None

    def solve(self, residuals: FloatArray, examples: int) -> Solution:
        """Return the solution for b of shape (n, m); `examples` is N, as in `flow`.

        Raises
        ------
        ValueError
            If K is clearly not positive semi-definite.
        """
        self._flow = None
        found = self._solve_cholesky(residuals)
        if found is None:
            flow = self.flow(residuals, examples)
            method, rank, condition, coefficients = "eigh", flow.rank, flow.condition, flow.coefficients(math.inf)
        else:
            method, rank = "cholesky", len(residuals)
            coefficients, condition = found
        norm = float(np.linalg.norm(residuals))
        error = float(np.linalg.norm(self._kernel @ coefficients + self._ridge * coefficients - residuals))
        return Solution(coefficients, method, rank, condition, error / norm if norm > 0 else 0.0)

    def flow(self, residuals: FloatArray, examples: int) -> KernelFlow:
        """Return the flow of the residuals that were solved for last."""
        if self._eigen is None:
            values, vectors = scipy.linalg.eigh(self._kernel, driver="evd", check_finite=False)
            largest = float(np.abs(values).max())
            if values[0] < -INDEFINITE * largest:
                raise ValueError(
                    "K must be positive semi-definite up to rounding, got an eigenvalue of "
                    f"{values[0] / largest:.2g} times the largest absolute one"
                )
            self._eigen = values, vectors
        if self._flow is None:
            self._flow = KernelFlow(*self._eigen, residuals, ridge=self._ridge, cutoff=self._cutoff, examples=examples)
        return self._flow

    def _solve_cholesky(self, residuals: FloatArray) -> tuple[FloatArray, float] | None:
        """Return solution and condition number by Cholesky, or None if the system is singular up to the cut-off."""
        system = self._kernel.copy()
        system.flat[:: len(system) + 1] += self._ridge
        norm = np.linalg.norm(system, 1)
        try:
            factor = scipy.linalg.cho_factor(system, lower=True, overwrite_a=True, check_finite=False)
        except scipy.linalg.LinAlgError:
            return None
        reciprocal = float(scipy.linalg.lapack.dpocon(factor[0], norm, uplo="L")[0])
        if not reciprocal > self._cutoff:
            return None
        solution = np.asarray(scipy.linalg.cho_solve(factor, residuals, check_finite=False))
        return solution, max(1.0, 1.0 / reciprocal)
