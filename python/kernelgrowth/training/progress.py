"""One line on a terminal that says how far a run is."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from kernelgrowth.training.callbacks import Callback

if TYPE_CHECKING:
    from kernelgrowth.training.state import TrainingState

__all__ = ["ProgressCall", "ProgressLine"]

_SECONDS_BETWEEN_LINES = 0.1


class ProgressLine(Callback):
    """Rewrite one line of stderr at most ten times a second; silent where stderr is no terminal."""

    def __init__(self) -> None:
        self._written = -float("inf")
        self._width = 0

    def on_step(self, state: TrainingState) -> None:
        """Rewrite the line if the last one is old enough."""
        if time.monotonic() - self._written >= _SECONDS_BETWEEN_LINES:
            self._write(state, "")

    def on_end(self, state: TrainingState) -> None:
        """Write the line a last time, with how training ended, and leave it there."""
        self._write(state, f"  {state.status}\n")

    def _write(self, state: TrainingState, ending: str) -> None:
        stream = sys.stderr
        if stream is None or not stream.isatty():
            return
        line = f"step {state.step}/{state.steps}  loss {state.loss:.4g}  time {state.time:.4g}  {state.seconds:.1f} s"
        stream.write("\r" + line.ljust(self._width) + ending)
        stream.flush()
        self._width = len(line)
        self._written = time.monotonic()


class ProgressCall(Callback):
    """Hand every step's state to a function.

    Parameters
    ----------
    function : callable
        state -> None.
    """

    def __init__(self, function: Callable[[TrainingState], None]) -> None:
        self._function = function

    def on_step(self, state: TrainingState) -> None:
        """Call the function."""
        self._function(state)
