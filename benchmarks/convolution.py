"""The Gram of a convolutional network, from its gradient factors: weights that are used at many positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.case import OURS, TOLERANCE, Case, Workload
from benchmarks.factors import Layer, features_of, kernel_error, random_layers
from benchmarks.peers import jitted
from kernelgrowth.kernels import NTKOperator, empirical_ntk

__all__ = ["CASES", "convolution"]


def expand_in_chunks(layers: Sequence[Layer], limit: int) -> Any:
    """Gradients of some rows of a weight at a time, in at most `limit` bytes, and their inner products added up."""
    n = len(layers[0][0])
    kernel = np.zeros((n, n), layers[0][0].dtype)
    for a, d in layers:
        if a.shape[1] == 1:
            kernel += (a[:, 0] @ a[:, 0].T) * (d[:, 0, 0] @ d[:, 0, 0].T)
            continue
        backprops = d[:, 0].swapaxes(1, 2)
        rows = max(1, limit // (n * a.shape[2] * a.itemsize))
        for begin in range(0, backprops.shape[1], rows):
            gradients = (backprops[:, begin : begin + rows] @ a).reshape(n, -1)
            kernel += gradients @ gradients.T
    return kernel


def expand(layers: Sequence[Layer]) -> Any:
    """All gradients of a layer at once, and their inner products; a layer without positions stays factored."""
    total: Any = 0.0
    for a, d in layers:
        if a.shape[1] == 1:
            total = total + (a[:, 0] @ a[:, 0].T) * (d[:, 0, 0] @ d[:, 0, 0].T)
        else:
            gradients = (d[:, 0].swapaxes(1, 2) @ a).reshape(len(a), -1)
            total = total + gradients @ gradients.T
    return total


def convolution(shapes: Sequence[tuple[int, int, int]], n: int, dtype: str) -> Workload:
    layers = random_layers(shapes, n, dtype=dtype)
    features = features_of(layers)
    plan = NTKOperator(features).plan()
    contenders = {
        OURS: lambda: empirical_ntk(features),
        "NumPy, expand and contract": lambda: expand(layers),
        "NumPy, the same in 8 MiB chunks": lambda: expand_in_chunks(layers, 8 << 20),
        "JAX, expand and contract, jit": jitted(expand, layers),
    }
    return Workload(
        contenders,
        kernel_error(layers),
        TOLERANCE[dtype],
        flops=plan.flops,
        bytes=sum(block.bytes for block in plan.blocks) + n * n * features.dtype.itemsize,
    )


CASES = (
    Case(
        "Gram, CNN 32-64-64 on 32 x 32, N = 512",
        convolution,
        # (positions, d_in, d_out): 3 x 3 convolutions to 32, 64 and 64 channels, halved twice, and a dense layer.
        {"shapes": ((1024, 27, 32), (256, 288, 64), (64, 576, 64), (1, 4096, 1)), "n": 512},
        {"shapes": ((16, 9, 4), (4, 36, 3), (1, 12, 1)), "n": 18},
        repeats=5,
    ),
)
