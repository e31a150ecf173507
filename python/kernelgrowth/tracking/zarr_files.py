"""Arrays of a run as Zarr v3 files: written a chunk of whole rows at a time, read by Zarr itself.

Zarr's own writer takes 1 to 4 ms an operation, which is more than many a tracked step and a whole training step; what
it does for such arrays is little: a metadata file that the specification describes, and a chunk that its codec library
compresses.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kernelgrowth._backend.errors import RunFolderError
from kernelgrowth.tracking.place import Place

__all__ = ["CHUNK", "META", "ArrayFiles", "check_zarr", "read_array", "write_group"]

META = "zarr.json"
CHUNK = r"c(\.\d+)+"


def check_zarr() -> None:
    """Raise `ImportError` that says what to install where a run cannot be recorded or read for want of Zarr."""
    try:
        importlib.import_module("zarr")
    except ImportError as error:
        raise ImportError(f'recorded runs need zarr ({error}): pip install "kernelgrowth[run]"') from error


def write_group(place: Place, path: str, attributes: dict[str, Any]) -> None:
    """Write a group's metadata, which is on the disk then."""
    meta = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    place.write(f"{path}/{META}" if path else META, (json.dumps(meta, indent=2) + "\n").encode(), durable=True)


class ArrayFiles:
    """An array (rows, ...) being written. What its rows beyond those written hold is undefined.

    Parameters
    ----------
    place : Place
    path : str
    row_shape : tuple of int
    dtype : numpy.dtype
    chunk_rows : int
        Rows in a chunk.
    names : sequence of str, optional
        Of the dimensions.
    durable : bool
        Whether writing a chunk waits for the disk, as it has to where a power cut must not take what was there before.
    """

    def __init__(
        self,
        place: Place,
        path: str,
        row_shape: tuple[int, ...],
        dtype: Any,
        *,
        chunk_rows: int,
        names: Sequence[str] | None = None,
        durable: bool,
    ) -> None:
        self._place, self._path, self._row_shape, self._durable = place, path, row_shape, durable
        self._dtype, self._chunk_rows, self._names = np.dtype(dtype), chunk_rows, names
        # As the metadata last written says; None before.
        self.rows: int | None = None

    def fits(self, row_shape: tuple[int, ...], dtype: Any) -> bool:
        """Whether rows of this shape and dtype go there."""
        return (row_shape, np.dtype(dtype)) == (self._row_shape, self._dtype)

    def resize(self, rows: int) -> None:
        """Say how many rows there are."""
        if rows == self.rows:
            return
        meta: dict[str, Any] = {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [rows, *self._row_shape],
            "data_type": self._dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(self._chunk_shape())}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            "fill_value": "NaN" if self._dtype.kind == "f" else 0,
            "codecs": [
                {"name": "bytes", "configuration": {"endian": "little"}},
                {
                    "name": "blosc",
                    "configuration": {
                        "typesize": self._dtype.itemsize,
                        "cname": "lz4",
                        "clevel": 1,
                        "shuffle": "bitshuffle",
                        "blocksize": 0,
                    },
                },
                {"name": "crc32c"},
            ],
            "attributes": {},
        }
        if self._names is not None:
            meta["dimension_names"] = list(self._names)
        self._place.write(f"{self._path}/{META}", json.dumps(meta).encode(), durable=True)
        self.rows = rows

    def _chunk_shape(self) -> tuple[int, ...]:
        return (self._chunk_rows, *(max(1, length) for length in self._row_shape))

    def write_chunk(self, number: int, rows: npt.NDArray[Any]) -> None:
        """Write the first rows of a chunk, and nothing in particular to the rest of it."""
        if not rows.size:
            return
        chunk = rows
        if len(rows) < self._chunk_rows:
            chunk = np.zeros(self._chunk_shape(), self._dtype)
            chunk[: len(rows)] = rows
        self._place.write(self._file(number), _encoded(chunk), durable=self._durable)

    def write_rows(self, first: int, column: npt.NDArray[Any]) -> None:
        """Write the rows of a whole column from `first` on, in whole chunks."""
        size = self._chunk_rows
        for number in range(first // size, -(-len(column) // size)):
            self.write_chunk(number, column[number * size : (number + 1) * size])

    def _file(self, number: int) -> str:
        return f"{self._path}/c.{number}" + ".0" * len(self._row_shape)


def _encoded(chunk: npt.NDArray[Any]) -> bytes:
    """Return a chunk as the codecs above encode it."""
    import google_crc32c
    from numcodecs import blosc

    little = np.ascontiguousarray(chunk, chunk.dtype.newbyteorder("<"))
    packed: bytes = blosc.compress(little, b"lz4", 1, blosc.BITSHUFFLE, 0, little.itemsize)
    # Blosc reads beyond the end of what was cut short.
    return packed + int(google_crc32c.value(packed)).to_bytes(4, "little")


def read_array(place: Place, path: str, rows: int | None = None, *, first: int = 0) -> npt.NDArray[Any] | None:
    """Return the rows of an array from `first` on, to the end or so many; None if it has fewer or is not there.

    Raises
    ------
    RunFolderError
        If a file is missing or corrupt.
    """
    if not place.exists(f"{path}/{META}"):
        return None
    check_zarr()
    import zarr

    name = place.name(path)
    try:
        array: Any = zarr.open_array(place.zarr_store(), path=path, mode="r", zarr_format=3)
        stop = array.shape[0] if rows is None else first + rows
        if stop > array.shape[0]:
            return None
        if array.size and stop > first:
            # Zarr reads a missing chunk as fill values.
            size = array.chunks[0]
            wanted = [f"c.{number}" + ".0" * (array.ndim - 1) for number in range(first // size, -(-stop // size))]
            there = set(place.entries(path)) if len(wanted) > 1 else None
            for file in wanted:
                if file not in there if there is not None else not place.exists(f"{path}/{file}"):
                    raise FileNotFoundError(f"chunk {file} is missing")
        return np.asarray(array[first:stop])
    except RunFolderError:
        raise
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise RunFolderError(f"{name}: is corrupt: {error}") from error
