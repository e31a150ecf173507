"""Kernels larger than memory: computed in tiles of examples, each written to its place as soon as it is finished."""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import numpy as np

from kernelgrowth._backend.arrays import FloatArray, like
from kernelgrowth._backend.errors import MemoryLimitError
from kernelgrowth._backend.memory import format_bytes
from kernelgrowth.gradients.chunked import ChunkedFeatures
from kernelgrowth.gradients.embeddings import knowing_indices
from kernelgrowth.gradients.identity import array_checksum, layout
from kernelgrowth.kernels.examples import Examples, Source
from kernelgrowth.kernels.lowering import check_on_cpu, check_pair, check_preconditioner
from kernelgrowth.kernels.pieces import PieceRunner, Pieces, PiecesOnCpu, Range
from kernelgrowth.kernels.progress import Progress
from kernelgrowth.kernels.tile_grid import aligned, edges, order, pieces, write_unit
from kernelgrowth.kernels.tiles_on_devices import PiecesOnDevices

__all__ = ["TiledKernel"]

# What waits for a piece of a tile, its rows and columns there, and whether they are mirrored.
_Piece = tuple[Callable[[], object], slice, slice, bool]

# More bytes (4096 rows in float32) make a tile hardly any faster, and what a kill loses is one tile.
LARGEST_TILE = 64 * 2**20

# Fewer bytes are copied before threads have started.
_THREADED = 4 * 2**20


