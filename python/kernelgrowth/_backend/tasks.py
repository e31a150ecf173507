"""Working through independent tasks with the processes of a Dask cluster, failures included."""

from __future__ import annotations

import heapq
import importlib
import pickle
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Outcome", "work_through"]

# A moment between two looks for tasks whose time to be tried again has come.
_SECONDS_BETWEEN_LOOKS = 0.2
_LONGEST_BACK_OFF = 60.0


@dataclass(frozen=True)
class Outcome:
    """What became of a task.

    Attributes
    ----------
    result : object
        What it returned.
    error : Exception or None
        What it raised, the last time that it was tried.
    traceback : str
        Where.
    attempts : int
        How often it was tried.
    """

    result: Any
    error: Exception | None = None
    traceback: str = ""
    attempts: int = 1


def work_through(
    client: Any,
    function: Callable[..., Any],
    jobs: Mapping[str, tuple[Any, ...]],
    *,
    retries: int = 0,
    back_off: float = 1.0,
    resources: Mapping[str, float] | None = None,
    at_once: int | None = None,
    until_failure: bool = False,
) -> Generator[tuple[str, Outcome], None, None]:
    """Call a function with each of the arguments in the cluster's processes, and yield outcomes as tasks end.

    A task whose process dies is tried again by Dask in another one, some times; what that does not help is an error of
    the task. When the caller stops, tasks that have not begun are forgotten.

    Parameters
    ----------
    client : distributed.Client
    function : callable
    jobs : mapping of str to tuple
        Arguments, by the name under which the outcome comes back; tasks begin in this order.
    retries : int
        How often a task that raised is tried again.
    back_off : float
        Seconds before the first new try, twice as many before every further one, but at most a minute.
    resources : mapping of str to float, optional
        What a task needs of a worker's declared resources.
    at_once : int, optional
        Hand so many tasks to the cluster at a time; all unless given, as clusters that grow by need want to know.
    until_failure : bool
        Begin no further task once one has failed; those under way are still waited for.
    """
    waiting = deque((name, 1) for name in jobs)
    later: list[tuple[float, str, int]] = []
    running: dict[Any, tuple[str, int]] = {}
    try:
        while waiting or later or running:
            while later and later[0][0] <= time.monotonic():
                _, name, attempt = heapq.heappop(later)
                waiting.append((name, attempt))
            while waiting and (at_once is None or len(running) < at_once):
                name, attempt = waiting.popleft()
                future = client.submit(
                    _attempt, function, jobs[name], pure=False, resources=resources and dict(resources)
                )
                running[future] = name, attempt
            for future in _done(client, running):
                name, attempt = running.pop(future)
                outcome = _outcome(future, attempt)
                future.release()
                if outcome.error is None or attempt > retries:
                    if outcome.error is not None and until_failure:
                        waiting.clear()
                        later.clear()
                    yield name, outcome
                else:
                    delay = min(back_off * 2.0 ** (attempt - 1), _LONGEST_BACK_OFF)
                    heapq.heappush(later, (time.monotonic() + delay, name, attempt + 1))
    finally:
        if running:
            client.cancel(list(running), force=True)


def _done(client: Any, running: Mapping[Any, Any]) -> list[Any]:
    """Return the futures that have ended, after a moment at the latest."""
    if not running:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
        return []
    distributed = importlib.import_module("distributed")
    try:
        with client.as_current():
            distributed.wait(list(running), timeout=_SECONDS_BETWEEN_LOOKS, return_when="FIRST_COMPLETED")
    except TimeoutError:
        return []
    return [future for future in running if future.done()]


def _outcome(future: Any, attempts: int) -> Outcome:
    if future.status != "finished":
        # Of Dask itself: its processes died again and again, or the cluster is gone.
        error = future.exception() if future.status == "error" else RuntimeError(f"the task was {future.status}")
        return Outcome(None, error, f"{type(error).__name__}: {error}\n", attempts)
    result, error, where = future.result()
    return Outcome(result, error, where, attempts)


def _attempt(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, Exception | None, str]:
    try:
        return function(*arguments), None, ""
    except Exception as error:
        where = traceback.format_exc()
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            return None, RuntimeError(f"{type(error).__name__}: {error}"), where
        return None, error, where
