"""Path kernels and the flow along recorded kernels, against trained networks, closed forms and written-out sums."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kernelgrowth as kg
from gpu import Gpu
from kernelgrowth.diagnostics import KernelRegression, PathRegression, path_kernel, path_prediction
from kernelgrowth.training import TrainingState, losses, optim

SEEDS = st.integers(0, 2**32 - 1)


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


class Recorder(kg.Callback):
    """Kernels, predictions and the loss's derivatives by them, on training and test examples."""

    def __init__(self, x_test: np.ndarray, every: int) -> None:
        self.x_test, self.every = x_test, every
        self.series: dict[str, list[Any]] = {}

    def on_step(self, state: TrainingState) -> None:
        if state.step % self.every:
            return
        train = kg.gradients.from_net(state.net, state.params, state.x)
        test = kg.gradients.from_net(state.net, state.params, self.x_test)
        for name, value in {
            "times": state.time,
            "kernels": kg.NTKOperator(train).gram(),
            "crosses": kg.NTKOperator(test, train).gram(),
            "train": train.predictions,
            "test": test.predictions,
            "gradients": state.loss_function.value_and_gradient(train.predictions, state.y)[1],
            "losses": state.loss,
        }.items():
            self.series.setdefault(name, []).append(value)

    def __getitem__(self, name: str) -> np.ndarray:
        return np.array(self.series[name])

    def thinned(self, step: int) -> dict[str, np.ndarray]:
        return {name: self[name][::step] for name in self.series}


DATA = np.random.default_rng(0)
X, X_TEST = DATA.normal(size=(12, 3)), DATA.normal(size=(7, 3))
Y = np.stack([np.tanh(X[:, 0] * X[:, 1]), X[:, 2]], axis=1)


@functools.cache
def trained(outputs: int, loss: str = "mse", lr: float = 0.005, steps: int = 6400, every: int = 25) -> Recorder:
    """A net whose kernel grows while it learns."""
    net = kg.nets.MLP([3, 16, outputs], "tanh", sigma=0.3, bias="hidden")
    y = np.argmax(Y, axis=1) if loss == "cross_entropy" else Y[:, :outputs]
    recorder = Recorder(X_TEST, every)
    kg.train(net, net.init(1), (X, y), loss=loss, optimizer=optim.GD(lr), steps=steps, callbacks=[recorder])
    return recorder


@pytest.mark.parametrize("outputs", [1, 2])
def test_the_flow_along_its_kernels_is_the_network(outputs: int) -> None:
    run = trained(outputs)
    y = Y[:, :outputs]
    errors = []
    for step in (32, 16, 8, 1):
        seen = run.thinned(step)
        model = PathRegression(seen["times"], seen["kernels"]).fit(y, seen["train"][0])
        path = model.predict_path(seen["crosses"], seen["test"][0])
        errors.append((relative(model.train_path, seen["train"]), relative(path, seen["test"])))
        np.testing.assert_array_equal(path[-1], model.predict(seen["crosses"], seen["test"][0]))
    for side in (0, 1):
        for coarse, fine in itertools.pairwise(error[side] for error in errors[:3]):
            assert 3 < coarse / fine < 5
        assert errors[-1][side] < 2e-4
    assert model.losses == pytest.approx(run["losses"], rel=2e-3)


def test_what_is_left_is_the_step_of_gradient_descent() -> None:
    errors = []
    for lr, steps, every in ((0.04, 800, 3), (0.02, 1600, 6), (0.01, 3200, 12)):
        run = trained(1, lr=lr, steps=steps, every=every)
        model = PathRegression(run["times"], run["kernels"]).fit(Y[:, :1], run["train"][0])
        errors.append(relative(model.predict(run["crosses"], run["test"][0]), run["test"][-1]))
    assert errors[0] < 0.01
    for coarse, fine in itertools.pairwise(errors):
        assert 1.6 < coarse / fine < 2.4


def test_one_kernel_for_all_times_does_not_explain_the_network() -> None:
    run = trained(1)
    y, f0, test0, wanted = Y[:, :1], run["train"][0], run["test"][0], run["test"][-1]
    model = PathRegression(run["times"], run["kernels"]).fit(y, f0)
    found = relative(model.predict(run["crosses"], test0), wanted)
    for i in (0, -1):
        frozen = KernelRegression(run["kernels"][i]).fit(y, f0)
        stopped = frozen.predict_at(run["crosses"][i], t=run["times"][-1], f0=test0)
        matched = frozen.predict_at(run["crosses"][i], train_loss=run["losses"][-1], f0=test0)
        final = frozen.predict(run["crosses"][i], test0)
        assert min(relative(guess, wanted) for guess in (stopped, matched, final)) > 20 * found


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_the_path_kernel_predicts_the_network(loss: str) -> None:
    run = trained(2, loss)
    errors = []
    for step in (16, 8, 1):
        seen = run.thinned(step)
        found = path_prediction(seen["times"], seen["crosses"], seen["gradients"], seen["test"][0])
        errors.append(relative(found, seen["test"][-1]))
        train = path_prediction(seen["times"], seen["kernels"], seen["gradients"], seen["train"][0])
    assert 3 < errors[0] / errors[1] < 5
    assert errors[-1] < 5e-4
    assert relative(train, run["train"][-1]) < 5e-4


