"""Gradient features divided by examples among the workers of a Dask cluster, where they are produced and stay."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from kernelgrowth._backend.checks import check_integer
from kernelgrowth._backend.errors import MemoryLimitError
from kernelgrowth._backend.memory import format_bytes
from kernelgrowth.distributed.cluster import Cluster, WorkerLostError
from kernelgrowth.distributed.shards import Settings, ShardFacts, describe, first_example, produce
from kernelgrowth.gradients.features import GradientFeatures
from kernelgrowth.gradients.parameters import parameter_arrays
from kernelgrowth.kernels.lowering import check_preconditioner

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["ShardedFeatures"]

_Result = TypeVar("_Result")


class ShardedFeatures:
    """All gradients ∂f/∂θ of a probe set, one part of its examples on each worker: never gathered.

    Parameters
    ----------
    client : distributed.Client
        Of a running cluster, and not asynchronous.
    make : callable
        `make(part)` returns the `GradientFeatures` of one part of the examples, on a worker: a function that loads
        its part of the data and takes the gradients there. It is sent to the workers once a part, by cloudpickle, and
        must repeat itself to the bit, because a shard that is lost with its worker is made again.
    parts : iterable
        One argument of `make` for each shard, in the order of the probe set. As many as there are workers is best; more
        of them, in multiples of that by a power of two, where a worker dies now and then or more may join.
    num_threads : int
        Threads of a task on its worker. Where each machine has one worker: its processors.
    retries : int
        How often `make` is called again for a part for which it failed, such as by a file system that is away.

    Attributes
    ----------
    num_examples, num_outputs, num_parameters, num_shards : int
    dtype : numpy.dtype
    counts : tuple of int
        Examples of each shard.
    nbytes : int
        Of all features.
    layout : list
        What every shard is like: the name, kind, shapes, bias, scale and dtype of each block.
    room : int or None
        Bytes that the shards leave of 60 % of every worker's memory limit, as they were placed at first; None where no
        worker has a limit. What a worker holds beyond it, once others have died, Dask keeps on its disk.

    Raises
    ------
    TypeError
        If `client` is asynchronous or none, `make` cannot be called, or it returns anything but `GradientFeatures`.
    ValueError
        If there is no part, or a shard has other blocks, outputs or shapes than the first; the message names the part.
        What `make` raises is raised as it is, with a note that names the part.
    MemoryLimitError
        If the shards of a worker would take more than 60 % of its memory limit, at which Dask begins to move them to
        disk. It is known once the first one is made.
    BackendError
        If the cluster has no workers, or if they die one after another, as of a part that takes too much memory.

    Notes
    -----
    Shards lie on the workers in order, neighbours together. The client learns their shapes, checksums and the indices
    that occur in an `Embedding`, and gets the first example to check arguments by. When a worker dies, its shards are
    made again on those that hold fewest, and when one joins, the next product or kernel gives it its share, made again
    there. A shard that then has other numbers is refused.

    Examples
    --------
    >>> feats = ShardedFeatures(client, functools.partial(gradients_of, "model.pt"), [(0, 5000), (5000, 10000)])
    >>> eigsh(ShardedOperator(feats, outputs="trace"), 20)
    """

    def __init__(
        self,
        client: Client,
        make: Callable[[Any], GradientFeatures],
        parts: Iterable[Any],
        *,
        num_threads: int = 1,
        retries: int = 0,
    ) -> None:
        if not callable(make):
            raise TypeError(f"make must be callable with a part, got {type(make).__name__}")
        self.num_threads = check_integer("num_threads", num_threads, minimum=1)
        retries = check_integer("retries", retries, minimum=0)
        self.parts = list(parts)
        if not self.parts:
            raise ValueError("parts must name at least one part of the examples, got none")
        self.num_shards = len(self.parts)
        self._make, self._retries = make, retries
        self.cluster = Cluster(client)
        self._workers = self.cluster.workers()
        count = len(self._workers)
        self._homes = [self._workers[s * count // self.num_shards] for s in range(self.num_shards)]
        self._shards = [self._produced(s) for s in range(self.num_shards)]
        with self.cluster.cancelling(self._shards):
            self.facts: list[ShardFacts] = self._learn()
            self.head: GradientFeatures = self._first_example()
        self.counts = tuple(facts.num_examples for facts in self.facts)
        self.num_examples = sum(self.counts)
        self.num_outputs = self.head.num_outputs
        self.num_parameters = self.head.num_parameters
        self.dtype: np.dtype[Any] = self.head.dtype
        self.layout = self.facts[0].layout
        self.nbytes = sum(facts.nbytes for facts in self.facts)
        self.room = self._room()

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """The first example of each shard and the first after it."""
        return list(itertools.pairwise((0, *itertools.accumulate(self.counts))))

    @property
    def occurring(self) -> Mapping[str, npt.NDArray[np.int64]]:
        """By `Embedding`, the indices that occur in any shard, in order."""
        return {
            name: np.unique(np.concatenate([facts.occurring[name] for facts in self.facts]))
            for name in self.facts[0].occurring
        }

    @property
    def shards(self) -> list[Any]:
        """The futures of the shards, where `placement` said last."""
        return self._shards

    def settings(self, outputs: str, preconditioner: Mapping[str, Any] | None) -> Settings:
        """Return what tasks have to know, with the preconditioner checked."""
        weights = {}
        if preconditioner is not None:
            check_preconditioner(self.head, preconditioner)
            weights = parameter_arrays("preconditioner", self.head, preconditioner)
        return Settings(outputs, weights, self.occurring, self.num_threads)

    def placement(self) -> list[str]:
        """Return the worker on which each shard is, once all that were lost have been made again.

        When workers came or went, shards of those that have too many are made again on others.
        """
        self._locate()
        if (workers := self.cluster.workers_waited_for()) != self._workers:
            self._workers = workers
            self._balance()
            self._locate()
        return list(self._homes)

    def attempt(self, work: Callable[[list[str]], _Result]) -> _Result:
        """Return `work(placement)`, which begins again whenever it finds that a worker is gone."""
        while True:
            try:
                return work(self.placement())
            except WorkerLostError:
                continue

    def _locate(self) -> None:
        """Wait for all shards, and make those again that are gone with their workers."""
        while True:
            try:
                holders = self.cluster.holders(self._shards, self._homes)
            except WorkerLostError:
                self._replace()
                continue
            if all(holders) or self._failed():
                break
            self._replace()
        self._homes = [home if home in at or not at else at[0] for home, at in zip(self._homes, holders, strict=True)]

    def _failed(self) -> bool:
        """Whether a shard could not be made again; whatever needs it raises what `make` raised."""
        return any(shard.status == "error" for shard in self._shards)

    def _replace(self) -> list[int]:
        """Make shards again whose workers are gone, where there are fewest, and return which."""
        workers = self.cluster.workers_waited_for()
        lost = [s for s, home in enumerate(self._homes) if home not in workers]
        for s in lost:
            self._homes[s] = min(workers, key=self._homes.count)
            self._shards[s] = self._produced(s)
        return lost

    def _balance(self) -> None:
        """Make shards again on other workers until none has two more than another."""
        shards = {worker: [s for s, home in enumerate(self._homes) if home == worker] for worker in self._workers}
        while True:
            most, least = (choose(self._workers, key=lambda worker: len(shards[worker])) for choose in (max, min))
            if len(shards[most]) - len(shards[least]) < 2:
                return
            s = shards[most].pop()
            shards[least].append(s)
            self._homes[s] = least
            self._shards[s] = self._produced(s)

    def _produced(self, s: int) -> Any:
        return self.cluster.submit(
            produce, self._make, self.parts[s], self.num_threads, worker=self._homes[s], retries=self._retries
        )

    def _room(self) -> int | None:
        limits = self.cluster.memory_limits()
        held = dict.fromkeys(self._homes, 0)
        for home, facts in zip(self._homes, self.facts, strict=True):
            held[home] += facts.nbytes
        return min((limits[home] - count for home, count in held.items() if home in limits), default=None)

    def _learn(self) -> list[ShardFacts]:
        """Wait for all shards, of which the first to fail ends the waiting."""
        found: dict[int, ShardFacts] = {}
        waiting = {self._described(s): s for s in range(self.num_shards)}
        while waiting:
            try:
                done = self.cluster.completed(list(waiting), self._homes, first=True)
                for future in done:
                    s = waiting[future]
                    facts = self._checked(s, future, found)
                    del waiting[future]
                    found[s] = facts
            except WorkerLostError:
                lost = self._replace()
                waiting = {future: s for future, s in waiting.items() if s not in lost}
                waiting |= {self._described(s): s for s in lost if s not in found}
        return [found[s] for s in range(self.num_shards)]

    def _described(self, s: int) -> Any:
        return self.cluster.submit(describe, self._shards[s], worker=self._homes[s], first=True)

    def _checked(self, s: int, described: Any, found: Mapping[int, ShardFacts]) -> ShardFacts:
        try:
            facts: ShardFacts = self.cluster.results([described], [self._homes[s]])[0]
        except WorkerLostError:
            raise
        except Exception as error:
            error.add_note(f"This was shard {s} of {self.num_shards}, made of the part {self.parts[s]!r}.")
            raise
        if not found:
            self._check_memory(s, facts)
        other = min(found, default=s)
        self._check_alike(s, facts, other, found.get(other, facts))
        return facts

    def _first_example(self) -> GradientFeatures:
        def work(homes: list[str]) -> GradientFeatures:
            task = self.cluster.submit(first_example, self._shards[0], worker=homes[0])
            head: GradientFeatures = self.cluster.results([task], homes[:1])[0]
            return head

        return self.attempt(work)

    def _check_alike(self, s: int, facts: ShardFacts, other: int, known: ShardFacts) -> None:
        if facts.layout == known.layout:
            return
        unlike = next(pair for pair in itertools.zip_longest(facts.layout, known.layout) if pair[0] != pair[1])
        raise ValueError(
            f"make({self.parts[s]!r}), shard {s}, returned the block {unlike[0]}, but make({self.parts[other]!r}), "
            f"shard {other}, {unlike[1]}"
        )

    def _check_memory(self, s: int, facts: ShardFacts) -> None:
        """Refuse what cannot be held, taking all shards to be like this one."""
        limits = self.cluster.memory_limits()
        for home in sorted(set(self._homes) & set(limits)):
            shards = self._homes.count(home)
            if shards * facts.nbytes > limits[home]:
                raise MemoryLimitError(
                    f"shard {s}, made of the part {self.parts[s]!r}, takes {format_bytes(facts.nbytes)}, and a worker "
                    f"would hold {shards} such shard(s) in the {format_bytes(limits[home])} that are 60 % of its "
                    "memory limit: take more workers, or give them more memory",
                    needed=shards * facts.nbytes,
                    limit=limits[home],
                )

    def __repr__(self) -> str:
        return (
            f"ShardedFeatures(N={self.num_examples}, C={self.num_outputs}, P={self.num_parameters}, "
            f"{self.num_shards} shards, {self.dtype}): {[block[0] for block in self.layout]}"
        )
