"""A low-rank approximation of a kernel as the preconditioner of its ridge system."""

from __future__ import annotations

import math

import numpy as np

from kernelgrowth._backend.arrays import FloatArray
from kernelgrowth._backend.errors import MemoryLimitError
from kernelgrowth._backend.memory import format_bytes
from kernelgrowth.diagnostics.scaled_operator import ScaledOperator

__all__ = ["LowRankPreconditioner", "preconditioner"]

_FIRST_RANK, _RANK_GROWTH, _LARGEST_RANK = 32, 4, 512
# A product with a few vectors is bound by reading a stored kernel, and takes as long as one with so many.
_FREE_COLUMNS = 8
_ABOVE_ROUNDING = 64.0
# Blocks in float64 of as many vectors as the rank, and a few more vectors, that making an approximation takes.
_BLOCKS, _MORE_VECTORS = 8, 20


class LowRankPreconditioner:
    """``P⁻¹ = U (λ_k + μ) (Λ + μ)⁻¹ Uᵀ + (I - U Uᵀ)`` for ``K ≈ U Λ Uᵀ`` of rank k; the identity at rank 0.

    It flattens the top of the spectrum of K + μ I to ``λ_k + μ`` and leaves the rest as it is (Frangella, Tropp, Udell,
    SIAM J. Matrix Anal. Appl. 44 (2023) 718). Applying it to m vectors takes 4 n k m operations.

    Parameters
    ----------
    values : (k,) float64 array
        Positive approximate eigenvalues, descending.
    vectors : (n, k) array
        Approximate eigenvectors; made orthonormal in float64 here, without which P could be indefinite.
    ridge : float
        μ >= 0.
    """

    def __init__(self, values: FloatArray, vectors: FloatArray, ridge: float) -> None:
        self.values = values
        self.rank = len(values)
        self._vectors = np.linalg.qr(vectors.astype(np.float64))[0]
        self._weights = (values[-1:] + ridge) / (values + ridge) - 1.0

    def __call__(self, block: FloatArray) -> FloatArray:
        """Return ``P⁻¹ block``, (n, m)."""
        if not self.rank:
            return block.copy()
        return np.asarray(block + self._vectors @ (self._weights[:, None] * (self._vectors.T @ block)))


def preconditioner(
    operator: ScaledOperator,
    rank: int | None,
    *,
    ridge: float,
    cutoff: float,
    columns: int,
    tol: float,
    seed: int,
    memory_limit: int,
) -> LowRankPreconditioner:
    """Return the Nyström preconditioner of this rank, or of one chosen by counted products.

    Parameters
    ----------
    operator : ScaledOperator
        K, (n, n).
    rank : int or None
        None makes it four times as large, from 32, as long as the iterations that the smallest eigenvalue found still
        calls for, times their right-hand sides, cost more columns of products than the next approximation does, up to
        512, n / 2 and what fits `memory_limit`.
    ridge, cutoff : float
        μ, and the share of the largest eigenvalue at or below which one counts as zero.
    columns : int
        Right-hand sides.
    tol : float
        Of the iteration.
    seed : int
    memory_limit : int
        Bytes.

    Raises
    ------
    MemoryLimitError
        If a given rank takes more.
    """
    n = operator.shape[0]
    each = 8 * _BLOCKS * n
    if rank is not None:
        needed = each * (min(rank, n) + _MORE_VECTORS) if rank else 0
        if needed > memory_limit:
            raise MemoryLimitError(
                f"a preconditioner of rank {min(rank, n)} for {n} rows needs {format_bytes(needed)}, "
                f"but memory_limit is {format_bytes(memory_limit)}",
                needed=needed,
                limit=memory_limit,
            )
        return _of_rank(operator, min(rank, n), ridge, cutoff, seed)
    largest = max(0, min(_LARGEST_RANK, n // 2, memory_limit // each - _MORE_VECTORS))
    rank = min(_FIRST_RANK, largest)
    while True:
        result = _of_rank(operator, rank, ridge, cutoff, seed)
        if rank >= largest or result.rank < rank:
            return result
        following = min(_RANK_GROWTH * rank, largest)
        remaining = (result.values[-1] + ridge) / max(ridge, cutoff * result.values[0])
        # The Chebyshev bound of conjugate gradients for a condition number of at most 1 + λ_k / μ.
        iterations = 0.5 * math.sqrt(remaining) * math.log(2 / max(tol, operator.eps))
        if iterations * max(columns, _FREE_COLUMNS) <= following:
            return result
        rank = following


def _of_rank(operator: ScaledOperator, rank: int, ridge: float, cutoff: float, seed: int) -> LowRankPreconditioner:
    if rank == 0:
        return LowRankPreconditioner(np.empty(0), np.empty((operator.shape[0], 0)), ridge)
    from kernelgrowth.spectra.low_rank import nystrom

    try:
        found = nystrom(operator, rank, seed=seed)
    except ValueError as error:
        raise ValueError(f"K cannot be preconditioned: {error}") from error
    values = np.asarray(found.eigenvalues, np.float64)
    # To flatten the spectrum to a level that rounding in the products reaches would only raise that rounding.
    floor = max(cutoff, _ABOVE_ROUNDING * operator.eps) * (values[0] + ridge)
    kept = (values > 0) & (values + ridge > floor)
    return LowRankPreconditioner(values[kept], np.asarray(found.eigenvectors)[:, kept], ridge)
