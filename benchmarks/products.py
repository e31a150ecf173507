"""K V without K: two sweeps over the factors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.case import OURS, TOLERANCE, Case, Workload
from benchmarks.factors import features_of, random_layers, widths_to_shapes
from benchmarks.gram import Pairs
from benchmarks.peers import jitted
from kernelgrowth.kernels import NTKOperator

__all__ = ["CASES", "products"]


def factored(pairs: Pairs, vectors: Any) -> Any:
    """g = Σ_n v_n δ_n a_nᵀ, then δ_nᵀ g a_n, for one vector and one layer at a time."""
    product = np.zeros_like(vectors)
    for a, d in pairs:
        for k, v in enumerate(vectors.T):
            gradient = (d * v[:, None]).T @ a
            product[:, k] += np.einsum("nd,nd->n", d @ gradient, a)
    return product


def factored_jax(pairs: Pairs, vectors: Any) -> Any:
    import jax

    def column(v: Any) -> Any:
        return sum((((d @ ((d * v[:, None]).T @ a)) * a).sum(axis=1)) for a, d in pairs)

    return jax.lax.map(column, vectors.T).T


def products(widths: Sequence[int], n: int, k: int, dtype: str) -> Workload:
    shapes = widths_to_shapes(widths)
    layers = random_layers(shapes, n, dtype=dtype)
    pairs = [(a[:, 0], d[:, 0, 0]) for a, d in layers]
    operator = NTKOperator(features_of(layers), products="factored")
    vectors = np.random.default_rng(2).standard_normal((n, k), dtype=np.dtype(dtype).type)

    sample = np.unique(np.random.default_rng(1).integers(0, n, size=32))
    doubled = [(a.astype(np.float64), d.astype(np.float64)) for a, d in pairs]
    exact = sum((a[sample] @ a.T) * (d[sample] @ d.T) for a, d in doubled) @ vectors
    scale = np.abs(exact).max(axis=0)

    def error(product: Any) -> float:
        return float(np.max(np.abs(product[sample] - exact) / scale))

    # Of a vector and a layer: v δ, the gradient, its product with the backprops, and the inner product with a.
    per_vector = sum(n * (d_out + 4 * d_in * d_out + 2 * d_in) for _, d_in, d_out in shapes)
    return Workload(
        {
            OURS: lambda: operator @ vectors,
            "NumPy, the same formula": lambda: factored(pairs, vectors),
            "JAX, the same formula, jit": jitted(factored_jax, pairs, vectors),
        },
        error,
        TOLERANCE[dtype],
        flops=k * per_vector,
        # No gradient is complete before all factors have been read, so they are read twice.
        bytes=2 * sum(a.nbytes + d.nbytes for a, d in pairs) + 2 * vectors.nbytes,
    )


CASES = (
    Case(
        "K V factored, MLP 512-512-1, N = 20000, k = 20",
        products,
        {"widths": (512, 512, 1), "n": 20000, "k": 20},
        {"widths": (7, 5, 1), "n": 19, "k": 3},
        repeats=5,
    ),
)
