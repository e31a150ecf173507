"""Ctrl-C at a moment at which nothing is half done."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType

__all__ = ["InterruptGuard"]


class InterruptGuard:
    """Hold back the first Ctrl-C until `raise_if_pending`; a second one is raised at once.

    Only where Python's own SIGINT handler is installed and in the main thread: elsewhere an interrupt is left to
    whoever handles it. One that is still held back when the guard ends is raised then.
    """

    def __init__(self) -> None:
        self._pending = False
        self._immediate = False
        self._installed = False

    def __enter__(self) -> InterruptGuard:
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._handle)
            self._installed = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if kind is None:
            self.raise_if_pending()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._immediate or self._pending:
            self._pending = self._immediate = False
            raise KeyboardInterrupt
        self._pending = True

    def raise_if_pending(self) -> None:
        """Raise `KeyboardInterrupt` if one has been held back."""
        if self._pending:
            self._pending = False
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Within this block nothing can be left half done: raise the first Ctrl-C at once."""
        self._immediate = True
        try:
            self.raise_if_pending()
            yield
        finally:
            self._immediate = False
