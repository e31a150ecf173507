"""A block of a kernel on disk as an array of its own, whose mirror is written along with it."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernelgrowth._backend.arrays import FloatArray
from kernelgrowth.gradients.identity import array_checksum

__all__ = ["Window", "edge_checksum"]

_Range = tuple[int, int]


class Window:
    """The block of two ranges of examples, to be assigned to in slices.

    Parameters
    ----------
    out : zarr.Array
        The whole kernel.
    shape : tuple of int
        Of the block.
    rows, columns : (int, int)
        Its examples; where the two differ, the block's mirror is written too.
    """

    def __init__(self, out: Any, shape: tuple[int, ...], rows: _Range, columns: _Range) -> None:
        self._out, self._rows, self._columns = out, rows, columns
        self.shape, self.dtype = shape, out.dtype
        self.chunks = getattr(out, "shards", None) or getattr(out, "chunks", None)
        self._axis = _row_axis(shape)
        edge = [length for axis, length in enumerate(shape) if axis != self._axis]
        self._first, self._last = np.empty(edge, self.dtype), np.empty(edge, self.dtype)

    def __setitem__(self, index: tuple[slice, ...], values: FloatArray) -> None:
        places = [slice(*part.indices(length)) for part, length in zip(index, self.shape, strict=True)]
        self._note(places, values)
        axis = self._axis
        for other, begin in ((axis, self._rows[0]), (axis + 1, self._columns[0])):
            places[other] = slice(places[other].start + begin, places[other].stop + begin)
        self._out[tuple(places)] = values
        if self._rows != self._columns:
            places[axis], places[axis + 1] = places[axis + 1], places[axis]
            self._out[tuple(places)] = np.ascontiguousarray(_mirrored(values))

    def edge_checksum(self) -> int:
        """Return a checksum of the first and the last example's entries, once all are written."""
        return array_checksum(self._last, array_checksum(self._first))

    def _note(self, places: list[slice], values: FloatArray) -> None:
        rows = places[self._axis]
        index = tuple(place for axis, place in enumerate(places) if axis != self._axis)
        if rows.start == 0:
            self._first[index] = values.take(0, self._axis)
        if rows.stop == self.shape[self._axis]:
            self._last[index] = values.take(-1, self._axis)


def edge_checksum(out: Any, shape: tuple[int, ...], rows: _Range, columns: _Range) -> int:
    """Return what `Window.edge_checksum` did, of what `out` holds: of the last example, its mirror."""
    axis = _row_axis(shape)

    def read(first: _Range, second: _Range) -> FloatArray:
        index = [slice(None)] * len(shape)
        index[axis], index[axis + 1] = slice(*first), slice(*second)
        return np.asarray(out[tuple(index)])

    top = read((rows[0], rows[0] + 1), columns)
    bottom = _mirrored(read(columns, (rows[1] - 1, rows[1])))
    return array_checksum(np.ascontiguousarray(bottom), array_checksum(np.ascontiguousarray(top)))


def _row_axis(shape: tuple[int, ...]) -> int:
    return 1 if len(shape) == 3 else 0


def _mirrored(values: FloatArray) -> FloatArray:
    return values.transpose(1, 0, 3, 2) if values.ndim == 4 else values.swapaxes(-1, -2)
