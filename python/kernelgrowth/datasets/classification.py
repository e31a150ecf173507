"""What every data set of labelled images shares: classes, targets, subsets, whitening, dtype."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kernelgrowth._backend.checks import check_choice, check_integer, check_number
from kernelgrowth.datasets.dataset import Dataset
from kernelgrowth.datasets.whitening import Whitening

__all__ = ["Images", "Selection", "float_type", "whitening_exponent"]

TARGETS = ("auto", "sign", "centered", "one-hot", "index")


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images as they lie in a file.

    Attributes
    ----------
    pixels : ndarray (N, D)
        One flattened image a row.
    labels : ndarray (N,), integer
        Class of each.
    scale : float
        The value of a full pixel, by which `pixels` are divided.
    """

    pixels: npt.NDArray[Any]
    labels: npt.NDArray[np.int64]
    scale: float

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: npt.NDArray[np.intp]) -> Images:
        """Return the images at `index`, in that order."""
        return Images(self.pixels[index], self.labels[index], self.scale)


@dataclass(frozen=True)
class Selection:
    """How a data set is made from labelled images; checked when it is built, before any file is opened.

    The loaders take these as keyword arguments:

    classes
        Distinct labels to keep, at least two, in the order in which they are numbered; None keeps all.
    n_train, n_test
        Sizes of the subsets; None takes all there are. ``n_test=0`` takes no test examples.
    whiten
        False keeps the pixel values in [0, 1]; True whitens (gamma = 0); a float gamma in [0, 1] whitens partially.
        The map is fitted on the training examples alone and applied to the test examples.
    reduce
        Where whitened, return coordinates in the span of the training examples instead of pixels.
    targets
        "sign": -1 for the first class and +1 for the second, shape (N,). "one-hot": (N, C). "centered": one-hot minus
        1/C, so that the outputs sum to 0, (N, C). "index": int64 positions in `classes`, (N,). "auto": "sign" for two
        classes and "centered" for more.
    seed
        Chooses the subset. Training subsets of one seed are nested: a larger one begins with the smaller one; each is
        close to the proportions of the classes.
    dtype
        float32 or float64.
    """

    classes: tuple[int, ...] | None
    n_train: int | None
    n_test: int | None
    gamma: float | None
    reduce: bool
    targets: str
    seed: int
    dtype: np.dtype[Any]

    @classmethod
    def check(
        cls,
        *,
        classes: Sequence[int] | None,
        n_train: int | None,
        n_test: int | None,
        whiten: bool | float,
        reduce: bool,
        targets: str,
        seed: int,
        dtype: npt.DTypeLike,
    ) -> Selection:
        """Check a loader's arguments and gather them."""
        chosen = _check_classes(classes)
        if n_train is not None:
            n_train = check_integer("n_train", n_train, minimum=1)
        if n_test is not None:
            n_test = check_integer("n_test", n_test, minimum=0)
        gamma = whitening_exponent(whiten)
        if not isinstance(reduce, bool):
            raise TypeError(f"reduce must be True or False, got {reduce!r}")
        check_choice("targets", targets, TARGETS)
        if targets == "sign" and chosen is not None and len(chosen) != 2:
            raise ValueError(f"targets 'sign' needs exactly two classes, got {len(chosen)}")
        seed = check_integer("seed", seed, minimum=0)
        return cls(chosen, n_train, n_test, gamma, reduce, targets, seed, float_type(dtype))

    @property
    def wants_test(self) -> bool:
        """Whether any test examples are asked for."""
        return self.n_test != 0

    def from_pool(self, name: str, pool: Images, default_fraction: float, info: dict[str, Any]) -> Dataset:
        """Divide one pool of images into a training and a test set."""
        classes = self._classes_of(pool)
        kept = pool.take(np.flatnonzero(np.isin(pool.labels, classes)))
        n_train = round(default_fraction * len(kept)) if self.n_train is None else self.n_train
        _check_available("n_train", n_train, len(kept))
        n_test = len(kept) - n_train if self.n_test is None else self.n_test
        _check_available("n_test", n_test, len(kept) - n_train, f" left after n_train={n_train}")
        order = _balanced_order(kept.labels, [self.seed, 0])
        train, test = kept.take(order[:n_train]), kept.take(order[n_train : n_train + n_test])
        return self._dataset(name, train, test, classes, info)

    def from_parts(self, name: str, train: Images, test: Images | None, info: dict[str, Any]) -> Dataset:
        """Choose training and test examples, each from the part that is meant for them."""
        classes = self._classes_of(train)
        chosen = self._draw("n_train", train, classes, self.n_train, stream=0)
        held_out = None if test is None else self._draw("n_test", test, classes, self.n_test, stream=1)
        return self._dataset(name, chosen, held_out, classes, info)

    def _draw(self, name: str, part: Images, classes: tuple[int, ...], wanted: int | None, *, stream: int) -> Images:
        kept = part.take(np.flatnonzero(np.isin(part.labels, classes)))
        count = len(kept) if wanted is None else wanted
        _check_available(name, count, len(kept))
        return kept.take(_balanced_order(kept.labels, [self.seed, stream])[:count])

    def _dataset(
        self, name: str, train: Images, test: Images | None, classes: tuple[int, ...], info: dict[str, Any]
    ) -> Dataset:
        """Scale, whiten and label the chosen images."""
        x = train.pixels / train.scale
        x_test = test.pixels / test.scale if test is not None and len(test) else None
        whitening = None
        if self.gamma is not None:
            whitening = Whitening.fit(x, self.gamma, reduce=self.reduce)
            x = whitening.transform(x)
            x_test = None if x_test is None else whitening.transform(x_test)
        y_test = None if x_test is None or test is None else self._targets(test.labels, classes)
        return Dataset(
            x.astype(self.dtype),
            self._targets(train.labels, classes),
            None if x_test is None else x_test.astype(self.dtype),
            y_test,
            name=f"{name} {'/'.join(str(label) for label in classes)}",
            info={
                **info,
                "classes": classes,
                "targets": self._targets_kind(classes),
                "gamma": self.gamma,
                "whitening": whitening,
                "seed": self.seed,
            },
        )

    def _classes_of(self, images: Images) -> tuple[int, ...]:
        present = tuple(int(label) for label in np.unique(images.labels))
        if self.classes is None:
            if len(present) < 2:
                raise ValueError(f"the data hold only the class {present[0]}: at least two classes are needed")
            return present
        missing = [label for label in self.classes if label not in present]
        if missing:
            raise ValueError(f"classes must be among those of the data, {list(present)}, got {missing[0]}")
        return self.classes

    def _targets_kind(self, classes: tuple[int, ...]) -> str:
        if self.targets != "auto":
            return self.targets
        return "sign" if len(classes) == 2 else "centered"

    def _targets(self, labels: npt.NDArray[np.int64], classes: tuple[int, ...]) -> npt.NDArray[Any]:
        matches = labels[:, None] == np.asarray(classes)
        kind = self._targets_kind(classes)
        if kind == "index":
            return np.asarray(matches.argmax(axis=1), dtype=np.int64)
        if kind == "sign":
            if len(classes) != 2:
                raise ValueError(f"targets 'sign' needs exactly two classes, got {len(classes)}")
            return np.where(matches[:, 1], 1.0, -1.0).astype(self.dtype)
        shift = 1.0 / len(classes) if kind == "centered" else 0.0
        return np.asarray(matches - shift, dtype=self.dtype)


