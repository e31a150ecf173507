"""`python -m benchmarks.at_scale`: the top of the spectrum of a kernel too large to be stored, products by factors.

A kernel of 100,000 examples of an MLP 784-1024-1024-1, 40 GB if it were stored: passes, time, peak memory beyond the
factors, and the time that the counted operations would take at the rates measured beside it. It takes minutes and some
GiB. The inputs are normally distributed with the variances 1/i that images have about, the weights are those of an
untrained network: the spectrum of the kernel decays like that of a real one.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.environment import holding, start_again

# No crippled peers; what is imported below reads such variables.
if __name__ == "__main__" and (names := holding()):
    start_again("benchmarks.at_scale", without=names)

import numpy as np

from benchmarks.machine import machine
from kernelgrowth._backend import native
from kernelgrowth.gradients import GradientFeatures, OuterProduct, from_net
from kernelgrowth.kernels import NTKOperator
from kernelgrowth.nets import MLP
from kernelgrowth.spectra import eigsh

__all__ = ["Counted", "decaying_features", "main"]

# Examples that are swept at a time: few, so that the peak is not there.
_CHUNK = 512
_SIDE = 4096


class Counted(NTKOperator):
    """An operator by factors that notes its products."""

    def __init__(self, features: GradientFeatures) -> None:
        super().__init__(features, products="factored")
        self.vectors, self.seconds, self.flops = 0, 0.0, 0

    def __matmul__(self, v: Any) -> Any:
        start = time.perf_counter()
        product = super().__matmul__(v)
        self.seconds += time.perf_counter() - start
        self.vectors += v.shape[1]
        self.flops += self.product_plan(v.shape[1]).flops
        return product


def decaying_features(widths: Sequence[int], n: int) -> GradientFeatures:
    """Return the factors of an untrained MLP, filled in some examples at a time so that nothing else takes memory."""
    net = MLP(widths=widths)
    params = net.init(seed=0, dtype="float32")
    rng = np.random.default_rng(0)
    scale = (np.arange(1, widths[0] + 1, dtype=np.float32) ** -0.5)[None]
    factors: dict[str, tuple[Any, Any]] = {}
    for start in range(0, n, _CHUNK):
        rows = slice(start, min(start + _CHUNK, n))
        part = from_net(net, params, rng.standard_normal((rows.stop - start, widths[0]), dtype=np.float32) * scale)
        for name, block in part.items():
            a, d = block.activations[:, 0], block.backprops[:, 0, 0]
            if name not in factors:
                factors[name] = np.empty((n, a.shape[1]), np.float32), np.empty((n, d.shape[1]), np.float32)
            factors[name][0][rows], factors[name][1][rows] = a, d
    return GradientFeatures({name: OuterProduct(a, d) for name, (a, d) in factors.items()})


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.at_scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--examples", type=int, default=100_000)
    parser.add_argument("--widths", type=int, nargs="+", default=[784, 1024, 1024, 1])
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--tol", type=float, default=1e-3)
    given = parser.parse_args(arguments)

    print(", ".join(f"{name} {value}" for name, value in machine().items()), flush=True)
    rates = [_rates()]
    features = decaying_features(given.widths, given.examples)
    held = sum(block.activations.nbytes + block.backprops.nbytes for block in features.values())
    network = f"MLP {'-'.join(map(str, given.widths))}, N = {given.examples}, k = {given.k}, tol {given.tol:.0e}"
    print(f"{network}: {held / 2**30:.2f} GiB of factors", flush=True)

    operator = Counted(features)
    before, start = _resident_bytes(), time.perf_counter()
    result = eigsh(operator, given.k, tol=given.tol)
    seconds, peak = time.perf_counter() - start, _peak_bytes()
    rates.append(_rates())

    values, residual = result.eigenvalues, result.residuals.max() / result.eigenvalues[0]
    print(
        f"  {result.passes} passes, {operator.vectors} vectors, residuals at most {residual:.0e} of the largest"
        f" eigenvalue, {np.count_nonzero(result.converged)} of {given.k} converged\n"
        f"  eigenvalues {values[0]:.4g}, {values[1]:.4g}, ..., {values[-1]:.4g}; none left out exceeds"
        f" {result.missed_bound:.4g}\n"
        f"  {seconds:.1f} s, of which products {operator.seconds:.1f} s: {operator.flops / 1e12:.2f} TFLOP,"
        f" {operator.flops / operator.seconds / 1e9:.0f} GFLOP/s\n"
        f"  peak memory beyond the factors and what was there before: {(peak - before) / 2**20:.0f} MiB"
    )
    for name, measured in zip(("the multiply-add ceiling", "NumPy's sgemm"), zip(*rates, strict=True), strict=True):
        floor = operator.flops / max(measured)
        print(f"  {name}, {max(measured) / 1e9:.0f} GFLOP/s: the products take {floor:.1f} s, {floor / seconds:.0%}")


def _rates() -> tuple[float, float]:
    """Return the operations a second of multiply-adds and of NumPy's products, of which the best of a few count."""
    a = np.random.default_rng(1).standard_normal((_SIDE, _SIDE // 4), dtype=np.float32)
    b = np.ascontiguousarray(a.T)
    products = [_rate(lambda: a @ b, 2 * a.size * len(a)) for _ in range(5)]
    return max(native.multiply_add_peak("float32") for _ in range(2)), max(products)


def _rate(run: Callable[[], Any], flops: int) -> float:
    start = time.perf_counter()
    run()
    return flops / (time.perf_counter() - start)


def _resident_bytes() -> int:
    """Return the memory that this process has now; where nobody tells, the most that it has had."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return _peak_bytes()


def _peak_bytes() -> int:
    """Return the most memory that this process has had: since the factors are there, a little more than those."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
