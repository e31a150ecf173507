"""Estimates from a subsample of the probe set: their expectation, and the standard errors stated with them."""

from __future__ import annotations

import itertools
import math
from dataclasses import astuple
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelgrowth.tracking.packing import pack_triangle, packed_cosine, packed_products
from kernelgrowth.tracking.sampling import Subsamples, estimate_kernel, mean_error

SEED = 11


def aligned_kernel(rng: np.random.Generator, n: int, outputs: int) -> tuple[Any, Any]:
    """Draw a kernel (n·C, n·C) with a strong diagonal and a direction of its own, and its targets (n, C)."""
    x = rng.standard_normal((n, 10))
    y = np.sign(x @ rng.standard_normal((10, outputs))) if outputs == 1 else x @ rng.standard_normal((10, outputs))
    jacobian = np.tanh(x @ rng.standard_normal((10, 30 * outputs))).reshape(n * outputs, 30)
    jacobian += 0.3 * rng.standard_normal(jacobian.shape)
    kernel = jacobian @ jacobian.T + np.outer(y, y)
    return kernel, y


def alignment(kernel: Any, y: Any) -> float:
    target = y.reshape(-1)
    return float(target @ kernel @ target / (target @ target) / np.linalg.norm(kernel))


def centered(kernel: Any) -> Any:
    h = np.eye(len(kernel)) - 1.0 / len(kernel)
    return h @ kernel @ h


def values_of(kernel: Any, y: Any) -> Any:
    return np.array(
        [
            np.linalg.norm(kernel),
            np.trace(kernel),
            alignment(kernel, y),
            alignment(centered(kernel), y - y.mean(axis=0)),
        ]
    )


