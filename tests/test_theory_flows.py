"""Closed forms of linear networks against training of this library's networks, from random initial weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from kernelgrowth.gradients import GradientFeatures, from_net
from kernelgrowth.kernels import empirical_ntk
from kernelgrowth.nets import MLP
from kernelgrowth.theory import (
    deep_linear,
    early_growth,
    early_kernel,
    final_kernel,
    final_kernel_multi,
    half_loss_time,
    hidden_kernel,
    max_alignment,
    mode_times,
    two_layer,
)
from kernelgrowth.training import optim, train

DIM, WIDTH = 30, 50
SEEDS = range(3)


def linear_net(depth, sigma, outputs=1):
    return MLP([DIM, *[WIDTH] * (depth - 1), outputs], "linear", sigma=sigma)


def whitened_task(seed, s=1.0):
    """Inputs with X^T X / N = I, a direction, and targets."""
    rng = np.random.default_rng(seed)
    x = np.sqrt(DIM) * np.linalg.qr(rng.standard_normal((DIM, DIM)))[0]
    beta = rng.standard_normal(DIM)
    beta /= np.linalg.norm(beta)
    return x, beta, s * x @ beta


def modes_task(seed, strengths):
    """Whitened inputs, the teacher's singular vectors in columns, and the teacher."""
    rng = np.random.default_rng(seed)
    x = np.sqrt(DIM) * np.linalg.qr(rng.standard_normal((DIM, DIM)))[0]
    count = len(strengths)
    left = np.linalg.qr(rng.standard_normal((count, count)))[0]
    right = np.linalg.qr(rng.standard_normal((DIM, count)))[0]
    return x, left, right, (left * strengths) @ right.T


def flow(net, params, x, y, *, times=None, until=None, rates=None, rtol=1e-7):
    """Gradient flow of the network: (time, parameters) at each of the times, or when the loss is `until` of its start.

    The gradients are the network's; layer l moves rates[l] times as fast.
    """
    y = y.reshape(len(x), -1)
    names = list(params)
    cuts = np.cumsum([params[name].size for name in names])[:-1]
    scales = dict(zip(net.layer_names, rates or [1.0] * len(names), strict=True))

    def unpacked(z):
        return {name: part.reshape(params[name].shape) for name, part in zip(names, np.split(z, cuts), strict=True)}

    def slope(_, z):
        outputs, pullback = net.vjp(unpacked(z), x, check_finite=False)
        grads = pullback((y - outputs) / len(x))
        return np.concatenate([scales[name.rpartition(".")[0]] * grads[name].ravel() for name in names])

    def loss(z):
        return np.mean((net.forward(unpacked(z), x) - y) ** 2)

    start = np.concatenate([params[name].ravel() for name in names])
    initial = loss(start)

    def fallen(_, z):
        return loss(z) - until * initial

    fallen.terminal = True
    found = solve_ivp(
        slope,
        (0.0, 1e9 if times is None else times[-1]),
        start,
        method="DOP853",
        t_eval=times,
        events=None if until is None else fallen,
        rtol=rtol,
        atol=1e-3 * rtol,
    )
    if until is not None:
        return found.t_events[0][0], unpacked(found.y_events[0][0])
    return found.t, [unpacked(z) for z in found.y.T]


def layer_kernels(net, params, x):
    features = from_net(net, params, x)
    return [empirical_ntk(GradientFeatures({name: features[name]}), outputs="full") for name in features]


def weights_of(params):
    return [params[f"layer{number}.weight"] for number in range(1, len(params) + 1)]


def product(params):
    return np.linalg.multi_dot(weights_of(params)[::-1])


