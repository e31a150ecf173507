"""The kernel of sharded features as an array on disk, written by the workers, one pair of shards at a time."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from kernelgrowth._backend.checks import check_choice
from kernelgrowth._backend.memory import resolve_memory_limit
from kernelgrowth.distributed.cluster import Shared
from kernelgrowth.distributed.features import ShardedFeatures
from kernelgrowth.distributed.pairs import Pair, all_pairs, pair_memory, run_pairs
from kernelgrowth.distributed.shards import Settings, Shard, on_threads, prepared
from kernelgrowth.distributed.window import Window, edge_checksum
from kernelgrowth.gradients.identity import array_checksum
from kernelgrowth.kernels.lowering import OUTPUTS
from kernelgrowth.kernels.outputs import check_out, progress_file, result_shape
from kernelgrowth.kernels.progress import Progress
from kernelgrowth.kernels.tile_grid import write_unit
from kernelgrowth.kernels.tiles import TiledKernel

__all__ = ["empirical_ntk"]


def empirical_ntk(
    feats: ShardedFeatures,
    *,
    out: Any,
    outputs: str = "full",
    preconditioner: Mapping[str, Any] | None = None,
    memory_limit: int | None = None,
    resume: bool = False,
    progress: str | os.PathLike[str] | None = None,
) -> Any:
    """Write the empirical neural tangent kernel of sharded features to a Zarr array that all workers can open.

    Parameters
    ----------
    feats : ShardedFeatures
        N examples, C outputs, on the workers' hosts (not on their GPUs).
    out : zarr.Array
        Of the shape that `kernels.empirical_ntk` gives and the features' dtype, in a store that is the same one for the
        client and for every worker: a folder that they share, or an object store. Its chunks (or its Zarr shards) along
        the examples must divide the first example of every shard.
    outputs, preconditioner
        As in `kernels.empirical_ntk`.
    memory_limit : int, optional
        Bytes that a worker may take beside its shards and one more; by default what these leave of 60 % of its limit.
    resume : bool
        Leave out the pairs of shards that are finished according to `progress`, if that file exists and `out` still
        holds them.
    progress : path-like, optional
        A small file of the client's that lists the finished pairs of shards, each after it was written.

    Returns
    -------
    zarr.Array
        `out`.

    Raises
    ------
    TypeError, ValueError
        If an argument is unusable; the message names it. Also if the kernel leaves the range of its dtype, or
        `progress` belongs to other features, parameters or settings.
    MemoryLimitError
        If a worker has no room for another shard, or the smallest tile does not fit beside it.
    RunFolderError
        If another process holds the progress file.
    BackendError
        If the features are on GPUs.

    Notes
    -----
    Each pair of shards is one task, on a worker that holds one of them; the other one is sent there, so S(S - 1)/2
    shards move at most, and none is where S = 1. The task writes its block of the kernel in tiles, and their mirrors,
    as `kernels.empirical_ntk` does, with the same bits. A worker has one such task at a time. What a killed worker or
    client loses are the blocks under way.

    A client that is killed leaves the tasks that are under way running; let them end, or restart the workers, before
    another kernel is written to the same array.
    """
    if not isinstance(feats, ShardedFeatures):
        raise TypeError(f"feats must be ShardedFeatures, got {type(feats).__name__}")
    check_choice("outputs", outputs, OUTPUTS)
    shape = result_shape(feats, None, outputs)  # type: ignore[arg-type]
    _check_shared(out)
    check_out(out, shape, feats.head, None)
    unit = _check_aligned(out, shape, feats)
    settings = feats.settings(outputs, preconditioner)
    limit = pair_memory(feats) if memory_limit is None else resolve_memory_limit(memory_limit)
    file = progress_file(out, progress, resume)
    with ExitStack() as stack:
        record, done = None, set[Pair]()
        if file is not None:
            record = stack.enter_context(Progress(file))
            header = _header(feats, settings, shape, unit)
            if resume and record.header is not None:
                record.check(header)
                record.resume()
                done = _confirmed(out, shape, feats, record.done)
            else:
                record.begin(header)
        pairs = [pair for pair in all_pairs(feats.num_shards) if pair not in done]
        shared = Shared(feats.cluster, settings)
        for pair, value in run_pairs(feats, pairs, _write, shared, out, feats.bounds, limit):
            if record is not None:
                record.add(pair, value)
        if record is not None:
            record.complete()
    return out


def _check_shared(out: Any) -> None:
    if not hasattr(out, "store"):
        raise TypeError(f"out must be a Zarr array, which every worker can open, got {type(out).__name__}")
    if type(out.store).__name__ in ("MemoryStore", "GpuMemoryStore", "ManagedMemoryStore"):
        raise ValueError("out is a Zarr array in this process' memory, which the workers cannot write to: give a path")


def _check_aligned(out: Any, shape: tuple[int, ...], feats: ShardedFeatures) -> int:
    unit = write_unit(out, shape)
    begins = [begin for begin, _ in feats.bounds]
    if any(begin % unit for begin in begins):
        fitting = math.gcd(*begins)
        raise ValueError(
            f"out is stored in chunks of {unit} examples, but shards begin at {_listed(begins)}, and two workers must "
            f"not write to one chunk: choose chunks that divide {fitting}, or parts of a multiple of {unit} examples"
        )
    return unit


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers)) if len(numbers) <= 8 else f"{', '.join(map(str, numbers[:7]))}, ..."


def _header(feats: ShardedFeatures, settings: Settings, shape: tuple[int, ...], unit: int) -> dict[str, Any]:
    value = 0
    for name in sorted(settings.weights):
        for array in settings.weights[name]:
            value = array_checksum(array, value)
    return {
        "shape": list(shape),
        "dtype": str(feats.dtype),
        "outputs": settings.outputs,
        "symmetric": True,
        "unit": unit,
        "shards": list(feats.counts),
        "features": [facts.checksum for facts in feats.facts],
        "blocks": feats.layout,
        "preconditioner": value if settings.weights else None,
    }


def _confirmed(out: Any, shape: tuple[int, ...], feats: ShardedFeatures, done: Mapping[Pair, int]) -> set[Pair]:
    """Return the pairs that are finished and that `out` still holds, by the entries that were summed up."""
    bounds = feats.bounds
    confirmed = {
        (i, j)
        for (i, j), value in done.items()
        if i <= j < len(bounds) and edge_checksum(out, shape, bounds[i], bounds[j]) == value
    }
    if lost := len(done) - len(confirmed):
        warnings.warn(
            f"out does not hold {lost} of the {len(done)} blocks that its progress file lists (was it created anew?): "
            "they are computed again",
            RuntimeWarning,
            stacklevel=3,
        )
    return confirmed


def _write(
    rows: Shard,
    columns: Shard | None,
    pair: Pair,
    checksums: Pair,
    settings: Settings,
    out: Any,
    bounds: list[tuple[int, int]],
    limit: int | None,
) -> int:
    """Write the kernel of two shards, and its mirror, to their places; return a checksum of its edges."""
    first = prepared(rows, settings, checksums[0])
    second = None if columns is None else prepared(columns, settings, checksums[1])
    shape = result_shape(first, second, settings.outputs)
    window = Window(out, shape, bounds[pair[0]], bounds[pair[1]])
    whole = bounds[-1][1]
    with on_threads(settings.num_threads):
        tiled = TiledKernel(
            first,
            second,
            settings.outputs,
            settings.weights or None,
            shape,
            memory_limit=resolve_memory_limit(limit),
            threads=settings.num_threads,
            precision="",
            examples=(whole, whole),
        )
        tiled.fill(window, progress=None, resume=False)
    return window.edge_checksum()
