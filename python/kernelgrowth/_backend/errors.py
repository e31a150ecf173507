"""Exceptions of the package: misuse is `ValueError` or `TypeError`, everything else is named here."""

from __future__ import annotations

from typing import Any

__all__ = [
    "BackendError",
    "DivergedError",
    "MemoryLimitError",
    "NotConvergedError",
    "NotConvergedWarning",
    "RunFolderError",
    "SolveInterrupted",
]


class MemoryLimitError(MemoryError):
    """The smallest plan for a call does not fit its `memory_limit`; raised before any work.

    Attributes
    ----------
    needed : int
        Bytes that the smallest plan takes.
    limit : int
        Bytes that were allowed.
    """

    def __init__(self, message: str, *, needed: int, limit: int) -> None:
        super().__init__(message)
        self.needed = needed
        self.limit = limit

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception is rebuilt from its positional arguments, which breaks off a multiprocessing pool.
        return _memory_limit_error, (self.args[0], self.needed, self.limit)


class NotConvergedError(RuntimeError):
    """An iteration stopped before its tolerance; `partial` holds the best result so far."""

    def __init__(self, message: str, *, partial: Any = None) -> None:
        super().__init__(message)
        self.partial = partial


class NotConvergedWarning(RuntimeWarning):
    """An iteration stopped before its tolerance; `partial` holds its result, which says how far it came."""

    def __init__(self, message: str, *, partial: Any = None) -> None:
        super().__init__(message)
        self.partial = partial


class SolveInterrupted(KeyboardInterrupt):
    """Ctrl-C in the middle of an iteration; `partial` holds its result so far."""

    def __init__(self, message: str, *, partial: Any = None) -> None:
        super().__init__(message)
        self.partial = partial


class DivergedError(RuntimeError):
    """Training met a non-finite loss; `run` holds everything up to that step."""

    def __init__(self, message: str, *, run: Any = None) -> None:
        super().__init__(message)
        self.run = run


class RunFolderError(RuntimeError):
    """A run folder cannot be used: taken by another run, unreadable, of another format, or not writable."""


class BackendError(RuntimeError):
    """The compiled part asked for is not built, not importable, or has no device to run on."""


def _memory_limit_error(message: str, needed: int, limit: int) -> MemoryLimitError:
    return MemoryLimitError(message, needed=needed, limit=limit)