class TiledKernel:
    """A kernel that is written tile by tile, with the bits that it would have as a whole.

    Parameters
    ----------
    feats, feats2, outputs, preconditioner
        As in `empirical_ntk`.
    shape : tuple of int
        Of the result.
    memory_limit, threads : int
    precision : str
        Of `Problem`.
    gpus : sequence of cupy.cuda.Device
        Where tiles are computed; on the CPU if there is none.
    examples : tuple of int, optional
        Of the sides of the kernel of which this is a part, where it is one: it then has that kernel's bits.
    """

    def __init__(
        self,
        feats: Source,
        feats2: Source | None,
        outputs: str,
        preconditioner: Mapping[str, Any] | None,
        shape: tuple[int, ...],
        *,
        memory_limit: int,
        threads: int,
        precision: str,
        gpus: Sequence[Any] = (),
        examples: tuple[int, int] | None = None,
    ) -> None:
        sources = (feats, feats if feats2 is None else feats2)
        self._examples = Examples(*sources)
        self._symmetric = feats2 is None
        head = self._examples.head(0)
        other = None if self._symmetric else self._examples.head(1)
        check_pair(head, other)
        check_on_cpu("a kernel in tiles", head, other)
        self._roots = check_preconditioner(head, preconditioner)
        self._held = self._examples.held_bytes + sum(root.nbytes for pair in self._roots.values() for root in pair)
        self._outputs, self._shape, self._dtype = outputs, shape, feats.dtype
        self._threads = threads
        self._limit, self._precision, self._on_gpus = memory_limit, precision, len(gpus) > 0
        self._counts = (sources[0].num_examples, sources[1].num_examples)
        self._chunks = tuple(source.chunk_size if isinstance(source, ChunkedFeatures) else None for source in sources)
        # A tile is a matrix with `_kept` rows an example, or in the "diagonal" mode `_layers` such matrices.
        self._layers = shape[0] if len(shape) == 3 else 1
        self._kept = shape[3] if len(shape) == 4 else 1
        common = Pieces(outputs, self._roots, examples or self._counts, precision, threads)
        self._runner: PieceRunner = (
            PiecesOnDevices(common, gpus, memory_limit) if gpus else PiecesOnCpu(common, memory_limit)
        )

    def allocate(self) -> FloatArray:
        """Return an array for the kernel in memory, which counts from now on."""
        size = math.prod(self._shape) * self._dtype.itemsize
        if self._held + size > self._limit:
            raise MemoryLimitError(
                f"a kernel of shape {self._shape} in {self._dtype} needs {format_bytes(size)}, beside "
                f"{format_bytes(self._held)} of features and preconditioner, but memory_limit is "
                f"{format_bytes(self._limit)}: give out, an array on disk",
                needed=self._held + size,
                limit=self._limit,
            )
        self._held += size
        return np.empty(self._shape, self._dtype)

    def like_features(self, result: FloatArray) -> Any:
        """Return a result as the kind of array that the features were given as."""
        block = next(iter(self._examples.at_hand().values()))
        return like(result, block.source)

    def fill(self, out: Any, *, progress: str | None, resume: bool) -> None:
        """Write the kernel to `out`, which has the result's shape and dtype; see `empirical_ntk`."""
        unit = write_unit(out, self._shape)
        # Beside those that are computed, the tile that is written behind them, and its mirror.
        copies = self._runner.tiles + (0 if isinstance(out, np.ndarray) else 2)
        if progress is None:
            tile = self._choose_tile(unit, copies)
            self._fill(out, tile, unit, copies, None)
            return
        header = self._header(unit)
        with ExitStack() as stack:
            record = stack.enter_context(Progress(progress)) if resume else None
            if record is not None and record.header is not None:
                tile = int(record.header["tile"])
                record.check(header)
                self._fit(tile, copies)
                record.resume()
            else:
                # Before the file of an earlier computation is touched.
                tile = self._choose_tile(unit, copies)
                record = record or stack.enter_context(Progress(progress))
                record.begin({**header, "tile": tile})
            self._fill(out, tile, unit, copies, record)
            record.complete()

    def _header(self, unit: int) -> dict[str, Any]:
        sides = range(1 if self._symmetric else 2)
        value = 0
        for name in sorted(self._roots):
            for root in self._roots[name]:
                value = array_checksum(root, value)
        return {
            "shape": list(self._shape),
            "dtype": str(self._dtype),
            "outputs": self._outputs,
            "bf16": self._precision == "bf16",
            "gpu": self._precision if self._on_gpus else None,
            "symmetric": self._symmetric,
            "unit": unit,
            "chunk_size": [self._chunks[side] for side in sides],
            "features": [self._examples.fingerprint(side) for side in sides],
            "blocks": layout(self._examples.head(0)),
            "preconditioner": value if self._roots else None,
        }

    def _fill(self, out: Any, tile: int, unit: int, copies: int, record: Progress | None) -> None:
        rows, columns = (
            edges(count, tile, chunk, unit) for count, chunk in zip(self._counts, self._chunks, strict=True)
        )
        numbers = order(rows, columns, (self._chunks[0], self._chunks[1]), self._symmetric)
        places = {(i, j): ((rows[i], rows[i + 1]), (columns[j], columns[j + 1])) for i, j in numbers}
        held = self._beside(tile, copies)
        done = set() if record is None else self._confirmed(out, places, record.done)
        begun: deque[tuple[Range, FloatArray, list[_Piece]]] = deque()

        def store(number: Range, values: FloatArray) -> None:
            self._write(out, values, *places[number])
            if record is not None:
                if callable(flush := getattr(out, "flush", None)):
                    flush()
                record.add(number, self._edge_checksum(values))

        # Other libraries compress with few threads or wait for a disk, and the next tile is computed meanwhile; into
        # NumPy's arrays all threads copy.
        behind = not isinstance(out, np.ndarray)
        written: Future[None] | None = None

        def finish() -> None:
            nonlocal written
            number, tile, parts = begun.popleft()
            values = self._completed(tile, parts)
            if written is not None:
                written.result()
            if behind:
                written = writer.submit(store, number, values)
            else:
                store(number, values)

        with ThreadPoolExecutor(1, "kernelgrowth-tiles") as writer, self._runner.running():
            for number in [number for number in places if number not in done]:
                if len(begun) == self._runner.tiles:
                    finish()
                begun.append((number, *self._begin(*places[number], held)))
            while begun:
                finish()
            if written is not None:
                written.result()

    def _edge_checksum(self, values: FloatArray) -> int:
        """Return a checksum of a tile's first and last example's entries."""
        height = values.shape[0 if len(self._shape) == 4 else -2]
        first, last = (values[self._index((n, n + 1), (0, None))] for n in (0, height - 1))
        return array_checksum(last, array_checksum(first))

    def _confirmed(
        self, out: Any, places: Mapping[Range, tuple[Range, Range]], done: Mapping[Range, int]
    ) -> set[Range]:
        """Return the tiles that are finished and that `out` still holds, by the entries that were summed up."""
        confirmed = set()
        for number, value in done.items():
            if number not in places:
                continue
            (top, bottom), columns = places[number]
            first = np.asarray(out[self._index((top, top + 1), columns)])
            if self._symmetric:  # the mirror was written last
                last = self._mirrored(np.asarray(out[self._index(columns, (bottom - 1, bottom))]))
            else:
                last = np.asarray(out[self._index((bottom - 1, bottom), columns)])
            if array_checksum(last, array_checksum(first)) == value:
                confirmed.add(number)
        if lost := len(done) - len(confirmed):
            warnings.warn(
                f"out does not hold {lost} of the {len(done)} tiles that its progress file lists (was it created "
                "anew?): they are computed again",
                RuntimeWarning,
                stacklevel=5,
            )
        return confirmed

    def _index(self, rows: tuple[int, int | None], columns: tuple[int, int | None]) -> tuple[slice, ...]:
        pair = (slice(*rows), slice(*columns))
        if len(self._shape) == 3:
            return (slice(None), *pair)
        return (*pair, slice(None), slice(None)) if len(self._shape) == 4 else pair

    def _mirrored(self, values: FloatArray) -> FloatArray:
        """Return the tile on the other side of the diagonal."""
        return values.transpose(1, 0, 3, 2) if len(self._shape) == 4 else values.swapaxes(-1, -2)

    def _write(self, out: Any, values: FloatArray, rows: Range, columns: Range) -> None:
        places = [(self._index(rows, columns), values)]
        if self._symmetric and rows != columns:
            places.append((self._index(columns, rows), self._mirrored(values)))
        for index, part in places:
            if isinstance(out, np.ndarray):
                self._copy(part, out[index])
            else:  # other libraries would make such a copy themselves, uncounted
                out[index] = np.ascontiguousarray(part)

    def _copy(self, part: FloatArray, target: FloatArray) -> None:
        """Copy with all threads: one alone, and what is transposed above all, is slower than a GPU computes."""
        if self._threads == 1 or part.nbytes < _THREADED:
            np.copyto(target, part)
            return
        axis = 0 if len(self._shape) == 4 else part.ndim - 2
        strips = [np.array_split(array, self._threads, axis) for array in (target, part)]
        with ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(np.copyto, *strips))

    def _begin(self, rows: Range, columns: Range, held: int) -> tuple[FloatArray, list[_Piece]]:
        """Begin to compute a tile, as matrices, from pieces that lie in one chunk of each side."""
        mirrored = self._symmetric and rows == columns
        k = self._kept
        tile: FloatArray = np.empty((self._layers, (rows[1] - rows[0]) * k, (columns[1] - columns[0]) * k), self._dtype)
        parts: list[_Piece] = []
        across = pieces(*columns, self._chunks[1])
        for turn, down in enumerate(pieces(*rows, self._chunks[0])):
            for right in across if turn % 2 == 0 else reversed(across):
                if mirrored and right < down:
                    continue
                r = slice((down[0] - rows[0]) * k, (down[1] - rows[0]) * k)
                c = slice((right[0] - columns[0]) * k, (right[1] - columns[0]) * k)
                feats, feats2 = self._examples.pair(down, right, self._runner.settle)
                second = None if self._symmetric and down == right else feats2
                wait = self._runner.begin(down, feats, second, tile[:, r, c], held)
                parts.append((wait, r, c, mirrored and down != right))
        return tile, parts

    def _completed(self, tile: FloatArray, parts: list[_Piece]) -> FloatArray:
        """Return a tile in the result's layout, once its pieces are computed."""
        for wait, rows, columns, mirrored in parts:
            wait()
            if mirrored:
                tile[:, columns, rows] = tile[:, rows, columns].swapaxes(1, 2)
        if len(self._shape) == 4:
            k = self._kept
            _, height, width = tile.shape
            return tile.reshape(height // k, k, width // k, k).transpose(0, 2, 1, 3)
        return tile if len(self._shape) == 3 else tile[0]

    def _choose_tile(self, unit: int, copies: int) -> int:
        """Return the examples along a side of a tile: as many as fit, and help, in multiples of `unit`."""
        most = LARGEST_TILE * self._runner.tiles
        room = min(most, max(0, self._limit - self._held) // 2) // self._tile_bytes(1, 1, copies)
        # So many rows of tiles as there are workers leave few of these without work at the end.
        longest = -(-max(self._counts) // self._runner.workers)
        tile = min(math.isqrt(room), -(-longest // unit) * unit)
        while True:
            tile = aligned(tile, unit, self._chunks)
            try:
                self._fit(tile, copies)
            except MemoryLimitError:
                if tile == unit:
                    raise
                tile -= -(-tile // 8)
            else:
                return tile

    def _fit(self, tile: int, copies: int) -> None:
        """Plan the largest pieces of a tile, or say what is lacking."""
        height, width = (min(tile, count) for count in self._counts)
        held = self._beside(tile, copies)
        heads = [self._examples.head(side) for side in (0, 1)]
        if any(self._chunks):
            # More indices may occur in other chunks than in the first.
            heads = [knowing_indices(head, at_most=True) for head in heads]
        first, second = (
            head.examples(0, min(length, head.num_examples))
            for head, length in zip(heads, (height, width), strict=True)
        )
        try:
            if self._symmetric:
                self._runner.check(first, None, held)
            if not self._symmetric or first.num_examples < self._counts[0]:
                self._runner.check(first, second, held)
        except MemoryLimitError as error:
            raise MemoryLimitError(
                f"tiles of {height} x {width} examples take {format_bytes(held - self._held)}, and chunks of features "
                f"and the preconditioner {format_bytes(self._held)}: {error}",
                needed=error.needed,
                limit=error.limit,
            ) from None

    def _beside(self, tile: int, copies: int) -> int:
        """Return the bytes that are held beside a workspace: the largest tile, chunks of features, square roots."""
        height, width = (min(tile, count) for count in self._counts)
        return self._held + self._tile_bytes(height, width, copies)

    def _tile_bytes(self, height: int, width: int, copies: int) -> int:
        return copies * self._layers * height * width * self._kept**2 * self._dtype.itemsize
