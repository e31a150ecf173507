"""Which steps are tracked, and which of their kernels are kept."""

from __future__ import annotations

import bisect
import itertools
import numbers
from collections.abc import Sequence
from typing import Any

from kernelgrowth._backend.checks import check_integer
from kernelgrowth.tracking.packing import packed_size

__all__ = ["check_every", "count_due", "is_due", "kernel_capacity", "kernel_stride", "retained"]


def check_every(every: Any) -> int | tuple[int, ...]:
    """Return `every` as a period >= 1 or a strictly increasing tuple of steps >= 0."""
    if isinstance(every, numbers.Integral):
        return check_integer("every", every, minimum=1)
    if isinstance(every, str) or not hasattr(every, "__iter__"):
        raise TypeError(f"every must be an integer or a sequence of steps, got {every!r}")
    steps = tuple(check_integer(f"every[{i}]", step, minimum=0) for i, step in enumerate(every))
    for before, after in itertools.pairwise(steps):
        if after <= before:
            raise ValueError(f"every must be sorted without repetition, got {after} after {before}")
    return steps


def is_due(every: int | Sequence[int], step: int) -> bool:
    """Whether the schedule `every` names `step`."""
    if isinstance(every, int):
        return step % every == 0
    position = bisect.bisect_left(every, step)
    return position < len(every) and every[position] == step


def count_due(every: int | Sequence[int], last: int) -> int:
    """How many steps the schedule names between step 0 and step `last`."""
    if isinstance(every, int):
        return max(0, last - 1) // every
    return max(0, bisect.bisect_left(every, last) - bisect.bisect_left(every, 1))


def kernel_capacity(budget: int, n: int, itemsize: int) -> int:
    """How many packed (n, n) kernels fit `budget` bytes; at least two, the first and the newest."""
    return max(2, budget // (packed_size(n) * itemsize))


def kernel_stride(count: int, capacity: int) -> int:
    """Stride, a power of two, between the kept ones of `count` tracked kernels so that at most `capacity` are kept.

    It depends on `count` alone, not on how the run got there, so a killed and resumed run ends with the same kernels;
    and it never shrinks as `count` grows, so a dropped kernel is never wanted again.
    """
    stride = 1
    # Beyond stride 1 the newest kernel may lie between two kept ones and takes a place of its own.
    while -(-count // stride) + (stride > 1) > capacity:
        stride *= 2
    return stride


def retained(index: int, count: int, capacity: int) -> bool:
    """Whether the kernel of the `index`-th tracked step is kept once `count` steps have been tracked."""
    return index == count - 1 or index % kernel_stride(count, capacity) == 0
