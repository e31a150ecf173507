"""Kernels in closed form: what holds of them exactly, for any teacher, inputs and rates."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

from kernelgrowth.theory import (
    early_growth,
    early_kernel,
    final_kernel,
    final_kernel_multi,
    hidden_kernel,
    max_alignment,
    spike_alignment,
    two_layer,
)

SEEDS = st.integers(0, 2**32 - 1)
RATES = st.lists(st.floats(0.1, 10.0), min_size=1, max_size=5)


def balanced_weights(rng, teacher, rates, widths=6):
    """Weights whose product is the teacher, W_l W_l^T / eta_l = W_{l+1}^T W_{l+1} / eta_{l+1} exactly."""
    left, s, right = np.linalg.svd(teacher, full_matrices=False)
    kappa = (s**2 / np.prod(rates)) ** (1 / len(rates))
    bases = [right.T]
    bases += [np.linalg.qr(rng.standard_normal((widths, len(s))))[0] for _ in rates[1:]]
    bases += [left]
    return [
        (after * np.sqrt(kappa * rate)) @ before.T for rate, before, after in zip(rates, bases, bases[1:], strict=False)
    ]


def explicit_kernels(weights, x):
    """Every layer's NTK (N, N, C, C) and every layer's activations."""
    activations = [x]
    for w in weights:
        activations.append(activations[-1] @ w.T)
    above, kernels = np.eye(len(weights[-1])), []
    for w, below in zip(weights[::-1], activations[-2::-1], strict=True):
        kernels.append(np.einsum("nm,ce->nmce", below @ below.T, above @ above.T))
        above = above @ w
    return kernels[::-1], activations[1:]


@given(seed=SEEDS, rates=RATES, outputs=st.integers(1, 4))
def test_final_and_hidden_kernels_are_those_of_balanced_weights(seed, rates, outputs):
    rng = np.random.default_rng(seed)
    teacher, x = rng.standard_normal((outputs, 5)), rng.standard_normal((7, 5))
    weights = balanced_weights(rng, teacher, rates)
    kernels, activations = explicit_kernels(weights, x)
    np.testing.assert_allclose(activations[-1], x @ teacher.T, atol=1e-10)
    for weighted in (False, True):
        expected = sum((rate if weighted else 1.0) * kernel for rate, kernel in zip(rates, kernels, strict=True))
        found = final_kernel_multi(x, teacher, len(rates), rates, rate_weighted=weighted)
        np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=1e-9 * np.abs(expected).max())
        if outputs == 1:
            s = np.linalg.norm(teacher)
            single = final_kernel(x, teacher[0] / s, s, len(rates), rates, rate_weighted=weighted)
            np.testing.assert_allclose(single, expected[:, :, 0, 0], atol=1e-9 * np.abs(expected).max())
    for layer, hidden in enumerate(activations, start=1):
        expected = hidden @ hidden.T
        found = hidden_kernel(x, teacher, len(rates), layer, rates)
        np.testing.assert_allclose(found, expected, atol=1e-9 * np.abs(expected).max())


@given(seed=SEEDS, depth=st.integers(1, 5), data=st.data())
def test_hidden_kernel_is_a_root_of_the_teacher(seed, depth, data):
    layer = data.draw(st.integers(1, depth))
    rng = np.random.default_rng(seed)
    teacher, x = rng.standard_normal((2, 4)), rng.standard_normal((5, 4))
    values, vectors = np.linalg.eigh(teacher.T @ teacher)
    # Of the zero eigenvalues eigh leaves rounding error, which a small power enlarges.
    power = (vectors[:, -2:] * values[-2:] ** (layer / depth)) @ vectors[:, -2:].T
    found = hidden_kernel(x, teacher, depth, layer)
    np.testing.assert_allclose(found, x @ power @ x.T, atol=1e-8 * np.abs(found).max())
    if depth % layer == 0:
        root = hidden_kernel(np.eye(4), teacher, depth, layer)
        whole = np.linalg.matrix_power(root, depth // layer)
        np.testing.assert_allclose(whole, teacher.T @ teacher, atol=1e-8 * np.abs(whole).max())


def test_rates_by_name_and_far_apart():
    x, teacher = np.eye(3), np.diag([2.0, 1.0, 0.0])[:2]
    named = {"layer2": 0.5}
    for form in (final_kernel_multi, lambda *a: hidden_kernel(*a[:3], 2, a[3])):
        np.testing.assert_array_equal(form(x, teacher, 3, named), form(x, teacher, 3, [1.0, 0.5, 1.0]))
    found = hidden_kernel(x, 1e-200 * teacher, 2, 1, [1e150, 1e150])
    np.testing.assert_allclose(found, 1e-200 * np.diag([2.0, 1.0, 0.0]), atol=1e-210)


# The highest alignment.


@given(seed=SEEDS, spike=st.floats(0.0, 50.0), n=st.integers(2, 20), dim=st.integers(1, 8), noise=st.floats(0.0, 3.0))
def test_spike_alignment_is_that_of_a_spiked_kernel(seed, spike, n, dim, noise):
    rng = np.random.default_rng(seed)
    rank = min(n, dim)
    basis = np.linalg.qr(rng.standard_normal((n, rank)))[0]
    y = basis @ rng.standard_normal(rank) + noise * rng.standard_normal(n)
    linear = basis @ (basis.T @ y)
    kernel = basis @ basis.T + spike * np.outer(linear, linear) / (linear @ linear)
    explained = min(1.0, (linear @ linear) / (y @ y))
    found = y @ kernel @ y / (y @ y * np.linalg.norm(kernel))
    assert spike_alignment(spike, rank, explained=explained) == pytest.approx(found, rel=1e-8)


@given(depth=st.integers(1, 8), rank=st.integers(1, 1000), explained=st.floats(0.0, 1.0))
def test_equal_rates_make_a_spike_of_all_layers_but_one(depth, rank, explained):
    found = spike_alignment(depth - 1, rank, explained=explained)
    assert found == pytest.approx(max_alignment(depth, rank, explained=explained), rel=1e-13)
    assert found == pytest.approx(depth * explained / np.sqrt(depth**2 + rank - 1), rel=1e-13)


# The early spike.


@given(seed=SEEDS, n=st.integers(1, 12), a_squared=st.floats(1e-6, 1.0))
def test_early_kernel_is_the_formula_of_the_covariance(seed, n, a_squared):
    rng = np.random.default_rng(seed)
    x, beta = rng.standard_normal((n, 4)) * [2.0, 1.0, 1.0, 0.3], rng.standard_normal(4)
    root = rng.standard_normal((n, n))
    sigma = x.T @ x / n
    spike = sigma @ np.outer(beta, beta) @ sigma / (beta @ sigma @ sigma @ beta)
    expected = a_squared * x @ (spike + np.eye(4)) @ x.T
    found = early_kernel(x, x @ beta, a_squared)
    np.testing.assert_allclose(found, expected, atol=1e-10 * np.abs(expected).max())
    total = early_kernel(x, x @ beta, a_squared, root @ root.T)
    np.testing.assert_allclose(total - root @ root.T, found, atol=1e-12 * np.abs(total).max())
    # What no linear function explains drives nothing.
    rest = scipy.linalg.null_space(x.T)
    if rest.size:
        noisy = early_kernel(x, x @ beta + 3 * rest[:, 0], a_squared)
        np.testing.assert_allclose(noisy, found, atol=1e-8 * np.abs(found).max())


@given(seed=SEEDS, s=st.floats(0.3, 3.0), q0=st.floats(1e-8, 0.05), ratio=st.floats(-1.0, 1.0))
def test_early_growth_on_whitened_inputs_is_that_of_two_layers(seed, s, q0, ratio):
    rng = np.random.default_rng(seed)
    x = np.sqrt(9) * np.linalg.qr(rng.standard_normal((9, 4)))[0]
    beta = rng.standard_normal(4)
    beta /= np.linalg.norm(beta)
    times = np.linspace(0.0, 4.0, 9)
    found, expected = early_growth(x, s * x @ beta, q0, times, ratio * q0), two_layer(s, q0, times, ratio * q0)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-12 * q0)


@given(seed=SEEDS, ratio=st.floats(-1.0, 1.0), time=st.floats(0.0, 1.0))
def test_early_growth_is_hyperbolic_while_nothing_is_learnt(seed, ratio, time):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((8, 3)), rng.standard_normal(8)
    speed = 2 * np.linalg.norm(x.T @ y) / 8 * time
    q, r = early_growth(x, y, 1e-12, time, ratio * 1e-12)
    assert q == pytest.approx(1e-12 * (np.cosh(speed) + ratio * np.sinh(speed)), rel=1e-6)
    assert r == pytest.approx(1e-12 * (np.sinh(speed) + ratio * np.cosh(speed)), rel=1e-6, abs=1e-18)


# Arrays and arguments.


def test_kernels_of_gpu_arrays(gpu):
    rng = np.random.default_rng(0)
    x, y, teacher = rng.standard_normal((6, 4)), rng.standard_normal(6), rng.standard_normal((2, 4))
    for form in (
        lambda x, y, teacher: final_kernel_multi(x, teacher, 3, [1.0, 2.0, 0.5], rate_weighted=True),
        lambda x, y, teacher: hidden_kernel(x, teacher, 3, 2),
        lambda x, y, teacher: early_kernel(x, y, 0.3, x @ x.T),
        lambda x, y, teacher: early_kernel(x, y, 0.3),
    ):
        gpu.agree(form(gpu(x), gpu(y), gpu(teacher)), form(x, y, teacher), 1e-12)
    grown = early_growth(gpu(x), gpu(y), 1e-4, 2.0)
    assert grown == pytest.approx(early_growth(x, y, 1e-4, 2.0), rel=1e-12)
    with pytest.raises(TypeError, match="all be NumPy or all be CuPy"):
        early_kernel(gpu(x), y, 0.3)
    with pytest.raises(TypeError, match="all be NumPy or all be CuPy"):
        hidden_kernel(gpu(x), teacher, 3, 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_kernels_keep_the_dtype(dtype):
    x = np.eye(3, dtype=dtype)
    for kernel in (
        final_kernel_multi(x, x[:2], 3, [1.0, 2.0, 0.5], rate_weighted=True),
        hidden_kernel(x, x[:2], 3, 2),
        early_kernel(x, x[0], 0.5, x),
    ):
        assert kernel.dtype == dtype


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: hidden_kernel(np.eye(3), np.ones((2, 3)), 2, 3), ValueError, "layer must be at most 2"),
        (lambda: hidden_kernel(np.eye(3), np.ones((2, 3)), 2, 0), ValueError, "layer must be at least 1"),
        (lambda: hidden_kernel(np.eye(3), np.zeros((2, 3)), 2, 1), ValueError, "B must not be zero"),
        (lambda: hidden_kernel(np.eye(3), np.ones(3), 2, 1), ValueError, "B must have 2 dimension"),
        (lambda: hidden_kernel(np.eye(3), np.ones((2, 4)), 2, 1), ValueError, r"B must have shape \(C, 3\)"),
        (lambda: hidden_kernel(np.eye(3), np.ones((2, 3)), 2, 1, [1.0]), ValueError, "one rate for each of the 2"),
        (lambda: final_kernel_multi(np.eye(3), np.ones((2, 3)), 2, [1.0, -1.0]), ValueError, "layer_lr of layer2"),
        (lambda: final_kernel_multi(np.eye(3), np.eye(3), 2, rate_weighted="yes"), TypeError, "rate_weighted must be"),
        (lambda: spike_alignment(-0.1, 3), ValueError, "spike must be at least 0"),
        (lambda: spike_alignment(1.0, 0), ValueError, "rank must be at least 1"),
        (lambda: spike_alignment(1.0, 3, explained=2.0), ValueError, "explained must be at most 1"),
        (lambda: early_kernel(np.eye(3), np.ones(2), 0.1), ValueError, "y must have the 3 examples of X"),
        (lambda: early_kernel(np.eye(3), np.zeros(3), 0.1), ValueError, "y must not be orthogonal"),
        (lambda: early_kernel(np.eye(3), np.ones(3), -0.1), ValueError, "a_squared must be at least 0"),
        (lambda: early_kernel(np.eye(3), np.ones(3), 0.1, np.eye(2)), ValueError, r"K0 must have shape \(3, 3\)"),
        (lambda: early_kernel(np.eye(3), np.ones(3, np.float32), 0.1), TypeError, "y is float32 but X is float64"),
        (lambda: early_kernel(np.ones((0, 3)), np.ones(0), 0.1), ValueError, "X must have at least one example"),
        (lambda: early_growth(np.eye(3), np.ones(3), 0.0, 1.0), ValueError, "q0 must be greater than 0"),
        (lambda: early_growth(np.eye(3), np.ones(3), 0.1, -1.0), ValueError, "t must hold"),
        (lambda: early_growth(np.eye(3), np.ones(3), 0.1, 1.0, 0.2), ValueError, "r0 must be at most 0.1"),
        (lambda: early_growth(np.eye(3), [np.nan, 0, 0], 0.1, 1.0), ValueError, "y must be finite"),
    ],
)
def test_bad_arguments_are_named(call, error, words):
    with pytest.raises(error, match=words):
        call()