def relative(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def slope_in(sigmas, errors):
    return np.polyfit(np.log(sigmas), np.log(errors), 1)[0]


# Two layers in time.


def along(params, direction):
    """q and r of two layers along a direction."""
    w, a = params["layer1.weight"] @ direction, params["layer2.weight"][0]
    return 0.5 * (w @ w + a @ a), a @ w


@pytest.mark.parametrize("s", [1.0, 2.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_two_layers_follow_q_and_r(seed, s):
    x, beta, y = whitened_task(seed, s)
    sigmas, errors, without_drag = (0.1, 0.03, 0.01, 0.003), [], []
    for sigma in sigmas:
        net = linear_net(2, sigma)
        params = net.init(seed)
        times = np.linspace(0.0, (math.log(1.0 / sigma) + 8.0) / s, 40)
        _, steps = flow(net, params, x, y, times=times, rtol=1e-10)
        q, r = np.array([along(step, beta) for step in steps]).T
        w, a = params["layer1.weight"], params["layer2.weight"][0]
        p = w @ beta + a
        drag = np.sum((p @ (w - np.outer(w @ beta, beta))) ** 2) / (p @ p)
        # Random weights: a chi-square of D - 1 degrees of freedom.
        assert drag == pytest.approx(sigma**2, rel=1.0)
        for kept, mu in ((errors, drag), (without_drag, 0.0)):
            found = two_layer(s, q[0], times, r[0], drag=mu)
            kept.append(max(np.abs(found.q - q).max(), np.abs(found.r - r).max()) / s)
            np.testing.assert_allclose(found.c, 0.5 * (found.q + found.r))
    assert errors[2] < 1e-4
    assert slope_in(sigmas, errors) == pytest.approx(2.0, abs=0.2)
    # The plateau's duration, ln(1/sigma), enters the error of the plain form.
    assert without_drag[2] < 3e-4
    assert 1.3 < slope_in(sigmas, without_drag) < 2.0


def test_descent_follows_q_and_r_at_its_own_pace():
    x, beta, y = whitened_task(0)
    net = linear_net(2, 0.01)
    seen = []
    rate, steps = 0.05, 250
    train(
        net,
        net.init(0),
        (x, y),
        optimizer=optim.GD(rate),
        steps=steps,
        progress=lambda state: seen.append(along(state.params, beta)),
    )
    q, r = np.array(seen).T
    found = two_layer(1.0, q[0], np.arange(steps + 1) * math.log1p(rate), r[0])
    # A step's error is of the order of the rate while the loss falls, none on the plateau.
    assert relative(found.q, q) < 0.02
    assert relative(found.r, r) < 0.02


# The kernel at the end.


@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("seed", SEEDS)
def test_final_kernel(seed, depth):
    x, beta, y = whitened_task(seed)
    errors = []
    for sigma in (0.1, 0.05):
        net = linear_net(depth, sigma)
        end = 2.0 * half_loss_time(1.0, sigma**depth, depth) + 20.0
        _, (params,) = flow(net, net.init(seed), x, y, times=[end])
        assert np.abs(net.forward(params, x)[:, 0] - y).max() < 1e-5
        kernel = sum(layer_kernels(net, params, x))
        errors.append(relative(final_kernel(x, beta, 1.0, depth), kernel))
    assert errors[1] < 0.006
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.05)


@pytest.mark.parametrize("rates", [(4.0, 1.0), (0.25, 1.0), (1.0, 4.0, 0.5), (0.2, 1.0, 1.0)])
def test_final_kernel_with_layer_rates(rates):
    depth, plain, weighted = len(rates), [], []
    for seed in SEEDS:
        x, beta, y = whitened_task(seed)
        for sigma in (0.1, 0.05):
            net = linear_net(depth, sigma)
            _, (params,) = flow(net, net.init(seed), x, y, times=[{2: 60.0, 3: 10.0 / sigma}[depth]], rates=rates)
            assert np.abs(net.forward(params, x)[:, 0] - y).max() < 1e-5
            kernels = layer_kernels(net, params, x)
            by_rate = sum(rate * kernel for rate, kernel in zip(rates, kernels, strict=True))
            plain.append(relative(final_kernel(x, beta, 1.0, depth, rates), sum(kernels)))
            weighted.append(relative(final_kernel(x, beta, 1.0, depth, rates, rate_weighted=True), by_rate))
    # The constant before sigma^2 depends on the draw: it spreads by a quarter where one rate is a fifth of the others.
    for errors in (plain, weighted):
        assert np.mean(errors[1::2]) < 0.015
        assert np.max(errors[1::2]) < 0.02
        np.testing.assert_allclose(np.divide(errors[::2], errors[1::2]), 4.0, rtol=0.06)


@pytest.mark.parametrize(
    ("strengths", "rates"),
    [((1.0, 1.0, 1.0), None), ((3.0, 2.0, 1.0), None), ((1.5, 1.0, 1.0), (4.0, 1.0)), ((1.0, 1.0), (4.0, 1.0, 0.5))],
)
def test_final_kernels_of_several_outputs_and_their_hidden_layers(strengths, rates):
    for depth in (len(rates),) if rates else (2, 3):
        x, _, _, teacher = modes_task(depth, strengths)
        errors, hidden_errors = [], []
        for sigma in (0.1, 0.05):
            net = linear_net(depth, sigma, len(strengths))
            end = (50.0 if depth == 2 else 6.0 / sigma) / min(strengths)
            _, (params,) = flow(net, net.init(depth), x, x @ teacher.T, times=[end], rates=rates)
            assert np.abs(net.forward(params, x) - x @ teacher.T).max() < 1e-4
            kernels = layer_kernels(net, params, x)
            by_rate = sum(rate * kernel for rate, kernel in zip(rates or [1.0] * depth, kernels, strict=True))
            errors.append(
                (
                    relative(final_kernel_multi(x, teacher, depth, rates), sum(kernels)),
                    relative(final_kernel_multi(x, teacher, depth, rates, rate_weighted=True), by_rate),
                )
            )
            hidden = x
            for layer, weight in enumerate(weights_of(params), start=1):
                hidden = hidden @ weight.T
                found = hidden_kernel(x, teacher, depth, layer, rates)
                if layer < depth:
                    hidden_errors.append(relative(found, hidden @ hidden.T))
                else:
                    assert relative(found, x @ teacher.T @ teacher @ x.T) < 1e-12
        assert max(errors[1]) < (0.01 if rates else 0.005)
        np.testing.assert_allclose(np.divide(*errors), 4.0, rtol=0.1)
        # What is left of the first layer's initial weights, sigma^2 N / D, on all D inputs.
        before, after = np.split(np.array(hidden_errors), 2)
        assert after.max() < 0.02
        np.testing.assert_allclose(before / after, 4.0, rtol=0.1)


@pytest.mark.parametrize("depth", [2, 3, 4, 5])
def test_alignment_after_gradient_descent(depth):
    sigma = {2: 0.05, 3: 0.05, 4: 0.1, 5: 0.15}[depth]
    for seed in SEEDS:
        x, _, y = whitened_task(seed)
        net = linear_net(depth, sigma)
        steps = int((1.3 * half_loss_time(1.0, sigma**depth, depth) + 10.0) / 0.1)
        run = train(net, net.init(seed), (x, y), optimizer=optim.GD(0.1), steps=steps)
        assert run.losses[-1] < 1e-4 * run.losses[0]
        kernel = empirical_ntk(from_net(net, run.params, x))
        found = y @ kernel @ y / (y @ y * np.linalg.norm(kernel))
        assert found == pytest.approx(depth / math.sqrt(depth**2 + DIM - 1), rel=0.01)
        assert max_alignment(depth, DIM) == pytest.approx(found, rel=0.01)


# Plateaus.


@pytest.mark.parametrize(("depth", "sigmas"), [(3, (0.02, 0.01)), (4, (0.05, 0.03)), (5, (0.1, 0.06))])
@pytest.mark.parametrize("seed", SEEDS)
def test_half_loss_time_grows_as_the_power_of_sigma(seed, depth, sigmas):
    x, _, y = whitened_task(seed)
    times = []
    for sigma in sigmas:
        net = linear_net(depth, sigma)
        times.append(flow(net, net.init(seed), x, y, until=0.5, rtol=1e-6)[0])
    predicted = [half_loss_time(1.0, sigma**depth, depth) for sigma in sigmas]
    assert slope_in(sigmas, times) == pytest.approx(2.0 - depth, abs=0.1)
    assert slope_in(sigmas, predicted) == pytest.approx(2.0 - depth, abs=0.1)
    assert 0.67 < times[1] / predicted[1] < 1.33


@pytest.mark.parametrize("s", [1.0, 2.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_half_loss_time_of_two_layers(seed, s):
    x, beta, y = whitened_task(seed, s)
    times = []
    for sigma in (0.01, 0.001):
        net = linear_net(2, sigma)
        params = net.init(seed)
        times.append(flow(net, params, x, y, until=0.5)[0])
        c0 = 0.5 * sum(along(params, beta))
        assert half_loss_time(s, c0, 2) == pytest.approx(times[-1], rel=2e-3)
    assert s * (times[1] - times[0]) == pytest.approx(math.log(10.0), rel=1e-3)


@pytest.mark.parametrize("depth", [3, 4])
def test_strength_follows_its_equation_once_weights_are_aligned(depth):
    x, beta, y = whitened_task(depth)
    net = linear_net(depth, 0.05)
    _, params = flow(net, net.init(depth), x, y, until=0.9)
    start = (product(params) @ beta).item()
    times = np.linspace(0.0, 5.0, 21)
    _, steps = flow(net, params, x, y, times=times)
    strengths = [(product(step) @ beta).item() for step in steps]
    np.testing.assert_allclose(deep_linear(1.0, start, depth, times), strengths, rtol=5e-3)


@pytest.mark.parametrize("depth", [2, 3])
def test_modes_are_learnt_at_their_times(depth):
    strengths = np.array([3.0, 2.0, 1.0])
    sigma = 0.01 if depth == 2 else 0.02
    for seed in SEEDS:
        x, left, right, teacher = modes_task(seed, strengths)
        net = linear_net(depth, sigma, 3)
        params = net.init(seed)
        times = np.linspace(0.0, 7.0 if depth == 2 else 75.0, 1500)
        _, steps = flow(net, params, x, x @ teacher.T, times=times)
        learnt = np.array([np.diag(left.T @ product(step) @ right) for step in steps]) / strengths
        halves = [np.interp(0.5, mode, times) for mode in learnt.T]
        c0 = sigma**depth
        if depth == 2:
            w, a = weights_of(params)
            c0 = np.sum((w @ right + a.T @ left) ** 2, axis=0) / 4
        np.testing.assert_allclose(mode_times(strengths, c0, depth), halves, rtol=0.01 if depth == 2 else 0.25)


# Inputs that are not whitened.


@pytest.mark.parametrize("n", [60, 20])
@pytest.mark.parametrize("seed", SEEDS)
def test_early_spike(seed, n):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, DIM)) * np.linspace(0.3, 1.5, DIM)
    beta = rng.standard_normal(DIM)
    beta /= np.linalg.norm(beta)
    y = 1.5 * x @ beta
    net = linear_net(2, 1e-3)
    params = net.init(seed)
    initial = sum(layer_kernels(net, params, x))
    time, after = flow(net, params, x, y, until=0.99, rtol=1e-9)
    kernel = sum(layer_kernels(net, after, x))
    a_squared = np.sum(after["layer2.weight"] ** 2)
    assert a_squared > 1e3 * np.sum(params["layer2.weight"] ** 2)
    assert relative(early_kernel(x, y, a_squared, initial), kernel) < 0.01
    # The same from the initial weights alone.
    driven = x.T @ y / np.linalg.norm(x.T @ y)
    q0, r0 = along(params, driven)
    grown = early_growth(x, y, q0, time, r0)
    assert grown.q == pytest.approx(a_squared, rel=2e-3)
    assert grown.r == pytest.approx(along(after, driven)[1], rel=2e-3)
    assert relative(early_kernel(x, y, grown.q, initial), kernel) < 0.01
    # There is a spike, and it does not point along beta.
    scale = a_squared * x @ x.T
    assert relative(initial + scale, kernel) > 0.1
    assert relative(initial + scale + a_squared * np.outer(x @ beta, x @ beta), kernel) > 0.03
