"""Workers on GPUs, each with a stream and page-locked memory of its own: one's copies run beside another's kernels."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from kernelgrowth._backend import cuda
from kernelgrowth._backend.arrays import FloatArray
from kernelgrowth._backend.errors import BackendError

__all__ = ["Worker", "current", "gpus_numbered", "half_bytes", "unwritten"]

# Copies of so many bytes run at the bus' full speed, and two of them at a time keep it busy.
_HALF = 16 * 2**20


def gpus_numbered(numbers: Sequence[int]) -> list[Any]:
    """Return GPUs, each a `cupy.cuda.Device`, by their numbers.

    Raises
    ------
    BackendError
        If CuPy is not installed, the build has no CUDA, there are not so many GPUs, or they differ in compute
        capability: a kernel's bits would then depend on which of them was free.
    """
    name = f"devices={list(numbers)}"
    try:
        cupy = importlib.import_module("cupy")
    except ImportError as error:
        raise BackendError(f"{name} needs CuPy: install kernelgrowth[cuda13] ({error})") from error
    cuda.check_built(name)
    try:
        count = int(cupy.cuda.runtime.getDeviceCount())
    except RuntimeError as error:
        raise BackendError(f"{name}: no GPU: {error}") from error
    if max(numbers) >= count:
        raise BackendError(f"{name}: there are {count} GPU(s), numbered from 0")
    gpus = [cupy.cuda.Device(number) for number in numbers]
    capabilities = [f"{int(gpu.compute_capability) / 10:.1f}" for gpu in gpus]
    if len(set(capabilities)) > 1:
        raise BackendError(
            f"{name} have compute capabilities {', '.join(capabilities)}, whose bits may differ: name GPUs of one kind"
        )
    return gpus


@contextmanager
def current(gpu: Any) -> Iterator[None]:
    """Make a GPU CuPy's current one in this thread; what CUDA says of it becomes a `BackendError`."""
    cupy = importlib.import_module("cupy")
    try:
        with gpu:
            yield
    except (cupy.cuda.runtime.CUDARuntimeError, cupy.cuda.memory.OutOfMemoryError) as error:
        raise BackendError(f"GPU {gpu.id}: {error}") from error


def unwritten(array: FloatArray) -> Any:
    """Return an array on the current GPU of the shape of `array` and none of its numbers."""
    return importlib.import_module("cupy").empty(array.shape, array.dtype)


def half_bytes(arrays: Iterable[tuple[int, int]]) -> int:
    """Return the bytes of each of a worker's two buffers, for arrays of some rows of some bytes.

    A row has to fit; more than `_HALF` helps no more, nor more than the largest array. Powers of two, since CuPy rounds
    page-locked memory up to them.
    """
    largest = max(max(row, min(rows * row, _HALF)) for rows, row in arrays)
    return 1 << (max(largest, 256) - 1).bit_length()


class Worker:
    """A stream of a GPU's, and the page-locked memory through which arrays of the host's go there and back.

    For one thread at a time, which need not always be the same.

    Parameters
    ----------
    gpu : cupy.cuda.Device
    half : int
        Of `half_bytes`; page-locked memory is taken twice as much.
    """

    def __init__(self, gpu: Any, half: int) -> None:
        cupy = self._cupy = importlib.import_module("cupy")
        self._gpu, self._half = gpu, half
        with current(gpu):
            self._stream = cupy.cuda.Stream(non_blocking=True)
            memory = cupy.cuda.alloc_pinned_memory(2 * half)
            # A thread that waits for an event made with `block` leaves its processor to others.
            self._halves = [
                (np.frombuffer(memory, np.uint8, half, k * half), cupy.cuda.Event(block=True, disable_timing=True))
                for k in range(2)
            ]
        self._turns = itertools.cycle(self._halves)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the GPU and the stream CuPy's current ones in this thread."""
        with current(self._gpu), self._stream:
            yield

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """Return an array on the GPU, for use in the stream's order."""
        return self._cupy.empty(shape, dtype)

    def upload(self, array: FloatArray) -> Any:
        """Return a contiguous copy on the current GPU, there in the stream's order; `array` was read on return."""
        placed = self.empty(array.shape, array.dtype)
        for part, staged, event in self._strips(array):
            staged[...] = array[part]
            placed[part].set(staged, stream=self._stream)
            event.record(self._stream)
        return placed

    def download(self, matrix: Any, target: FloatArray) -> None:
        """Copy a contiguous matrix to `target`, of any strides, and wait until it is there."""
        begun: list[tuple[slice, FloatArray, Any]] = []

        def finish() -> None:
            part, staged, event = begun.pop(0)
            event.synchronize()
            target[part] = staged

        for strip in self._strips(matrix):
            part, staged, event = strip
            matrix[part].get(stream=self._stream, out=staged, blocking=False)
            event.record(self._stream)
            if begun:
                finish()
            begun.append(strip)
        finish()

    def _strips(self, array: Any) -> Iterator[tuple[slice, FloatArray, Any]]:
        """Yield an array's rows in parts, each with a buffer for it, in turn, and the event of that buffer's copies."""
        step = max(1, self._half * len(array) // array.nbytes)
        for begin in range(0, len(array), step):
            part = slice(begin, min(begin + step, len(array)))
            buffer, event = next(self._turns)
            event.synchronize()
            shape = (part.stop - begin, *array.shape[1:])
            yield part, np.ndarray(shape, array.dtype, buffer), event

    def close(self) -> None:
        """Wait for what is queued, and give back the memory that was taken in the stream's order."""
        with suppress(RuntimeError), self._gpu:  # what failed was said where it failed
            self._stream.synchronize()
            self._cupy.get_default_memory_pool().free_all_blocks(stream=self._stream)
