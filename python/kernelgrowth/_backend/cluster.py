"""Processes that work through tasks: some of this machine, or those of a Dask cluster that is there already."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import signal
from collections.abc import Iterator
from typing import Any

from kernelgrowth._backend.checks import check_integer
from kernelgrowth._backend.errors import BackendError

__all__ = ["connected", "limited_threads", "started"]

# What reads these does so when it is first imported, which is in the worker.
_THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "KERNELGROWTH_NUM_THREADS")
_SECONDS_TO_CONNECT = 30
_SECONDS_TO_CLOSE = 10


@contextlib.contextmanager
def started(workers: int, *, threads: int = 1, gpus: int = 0) -> Iterator[Any]:
    """Start processes of this machine that take one task at a time, and yield a `distributed.Client` of them.

    Parameters
    ----------
    workers : int
        Processes.
    threads : int
        What a task may use; every process is told before it imports anything.
    gpus : int
        That each process offers as the resource ``GPU``; which they are is CUDA's choice.

    Raises
    ------
    BackendError
        If `distributed` is not installed.
    """
    dask = _distributed()
    cluster = dask.LocalCluster(
        n_workers=check_integer("workers", workers, minimum=1),
        threads_per_worker=1,
        processes=True,
        dashboard_address=None,
        # A run knows best what it needs; Dask would stop a worker that holds much.
        memory_limit=0,
        env=dict.fromkeys(_THREAD_VARIABLES, str(check_integer("threads", threads, minimum=1))),
        preload=[__name__],
        resources={"GPU": gpus} if gpus else None,
        silence_logs=logging.ERROR,
    )
    try:
        with dask.Client(cluster, set_as_default=False) as client:
            yield client
    finally:
        cluster.close(timeout=_SECONDS_TO_CLOSE)


@contextlib.contextmanager
def connected(address: str) -> Iterator[Any]:
    """Yield a `distributed.Client` of the cluster whose scheduler has this address.

    Raises
    ------
    BackendError
        If `distributed` is not installed or nobody answers there.
    """
    dask = _distributed()
    try:
        client = dask.Client(address, timeout=_SECONDS_TO_CONNECT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise BackendError(f"scheduler {address} does not answer: {error}") from error
    with client:
        yield client


@contextlib.contextmanager
def limited_threads(threads: int) -> Iterator[None]:
    """Use so many threads in this process, which may have been started by somebody else."""
    before = os.environ.get("KERNELGROWTH_NUM_THREADS")
    os.environ["KERNELGROWTH_NUM_THREADS"] = str(threads)
    try:
        with contextlib.ExitStack() as stack:
            # Without threadpoolctl BLAS keeps the number that its process was started with.
            with contextlib.suppress(ImportError):
                stack.enter_context(importlib.import_module("threadpoolctl").threadpool_limits(threads))
            yield
    finally:
        if before is None:
            del os.environ["KERNELGROWTH_NUM_THREADS"]
        else:
            os.environ["KERNELGROWTH_NUM_THREADS"] = before


def dask_setup(worker: Any) -> None:
    """Be called by Dask in every process that it starts for `started`, also in place of one that died."""
    # Ctrl-C reaches all processes of a terminal; the one that started the others ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _distributed() -> Any:
    try:
        return importlib.import_module("distributed")
    except ImportError as error:
        raise BackendError(f'several processes need dask ({error}): pip install "kernelgrowth[run]"') from error
