"""The 8x8 handwritten digits that scikit-learn ships."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kernelgrowth.datasets.classification import Images, Selection
from kernelgrowth.datasets.dataset import Dataset

__all__ = ["digits"]

_TRAIN_FRACTION = 2 / 3


def digits(
    classes: Sequence[int] | None = (0, 1),
    *,
    n_train: int | None = None,
    n_test: int | None = None,
    whiten: bool | float = True,
    reduce: bool = True,
    targets: str = "auto",
    seed: int = 0,
    dtype: npt.DTypeLike = np.float64,
) -> Dataset:
    """Load scikit-learn's 8x8 handwritten digits, whitened by default. Nothing is downloaded.

    With the defaults, digits 0 against 1: 240 of the 360 examples for training, whitened on their span, the other 120
    mapped by the same transform for testing.

    Parameters
    ----------
    classes : sequence of int, optional
        Distinct digits, at least two; None takes all ten.
    n_train : int, optional
        Number of training examples; by default two thirds of those of the classes.
    n_test : int, optional
        Number of examples held out; by default all the others. 0 for none.
    whiten : bool or float
        False keeps the pixels, scaled to [0, 1]; True whitens; a float in [0, 1] is the gamma of `partial_whiten`.
        The map is fitted on the training examples only.
    reduce : bool
        Where whitened, return the r coordinates in the span of the training examples (r is about 50 for 0 against 1,
        where many of the 64 pixels are always empty) instead of the 64 pixels.
    targets : {"auto", "sign", "centered", "one-hot", "index"}
        "sign": -1 for the first class and +1 for the second, shape (N,). "one-hot": (N, C). "centered": one-hot minus
        1/C, so that the outputs sum to 0, (N, C). "index": int64 positions in `classes`, (N,). "auto": "sign" for two
        classes and "centered" for more.
    seed : int
        Chooses which examples are for training. Every subset is close to the proportions of the classes, and training
        subsets of one seed are nested.
    dtype : float32 or float64
        Of inputs and targets. The arithmetic before is float64.

    Returns
    -------
    Dataset
        `info` holds ``classes``, ``targets``, ``gamma`` (None if not whitened), ``whitening`` (the fitted `Whitening`
        or None), ``seed`` and ``image_shape`` (8, 8).

    Raises
    ------
    ImportError
        If scikit-learn is not installed.
    TypeError, ValueError
        If an argument is of the wrong type or out of range, or more examples are asked for than there are.
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
    return selection.from_pool("digits", _load(), _TRAIN_FRACTION, {"image_shape": (8, 8)})


def _load() -> Images:
    try:
        source = importlib.import_module("sklearn.datasets")
    except ImportError as error:
        raise ImportError(
            'digits needs scikit-learn, which is not installed: pip install "kernelgrowth[run]"'
        ) from error
    pixels, labels = source.load_digits(return_X_y=True)
    return Images(np.asarray(pixels), np.asarray(labels, dtype=np.int64), 16.0)
