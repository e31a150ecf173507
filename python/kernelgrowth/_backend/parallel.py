"""Parts of a computation in several threads: what runs in them is NumPy and the core, which release the GIL."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from kernelgrowth._backend.native import core_is_serial, num_threads

__all__ = ["for_each"]

T = TypeVar("T")


def for_each(function: Callable[[T], object], parts: Sequence[T]) -> None:
    """Call `function` with every part, in `num_threads()` threads and in no promised order.

    Calls into the core are serial in there. After an exception, Ctrl-C's as well, no more parts are begun; it is raised
    when those at hand are done.
    """
    workers = min(num_threads(), len(parts))
    if workers <= 1:
        for part in parts:
            function(part)
        return
    remaining = iter(parts)
    draw = threading.Lock()
    errors: list[BaseException] = []

    def work() -> None:
        core_is_serial.set(True)
        try:
            while not errors:
                with draw:
                    part = next(remaining, None)
                if part is None:
                    return
                function(part)
        except BaseException as error:
            errors.append(error)

    # Each in a context of its own, which carries NumPy's error state over.
    helpers = [
        threading.Thread(target=contextvars.copy_context().run, args=(work,), daemon=True) for _ in range(workers - 1)
    ]
    try:
        for helper in helpers:
            helper.start()
        contextvars.copy_context().run(work)
        for helper in helpers:
            helper.join()
    except BaseException as error:
        errors.append(error)
        raise
    if errors:
        raise errors[0]
