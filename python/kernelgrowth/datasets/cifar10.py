"""CIFAR-10 from files on disk, in its python or its binary version."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kernelgrowth._backend.checks import check_integer
from kernelgrowth.datasets.classification import Images, Selection
from kernelgrowth.datasets.dataset import Dataset
from kernelgrowth.datasets.plain_pickle import load_plain_pickle

__all__ = ["CIFAR10_CLASSES", "cifar10"]

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_IMAGE_SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32
_TRAIN_BATCHES = (1, 2, 3, 4, 5)
# Folders in which the files may lie below `root`, as the two archives unpack.
_FOLDERS = ("", "cifar-10-batches-py", "cifar-10-batches-bin")


def cifar10(
    root: str | os.PathLike[str],
    *,
    classes: Sequence[int] | None = None,
    batches: Sequence[int] = _TRAIN_BATCHES,
    n_train: int | None = None,
    n_test: int | None = None,
    whiten: bool | float = False,
    reduce: bool = False,
    targets: str = "auto",
    seed: int = 0,
    dtype: npt.DTypeLike = np.float32,
) -> Dataset:
    """Load CIFAR-10 from a folder. Nothing is downloaded.

    Reads ``data_batch_1`` to ``data_batch_5`` and ``test_batch`` (the python version) or ``data_batch_1.bin`` to
    ``data_batch_5.bin`` and ``test_batch.bin`` (the binary version) from `root` or the folder below it that the
    archive makes. The python batches are pickles; they are read by a reader that builds only arrays, strings, bytes,
    numbers and containers, and can call nothing.

    Parameters
    ----------
    root : path-like
        The folder.
    classes : sequence of int, optional
        Distinct labels (see `CIFAR10_CLASSES`), at least two, in the order in which they are numbered; all ten by
        default.
    batches : sequence of int
        Which of the training batches 1 to 5 to read.
    n_train, n_test : int, optional
        Numbers of examples, taken from the training and from the test batches; by default all of the classes.
        With ``n_test=0`` the test batch is not opened.
    whiten : bool or float
        False keeps the pixels, scaled to [0, 1]; True whitens; a float in [0, 1] is the gamma of `partial_whiten`.
        The map is fitted on the training examples only (cost: one singular value decomposition of them).
    reduce : bool
        Where whitened, return coordinates in the span of the training examples instead of the pixels.
    targets : {"auto", "sign", "centered", "one-hot", "index"}
        "sign": -1 for the first class and +1 for the second, shape (N,). "one-hot": (N, C). "centered": one-hot minus
        1/C, so that the outputs sum to 0, (N, C). "index": int64 positions in `classes`, (N,). "auto": "sign" for two
        classes and "centered" for more.
    seed : int
        Chooses the subsets. Each is close to the proportions of the classes; subsets of one seed are nested.
    dtype : float32 or float64
        Of inputs and targets. The arithmetic before is float64.

    Returns
    -------
    Dataset
        Rows are flattened images, channel by channel (red, green, blue). `info` holds ``classes``, ``class_names``,
        ``targets``, ``gamma`` (None if not whitened), ``whitening`` (the fitted `Whitening` or None), ``seed`` and
        ``image_shape`` (3, 32, 32).

    Raises
    ------
    FileNotFoundError
        If the folder or a file is missing.
    ValueError
        If a file is truncated, corrupt, of another format, or a pickle of anything but plain data, or an argument is
        out of range.
    TypeError
        If an argument is of the wrong type.
    """
    selection = Selection.check(
        classes=classes,
        n_train=n_train,
        n_test=n_test,
        whiten=whiten,
        reduce=reduce,
        targets=targets,
        seed=seed,
        dtype=dtype,
    )
    names = _batch_names(batches)
    folder, suffix = _find(Path(root))
    train = _read(folder / f"{name}{suffix}" for name in names)
    test = _read([folder / f"test_batch{suffix}"]) if selection.wants_test else None
    data = selection.from_parts("CIFAR-10", train, test, {"image_shape": _IMAGE_SHAPE})
    data.info["class_names"] = tuple(CIFAR10_CLASSES[label] for label in data.info["classes"])
    return data


def _batch_names(batches: Sequence[int]) -> list[str]:
    if isinstance(batches, (str, bytes)) or not hasattr(batches, "__iter__"):
        raise TypeError(f"batches must be a sequence of numbers from 1 to 5, got {batches!r}")
    numbers = [check_integer("batches", number, minimum=1, maximum=5) for number in batches]
    if not numbers or len(set(numbers)) != len(numbers):
        raise ValueError(f"batches must be distinct numbers from 1 to 5, at least one, got {numbers}")
    return [f"data_batch_{number}" for number in numbers]


def _find(root: Path) -> tuple[Path, str]:
    """Return the folder of the batches, and the suffix of their names."""
    if not root.is_dir():
        raise FileNotFoundError(f"root must be a folder with the CIFAR-10 batches, there is none at {root}")
    stems = ["test_batch", *(f"data_batch_{number}" for number in _TRAIN_BATCHES)]
    for place in _FOLDERS:
        for suffix in ("", ".bin"):
            if any((root / place / f"{stem}{suffix}").is_file() for stem in stems):
                return root / place, suffix
    raise FileNotFoundError(
        f"{root}: no file data_batch_1 or data_batch_1.bin here or in {_FOLDERS[1]} or {_FOLDERS[2]}"
    )


def _read(files: Iterable[Path]) -> Images:
    pixels, labels = [], []
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing from the CIFAR-10 batches")
        data = file.read_bytes()
        images, classes = _binary_batch(file, data) if file.suffix == ".bin" else _python_batch(file, data)
        for index, label in enumerate(classes):
            if not 0 <= label < len(CIFAR10_CLASSES):
                raise ValueError(f"{file}: corrupt: the label of example {index} is not in 0..9")
        pixels.append(images)
        labels.append(np.asarray(classes, dtype=np.int64))
    return Images(np.concatenate(pixels), np.concatenate(labels), 255.0)


def _binary_batch(file: Path, data: bytes) -> tuple[npt.NDArray[np.uint8], list[int]]:
    record = 1 + _PIXELS
    if not data or len(data) % record:
        raise ValueError(
            f"{file}: truncated or corrupt: {len(data)} bytes are not a whole number of examples of {record} bytes"
        )
    records = np.frombuffer(data, dtype=np.uint8).reshape(-1, record)
    return records[:, 1:], records[:, 0].tolist()


def _python_batch(file: Path, data: bytes) -> tuple[npt.NDArray[np.uint8], list[int]]:
    try:
        batch = load_plain_pickle(data)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    if not isinstance(batch, dict):
        raise ValueError(f"{file}: a CIFAR-10 batch must be a dict, got {type(batch).__name__}")
    images, labels = _entry(file, batch, "data"), _entry(file, batch, "labels")
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (_PIXELS,):
        found = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
        raise ValueError(f"{file}: 'data' must be a uint8 array (N, {_PIXELS}), got {found}")
    if not isinstance(labels, list) or any(type(label) is not int for label in labels):
        raise ValueError(f"{file}: 'labels' must be a list of integers")
    if len(labels) != len(images) or not labels:
        raise ValueError(f"{file}: 'data' holds {len(images)} images but 'labels' {len(labels)} labels")
    return images, labels


def _entry(file: Path, batch: dict[Any, Any], name: str) -> Any:
    # Bytes as Python 2 wrote them, text when the file was saved again.
    for key in (name.encode(), name):
        if key in batch:
            return batch[key]
    raise ValueError(f"{file}: no entry {name!r} in this CIFAR-10 batch")
