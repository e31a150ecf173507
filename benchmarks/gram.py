"""The symmetric Gram of a network's gradient features: ours, and what a user would write in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.timing import Timing, interleaved
from kernelgrowth.gradients import GradientFeatures, OuterProduct
from kernelgrowth.kernels import NTKOperator, empirical_ntk

__all__ = ["CASES", "OURS", "Case", "run"]

OURS = "kernelgrowth"


@dataclass(frozen=True)
class Case:
    name: str
    widths: tuple[int, ...]
    num_examples: int
    dtype: str = "float32"
    repeats: int = field(default=9)


CASES = (
    Case("MLP 784-1024-1024-1", (784, 1024, 1024, 1), 2000),
    Case("MLP 784-1024-1024-1", (784, 1024, 1024, 1), 2000, "float64", 5),
    Case("MLP 784-1024-1024-1", (784, 1024, 1024, 1), 500, repeats=15),
    Case("MLP 784-1024-1024-1", (784, 1024, 1024, 1), 100, repeats=25),
    Case("wide 3072-4096-1", (3072, 4096, 1), 4000, repeats=5),
    Case("MLP 51-100-1", (51, 100, 1), 240, repeats=25),
)


def run(case: Case) -> tuple[dict[str, Timing], int]:
    """Return the timings by contender and the floating-point operations needed."""
    rng = np.random.default_rng(0)
    n, pairs = case.num_examples, list(zip(case.widths[:-1], case.widths[1:], strict=True))
    activations = [rng.normal(size=(n, d)).astype(case.dtype) for d, _ in pairs]
    backprops = [rng.normal(size=(n, d)).astype(case.dtype) for _, d in pairs]
    features = GradientFeatures(
        {f"layer{i}": OuterProduct(a, d) for i, (a, d) in enumerate(zip(activations, backprops, strict=True))}
    )

    def numpy_structured() -> Any:
        return sum((a @ a.T) * (d @ d.T) for a, d in zip(activations, backprops, strict=True))

    def numpy_tiles(tile: int = 512) -> Any:
        kernel = np.empty((n, n), case.dtype)
        for i in range(0, n, tile):
            for j in range(i, n, tile):
                rows, columns = slice(i, i + tile), slice(j, j + tile)
                part = kernel[rows, columns]
                part[...] = 0
                for a, d in zip(activations, backprops, strict=True):
                    part += (a[rows] @ a[columns].T) * (d[rows] @ d[columns].T)
                if i != j:
                    kernel[columns, rows] = part.T
        return kernel

    contenders: dict[str, Callable[[], Any]] = {
        OURS: lambda: empirical_ntk(features),
        "NumPy, structured": numpy_structured,
        "NumPy, upper tiles by hand": numpy_tiles,
    }

    sample = rng.integers(0, n, size=(2, 2000))
    exact = sum(
        np.einsum("id,id->i", a[sample[0]], a[sample[1]], dtype=np.float64)
        * np.einsum("id,id->i", d[sample[0]], d[sample[1]], dtype=np.float64)
        for a, d in zip(activations, backprops, strict=True)
    )
    norms = NTKOperator(features).diagonal().astype(np.float64)
    scale = np.sqrt(norms[sample[0]] * norms[sample[1]])

    def check(kernel: Any) -> None:
        error = np.max(np.abs(kernel[sample[0], sample[1]] - exact) / scale)
        if not error <= (1e-5 if case.dtype == "float32" else 1e-12):
            raise AssertionError(f"{case}: an answer is {error:.1e} off")

    return interleaved(contenders, check, repeats=case.repeats), NTKOperator(features).plan().flops
