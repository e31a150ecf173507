"""The training loop: what it computes, what callbacks see, how it ends, what it refuses."""

from __future__ import annotations

import io
import itertools
import math
import sys
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelgrowth import nets
from kernelgrowth._backend.errors import DivergedError
from kernelgrowth.training import Callback, TrainingState, optim, train
from kernelgrowth.training.batches import Batches

rng = np.random.default_rng(0)
X = rng.normal(size=(12, 4))
Y = X @ rng.normal(size=4)
NET = nets.MLP([4, 6, 1], "relu", sigma=0.8)
PARAMS = NET.init(seed=0)


class Recorder(Callback):
    def __init__(self) -> None:
        self.calls: list[str] = []
        self.steps: list[int] = []
        self.times: list[float] = []
        self.losses: list[float] = []
        self.params: list[dict[str, Any]] = []
        self.last: list[bool] = []
        self.status = ""

    def on_start(self, state: TrainingState) -> None:
        assert state.status == "running"
        self.calls.append("start")

    def on_step(self, state: TrainingState) -> None:
        assert state.status == "running"
        self.calls.append("step")
        self.steps.append(state.step)
        self.times.append(state.time)
        self.losses.append(state.loss)
        self.params.append(state.params)
        self.last.append(state.is_last)

    def on_end(self, state: TrainingState) -> None:
        self.calls.append("end")
        self.status = state.status


class FailsAt(Callback):
    def __init__(self, step: int, error: BaseException) -> None:
        self.step = step
        self.error = error

    def on_step(self, state: TrainingState) -> None:
        if state.step == self.step:
            raise self.error


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_gradient_descent_is_the_loop_one_would_write(steps: int) -> None:
    recorder = Recorder()
    run = train(NET, PARAMS, (X, Y), optimizer=optim.GD(0.05), steps=steps, callbacks=[recorder])
    params = PARAMS
    for step in range(steps + 1):
        for name in params:
            np.testing.assert_array_equal(recorder.params[step][name], params[name])
        f, pullback = NET.vjp(params, X)
        assert run.losses[step] == pytest.approx(0.5 * np.mean((f[:, 0] - Y) ** 2), rel=1e-13)
        grads = pullback((f - Y[:, None]) / len(X))
        if step < steps:
            params = {name: params[name] - 0.05 * grads[name] for name in params}
    assert recorder.calls == ["start", *["step"] * (steps + 1), "end"]
    assert recorder.steps == list(range(steps + 1))
    assert recorder.losses == list(run.losses)
    assert recorder.last == [False] * steps + [True]
    np.testing.assert_allclose(recorder.times, 0.05 * np.arange(steps + 1), rtol=1e-14)
    assert recorder.status == run.status == "completed"
    assert run.step == steps
    assert run.time == recorder.times[-1]
    assert run.losses.dtype == np.float64
    assert run.seconds >= 0
    for name in params:
        np.testing.assert_array_equal(run.params[name], params[name])


def test_the_state_says_what_is_trained() -> None:
    seen = []

    class Look(Callback):
        def on_start(self, state: TrainingState) -> None:
            seen.append(state)

    optimizer = optim.Adam(0.01)
    train(NET, PARAMS, (X, Y), optimizer=optimizer, steps=1, layer_lr={"layer2": 0.5}, callbacks=[Look()])
    state = seen[0]
    assert (state.net, state.optimizer, state.steps, state.resume) == (NET, optimizer, 1, False)
    assert state.layer_lr == {"layer1": 1.0, "layer2": 0.5}
    np.testing.assert_array_equal(state.y, Y[:, None])
    np.testing.assert_array_equal(state.x, X)
    assert state.loss_function(np.zeros((12, 1)), Y) == pytest.approx(0.5 * np.mean(Y**2))
    assert state.optimizer_state["updates"] == 1


def test_the_default_optimizer_is_gradient_descent() -> None:
    default = train(NET, PARAMS, (X, Y), steps=3)
    explicit = train(NET, PARAMS, (X, Y), steps=3, optimizer=optim.GD(lr=0.1))
    np.testing.assert_array_equal(default.losses, explicit.losses)


@pytest.mark.parametrize("optimizer", [optim.GD(0.05), optim.Momentum(0.02), optim.Adam(0.02)])
@pytest.mark.parametrize("loss", ["mse", "logistic", "cross_entropy"])
def test_every_loss_falls_under_every_optimizer(loss: str, optimizer: optim.Optimizer) -> None:
    labels = (Y > 0).astype(int)
    net = nets.MLP([4, 8, 2 if loss == "cross_entropy" else 1], "tanh", bias=True)
    run = train(net, net.init(), (X, Y if loss == "mse" else labels), loss=loss, optimizer=optimizer, steps=100)
    assert run.losses[-1] < 0.6 * run.losses[0]


