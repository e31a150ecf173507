"""Parts of a computation in several of Python's threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kernelgrowth._backend import native
from kernelgrowth._backend.parallel import for_each


@pytest.mark.parametrize("threads", ["1", "4"])
def test_every_part_is_visited_once(monkeypatch: pytest.MonkeyPatch, threads: str) -> None:
    monkeypatch.setenv("KERNELGROWTH_NUM_THREADS", threads)
    visits = np.zeros(100, dtype=int)

    def visit(i: int) -> None:
        visits[i] += 1

    for_each(visit, range(100))
    np.testing.assert_array_equal(visits, 1)


def test_calls_into_the_core_are_serial_and_the_error_state_is_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNELGROWTH_NUM_THREADS", "3")
    seen: list[Any] = []
    with np.errstate(over="raise"):
        for_each(lambda part: seen.append((native.num_threads(), np.geterr()["over"])), range(9))
    assert seen == [(1, "raise")] * 9
    assert native.num_threads() == 3


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_ends_it_and_reaches_the_caller(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    monkeypatch.setenv("KERNELGROWTH_NUM_THREADS", "2")
    begun: list[int] = []

    def fail(part: int) -> None:
        begun.append(part)
        raise error("part")

    with pytest.raises(error, match="part"):
        for_each(fail, range(1000))
    assert 1 <= len(begun) <= 2
