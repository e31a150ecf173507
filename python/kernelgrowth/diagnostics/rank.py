"""How many directions a spectrum effectively has."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernelgrowth._backend.arrays import as_array, to_numpy
from kernelgrowth._backend.checks import check_choice

__all__ = ["effective_rank"]

# Rounding makes a semi-definite Gram matrix of n rows indefinite by about n * eps * λ_1; this is far above that.
_NEGATIVE_BELOW = 1e-3


def effective_rank(eigenvalues: Any, *, kind: str = "entropy") -> float:
    """Return the effective rank of a positive semi-definite matrix from its eigenvalues.

    With the shares ``p_i = λ_i / Σ λ`` of the trace, the three kinds are the exponentials of their Rényi entropies of
    order 1, 2 and infinity, hence ``1 <= stable <= participation <= entropy <= n``; all equal m for m equal non-zero
    eigenvalues, and none depends on the scale.

    Parameters
    ----------
    eigenvalues : (n,) array
        In any order. Small negative ones (above -1e-3 of the largest) are rounding and count as zero.
    kind : {"entropy", "participation", "stable"}
        ``exp(-Σ p ln p)`` (Roy and Vetterli 2007); ``(Σ λ)² / Σ λ²``; or ``Σ λ / λ_1``, which for K = JJᵀ is the stable
        rank ``||J||_F² / ||J||_2²`` of the Jacobian.

    Returns
    -------
    float
        NaN if all eigenvalues are zero.

    Raises
    ------
    ValueError
        If there is no eigenvalue, one is not finite, or one is clearly negative.
    """
    check_choice("kind", kind, ("entropy", "participation", "stable"))
    values = to_numpy(as_array("eigenvalues", eigenvalues, ndim=1)).astype(np.float64)
    if not len(values):
        raise ValueError("eigenvalues must not be empty")
    largest = float(np.abs(values).max())
    if largest == 0.0:
        return float("nan")
    values = values / largest
    if values.min() < -_NEGATIVE_BELOW:
        raise ValueError(
            f"eigenvalues must be those of a positive semi-definite matrix, got {values.min() * largest:g} "
            f"beside a largest absolute value of {largest:g}"
        )
    values = np.maximum(values, 0.0)
    shares = values / values.sum()
    shares = shares[shares > 0]
    if kind == "entropy":
        return float(np.exp(-np.sum(shares * np.log(shares))))
    if kind == "participation":
        return float(1.0 / np.sum(shares**2))
    return float(1.0 / shares.max())
