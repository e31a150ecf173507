"""Many small kernels of one shape: those of seeds and checkpoints of the paper's own networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.case import OURS, TOLERANCE, Case, Workload
from benchmarks.factors import Layer, features_of, kernel_error, random_layers, widths_to_shapes
from kernelgrowth.kernels import empirical_ntk, stack

__all__ = ["CASES", "stacked"]

Part = Sequence[Layer]


def batched(factors: Sequence[tuple[Any, Any]]) -> Any:
    """Return all kernels by NumPy's products of stacks of matrices."""
    total: Any = 0.0
    for a, d in factors:
        total = total + (a @ a.swapaxes(1, 2)) * (d @ d.swapaxes(1, 2))
    return total


def stacked(widths: Sequence[int], n: int, count: int, dtype: str) -> Workload:
    shapes = widths_to_shapes(widths)
    # One draw, divided: each part has its own random numbers.
    whole = random_layers(shapes, count * n, dtype=dtype)
    parts: list[Part] = [[(a[i * n : (i + 1) * n], d[i * n : (i + 1) * n]) for a, d in whole] for i in range(count)]
    features = [features_of(part) for part in parts]
    together = stack(features)
    factors = [(a.reshape(count, n, -1), d.reshape(count, n, -1)) for a, d in whole]
    errors = [(i, kernel_error(parts[i])) for i in (0, count // 2, count - 1)]
    numbers = sum(a.size + d.size for a, d in whole)
    return Workload(
        {
            OURS: lambda: empirical_ntk(together),
            "kernelgrowth, one call each": lambda: [empirical_ntk(feats) for feats in features],
            "kernelgrowth, stacking included": lambda: empirical_ntk(stack(features)),
            "NumPy, stacks of matrices": lambda: batched(factors),
        },
        lambda kernels: max(error(kernels[i]) for i, error in errors),
        TOLERANCE[dtype],
        flops=(n + 1) * numbers,
        bytes=(numbers + count * n * n) * np.dtype(dtype).itemsize,
        parts=("kernelgrowth, stacking included",),
    )


_TINY = {"n": 7, "count": 5}
CASES = (
    Case("1000 kernels, MLP 51-100-1, N = 100", stacked, {"widths": (51, 100, 1), "n": 100, "count": 1000}, _TINY),
    Case("1000 kernels, MLP 784-100-1, N = 100", stacked, {"widths": (784, 100, 1), "n": 100, "count": 1000}, _TINY),
)
