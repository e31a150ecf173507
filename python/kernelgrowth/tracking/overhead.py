"""Keeping the cost of tracking below a fraction of training: which due steps to skip, and how many examples to look at.

What the first and the last tracked step cost is set aside; the rest of the fraction is spent evenly over the training
that is expected. A due step is skipped while it would cost more than its share, so tracked steps are spaced out. Where
fewer than eight of them would fit in between, they look at half of the examples, a quarter, ... instead. All of it
follows from the measured times alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["Overhead"]

# A step may cost that much more than the dearest of the last ones and still be paid for.
_MARGIN = 1.25
_LAST_ONES = 3
# So many tracked steps in between are worth more than the precision that a subsample gives away.
_HANDFUL = 8
_FEWEST_EXAMPLES = 64
# Seconds that a tracked step takes however few examples it looks at (files, Python).
_LEAST_SECONDS = 0.005


class Overhead:
    """What tracking has cost, and what it may cost.

    Parameters
    ----------
    limit : float or None
        Fraction of the training time; None allows everything.
    num_examples : int
        N, of the probe set; the first and the last step are measured on all of them.
    fewest : int
        Examples that a subsample holds at least (and never fewer than 64).
    """

    def __init__(self, limit: float | None, num_examples: int, fewest: int = 1) -> None:
        self.limit = limit
        self.seconds = 0.0
        self._num_examples = num_examples
        self._fewest = max(fewest, _FEWEST_EXAMPLES)
        self._first = 0.0
        self._size = num_examples
        self._costs: dict[int, list[float]] = {}

    def note(self, size: int, seconds: float) -> None:
        """Note the cost of a tracked step, measured on `size` examples; later ones look at no more, but the last."""
        if not self._costs:
            self._first = seconds
        self._size = min(self._size, size)
        self._costs[size] = [*self._costs.get(size, []), seconds][-_LAST_ONES:]
        self.seconds += seconds

    def affordable(self, training: float, whole: float | None, due: int) -> int:
        """Return on how many examples a due step is to be measured; 0 to skip it.

        Parameters
        ----------
        training : float
            Seconds of training so far.
        whole : float or None
            Seconds that the whole training is expected to take; None if nobody knows.
        due : int
            Steps that are due between the first and the last.
        """
        if self.limit is None or not self._costs:
            return self._num_examples
        whole = training if whole is None else max(whole, training)
        spare = self.limit * whole - self._first - self._predicted(self._num_examples)
        if spare <= 0.0:
            return 0
        size = self._size_that_fits(spare, min(due, _HANDFUL))
        spent = self.seconds - self._first
        return size if spent + self._predicted(size) <= spare * training / whole else 0

    def _size_that_fits(self, spare: float, wanted: int) -> int:
        size = self._size
        while wanted * self._predicted(size) > spare:
            half = size // 2
            if half < self._fewest or self._predicted(half) >= self._predicted(size):
                break
            size = half
        return size

    def _predicted(self, size: int) -> float:
        """Return what a step on so many examples will cost, from the last ones on as many, or on the next more."""
        measured = min(known for known in self._costs if known >= size)
        cost = _MARGIN * max(self._costs[measured])
        # Half of the examples cost half at most, but for what does not depend on their number.
        return min(cost, max(cost * size / measured, _LEAST_SECONDS))

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run has to know, as JSON values."""
        costs = [[size, *seconds] for size, seconds in self._costs.items()]
        return {"seconds": self.seconds, "first": self._first, "size": self._size, "costs": costs}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self.seconds, self._first = float(state["seconds"]), float(state["first"])
        self._size = int(state["size"])
        self._costs = {int(size): [float(value) for value in seconds] for size, *seconds in state["costs"]}
