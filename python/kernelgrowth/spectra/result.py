"""What an eigensolver hands back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["EigenResult"]


@dataclass(frozen=True, eq=False)
class EigenResult:
    """Top eigenpairs of a symmetric matrix K with n rows, and the evidence for them.

    Attributes
    ----------
    eigenvalues : (k,) array
        Descending, in the dtype of K.
    eigenvectors : (n, k) array
        Orthonormal columns, in the dtype of K; column i belongs to ``eigenvalues[i]``.
    residuals : (k,) array
        ``||K v - λ v||`` of each returned pair, in the dtype of K; those of the products that were made, so exact up to
        their rounding (a few ``eps λ_1``).
    converged : (k,) array of bool
        Whether the residual is at most ``tol * λ_1``.
    passes : int
        Products of K with a block of vectors that were made, the cost of an iterative solver; 0 when a stored matrix
        was factorised directly.
    missed_bound : float
        An upper bound, holding with probability 0.99 at least, on any eigenvalue of K left out of the result: certain
        where K is stored, or is an `NTKOperator` whose trace decides. -inf where none is left out (k = n), inf where an
        interruption left nothing known. How it is derived: `kernelgrowth.spectra.missed`.
    """

    eigenvalues: Any
    eigenvectors: Any
    residuals: Any
    converged: Any
    passes: int
    missed_bound: float
