"""The only door to Dask here: tasks with a place, waiting for them, and what is known of the workers.

Tasks stay on the worker that they were given to: none is stolen, which would move shards, and none waits for a worker
that never comes back, because whoever waits is told that a worker is gone and begins again with those that are there.
"""

from __future__ import annotations

import functools
import importlib
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from kernelgrowth._backend.errors import BackendError

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Cluster", "Shared", "WorkerLostError", "hold"]

# From this fraction of a worker's limit on, Dask moves data to disk (distributed.worker.memory.target).
_TARGET = 0.6

# Seconds after which workers are looked at for the first time, and at most between two times.
_FIRST_LOOK, _LONGEST_LOOK = 1.0, 30.0

# So often workers may be lost before anything is finished.
_MOST_LOSSES = 10


class WorkerLostError(Exception):
    """A worker that was to do something is gone: what it had is to be made again elsewhere."""


def hold(value: Any) -> Any:
    """Return what is given: a task that brings a value to a worker, from which others can fetch it in turn."""
    return value


class Cluster:
    """A client of a Dask cluster.

    Raises
    ------
    TypeError
        If it is none, or asynchronous.
    """

    def __init__(self, client: Client) -> None:
        if not hasattr(client, "submit") or not hasattr(client, "who_has"):
            raise TypeError(f"client must be a distributed.Client, got {type(client).__name__}")
        if client.asynchronous:
            raise TypeError("client must not be asynchronous")
        self.client: Any = client
        self._losses = 0
        self._dask = importlib.import_module("distributed")

    def workers(self) -> list[str]:
        """Return the addresses of all workers, in a fixed order.

        Raises
        ------
        BackendError
            If there is none.
        """
        found = sorted(self.client.nthreads())
        if not found:
            raise BackendError("the cluster has no workers yet: call client.wait_for_workers(n) first")
        return found

    def workers_waited_for(self) -> list[str]:
        """Return the addresses of all workers, after waiting for one where all are gone."""
        while not (found := sorted(self.client.nthreads())):
            self.client.wait_for_workers(1)
        return found

    def memory_limits(self) -> dict[str, int]:
        """Return, by worker that has a memory limit, the bytes up to which Dask keeps all data in memory."""
        return {
            address: int(_TARGET * worker["memory_limit"])
            for address, worker in self.client.scheduler_info(n_workers=-1)["workers"].items()
            if worker["memory_limit"]
        }

    def submit(
        self, function: Callable[..., Any], *args: Any, worker: str, retries: int = 0, first: bool = False
    ) -> Any:
        """Return the future of a task that runs on `worker`, with `first` before what waits there."""
        import dask

        # Vectors and preconditioners are part of the tasks, so that these can be repeated.
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TiB"}):
            return self.client.submit(
                function,
                *args,
                key=f"kernelgrowth_{function.__name__}-{uuid.uuid4().hex}",
                workers=[worker],
                allow_other_workers=False,
                pure=False,
                retries=retries,
                priority=int(first),
            )

    def completed(self, futures: Sequence[Any], workers: Collection[str], *, first: bool = False) -> list[Any]:
        """Wait for all futures, or for the `first`, and return those that are completed, whether or not they raise.

        Raises
        ------
        WorkerLostError
            If one of `workers` is gone while it waits.
        BackendError
            If that has happened too often and nothing was finished in between.
        """
        condition = "FIRST_COMPLETED" if first else "ALL_COMPLETED"
        wait = functools.partial(self._dask.wait, list(futures), return_when=condition)
        return list(self._attended(lambda timeout: wait(timeout=timeout), workers).done)

    def results(self, futures: Sequence[Any], workers: Collection[str]) -> list[Any]:
        """Return what tasks returned, or raise what one of them raised; or raise as `completed` does."""
        self.completed(futures, workers)
        for future in futures:
            if future.status == "error":
                future.result()
        gather = functools.partial(self.client.gather, list(futures), asynchronous=True)
        found = list(self._attended(lambda timeout: self.client.sync(gather, callback_timeout=timeout), workers))
        self._losses = 0
        return found

    def holders(self, futures: Sequence[Any], workers: Collection[str]) -> list[list[str]]:
        """Return the workers that hold what each task returned, once all are completed; it raises as `completed`."""
        self.completed(futures, workers)
        held = self.client.who_has(list(futures))
        return [list(held.get(future.key, ())) for future in futures]

    def cancel(self, futures: Iterable[Any]) -> None:
        """Let tasks go that are no longer wanted."""
        self.client.cancel(list(futures))

    @contextmanager
    def cancelling(self, futures: Iterable[Any]) -> Iterator[None]:
        """Cancel tasks, to which more may be added, when what waits for them is interrupted or fails."""
        try:
            yield
        except BaseException:
            self.cancel(futures)
            raise

    def _attended(self, call: Callable[[float], Any], workers: Collection[str]) -> Any:
        """Return what `call` does within a time limit, looking at the workers whenever that is over."""
        timeout = _FIRST_LOOK
        while True:
            try:
                return call(timeout)
            except TimeoutError:
                if not set(workers) <= set(self.client.nthreads()):
                    self._lose()
                timeout = min(2 * timeout, _LONGEST_LOOK)

    def _lose(self) -> NoReturn:
        self._losses += 1
        if self._losses > _MOST_LOSSES:
            raise BackendError(
                f"workers died {self._losses} times while the same was tried again: their logs say of what (does make, "
                "or a product, take more memory than a worker has?)"
            )
        raise WorkerLostError


class Shared:
    """A value that many tasks need, brought to a worker once, and to another one when that is gone."""

    def __init__(self, cluster: Cluster, value: Any) -> None:
        self._cluster, self._value = cluster, value
        self.home, self._future = "", None

    def among(self, workers: Sequence[str]) -> Any:
        """Return its future, on one of these workers."""
        if self.home not in workers:
            self.home = workers[0]
            self._future = self._cluster.submit(hold, self._value, worker=self.home)
        return self._future