def test_the_path_kernel_of_an_optimizer_predicts_its_network() -> None:
    net = kg.nets.MLP([3, 8, 1], "tanh", sigma=0.5, bias=True)
    y, kernels, gradients, outputs = Y[:, :1], [], [], []

    class Follow(kg.Callback):
        def on_step(self, state: TrainingState) -> None:
            train = kg.gradients.from_net(net, state.params, state.x)
            outputs.append(train.predictions)
            if not state.is_last:
                kernels.append(kg.empirical_ntk(train, preconditioner=state.preconditioner()))
                gradients.append(losses.get_loss("mse").value_and_gradient(train.predictions, state.y)[1])

    adam = optim.Adam(5e-4, beta1=0.0)
    kg.train(net, net.init(0), (X, y), optimizer=adam, steps=401, callbacks=[Follow()])
    # From the middle of the first update to that of the last: each counts once but these, which count half.
    found = path_prediction(np.arange(401), kernels, gradients, outputs[0])
    wanted = 0.5 * (outputs[-1] + outputs[-2]) + 0.5 * (outputs[0] - outputs[1])
    assert relative(found - outputs[0], wanted - outputs[0]) < 0.01


class Random:
    """Positive semi-definite kernels at random times, with targets, whether by example or by row."""

    def __init__(self, seed: int, n: int, outputs: int, per_row: bool, rank: int | None = None, count: int = 4) -> None:
        rng = np.random.default_rng(seed)
        rows, tests = (n * outputs, 3 * outputs) if per_row else (n, 3)
        features = rng.normal(size=(count, rows + tests, rank or 2 * rows))
        grams = features @ features.transpose(0, 2, 1)
        self.kernels, self.crosses = grams[:, :rows, :rows], grams[:, rows:, :rows]
        self.times = rng.normal() + np.cumsum(rng.uniform(0.1, 1, count))
        self.y, self.f0, self.f0_test = (rng.normal(size=(m, outputs)) for m in (n, n, 3))
        self.gradients = rng.normal(size=(count, n, outputs))


problems = st.builds(
    Random,
    SEEDS,
    st.integers(1, 8),
    st.integers(1, 3),
    st.booleans(),
    rank=st.sampled_from([None, 2]),
    count=st.integers(2, 5),
)


