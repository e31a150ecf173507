"""A product with the kernel as tasks: a sum of gradients over all shards, and back to every one of them.

The sum is a binary tree over the shards in order, always the same one, whatever worker holds them: so are its bits.
Subtrees that lie on one worker are one task; of others the right half moves to the worker of the left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kernelgrowth._backend.arrays import FloatArray
from kernelgrowth.distributed.cluster import Cluster, Shared, hold
from kernelgrowth.distributed.halves import images, precondition, sum_gradients
from kernelgrowth.distributed.shards import Settings, Shard, prepared
from kernelgrowth.gradients.features import GradientFeatures

__all__ = ["Sweeps", "moved_sums", "split"]


def split(begin: int, end: int) -> int:
    """Return where a range of shards is divided: the left half is the largest power of two that leaves a right one."""
    return begin + (1 << (end - begin - 1).bit_length() - 1)


def moved_sums(placement: Sequence[str]) -> tuple[int, int]:
    """Return how many sums move between workers on the way up, and on the way down."""

    def up(begin: int, end: int) -> int:
        if len(set(placement[begin:end])) == 1:
            return 0
        middle = split(begin, end)
        return up(begin, middle) + up(middle, end) + (placement[begin] != placement[middle])

    return up(0, len(placement)), len(set(placement)) - 1


class Sweeps:
    """The tasks of one product after another.

    Parameters
    ----------
    cluster : Cluster
    shards : sequence of Future
    checksums : sequence of int
    settings : Shared
    """

    def __init__(self, cluster: Cluster, shards: Sequence[Any], checksums: Sequence[int], settings: Shared) -> None:
        self._cluster, self._shards, self._checksums, self._shared = cluster, shards, checksums, settings

    def product(
        self, vectors: Sequence[FloatArray], placement: Sequence[str], head: GradientFeatures | None
    ) -> list[FloatArray]:
        """Return each shard's rows of K V.

        Parameters
        ----------
        vectors : sequence of ndarray
            Each shard's rows of V.
        placement : sequence of str
            The worker of each shard.
        head : GradientFeatures or None
            One example where there is a preconditioner.

        Raises
        ------
        WorkerLostError
            If one of the workers is gone.
        """
        tasks: list[Any] = []
        self._settings = self._shared.among(placement)
        with self._cluster.cancelling(tasks):
            total = self._sum(0, len(vectors), vectors, placement, tasks)
            if head is not None:
                total = self._task(tasks, placement[0], precondition, total, head, self._settings)
            at_home = self._spread(total, placement, tasks)
            found, order = [], []
            for home in dict.fromkeys(placement):
                these = [s for s, at in enumerate(placement) if at == home]
                shards, checksums = [self._shards[s] for s in these], [self._checksums[s] for s in these]
                found.append(self._task(tasks, home, _images, shards, checksums, at_home[home], self._settings))
                order += these
            parts = [part for parts in self._cluster.results(found, placement) for part in parts]
            return [parts[order.index(s)] for s in range(len(parts))]

    def _sum(
        self, begin: int, end: int, vectors: Sequence[FloatArray], placement: Sequence[str], tasks: list[Any]
    ) -> Any:
        home = placement[begin]
        if len(set(placement[begin:end])) == 1:
            these = slice(begin, end)
            arguments = list(self._shards[these]), list(self._checksums[these]), list(vectors[these])
            return self._task(tasks, home, _sum_of_shards, *arguments, self._settings)
        middle = split(begin, end)
        halves = (self._sum(*part, vectors, placement, tasks) for part in ((begin, middle), (middle, end)))
        return self._task(tasks, home, _add, *halves)

    def _spread(self, total: Any, placement: Sequence[str], tasks: list[Any]) -> dict[str, Any]:
        """Return by worker a copy of the sum that lies there; every worker hands it to two others at most."""
        homes = list(dict.fromkeys(placement))
        copies = [total]
        for number, home in enumerate(homes[1:], start=1):
            copies.append(self._task(tasks, home, hold, copies[(number - 1) // 2]))
        return dict(zip(homes, copies, strict=True))

    def _task(self, tasks: list[Any], worker: str, function: Any, *args: Any) -> Any:
        tasks.append(self._cluster.submit(function, *args, worker=worker))
        return tasks[-1]


def _sum_of_shards(
    shards: Sequence[Shard], checksums: Sequence[int], vectors: Sequence[FloatArray], settings: Settings
) -> FloatArray:
    """Return a subtree's sum of gradients."""
    if len(shards) == 1:
        return sum_gradients(prepared(shards[0], settings, checksums[0]), vectors[0], settings)
    middle = split(0, len(shards))
    left = _sum_of_shards(shards[:middle], checksums[:middle], vectors[:middle], settings)
    left += _sum_of_shards(shards[middle:], checksums[middle:], vectors[middle:], settings)
    return left


def _add(left: FloatArray, right: FloatArray) -> FloatArray:
    with np.errstate(over="ignore", invalid="ignore"):
        return left + right


def _images(
    shards: Sequence[Shard], checksums: Sequence[int], total: FloatArray, settings: Settings
) -> list[FloatArray]:
    return [
        images(prepared(shard, settings, checksum), total, settings)
        for shard, checksum in zip(shards, checksums, strict=True)
    ]