def whitening_exponent(whiten: Any) -> float | None:
    """Return the gamma that a `whiten` argument asks for, None for no whitening."""
    if isinstance(whiten, (bool, np.bool_)):
        return 0.0 if whiten else None
    # 1 could be meant as True (gamma 0) or as gamma = 1, which are opposites.
    if isinstance(whiten, numbers.Integral):
        raise TypeError(f"whiten must be True, False or a float gamma, got the integer {whiten}: write {float(whiten)}")
    if not isinstance(whiten, numbers.Real):
        raise TypeError(f"whiten must be True, False or a float gamma, got {whiten!r}")
    return check_number("whiten", whiten, minimum=0.0, maximum=1.0)


def float_type(dtype: npt.DTypeLike) -> np.dtype[Any]:
    """Return `dtype` if it is float32 or float64."""
    try:
        kind = np.dtype(dtype)
    except TypeError as error:
        raise TypeError(f"dtype must be float32 or float64, got {dtype!r}") from error
    if dtype is None or kind not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise TypeError(f"dtype must be float32 or float64, got {dtype!r}")
    return kind


def _check_classes(classes: Sequence[int] | None) -> tuple[int, ...] | None:
    if classes is None:
        return None
    if isinstance(classes, (str, bytes)) or not hasattr(classes, "__iter__"):
        raise TypeError(f"classes must be a sequence of labels, got {classes!r}")
    chosen = tuple(check_integer("classes", label) for label in classes)
    if len(chosen) < 2 or len(set(chosen)) != len(chosen):
        raise ValueError(f"classes must be at least two distinct labels, got {list(chosen)}")
    return chosen


def _check_available(name: str, wanted: int, available: int, where: str = "") -> None:
    if wanted > available:
        raise ValueError(f"{name} must be at most the {available} examples of these classes{where}, got {wanted}")


def _balanced_order(labels: npt.NDArray[np.int64], seed: list[int]) -> npt.NDArray[np.intp]:
    """Return a random order of the examples in which every prefix is close to the proportions of the classes."""
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    position = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels[shuffled] == label)
        # Spread each class evenly over [0, 1): the merge of the classes is then even too.
        position[members] = (np.arange(len(members)) + 0.5) / len(members)
    return shuffled[np.argsort(position, kind="stable")]
