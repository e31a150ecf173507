"""The symmetric Gram of a network with one output, from its gradient factors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.case import OURS, TOLERANCE, Case, Workload
from benchmarks.factors import features_of, kernel_error, random_layers, widths_to_shapes
from benchmarks.peers import jitted
from kernelgrowth.kernels import NTKOperator, empirical_ntk

__all__ = ["CASES", "gram", "structured", "tiles"]

Pairs = Sequence[tuple[Any, Any]]

# Beyond, nobody would write the gradients out.
_LARGEST_JACOBIAN = 128 << 20


def structured(pairs: Pairs) -> Any:
    """Σ (A Aᵀ) ∘ (D Dᵀ); NumPy sees that both sides of a product are one and computes half of it."""
    return sum((a @ a.T) * (d @ d.T) for a, d in pairs)


def tiles(pairs: Pairs, tile: int) -> Any:
    """The same on and above the diagonal, tile by tile and mirrored, by someone who takes trouble."""
    n = len(pairs[0][0])
    kernel = np.empty((n, n), pairs[0][0].dtype)
    for i in range(0, n, tile):
        for j in range(i, n, tile):
            rows, columns = slice(i, i + tile), slice(j, j + tile)
            part = kernel[rows, columns]
            part[...] = 0
            for a, d in pairs:
                part += (a[rows] @ a[columns].T) * (d[rows] @ d[columns].T)
            if i != j:
                kernel[columns, rows] = part.T
    return kernel


def jacobian_contraction(pairs: Pairs) -> Any:
    """All gradients written out, and their inner products."""
    jacobian = np.concatenate([(d[:, :, None] * a[:, None, :]).reshape(len(a), -1) for a, d in pairs], axis=1)
    return jacobian @ jacobian.T


def gram(widths: Sequence[int], n: int, tile_sizes: Sequence[int], dtype: str) -> Workload:
    layers = random_layers(widths_to_shapes(widths), n, dtype=dtype)
    features = features_of(layers)
    pairs = [(a[:, 0], d[:, 0, 0]) for a, d in layers]
    out = np.empty((n, n), features.dtype)
    contenders: dict[str, Any] = {
        OURS: lambda: empirical_ntk(features),
        f"{OURS}, out given": lambda: empirical_ntk(features, out=out),
        "NumPy, structured": lambda: structured(pairs),
        **{f"NumPy, tiles of {tile}": lambda t=tile: tiles(pairs, t) for tile in tile_sizes if tile < n},
        "JAX, structured, jit": jitted(structured, pairs),
    }
    parameters = sum(d_in * d_out for _, d_in, d_out in widths_to_shapes(widths))
    itemsize = features.dtype.itemsize
    if n * parameters * itemsize <= _LARGEST_JACOBIAN:
        contenders["NumPy, Jacobian contraction"] = lambda: jacobian_contraction(pairs)
    plan = NTKOperator(features).plan()
    return Workload(
        contenders,
        kernel_error(layers),
        TOLERANCE[dtype],
        flops=plan.flops,
        bytes=sum(block.bytes for block in plan.blocks) + n * n * itemsize,
    )


def _case(name: str, widths: tuple[int, ...], n: int, dtype: str = "float32", repeats: int = 9) -> Case:
    label = f"Gram, {name}, N = {n}" + ("" if dtype == "float32" else f", {dtype}")
    sizes = {"widths": widths, "n": n, "tile_sizes": (256, 512)}
    return Case(label, gram, sizes, {"widths": (5, 17, 3, 1), "n": 19, "tile_sizes": (8,)}, dtype, repeats)


_MLP = ("MLP 784-1024-1024-1", (784, 1024, 1024, 1))

CASES = (
    _case(*_MLP, 2000),
    _case(*_MLP, 2000, "float64", 5),
    _case(*_MLP, 500, repeats=15),
    _case(*_MLP, 100, repeats=25),
    _case("wide 3072-4096-1", (3072, 4096, 1), 4000, repeats=5),
    _case("one layer 64-64", (64, 64), 4000),
    _case("MLP 51-100-1", (51, 100, 1), 240, repeats=25),
)
