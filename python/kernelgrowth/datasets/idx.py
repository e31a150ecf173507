"""Reader of the IDX format in which MNIST is distributed, gzipped or not."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from kernelgrowth._backend.memory import format_bytes

__all__ = ["read_idx"]

_UNSIGNED_BYTE = 0x08
_GZIP_MAGIC = b"\x1f\x8b"
# Deflate codes at most 258 bytes in 2 bits, so a gzipped file cannot hold more than this many times its size.
_GZIP_MAX_RATIO = 1032


def read_idx(path: str | os.PathLike[str], *, ndim: int) -> npt.NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes.

    The sizes that the header claims are checked against the size of the file before anything is allocated.

    Parameters
    ----------
    path : path-like
        The file; gzip is recognised by its content, not by its name.
    ndim : int
        Number of dimensions wanted: 3 for images, 1 for labels.

    Returns
    -------
    ndarray of uint8
        Of the shape in the header.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is truncated, corrupt, empty, has bytes left over, or holds another type or number of dimensions.
    """
    file = Path(path)
    size = file.stat().st_size
    with open(file, "rb") as stream:
        zipped = stream.read(2) == _GZIP_MAGIC
        stream.seek(0)
        if not zipped:
            return _read(file, stream, size, ndim)
        try:
            with gzip.GzipFile(fileobj=stream) as unzipped:
                return _read(file, unzipped, size * _GZIP_MAX_RATIO, ndim)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{file}: truncated or corrupt gzip data: {error}") from error


def _read(file: Path, stream: Any, largest: int, ndim: int) -> npt.NDArray[np.uint8]:
    magic = _exactly(file, stream, 4, "magic number")
    wanted = bytes((0, 0, _UNSIGNED_BYTE, ndim))
    if magic != wanted:
        raise ValueError(
            f"{file}: wrong magic number 0x{magic.hex()}, wanted 0x{wanted.hex()} "
            f"(IDX of unsigned bytes in {ndim} dimension(s))"
        )
    shape = struct.unpack(f">{ndim}I", _exactly(file, stream, 4 * ndim, "header"))
    count = math.prod(shape)
    if count == 0:
        raise ValueError(f"{file}: the header says shape {shape}: no data")
    header = 4 + 4 * ndim
    if count + header > largest:
        raise ValueError(
            f"{file}: truncated or corrupt: the header says shape {shape}, {format_bytes(count)}, "
            f"which a file of this size cannot hold"
        )
    data = _exactly(file, stream, count, "data")
    if stream.read(1):
        raise ValueError(f"{file}: corrupt: more data than the {count} bytes that the header says (shape {shape})")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def _exactly(file: Path, stream: BinaryIO, count: int, what: str) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise ValueError(f"{file}: truncated: {count} bytes of {what} wanted, {len(data)} left")
    return data
