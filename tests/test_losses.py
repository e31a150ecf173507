"""Losses: closed forms, finite differences, extreme outputs, labels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelgrowth.training.losses import LOSSES, get_loss

seeds = st.integers(0, 2**32 - 1)


def draw(loss: str, rng: np.random.Generator, num_examples: int, num_outputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Outputs and targets that fit the loss."""
    if loss == "mse":
        return rng.normal(size=(num_examples, num_outputs)), rng.normal(size=(num_examples, num_outputs))
    if loss == "logistic":
        return rng.normal(size=(num_examples, 1)), rng.choice([-1.0, 1.0], size=num_examples)
    num_outputs = max(num_outputs, 2)
    return rng.normal(size=(num_examples, num_outputs)), rng.integers(0, num_outputs, size=num_examples)


def by_definition(loss: str, f: np.ndarray, y: np.ndarray) -> float:
    total = 0.0
    for n in range(len(f)):
        if loss == "mse":
            total += 0.5 * sum((f[n, c] - y[n, c]) ** 2 for c in range(f.shape[1]))
        elif loss == "logistic":
            total += math.log(1 + math.exp(-y[n] * f[n, 0]))
        else:
            total += math.log(sum(math.exp(value) for value in f[n])) - f[n, y[n]]
    return total / len(f)


@pytest.mark.parametrize("loss", LOSSES)
@given(seed=seeds, num_examples=st.integers(1, 6), num_outputs=st.integers(1, 4))
@settings(deadline=None, max_examples=40)
def test_value_and_gradient_follow_the_definition(loss: str, seed: int, num_examples: int, num_outputs: int) -> None:
    f, y = draw(loss, np.random.default_rng(seed), num_examples, num_outputs)
    value, gradient = LOSSES[loss].value_and_gradient(f, y)
    assert isinstance(value, float)
    assert value == pytest.approx(by_definition(loss, f, y), rel=1e-12)
    assert LOSSES[loss](f, y) == value
    assert gradient.shape == f.shape
    assert gradient.dtype == f.dtype
    quotients = np.empty_like(f)
    for index in np.ndindex(f.shape):
        shift = np.zeros_like(f)
        shift[index] = 1e-5
        quotients[index] = (LOSSES[loss](f + shift, y) - LOSSES[loss](f - shift, y)) / 2e-5
    np.testing.assert_allclose(gradient, quotients, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("loss", LOSSES)
@given(seed=seeds)
@settings(deadline=None, max_examples=30)
def test_float32_outputs_give_float32_gradients_of_the_same_value(loss: str, seed: int) -> None:
    f, y = draw(loss, np.random.default_rng(seed), 5, 3)
    if loss == "mse":
        y = y.astype(np.float32).astype(np.float64)
    f32 = f.astype(np.float32)
    value, gradient = LOSSES[loss].value_and_gradient(f32.astype(np.float64), y)
    value32, gradient32 = LOSSES[loss].value_and_gradient(f32, y.astype(np.float32) if loss == "mse" else y)
    assert value32 == value
    assert gradient32.dtype == np.float32
    np.testing.assert_array_equal(gradient32, gradient.astype(np.float32))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [50.0, 1e4, 1e30])
def test_large_logits_stay_exact(size: float, dtype: Any) -> None:
    f = np.array([[size], [-size], [size], [-size]], dtype=dtype)
    value, gradient = LOSSES["logistic"].value_and_gradient(f, np.array([1, -1, -1, 1]))
    assert value == pytest.approx(float(f[0, 0]) / 2, rel=1e-12)
    np.testing.assert_allclose(gradient[:, 0], [0, 0, 0.25, -0.25], atol=1e-12)
    f = np.array([[size, 0, -size], [size, 0, -size]], dtype=dtype)
    value, gradient = LOSSES["cross_entropy"].value_and_gradient(f, np.array([0, 2]))
    assert value == pytest.approx(float(f[0, 0]), rel=1e-12)
    np.testing.assert_allclose(gradient, [[0, 0, 0], [0.5, 0, -0.5]], atol=1e-12)


def test_logits_further_apart_than_any_float_stay_exact() -> None:
    f = np.array([[1.5e308, -1.5e308]])
    value, gradient = LOSSES["cross_entropy"].value_and_gradient(f, np.array([0]))
    assert value == 0
    np.testing.assert_array_equal(gradient, [[0, 0]])


