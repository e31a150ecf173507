"""Random gradient factors, and the exact entries of their kernel in float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kernelgrowth.gradients import GradientFeatures, OuterProduct

__all__ = ["Layer", "features_of", "kernel_error", "random_layers", "widths_to_shapes"]

# Activations (N, T, d_in) and backprops (N, C, T, d_out).
Layer = tuple[Any, Any]

_PAIRS = 48


def widths_to_shapes(widths: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return (positions, d_in, d_out) of the layers of a multilayer perceptron."""
    return [(1, d_in, d_out) for d_in, d_out in itertools.pairwise(widths)]


def random_layers(shapes: Sequence[tuple[int, int, int]], n: int, *, outputs: int = 1, dtype: str) -> list[Layer]:
    """Draw the factors of n examples; zeros would be faster than life on some processors."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape, dtype=np.dtype(dtype).type)

    return [(normal(n, t, d_in), normal(n, outputs, t, d_out)) for t, d_in, d_out in shapes]


def features_of(layers: Sequence[Layer]) -> GradientFeatures:
    return GradientFeatures({f"layer{i}": OuterProduct(a, d) for i, (a, d) in enumerate(layers)})


def kernel_error(layers: Sequence[Layer], outputs: str = "full") -> Callable[[Any], float]:
    """Return the measure of a kernel's largest error on some pairs of examples, relative to sqrt(K_ii K_jj).

    It takes kernels of shape (N·C, N·C) with example-major rows in the "full" mode, and of `empirical_ntk`'s in others.
    """
    n, c = layers[0][1].shape[:2]
    rng = np.random.default_rng(1)
    pairs = [(0, 0), (0, n - 1), (n - 1, 0), (n - 1, n - 1), *rng.integers(0, n, size=(_PAIRS, 2)).tolist()]
    reductions: dict[str, Callable[[Any], Any]] = {
        "full": lambda block: block,
        "trace": np.trace,
        "diagonal": np.diagonal,
        "sum_logits": np.sum,
    }
    reduce = reductions[outputs]

    def size(i: int) -> Any:
        block = _exact_block(layers, i, i)
        return np.sqrt(np.diagonal(block) if outputs == "full" else reduce(block))

    exact = [reduce(_exact_block(layers, i, j)) for i, j in pairs]
    scales = [np.multiply.outer(size(i), size(j)) if outputs == "full" else size(i) * size(j) for i, j in pairs]

    def picked(kernel: Any, i: int, j: int) -> Any:
        if outputs == "full":
            return kernel.reshape(n, c, n, c)[i, :, j]
        return kernel[..., i, j]

    def error(kernel: Any) -> float:
        wanted = zip(pairs, exact, scales, strict=True)
        return float(max(np.max(np.abs(picked(kernel, i, j) - k) / scale) for (i, j), k, scale in wanted))

    return error


def _exact_block(layers: Sequence[Layer], i: int, j: int) -> Any:
    """Return K of two examples over all pairs of outputs, (C, C): Σ_{t,u} (a_t·a'_u)(δ_t·δ'_u), in float64."""
    total: Any = 0.0
    for a, d in layers:
        inner = a[i].astype(np.float64) @ a[j].astype(np.float64).T
        left, right = (d[index].astype(np.float64) for index in (i, j))
        # Over one position at a time with its partner summed out: (C, T, d) · (T, U) · (C, U, d).
        total = total + np.einsum("ctd,etd->ce", left, inner @ right, optimize=True)
    return total
