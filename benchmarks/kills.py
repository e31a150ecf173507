"""`python -m benchmarks.kills --tiles 70 --runs 100`: processes killed at random moments, and what became of it.

Kernels written tile by tile, to a Zarr array and to a memory-mapped file in turn; tracked training runs, continued from
checkpoints. Each is killed (SIGKILL) and started again until it finishes by itself. Then it must be, bit for bit, what
an uninterrupted process left; what a killed one left must be the beginning of that, with nothing recorded twice.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.environment import holding, start_again

# No crippled peers; what is imported below reads such variables.
if __name__ == "__main__" and (names := holding()):
    start_again("benchmarks.kills", without=names)

import numpy as np
import zarr

from benchmarks.at_scale import decaying_features
from benchmarks.killing import BEGUN, run_child, until_finished
from benchmarks.machine import machine
from benchmarks.out_of_core import finished_tiles
from kernelgrowth.kernels import empirical_ntk
from kernelgrowth.nets import MLP
from kernelgrowth.tracking import History, NTKTracker, load_run
from kernelgrowth.training import optim, train

__all__ = ["main"]

_EXAMPLES = 1500
# Of a call: tiles of 100 examples, 120 of them.
_MEMORY_LIMIT = 800 * 2**10
_STEPS = 400


def compute_tiles(folder: Path) -> None:
    """Continue the kernel that a folder holds; a child's work."""
    features = decaying_features((300, 200, 1), _EXAMPLES)
    print(BEGUN, flush=True)
    empirical_ntk(
        features, out=_array(folder, "r+"), memory_limit=_MEMORY_LIMIT, progress=folder / "progress", resume=True
    )


def run_training(folder: Path) -> None:
    """Continue the tracked run that a folder holds; a child's work."""
    rng = np.random.default_rng(0)
    x, x_test = rng.standard_normal((60, 8)), rng.standard_normal((5, 8))
    y = np.sign(x @ rng.standard_normal(8))
    net = MLP(widths=[8, 20, 1], activation="relu", bias=True)
    print(BEGUN, flush=True)
    # Room for few kernels, so that they are dropped again and again.
    tracker = NTKTracker(x, y, every=3, top_k=3, x_test=x_test, kernel_budget=60_000, out=folder / "run")
    train(
        net,
        net.init(seed=2),
        (x, y),
        steps=_STEPS,
        optimizer=optim.Momentum(lr=0.02),
        batch_size=20,
        callbacks=[tracker],
        checkpoint=folder / "run" / "checkpoint.npz",
        checkpoint_every=7,
        resume=True,
    )


class Tiles:
    """Kernels in tiles: to a Zarr array where the number is even, to a memory-mapped file where it is odd."""

    child = "tiles"

    def __init__(self) -> None:
        self._listed: list[tuple[int, int]] = []

    def create(self, folder: Path, number: int) -> None:
        folder.mkdir()
        self._listed = []
        if number % 2 == 0:
            zarr.create_array(folder / "K.zarr", shape=(_EXAMPLES,) * 2, chunks=(50, 50), dtype="f4")
        else:
            np.lib.format.open_memmap(folder / "K.npy", "w+", np.float32, (_EXAMPLES,) * 2)

    def look(self, folder: Path, whole: Path) -> None:
        """Check that the tiles listed before are still listed, and none twice."""
        listed = finished_tiles(folder)
        assert listed[: len(self._listed)] == self._listed
        assert len(set(listed)) == len(listed)
        self._listed = listed

    def compare(self, folder: Path, whole: Path) -> None:
        assert np.asarray(_array(folder, "r")[:]).tobytes() == np.asarray(_array(whole, "r")[:]).tobytes()

    def describe(self, whole: Path) -> str:
        return f"kernels of {len(finished_tiles(whole))} tiles"


class Runs:
    """Tracked training runs."""

    child = "runs"

    def create(self, folder: Path, number: int) -> None:
        folder.mkdir()

    def look(self, folder: Path, whole: Path) -> None:
        """Check that what is recorded is what the whole run recorded first."""
        if not (folder / "run" / "zarr.json").exists():
            return
        got, expected = load_run(folder / "run"), load_run(whole / "run")
        count = len(got.steps)
        assert got.steps.tolist() == expected.steps[:count].tolist()
        # The distance to a kernel that is not yet there.
        for name in set(got) - {"seconds", "distance_to_final"}:
            np.testing.assert_array_equal(got[name], expected[name][:count], err_msg=name)

    def compare(self, folder: Path, whole: Path) -> None:
        got, expected = load_run(folder / "run"), load_run(whole / "run")
        assert got.status == expected.status == "completed"
        assert list(got) == list(expected)
        for name in set(expected) - {"seconds"}:
            np.testing.assert_array_equal(got[name], expected[name], err_msg=name)
        assert got.kernel_steps == expected.kernel_steps
        for step in expected.kernel_steps:
            np.testing.assert_array_equal(got.kernel(step), expected.kernel(step))
        for step in (expected.steps[0], expected.steps[-1]):
            for read in (History.predictions, History.test_predictions, History.test_kernel):
                np.testing.assert_array_equal(read(got, step), read(expected, step))

    def describe(self, whole: Path) -> str:
        return f"runs of {len(load_run(whole / 'run').steps)} tracked steps"


def _array(folder: Path, mode: Any) -> Any:
    if (folder / "K.npy").exists():
        return np.load(folder / "K.npy", mmap_mode=mode)
    return zarr.open_array(folder / "K.zarr", mode=mode)


def kill(work: Tiles | Runs, kills: int, folder: Path) -> None:
    """Kill so many processes that do `work`, check what they left and what became of it, and print the counts."""

    def arguments(place: Path) -> tuple[object, ...]:
        return ("--child", work.child, "--folder", place)

    whole = folder / work.child
    work.create(whole, 0)
    seconds = run_child("benchmarks.kills", *arguments(whole)).seconds
    rng = np.random.default_rng()

    def moments() -> Iterator[float]:
        # Late enough for whatever a process does, early enough that most of them are killed.
        while True:
            yield rng.uniform(0.0, 0.8 * seconds)

    killed, finished = 0, 0
    while killed < kills:
        place = folder / f"{work.child}-{finished}"
        work.create(place, finished)
        ended = until_finished(
            "benchmarks.kills",
            *arguments(place),
            moments=itertools.islice(moments(), kills - killed),
            look=functools.partial(work.look, place, whole),
        )
        if not ended[0].killed:
            seconds = min(seconds, ended[0].seconds)  # other work on the machine may have slowed the first one
        killed += len(ended) - 1
        finished += 1
        work.compare(place, whole)
        shutil.rmtree(place)
    print(
        f"{work.describe(whole)}, {seconds:.1f} s each: {killed} processes killed, {finished} finished, every one with"
        " the bits of an uninterrupted one; nothing recorded was lost or doubled",
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kills", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiles", type=int, default=0, help="kills of processes that compute kernels in tiles")
    parser.add_argument("--runs", type=int, default=0, help="kills of processes that train and track")
    parser.add_argument("--folder", type=Path, help="where a folder for the files is made")
    parser.add_argument("--child", choices=("tiles", "runs"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.child is not None:
        {"tiles": compute_tiles, "runs": run_training}[given.child](given.folder)
        return

    print(", ".join(f"{name} {value}" for name, value in machine().items()), flush=True)
    folder = Path(tempfile.mkdtemp(prefix="kernelgrowth-kills-", dir=given.folder))
    try:
        for work, kills in ((Tiles(), given.tiles), (Runs(), given.runs)):
            if kills:
                kill(work, kills, folder)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
