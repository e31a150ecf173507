"""The top of a kernel's spectrum: stored, or never stored. All are held to the same residuals, relative to λ_1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse.linalg

from benchmarks.case import OURS, Case, Workload
from benchmarks.eigenpairs import (
    ROUNDING,
    Pairs,
    arpack,
    arpack_contenders,
    dense,
    krylov_contender,
    lobpcg,
    loosest_tolerance,
    pairs_error,
)
from benchmarks.gram import Pairs as Factors
from benchmarks.gram import structured, tiles
from benchmarks.networks import digits_kernels, random_features, random_kernel
from benchmarks.peers import with_blas_threads
from benchmarks.products import factored
from kernelgrowth._backend import native
from kernelgrowth.kernels import NTKOperator
from kernelgrowth.spectra import eigsh

__all__ = ["CASES", "formed", "random", "trained", "unstored"]

# Beyond, LAPACK takes a minute and more, and LOBPCG a tenth of that.
_LARGEST_DENSE = 4000
_ROWS = 256


def solve(operator: Any, k: int, tol: float) -> Pairs:
    result = eigsh(operator, k, tol=tol)
    return result.eigenvalues, result.eigenvectors


def stored(kernel: Any, k: int, tol: float, dtype: str) -> Workload:
    error = pairs_error(kernel, k)
    allowed = tol + ROUNDING[dtype]
    return Workload(
        {
            OURS: lambda: solve(kernel, k, tol),
            **arpack_contenders(kernel, k, loosest_tolerance(kernel, k, error, allowed)),
            "NumPy, block Krylov": krylov_contender(kernel, k, error, allowed),
            **({"SciPy eigh, subset": lambda: dense(kernel, k)} if len(kernel) <= _LARGEST_DENSE else {}),
            "torch.lobpcg": lobpcg(kernel, k, tol, error, allowed),
        },
        error,
        allowed,
        flops=_known(len(kernel), k),
        bytes=kernel.nbytes,
        once=("torch.lobpcg",) if len(kernel) > _LARGEST_DENSE else (),
    )


def _known(n: int, k: int) -> int:
    """Operations by which pairs are known to be some: no solver takes fewer than a product of K with all of them."""
    return 2 * n * n * k


def random(widths: Sequence[int], n: int, k: int, tol: float, dtype: str) -> Workload:
    return stored(random_kernel(widths, n, dtype), k, tol, dtype)


def trained(whiten: bool, n: int, steps: int, k: int, tol: float, dtype: str) -> Workload:
    kernels = digits_kernels(whiten=whiten, n=n, steps=steps, every=steps, dtype=dtype)
    return stored(kernels[-1], k, tol, dtype)


def product_by_rows(factors: Factors, block: Any) -> Any:
    """K V, some rows of K at a time."""
    product = np.empty_like(block)
    for start in range(0, len(block), _ROWS):
        rows = slice(start, start + _ROWS)
        product[rows] = sum((a[rows] @ a.T) * (d[rows] @ d.T) for a, d in factors) @ block
    return product


def _of_network(
    widths: Sequence[int], n: int, k: int, tol: float, dtype: str
) -> tuple[Any, Factors, Any, Any, dict[str, Any]]:
    features = random_features(widths, n, dtype)
    factors = [(block.activations[:, 0], block.backprops[:, 0, 0]) for block in features.values()]
    kernel = NTKOperator(features).gram()
    error = pairs_error(kernel, k)
    plan = NTKOperator(features).plan()
    needs = {
        "error": error,
        "tolerance": tol + ROUNDING[dtype],
        # Fewer than k products with factors take at these sizes.
        "flops": plan.flops + _known(n, k),
        "bytes": sum(block.bytes for block in plan.blocks),
    }
    return features, factors, kernel, loosest_tolerance(kernel, k, error, needs["tolerance"]), needs


def unstored(widths: Sequence[int], n: int, k: int, tol: float, dtype: str) -> Workload:
    features, factors, kernel, loosest, needs = _of_network(widths, n, k, tol, dtype)

    def by_factors() -> Pairs:
        operator = scipy.sparse.linalg.LinearOperator(
            kernel.shape, matvec=lambda v: factored(factors, v.reshape(-1, 1))[:, 0], dtype=kernel.dtype
        )
        return arpack(operator, k, loosest)

    error, allowed = needs["error"], needs["tolerance"]
    return Workload(
        {
            OURS: lambda: solve(NTKOperator(features, products="tiles"), k, tol),
            f"{OURS}, by factors": lambda: solve(NTKOperator(features, products="factored"), k, tol),
            f"NumPy J(Jᵀv), ARPACK, tol {loosest:.0e}": by_factors,
            "NumPy rows of K, block Krylov": krylov_contender(
                kernel, k, error, allowed, lambda block: product_by_rows(factors, block)
            ),
        },
        **needs,
    )


def formed(widths: Sequence[int], n: int, k: int, tol: float, dtype: str) -> Workload:
    features, factors, _, loosest, needs = _of_network(widths, n, k, tol, dtype)
    contenders: dict[str, Any] = {OURS: lambda: solve(NTKOperator(features), k, tol)}
    ways = {"structured": structured, "tiles": lambda factors: tiles(factors, 512)}
    # The kernel with all threads, and its eigenpairs with as many as are best for them.
    for threads in sorted({1, native.num_threads()}):
        pairs = with_blas_threads(threads, lambda kernel: arpack(kernel, k, loosest))
        for name, gram in ways.items():
            label = f"NumPy {name}, ARPACK, {threads} thread{'s' * (threads > 1)}"
            contenders[label] = pairs and (lambda gram=gram, pairs=pairs: pairs(gram(factors)))
    return Workload(contenders, **needs)


_WIDTHS, _NARROW, _TINY = (784, 1024, 1024, 1), (784, 256, 1), {"widths": (30, 20, 1), "n": 300, "k": 4}
_TOLERANCES = (1e-3, 1e-6)


def _stored_cases(name: str, build: Any, sizes: dict[str, Any], tiny: dict[str, Any], repeats: int) -> list[Case]:
    return [
        Case(f"eigsh, {name}, k = 20, tol {tol:.0e}", build, {**sizes, "k": 20, "tol": tol}, tiny, repeats=repeats)
        for tol in _TOLERANCES
    ]


_ON_DIGITS = {"n": 1500, "steps": 600}
_ON_FEW_DIGITS = {"n": 300, "steps": 3, "k": 4}
_FROM_FACTORS = {"widths": _WIDTHS, "n": 2000, "k": 20, "tol": 1e-3}

CASES = (
    *_stored_cases("MLP 784-1024-1024-1, N = 2000", random, {"widths": _WIDTHS, "n": 2000}, _TINY, 7),
    *_stored_cases("MLP 784-256-1, N = 8000", random, {"widths": _NARROW, "n": 8000}, _TINY, 5),
    *_stored_cases("digits, trained, N = 1500", trained, {"whiten": False, **_ON_DIGITS}, _ON_FEW_DIGITS, 7),
    *_stored_cases("whitened digits, trained, N = 1500", trained, {"whiten": True, **_ON_DIGITS}, _ON_FEW_DIGITS, 7),
    Case("eigsh, K never stored, MLP 784-1024-1024-1, N = 2000", unstored, _FROM_FACTORS, _TINY, repeats=5),
    Case("eigsh, K formed first, MLP 784-1024-1024-1, N = 2000", formed, _FROM_FACTORS, _TINY, repeats=7),
)
