"""Contenders timed in turn, so that a drift of the machine's speed hits all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Timing", "interleaved"]


@dataclass(frozen=True)
class Timing:
    median: float
    fastest: float
    slowest: float


def interleaved(
    contenders: Mapping[str, Callable[[], Any]], check: Callable[[Any], None], *, repeats: int
) -> dict[str, Timing]:
    """Time each contender `repeats` times in turn, after one untimed round whose answers are checked."""
    for run in contenders.values():
        check(np.asarray(run()))
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: Timing(statistics.median(s), min(s), max(s)) for name, s in seconds.items()}