def test_small_residuals_do_not_underflow_in_float32() -> None:
    f = np.full((1, 1), 1e-30, dtype=np.float32)
    assert LOSSES["mse"](f, np.zeros(1, dtype=np.float32)) == pytest.approx(0.5e-60, rel=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_outputs_give_a_non_finite_loss_without_a_warning(loss: str, bad: float) -> None:
    f, y = draw(loss, np.random.default_rng(0), 4, 2)
    y = -np.ones(4) if loss == "logistic" else y
    f[0, 0] = bad
    assert not math.isfinite(LOSSES[loss](f, y))


def test_shapes_and_codes_of_targets_that_mean_the_same_agree() -> None:
    rng = np.random.default_rng(0)
    f = rng.normal(size=(6, 1))
    y = rng.normal(size=6)
    assert LOSSES["mse"](f, y) == LOSSES["mse"](f, y[:, None])
    assert LOSSES["mse"](f, [1, 0, 2, 0, 1, 1]) == LOSSES["mse"](f, np.array([1.0, 0, 2, 0, 1, 1]))
    signs = np.array([1, -1, 1, 1, -1, -1])
    for same in (signs.astype(np.float32), (signs + 1) // 2, signs > 0, signs[:, None]):
        assert LOSSES["logistic"](f, same) == LOSSES["logistic"](f, signs)
    f = rng.normal(size=(6, 3))
    labels = np.array([0, 2, 1, 1, 0, 2])
    for same in (labels.astype(np.uint8), labels.astype(float), np.eye(3)[labels], list(labels)):
        assert LOSSES["cross_entropy"](f, same) == LOSSES["cross_entropy"](f, labels)


@pytest.mark.parametrize("loss", LOSSES)
@given(seed=seeds)
@settings(deadline=None, max_examples=20)
def test_preparing_targets_twice_changes_nothing(loss: str, seed: int) -> None:
    f, y = draw(loss, np.random.default_rng(seed), 5, 3)
    once = LOSSES[loss].prepare_targets(y, num_outputs=f.shape[1], dtype=f.dtype)
    assert once.shape == f.shape
    assert once.dtype == f.dtype
    np.testing.assert_array_equal(LOSSES[loss].prepare_targets(once, num_outputs=f.shape[1], dtype=f.dtype), once)


@pytest.mark.parametrize(
    ("loss", "f", "y", "error", "message"),
    [
        ("mse", np.ones((2, 1)), np.ones(3), ValueError, "same number"),
        ("mse", np.ones((0, 1)), np.ones(0), ValueError, "at least 1"),
        ("mse", np.ones(2), np.ones(2), ValueError, "f must have 2 dimension"),
        ("mse", np.ones((2, 3)), np.ones(2), ValueError, r"y must have shape \(N, 3\)"),
        ("mse", np.ones((2, 1)), np.ones((2, 2)), ValueError, r"y must have shape \(N,\) or \(N, 1\)"),
        ("mse", np.ones((2, 1)), np.array([1, np.nan]), ValueError, "y must be finite"),
        ("mse", np.ones((2, 1), dtype=np.float32), np.ones(2), TypeError, "y must be float32"),
        ("mse", np.ones((2, 1)), np.array(["a", "b"]), TypeError, "y must be"),
        ("logistic", np.ones((2, 2)), np.ones(2), ValueError, "one output"),
        ("logistic", np.ones((2, 1)), np.array([1, 2]), ValueError, "labels -1 and .1.* got 1, 2"),
        ("logistic", np.ones((3, 1)), np.array([-1, 0, 1]), ValueError, "labels"),
        ("logistic", np.ones((7, 1)), np.arange(7), ValueError, r"got 0, 1, 2, 3, 4, \.\.\."),
        ("cross_entropy", np.ones((2, 1)), np.array([0, 0]), ValueError, "at least two outputs"),
        ("cross_entropy", np.ones((2, 3)), np.array([0, 3]), ValueError, "from 0 to 2, got 0, 3"),
        ("cross_entropy", np.ones((2, 3)), np.array([0, -1]), ValueError, "from 0 to 2"),
        ("cross_entropy", np.ones((2, 3)), np.array([0, 0.5]), ValueError, "integer labels"),
        ("cross_entropy", np.ones((2, 3)), np.ones((2, 2)), ValueError, "one-hot rows"),
        ("cross_entropy", np.ones((2, 3)), np.ones((2, 3)), ValueError, "one-hot"),
        ("cross_entropy", np.ones((2, 3)), np.full((2, 3), 1 / 3), ValueError, "one-hot"),
    ],
)
def test_bad_targets_are_refused(loss: str, f: Any, y: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LOSSES[loss](f, y)


def test_an_unknown_loss_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"loss must be one of 'mse', 'logistic', 'cross_entropy', got 'hinge'"):
        get_loss("hinge")
