"""Files that a killed process cannot leave half-written."""

from __future__ import annotations

import contextlib
import io
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

__all__ = ["atomic_save_array", "atomic_save_arrays", "atomic_write_text", "atomic_writer"]


@contextlib.contextmanager
def atomic_writer(path: str | os.PathLike[str], *, durable: bool = True) -> Iterator[BinaryIO]:
    """Yield a binary file that replaces `path` when the block ends, and leaves `path` untouched if it fails.

    Without `durable` that holds for a killed process, but not for a power cut before the caller's own fsync.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as stream:
            yield stream
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def atomic_write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 `text` to `path` all or nothing."""
    with atomic_writer(path) as stream:
        stream.write(text.encode("utf-8"))


def atomic_save_array(path: str | os.PathLike[str], array: np.ndarray[Any, Any], *, durable: bool = True) -> None:
    """Write one array to `path` in NumPy's `.npy` format, all or nothing; `durable` as for `atomic_writer`."""
    values = np.asarray(array, order="C")
    if values.dtype.hasobject:
        raise ValueError("Object arrays cannot be saved: what they hold would have to be pickled")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(values))
    with atomic_writer(path, durable=durable) as stream:
        stream.write(header.getbuffer())
        # Not by numpy: what it writes to a file itself says on a full disk how much, not why.
        stream.write(values.reshape(-1).view(np.uint8).data)


def atomic_save_arrays(path: str | os.PathLike[str], arrays: Mapping[str, Any]) -> None:
    """Write named arrays to `path` in NumPy's uncompressed `.npz` format, all or nothing."""
    # What numpy.savez writes, which could not be told in every version to refuse objects.
    with atomic_writer(path) as stream, zipfile.ZipFile(stream, "w") as archive:
        for name, value in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(value), allow_pickle=False)
