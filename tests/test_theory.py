"""Closed forms of linear networks against a plain integration of the gradient flow."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import hyp2f1

from kernelgrowth.theory import deep_linear, final_kernel, final_kernel_multi, max_alignment, two_layer

RATES = st.floats(0.1, 10.0)
DEPTHS = st.integers(1, 6)
SEEDS = st.integers(0, 2**32 - 1)


def chain(matrices, size):
    """W_k ... W_1 for matrices in the order of the layers."""
    product = np.eye(size)
    for matrix in matrices:
        product = matrix @ product
    return product


def flow_step(weights, target, second_moment, rates):
    """Negative gradients of  tr (W - B) S (W - B)^T / 2,  W = W_L ... W_1, each times its rate."""
    dim = weights[0].shape[1]
    below = [chain(weights[:layer], dim) for layer in range(len(weights) + 1)]
    error = (below[-1] - target) @ second_moment
    above = [np.eye(target.shape[0])]
    for matrix in weights[:0:-1]:
        above.append(above[-1] @ matrix)
    return [-rate * a.T @ error @ b.T for rate, a, b in zip(rates, above[::-1], below, strict=False)]


def integrate(weights, target, second_moment, times, rates=None, dt=0.05):
    """Fourth-order Runge-Kutta of the flow; the weights at each of the times (ascending)."""
    rates = rates or [1.0] * len(weights)
    kept, now = [], 0.0

    def shifted(slopes, h):
        return [w + h * k for w, k in zip(weights, slopes, strict=True)]

    for time in times:
        steps = int(np.ceil((time - now) / dt))
        h = (time - now) / steps if steps else 0.0
        for _ in range(steps):
            k1 = flow_step(weights, target, second_moment, rates)
            k2 = flow_step(shifted(k1, h / 2), target, second_moment, rates)
            k3 = flow_step(shifted(k2, h / 2), target, second_moment, rates)
            k4 = flow_step(shifted(k3, h), target, second_moment, rates)
            mean = [(a + 2 * b + 2 * c + d) / 6 for a, b, c, d in zip(k1, k2, k3, k4, strict=True)]
            weights = shifted(mean, h)
        kept.append(weights)
        now = time
    return kept


def draw_weights(rng, widths, sigma):
    pairs = itertools.pairwise(widths)
    return [sigma / np.sqrt(fan_in) * rng.standard_normal((fan_out, fan_in)) for fan_in, fan_out in pairs]


def explicit_kernel(weights, x, rates=None):
    """(N, N, C, C) NTK from the expanded Jacobian, layer l counted rates[l] times."""
    n, dim = x.shape
    outputs = weights[-1].shape[0]
    kernel = np.zeros((n, n, outputs, outputs))
    for layer in range(len(weights)):
        below = x @ chain(weights[:layer], dim).T
        above = chain(weights[layer + 1 :], weights[layer].shape[0])
        jacobian = np.einsum("co,ni->ncoi", above, below).reshape(n, outputs, -1)
        kernel += (rates[layer] if rates else 1.0) * np.einsum("ncp,mep->nmce", jacobian, jacobian)
    return kernel


def draw_whitened(rng, n, dim):
    return np.sqrt(n) * np.linalg.qr(rng.standard_normal((n, dim)))[0]


def unit(rng, dim):
    vector = rng.standard_normal(dim)
    return vector / np.linalg.norm(vector)


def relative(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def alignment(kernel, y):
    return y @ kernel @ y / (y @ y * np.linalg.norm(kernel))


# The kernel at the end of training.


@pytest.mark.parametrize(
    ("depth", "s", "rates"),
    [
        (1, 1.5, None),
        (2, 1.0, None),
        (2, 2.0, (4.0, 1.0)),
        (2, 1.0, (0.25, 1.0)),
        (3, 1.0, None),
        (3, 1.5, (1.0, 4.0, 0.5)),
        (3, 1.0, (0.2, 1.0, 1.0)),
        (4, 1.0, None),
    ],
)
def test_final_kernel_is_where_the_flow_ends(depth, s, rates):
    # Four layers need a start that is not too small, for the time grows like sigma^-2.
    largest, dim, width = (0.1, 0.1, 0.1, 0.25)[depth - 1], 6, 20
    errors = []
    for sigma in (largest, largest / 2):
        rng = np.random.default_rng(depth)
        x, beta = draw_whitened(rng, 9, dim), unit(rng, dim)
        start = draw_weights(rng, [dim, *[width] * (depth - 1), 1], sigma)
        weights = integrate(start, s * beta[None], np.eye(dim), [100.0], rates, dt=0.1)[0]
        assert abs(chain(weights, dim) @ beta - s) < 1e-6 * s
        plain = explicit_kernel(weights, x)[:, :, 0, 0]
        weighted = explicit_kernel(weights, x, rates)[:, :, 0, 0]
        errors.append(
            (
                relative(final_kernel(x, beta, s, depth, rates), plain),
                relative(final_kernel(x, beta, s, depth, rates, rate_weighted=True), weighted),
            )
        )
    if depth == 1:
        # Its kernel never changes.
        assert np.max(errors) < 1e-12
        return
    # Of second order in the initial scale; the constant is 1 to 2 with equal rates.
    assert np.max(errors[1]) < (8.0 if rates else 2.5) * (largest / 2) ** 2
    np.testing.assert_allclose(np.divide(*errors), 4.0, rtol=0.2)


def test_final_kernel_holds_for_inputs_that_are_not_whitened():
    rng = np.random.default_rng(5)
    x, beta = rng.standard_normal((12, 6)) * np.linspace(0.5, 1.5, 6), unit(rng, 6)
    start = draw_weights(rng, [6, 20, 1], 0.01)
    weights = integrate(start, beta[None], x.T @ x / 12, [150.0])[0]
    assert relative(final_kernel(x, beta, 1.0, 2), explicit_kernel(weights, x)[:, :, 0, 0]) < 2e-3


@pytest.mark.parametrize(("depth", "sigma", "tolerance"), [(1, 0.02, 1e-12), (2, 0.02, 2e-3), (3, 0.1, 4e-2)])
def test_final_kernel_multi_is_where_the_flow_ends(depth, sigma, tolerance):
    rng = np.random.default_rng(11)
    dim, width, outputs = 6, 20, 3
    left = np.linalg.qr(rng.standard_normal((outputs, 2)))[0]
    right = np.linalg.qr(rng.standard_normal((dim, 2)))[0]
    teacher = (left * [2.0, 1.0]) @ right.T
    x = draw_whitened(rng, 8, dim)
    start = draw_weights(rng, [dim, *[width] * (depth - 1), outputs], sigma)
    weights = integrate(start, teacher, np.eye(dim), [60.0])[0]
    assert relative(chain(weights, dim), teacher) < 1e-3 or depth == 1
    assert relative(final_kernel_multi(x, teacher, depth), explicit_kernel(weights, x)) < tolerance


@given(seed=SEEDS, depth=DEPTHS, s=st.floats(0.1, 10.0), n=st.integers(1, 9), dim=st.integers(1, 7))
def test_one_output_is_a_case_of_several(seed, depth, s, n, dim):
    rng = np.random.default_rng(seed)
    x, beta = rng.standard_normal((n, dim)), unit(rng, dim)
    single, several = final_kernel(x, beta, s, depth), final_kernel_multi(x, s * beta[None], depth)
    assert several.shape == (n, n)
    np.testing.assert_allclose(several, single, rtol=1e-10, atol=1e-10 * np.abs(single).max())


@given(seed=SEEDS, depth=DEPTHS, outputs=st.integers(1, 4), rank=st.integers(1, 4))
def test_several_outputs_turn_with_the_outputs_and_the_inputs(seed, depth, outputs, rank):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((4, 5))
    teacher = rng.standard_normal((outputs, rank)) @ rng.standard_normal((rank, 5))
    turn_out = np.linalg.qr(rng.standard_normal((outputs, outputs)))[0]
    turn_in = np.linalg.qr(rng.standard_normal((5, 5)))[0]
    kernel = final_kernel_multi(x, teacher, depth).reshape(4, 4, outputs, outputs)
    turned = final_kernel_multi(x @ turn_in.T, turn_out @ teacher @ turn_in.T, depth).reshape(kernel.shape)
    expected = np.einsum("ac,nmce,be->nmab", turn_out, kernel, turn_out)
    np.testing.assert_allclose(turned, expected, atol=1e-9 * np.abs(kernel).max())
    matrix = kernel.transpose(0, 2, 1, 3).reshape(4 * outputs, 4 * outputs)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-12 * np.abs(matrix).max())
    assert np.linalg.eigvalsh(matrix).min() > -1e-10 * np.abs(matrix).max()


@given(seed=SEEDS, depth=DEPTHS, s=st.floats(0.1, 10.0), common=RATES)
def test_equal_rates_rescale_nothing_but_the_weighted_kernel(seed, depth, s, common):
    rng = np.random.default_rng(seed)
    x, beta = rng.standard_normal((6, 4)), unit(rng, 4)
    plain = final_kernel(x, beta, s, depth)
    expected = s ** (2 - 2 / depth) * x @ (np.eye(4) + (depth - 1) * np.outer(beta, beta)) @ x.T
    np.testing.assert_allclose(plain, expected, rtol=1e-9, atol=1e-9 * np.abs(plain).max())
    rates = [common] * depth
    np.testing.assert_allclose(final_kernel(x, beta, s, depth, rates), plain, rtol=1e-9, atol=1e-12)
    weighted = final_kernel(x, beta, s, depth, rates, rate_weighted=True)
    np.testing.assert_allclose(weighted, common * plain, rtol=1e-9, atol=1e-12)


# The highest alignment.


@given(seed=SEEDS, n=st.integers(2, 20), dim=st.integers(1, 10), data=st.data())
def test_max_alignment_is_that_of_the_final_kernel(seed, n, dim, data):
    rates = data.draw(st.lists(RATES, min_size=1, max_size=5))
    rng = np.random.default_rng(seed)
    rank = min(n, dim)
    # Whitened rows whether there are more examples than features or fewer.
    left = np.linalg.qr(rng.standard_normal((n, rank)))[0]
    right = np.linalg.qr(rng.standard_normal((dim, rank)))[0]
    x, beta = np.sqrt(n) * left @ right.T, right @ unit(rng, rank)
    kernel = final_kernel(x, beta, 1.3, len(rates), rates)
    expected = max_alignment(len(rates), rank, rates)
    assert alignment(kernel, x @ beta) == pytest.approx(expected, rel=1e-10)
    if n > dim:
        noise = rng.standard_normal(n)
        noise -= left @ (left.T @ noise)
        y = x @ beta + noise
        explained = np.sum((x @ beta) ** 2) / (y @ y)
        partly = max_alignment(len(rates), rank, rates, explained=explained)
        assert alignment(kernel, y) == pytest.approx(partly, rel=1e-9)


@given(depth=DEPTHS, rank=st.integers(1, 10_000), common=RATES)
def test_max_alignment_with_equal_rates(depth, rank, common):
    expected = depth / np.sqrt(depth**2 + rank - 1)
    assert max_alignment(depth, rank) == pytest.approx(expected, rel=1e-14)
    assert max_alignment(depth, rank, [common] * depth) == pytest.approx(expected, rel=1e-12)
    assert max_alignment(depth + 1, rank) >= max_alignment(depth, rank)
    assert max_alignment(depth, rank + 1) < max_alignment(depth, rank)
    assert max_alignment(depth, 1) == 1.0


def test_rates_by_name():
    assert max_alignment(3, 7, {"layer2": 0.5}) == max_alignment(3, 7, [1.0, 0.5, 1.0])
    assert max_alignment(2, 7, [4.0, 1.0]) == pytest.approx(5 / np.sqrt(25 + 6))


# Training in time.


@pytest.mark.parametrize("s", [0.7, 2.0])
def test_two_layer_follows_the_flow(s):
    errors = []
    times = np.linspace(0.0, 9.0 / s, 91)
    for sigma in (0.02, 0.01):
        rng = np.random.default_rng(4)
        dim, width = 8, 20
        beta = unit(rng, dim)
        flow = integrate(draw_weights(rng, [dim, width, 1], sigma), s * beta[None], np.eye(dim), times, dt=0.01)
        q = np.array([0.5 * (np.sum((w @ beta) ** 2) + np.sum(a**2)) for w, a in flow])
        r = np.array([(a @ w @ beta)[0] for w, a in flow])
        found = two_layer(s, q[0], times, r0=r[0])
        errors.append(max(relative(found.q, q), relative(found.r, r)))
        assert errors[-1] < 4 * sigma**2
    # Of second order in the initial scale, times the duration of the plateau, which grows like its logarithm.
    expected = 4 * np.log(0.02) / np.log(0.01)
    assert errors[0] / errors[1] == pytest.approx(expected, rel=0.1)


@given(s=st.floats(0.1, 5.0), q0=st.floats(1e-8, 0.05), ratio=st.floats(-1.0, 1.0))
def test_two_layer_starts_where_it_should_and_learns_the_teacher(s, q0, ratio):
    q, r = two_layer(s, q0, [0.0, 1e4], r0=ratio * q0)
    assert q[0] == pytest.approx(q0, rel=1e-12)
    assert r[0] == pytest.approx(ratio * q0, rel=1e-9, abs=1e-12 * q0)
    if 1.0 + ratio > 1e-6:
        assert q[1] == pytest.approx(s, rel=1e-9)
        assert r[1] == pytest.approx(s, rel=1e-9)
    elif ratio == -1.0:
        # The saddle: beta is never learnt.
        assert q[1] == pytest.approx(0.0, abs=1e-100)


@given(s=st.floats(0.1, 5.0), q0=st.floats(1e-8, 0.05), ratio=st.floats(-0.9, 1.0), t=st.floats(0.0, 20.0))
def test_two_layer_strength_is_the_logistic_curve(s, q0, ratio, t):
    q, r = two_layer(s, q0, t, r0=ratio * q0)
    c0 = 0.5 * (q0 + ratio * q0)
    if c0 < s:
        assert 0.5 * (q + r) == pytest.approx(deep_linear(s, c0, 2, t), rel=1e-9)


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
def test_deep_linear_follows_the_flow_of_balanced_weights(depth):
    rng = np.random.default_rng(depth)
    s, c0, dim, width = 1.5, 0.02, 6, 8
    sizes = [dim, *[width] * (depth - 1), 1]
    directions = [unit(rng, size) for size in sizes[:-1]] + [np.ones(1)]
    beta = directions[0]
    start = [c0 ** (1 / depth) * np.outer(b, a) for a, b in itertools.pairwise(directions)]
    times = np.linspace(0.0, 10.0, 11)
    flow = integrate(start, s * beta[None], np.eye(dim), times, dt=0.01)
    strength = [(chain(weights, dim) @ beta)[0] for weights in flow]
    np.testing.assert_allclose(deep_linear(s, c0, depth, times), strength, rtol=1e-6)


@settings(deadline=None, max_examples=40)
@given(s=st.floats(0.2, 5.0), fraction=st.floats(1e-8, 0.9), depth=DEPTHS, part=st.floats(0.1, 0.99))
def test_deep_linear_solves_its_equation(s, fraction, depth, part):
    c0 = fraction * s
    c1 = c0 + part * (s - c0)
    # The time from c0 to c1 by quadrature of dt = dc / c', in the logarithm of c.
    time = quad(
        lambda z: np.exp(z * (2 / depth - 1)) / (depth * (s - np.exp(z))),
        np.log(c0),
        np.log(c1),
        epsrel=1e-11,
        epsabs=0.0,
        limit=200,
    )[0]
    assert deep_linear(s, c0, depth, time) == pytest.approx(c1, rel=1e-5)


@settings(deadline=None, max_examples=20)
@given(s=st.floats(0.2, 5.0), fraction=st.floats(1e-6, 0.9), depth=DEPTHS)
def test_deep_linear_rises_from_its_start_to_the_teacher(s, fraction, depth):
    times = np.geomspace(1e-3, 1e9, 40)
    c = deep_linear(s, fraction * s, depth, np.concatenate([[0.0], times]))
    assert c[0] == pytest.approx(fraction * s, rel=1e-12)
    assert np.all(np.diff(c) >= -1e-12 * s)
    assert c[-1] == pytest.approx(s, rel=1e-12)


@pytest.mark.parametrize(("depth", "c0"), [(3, 1e-15), (4, 1e-9), (5, 1e-6), (8, 1e-6)])
def test_deep_linear_stays_exact_after_a_long_plateau(depth, c0):
    def duration(c):
        # The integral of du / (u^(L-1) (1 - u^L)), u = c^(1/L), for s = 1.
        return -(c ** (2 / depth - 1)) / (depth - 2) + c ** (2 / depth) / 2 * hyp2f1(1, 2 / depth, 1 + 2 / depth, c)

    c = np.array([c0, 1.001 * c0, 3 * c0, 1e-5, 0.03, 0.046, 0.048, 0.1, 0.5, 0.9, 0.999])
    times = duration(c) - duration(c0)
    np.testing.assert_allclose(deep_linear(1.0, c0, depth, times), c, rtol=1e-8)


def test_deep_linear_takes_extreme_scales():
    np.testing.assert_allclose(deep_linear(1e300, 1.0, 3, [0.0, 1.0]), [1.0, 1e300])
    np.testing.assert_allclose(deep_linear(1e-300, 1e-301, 3, [0.0, 1.0]), [1e-301, 1e-301])
    np.testing.assert_allclose(deep_linear(1.0, 1e-30, 5, [0.0, 1e19]), [1e-30, 1.0])
    np.testing.assert_allclose(deep_linear(1.0, 1e-300, 50, [0.0, 1e300, 1e308]), 1e-300)


def test_deep_linear_takes_times_in_any_order_and_shape():
    times = np.array([[3.0, 0.0], [7.0, 3.0]])
    found = deep_linear(1.0, 0.1, 3, times)
    assert found.shape == (2, 2)
    assert found[0, 0] == found[1, 1]
    assert found[0, 1] == pytest.approx(0.1)
    assert np.ndim(deep_linear(1.0, 0.1, 3, 3.0)) == 0
    assert deep_linear(1.0, 0.1, 3, 3.0) == pytest.approx(found[0, 0], rel=1e-9)
    assert deep_linear(1.0, 0.1, 3, 0.0) == pytest.approx(0.1)


def test_time_to_half_loss_grows_as_the_power_of_the_initial_scale():
    # c0 = u0^L; the half-loss time is about u0^(2-L) / (s (L-2)).
    for depth in (3, 4, 5):
        for u0 in (0.05, 0.02):
            time = u0 ** (2 - depth) / (depth - 2)
            before, after = deep_linear(1.0, u0**depth, depth, [0.9 * time, 1.1 * time])
            assert before < 1 - np.sqrt(0.5) < after


# Bad input.


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: max_alignment(0, 3), ValueError, "depth must be at least 1"),
        (lambda: max_alignment(2.0, 3), TypeError, "depth must be an integer"),
        (lambda: max_alignment(2, 0), ValueError, "rank must be at least 1"),
        (lambda: max_alignment(2, 3, [1.0]), ValueError, "one rate for each of the 2 layers, got 1"),
        (lambda: max_alignment(2, 3, [1.0, 0.0]), ValueError, "layer_lr of layer2 must be greater than 0"),
        (lambda: max_alignment(2, 3, {"layer3": 1.0}), ValueError, "'layer3'"),
        (lambda: max_alignment(2, 3, 1.0), TypeError, "layer_lr must be a sequence"),
        (lambda: max_alignment(2, 3, explained=1.5), ValueError, "explained must be at most 1"),
        (lambda: final_kernel(np.eye(3), np.ones(3), 1.0, 2), ValueError, "beta must have length 1, got 1.73"),
        (lambda: final_kernel(np.eye(3), np.eye(4)[0], 1.0, 2), ValueError, "beta must have the 3 features"),
        (lambda: final_kernel(np.eye(3), np.eye(3, dtype=np.float32)[0], 1.0, 2), TypeError, "beta is float32"),
        (lambda: final_kernel(np.eye(3), np.eye(3)[0], -1.0, 2), ValueError, "s must be greater than 0"),
        (lambda: final_kernel(np.full((2, 2), np.nan), np.eye(2)[0], 1.0, 2), ValueError, "X must be finite"),
        (lambda: final_kernel(np.ones((0, 2)), np.eye(2)[0], 1.0, 2), ValueError, "X must have at least one"),
        (lambda: final_kernel(np.eye(2), np.eye(2)[0], 1.0, 2, rate_weighted=1), TypeError, "rate_weighted"),
        (lambda: final_kernel_multi(np.eye(3), np.zeros((2, 3)), 2), ValueError, "B must not be zero"),
        (lambda: final_kernel_multi(np.eye(3), np.ones((2, 4)), 2), ValueError, r"B must have shape \(C, 3\)"),
        (lambda: final_kernel_multi(np.eye(3), np.ones((0, 3)), 2), ValueError, "B must have shape"),
        (lambda: two_layer(1.0, 0.0, 1.0), ValueError, "q0 must be greater than 0"),
        (lambda: two_layer(1.0, 0.1, 1.0, r0=0.2), ValueError, "r0 must be at most 0.1"),
        (lambda: two_layer(0.0, 0.1, 1.0), ValueError, "s must be greater than 0"),
        (lambda: two_layer(1.0, 0.1, -1.0), ValueError, "t must hold"),
        (lambda: two_layer(1.0, 0.1, np.inf), ValueError, "t must be finite"),
        (lambda: two_layer(1.0, 0.1, []), ValueError, "t must hold"),
        (lambda: deep_linear(1.0, 1.0, 3, 1.0), ValueError, "c0 must be less than 1"),
        (lambda: deep_linear(1.0, 0.0, 3, 1.0), ValueError, "c0 must be greater than 0"),
        (lambda: deep_linear(1.0, 0.1, 0, 1.0), ValueError, "depth must be at least 1"),
    ],
)
def test_bad_arguments_are_named(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_kernels_keep_the_dtype(dtype):
    x = np.eye(3, dtype=dtype)
    assert final_kernel(x, x[0], 1.0, 2).dtype == dtype
    assert final_kernel_multi(x, x[:2], 3).dtype == dtype


def test_rates_far_apart_do_not_overflow():
    kernel = final_kernel(np.eye(2), np.eye(2)[0], 1e-200, 2, [1e150, 1e150])
    # s^(2 - 2/L) = s for two layers and equal rates.
    np.testing.assert_allclose(kernel, 1e-200 * np.diag([2.0, 1.0]), rtol=1e-9)
