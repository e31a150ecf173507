"""From parameters and inputs to the kernel of an MLP, forward and backward sweeps included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.case import OURS, Case, Workload
from benchmarks.factors import kernel_error
from benchmarks.gram import Pairs, structured
from benchmarks.peers import jitted, torch_jacobian_contraction
from kernelgrowth.gradients import from_net
from kernelgrowth.kernels import NTKOperator, empirical_ntk
from kernelgrowth.nets import MLP

__all__ = ["CASES", "SWEPT_TOLERANCE", "mlp"]

# The rounding of the forward sweep comes on top of the kernel's.
SWEPT_TOLERANCE = {"float32": 1e-4, "float64": 1e-11}


def factors_by_hand(weights: Sequence[Any], x: Any) -> Pairs:
    """Sweep a ReLU network without biases forward and backward, in NumPy's and JAX's words alike."""
    inputs, slopes = [x], []
    for weight in weights[:-1]:
        z = inputs[-1] @ weight.T
        slopes.append(z > 0)
        inputs.append(z * slopes[-1])
    deltas = [abs(x[:, :1]) ** 0]  # ones
    for weight, slope in zip(weights[:0:-1], slopes[::-1], strict=True):
        deltas.append((deltas[-1] @ weight) * slope)
    return list(zip(inputs, deltas[::-1], strict=True))


def structured_from_scratch(weights: Sequence[Any], x: Any) -> Any:
    return structured(factors_by_hand(weights, x))


def _torch_forward(torch: Any, params: Any, x: Any) -> Any:
    *hidden, last = params.values()
    for weight in hidden:
        x = torch.relu(x @ weight.T)
    return x @ last.T


def mlp(widths: Sequence[int], n: int, dtype: str) -> Workload:
    net = MLP(widths=widths)
    params = net.init(seed=0, dtype=dtype)
    x = np.random.default_rng(3).standard_normal((n, widths[0]), dtype=np.dtype(dtype).type)
    weights = list(params.values())
    exact = factors_by_hand([w.astype(np.float64) for w in weights], x.astype(np.float64))
    # Forward through every weight, backward through all but the first.
    sweeps = 2 * n * (sum(w.size for w in weights) + sum(w.size for w in weights[1:]))
    itemsize = x.itemsize
    return Workload(
        {
            OURS: lambda: empirical_ntk(from_net(net, params, x)),
            "NumPy, sweeps by hand, structured": lambda: structured_from_scratch(weights, x),
            "JAX, sweeps by hand, structured, jit": jitted(structured_from_scratch, weights, x),
            "torch.func, Jacobian contraction": torch_jacobian_contraction(_torch_forward, params, x),
        },
        kernel_error([(a[:, None], d[:, None, None]) for a, d in exact]),
        SWEPT_TOLERANCE[dtype],
        flops=sweeps + NTKOperator(from_net(net, params, x)).plan().flops,
        bytes=x.nbytes + sum(w.nbytes for w in weights) + n * n * itemsize,
    )


CASES = (
    Case(
        "end to end, MLP 784-1024-1024-1, N = 500",
        mlp,
        {"widths": (784, 1024, 1024, 1), "n": 500},
        {"widths": (7, 5, 3, 1), "n": 18},
        repeats=5,
    ),
)
