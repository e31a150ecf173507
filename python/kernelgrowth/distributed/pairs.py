"""A task for each pair of shards, one at a time on every worker, where one of the two shards is already."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from kernelgrowth._backend.errors import MemoryLimitError
from kernelgrowth._backend.memory import format_bytes
from kernelgrowth.distributed.cluster import Shared, WorkerLostError
from kernelgrowth.distributed.features import ShardedFeatures
from kernelgrowth.distributed.shards import lend

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
    room = feats.room
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
    feats: ShardedFeatures, pairs: Iterable[Pair], function: Callable[..., Any], settings: Shared, *args: Any
) -> Iterator[tuple[Pair, Any]]:
    """Yield each pair with `function(rows, columns, pair, checksums, settings, *args)`, as soon as it is finished.

    `rows` is the first shard and `columns` the second, None where it is the same. A worker takes pairs of which it
    holds a shard; the other one is sent there, and let go with the task: beside its own, a worker holds one shard.
    """
    run = _Run(feats, list(pairs), function, settings, args)
    with feats.cluster.cancelling(run.busy):
        while run.waiting or run.busy:
            try:
                run.begin()
                done = run.completed()
            except WorkerLostError:
                run.take_back()
            else:
                yield from done


@dataclass(frozen=True)
class _Task:
    """A pair under way, on a worker, and all workers that it cannot do without."""

    pair: Pair
    worker: str
    places: frozenset[str]


class _Run:
    def __init__(
        self,
        feats: ShardedFeatures,
        waiting: list[Pair],
        function: Callable[..., Any],
        settings: Shared,
        args: tuple[Any, ...],
    ) -> None:
        self._feats, self._function, self._settings, self._args = feats, function, settings, args
        self.waiting = waiting
        self.busy: dict[Any, _Task] = {}
        self._lent: dict[Pair, tuple[Any, str]] = {}
        self._homes: list[str] = []

    def begin(self) -> None:
        """Give every worker that has nothing to do one of its pairs."""
        homes = self._feats.placement()
        if homes != self._homes:
            self._homes = homes
            self._lend()
        for worker in sorted(set(homes) - {task.worker for task in self.busy.values()}):
            if (pair := self._next(worker)) is not None:
                future, task = self._submitted(pair, worker)
                self.busy[future] = task
                self.waiting.remove(pair)

    def completed(self) -> list[tuple[Pair, Any]]:
        """Wait for one pair at least, and return those that are finished."""
        futures = self._feats.cluster.completed(list(self.busy), self._places(self.busy), first=True)
        results = self._feats.cluster.results(futures, self._places(futures))
        return [(self.busy.pop(future).pair, result) for future, result in zip(futures, results, strict=True)]

    def take_back(self) -> None:
        """Let pairs wait again that cannot be finished where they are."""
        workers = set(self._feats.cluster.workers_waited_for())
        for future in [future for future, task in self.busy.items() if not task.places <= workers]:
            self.waiting.insert(0, self.busy.pop(future).pair)
            self._feats.cluster.cancel([future])

    def _places(self, futures: Iterable[Any]) -> set[str]:
        return {place for future in futures for place in self.busy[future].places}

    def _lend(self) -> None:
        """Have shards ready to be sent before their workers are busy, since these do one thing at a time."""
        for i, j in self.waiting:
            guest = _guest((i, j))
            if self._homes[i] != self._homes[j] and self._lent.get((i, j), ("", ""))[1] != self._homes[guest]:
                self._lent[i, j] = self._loan(guest)

    def _loan(self, s: int) -> tuple[Any, str]:
        # What is lent for a pair is forgotten with it, where a shard that was fetched would stay.
        home = self._homes[s]
        return self._feats.cluster.submit(lend, self._feats.shards[s], worker=home), home

    def _next(self, worker: str) -> Pair | None:
        """Return a pair for a worker: one whose other shard is ready to be sent, else any with a shard of its own."""
        homes = self._homes
        staying = (pair for pair in self.waiting if homes[sum(pair) - _guest(pair)] == worker)
        own = (pair for pair in self.waiting if worker in (homes[pair[0]], homes[pair[1]]))
        return next(staying, None) or next(own, None)

    def _submitted(self, pair: Pair, worker: str) -> tuple[Any, _Task]:
        ready = self._lent.pop(pair, None)
        sides, places = [], {worker}
        for s in pair:
            shard, home = self._feats.shards[s], worker
            if self._homes[s] != worker:
                shard, home = ready if ready is not None and s == _guest(pair) else self._loan(s)
            sides.append(shard)
            places.add(home)
        columns = sides[1] if pair[0] != pair[1] else None
        checksums = tuple(self._feats.facts[s].checksum for s in pair)
        settings = self._settings.among(self._homes)
        places.add(self._settings.home)
        future = self._feats.cluster.submit(
            self._function, sides[0], columns, pair, checksums, settings, *self._args, worker=worker
        )
        return future, _Task(pair, worker, frozenset(places))


def _guest(pair: Pair) -> int:
    """Return the shard of a pair that is sent: of all pairs, each shard is about as often the one that stays."""
    return pair[1] if (pair[1] - pair[0]) % 2 == 0 else pair[0]
