"""Matrix products of NumPy and CuPy arrays."""

from __future__ import annotations

from typing import Any

from kernelgrowth._backend.arrays import is_cupy
from kernelgrowth._backend.native import gemm

__all__ = ["matrix_product"]


def matrix_product(a: Any, b: Any) -> Any:
    """Return a b, of NumPy arrays by the library's own product.

    Beside its speed on narrow matrices, its bits do not depend on threads, and it leaves no threads of another pool
    spinning on the processors that the kernel needs next.
    """
    return a @ b if is_cupy(a) else gemm(a, b)
