"""`python -m benchmarks.passes`: how often eigensolvers multiply by the kernels of a network in training.

Kernels of an MLP trained on scikit-learn's digits, pixels and whitened, in float32. Cold: `eigsh` on single kernels,
with the block that a stored kernel gets and with a narrow one, and the products with single vectors that ARPACK makes
for the same residuals. Warm: `EigenTracker` on one kernel after the other, the median over those after the first.
Errors of eigenvalues are relative to λ_1, the bound on what was left out to the largest eigenvalue that was.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
import scipy.sparse.linalg

from benchmarks.eigenpairs import ROUNDING, Pairs, arpack, exact_values, loosest_tolerance
from benchmarks.networks import digits_kernels
from kernelgrowth.spectra import EigenTracker, eigsh

__all__ = ["arpack_products", "main"]

_COLD, _WARM = (1e-3, 1e-6), (1e-2, 1e-3)
# Vectors beyond k where a product costs in proportion to them.
_EXTRA = 8


def arpack_products(kernel: Any, k: int, tol: float) -> int:
    """Return how many products ARPACK makes for true residuals of `tol` λ_1."""
    doubled = kernel.astype(np.float64)

    def error(pairs: Pairs) -> float:
        residuals = np.linalg.norm(doubled @ pairs[1] - pairs[1] * pairs[0], axis=0)
        return float(residuals.max() / pairs[0].max())

    count = 0

    def product(v: Any) -> Any:
        nonlocal count
        count += 1
        return kernel @ v

    loosest = loosest_tolerance(kernel, k, error, tol + ROUNDING[str(kernel.dtype)])
    arpack(scipy.sparse.linalg.LinearOperator(kernel.shape, matvec=product, dtype=kernel.dtype), k, loosest)
    return count


def _row(result: Any, exact: Any) -> tuple[float, float]:
    """Return the largest error of an eigenvalue, and how far the bound is above what was left out."""
    k = len(result.eigenvalues)
    if not result.missed_bound >= exact[k]:
        raise AssertionError(f"an eigenvalue {exact[k]} was left out, above the bound of {result.missed_bound}")
    return float(np.abs(result.eigenvalues - exact[:k]).max() / exact[0]), float(result.missed_bound / exact[k])


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.passes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--examples", type=int, default=1500)
    parser.add_argument("--steps", type=int, default=600, help="of training")
    parser.add_argument("--every", type=int, default=20, help="steps from one kernel to the next")
    parser.add_argument("--k", type=int, default=20)
    arguments = parser.parse_args()

    for whiten in (False, True):
        kernels = digits_kernels(
            whiten=whiten, n=arguments.examples, steps=arguments.steps, every=arguments.every, dtype="float32"
        )
        spectra = [exact_values(kernel.astype(np.float64), arguments.k + 1) for kernel in kernels]
        size = f"N = {arguments.examples}, k = {arguments.k}, {len(kernels)} kernels, {arguments.every} steps apart"
        print(f"{'whitened digits' if whiten else 'digits'}, {size}")
        _print_cold(kernels, spectra, arguments.k)
        _print_warm(kernels, spectra, arguments.k)


def _print_cold(kernels: Any, spectra: Any, k: int) -> None:
    narrow = k + _EXTRA
    columns = f"{'passes':>7} {f'of {narrow} vectors':>15} {'ARPACK':>7} {'error of λ':>11} {'bound/λ_k+1':>12}"
    print(f"  {'cold':<22} {columns} {'λ_k+1/λ_1':>10}")
    for tol in _COLD:
        for index in sorted({0, len(kernels) // 3, len(kernels) - 1}):
            kernel, exact = kernels[index], spectra[index]
            result = eigsh(kernel, k, tol=tol)
            error, above = _row(result, exact)
            print(
                f"  {f'tol {tol:.0e}, kernel {index}':<22} {result.passes:>7} "
                f"{eigsh(kernel, k, tol=tol, block_size=narrow).passes:>15} {arpack_products(kernel, k, tol):>7} "
                f"{error:>11.0e} {above:>12.2f} {exact[k] / exact[0]:>10.4f}"
            )


def _print_warm(kernels: Any, spectra: Any, k: int) -> None:
    columns = f"{'median passes':>14} {'most':>5} {'first':>6} {'error of λ':>11} {'bound/λ_k+1':>12} {'median ms':>10}"
    print(f"  {'warm':<22} {columns}")
    for tol in _WARM:
        tracker = EigenTracker(k, tol=tol)
        passes, errors, aboves, seconds = [], [], [], []
        for kernel, exact in zip(kernels, spectra, strict=True):
            start = time.perf_counter()
            result = tracker.update(kernel)
            seconds.append(time.perf_counter() - start)
            error, above = _row(result, exact)
            passes.append(result.passes)
            errors.append(error)
            aboves.append(above)
        print(
            f"  {f'tol {tol:.0e}':<22} {statistics.median(passes[1:]):>14g} {max(passes[1:]):>5} {passes[0]:>6} "
            f"{max(errors):>11.0e} {statistics.median(aboves):>12.2f} {statistics.median(seconds[1:]) * 1e3:>10.1f}"
        )


if __name__ == "__main__":
    main()
