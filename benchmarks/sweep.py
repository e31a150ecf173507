"""`python -m benchmarks.sweep`: a sweep of 24 small runs on two workers against one, and whether the tables agree.

Times are of the whole call, processes started and ended and the report drawn.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.environment import holding, start_again

# No crippled peers; what is imported below reads such variables.
if __name__ == "__main__" and (names := holding()):
    start_again("benchmarks.sweep", without=names)

from benchmarks.machine import machine
from kernelgrowth.experiments import parse_sweep, sweep_experiments

__all__ = ["main"]

SWEEP = """
[data]
name = "digits"
classes = [0, 1]
n_train = 200
n_test = 100

[net]
hidden = [100]
activation = "relu"

[training]
lr = 0.01
steps = {steps}

[tracking]
every = 20

[sweep.grid]
net.sigma = [0.05, 0.2, 0.5, 1.0]
training.seed = [0, 1, 2, 3, 4, 5]
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3000)
    given = parser.parse_args(arguments)

    print(", ".join(f"{name} {value}" for name, value in machine().items()), flush=True)
    sweep = parse_sweep(SWEEP.format(steps=given.steps))
    folder = Path(tempfile.mkdtemp(prefix="kernelgrowth-sweep-"))
    ratios = []
    try:
        for turn in range(given.repeats):
            seconds, tables = {}, {}
            for workers in (1, 2) if turn % 2 == 0 else (2, 1):
                out = folder / f"{turn}-{workers}"
                start = time.perf_counter()
                sweep_experiments(sweep, out, workers=workers)
                seconds[workers] = time.perf_counter() - start
                tables[workers] = (out / "table.csv").read_bytes()
            assert tables[1] == tables[2]
            ratios.append(seconds[1] / seconds[2])
            print(
                f"{len(sweep.runs)} runs: {seconds[1]:.1f} s on one worker, {seconds[2]:.1f} s on two, {ratios[-1]:.2f}"
                f" times as fast; the same table",
                flush=True,
            )
    finally:
        shutil.rmtree(folder)
    print(f"median {statistics.median(ratios):.2f} times as fast")


if __name__ == "__main__":
    main()
