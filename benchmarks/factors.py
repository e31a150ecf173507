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

_SAMPLE = 24
# Of K (n, C, n, C).
_REDUCTIONS = {"full": "ncme->ncme", "trace": "ncmc->nm", "diagonal": "ncmc->cnm", "sum_logits": "ncme->nm"}


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
    """Return the measure of a kernel's largest error among some examples, relative to sqrt(K_ii K_jj).

    It takes kernels of shape (N·C, N·C) with example-major rows in the "full" mode, and of `empirical_ntk`'s in others.
    """
    n, c = layers[0][1].shape[:2]
    some = np.unique(np.append(np.random.default_rng(1).integers(0, n, size=_SAMPLE), [0, n - 1]))
    exact = np.einsum(_REDUCTIONS[outputs], _exact(layers, some))
    if outputs == "full":
        exact = exact.reshape(len(some) * c, -1)
    roots = np.sqrt(np.diagonal(exact, axis1=-2, axis2=-1))
    scale = roots[..., :, None] * roots[..., None, :]

    def error(kernel: Any) -> float:
        array = np.asarray(kernel)
        if outputs == "full":
            got = array.reshape(n, c, n, c)[some][:, :, some].reshape(exact.shape)
        else:
            got = array[..., some, :][..., some]
        return float(np.max(np.abs(got - exact) / scale))

    return error


def _exact(layers: Sequence[Layer], some: Any) -> Any:
    """Return K of some examples in float64, (n, C, n, C): where there are positions, of gradients written out."""
    total: Any = 0.0
    for activations, backprops in layers:
        a, d = activations[some].astype(np.float64), backprops[some].astype(np.float64)
        n, c, positions, _ = d.shape
        if positions == 1:
            inner = np.einsum("ntd,mtd->nm", a, a)
            total = total + inner[:, None, :, None] * np.einsum("nctd,metd->ncme", d, d, optimize=True)
        else:
            gradients = (d.swapaxes(2, 3) @ a[:, None]).reshape(n * c, -1)
            total = total + (gradients @ gradients.T).reshape(n, c, n, c)
    return total
