"""Optimizers' kernels J diag(η) Jᵀ: what they say of the next step, against that step and written-out gradients."""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kernelgrowth as kg
import reference
from gpu import Gpu
from kernelgrowth import nets
from kernelgrowth.gradients import GradientFeatures, from_net, jvp
from kernelgrowth.training import TrainingState, by_block, losses, optim
from product_cases import PROMISE, preconditioner
from strategies import cases

MSE = losses.get_loss("mse")
NETS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (nets.MLP([6, 10, 8, 2], "linear", sigma=0.7), (20, 6)),
    "tanh": (nets.MLP([6, 12, 8, 2], "tanh", "ntk", bias=True), (20, 6)),
    "cnn": (
        nets.CNN(
            (2, 6, 6),
            [nets.Conv(4, 3, padding=1), nets.Conv(5, (2, 3), stride=2), nets.Flatten(), nets.Dense(2)],
            "tanh",
            bias="hidden",
        ),
        (16, 2, 6, 6),
    ),
}
OF_THE_GRADIENT = [optim.GD(1e-2), optim.RMSprop(1e-3), optim.Adam(1e-3, beta1=0.0)]
OF_AN_AVERAGE = [optim.Momentum(1e-3), optim.Momentum(1e-3, nesterov=True), optim.Adam(1e-3)]
BEFORE = 5  # updates made before the one that is predicted


@dataclass
class Step:
    """A network about to make an update, its layers with learning rates of their own."""

    net: Any
    x: np.ndarray
    optimizer: optim.Optimizer
    params: dict[str, Any]
    state: dict[str, Any]
    scales: dict[str, float]
    grads: dict[str, Any]
    outputs: np.ndarray
    residuals: list[np.ndarray]  # the loss's derivatives by the outputs, of all updates

    @property
    def features(self) -> GradientFeatures:
        return from_net(self.net, self.params, self.x)

    def change(self, optimizer: optim.Optimizer) -> np.ndarray:
        params, _ = optimizer.update(self.params, self.grads, self.state, self.scales)
        return self.net.forward(params, self.x) - self.outputs

    def by_kernel(self, optimizer: optim.Optimizer, residual: np.ndarray) -> np.ndarray:
        weights = optimizer.preconditioner(self.net, self.grads, self.state, self.scales)
        kernel = kg.empirical_ntk(self.features, preconditioner=weights)
        return -np.einsum("nmce,me->nc", kernel, residual)

    def by_direction(self, optimizer: optim.Optimizer) -> np.ndarray:
        rates = optimizer.learning_rates(self.grads, self.state, self.scales)
        average = optimizer.averaged_gradient(self.grads, self.state)
        return jvp(self.features, by_block(self.net, {name: -rates[name] * m for name, m in average.items()}))

    @property
    def averaged_residual(self) -> np.ndarray:
        return np.tensordot(self.optimizer.averaging_weights(len(self.residuals)), np.array(self.residuals), axes=1)


def take(net: Any, shape: tuple[int, ...], optimizer: optim.Optimizer, updates: int = BEFORE) -> Step:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=shape), rng.normal(size=(shape[0], net.num_outputs))
    scales = {net.layer_names[0]: 0.5}
    params = net.init(0)
    state, residuals = optimizer.init(params), []
    while True:
        outputs, pullback = net.vjp(params, x)
        residuals.append(MSE.value_and_gradient(outputs, y)[1])
        grads = pullback(residuals[-1])
        if len(residuals) > updates:
            return Step(net, x, optimizer, params, state, scales, grads, outputs, residuals)
        params, state = optimizer.update(params, grads, state, scales)


def error(predicted: np.ndarray, change: np.ndarray) -> float:
    return float(np.linalg.norm(predicted - change) / np.linalg.norm(change))


def halved(optimizer: optim.Optimizer, times: int) -> optim.Optimizer:
    return dataclasses.replace(optimizer, lr=optimizer.lr / 2**times)


