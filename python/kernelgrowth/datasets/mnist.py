"""MNIST, and data sets in its format, from files on disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kernelgrowth.datasets.classification import Images, Selection
from kernelgrowth.datasets.dataset import Dataset
from kernelgrowth.datasets.idx import read_idx

__all__ = ["mnist"]

# As unpacked by hand, and as torchvision leaves them.
_FOLDERS = ("", "raw", "MNIST/raw")
_NUM_CLASSES = 10


def mnist(
    root: str | os.PathLike[str],
    *,
    classes: Sequence[int] | None = None,
    n_train: int | None = None,
    n_test: int | None = None,
    whiten: bool | float = False,
    reduce: bool = False,
    targets: str = "auto",
    seed: int = 0,
    dtype: npt.DTypeLike = np.float32,
) -> Dataset:
    """Load MNIST (or Fashion-MNIST, or another set in its format) from a folder. Nothing is downloaded.

    Reads ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and
    ``t10k-labels-idx1-ubyte``, gzipped (``.gz``) or not, from `root`, ``root/raw`` or ``root/MNIST/raw``.

    Parameters
    ----------
    root : path-like
        The folder.
    classes : sequence of int, optional
        Distinct digits, at least two, in the order in which they are numbered; all ten by default.
    n_train, n_test : int, optional
        Numbers of examples, taken from the training and from the test files; by default all of the classes.
        With ``n_test=0`` the test files are not opened.
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
        Rows are flattened images. `info` holds ``classes``, ``targets``, ``gamma`` (None if not whitened),
        ``whitening`` (the fitted `Whitening` or None), ``seed`` and ``image_shape`` (rows, columns).

    Raises
    ------
    FileNotFoundError
        If the folder or a file is missing.
    ValueError
        If a file is truncated, corrupt or of another format, images and labels differ in number, or an argument is
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
    folder = Path(root)
    if not folder.is_dir():
        raise FileNotFoundError(f"root must be a folder with the MNIST files, there is none at {folder}")
    train, shape = _read_part(folder, "train")
    test = None
    if selection.wants_test:
        test, test_shape = _read_part(folder, "t10k")
        if test_shape != shape:
            raise ValueError(f"{folder}: the training images are {shape} but the test images are {test_shape}")
    return selection.from_parts("MNIST", train, test, {"image_shape": shape})


def _read_part(folder: Path, part: str) -> tuple[Images, tuple[int, int]]:
    image_file, label_file = _find(folder, f"{part}-images", "idx3"), _find(folder, f"{part}-labels", "idx1")
    images, labels = read_idx(image_file, ndim=3), read_idx(label_file, ndim=1)
    if len(images) != len(labels):
        raise ValueError(f"{image_file} holds {len(images)} images but {label_file} holds {len(labels)} labels")
    if labels.max() >= _NUM_CLASSES:
        first = int(np.argmax(labels >= _NUM_CLASSES))
        raise ValueError(f"{label_file}: corrupt: label {labels[first]} of example {first} is not in 0..9")
    return Images(images.reshape(len(images), -1), labels.astype(np.int64), 255.0), images.shape[1:]


def _find(folder: Path, stem: str, kind: str) -> Path:
    # Both spellings are in circulation.
    names = [f"{stem}{joint}{kind}-ubyte{suffix}" for joint in ("-", ".") for suffix in ("", ".gz")]
    for place in _FOLDERS:
        for name in names:
            if (folder / place / name).is_file():
                return folder / place / name
    raise FileNotFoundError(f"{folder}: no file {names[0]} or {names[1]} here or in {_FOLDERS[1]} or {_FOLDERS[2]}")