@given(problems, st.booleans(), st.booleans())
@settings(max_examples=60)
def test_a_constant_kernel_is_kernel_regression(problem: Random, flat: bool, offset: bool) -> None:
    if flat and problem.y.shape[1] == 1:
        problem.y, problem.f0, problem.f0_test = (a[:, 0] for a in (problem.y, problem.f0, problem.f0_test))
    f0, f0_test = (problem.f0, problem.f0_test) if offset else (None, None)
    kernel, cross = problem.kernels[0], problem.crosses[0]
    model = PathRegression(problem.times, [kernel] * len(problem.times)).fit(problem.y, f0)
    path = model.predict_path([cross] * len(problem.times), f0_test)
    frozen = KernelRegression(kernel).fit(problem.y, f0)
    for i, t in enumerate(problem.times - problem.times[0]):
        wanted = frozen.predict_at(cross, t=t, f0=f0_test)
        np.testing.assert_allclose(path[i], wanted, rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(model.train_path[i], frozen.predict_at(kernel, t=t, f0=f0), rtol=1e-8, atol=1e-8)
    assert path[-1].shape == problem.f0_test.shape


@given(problems)
@settings(max_examples=40)
def test_training_examples_are_test_examples_too(problem: Random) -> None:
    model = PathRegression(problem.times, problem.kernels).fit(problem.y, problem.f0)
    path = model.predict_path(problem.kernels, problem.f0)
    np.testing.assert_allclose(path, model.train_path, rtol=1e-9, atol=1e-9)
    residuals = model.train_path - problem.y
    assert model.losses == pytest.approx((residuals**2).sum((1, 2)) / (2 * len(problem.y)))
    assert (np.diff(model.losses) <= 1e-12).all()


@given(problems)
@settings(max_examples=40)
def test_path_kernels_are_trapezoidal_sums(problem: Random) -> None:
    times, kernels = problem.times, problem.crosses
    wanted = np.trapezoid(kernels, times, axis=0)
    np.testing.assert_allclose(path_kernel(times, kernels), wanted, rtol=1e-12, atol=1e-12)
    weights = np.resize(problem.gradients, (len(times), kernels.shape[2]))
    weighted = path_kernel(times, kernels, weights)
    np.testing.assert_allclose(
        weighted, np.trapezoid(kernels * weights[:, None], times, axis=0), rtol=1e-12, atol=1e-12
    )
    per_row = kernels.shape[2] == problem.y.size
    integrand = np.array(
        [
            (kernel @ gradient.reshape(-1, 1 if per_row else gradient.shape[1])).reshape(problem.f0_test.shape)
            for kernel, gradient in zip(kernels, problem.gradients, strict=True)
        ]
    )
    found = path_prediction(times, kernels, problem.gradients, problem.f0_test)
    np.testing.assert_allclose(found, problem.f0_test - np.trapezoid(integrand, times, axis=0), rtol=1e-10, atol=1e-10)


def test_row_sums_of_the_weighted_path_kernel_are_the_prediction() -> None:
    run = trained(1)
    gradients = run["gradients"][:, :, 0]
    weighted = path_kernel(run["times"], run["crosses"], gradients)
    found = path_prediction(run["times"], run["crosses"], gradients, run["test"][0, :, 0])
    np.testing.assert_allclose(run["test"][0, :, 0] - weighted.sum(axis=1), found, rtol=1e-12)


def test_fast_modes_decay_within_a_step() -> None:
    kernel = np.diag([1e12, 1.0, 0.0])
    model = PathRegression([0, 1, 2], [kernel] * 3).fit([1.0, 1.0, 1.0])
    np.testing.assert_allclose(model.train_path[-1], [1, 1 - np.exp(-2 / 3), 0], rtol=1e-12)
    np.testing.assert_allclose(model.predict([kernel] * 3), model.train_path[-1], rtol=1e-12)


def test_a_generator_of_operators_will_do() -> None:
    net = kg.nets.MLP([3, 5, 2], "tanh")
    features = [kg.gradients.from_net(net, net.init(seed, np.float32), X.astype(np.float32)) for seed in range(3)]
    grams = [kg.NTKOperator(f).gram() for f in features]
    model = PathRegression([0, 1, 3], (kg.NTKOperator(f) for f in features)).fit(Y)
    stored = PathRegression([0, 1, 3], np.array(grams)).fit(Y)
    np.testing.assert_array_equal(model.train_path, stored.train_path)
    found = model.predict(kg.NTKOperator(f, f) for f in features)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, model.train_path[-1], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="kernels must hold one kernel for each of the 3 times, got 0"):
        model.fit(Y)


def test_a_tracked_run_has_what_it_takes(tmp_path: Any) -> None:
    net = kg.nets.MLP([3, 16, 1], "tanh", sigma=0.3, bias="hidden")
    recorder = Recorder(X_TEST, 20)
    tracker = kg.NTKTracker(X, Y[:, 0], every=20, x_test=X_TEST, out=tmp_path / "run")
    data = (X, Y[:, 0])
    kg.train(net, net.init(1), data, optimizer=optim.GD(0.02), steps=400, callbacks=[tracker, recorder])
    history = kg.load_run(tmp_path / "run")
    steps = history.kernel_steps
    times = history["time"][np.searchsorted(history.steps, steps)]
    model = PathRegression(times, (history.kernel(step) for step in steps))
    model.fit(history.targets, f0=history.predictions(steps[0]))
    found = model.predict(recorder["crosses"], f0=history.test_predictions(steps[0]))
    assert relative(model.losses, history["loss"]) < 0.01
    assert relative(found, history.test_predictions(steps[-1])[:, 0]) < 0.01


def test_arrays_on_a_gpu_come_back_there(gpu: Gpu) -> None:
    problem = Random(3, 6, 2, True)
    model = PathRegression(problem.times, gpu(problem.kernels)).fit(problem.y, problem.f0)
    wanted = PathRegression(problem.times, problem.kernels).fit(problem.y, problem.f0)
    np.testing.assert_array_equal(model.train_path, wanted.train_path)
    crosses = [gpu(cross) for cross in problem.crosses]
    gpu.agree(model.predict(crosses, problem.f0_test), wanted.predict(problem.crosses, problem.f0_test), 0)
    gpu.agree(path_kernel(problem.times, crosses), path_kernel(problem.times, problem.crosses), 0)


