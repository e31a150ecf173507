"""A case measured: answers checked, contenders timed, and the machine's roofs beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.case import OURS, Case, Workload
from benchmarks.timing import Timing, interleaved
from kernelgrowth._backend import native

__all__ = ["Result", "check", "measure"]


@dataclass(frozen=True)
class Result:
    """`ceiling` (multiply-adds) is in operations a second, `bandwidth` (of a copy) in bytes read and written a second.

    `errors` are the contenders' largest on the sample that was checked.
    """

    name: str
    dtype: str
    flops: int
    bytes: int
    ceiling: float
    bandwidth: float
    timings: dict[str, Timing]
    errors: dict[str, float]
    tolerance: float
    skipped: tuple[str, ...]
    parts: tuple[str, ...] = ()

    @property
    def intensity(self) -> float:
        """Operations needed for each byte that must be moved."""
        return self.flops / self.bytes

    @property
    def roof(self) -> float:
        """The most operations a second that ceiling and bandwidth allow at this intensity."""
        return min(self.ceiling, self.intensity * self.bandwidth)

    @property
    def best_peer(self) -> str:
        others = (name for name in self.timings if not name.startswith(OURS) and name not in self.parts)
        return min(others, key=lambda name: self.timings[name].median)

    def rate(self, contender: str) -> float:
        """Needed operations a second."""
        return self.flops / self.timings[contender].median


def check(workload: Workload) -> tuple[dict[str, Callable[[], Any]], dict[str, float], tuple[str, ...]]:
    """Run every contender once; return those that there are, their errors, and the names of those left out.

    Raises
    ------
    AssertionError
        If an answer is wrong.
    """
    contenders = {name: run for name, run in workload.contenders.items() if run is not None}
    errors = {}
    for name, run in contenders.items():
        errors[name] = workload.error(run())
        if not errors[name] <= workload.tolerance:
            raise AssertionError(f"{name}: an answer is {errors[name]:.1e} off, more than {workload.tolerance:.0e}")
    return contenders, errors, tuple(name for name in workload.contenders if name not in contenders)


def measure(case: Case, *, repeats: int) -> Result:
    workload = case.workload()
    contenders, errors, skipped = check(workload)
    # Measured before and after the contenders, since a shared machine's speed changes by the minute.
    before = _roofs(case.dtype)
    timings = interleaved(contenders, repeats=repeats, once=workload.once)
    after = _roofs(case.dtype)
    ceiling, bandwidth = (max(pair) for pair in zip(before, after, strict=True))
    return Result(
        case.name,
        case.dtype,
        workload.flops,
        workload.bytes,
        ceiling,
        bandwidth,
        timings,
        errors,
        workload.tolerance,
        skipped,
        workload.parts,
    )


def _roofs(dtype: str) -> tuple[float, float]:
    return max(native.multiply_add_peak(dtype) for _ in range(2)), max(native.copy_bandwidth() for _ in range(3))
