"""A task for each pair of shards, one at a time on every worker, where one of the two shards is already."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from kernelgrowth._backend.errors import MemoryLimitError
from kernelgrowth._backend.memory import format_bytes
from kernelgrowth.distributed.cluster import hold
from kernelgrowth.distributed.features import ShardedFeatures

__all__ = ["Pair", "all_pairs", "pair_memory", "run_pairs"]

Pair = tuple[int, int]


def all_pairs(shards: int) -> list[Pair]:
    """Return every pair of shards once, near ones first, so that all workers find some of their own."""
    return [(i, i + apart) for apart in range(shards) for i in range(shards - apart)]


def pair_memory(feats: ShardedFeatures) -> int | None:
    """Return the bytes that are left on every worker beside its shards and another one; None where no limit is known.

    Raises
    ------
    MemoryLimitError
        If there are none.
    """
    room = feats.room(feats.placement())
    if room is None:
        return None
    guest = max(facts.nbytes for facts in feats.facts) if feats.num_shards > 1 else 0
    if room <= guest:
        raise MemoryLimitError(
            f"a worker has {format_bytes(max(room, 0))} left beside its own shards (of 60 % of its memory limit), but "
            f"another shard takes {format_bytes(guest)}: take smaller shards on more workers, or more memory",
            needed=guest + 1,
            limit=max(room, 0),
        )
    return room - guest


def run_pairs(
    feats: ShardedFeatures, pairs: Iterable[Pair], function: Callable[..., Any], *args: Any
) -> Iterator[tuple[Pair, Any]]:
    """Yield each pair with `function(rows, columns, pair, checksums, *args)`, in the order in which they are finished.

    `rows` is the first shard and `columns` the second, None where it is the same. A worker takes pairs of which it
    holds a shard; the other one is sent there, and let go with the task: beside its own, a worker holds one shard.
    """
    waiting = list(pairs)
    cluster, shards = feats.cluster, feats.shards
    busy: dict[Any, tuple[Pair, str]] = {}
    tasks: list[Any] = []
    with cluster.cancelling(tasks):
        while waiting or busy:
            homes = feats.placement()
            for worker in sorted(set(homes) - {worker for _, worker in busy.values()}):
                pair = next((pair for pair in waiting if worker in (homes[pair[0]], homes[pair[1]])), None)
                if pair is None:
                    continue
                waiting.remove(pair)
                # A copy of its own is forgotten with the task, where a shard that was fetched would stay.
                sides = [
                    shards[s] if homes[s] == worker else cluster.submit(hold, shards[s], worker=homes[s]) for s in pair
                ]
                checksums = tuple(feats.facts[s].checksum for s in pair)
                columns = sides[1] if pair[0] != pair[1] else None
                task = cluster.submit(function, sides[0], columns, pair, checksums, *args, worker=worker)
                busy[task] = (pair, worker)
                tasks.append(task)
            for task in cluster.first_completed(list(busy)):
                pair, _ = busy.pop(task)
                tasks.remove(task)
                yield pair, cluster.result(task)
