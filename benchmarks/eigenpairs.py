"""The top eigenpairs of a kernel as others find them, and how far found ones are off."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse.linalg

from benchmarks.peers import with_blas_threads
from kernelgrowth._backend import native

__all__ = [
    "ROUNDING",
    "Pairs",
    "arpack",
    "arpack_contenders",
    "block_krylov",
    "dense",
    "exact_values",
    "krylov_contender",
    "lobpcg",
    "loosest_tolerance",
    "pairs_error",
]

# Values (k,) in any order, vectors (n, k).
Pairs = tuple[Any, Any]

# Of a product with K, relative to the largest eigenvalue.
ROUNDING = {"float32": 4e-7, "float64": 1e-12}
# Beyond the pairs wanted, like the library's own.
_EXTRA = 8
_MOST_PASSES = 40
_LOBPCG_ITERATIONS = (15, 20, 30, 40, 60, 80, 120, 160)


def exact_values(kernel: Any, k: int) -> Any:
    """Return the top eigenvalues, descending, by ARPACK in float64 to its last digits."""
    start = np.random.default_rng(4).standard_normal(len(kernel))
    return scipy.sparse.linalg.eigsh(kernel, k, v0=start, tol=1e-10, return_eigenvectors=False)[::-1]


def pairs_error(kernel: Any, k: int) -> Callable[[Pairs], float]:
    """Return the measure of pairs: the largest true residual or error of a value, in float64, relative to λ_1."""
    doubled = kernel.astype(np.float64)
    exact = exact_values(doubled, k)

    def error(pairs: Pairs) -> float:
        values, vectors = (np.asarray(array, dtype=np.float64) for array in pairs)
        vectors = vectors / np.linalg.norm(vectors, axis=0)
        residuals = np.linalg.norm(doubled @ vectors - vectors * values, axis=0)
        return float(max(residuals.max(), np.abs(np.sort(values)[::-1] - exact).max()) / exact[0])

    return error


def arpack(operator: Any, k: int, tol: float) -> Pairs:
    """Return what SciPy's `eigsh` finds; the start is fixed, since the number of products depends on it."""
    start = np.random.default_rng(5).standard_normal(operator.shape[0]).astype(operator.dtype)
    values, vectors = scipy.sparse.linalg.eigsh(operator, k, v0=start, tol=tol)
    return values, vectors


def loosest_tolerance(kernel: Any, k: int, error: Callable[[Pairs], float], allowed: float) -> float:
    """Return the largest tolerance, in powers of two, with which ARPACK's answer is still within the error allowed.

    ARPACK's tolerance is relative to each eigenvalue, not to the largest one, and holds at the end of a cycle of some
    twenty products: asked for ours it would do far more than is wanted.
    """
    tol = allowed
    while tol < 0.5 and error(arpack(kernel, k, 2 * tol)) <= allowed:
        tol *= 2
    return tol


def arpack_contenders(kernel: Any, k: int, tol: float) -> dict[str, Callable[[], Pairs] | None]:
    """Return ARPACK on a stored kernel with one and with all of the BLAS's threads, of which either may be faster."""
    name = f"ARPACK, tol {tol:.0e}"
    return {
        f"{name}, {count} BLAS thread{'s' * (count > 1)}": with_blas_threads(count, lambda: arpack(kernel, k, tol))
        for count in sorted({1, native.num_threads()})
    }


def block_krylov(product: Callable[[Any], Any], start: Any, k: int, passes: int) -> Pairs:
    """Orthonormal blocks, each the product with the one before, and what K is in their span (Musco and Musco 2015)."""
    blocks = [start]
    for _ in range(passes):
        blocks.append(np.linalg.qr(product(blocks[-1]))[0])
    basis = np.linalg.qr(np.concatenate(blocks, axis=1))[0]
    inside = basis.T @ product(basis)
    values, rotation = np.linalg.eigh((inside + inside.T) / 2)
    return values[-k:], basis @ rotation[:, -k:]


def krylov_contender(
    kernel: Any, k: int, error: Callable[[Pairs], float], allowed: float, product: Callable[[Any], Any] | None = None
) -> Callable[[], Pairs]:
    """Return a block Krylov iteration in NumPy with the fewest passes that suffice, as if the user had been told.

    They are found on the stored kernel, whose products are made by `product` then where it is given.
    """
    n = len(kernel)
    start = np.random.default_rng(6).standard_normal((n, min(n, k + _EXTRA))).astype(kernel.dtype)
    start = np.linalg.qr(start)[0]
    passes = 1
    while passes < _MOST_PASSES and error(block_krylov(kernel.__matmul__, start, k, passes)) > allowed:
        passes += 1
    return lambda: block_krylov(product or kernel.__matmul__, start, k, passes)


def dense(kernel: Any, k: int) -> Pairs:
    """Return what LAPACK finds of a stored kernel, no more than is wanted."""
    n = len(kernel)
    values, vectors = scipy.linalg.eigh(kernel, subset_by_index=(n - k, n - 1), check_finite=False)
    return values, vectors


def lobpcg(
    kernel: Any, k: int, tol: float, error: Callable[[Pairs], float], allowed: float
) -> Callable[[], Pairs] | None:
    """Return PyTorch's LOBPCG with about the fewest iterations that suffice, as if the user had been told.

    Left to itself it does up to a thousand, or does not end, where float32 keeps it from its tolerance. None where
    there is no PyTorch, or no number of iterations up to a limit suffices.
    """
    if not importlib.util.find_spec("torch"):
        return None
    import torch

    torch.set_num_threads(native.num_threads())
    matrix = torch.from_numpy(kernel)
    start = torch.from_numpy(np.random.default_rng(7).standard_normal((len(kernel), k)).astype(kernel.dtype))

    def solve(iterations: int) -> Pairs:
        values, vectors = torch.lobpcg(matrix, X=start, tol=tol, niter=iterations)
        return values.numpy(), vectors.numpy()

    for iterations in _LOBPCG_ITERATIONS:
        if error(solve(iterations)) <= allowed:
            return lambda: solve(iterations)
    return None
