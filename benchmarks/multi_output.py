"""The kernels of a network with several outputs, from its gradient factors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.case import OURS, TOLERANCE, Case, Workload
from benchmarks.factors import features_of, kernel_error, random_layers, widths_to_shapes
from benchmarks.gram import structured
from benchmarks.peers import jitted
from kernelgrowth.kernels import NTKOperator, empirical_ntk

__all__ = ["CASES", "multi_output"]

# Activations (N, d_in) and backprops (N, C, d_out).
Pairs = Sequence[tuple[Any, Any]]


def expanded(pairs: Pairs) -> Any:
    """Every output an example of its own: C times the activations, and C² times their inner products."""
    return structured([(np.repeat(a, d.shape[1], axis=0), d.reshape(-1, d.shape[2])) for a, d in pairs])


def full(pairs: Pairs) -> Any:
    """(A Aᵀ) once for all pairs of outputs; broadcasting repeats it. In NumPy's and JAX's words alike."""
    total: Any = 0.0
    for a, d in pairs:
        n, c, _ = d.shape
        rows = d.reshape(n * c, -1)
        total = total + (a @ a.T)[:, None, :, None] * (rows @ rows.T).reshape(n, c, n, c)
    return total.reshape(n * c, n * c)


def trace(pairs: Pairs) -> Any:
    return structured([(a, d.reshape(len(d), -1)) for a, d in pairs])


def sum_logits(pairs: Pairs) -> Any:
    return structured([(a, d.sum(axis=1)) for a, d in pairs])


def diagonal(pairs: Pairs) -> Any:
    """C products of (N, d_out) in a batch, all times one (A Aᵀ)."""
    by_output = [(a, d.swapaxes(0, 1)) for a, d in pairs]
    return sum((a @ a.T) * (d @ d.swapaxes(1, 2)) for a, d in by_output)


_BY_HAND = {"full": full, "trace": trace, "diagonal": diagonal, "sum_logits": sum_logits}


def multi_output(widths: Sequence[int], n: int, outputs: str, dtype: str) -> Workload:
    c = widths[-1]
    layers = random_layers(widths_to_shapes(widths), n, outputs=c, dtype=dtype)
    features = features_of(layers)
    pairs = [(a[:, 0], d[:, :, 0]) for a, d in layers]
    by_hand = _BY_HAND[outputs]

    def ours() -> Any:
        kernel = empirical_ntk(features, outputs=outputs)
        return kernel.transpose(0, 2, 1, 3).reshape(n * c, n * c) if outputs == "full" else kernel  # a view

    contenders: dict[str, Any] = {OURS: ours, "NumPy, structured": lambda: by_hand(pairs)}
    if outputs == "full":
        contenders["NumPy, structured, factors expanded"] = lambda: expanded(pairs)
    contenders["JAX, structured, jit"] = jitted(by_hand, pairs)
    # The diagonal needs the products that the trace needs, and only keeps them apart.
    plan = NTKOperator(features, outputs="trace" if outputs == "diagonal" else outputs).plan()
    entries = n * n * {"full": c * c, "diagonal": c}.get(outputs, 1)
    read = sum(a.nbytes + d.nbytes for a, d in layers)
    return Workload(
        contenders,
        kernel_error(layers, outputs),
        TOLERANCE[dtype],
        flops=plan.flops,
        bytes=read + entries * features.dtype.itemsize,
    )


CASES = tuple(
    Case(
        f"{outputs} of 10 outputs, MLP 784-512-512-10, N = 500",
        multi_output,
        {"widths": (784, 512, 512, 10), "n": 500, "outputs": outputs},
        {"widths": (7, 5, 3), "n": 18},
    )
    for outputs in _BY_HAND
)