def estimates_of(kernel: Any, y: Any, n: int) -> tuple[Any, Any]:
    deviations = y - y.mean(axis=0)
    plain = estimate_kernel(kernel, y, y.reshape(-1, 1), n)
    around = estimate_kernel(kernel, deviations, deviations.reshape(-1, 1), n, centered=True)
    values = [plain.norm, plain.trace, plain.alignment, around.alignment]
    errors = [plain.norm_error, plain.trace_error, plain.alignment_error, around.alignment_error]
    return np.array(values), np.array(errors)


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("size", [200, 100, 50])
def test_standard_errors_are_those_of_many_subsamples(outputs: int, size: int) -> None:
    n, repetitions = 400, 300
    rng = np.random.default_rng(SEED)
    kernel, y = aligned_kernel(rng, n, outputs)
    exact = values_of(kernel, y)
    drawn = []
    for _ in range(repetitions):
        subsamples = Subsamples(n, rng.permutation(n))
        part = subsamples.restrict(kernel, n, size)
        drawn.append(estimates_of(part, y[subsamples.examples(size)], n))
    values, errors = (np.array(column) for column in zip(*drawn, strict=True))
    spread = values.std(axis=0)
    # Ratios are biased by a share of the standard error, sums are not.
    np.testing.assert_array_less(np.abs(values.mean(axis=0) - exact), np.array([0.2, 0.2, 0.5, 0.5]) * spread)
    stated = np.sqrt(np.mean(errors**2, axis=0))
    np.testing.assert_allclose(stated, spread, rtol=0.25)


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 12), st.integers(1, 3), st.sampled_from([0, -500, 400]), st.integers(0, 2**32 - 1))
def test_everything_has_no_error_and_its_own_value(n: int, outputs: int, exponent: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    kernel, _ = aligned_kernel(rng, n, outputs)
    y = rng.standard_normal((n, outputs))
    values, errors = estimates_of(np.ldexp(kernel, exponent), y, n)
    expected = values_of(kernel, y)
    np.testing.assert_allclose(values[0] / 2.0**exponent, expected[0], rtol=1e-10)
    np.testing.assert_allclose(values[1] / 2.0**exponent, expected[1], rtol=1e-10)
    np.testing.assert_allclose(values[2], expected[2], rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(errors[np.isfinite(errors)], 0.0)


@settings(deadline=None, max_examples=40)
@given(st.integers(3, 7), st.integers(1, 2), st.integers(0, 2**32 - 1))
def test_sums_are_right_on_average_over_all_subsamples(n: int, outputs: int, seed: int) -> None:
    kernel, y = aligned_kernel(np.random.default_rng(seed), n, outputs)
    size = n - 1
    squares, traces = [], []
    for chosen in itertools.combinations(range(n), size):
        examples = np.array(chosen)
        rows = (examples[:, None] * outputs + np.arange(outputs)).reshape(-1)
        part = estimate_kernel(kernel[np.ix_(rows, rows)], y[examples], y[examples].reshape(-1, 1), n)
        squares.append(part.norm**2)
        traces.append(part.trace)
    assert np.mean(squares) == pytest.approx(np.linalg.norm(kernel) ** 2, rel=1e-10)
    assert np.mean(traces) == pytest.approx(np.trace(kernel), rel=1e-10)


def test_degenerate_kernels_have_degenerate_estimates() -> None:
    y = np.ones((4, 1))
    zero = estimate_kernel(np.zeros((4, 4)), y, y, 8)
    assert (zero.norm, zero.trace, zero.norm_error) == (0.0, 0.0, 0.0)
    assert math.isnan(zero.alignment)
    bad = estimate_kernel(np.full((4, 4), np.nan), y, y, 8)
    assert all(math.isnan(value) for value in astuple(bad))
    untargeted = estimate_kernel(np.eye(4), 0 * y, 0 * y, 8)
    assert math.isnan(untargeted.alignment)
    assert untargeted.trace == 8.0


def test_the_error_of_a_mean_is_that_of_many_subsamples() -> None:
    rng = np.random.default_rng(SEED)
    losses = rng.exponential(size=400)
    means, errors = [], []
    for _ in range(400):
        part = losses[rng.permutation(400)[:160]]
        means.append(part.mean())
        errors.append(mean_error([group.mean() for group in part.reshape(8, 20)], 160, 400))
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(means), rel=0.15)


# --- which examples ---


@given(st.integers(1, 300), st.integers(0, 6))
def test_subsamples_are_nested(n: int, halvings: int) -> None:
    subsamples = Subsamples(n, Subsamples.draw(n))
    smaller, larger = subsamples.examples(n >> halvings + 1), subsamples.examples(n >> halvings)
    assert set(smaller) <= set(larger) <= set(range(n))
    assert len(smaller) == len(set(smaller)) == n >> halvings + 1
    np.testing.assert_array_equal(subsamples.examples(n), np.arange(n))
    np.testing.assert_array_equal(Subsamples.draw(n), Subsamples.draw(n))


@settings(deadline=None)
@given(st.integers(4, 20), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_restricting_in_steps_is_restricting_at_once(n: int, outputs: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    kernel, _ = aligned_kernel(rng, n, outputs)
    subsamples = Subsamples(n, rng.permutation(n))
    half, quarter = n // 2, n // 4
    at_once = subsamples.restrict(kernel, n, quarter)
    np.testing.assert_array_equal(subsamples.restrict(subsamples.restrict(kernel, n, half), half, quarter), at_once)
    blocks = kernel.reshape(n, outputs, n, outputs)
    for i, example in enumerate(subsamples.examples(quarter)):
        np.testing.assert_array_equal(
            at_once[i * outputs : (i + 1) * outputs, :outputs], blocks[example, :, subsamples.examples(quarter)[0]]
        )


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 15), st.integers(1, 3), st.floats(0.5, 8.0), st.integers(0, 2**32 - 1))
def test_weighted_products_count_pairs_of_different_examples(n: int, rows_each: int, weight: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = (m + m.T for m in rng.standard_normal((2, n * rows_each, n * rows_each)))
    same = np.kron(np.eye(n), np.ones((rows_each, rows_each)))
    weights = same + weight * (1 - same)
    left, right = pack_triangle(a), pack_triangle(b)
    got = packed_products(left, right, rows_each=rows_each, pair_weight=weight)
    np.testing.assert_allclose(
        got, [np.sum(weights * a * b), np.sum(weights * a**2), np.sum(weights * b**2)], atol=1e-9
    )
    assert packed_cosine(left, left, rows_each=rows_each, pair_weight=weight) == 1.0


def test_a_weighted_cosine_estimates_that_of_all_examples() -> None:
    rng = np.random.default_rng(SEED)
    n, size = 400, 60
    (a, _), (b, _) = (aligned_kernel(rng, n, 1) for _ in range(2))
    exact = float(np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b))
    weighted, plain = [], []
    for _ in range(200):
        subsamples = Subsamples(n, rng.permutation(n))
        left, right = (pack_triangle(subsamples.restrict(kernel, n, size)) for kernel in (a, b))
        weighted.append(subsamples.cosine(left, right, size))
        plain.append(packed_cosine(left, right))
    assert abs(np.mean(weighted) - exact) < 0.3 * abs(np.mean(plain) - exact)
