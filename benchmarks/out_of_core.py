"""`python -m benchmarks.out_of_core`: a kernel written to a Zarr array tile by tile, in little memory, killed, resumed.

The kernel of 20,000 examples of an MLP 784-500-500-1, 1.6 GB, by processes whose peak memory is measured: two are
killed at random moments, the third finishes, and a further one compares every chunk with the kernel made in memory.
Then the time of the call against that of the call in memory, in one process and in turn, for a few ways to store.
It takes about 4 GB of disk and 2.5 GiB of memory for the kernel in memory.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
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
    start_again("benchmarks.out_of_core", without=names)

import numpy as np
import zarr
from zarr.codecs import BloscCodec

from benchmarks.at_scale import decaying_features
from benchmarks.killing import BEGUN, Ended, run_child, until_finished
from benchmarks.machine import machine
from kernelgrowth.kernels import empirical_ntk

__all__ = ["main"]

MEMORY_LIMIT = 2**30

# What compresses the chunks of a Zarr array.
STORED: dict[str, dict[str, Any]] = {
    "Zarr's default, Zstandard": {},
    "Blosc with LZ4 and shuffled bits": {"compressors": BloscCodec(cname="lz4", shuffle="bitshuffle")},
    "uncompressed": {"compressors": None},
}
_CHUNK = 1000


def create(path: Path, n: int, **how: Any) -> Any:
    """Return a new Zarr array for the kernel, in place of what lies at the path."""
    shutil.rmtree(path, ignore_errors=True)
    return zarr.create_array(path, shape=(n, n), chunks=(min(n, _CHUNK),) * 2, dtype="f4", **how)


def write(folder: Path, n: int, widths: Sequence[int]) -> None:
    """Compute what is missing; a child's work."""
    features = decaying_features(widths, n)
    print(BEGUN, flush=True)
    out = zarr.open_array(folder / "K.zarr", mode="r+")
    empirical_ntk(features, out=out, memory_limit=MEMORY_LIMIT, progress=folder / "progress", resume=True)


def compare(folder: Path, n: int, widths: Sequence[int]) -> None:
    """Count chunks whose bits are not those of the kernel in memory; a child's work."""
    print(BEGUN, flush=True)
    kernel = empirical_ntk(decaying_features(widths, n))
    stored = zarr.open_array(folder / "K.zarr", mode="r")
    height, width = stored.chunks
    places = [(slice(i, i + height), slice(j, j + width)) for i in range(0, n, height) for j in range(0, n, width)]
    same = [np.asarray(stored[place]).tobytes() == kernel[place].tobytes() for place in places]
    print(json.dumps([len(same), same.count(False)]))


def finished_tiles(folder: Path) -> list[tuple[int, int]]:
    """Return the tiles that a progress file lists, in the order in which they were written."""
    path = folder / "progress"
    lines = path.read_text().splitlines(keepends=True)[1:] if path.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return [tuple(record["tile"]) for record in records if "tile" in record]


def killed_and_resumed(folder: Path, n: int, widths: Sequence[int], kills: int) -> None:
    """Compute once as a whole, then killed and resumed, and print what that took."""
    arguments = ("--folder", folder, "--examples", n, "--widths", *widths)
    create(folder / "K.zarr", n)
    whole = run_child("benchmarks.out_of_core", "--child", "write", *arguments)
    tiles = len(finished_tiles(folder))
    _print_child("uninterrupted", whole, tiles)

    create(folder / "K.zarr", n)
    (folder / "progress").unlink()
    # So early that even the last of them is still computing.
    moments = np.random.default_rng().uniform(0.0, 0.8 / max(kills, 1), kills) * whole.seconds
    after: list[list[tuple[int, int]]] = []
    children = until_finished(
        "benchmarks.out_of_core",
        "--child",
        "write",
        *arguments,
        moments=moments.tolist(),
        look=lambda: after.append(finished_tiles(folder)),
    )
    for child, listed in zip(children, after, strict=True):
        _print_child("killed" if child.killed else "finished", child, len(listed))
    for earlier, later in itertools.pairwise(after):
        assert later[: len(earlier)] == earlier
    assert len(set(after[-1])) == len(after[-1]) == tiles
    direct = run_child("benchmarks.out_of_core", "--child", "compare", *arguments)
    chunks, different = json.loads(direct.printed)
    print(
        f"  {chunks} chunks compared with the kernel in memory ({direct.peak_bytes / 2**30:.2f} GiB):"
        f" {different} of them differ; no tile was computed twice",
        flush=True,
    )
    assert different == 0


def _print_child(name: str, child: Ended, tiles: int) -> None:
    print(
        f"  {name} after {child.seconds:.1f} s, {tiles} tiles finished, peak memory {child.peak_bytes / 2**30:.2f} GiB",
        flush=True,
    )


def throughput(folder: Path, n: int, widths: Sequence[int], repeats: int) -> None:
    """Print the time in memory and its ratio to the time of each way to store, call after call in one process."""
    features = decaying_features(widths, n)
    empirical_ntk(features.examples(0, min(n, 2000)))  # threads and clocks are up
    seconds: dict[str, list[float]] = {name: [] for name in ("memory", *STORED)}
    for turn in range(repeats):
        order = list(seconds) if turn % 2 == 0 else list(reversed(seconds))
        for name in order:
            if name == "memory":
                start = time.perf_counter()
                empirical_ntk(features)
            else:
                out = create(folder / "K.zarr", n, **STORED[name])
                start = time.perf_counter()
                empirical_ntk(features, out=out, memory_limit=MEMORY_LIMIT, progress=folder / "progress")
            seconds[name].append(time.perf_counter() - start)
    print(f"in memory {statistics.median(seconds['memory']):.2f} s; load {os.getloadavg()[0]:.1f}")
    for name in STORED:
        ratios = [memory / tiled for memory, tiled in zip(seconds["memory"], seconds[name], strict=True)]
        print(
            f"  Zarr, chunks of {_CHUNK}, {name}:"
            f" {statistics.median(seconds[name]):.2f} s, {statistics.median(ratios):.0%} of the"
            f" throughput in memory (from {min(ratios):.0%} to {max(ratios):.0%}; the shortest times"
            f" {min(seconds['memory']) / min(seconds[name]):.0%})",
            flush=True,
        )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.out_of_core",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--examples", type=int, default=20_000)
    parser.add_argument("--widths", type=int, nargs="+", default=[784, 500, 500, 1])
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where a folder for the arrays is made")
    parser.add_argument("--child", choices=("write", "compare"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.child is not None:
        {"write": write, "compare": compare}[given.child](given.folder, given.examples, given.widths)
        return

    print(", ".join(f"{name} {value}" for name, value in machine().items()), flush=True)
    network = f"MLP {'-'.join(map(str, given.widths))}, N = {given.examples}"
    print(f"{network}, memory_limit {MEMORY_LIMIT / 2**30:.2f} GiB", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="kernelgrowth-out-of-core-", dir=given.folder))
    try:
        killed_and_resumed(folder, given.examples, given.widths, given.kills)
        throughput(folder, given.examples, given.widths, given.repeats)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
