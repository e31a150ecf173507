"""Contenders timed in turn, so that a drift of the machine's speed hits all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Timing", "interleaved"]

_REST = 0.15


@dataclass(frozen=True)
class Timing:
    median: float
    fastest: float
    slowest: float


def interleaved(
    contenders: Mapping[str, Callable[[], Any]], check: Callable[[Any], None], *, repeats: int
) -> dict[str, Timing]:
    """Time each contender `repeats` times in turn, after one untimed round whose answers are checked.

    A turn is a rest, an untimed call and a timed one: OpenBLAS's threads spin for up to a tenth of a second after a
    call, on the processors that the next contender needs, and the rest lets caches and clocks go cold.
    """
    for run in contenders.values():
        check(np.asarray(run()))
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            time.sleep(_REST)
            run()
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: Timing(statistics.median(s), min(s), max(s)) for name, s in seconds.items()}
