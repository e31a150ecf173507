"""`python -m benchmarks.store`: what recording a run to a folder costs, and how long a long run takes to open.

The same tracked training in memory and to a folder, in turn; the difference of their times, ends included, is the
store's. Runs are long enough that what one costs once (opening, closing, waiting for the disk) is seen for what it is.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.environment import holding, start_again

# No crippled peers; what is imported below reads such variables.
if __name__ == "__main__" and (names := holding()):
    start_again("benchmarks.store", without=names)

import numpy as np

from benchmarks.machine import machine
from kernelgrowth.nets import MLP
from kernelgrowth.tracking import History, NTKTracker, load_run
from kernelgrowth.tracking.run_group import RunGroup
from kernelgrowth.training import optim, train

__all__ = ["main", "opening", "tracked"]

CASES = (
    ("MLP 784-100-1, N = 1000, every 10th of 4000 steps", (784, 100, 1), 1000, 10, 4000),
    ("MLP 784-100-1, N = 1000, every 100th of 8000 steps", (784, 100, 1), 1000, 100, 8000),
    ("MLP 51-100-1, N = 300, every 10th of 20000 steps", (51, 100, 1), 300, 10, 20000),
)


def tracked(widths: Sequence[int], n: int, every: int, steps: int, out: Path | None) -> tuple[float, History]:
    """Return the seconds that a tracked training takes, and what it recorded."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, widths[0]), dtype=np.float32)
    y = np.sign(x @ rng.standard_normal(widths[0], dtype=np.float32))
    net = MLP(widths=widths, activation="relu")
    params = net.init(seed=1, dtype="float32")
    start = time.perf_counter()
    tracker = NTKTracker(x, y, every=every, out=out)
    train(net, params, (x, y), optimizer=optim.GD(lr=0.01), steps=steps, callbacks=[tracker])
    return time.perf_counter() - start, tracker.history


def opening(steps: int, folder: Path) -> tuple[float, History]:
    """Record so many steps of 20 numbers and 2 lists of 20, and return how long they take to open."""
    group = RunGroup(folder)
    group.create({"status": "running", "config": {}})
    numbers = np.random.default_rng(0).random((1000, 40)).tolist()
    for step in range(steps):
        values = numbers[step % 1000]
        lists: dict[str, Any] = {"eigenvalues": values[:20], "eigenvector_alignment": values[20:]}
        group.append({"step": step, **lists, **{f"series {i}": values[i] for i in range(20)}})
    group.release()
    start = time.perf_counter()
    history = load_run(folder)
    history["series 3"]
    return time.perf_counter() - start, history


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.store", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shorter", type=int, default=1, help="divide numbers of steps by this")
    given = parser.parse_args(arguments)

    print(", ".join(f"{name} {value}" for name, value in machine().items()), flush=True)
    folder = Path(tempfile.mkdtemp(prefix="kernelgrowth-store-"))
    try:
        # Zarr is imported by whoever records first.
        tracked((4, 3, 1), 8, 1, 3, folder / "first")
        for title, widths, n, every, steps in CASES:
            seconds: dict[str, list[float]] = {"memory": [], "folder": []}
            for turn in range(given.repeats):
                histories = {}
                for place in ("memory", "folder") if turn % 2 else ("folder", "memory"):
                    out = folder / "run" if place == "folder" else None
                    shutil.rmtree(folder / "run", ignore_errors=True)
                    taken, histories[place] = tracked(widths, n, every, steps // given.shorter, out)
                    seconds[place].append(taken)
                stored = load_run(folder / "run") if (folder / "run").exists() else histories["folder"]
                assert np.array_equal(stored["alignment"], histories["memory"]["alignment"])
            ratios = [a / b for a, b in zip(seconds["folder"], seconds["memory"], strict=True)]
            print(
                f"{title}: {statistics.median(seconds['memory']):.2f} s in memory, to a folder"
                f" {statistics.median(ratios) - 1:+.1%} (from {min(ratios) - 1:+.1%} to {max(ratios) - 1:+.1%})",
                flush=True,
            )
        steps = 100_000 // given.shorter
        taken, history = opening(steps, folder / "long")
        assert len(history.steps) == steps
        print(f"a run of {steps} tracked steps, {len(history)} series: opened in {taken:.2f} s")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
