"""`python -m benchmarks.strategies`: is the way that a plan chooses for a weight with positions the faster one?

Random shapes of convolutions and sequences are computed both ways, one thread, in turn, and compared with each other.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter
from typing import Any

import numpy as np

from kernelgrowth.gradients import GradientFeatures, OuterProduct
from kernelgrowth.kernels.blocks import LoweredBlock, expanded, position_pairs
from kernelgrowth.kernels.evaluate import evaluate
from kernelgrowth.kernels.lowering import Problem, lower
from kernelgrowth.kernels.plan import make_plan
from kernelgrowth.kernels.strategy import Shape

LARGEST_WORK = 2e10  # multiply-adds: shapes of which one way takes longer are left out


def draw(rng: np.random.Generator) -> tuple[Shape, type]:
    """Return a random shape and dtype, sizes uniform in their logarithms."""

    def size(low: int, high: int) -> int:
        return round(math.exp(rng.uniform(math.log(low), math.log(high))))

    n, t = size(16, 256), size(2, 256)
    dtype = np.float32 if rng.random() < 0.5 else np.float64
    shape = Shape((n, n), (t, t), int(rng.integers(1, 5)), 1, size(3, 512), size(3, 512), np.dtype(dtype).itemsize)
    return shape, dtype


def seconds(problem: Problem, blocks: dict[str, LoweredBlock], rounds: int) -> dict[str, float]:
    """Return the shortest time of each way, taken in turn and checked against each other."""
    best = dict.fromkeys(blocks, math.inf)
    kernels: dict[str, Any] = {name: np.empty(problem.shape, problem.dtype) for name in blocks}
    for _ in range(rounds):
        for name, block in blocks.items():
            one = Problem((block,), problem.shape, problem.dtype, problem.symmetric, 0)
            plan = make_plan(one, output_bytes=0, memory_limit=2**33, threads=1)
            start = time.thread_time()
            evaluate(one, plan, kernels[name])
            best[name] = min(best[name], time.thread_time() - start)
    first, second = kernels.values()
    scale = np.sqrt(np.outer(first.diagonal(), first.diagonal()))
    tolerance = 2e-5 if problem.dtype == np.float32 else 2e-12
    if not np.all(np.abs(first - second) <= tolerance * scale):
        raise AssertionError(f"two ways disagree on {problem.blocks[0].name}")
    return best


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.strategies", description=__doc__)
    parser.add_argument("--shapes", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    rng = np.random.default_rng(arguments.seed)
    losses: list[float] = []
    chosen: Counter[str] = Counter()
    left_out = 0
    while len(losses) < arguments.shapes:
        shape, dtype = draw(rng)
        if max(shape.expansion_work(), shape.position_pairs_work()) > LARGEST_WORK:
            left_out += 1
            continue
        (n, _), (t, _) = shape.examples, shape.positions
        a = rng.standard_normal((n, t, shape.columns)).astype(dtype)
        d = rng.standard_normal((n, shape.outputs, t, shape.rows)).astype(dtype)
        name = f"N={n} T={t} C={shape.outputs} d_in={shape.columns} d_out={shape.rows} {np.dtype(dtype)}"
        features = GradientFeatures({name: OuterProduct(a, d)})
        problem = lower(features, None, "full", {}, 2**33)
        ways = {
            "expand": expanded(name, ((a, d),), (), 1.0, False, False),
            "pairs": position_pairs(name, ((a, d),), 1.0, False, False),
        }
        times = seconds(problem, ways, arguments.rounds)
        choice = problem.blocks[0].strategy
        chosen[choice] += 1
        losses.append(times[choice] / min(times.values()))
        if losses[-1] > 1:
            report = ", ".join(f"{way} {value * 1e3:.3f} ms" for way, value in times.items())
            print(f"{name}: chose {choice}; {report}, {losses[-1]:.2f} times the faster")
    faster = sum(loss == 1 for loss in losses)
    print(
        f"{len(losses)} shapes ({dict(chosen)}; {left_out} drawn that take too long): the faster way in "
        f"{faster / len(losses):.1%}, at worst {max(losses):.2f} times as long"
    )


if __name__ == "__main__":
    main()
