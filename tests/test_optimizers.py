"""Optimizers against their formulas, written out entry by entry."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelgrowth.training import optim

seeds = st.integers(0, 2**32 - 1)
decays = st.sampled_from([0.0, 0.3, 0.9, 0.999])
dtypes = st.sampled_from([np.float32, np.float64])


def by_definition(optimizer: optim.Optimizer, theta: float, gradients: list[float], scale: float) -> float:
    """The formulas for one parameter, in Python floats."""
    eta = optimizer.lr * scale
    velocity = m = v = 0.0
    for t, g in enumerate(gradients, start=1):
        if isinstance(optimizer, optim.GD):
            theta -= eta * g
        elif isinstance(optimizer, optim.Momentum):
            velocity = optimizer.beta * velocity + g
            theta -= eta * (g + optimizer.beta * velocity if optimizer.nesterov else velocity)
        elif isinstance(optimizer, optim.Adam):
            m = optimizer.beta1 * m + (1 - optimizer.beta1) * g
            v = optimizer.beta2 * v + (1 - optimizer.beta2) * g * g
            m_hat, v_hat = m / (1 - optimizer.beta1**t), v / (1 - optimizer.beta2**t)
            theta -= eta * m_hat / (math.sqrt(v_hat) + optimizer.eps)
        elif isinstance(optimizer, optim.RMSprop):
            v = optimizer.alpha * v + (1 - optimizer.alpha) * g * g
            theta -= eta * g / (math.sqrt(v) + optimizer.eps)
    return theta


optimizers = st.one_of(
    st.builds(optim.GD, lr=st.floats(1e-3, 1.0)),
    st.builds(optim.Momentum, lr=st.floats(1e-3, 1.0), beta=decays, nesterov=st.booleans()),
    st.builds(optim.Adam, lr=st.floats(1e-3, 1.0), beta1=decays, beta2=decays, eps=st.sampled_from([1e-8, 1e-3])),
    st.builds(optim.RMSprop, lr=st.floats(1e-3, 1.0), alpha=decays, eps=st.sampled_from([1e-8, 1e-3])),
)


@given(optimizer=optimizers, seed=seeds, updates=st.integers(1, 5), scale=st.sampled_from([0.0, 0.25, 1.0, 3.0]))
@settings(deadline=None, max_examples=80)
def test_updates_follow_the_formulas_with_a_rate_for_each_layer(
    optimizer: optim.Optimizer, seed: int, updates: int, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    first = {
        "layer1.weight": rng.normal(size=(2, 3)),
        "layer1.bias": rng.normal(size=2),
        "a.b.weight": rng.normal(size=2),
    }
    grads = [{name: rng.normal(size=value.shape) for name, value in first.items()} for _ in range(updates)]
    params, state = first, optimizer.init(first)
    for gradient in grads:
        params, state = optimizer.update(params, gradient, state, {"layer1": scale})
    for name, value in first.items():
        for index in np.ndindex(value.shape):
            history = [float(gradient[name][index]) for gradient in grads]
            wanted = by_definition(optimizer, float(value[index]), history, scale if name.startswith("layer1") else 1.0)
            assert params[name][index] == pytest.approx(wanted, rel=1e-10, abs=1e-12)


@given(optimizer=optimizers, seed=seeds, dtype=dtypes)
@settings(deadline=None, max_examples=30)
def test_updates_keep_dtypes_and_leave_their_arguments_alone(optimizer: optim.Optimizer, seed: int, dtype: Any) -> None:
    rng = np.random.default_rng(seed)
    params = {"layer1.weight": rng.normal(size=(2, 3)).astype(dtype)}
    grads = {"layer1.weight": rng.normal(size=(2, 3)).astype(dtype)}
    state = optimizer.init(params)
    for array in (*params.values(), *grads.values(), *state.values()):
        array.flags.writeable = False
    new, new_state = optimizer.update(params, grads, state)
    assert new["layer1.weight"].dtype == dtype
    assert new_state.keys() == state.keys()
    for name, array in new_state.items():
        assert array.dtype == state[name].dtype
        assert array.shape == state[name].shape
    again, _ = optimizer.update(params, grads, state, {})
    np.testing.assert_array_equal(again["layer1.weight"], new["layer1.weight"])


def test_first_step_of_adam_is_the_learning_rate_times_the_sign() -> None:
    adam = optim.Adam(lr=0.01)
    params = {"layer1.weight": np.zeros(4)}
    new, _ = adam.update(params, {"layer1.weight": np.array([5.0, -1e-3, 2e3, -1.0])}, adam.init(params))
    np.testing.assert_allclose(new["layer1.weight"], [-0.01, 0.01, -0.01, 0.01], rtol=1e-4)


def test_first_step_of_rmsprop_is_not_corrected_for_its_zero_start() -> None:
    rmsprop = optim.RMSprop(lr=0.01, alpha=0.96)
    params = {"layer1.weight": np.zeros(4)}
    new, _ = rmsprop.update(params, {"layer1.weight": np.array([5.0, -1e-3, 2e3, -1.0])}, rmsprop.init(params))
    np.testing.assert_allclose(new["layer1.weight"], [-0.05, 0.05, -0.05, 0.05], rtol=1e-4)


@given(optimizer=optimizers)
def test_config_rebuilds_the_optimizer(optimizer: optim.Optimizer) -> None:
    assert optim.from_config(optimizer.config()) == optimizer


@pytest.mark.parametrize(
    ("kind", "arguments", "error", "message"),
    [
        (optim.GD, {"lr": -0.1}, ValueError, "lr must be greater than 0, got -0.1"),
        (optim.GD, {"lr": 0}, ValueError, "lr must be greater than 0"),
        (optim.GD, {"lr": math.inf}, ValueError, "lr must be finite"),
        (optim.GD, {"lr": "0.1"}, TypeError, "lr must be a number"),
        (optim.Momentum, {"lr": 0.1, "beta": 1.0}, ValueError, "beta must be less than 1"),
        (optim.Momentum, {"lr": 0.1, "beta": -0.5}, ValueError, "beta must be at least 0"),
        (optim.Momentum, {"lr": 0.1, "nesterov": 1}, TypeError, "nesterov must be True or False"),
        (optim.Adam, {"lr": -1.0}, ValueError, "lr must be greater than 0"),
        (optim.Adam, {"lr": 0.1, "beta1": 1}, ValueError, "beta1 must be less than 1"),
        (optim.Adam, {"lr": 0.1, "beta2": 2}, ValueError, "beta2 must be"),
        (optim.Adam, {"lr": 0.1, "eps": 0}, ValueError, "eps must be greater than 0"),
        (optim.RMSprop, {"lr": 0.1, "alpha": 1.0}, ValueError, "alpha must be less than 1"),
        (optim.RMSprop, {"lr": 0.1, "eps": -1e-8}, ValueError, "eps must be greater than 0"),
    ],
)
def test_bad_settings_are_refused(kind: Any, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        kind(**arguments)


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ("gd", TypeError, "config must be a mapping"),
        ({"lr": 0.1}, ValueError, r"config\['name'\] must be one of 'gd', 'momentum', 'adam', 'rmsprop'"),
        ({"name": "sgd", "lr": 0.1}, ValueError, r"config\['name'\]"),
        ({"name": "gd"}, ValueError, "must hold 'lr'"),
        ({"name": "gd", "lr": 0.1, "beta": 0.9}, ValueError, "got 'beta' as well"),
        ({"name": "gd", "lr": -0.1}, ValueError, "lr must be greater than 0"),
    ],
)
def test_bad_configs_are_refused(config: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        optim.from_config(config)
