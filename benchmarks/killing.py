"""Child processes that are killed at given moments and started again, until one finishes by itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

__all__ = ["BEGUN", "Ended", "run_child", "until_finished"]

# A child prints this line once it has imported and made what it needs; what it prints later are its results.
BEGUN = "begun"


@dataclass(frozen=True)
class Ended:
    """What became of a child.

    Attributes
    ----------
    killed : bool
        Whether it was killed before it had finished.
    seconds : float
        From when it had begun to its end.
    peak_bytes : int
        The most memory it had resident, interpreter and mapped files included.
    printed : str
    """

    killed: bool
    seconds: float
    peak_bytes: int
    printed: str


def run_child(module: str, *arguments: object, kill_after: float | None = None) -> Ended:
    """Run ``python -m module`` in a process of its own, and kill it so many seconds after it has begun."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        begun = process.stdout.readline()
        start = time.perf_counter()
        timer = None
        if kill_after is not None:
            timer = threading.Timer(kill_after, os.kill, (process.pid, signal.SIGKILL))
            timer.start()
        printed = process.stdout.read()
        seconds = time.perf_counter() - start
        if timer is not None:
            # Before the process is waited for: its number is another's afterwards.
            timer.cancel()
            timer.join()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    killed = timer is not None and process.returncode == -signal.SIGKILL
    if not killed and (process.returncode != 0 or begun.strip() != BEGUN):
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {begun}{printed}")
    return Ended(killed, seconds, usage.ru_maxrss * 1024, printed)


def until_finished(
    module: str,
    *arguments: object,
    moments: Iterable[float],
    look: Callable[[], None] = lambda: None,
) -> list[Ended]:
    """Start a child until one finishes, killing one after each of `moments` seconds; `look` at what every one left."""
    ended = []
    waiting = iter(moments)
    while True:
        ended.append(run_child(module, *arguments, kill_after=next(waiting, None)))
        look()
        if not ended[-1].killed:
            return ended
