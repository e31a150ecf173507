"""Contenders timed in turn, so that a drift of the machine's speed hits all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Timing", "interleaved"]

_REST, _WARM = 0.15, 0.05


@dataclass(frozen=True)
class Timing:
    median: float
    fastest: float
    slowest: float


def interleaved(
    contenders: Mapping[str, Callable[[], Any]], *, repeats: int, once: Collection[str] = ()
) -> dict[str, Timing]:
    """Time each contender `repeats` times in turn; all of them must have run before, as compilers take their time.

    A turn is a rest, untimed calls for a few hundredths of a second, and a timed one. OpenBLAS's threads spin for a
    while after a call, on the processors that the next contender needs; and after a rest the operating system takes
    a few calls to spread a contender's threads over the processors again. A call that lasts long warms up by itself;
    contenders of which one takes many seconds may be timed `once`.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repeats):
        for name, run in contenders.items():
            if turn and name in once:
                continue
            time.sleep(_REST)
            warm = time.perf_counter() + _WARM
            if name not in once and (not seconds[name] or seconds[name][-1] < 20 * _WARM):
                run()
            while name not in once and time.perf_counter() < warm:
                run()
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: Timing(statistics.median(s), min(s), max(s)) for name, s in seconds.items()}
