"""Writing behind the back of a training loop: deeds are done in order, by one thread, while training goes on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

__all__ = ["Background"]

# Each may hold a kernel in memory.
_MOST_PENDING = 4


class Background:
    """Deeds done one after another by a thread of their own.

    After one that fails those behind it are left undone; what it raised is raised by the next `do` or `wait`.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._pending: deque[Future[None]] = deque()
        self._failed: BaseException | None = None

    def do(self, deed: Callable[..., Any], *args: Any) -> None:
        """Have it done; wait first where much is pending."""
        while self._pending and (self._pending[0].done() or len(self._pending) >= _MOST_PENDING):
            self._pending.popleft().result()
        self._raise()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "kernelgrowth-store")
        self._pending.append(self._pool.submit(self._attempt, deed, args))

    def wait(self) -> None:
        """Return when all is done."""
        while self._pending:
            self._pending.popleft().result()
        self._raise()

    def close(self) -> None:
        """Let the thread end, when all is done."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def _attempt(self, deed: Callable[..., Any], args: tuple[Any, ...]) -> None:
        if self._failed is None:
            try:
                deed(*args)
            except BaseException as error:
                self._failed = error

    def _raise(self) -> None:
        if self._failed is not None:
            # Nothing may be left that was to come after it.
            while self._pending:
                self._pending.popleft().result()
            error, self._failed = self._failed, None
            raise error