def assert_second_order(errors: list[float]) -> None:
    for coarse, fine in itertools.pairwise(errors):
        assert 3.2 < coarse / fine < 4.8


@pytest.mark.parametrize("optimizer", OF_THE_GRADIENT, ids=lambda o: o.name)
@pytest.mark.parametrize("name", NETS)
def test_the_kernel_predicts_the_step_to_first_order(name: str, optimizer: optim.Optimizer) -> None:
    step = take(*NETS[name], optimizer)
    errors = []
    for times in range(3):
        smaller = halved(optimizer, times)
        change = step.change(smaller)
        predicted = step.by_kernel(smaller, step.residuals[-1])
        errors.append(float(np.linalg.norm(predicted - change)))
        np.testing.assert_allclose(predicted, step.by_direction(smaller), rtol=1e-9, atol=1e-12 * abs(change).max())
    assert_second_order(errors)
    assert errors[-1] < 0.005 * np.linalg.norm(change)


@pytest.mark.parametrize("optimizer", OF_AN_AVERAGE, ids=["momentum", "nesterov", "adam"])
@pytest.mark.parametrize("name", NETS)
def test_with_momentum_the_step_follows_the_averaged_gradient(name: str, optimizer: optim.Optimizer) -> None:
    step = take(*NETS[name], optimizer)
    errors = []
    for times in range(3):
        change = step.change(halved(optimizer, times))
        errors.append(float(np.linalg.norm(step.by_direction(halved(optimizer, times)) - change)))
    assert_second_order(errors)
    assert errors[-1] < 0.001 * np.linalg.norm(change)
    assert error(step.by_kernel(optimizer, step.residuals[-1]), step.change(optimizer)) > 0.05


@pytest.mark.parametrize("optimizer", OF_AN_AVERAGE, ids=["momentum", "nesterov", "adam"])
def test_with_momentum_the_kernel_takes_the_averaged_residual_while_the_features_hold(
    optimizer: optim.Optimizer,
) -> None:
    errors = []
    for times in range(3):
        step = take(*NETS["tanh"], halved(optimizer, times + 2))
        errors.append(error(step.by_kernel(step.optimizer, step.averaged_residual), step.change(step.optimizer)))
    assert errors[0] < 0.01
    # In proportion to the step; Adam's less regularly, where averaged gradients change their sign.
    assert errors[2] < 0.45 * errors[0]


@pytest.mark.parametrize("updates", [0, 1, 7])
@pytest.mark.parametrize("optimizer", [*OF_THE_GRADIENT, *OF_AN_AVERAGE], ids=lambda o: o.name)
def test_the_kernel_is_exact_where_features_are_fixed(optimizer: optim.Optimizer, updates: int) -> None:
    step = take(nets.MLP([6, 3], "linear", bias=True), (20, 6), optimizer, updates)
    assert error(step.by_kernel(optimizer, step.averaged_residual), step.change(optimizer)) < 1e-10


@pytest.mark.parametrize(("name", "least"), [("linear", 0.1), ("tanh", 0.3), ("cnn", 0.15)])
def test_the_plain_kernel_does_not_predict_a_step_of_adam(name: str, least: float) -> None:
    step = take(*NETS[name], optim.Adam(1e-4, beta1=0.0))
    change = step.change(step.optimizer)
    plain = np.einsum("nmce,me->nc", kg.empirical_ntk(step.features), step.residuals[-1])
    best = plain * (float(np.sum(plain * change)) / float(np.sum(plain * plain)))
    assert error(best, change) > least
    assert error(step.by_kernel(step.optimizer, step.residuals[-1]), change) < 0.001


@pytest.mark.parametrize("optimizer", [*OF_THE_GRADIENT, *OF_AN_AVERAGE], ids=lambda o: o.name)
def test_the_update_is_the_rates_times_the_averaged_gradient(optimizer: optim.Optimizer) -> None:
    step = take(*NETS["cnn"], optimizer)
    params, _ = optimizer.update(step.params, step.grads, step.state, step.scales)
    rates = optimizer.learning_rates(step.grads, step.state, step.scales)
    average = optimizer.averaged_gradient(step.grads, step.state)
    for name, value in step.params.items():
        np.testing.assert_allclose(params[name] - value, -rates[name] * average[name], rtol=1e-9, atol=1e-15)


