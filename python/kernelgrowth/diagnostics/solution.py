"""What a solver of kernel regression hands back."""

from __future__ import annotations

from dataclasses import dataclass

from kernelgrowth._backend.arrays import FloatArray

__all__ = ["Solution"]


@dataclass(frozen=True, eq=False)
class Solution:
    """Coefficients (n, m) of a kernel system scaled to order one, and how they were found.

    The other attributes are those of `KernelRegression`; `shortfall` says why an iteration did not reach its tolerance,
    and is empty where it did.
    """

    coefficients: FloatArray
    method: str
    rank: int
    condition: float
    residual: float
    iterations: int = 0
    shortfall: str = ""
