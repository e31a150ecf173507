"""The only door to Dask here: tasks with a place, waiting for them, and what is known of the workers."""

from __future__ import annotations

import importlib
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from kernelgrowth._backend.errors import BackendError

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Cluster", "hold"]

# From this fraction of a worker's limit on, Dask moves data to disk (distributed.worker.memory.target).
_TARGET = 0.6


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
        self._dask = importlib.import_module("distributed")

    def workers(self) -> list[str]:
        """Return the addresses of all workers, in a fixed order.

        Raises
        ------
        BackendError
            If there is none.
        """
        found = sorted(self._workers())
        if not found:
            raise BackendError("the cluster has no workers yet: call client.wait_for_workers(n) first")
        return found

    def memory_limits(self) -> dict[str, int]:
        """Return, by worker that has a memory limit, the bytes up to which Dask keeps all data in memory."""
        return {
            address: int(_TARGET * worker["memory_limit"])
            for address, worker in self._workers().items()
            if worker["memory_limit"]
        }

    def submit(self, function: Callable[..., Any], *args: Any, worker: str, retries: int = 0) -> Any:
        """Return the future of a task that runs on `worker`, or elsewhere once that one is gone."""
        import dask

        # Vectors and preconditioners are part of the tasks, so that these can be repeated when a worker dies.
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TiB"}):
            return self.client.submit(
                function,
                *args,
                key=f"kernelgrowth_{function.__name__}-{uuid.uuid4().hex}",
                workers=[worker],
                allow_other_workers=True,
                pure=False,
                retries=retries,
            )

    def result(self, future: Any) -> Any:
        """Return what a task returned, or raise what it raised."""
        return future.result()

    def results(self, futures: Sequence[Any]) -> list[Any]:
        """Return what tasks returned, or raise what the first of them raised."""
        return list(self.client.gather(list(futures)))

    def completed(self, futures: Sequence[Any]) -> Iterator[Any]:
        """Yield futures as they are completed, whether or not they raise."""
        yield from self._dask.as_completed(futures, raise_errors=False)

    def first_completed(self, futures: Sequence[Any]) -> list[Any]:
        """Wait for at least one of the futures, and return those that are completed."""
        return list(self._dask.wait(list(futures), return_when="FIRST_COMPLETED").done)

    def holders(self, futures: Sequence[Any]) -> list[list[str]]:
        """Return the workers that hold what each task returned, which is computed again if all of them are gone."""
        self._dask.wait(list(futures))
        held = self.client.who_has(list(futures))
        return [list(held.get(future.key, ())) for future in futures]

    @contextmanager
    def cancelling(self, futures: list[Any]) -> Iterator[None]:
        """Cancel tasks, to which more may be added, when what waits for them is interrupted or fails."""
        try:
            yield
        except BaseException:
            self.client.cancel(futures)
            raise

    def _workers(self) -> dict[str, Any]:
        return dict(self.client.scheduler_info(n_workers=-1)["workers"])