@given(
    optimizer=st.sampled_from([*OF_THE_GRADIENT, *OF_AN_AVERAGE, optim.Momentum(0.1, beta=0.0)]),
    updates=st.integers(1, 9),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=30)
def test_averaging_weights_are_those_of_the_averaged_gradient(
    optimizer: optim.Optimizer, updates: int, seed: int
) -> None:
    gradients = np.random.default_rng(seed).normal(size=(updates, 4))
    params = {"layer1.weight": np.zeros(4)}
    state = optimizer.init(params)
    for gradient in gradients[:-1]:
        _, state = optimizer.update(params, {"layer1.weight": gradient}, state)
    average = optimizer.averaged_gradient({"layer1.weight": gradients[-1]}, state)["layer1.weight"]
    weights = optimizer.averaging_weights(updates)
    np.testing.assert_allclose(weights @ gradients, average, rtol=1e-10, atol=1e-12)
    if optimizer.name in ("gd", "rmsprop", "adam"):
        assert weights.sum() == pytest.approx(1)


@pytest.mark.parametrize("name", NETS)
def test_blocks_are_the_parameters_in_the_order_of_their_gradients(name: str) -> None:
    net, shape = NETS[name]
    step = take(net, shape, optim.Adam(1e-3))
    rates = step.optimizer.learning_rates(step.grads, step.state, step.scales)
    _, pullback = net.vjp(step.params, step.x[:3])
    rows = []
    for unit in np.eye(3 * net.num_outputs):
        gradient = pullback(unit.reshape(3, net.num_outputs))
        rows.append(np.concatenate([(gradient[key] * np.sqrt(rates[key])).ravel() for key in rates]))
    jacobian = np.array(rows)
    features = from_net(net, step.params, step.x[:3])
    operator = kg.NTKOperator(features, preconditioner=by_block(net, rates))
    wanted = jacobian @ jacobian.T
    np.testing.assert_allclose(operator.gram(), wanted, rtol=1e-10, atol=1e-12 * wanted.max())


@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.parametrize("optimizer", [optim.Momentum(0.02), optim.RMSprop(0.01), optim.Adam(0.01, beta1=0.0)])
def test_callbacks_see_the_rates_of_the_update_that_follows(optimizer: optim.Optimizer, batch_size: int | None) -> None:
    net = nets.MLP([6, 5, 2], "tanh", bias=True)
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(10, 6)), rng.normal(size=(10, 2))
    seen: list[tuple[dict[str, Any], dict[str, Any]]] = []

    class Follow(kg.Callback):
        def on_step(self, state: TrainingState) -> None:
            if state.is_last:
                with pytest.raises(RuntimeError, match="none is about to be made"):
                    state.preconditioner()
                seen.append((by_block(net, state.params), {}))
                return
            average = state.optimizer.averaged_gradient(state.gradient, state.optimizer_state)
            rates, average = state.preconditioner(), by_block(net, average)
            kg.empirical_ntk(from_net(net, state.params, x), preconditioner=rates)
            steps = {
                layer: tuple(eta * m for eta, m in zip(rates[layer], average[layer], strict=True)) for layer in rates
            }
            seen.append((by_block(net, state.params), steps))

    kg.train(
        net, net.init(0), (x, y), optimizer=optimizer, steps=4, batch_size=batch_size, layer_lr={"layer1": 0.3},
        callbacks=[Follow()],
    )  # fmt: skip
    assert len(seen) == 5
    for (before, steps), (after, _) in itertools.pairwise(seen):
        for layer, arrays in steps.items():
            for old, new, wanted in zip(before[layer], after[layer], arrays, strict=True):
                np.testing.assert_allclose(old - new, wanted, rtol=1e-8, atol=1e-14)


