"""Which examples a step trains on."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kernelgrowth._backend.arrays import array_namespace

__all__ = ["Batches"]


class Batches:
    """Full-batch training, or minibatches that visit every example once in each epoch.

    The order of epoch e is a permutation drawn from ``default_rng([seed, e])``, so any step's batch follows from the
    step alone and a resumed run needs no generator state. The last batch of an epoch may be smaller.

    Parameters
    ----------
    x, y : array
        Inputs and targets, N rows each.
    batch_size : int or None
        Examples in a batch; None takes all of them, in their own order.
    seed : int
        At least 0.
    """

    def __init__(self, x: Any, y: Any, batch_size: int | None, seed: int) -> None:
        self._x = x
        self._y = y
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = -1
        self._order: npt.NDArray[np.int64] = np.empty(0, np.int64)

    def at(self, step: int) -> tuple[Any, Any]:
        """Return inputs and targets of the batch of that step."""
        if self._batch_size is None:
            return self._x, self._y
        epoch, index = divmod(step, -(-len(self._x) // self._batch_size))
        if epoch != self._epoch:
            self._order = np.random.default_rng([self._seed, epoch]).permutation(len(self._x))
            self._epoch = epoch
        chosen = array_namespace(self._x).asarray(
            self._order[index * self._batch_size : (index + 1) * self._batch_size]
        )
        return self._x[chosen], self._y[chosen]