def test_layer_rates_multiply_the_learning_rate_of_their_layer() -> None:
    base = train(NET, PARAMS, (X, Y), optimizer=optim.GD(0.1), steps=1)
    scaled = train(NET, PARAMS, (X, Y), optimizer=optim.GD(0.1), steps=1, layer_lr={"layer1": 0.0, "layer2": 2.0})
    np.testing.assert_array_equal(scaled.params["layer1.weight"], PARAMS["layer1.weight"])
    change = base.params["layer2.weight"] - PARAMS["layer2.weight"]
    np.testing.assert_allclose(scaled.params["layer2.weight"] - PARAMS["layer2.weight"], 2 * change, rtol=1e-12)
    assert scaled.time == base.time


def test_data_may_be_an_object_and_arrays_strided_or_read_only() -> None:
    @dataclass
    class Data:
        x: Any
        y: Any

    x = np.empty((24, 8))
    x[::2, ::2] = X
    strided = x[::2, ::2]
    strided.flags.writeable = False
    wanted = train(NET, PARAMS, (X, Y), steps=4)
    fortran = {name: np.asfortranarray(value) for name, value in PARAMS.items()}
    for data in (Data(X, Y), [X, Y], Data(strided, Y[:, None])):
        run = train(NET, fortran, data, steps=4)
        np.testing.assert_array_equal(run.losses, wanted.losses)