def test_frozen_layers_are_no_part_of_the_kernel() -> None:
    net, shape = NETS["tanh"]
    step = take(net, shape, optim.Adam(1e-3))
    weights = step.optimizer.preconditioner(net, step.grads, step.state, {"layer1": 0.0, "layer3": 0.0})
    parts = kg.empirical_ntk(step.features, preconditioner=weights, per_layer=True)
    assert not parts["layer1"].any()
    assert parts["layer2"].any()
    assert not parts["layer3"].any()


@given(case=cases(max_examples=20, max_length=30, max_positions=4, symmetric=True), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_jvp_is_the_written_out_jacobian_times_the_direction(case: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tangent = {
        name: tuple((array - 0.5) * rng.choice([1e-3, 1.0]).astype(case.dtype) for array in arrays)
        if isinstance(arrays, tuple)
        else arrays - case.dtype(0.5)
        for name, arrays in preconditioner(case, seed).items()
    }
    direction = np.concatenate(
        [
            np.concatenate([array.ravel() for array in (arrays if isinstance(arrays, tuple) else (arrays,))])
            for arrays in tangent.values()
        ]
    ).astype(np.float64)
    jacobian = reference.jacobian(case.blocks[0])
    found = jvp(case.features[0], tangent)
    assert found.dtype == case.dtype
    assert found.shape == jacobian.shape[:2]
    scale = np.linalg.norm(jacobian, axis=2) * np.linalg.norm(direction)
    assert (abs(found - jacobian @ direction) <= PROMISE[case.dtype] * scale).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_jvp_of_many_examples_goes_in_parts(dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    net, shape = NETS["cnn"]
    x = np.random.default_rng(2).normal(size=shape).astype(dtype)
    params = net.init(0, dtype)
    features, tangent = from_net(net, params, x), by_block(net, params)
    whole = jvp(features, tangent)
    monkeypatch.setattr("kernelgrowth.gradients.tangents._CHUNK_BYTES", 1 << 14)
    np.testing.assert_allclose(jvp(features, tangent), whole, rtol=8 * np.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("optimizer", [*OF_THE_GRADIENT, *OF_AN_AVERAGE], ids=lambda o: o.name)
def test_arrays_on_a_gpu_stay_there(gpu: Gpu, name: str, optimizer: optim.Optimizer) -> None:
    step = take(*NETS[name], optimizer)
    placed = {key: {k: gpu(v) for k, v in getattr(step, key).items()} for key in ("params", "grads", "state")}
    weights = optimizer.preconditioner(step.net, placed["grads"], placed["state"], step.scales)
    features = from_net(step.net, placed["params"], gpu(step.x))
    kernel = kg.NTKOperator(features, preconditioner=weights).gram()
    wanted = optimizer.preconditioner(step.net, step.grads, step.state, step.scales)
    gpu.agree(kernel, kg.NTKOperator(step.features, preconditioner=wanted).gram(), 1e-9)
    gpu.agree(jvp(features, weights), jvp(step.features, wanted), 1e-9)


def test_float32_nets_have_float32_kernels() -> None:
    net = nets.MLP([6, 5, 2], "tanh", bias=True)
    x = np.random.default_rng(0).normal(size=(7, 6)).astype(np.float32)
    params = net.init(0, np.float32)
    outputs, pullback = net.vjp(params, x)
    for optimizer in (*OF_THE_GRADIENT, *OF_AN_AVERAGE):
        weights = optimizer.preconditioner(net, pullback(outputs), optimizer.init(params))
        assert kg.empirical_ntk(from_net(net, params, x), preconditioner=weights).dtype == np.float32


GRADS = {"layer1.weight": np.ones((3, 2)), "layer1.bias": np.ones(3)}


@pytest.mark.parametrize(
    ("arguments", "problem", "message"),
    [
        ((1.0, {}), TypeError, "grads must be a dict of arrays, at least one, got float"),
        (({}, {}), TypeError, "grads must be a dict of arrays, at least one, got an empty one"),
        (({"layer1.weight": np.full(2, np.nan)}, {}), ValueError, r"grads\['layer1.weight'\] must be finite"),
        (({"layer1.weight": "abc"}, {}), TypeError, r"grads\['layer1.weight'\] must be an array"),
        ((GRADS, None), TypeError, "state must be a dict of arrays"),
        ((GRADS, {}), ValueError, "state must be that of Adam for the parameters in grads, but lacks 'updates'"),
        ((GRADS, optim.Adam(0.1).init(GRADS), {"layer2": 1.0}), ValueError, r"lr_scale must name layers .*\(layer1\)"),
        ((GRADS, optim.Adam(0.1).init(GRADS), {"layer1": -1.0}), ValueError, r"lr_scale\['layer1'\] must be at least"),
        ((GRADS, optim.Adam(0.1).init(GRADS), 2.0), TypeError, "lr_scale must map layer names"),
    ],
)
def test_bad_states_are_refused(arguments: tuple[Any, ...], problem: type[Exception], message: str) -> None:
    with pytest.raises(problem, match=message):
        optim.Adam(0.1).learning_rates(*arguments)


@pytest.mark.parametrize("updates", [0, -1])
@pytest.mark.parametrize("optimizer", [*OF_THE_GRADIENT, *OF_AN_AVERAGE], ids=lambda o: o.name)
def test_no_updates_have_no_weights(optimizer: optim.Optimizer, updates: int) -> None:
    with pytest.raises(ValueError, match="updates must be at least 1"):
        optimizer.averaging_weights(updates)


class Images:
    """A network of one's own whose weights are no matrices."""

    layer_names = ("conv",)


@pytest.mark.parametrize(
    ("net", "arrays", "problem", "message"),
    [
        (nets.MLP([2, 3]), 1.0, TypeError, "arrays must map parameter names"),
        (nets.MLP([2, 3]), {}, ValueError, "'layer1.weight' is missing"),
        (nets.MLP([2, 3]), {**GRADS, "layer2.weight": np.ones(2)}, ValueError, "of layer1, got 'layer2.weight'"),
        (nets.MLP([2, 3]), {"layer1.weight": np.ones((3, 2)), "layer1.bias": np.ones(2)}, ValueError, "shape"),
        (nets.MLP([2, 3]), {"layer1.weight": [["a"]]}, TypeError, r"arrays\['layer1.weight'\] must be"),
        (NETS["cnn"][0], {"conv1.weight": np.ones((4, 2, 5, 5))}, ValueError, "must have the weight's shape"),
        (Images(), {"conv.weight": np.ones((4, 2, 5, 5))}, ValueError, "Images has no block_matrix"),
    ],
)
def test_bad_parameters_are_refused(net: Any, arrays: Any, problem: type[Exception], message: str) -> None:
    with pytest.raises(problem, match=message):
        by_block(net, arrays)


@pytest.mark.parametrize(
    ("tangent", "problem", "message"),
    [
        (1.0, TypeError, "tangent must map block names"),
        ({}, ValueError, r"tangent must have the blocks \['layer1'\]"),
        ({"layer1": np.ones((3, 2))}, ValueError, r"tangent\['layer1'\] must have shape \(3, 2\) and \(3,\)"),
        ({"layer1": (np.ones((3, 2), np.float32), np.ones(3))}, TypeError, r"tangent\['layer1'\] must be float64"),
        ({"layer1": (np.ones((3, 2)), np.full(3, math.inf))}, ValueError, r"tangent\['layer1'\] must be finite"),
    ],
)
def test_bad_directions_are_refused(tangent: Any, problem: type[Exception], message: str) -> None:
    net = nets.MLP([2, 3], bias=True)
    features = from_net(net, net.init(), np.ones((4, 2)))
    with pytest.raises(problem, match=message):
        jvp(features, tangent)
    with pytest.raises(TypeError, match="feats must be GradientFeatures, got dict"):
        jvp({}, tangent)  # type: ignore[arg-type]
