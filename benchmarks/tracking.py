"""Following a kernel through training: what one tracked step takes, and what it adds to a training run.

`python -m benchmarks.tracking` prints the share of a longer run, by the clocks of trainer and tracker in that run.
"""

from __future__ import annotations

import argparse
import atexit
import itertools
import math
import shutil
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.environment import holding, start_again

# No crippled peers; what is imported below reads such variables.
if __name__ == "__main__" and (names := holding()):
    start_again("benchmarks.tracking", without=names)

import numpy as np
import scipy.sparse.linalg

from benchmarks.case import OURS, Case, Workload
from benchmarks.eigenpairs import exact_values
from benchmarks.end_to_end import factors_by_hand
from benchmarks.factors import kernel_error
from benchmarks.gram import structured
from benchmarks.machine import machine
from kernelgrowth.gradients import GradientFeatures, from_net
from kernelgrowth.kernels import NTKOperator, empirical_ntk
from kernelgrowth.nets import MLP
from kernelgrowth.tracking import NTKTracker
from kernelgrowth.training import Callback, optim, train

__all__ = ["CASES", "TrackedByHand", "main", "one_step", "training"]

_TOP = 20
_RATE = 1e-3
# Of eigenvalues, relative to the largest; the kernels are closer.
_TOLERANCE = 5e-4


class TrackedByHand(Callback):
    """The series of `NTKTracker` as somebody would write them with NumPy and SciPy, kept in memory."""

    def __init__(self, x: Any, y: Any, every: int = 1) -> None:
        self.x, self.y, self.every = x, y.astype(np.float64), every
        self.records: list[dict[str, Any]] = []
        self.kernels: list[Any] = []
        self._vectors: Any = None

    def on_step(self, state: Any) -> None:
        if state.step % self.every == 0 or state.is_last:
            self.update(list(state.params.values()))

    def update(self, weights: Sequence[Any]) -> None:
        n, y = len(self.x), self.y
        factors = factors_by_hand(weights, self.x)
        a, _ = factors[-1]
        record: dict[str, Any] = {"loss": float(np.mean((a @ weights[-1].T - y[:, None]) ** 2)) / 2}
        kernel = 0.0
        for i, (a, d) in enumerate(factors):
            layer = (a @ a.T) * (d @ d.T)
            norm = np.linalg.norm(layer)
            record |= {f"norm {i}": norm, f"alignment {i}": y @ (layer @ y) / (norm * (y @ y))}
            kernel = kernel + layer
        norm, rows, centered = np.linalg.norm(kernel), kernel.sum(axis=1), y - y.mean()
        centered_norm = math.sqrt(norm**2 - 2 / n * (rows @ rows) + (rows.sum() / n) ** 2)
        record |= {
            "kernel_norm": norm,
            "trace": kernel.trace(),
            "alignment": y @ (kernel @ y) / (norm * (y @ y)),
            "alignment_centered": centered @ (kernel @ centered) / (centered_norm * (centered @ centered)),
        }
        start = None if self._vectors is None else self._vectors.sum(axis=1)
        values, vectors = scipy.sparse.linalg.eigsh(kernel, min(_TOP, n - 1), v0=start, tol=1e-2)
        record |= {"eigenvalues": values[::-1], "eigenvector_alignment": (vectors.T @ y) ** 2 / (y @ y)}
        shares = np.maximum(values, 0) / record["trace"]
        record["effective_rank"] = math.exp(-np.sum(shares[shares > 0] * np.log(shares[shares > 0])))
        if self.kernels:
            before, first = self.kernels[-1], self.kernels[0]
            norms = self.records[-1]["kernel_norm"], self.records[0]["kernel_norm"]
            record["velocity"] = 1 - np.vdot(kernel, before) / (norm * norms[0])
            record["rotation"] = 1 - np.vdot(kernel, first) / (norm * norms[1])
            record["subspace_overlap"] = np.sum((self._vectors.T @ vectors) ** 2) / vectors.shape[1]
        self.records.append(record)
        self.kernels.append(kernel)
        self._vectors = vectors