K, CROSS = np.eye(3), np.ones((2, 3))


@pytest.mark.parametrize(
    ("times", "kernels", "error", "message"),
    [
        ([0.0], [K], ValueError, "times must hold at least two times, got 1"),
        ([0, 0], [K, K], ValueError, "times must ascend, got 0 and then 0 at index 1"),
        ([0, np.nan], [K, K], ValueError, "times must be finite"),
        ([[0, 1]], [K, K], ValueError, "times must have 1 dimension"),
        ([0, 1], K, ValueError, "kernels must hold one kernel for each of the 2 times, got 3"),
        ([0, 1], 1.0, TypeError, "kernels must be a sequence of kernels, got float"),
        ([0, 1], {"a": K, "b": K}, TypeError, "kernels must be a sequence of kernels, got dict"),
        ([0, 1], [K, np.eye(2)], ValueError, r"kernels\[1\] must have the shape \(3, 3\) of kernels\[0\]"),
        ([0, 1], [CROSS, CROSS], ValueError, r"kernels\[0\] must be square"),
        ([0, 1], [K, K * np.nan], ValueError, r"kernels\[1\] must be finite"),
        ([0, 1], [K, K.astype(np.float32)], TypeError, r"kernels\[1\] is float32 but kernels\[0\] is float64"),
        ([0, 1], [K, np.triu(np.ones((3, 3)))], ValueError, r"kernels\[1\] must be symmetric"),
        ([0, 1], [K, -2 * K], ValueError, r"the mean of kernels\[0\] and kernels\[1\] has the eigenvalue -0.5"),
        ([0, 1], [np.ones((3, 3, 1, 1))] * 2, ValueError, r"kernels\[0\] must be a matrix"),
        ([0, 1], iter([K]), ValueError, "kernels must hold one kernel for each of the 2 times, got 1"),
        ([0, 1], iter([K, K, K]), ValueError, "kernels must hold one kernel for each of the 2 times, got more"),
    ],
)
def test_bad_kernels_are_refused(times: Any, kernels: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        PathRegression(times, kernels).fit(np.ones(3))


@pytest.mark.parametrize(
    ("y", "f0", "crosses", "f0_test", "message"),
    [
        (np.ones(2), None, [CROSS] * 2, None, "y must be"),
        (np.ones(3), np.ones(2), [CROSS] * 2, None, "f0 must have shape"),
        (np.ones(3), None, [CROSS] * 3, None, "cross_kernels must hold one kernel for each of the 2 times, got 3"),
        (np.ones(3), None, [CROSS.T] * 2, None, r"cross_kernels\[0\] must have 3 columns, got shape \(3, 2\)"),
        (np.ones(3), None, [CROSS] * 2, np.ones(2), "it came to the prediction but not to fit"),
        (np.ones(3), np.ones(3), [CROSS] * 2, None, "it came to fit but not to the prediction"),
        (np.ones(3), np.ones(3), [CROSS] * 2, np.ones(4), "f0 must have shape"),
        (np.ones((1, 3)), None, [CROSS] * 2, None, "cross_kernels must have a multiple of 3 rows"),
    ],
)
def test_bad_targets_and_test_kernels_are_refused(y: Any, f0: Any, crosses: Any, f0_test: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PathRegression([0, 1], [K, K]).fit(y, f0).predict(crosses, f0_test)


def test_prediction_needs_fit() -> None:
    with pytest.raises(RuntimeError, match="needs fit first"):
        PathRegression([0, 1], [K, K]).predict([CROSS, CROSS])


@pytest.mark.parametrize(
    ("gradients", "f0", "message"),
    [
        (np.ones((3, 3)), None, "loss_gradients must hold one row for each of the 2 times"),
        (np.ones(2), None, "loss_gradients must have 2 or 3 dimension"),
        (np.ones((2, 4)), None, r"loss_gradients must be \(T, N\) or \(T, N, C\)"),
        (np.ones((2, 1, 3)), None, "kernels must have a multiple of 3 rows"),
        (np.full((2, 3), np.inf), None, "loss_gradients must be finite"),
        (np.ones((2, 3)), np.ones(3), "f0 must have shape"),
    ],
)
def test_bad_loss_gradients_are_refused(gradients: Any, f0: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        path_prediction([0, 1], [CROSS, CROSS], gradients, f0)


def test_weights_of_the_path_kernel_are_one_a_column() -> None:
    with pytest.raises(ValueError, match=r"kernels\[0\] must have 2 columns"):
        path_kernel([0, 1], [CROSS, CROSS], np.ones((2, 2)))