@given(num_examples=st.integers(1, 40), data=st.data(), seed=st.integers(0, 100))
@settings(deadline=None, max_examples=50)
def test_minibatches_visit_every_example_once_in_each_epoch(num_examples: int, data: Any, seed: int) -> None:
    batch_size = data.draw(st.integers(1, num_examples))
    x, y = np.arange(num_examples)[:, None], -np.arange(num_examples)[:, None]
    batches = Batches(x, y, batch_size, seed)
    per_epoch = -(-num_examples // batch_size)
    for epoch in range(3):
        seen = []
        for index in range(per_epoch):
            batch_x, batch_y = batches.at(epoch * per_epoch + index)
            assert len(batch_x) == batch_size or (index == per_epoch - 1 and 0 < len(batch_x) < batch_size)
            np.testing.assert_array_equal(batch_x, -batch_y)
            seen.extend(batch_x[:, 0])
        assert sorted(seen) == list(range(num_examples))
    again = Batches(x, y, batch_size, seed).at(2 * per_epoch)[0]
    np.testing.assert_array_equal(again, batches.at(2 * per_epoch)[0])


def test_the_order_of_the_examples_differs_between_epochs_and_seeds() -> None:
    x = np.arange(30)[:, None]
    orders = [tuple(Batches(x, x, 30, seed).at(epoch)[0][:, 0]) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9


def test_minibatch_training_uses_those_batches() -> None:
    run = train(NET, PARAMS, (X, Y), optimizer=optim.GD(0.05), steps=7, batch_size=5, seed=3)
    batches = Batches(X, Y[:, None], 5, 3)
    params = PARAMS
    for step in range(8):
        x, y = batches.at(step)
        f, pullback = NET.vjp(params, x)
        assert run.losses[step] == pytest.approx(0.5 * np.mean((f - y) ** 2), rel=1e-12)
        grads = pullback((f - y) / len(x))
        params = {name: params[name] - 0.05 * grads[name] for name in params}
    other = train(NET, PARAMS, (X, Y), optimizer=optim.GD(0.05), steps=7, batch_size=5, seed=4)
    assert not np.array_equal(run.losses, other.losses)


@pytest.mark.parametrize("parameterization", ["standard", "ntk", "mup"])
def test_float32_training_stays_float32_and_close(parameterization: str) -> None:
    net = nets.MLP([4, 16, 1], "tanh", parameterization, bias=True)
    run64 = train(net, net.init(), (X, Y), steps=30, optimizer=optim.GD(0.02))
    run32 = train(
        net,
        net.init(dtype=np.float32),
        (X.astype(np.float32), Y.astype(np.float32)),
        steps=30,
        optimizer=optim.GD(0.02),
    )
    assert {value.dtype for value in run32.params.values()} == {np.dtype(np.float32)}
    np.testing.assert_allclose(run32.losses, run64.losses, rtol=2e-5)


@given(seed=st.integers(0, 1000), depth=st.integers(2, 4), loss=st.sampled_from(["mse", "logistic"]))
@settings(deadline=None, max_examples=15)
def test_linear_nets_conserve_balance_to_first_order(seed: int, depth: int, loss: str) -> None:
    """W_l W_l^T - W_{l+1}^T W_{l+1} is constant under gradient flow, so its drift is O(lr) at a fixed time."""
    draws = np.random.default_rng(seed)
    net = nets.MLP([4, *[5] * (depth - 1), 1], "linear", sigma=0.7)
    x = draws.normal(size=(12, 4))
    y = np.where(draws.normal(size=12) > 0, 1.0, -1.0)
    params = net.init(seed)

    def balances(p: dict[str, Any]) -> list[np.ndarray]:
        weights = [p[f"layer{i + 1}.weight"] for i in range(depth)]
        return [a @ a.T - b.T @ b for a, b in itertools.pairwise(weights)]

    def drift(lr: float, steps: int) -> float:
        run = train(net, params, (x, y), loss=loss, optimizer=optim.GD(lr), steps=steps)
        moved = sum(np.linalg.norm(run.params[name] - params[name]) for name in params)
        assert moved > 0
        pairs = zip(balances(run.params), balances(params), strict=True)
        return float(sum(np.linalg.norm(a - b) for a, b in pairs))

    coarse, fine = drift(4e-3, 25), drift(1e-3, 100)
    assert fine < 0.05
    assert fine < 0.35 * coarse + 1e-12


def test_layer_rates_change_what_is_conserved() -> None:
    """With rates eta_l it is W_l W_l^T / eta_l - W_{l+1}^T W_{l+1} / eta_{l+1}."""
    net = nets.MLP([4, 5, 1], "linear", sigma=0.7)
    params = net.init(0)
    rates = {"layer1": 4.0, "layer2": 1.0}
    run = train(net, params, (X, Y), optimizer=optim.GD(1e-4), steps=500, layer_lr=rates)

    def balance(p: dict[str, Any]) -> np.ndarray:
        a, b = p["layer1.weight"], p["layer2.weight"]
        return a @ a.T / 4.0 - b.T @ b

    assert np.linalg.norm(balance(run.params) - balance(params)) < 1e-2 * np.linalg.norm(
        run.params["layer2.weight"].T @ run.params["layer2.weight"]
        - params["layer2.weight"].T @ params["layer2.weight"]
    )


def test_divergence_is_an_error_that_carries_the_run() -> None:
    recorder = Recorder()
    with pytest.raises(DivergedError, match=r"training loss is (inf|nan) at step \d+ \(learning rate 50\)") as caught:
        train(NET, PARAMS, (X, Y), optimizer=optim.GD(50.0), steps=400, callbacks=[recorder])
    run = caught.value.run
    assert run.status == recorder.status == "diverged"
    assert recorder.calls.count("end") == 1
    assert len(run.losses) == run.step + 1
    assert np.isfinite(run.losses[:-1]).all()
    assert not math.isfinite(run.losses[-1])
    assert recorder.steps == list(range(run.step))
    np.testing.assert_array_equal(recorder.losses, run.losses[:-1])


@pytest.mark.parametrize("error", [ValueError("disk on fire"), KeyboardInterrupt(), DivergedError("another run's")])
def test_a_failing_callback_ends_the_run_and_is_raised(error: BaseException) -> None:
    before, after = Recorder(), Recorder()
    with pytest.raises(type(error)) as caught:
        train(NET, PARAMS, (X, Y), steps=9, callbacks=[before, FailsAt(4, error), after])
    assert caught.value is error
    assert before.status == after.status == ("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
    assert before.steps == [0, 1, 2, 3, 4]
    assert after.steps == [0, 1, 2, 3]
    assert before.calls.count("end") == after.calls.count("end") == 1


def test_a_callback_whose_start_failed_is_not_ended() -> None:
    class BadStart(Recorder):
        def on_start(self, state: TrainingState) -> None:
            raise OSError("no folder")

    first, bad, last = Recorder(), BadStart(), Recorder()
    with pytest.raises(OSError, match="no folder"):
        train(NET, PARAMS, (X, Y), steps=2, callbacks=[first, bad, last])
    assert first.calls == ["start", "end"]
    assert first.status == "failed"
    assert bad.calls == last.calls == []


def test_failures_at_the_end_are_raised_but_hide_no_other() -> None:
    class BadEnd(Recorder):
        def on_end(self, state: TrainingState) -> None:
            super().on_end(state)
            raise OSError("disk full")

    bad, good = BadEnd(), Recorder()
    with pytest.raises(OSError, match="disk full"):
        train(NET, PARAMS, (X, Y), steps=2, callbacks=[bad, good])
    assert good.status == bad.status == "completed"
    with pytest.raises(ValueError, match="first") as caught:
        train(NET, PARAMS, (X, Y), steps=2, callbacks=[FailsAt(1, ValueError("first")), BadEnd(), good])
    assert good.status == "failed"
    assert "on_end of BadEnd failed as well" in caught.value.__notes__[0]


def test_training_works_outside_the_main_thread() -> None:
    runs: list[Any] = []
    thread = threading.Thread(target=lambda: runs.append(train(NET, PARAMS, (X, Y), steps=3)))
    thread.start()
    thread.join()
    np.testing.assert_array_equal(runs[0].losses, train(NET, PARAMS, (X, Y), steps=3).losses)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_rewrites_one_line_of_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    run = train(NET, PARAMS, (X, Y), steps=3, progress=True)
    lines = terminal.getvalue().split("\r")
    assert terminal.getvalue().count("\n") == 1
    assert lines[1].startswith("step 0/3  loss")
    assert f"step 3/3  loss {run.losses[-1]:.4g}" in lines[-1]
    assert lines[-1].endswith("completed\n")


@pytest.mark.parametrize("progress", [True, False])
def test_progress_is_silent_where_there_is_no_terminal(progress: bool, capsys: pytest.CaptureFixture[str]) -> None:
    train(NET, PARAMS, (X, Y), steps=3, progress=progress)
    assert capsys.readouterr() == ("", "")


def test_progress_may_be_a_function_of_the_state() -> None:
    seen: list[int] = []
    train(NET, PARAMS, (X, Y), steps=3, progress=lambda state: seen.append(state.step))
    assert seen == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"net": "mlp"}, TypeError, "net must be a network"),
        ({"params": [1]}, TypeError, "params must be a dict"),
        (
            {"params": {**PARAMS, "layer1.weight": np.full((6, 4), np.nan)}},
            ValueError,
            r"params\['layer1.weight'\] must be finite",
        ),
        ({"params": {"layer1.weight": PARAMS["layer1.weight"]}}, ValueError, r"'layer2.weight' is missing"),
        ({"params": {}}, ValueError, r"'layer1.weight' is missing"),
        ({"params": NET.init(dtype=np.float32)}, TypeError, "x is float64 but params"),
        ({"data": X}, TypeError, r"data must be \(x, y\)"),
        ({"data": (X, Y, Y)}, TypeError, r"data must be \(x, y\)"),
        ({"data": (X, Y[:-1])}, ValueError, "y must hold one target for each of the 12 examples in x, got 11"),
        ({"data": (X[:0], Y[:0])}, ValueError, r"x must hold at least one example, got shape \(0, 4\)"),
        ({"data": (X[:, :3], Y)}, ValueError, r"x must have shape \(N, 4\)"),
        ({"data": (np.where(X > 2, np.nan, X) * np.inf, Y)}, ValueError, "x must be finite"),
        ({"data": (X, np.where(Y > 0, np.inf, Y))}, ValueError, "y must be finite"),
        ({"data": (X, np.stack([Y, Y], axis=1))}, ValueError, r"y must have shape \(N,\) or \(N, 1\)"),
        ({"data": (X.astype(np.float32), Y)}, TypeError, "x is float32 but params"),
        ({"data": (X, Y.astype(np.float32))}, TypeError, "y must be float64 like the other arrays, got float32"),
        ({"data": (X.astype(np.float16), Y)}, TypeError, "x must be float32 or float64, got dtype float16"),
        ({"loss": "hinge"}, ValueError, "loss must be one of"),
        ({"loss": "logistic"}, ValueError, "y must hold the labels"),
        ({"loss": "cross_entropy"}, ValueError, "at least two outputs"),
        ({"optimizer": "adam"}, TypeError, "optimizer must be GD, Momentum, Adam or RMSprop"),
        ({"steps": -1}, ValueError, "steps must be at least 0, got -1"),
        ({"steps": 1.5}, TypeError, "steps must be an integer"),
        (
            {"layer_lr": {"layer3": 1.0}},
            ValueError,
            r"layer_lr must name layers of the net \(layer1, layer2\), got 'layer3'",
        ),
        ({"layer_lr": {"layer1": -1.0}}, ValueError, r"layer_lr\['layer1'\] must be at least 0"),
        ({"layer_lr": [1.0, 1.0]}, TypeError, "layer_lr must map"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"batch_size": 13}, ValueError, "batch_size must be at most 12"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"callbacks": 3}, TypeError, "callbacks must be an iterable"),
        ({"callbacks": [print]}, TypeError, "callbacks must have the methods of Callback, got builtin_function"),
        ({"checkpoint_every": 0}, ValueError, "checkpoint_every must be at least 1"),
        ({"resume": True}, ValueError, "resume=True needs the checkpoint"),
        ({"resume": 1}, TypeError, "resume must be True or False"),
        ({"progress": "yes"}, TypeError, "progress must be True, False or a function"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    recorder = Recorder()
    call = {"net": NET, "params": PARAMS, "data": (X, Y), "steps": 2, "callbacks": [recorder], **arguments}
    with pytest.raises(error, match=message):
        train(call.pop("net"), call.pop("params"), call.pop("data"), **call)
    assert recorder.calls == []