def _setting(widths: Sequence[int], n: int, dtype: str) -> tuple[MLP, Mapping[str, Any], Any, Any]:
    net = MLP(widths=widths)
    rng = np.random.default_rng(3)
    x = rng.standard_normal((n, widths[0]), dtype=np.dtype(dtype).type)
    return net, net.init(seed=0, dtype=dtype), x, np.where(x[:, 0] + x[:, 1] < 0, -1, 1).astype(dtype)


def _steps_after(net: MLP, start: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """Return parameters that differ as those of tracked steps do, there and back again, to be gone through in turn."""
    rng = np.random.default_rng(8)
    change = {name: rng.standard_normal(w.shape).astype(w.dtype) * w.std() for name, w in start.items()}
    there = [{name: w + w.dtype.type(0.01 * i) * change[name] for name, w in start.items()} for i in range(count)]
    return there + there[-2:0:-1]


def _half_mean_square(f: Any, y: Any) -> float:
    return float(np.mean((f[:, 0] - y) ** 2)) / 2


def one_step(widths: Sequence[int], n: int, dtype: str) -> Workload:
    """A tracked step after others, as all but the first are."""
    net, start, x, y = _setting(widths, n, dtype)
    params = _steps_after(net, start, 8)
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    trackers = {
        # Every second kernel is dropped once there are so many: in a long run the folder has no more to write then.
        OURS: NTKTracker(x, y, every=1, top_k=_TOP, kernel_budget=8 * n * n * x.itemsize),
        f"{OURS}, into a run folder": NTKTracker(
            x, y, every=1, top_k=_TOP, out=folder / "run", kernel_budget=8 * n * n * x.itemsize
        ),
    }

    def tracked(tracker: NTKTracker) -> Callable[[], Any]:
        steps = itertools.count()

        def step() -> NTKTracker:
            i = next(steps)
            tracker.update(net, params[i % len(params)], step=i, loss=_half_mean_square)
            return tracker

        return step

    def by_hand() -> Callable[[], Any]:
        series, steps = TrackedByHand(x, y), itertools.count()

        def step() -> TrackedByHand:
            i = next(steps)
            series.update(list(params[i % len(params)].values()))
            del series.kernels[1:-1], series.records[1:-1]
            return series

        return step

    exact = factors_by_hand([w.astype(np.float64) for w in params[0].values()], x.astype(np.float64))
    kernel_off = kernel_error([(a[:, None], d[:, None, None]) for a, d in exact])
    exact_top = exact_values(structured(exact), min(_TOP, n - 1))

    def error(answer: Any) -> float:
        """Of the first step's kernel and eigenvalues."""
        if isinstance(answer, GradientFeatures):
            return kernel_off(empirical_ntk(answer))
        if isinstance(answer, NTKTracker):
            kernel, values = answer.history.kernel(0), answer.history["eigenvalues"][0]
        else:
            kernel, values = answer.kernels[0], answer.records[0]["eigenvalues"]
        return max(kernel_off(kernel), float(np.abs(values - exact_top).max() / exact_top[0]))

    sweeps = 2 * n * (2 * sum(w.size for w in start.values()) - start["layer1.weight"].size)
    return Workload(
        {
            **{name: tracked(tracker) for name, tracker in trackers.items()},
            "NumPy and SciPy, the same series": by_hand(),
            "forward and backward sweep, a part": lambda: from_net(net, params[0], x, check_finite=False),
        },
        error,
        _TOLERANCE,
        flops=sweeps + NTKOperator(from_net(net, start, x)).plan().flops,
        bytes=x.nbytes + sum(w.nbytes for w in start.values()) + n * n * x.itemsize,
        parts=("forward and backward sweep, a part",),
    )


def training(widths: Sequence[int], n: int, steps: int, every: int, batch: int, dtype: str) -> Workload:
    """Minibatch training of a network, tracked on a probe set; all runs end with the same bits."""
    net, start, x, y = _setting(widths, n, dtype)

    def run(make: Callable[[], Sequence[Any]]) -> Callable[[], Any]:
        def trained() -> Any:
            data, optimizer = (x, y), optim.GD(lr=_RATE)
            return train(net, start, data, optimizer=optimizer, steps=steps, batch_size=batch, callbacks=make()).params

        return trained

    def tracker(**options: Any) -> NTKTracker:
        return NTKTracker(x, y, every=every, top_k=_TOP, **options)

    untracked = run(list)
    exact = untracked()

    def error(params: Mapping[str, Any]) -> float:
        return float(max(np.abs(w - exact[name]).max() for name, w in params.items()))

    weights = sum(w.size for w in start.values())
    return Workload(
        {
            OURS: run(lambda: [tracker()]),
            f"{OURS}, max_overhead = 0.05": run(lambda: [tracker(max_overhead=0.05)]),
            "NumPy and SciPy, the same series": run(lambda: [TrackedByHand(x, y, every)]),
            "not tracked, a part": untracked,
        },
        error,
        0.0,
        flops=steps * batch * 2 * (3 * weights - start["layer1.weight"].size),
        bytes=steps * batch * x[0].nbytes,
        parts=("not tracked, a part",),
    )


_WIDTHS = (784, 1024, 1024, 1)
_TINY = {"widths": (7, 5, 3, 1), "n": 26}

CASES = (
    Case(
        "tracking, one step, MLP 784-1024-1024-1, N = 1000",
        one_step,
        {"widths": _WIDTHS, "n": 1000},
        _TINY,
        repeats=9,
    ),
    Case(
        "tracking, every 100 of 400 steps of 128, MLP 784-1024-1024-1, N = 1000",
        training,
        {"widths": _WIDTHS, "n": 1000, "steps": 400, "every": 100, "batch": 128},
        {**_TINY, "steps": 4, "every": 2, "batch": 13},
        repeats=5,
    ),
)


class _Clock(Callback):
    """Reads what the trainer itself has taken, in the end."""

    seconds = 0.0

    def on_end(self, state: Any) -> None:
        self.seconds = state.seconds


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tracking", description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=_WIDTHS)
    parser.add_argument("--examples", type=int, default=1000, help="of the probe set, which is the training set")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--batch", type=int, default=128)
    given = parser.parse_args(arguments)

    print(", ".join(f"{name} {value}" for name, value in machine().items()), flush=True)
    net, start, x, y = _setting(given.widths, given.examples, "float32")
    network = f"MLP {'-'.join(map(str, given.widths))}, N = {given.examples}"
    print(f"{network}: {given.steps} steps of {given.batch}, tracked every {given.every}")
    for limit in (None, 0.05):
        clock, tracker = _Clock(), NTKTracker(x, y, every=given.every, top_k=_TOP, max_overhead=limit)
        train(
            net,
            start,
            (x, y),
            optimizer=optim.GD(lr=_RATE),
            steps=given.steps,
            batch_size=given.batch,
            callbacks=[tracker, clock],
        )
        seconds = tracker.history["seconds"]
        examples = [len(tracker.history.examples(step)) for step in tracker.history.steps]
        between = statistics.median(seconds[1:-1]) if len(seconds) > 2 else math.nan
        print(
            f"  max_overhead {limit}: {len(seconds)} tracked steps on {min(examples)} to {max(examples)} examples,"
            f" {sum(seconds):.2f} s beside {clock.seconds:.2f} s of training, {sum(seconds) / clock.seconds:.1%};"
            f" first {seconds[0] * 1e3:.0f} ms, median of those between {between * 1e3:.0f} ms,"
            f" a step of training {clock.seconds / given.steps * 1e3:.1f} ms",
            flush=True,
        )


if __name__ == "__main__":
    main()
