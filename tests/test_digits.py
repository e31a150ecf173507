"""The 8x8 digits: what is selected, how it is labelled, and that whitening sees only the training examples."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelgrowth.datasets import Whitening, digits

sklearn_datasets = pytest.importorskip("sklearn.datasets")

CLASSES = st.lists(st.integers(0, 9), min_size=2, max_size=5, unique=True)


def all_rows():
    pixels, labels = sklearn_datasets.load_digits(return_X_y=True)
    return {(pixels[i] / 16).tobytes(): int(labels[i]) for i in range(len(labels))}


def test_the_demo_data():
    data = digits()
    assert data.x.shape == (240, 51)
    assert data.x_test.shape == (120, 51)
    assert data.x.dtype == data.y.dtype == np.float64
    assert set(data.y) == {-1.0, 1.0}
    np.testing.assert_allclose(data.x.T @ data.x / 240, np.eye(51), atol=1e-10)
    assert data.info["classes"] == (0, 1)
    assert data.info["image_shape"] == (8, 8)
    assert data.info["whitening"].rank == 51


@settings(deadline=None, max_examples=25)
@given(classes=CLASSES, seed=st.integers(0, 2**32), n_train=st.integers(1, 200), n_test=st.integers(0, 100))
def test_examples_carry_their_own_labels_and_none_is_used_twice(classes, seed, n_train, n_test):
    data = digits(classes, n_train=n_train, n_test=n_test, whiten=False, targets="index", seed=seed)
    rows = all_rows()
    assert data.num_examples == n_train
    assert data.num_test == n_test
    parts = [(data.x, data.y)] + ([(data.x_test, data.y_test)] if n_test else [])
    seen = set()
    for x, y in parts:
        for row, index in zip(x, y, strict=True):
            assert rows[row.tobytes()] == classes[index]
            seen.add(row.tobytes())
    # The 1797 images are all different.
    assert len(seen) == n_train + n_test


@settings(deadline=None, max_examples=20)
@given(classes=CLASSES, seed=st.integers(0, 2**32), n_train=st.integers(2, 150))
def test_subsets_are_balanced_nested_and_reproducible(classes, seed, n_train):
    whole = digits(classes, n_train=200, whiten=False, targets="index", seed=seed)
    part = digits(classes, n_train=n_train, whiten=False, targets="index", seed=seed)
    np.testing.assert_array_equal(part.x, whole.x[:n_train])
    # The digits are about equally frequent.
    counts = np.bincount(part.y, minlength=len(classes))
    assert np.all(np.abs(counts - n_train / len(classes)) <= 1 + 0.05 * n_train)


@settings(deadline=None, max_examples=10)
@given(
    classes=CLASSES,
    gamma=st.sampled_from([True, 0.0, 0.25, 1.0]),
    reduce=st.booleans(),
    seed=st.integers(0, 100),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_whitening_is_fitted_on_the_training_examples_only(classes, gamma, reduce, seed, dtype):
    raw = digits(classes, n_train=100, whiten=False, seed=seed)
    data = digits(classes, n_train=100, whiten=gamma, reduce=reduce, seed=seed, dtype=dtype)
    whitening = Whitening.fit(raw.x, 0.0 if gamma is True else gamma, reduce=reduce)
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    assert data.x.dtype == data.x_test.dtype == dtype
    np.testing.assert_allclose(data.x, whitening.transform(raw.x), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(data.x_test, whitening.transform(raw.x_test), rtol=tolerance, atol=tolerance)
    # Fewer test examples change nothing about the training examples.
    fewer = digits(classes, n_train=100, n_test=3, whiten=gamma, reduce=reduce, seed=seed, dtype=dtype)
    np.testing.assert_array_equal(fewer.x, data.x)
    np.testing.assert_allclose(fewer.x_test, data.x_test[:3], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("classes", [(3, 8), (8, 3), (1, 2, 5), None])
def test_kinds_of_targets(classes):
    chosen = tuple(range(10)) if classes is None else classes
    index = digits(classes, whiten=False, targets="index").y
    assert index.dtype == np.int64
    one_hot = digits(classes, whiten=False, targets="one-hot", dtype=np.float32).y
    np.testing.assert_array_equal(one_hot, np.eye(len(chosen), dtype=np.float32)[index])
    assert one_hot.dtype == np.float32
    centered = digits(classes, whiten=False, targets="centered").y
    np.testing.assert_allclose(centered, np.eye(len(chosen))[index] - 1 / len(chosen))
    np.testing.assert_allclose(centered.sum(axis=1), 0.0, atol=1e-15)
    auto = digits(classes, whiten=False)
    assert auto.info["classes"] == chosen
    if len(chosen) == 2:
        np.testing.assert_array_equal(auto.y, 2.0 * index - 1.0)
        np.testing.assert_array_equal(digits(classes, whiten=False, targets="sign").y, auto.y)
    else:
        np.testing.assert_array_equal(auto.y, centered)
        with pytest.raises(ValueError, match="exactly two classes"):
            digits(classes, targets="sign")


def test_a_subset_too_small_for_all_classes_keeps_their_columns():
    data = digits(None, n_train=3, n_test=4, whiten=False, targets="one-hot")
    assert data.y.shape == (3, 10)
    assert data.y_test.shape == (4, 10)
    assert np.all(data.y_test.sum(axis=1) == 1.0)


def test_pixels_lie_between_zero_and_one():
    data = digits(None, whiten=False)
    assert data.x.shape[1] == 64
    assert data.x.min() == 0.0
    assert data.x.max() == 1.0
    assert data.info["gamma"] is None
    assert data.info["whitening"] is None


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"classes": (0,)}, ValueError, "classes must be at least two distinct labels"),
        ({"classes": (0, 0)}, ValueError, "classes must be at least two distinct labels"),
        ({"classes": (0, 10)}, ValueError, r"classes must be among those of the data, .*, got 10"),
        ({"classes": (0, 1.5)}, TypeError, "classes must be an integer"),
        ({"classes": "01"}, TypeError, "classes must be a sequence"),
        ({"classes": 3}, TypeError, "classes must be a sequence"),
        ({"n_train": 0}, ValueError, "n_train must be at least 1"),
        ({"n_train": 361}, ValueError, "n_train must be at most the 360 examples"),
        ({"n_train": 300, "n_test": 61}, ValueError, "n_test must be at most the 60 examples .* after n_train=300"),
        ({"n_test": -1}, ValueError, "n_test must be at least 0"),
        ({"whiten": 0}, TypeError, "got the integer 0: write 0.0"),
        ({"whiten": None}, TypeError, "whiten must be"),
        ({"whiten": -0.5}, ValueError, "whiten must be at least 0"),
        ({"reduce": 1}, TypeError, "reduce must be True or False"),
        ({"targets": "labels"}, ValueError, "targets must be one of"),
        ({"seed": 1.0}, TypeError, "seed must be an integer"),
        ({"dtype": np.float16}, TypeError, "dtype must be float32 or float64"),
    ],
)
def test_bad_arguments_are_named(arguments, error, words):
    with pytest.raises(error, match=words):
        digits(**arguments)


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"kernelgrowth\[run\]"):
        digits()
