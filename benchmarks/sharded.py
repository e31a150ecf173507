"""`python -m benchmarks.sharded`: products with a kernel whose features are divided among worker processes.

Products a second on one, two and three processes of one thread each, taken in turn and beside the operator of one
process on one and on all threads; the bytes that the workers send and receive for a pass, against `pass_cost`; and
`eigsh` on three processes against the local one. The features are those of an untrained MLP at inputs with the
variances 1/i that images have about. It takes about two minutes and a few GiB.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from benchmarks.environment import holding, start_again

# No crippled peers; what is imported below reads such variables.
if __name__ == "__main__" and (names := holding()):
    start_again("benchmarks.sharded", without=names)

import numpy as np

from benchmarks.machine import machine
from benchmarks.traffic import Traffic
from kernelgrowth._backend.native import core_is_serial
from kernelgrowth.distributed import ShardedFeatures, ShardedOperator
from kernelgrowth.gradients import GradientFeatures, from_net
from kernelgrowth.kernels import NTKOperator
from kernelgrowth.nets import MLP
from kernelgrowth.spectra import eigsh

__all__ = ["main", "make", "print_eigsh", "print_products", "print_traffic"]

_CHUNK = 512
_PROCESSES = (1, 2, 3)
# Beyond this, an answer is wrong and no time is worth printing.
_AGREEMENT = 1e-5


def make(part: tuple[int, int], *, widths: Sequence[int]) -> GradientFeatures:
    """Return the gradients of some examples, the same ones whatever part they are in."""
    net = MLP(widths=widths)
    params = net.init(seed=0, dtype="float32")
    scale = (np.arange(1, widths[0] + 1, dtype=np.float32) ** -0.5)[None]
    first = part[0] // _CHUNK
    drawn = [
        np.random.default_rng(chunk).standard_normal((_CHUNK, widths[0]), dtype=np.float32)
        for chunk in range(first, -(-part[1] // _CHUNK))
    ]
    x = np.concatenate(drawn)[part[0] - first * _CHUNK : part[1] - first * _CHUNK] * scale
    return from_net(net, params, x)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sharded", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--examples", type=int, default=6000)
    parser.add_argument("--widths", type=int, nargs="+", default=[784, 512, 512, 1])
    parser.add_argument("--vectors", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--k", type=int, default=10)
    given = parser.parse_args(arguments)

    from distributed import Client, LocalCluster

    print(", ".join(f"{name} {value}" for name, value in machine().items()), flush=True)
    n, whole = given.examples, functools.partial(make, widths=given.widths)
    v = np.random.default_rng(1).standard_normal((n, given.vectors), dtype=np.float32)
    local = NTKOperator(whole((0, n)), products="factored")
    with ExitStack() as stack:
        clients, operators = {}, {}
        for count in _PROCESSES:
            cluster = LocalCluster(n_workers=count, threads_per_worker=1, processes=True, dashboard_address=":0")
            stack.enter_context(cluster)
            clients[count] = stack.enter_context(Client(cluster))
            edges = [n * s // count for s in range(count + 1)]
            feats = ShardedFeatures(clients[count], whole, list(itertools.pairwise(edges)))
            operators[count] = ShardedOperator(feats)
        print_products(local, operators, v, given.rounds)
        print()
        for count in _PROCESSES[1:]:
            print_traffic(count, operators[count], clients[count], v)
        print()
        print_eigsh(local, operators[_PROCESSES[-1]], clients[_PROCESSES[-1]], given.k)


def print_products(local: NTKOperator, operators: dict[int, ShardedOperator], v: Any, rounds: int) -> None:
    contenders: dict[str, Any] = {"one process, one thread": _Serial(local), "one process, all threads": local}
    contenders |= {f"{count} worker process(es)": operator for count, operator in operators.items()}
    wanted = local @ v
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, operator in contenders.items():
            start = time.perf_counter()
            found = operator @ v
            seconds[name].append(time.perf_counter() - start)
            error = float(np.abs(found - wanted).max() / np.abs(wanted).max())
            if error > _AGREEMENT:
                raise SystemExit(f"{name}: off by {error:.1e} of the largest entry")
    cost = next(iter(operators.values())).pass_cost(v.shape[1])
    print(f"products with {v.shape[1]} vectors, N = {len(v)}, {cost.flops / 1e9:.0f} GFLOP each, in turn, medians:")
    medians = {name: float(np.median(times)) for name, times in seconds.items()}
    base = medians["1 worker process(es)"]
    for name, median in medians.items():
        rate = f"{1 / median:6.2f} a second, {cost.flops / median / 1e9:6.0f} GFLOP/s"
        print(f"  {name:<26} {rate}, {base / median:5.2f} of one worker process")
    print("(processes share the processors of this machine: more of them than it has cannot be faster)")


class _Serial:
    """An operator on one thread."""

    def __init__(self, operator: NTKOperator) -> None:
        self._operator = operator

    def __matmul__(self, v: Any) -> Any:
        token = core_is_serial.set(True)
        try:
            return self._operator @ v
        finally:
            core_is_serial.reset(token)


def print_traffic(count: int, operator: ShardedOperator, client: Any, v: Any) -> None:
    with Traffic(client) as traffic:
        for _ in range(3):
            operator @ v
    cost = operator.pass_cost(v.shape[1])
    model = cost.between_workers + cost.vector_bytes // 2
    print(
        f"a pass on {count} processes: {_mebibytes(cost.factor_bytes)} of factors, {_mebibytes(cost.reduced_bytes)}"
        f" reduced and {_mebibytes(cost.broadcast_bytes)} broadcast, {_mebibytes(cost.vector_bytes / 2)} of vectors"
        " each way"
    )
    for name, total in (("sent", traffic.sent), ("received", traffic.received)):
        print(f"  measured {_mebibytes(total / 3)} {name} by workers, {total / 3 / model:.3f} of the model's")


def _mebibytes(count: float) -> str:
    return f"{count / 2**20:.1f} MiB"


def print_eigsh(local: NTKOperator, operator: ShardedOperator, client: Any, k: int) -> None:
    wanted = eigsh(local, k)
    start = time.perf_counter()
    with Traffic(client) as traffic:
        found = eigsh(operator, k)
    seconds = time.perf_counter() - start
    top = float(wanted.eigenvalues[0])
    error = float(np.abs(found.eigenvalues - wanted.eigenvalues).max()) / top
    missed = local @ found.eigenvectors - found.eigenvectors * found.eigenvalues
    residual = float(np.linalg.norm(missed.astype(np.float64), axis=0).max()) / top
    print(
        f"eigsh, k = {k}: eigenvalues within {error:.1e} of the largest, residuals in the local kernel at most"
        f" {residual:.1e} of it; {found.passes} passes (local {wanted.passes}) in {seconds:.1f} s,"
        f" {traffic.sent / 2**20:.0f} MiB sent"
    )


if __name__ == "__main__":
    main()
