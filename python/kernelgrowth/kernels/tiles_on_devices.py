"""Pieces of a kernel computed on GPUs, of features and into tiles that lie on the host."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from kernelgrowth._backend import cuda
from kernelgrowth._backend.arrays import FloatArray
from kernelgrowth._backend.checks import check_integer
from kernelgrowth._backend.errors import BackendError, MemoryLimitError
from kernelgrowth._backend.gpu_workers import Worker, current, gpus_numbered, half_bytes, unwritten
from kernelgrowth._backend.memory import format_bytes
from kernelgrowth.gradients.features import Block, Embedding, GradientFeatures, OuterProduct, Rows
from kernelgrowth.gradients.identity import arrays_of
from kernelgrowth.kernels.evaluate import check_range, evaluate
from kernelgrowth.kernels.lowering import Preconditioner, Problem
from kernelgrowth.kernels.pieces import Pieces, Range
from kernelgrowth.kernels.plan import Plan

__all__ = ["PiecesOnDevices", "check_devices"]

# Two on each GPU: the features of one's next piece and the entries of its last are copied while the other's multiply.
_WORKERS = 2
# A tile of a worker's own, and one that waits for it.
_TILES = 2


def check_devices(devices: Any) -> list[Any]:
    """Return the GPUs that an argument `devices` names.

    Raises
    ------
    TypeError, ValueError
        If it is no number of a GPU or several different ones.
    BackendError
        As `gpus_numbered`.
    """
    several = isinstance(devices, Sequence) and not isinstance(devices, str)
    if several:
        numbers = [check_integer(f"devices[{k}]", number, minimum=0) for k, number in enumerate(devices)]
    else:
        numbers = [check_integer("devices", devices, minimum=0)]
    if not numbers:
        raise ValueError("devices must name at least one GPU, got an empty sequence")
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"devices must be different GPUs, got {numbers}")
    return gpus_numbered(numbers)


@dataclass
class _Place:
    """A worker, and what it keeps on its GPU from one piece to the next."""

    worker: Worker
    roots: Preconditioner = field(default_factory=dict)
    rows: tuple[Range, GradientFeatures] | None = None


class PiecesOnDevices:
    """Pieces computed on GPUs by whichever worker is free; a `PieceRunner`.

    Parameters
    ----------
    pieces : Pieces
    gpus : sequence of cupy.cuda.Device
    limit : int
        Bytes that may be taken on the host.
    """

    def __init__(self, pieces: Pieces, gpus: Sequence[Any], limit: int) -> None:
        self._pieces, self._gpus, self._limit = pieces, gpus, limit
        self.workers = _WORKERS * len(gpus)
        self.tiles = _TILES * self.workers
        # Every worker can take every piece.
        self._share, self._fullest = min(
            ((cuda.available_memory(gpu) // 2 // _WORKERS, gpu) for gpu in gpus), key=lambda pair: pair[0]
        )
        self._half = 0
        self._free: queue.SimpleQueue[_Place] = queue.SimpleQueue()
        self._reading: list[threading.Event] = []

    def check(self, feats: GradientFeatures, feats2: GradientFeatures | None, held: int) -> None:
        """See `PieceRunner`; what is checked last is what `running` takes its buffers for."""
        sides = [feats] if feats2 is None else [feats, feats2]
        outputs, c = self._pieces.outputs, feats.num_outputs
        kernels, kept = (c if outputs == "diagonal" else 1), (c if outputs == "full" else 1)
        rows, row_bytes = kernels * feats.num_examples * kept, sides[-1].num_examples * kept * feats.dtype.itemsize
        roots = self._pieces.roots
        arrays = [*_arrays(roots), *(array for side in sides for array in arrays_of(side))]
        self._half = half_bytes([(rows, row_bytes), *((len(array), array.nbytes // len(array)) for array in arrays)])
        buffers = 2 * self._half * self.workers
        if held + buffers > self._limit:
            raise MemoryLimitError(
                f"with {self.tiles} tiles at a time and {format_bytes(buffers)} of page-locked buffers these take "
                f"{format_bytes(held + buffers)}, but memory_limit is {format_bytes(self._limit)}",
                needed=held + buffers,
                limit=self._limit,
            )
        # Plans read shapes and places only, and the pieces will take that memory anyway.
        taken = rows * row_bytes + sum(array.nbytes for array in arrays)
        try:
            if taken > self._share:
                raise MemoryLimitError(f"they take {format_bytes(taken)}", needed=taken, limit=self._share)
            with current(self._fullest):
                placed = [_moved(side, unwritten) for side in sides]
                self._planned(placed, _moved_roots(roots, unwritten), rows * row_bytes)
        except MemoryLimitError as error:
            raise MemoryLimitError(
                f"of the memory of GPU {self._fullest.id} a worker may take {format_bytes(self._share)}: {error}",
                needed=error.needed,
                limit=error.limit,
            ) from None

    @contextmanager
    def running(self) -> Iterator[None]:
        """See `PieceRunner`."""
        places: list[_Place] = []
        self._free = queue.SimpleQueue()
        self._executor = ThreadPoolExecutor(self.workers, "kernelgrowth-gpu")
        try:
            for gpu in [*self._gpus] * _WORKERS:  # so that the first tiles go to different GPUs
                worker = Worker(gpu, self._half)
                places.append(_Place(worker))
                with worker.current():
                    places[-1].roots = _moved_roots(self._pieces.roots, worker.upload)
                self._free.put(places[-1])
            yield
        finally:
            self._executor.shutdown(wait=True, cancel_futures=True)
            for place in places:
                place.rows, place.roots = None, {}
                place.worker.close()

    def begin(
        self, rows: Range, feats: GradientFeatures, feats2: GradientFeatures | None, target: FloatArray, held: int
    ) -> Callable[[], object]:
        """See `PieceRunner`."""
        sides = [feats] if feats2 is None else [feats, feats2]
        read = threading.Event()
        self._reading = [*(event for event in self._reading if not event.is_set()), read]
        return self._executor.submit(self._compute, rows, sides, target, read).result

    def settle(self) -> None:
        """See `PieceRunner`."""
        for event in self._reading:
            event.wait()

    def _compute(self, rows: Range, sides: list[GradientFeatures], target: FloatArray, read: threading.Event) -> None:
        place = self._free.get()
        try:
            with place.worker.current():
                placed = self._uploaded(place, rows, sides)
                sides.clear()  # the executor would keep what chunks were made for until the piece is computed
                read.set()
                problem, plan = self._planned(placed, place.roots, target.nbytes)
                result = place.worker.empty(problem.out_shape, problem.dtype)
                evaluate(problem, plan, result)
                check_range(problem, result)
                for matrix, part in zip(result if problem.kernels > 1 else result[None], target, strict=True):
                    place.worker.download(matrix, part)
        finally:
            read.set()
            self._free.put(place)

    def _uploaded(self, place: _Place, rows: Range, sides: Sequence[GradientFeatures]) -> list[GradientFeatures]:
        if place.rows is None or place.rows[0] != rows:
            place.rows = None  # its memory serves the next ones
            place.rows = (rows, _moved(sides[0], place.worker.upload))
        return [place.rows[1], *(_moved(side, place.worker.upload) for side in sides[1:])]

    def _planned(self, sides: Sequence[GradientFeatures], roots: Preconditioner, result: int) -> tuple[Problem, Plan]:
        held = result + sum(array.nbytes for side in sides for array in arrays_of(side))
        held += sum(root.nbytes for root in _arrays(roots))
        feats2 = sides[1] if len(sides) > 1 else None
        return self._pieces.plan(sides[0], feats2, roots, held=held, limit=self._share)


def _arrays(roots: Preconditioner) -> list[FloatArray]:
    return [root for group in roots.values() for root in group]


def _moved_roots(roots: Preconditioner, move: Callable[[FloatArray], Any]) -> Preconditioner:
    return {name: tuple(map(move, group)) for name, group in roots.items()}


def _moved(feats: GradientFeatures, move: Callable[[FloatArray], Any]) -> GradientFeatures:
    """Return the same gradients in arrays that `move` makes of those at hand."""
    blocks: dict[str, Block] = {}
    for name, block in feats.items():
        if isinstance(block, Embedding):
            raise BackendError(
                f"ChunkedFeatures with the embedding {name!r} have no kernel on devices: compute it on the CPU"
            )
        if isinstance(block, OuterProduct):
            a, d = move(block.activations), move(block.backprops)
            blocks[name] = OuterProduct(a, d, bias=block.bias, scale=block.scale, check_finite=False)
        else:
            blocks[name] = Rows(move(block.rows), scale=block.scale, check_finite=False)
    return GradientFeatures(blocks)
