"""`NTKTracker`: what it measures, when, what it refuses, and what a history gives back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelgrowth import nets
from kernelgrowth._backend.errors import DivergedError, RunFolderError
from kernelgrowth.diagnostics import (
    KernelRegression,
    effective_rank,
    kernel_alignment,
    kernel_target_alignment,
    subspace_overlap,
)
from kernelgrowth.gradients import GradientFeatures, OuterProduct, from_net
from kernelgrowth.kernels import NTKOperator
from kernelgrowth.tracking import History, NTKTracker, load_run
from kernelgrowth.tracking.layers import LayerKernels
from kernelgrowth.tracking.metrics import METRICS, measure
from kernelgrowth.tracking.packing import pack_triangle, unpack_triangle
from kernelgrowth.tracking.place import LocalPlace
from kernelgrowth.tracking.spectrum import effective_rank_bound
from kernelgrowth.training import optim, train

RNG = np.random.default_rng(3)
X = RNG.standard_normal((14, 5))
Y = np.sign(X @ RNG.standard_normal(5))
X_TEST = RNG.standard_normal((4, 5))
NET = nets.MLP(widths=[5, 8, 1], activation="tanh", bias=True, sigma=0.7)
PARAMS = NET.init(seed=1)
FIRST_SERIES = ["step", "time", "loss", "train_loss"]


def run(
    tracker: NTKTracker, *, steps: int = 12, net: Any = NET, params: Any = PARAMS, y: Any = Y, **kwargs: Any
) -> History:
    train(net, params, (X, y), steps=steps, optimizer=optim.GD(lr=0.3), callbacks=[tracker], **kwargs)
    return tracker.history


def same_series(a: History, b: History) -> None:
    assert list(a) == list(b)
    for name in a:
        if name != "seconds":
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


# --- slow, obvious definitions ---


def jacobian(net: Any, params: dict[str, Any], x: Any) -> dict[str, Any]:
    """One gradient row per (example, output), by layer, from one backward sweep each."""
    rows: dict[str, list[Any]] = {name: [] for name in net.layer_names}
    outputs = net.forward(params, x).shape[1]
    for n in range(len(x)):
        for c in range(outputs):
            _, pullback = net.vjp(params, x[n : n + 1])
            gradient = pullback(np.eye(outputs, dtype=x.dtype)[c : c + 1])
            for name in net.layer_names:
                parts = [np.ravel(gradient[key]) for key in gradient if key.startswith(name + ".")]
                rows[name].append(np.concatenate(parts))
    return {name: np.array(value) for name, value in rows.items()}


def slow_kernels(net: Any, params: Any, x: Any, outputs: str, x2: Any = None) -> dict[str, Any]:
    left, right = jacobian(net, params, x), jacobian(net, params, x if x2 is None else x2)
    kernels = {}
    for name in left:
        full = left[name] @ right[name].T
        count = len(full) // len(x)
        blocks = full.reshape(len(x), count, -1, count)
        kernels[name] = {
            "full": full,
            "trace": np.einsum("icjc->ij", blocks),
            "mean_trace": np.einsum("icjc->ij", blocks) / count,
            "sum_logits": blocks.sum(axis=(1, 3)),
        }[outputs]
    return kernels


def cosine(a: Any, b: Any) -> float:
    return float(np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b))


def slow_alignment(kernel: Any, targets: Any, outputs: str, *, centered: bool = False) -> float:
    if centered:
        h = np.eye(len(kernel)) - 1.0 / len(kernel)
        kernel, targets = h @ kernel @ h, targets - targets.mean(axis=0)
    columns = targets.reshape(-1, 1) if outputs == "full" else targets
    forms = sum(columns[:, c] @ kernel @ columns[:, c] for c in range(columns.shape[1]))
    return float(forms / np.sum(columns**2) / np.linalg.norm(kernel))


class Snapshots:
    """A callback that keeps what the tracker saw."""

    def __init__(self) -> None:
        self.params: dict[int, Any] = {}

    def on_start(self, state: Any) -> None: ...

    def on_step(self, state: Any) -> None:
        self.params[state.step] = state.params

    def on_end(self, state: Any) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None: ...


@pytest.mark.parametrize(
    ("outputs", "classes"), [("full", 1), ("full", 3), ("trace", 3), ("mean_trace", 3), ("sum_logits", 3)]
)
def test_every_series_follows_its_definition(outputs: str, classes: int) -> None:
    net = nets.MLP(widths=[5, 6, classes], activation="relu", bias=True)
    params = net.init(seed=4)
    labels = np.arange(len(X)) % 3
    y, matrix, loss = (Y, Y[:, None], "mse") if classes == 1 else (labels, np.eye(3)[labels], "cross_entropy")
    snapshots, tracker = Snapshots(), NTKTracker(X, y, every=4, top_k=5, x_test=X_TEST, outputs=outputs)
    run = train(net, params, (X, y), loss=loss, steps=9, optimizer=optim.GD(lr=0.2), callbacks=[snapshots, tracker])
    history = tracker.history
    assert history.steps.tolist() == [0, 4, 8, 9]
    layers = [f"layers/{name}/{what}" for name in ("layer1", "layer2") for what in ("norm", "alignment")]
    names = [name for name in METRICS if name != "layers"]
    assert sorted(history) == sorted([*FIRST_SERIES, *names, *layers, "seconds", "distance_to_final"])

    kernels, tops = {}, {}
    for i, step in enumerate(history.steps):
        by_layer = slow_kernels(net, snapshots.params[step], X, outputs)
        kernel = sum(by_layer.values())
        values, vectors = np.linalg.eigh(kernel)
        kernels[step], tops[step] = kernel, vectors[:, ::-1][:, :5]
        column = matrix.reshape(-1, 1) if outputs == "full" else matrix
        expected = {
            "time": 0.2 * step,
            "train_loss": run.losses[step],
            "loss": run.losses[step],
            "kernel_norm": np.linalg.norm(kernel),
            "trace": np.trace(kernel),
            "alignment": slow_alignment(kernel, matrix, outputs),
            "alignment_centered": slow_alignment(kernel, matrix, outputs, centered=True),
            "eigenvalues": values[::-1][:5],
            "eigenvector_alignment": np.sum((tops[step].T @ column) ** 2, axis=1) / np.sum(column**2),
            "rotation": 1 - cosine(kernel, kernels[0]),
        }
        for name, layer in by_layer.items():
            expected[f"layers/{name}/norm"] = np.linalg.norm(layer)
            expected[f"layers/{name}/alignment"] = slow_alignment(layer, matrix, outputs)
        if i:
            before = history.steps[i - 1]
            expected["velocity"] = 1 - cosine(kernel, kernels[before])
            expected["subspace_overlap"] = np.sum((tops[step].T @ tops[before]) ** 2) / 5
        for name, value in expected.items():
            np.testing.assert_allclose(history[name][i], value, rtol=1e-9, atol=1e-11, err_msg=name)
        np.testing.assert_allclose(history.kernel(step), kernel, rtol=1e-10, atol=1e-12)
        assert np.array_equal(history.kernel(step), history.kernel(step).T)
    assert math.isnan(history["velocity"][0])
    assert math.isnan(history["subspace_overlap"][0])
    assert history["rotation"][0] == 0.0
    distance = [1 - cosine(kernels[step], kernels[9]) for step in history.steps]
    np.testing.assert_allclose(history["distance_to_final"], distance, atol=1e-13)
    assert history["distance_to_final"][-1] == 0.0
    assert (history["seconds"] > 0).all()
    for step in (0, 9):
        cross = sum(slow_kernels(net, snapshots.params[step], X_TEST, outputs, X).values())
        np.testing.assert_allclose(history.test_kernel(step), cross, rtol=1e-10, atol=1e-12)
        for got, x in ((history.predictions(step), X), (history.test_predictions(step), X_TEST)):
            np.testing.assert_allclose(got, net.forward(snapshots.params[step], x), rtol=1e-12)
    np.testing.assert_array_equal(history.targets.reshape(-1), matrix.reshape(-1))


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 9),
    st.integers(1, 3),
    st.sampled_from(["full", "trace", "mean_trace", "sum_logits"]),
    st.sampled_from([np.float32, np.float64]),
    st.integers(0, 2**32 - 1),
)
def test_measured_values_agree_with_the_diagnostics(n: int, c: int, outputs: str, dtype: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    blocks = {
        name: OuterProduct(
            rng.standard_normal((n, 4)).astype(dtype),
            rng.standard_normal((n, c, 3)).astype(dtype),
            bias=bias,
            scale=scale,
        )
        for name, bias, scale in (("a", True, 1.0), ("b", False, 1e-3))
    }
    y = rng.standard_normal((n, c))
    measured = measure(GradientFeatures(blocks), y, names=METRICS, top_k=50, outputs=outputs, previous=None, first=None)
    kernel = unpack_triangle(measured.reference.kernel)
    values = measured.values
    tolerance = 1e-5 if dtype == np.float32 else 1e-9
    assert kernel.dtype == dtype
    assert len(values["eigenvalues"]) == len(kernel)
    assert values["alignment"] == pytest.approx(kernel_target_alignment(kernel, y), abs=1e-12)
    assert values["alignment_centered"] == pytest.approx(
        kernel_target_alignment(kernel, y, centered=True), abs=tolerance, nan_ok=True
    )
    assert sum(values["eigenvalues"]) == pytest.approx(values["trace"], rel=tolerance)
    assert values["effective_rank"] == pytest.approx(effective_rank(np.array(values["eigenvalues"])), rel=1e-3)


# --- what is remembered from step to step ---


@pytest.mark.parametrize("outputs", ["full", "trace", "mean_trace", "sum_logits"])
@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("parameterization", ["standard", "ntk", "mup"])
def test_layers_sum_to_the_kernel_at_every_step(outputs: str, classes: int, parameterization: str) -> None:
    for bias in (False, True):
        net = nets.MLP(widths=[5, 6, classes], activation="tanh", bias=bias, parameterization=parameterization)
        layers = LayerKernels(X, outputs)
        for seed in range(2):
            features = from_net(net, net.init(seed=seed), X)
            got = dict(layers.of(features))
            operators = NTKOperator(features, outputs=outputs).per_layer()
            assert list(got) == list(operators)
            for name, kernel in got.items():
                np.testing.assert_allclose(kernel, operators[name].gram(), rtol=1e-12, atol=1e-14, err_msg=name)
                assert np.array_equal(kernel, kernel.T)


def test_inner_products_of_the_inputs_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nets.MLP(widths=[5, 6, 1])
    layers = LayerKernels(X, "full")
    made: list[int] = []

    class Counted(NTKOperator):
        def gram(self) -> Any:
            made.append(self.shape[0])
            return super().gram()

    monkeypatch.setattr("kernelgrowth.tracking.layers.NTKOperator", Counted)
    counts = []
    for x in (X, X, X.copy()):
        list(layers.of(from_net(net, net.init(seed=0), x)))
        counts.append(len(made))
    assert counts == [3, 5, 7]


def test_a_resumed_run_goes_on_with_the_eigensolver_where_it_was(tmp_path: Path) -> None:
    # Large enough that it iterates.
    x = np.random.default_rng(0).standard_normal((300, 5))
    y = np.sign(x[:, 0] * x[:, 1])

    def go(tracker: NTKTracker, **kwargs: Any) -> History:
        train(NET, PARAMS, (x, y), steps=30, optimizer=optim.GD(lr=0.3), callbacks=[tracker], **kwargs)
        return tracker.history

    def stop(state: Any) -> None:
        if state.step == 17:
            raise RuntimeError("stopped")

    expected = go(NTKTracker(x, y, every=5, top_k=6))
    for i, step in enumerate(expected.steps):
        values = np.linalg.eigvalsh(expected.kernel(step))[:-7:-1]
        np.testing.assert_allclose(expected["eigenvalues"][i], values, rtol=0, atol=1e-4 * values[0])
    for out in (None, tmp_path / "run"):
        options: dict[str, Any] = {"checkpoint": tmp_path / f"{out is None}.npz", "checkpoint_every": 11}
        with pytest.raises(RuntimeError, match="stopped"):
            go(NTKTracker(x, y, every=5, top_k=6, out=out), progress=stop, **options)
        same_series(go(NTKTracker(x, y, every=5, top_k=6, out=out), resume=True, **options), expected)


def test_a_network_that_is_not_finite_is_recorded_as_such() -> None:
    params = {
        name: np.where(np.arange(value.size).reshape(value.shape) == 0, np.inf, value) for name, value in PARAMS.items()
    }
    tracker = NTKTracker(X, Y)
    tracker.update(NET, params, step=0, loss=math.nan)
    assert math.isnan(tracker.history["alignment"][0])
    assert np.isnan(tracker.history["eigenvalues"]).all()


def test_a_run_resumed_in_memory_still_knows_its_targets(tmp_path: Path) -> None:
    def stop(state: Any) -> None:
        if state.step == 7:
            raise RuntimeError("stopped")

    options: dict[str, Any] = {"checkpoint": tmp_path / "c.npz", "checkpoint_every": 3}
    with pytest.raises(RuntimeError, match="stopped"):
        run(NTKTracker(X, Y, every=2), progress=stop, **options)
    history = run(NTKTracker(X, Y, every=2), resume=True, **options)
    np.testing.assert_array_equal(history.targets, Y)


# --- effective rank from the top of a spectrum ---


@settings(deadline=None)
@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=30), st.data())
def test_the_effective_rank_of_a_top_is_a_lower_bound(spectrum: list[float], data: st.DataObject) -> None:
    values = np.sort(spectrum)[::-1]
    k = data.draw(st.integers(1, len(values)))
    bound = effective_rank_bound(values[:k], len(values), float(values.sum()), float(np.linalg.norm(values)))
    exact = effective_rank(values)
    assert 1.0 - 1e-12 <= bound <= exact * (1 + 1e-4)
    if k == len(values):
        assert bound == pytest.approx(exact, rel=1e-12)


@given(st.integers(1, 5), st.integers(1, 40), st.integers(0, 20), st.floats(0.01, 1.0))
def test_it_is_exact_for_a_flat_rest(k: int, flat: int, zeros: int, level: float) -> None:
    values = np.concatenate([np.linspace(3.0, 1.0, k), np.full(flat, level), np.zeros(zeros)])
    bound = effective_rank_bound(values[:k], len(values), float(values.sum()), float(np.linalg.norm(values)))
    assert bound == pytest.approx(effective_rank(values), rel=1e-6)


@pytest.mark.parametrize(("trace", "norm"), [(0.0, 0.0), (math.nan, 1.0), (-1.0, 1.0), (math.inf, math.inf)])
def test_it_is_undefined_without_a_positive_trace(trace: float, norm: float) -> None:
    assert math.isnan(effective_rank_bound(np.zeros(2), 4, trace, norm))


# --- when steps are tracked ---


@pytest.mark.parametrize(
    ("every", "steps", "tracked"),
    [
        (1, 3, [0, 1, 2, 3]),
        (5, 12, [0, 5, 10, 12]),
        (100, 3, [0, 3]),
        ([1, 2, 7, 400], 9, [0, 1, 2, 7, 9]),
        ([], 4, [0, 4]),
        (np.array([0, 3]), 3, [0, 3]),
        (5, 0, [0]),
    ],
)
def test_the_first_and_the_last_step_are_always_tracked(every: Any, steps: int, tracked: list[int]) -> None:
    history = run(NTKTracker(X, Y, every=every, metrics=[]), steps=steps)
    assert history.steps.tolist() == tracked
    assert history.kernel_steps == tracked
    assert history.status == "completed"


def test_metrics_restrict_what_is_recorded_and_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = run(NTKTracker(X, Y, every=6))
    for name in METRICS:
        history = run(NTKTracker(X, Y, every=6, metrics=[name]))
        names = set(history) - {*FIRST_SERIES, "seconds", "distance_to_final"}
        assert names == ({n for n in everything if n.startswith("layers/")} if name == "layers" else {name})
        for recorded in names:
            np.testing.assert_allclose(history[recorded], everything[recorded], rtol=1e-9, atol=1e-12)

    def forbidden(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("not asked for")

    monkeypatch.setattr("kernelgrowth.tracking.spectrum.EigenTracker", forbidden)
    history = run(NTKTracker(X, Y, every=6, metrics=["alignment", "kernel_norm"]))
    assert history.silent_alignment().growth == everything.silent_alignment().growth


class Clock:
    """A performance counter that advances by one at every look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


@pytest.mark.parametrize(("limit", "tracked"), [(1e-9, [0, 30]), (1e9, list(range(31)))])
def test_overhead_is_bounded_but_the_ends_are_kept(
    monkeypatch: pytest.MonkeyPatch, limit: float, tracked: list[int]
) -> None:
    monkeypatch.setattr("kernelgrowth.tracking.tracker.time.perf_counter", Clock())
    history = run(NTKTracker(X, Y, every=1, metrics=[], max_overhead=limit), steps=30)
    assert history.steps.tolist() == tracked


def test_overhead_in_between_spreads_the_tracked_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    # By this clock a step of training takes two units and a tracked step two or three.
    monkeypatch.setattr("kernelgrowth.tracking.tracker.time.perf_counter", Clock())
    history = run(NTKTracker(X, Y, every=1, metrics=[], max_overhead=0.3), steps=60)
    assert 5 < len(history.steps) < 25
    assert np.diff(history.steps).max() <= 8


# --- where it is recorded ---


def test_a_run_in_memory_equals_one_on_disk(tmp_path: Path) -> None:
    options: dict[str, Any] = {"every": 3, "top_k": 4, "x_test": X_TEST, "kernel_budget": 4 * 8 * 14 * 15 // 2}
    tracker = NTKTracker(X, Y, out=tmp_path / "run", **options)
    memory, live = run(NTKTracker(X, Y, **options), steps=20), run(tracker, steps=20)
    disk = load_run(tmp_path / "run")
    for other in (live, disk):
        same_series(memory, other)
        assert other.kernel_steps == memory.kernel_steps == [0, 12, 20]
        assert other.config == memory.config
        assert other.status == "completed"
        for step in memory.kernel_steps:
            np.testing.assert_array_equal(memory.kernel(step), other.kernel(step))
        for step in (0, 20):
            for read in (History.predictions, History.test_predictions, History.test_kernel):
                np.testing.assert_array_equal(read(memory, step), read(other, step))
        np.testing.assert_array_equal(memory.y_probe, other.y_probe)
    assert np.isnan(disk["distance_to_final"]).sum() == len(disk.steps) - 3
    assert disk.info["num_test"] == 4
    assert (disk.info["kernel_size"], disk.info["num_outputs"], disk.info["dtype"]) == (14, 1, "float64")
    assert disk.config["every"] == 3
    assert disk.config["network"] == NET.config()
    assert disk.config["optimizer"] == optim.GD(lr=0.3).config()


def test_a_run_can_be_read_while_it_is_written(tmp_path: Path) -> None:
    seen: list[int] = []

    def look(state: Any) -> None:
        tracker.state_dict()  # waits for what is still being written
        history = load_run(tmp_path)
        assert history.status == "running"
        assert history.kernel_steps[-1] == history.steps[-1] == state.step
        assert math.isfinite(history["distance_to_final"][0])
        seen.append(len(history.steps))

    tracker = NTKTracker(X, Y, every=1, metrics=["alignment"], out=tmp_path, kernel_budget=0)
    run(tracker, steps=5, progress=look)
    assert seen == [1, 2, 3, 4, 5, 6]
    assert load_run(tmp_path).kernel_steps == [0, 5]


def test_the_kernel_machine_of_a_loaded_run_predicts_held_out_points(tmp_path: Path) -> None:
    # A wide network near its initialisation is the kernel machine of either kernel.
    net = nets.MLP(widths=[5, 2000, 1], activation="tanh", parameterization="ntk")
    tracker = NTKTracker(X, Y, every=500, x_test=X_TEST, out=tmp_path, metrics=["alignment"])
    train(net, net.init(seed=0), (X, Y), steps=3000, optimizer=optim.GD(lr=2.0), callbacks=[tracker])
    history = load_run(tmp_path)
    last = int(history.steps[-1])
    for step in (0, last):
        machine = KernelRegression(history.kernel(step)).fit(history.targets, f0=history.predictions(0)[:, 0])
        predicted = machine.predict_at(
            history.test_kernel(step), train_loss=float(history["loss"][-1]), f0=history.test_predictions(0)[:, 0]
        )
        error = predicted - history.test_predictions(last)[:, 0]
        moved = history.test_predictions(last)[:, 0] - history.test_predictions(0)[:, 0]
        assert np.linalg.norm(error) < 0.1 * np.linalg.norm(moved)


def test_float32_stays_float32(tmp_path: Path) -> None:
    x, y = X.astype(np.float32), Y.astype(np.float32)
    net = nets.MLP(widths=[5, 8, 1], activation="relu", sigma=1e-4)
    tracker = NTKTracker(x, y, every=4, out=tmp_path)
    train(net, net.init(seed=0, dtype=np.float32), (x, y), steps=8, callbacks=[tracker])
    history = load_run(tmp_path)
    assert history.kernel(0).dtype == np.float32
    assert history["alignment"].dtype == np.float64
    assert np.isfinite(history["alignment_centered"]).all()


# --- degenerate values ---


def test_a_zero_network_gives_nan_and_no_error(tmp_path: Path) -> None:
    net = nets.MLP(widths=[5, 8, 1], activation="relu")
    zero = {name: np.zeros_like(value) for name, value in net.init(seed=0).items()}
    history = run(NTKTracker(X, Y, every=2, out=tmp_path), steps=4, net=net, params=zero)
    for loaded in (history, load_run(tmp_path)):
        assert (loaded["kernel_norm"] == 0).all()
        assert (loaded["eigenvalues"] == 0).all()
        for name in set(METRICS) - {"kernel_norm", "trace", "eigenvalues", "layers"} | {"distance_to_final"}:
            assert np.isnan(loaded[name]).all(), name
        assert (loaded["loss"] == 0.5).all()


def test_constant_and_zero_targets_leave_only_what_they_define_undefined() -> None:
    constant = run(NTKTracker(X, np.ones(14), every=6), y=np.ones(14))
    assert np.isfinite(constant["alignment"]).all()
    assert np.isnan(constant["alignment_centered"]).all()
    zero = run(NTKTracker(X, np.zeros(14), every=6))
    for name in ("alignment", "alignment_centered", "eigenvector_alignment"):
        assert np.isnan(zero[name]).all()
    assert np.isfinite(zero["effective_rank"]).all()


def test_one_example_is_enough() -> None:
    history = run(NTKTracker(X[:1], Y[:1], every=6))
    np.testing.assert_allclose(history["alignment"], 1.0)
    np.testing.assert_allclose(history["effective_rank"], 1.0)
    assert history["eigenvalues"].shape == (3, 1)
    assert np.isnan(history["alignment_centered"]).all()


@pytest.mark.parametrize("scale", [1e-80, 1e-200, 1e150])
def test_values_without_a_scale_do_not_feel_it(scale: float) -> None:
    a, d, y = RNG.standard_normal((6, 3)), RNG.standard_normal((6, 1, 2)), RNG.standard_normal((6, 1))
    options: dict[str, Any] = {"names": METRICS, "top_k": 3, "outputs": "full", "previous": None, "first": None}
    plain = measure(GradientFeatures({"a": OuterProduct(a, d)}), y, **options).values
    scaled = measure(GradientFeatures({"a": OuterProduct(a, d, scale=scale)}), y, **options).values
    for name in ("alignment", "alignment_centered", "eigenvector_alignment", "effective_rank", "layers/a/alignment"):
        np.testing.assert_allclose(scaled[name], plain[name], rtol=1e-9, err_msg=name)
    for name in ("kernel_norm", "trace", "eigenvalues", "layers/a/norm"):
        np.testing.assert_allclose(np.divide(scaled[name], scale), plain[name], rtol=1e-9, err_msg=name)
    assert scaled["rotation"] == 0.0


def test_a_kernel_that_overflows_gives_nan() -> None:
    a, d = np.full((3, 2), 1e30, dtype=np.float32), np.ones((3, 1, 2), dtype=np.float32)
    y = np.array([[1.0], [2.0], [4.0]])
    options: dict[str, Any] = {"names": METRICS, "top_k": 2, "outputs": "full", "previous": None, "first": None}
    values = measure(GradientFeatures({"a": OuterProduct(a, d)}), y, **options).values
    assert not math.isfinite(values["kernel_norm"])
    for name in ("alignment", "alignment_centered", "effective_rank", "rotation"):
        assert math.isnan(values[name]), name
    assert np.isnan(values["eigenvalues"]).all()


def test_divergence_keeps_the_last_finite_step(tmp_path: Path) -> None:
    tracker = NTKTracker(X, Y, every=1, out=tmp_path, x_test=X_TEST, metrics=["alignment"])
    net = nets.MLP(widths=[5, 8, 8, 1], activation="linear")
    with pytest.raises(DivergedError):
        train(net, net.init(seed=0), (X, Y), steps=500, optimizer=optim.GD(lr=50.0), callbacks=[tracker])
    history = load_run(tmp_path)
    assert history.status == "diverged"
    last = int(history.steps[-1])
    assert history.test_kernel(last).shape == (4, 14)
    assert history.predictions(last).shape == (14, 1)


# --- a loop of one's own ---


def test_update_follows_a_loop_without_a_trainer(tmp_path: Path) -> None:
    snapshots, tracker = Snapshots(), NTKTracker(X, Y, every=4, x_test=X_TEST)
    reference = run(tracker, steps=10)
    train(NET, PARAMS, (X, Y), steps=10, optimizer=optim.GD(lr=0.3), callbacks=[snapshots])

    def half_square(f: Any, y: Any) -> float:
        return float(0.5 * np.mean((f[:, 0] - y) ** 2))

    direct = NTKTracker(X, Y, every=4, x_test=X_TEST, out=tmp_path)
    tracked = [
        direct.update(NET, params, step=step, time=0.3 * step, loss=half_square, last=step == 10)
        for step, params in snapshots.params.items()
    ]
    direct.close()
    assert np.flatnonzero(tracked).tolist() == [0, 4, 8, 10]
    history = load_run(tmp_path)
    assert history.status == "completed"
    for name in set(reference) - {"seconds", "train_loss", "time", "loss"}:
        np.testing.assert_array_equal(history[name], reference[name], err_msg=name)
    np.testing.assert_allclose(history["loss"], reference["loss"])
    assert np.isnan(history["train_loss"]).all()
    np.testing.assert_array_equal(history.test_kernel(10), reference.test_kernel(10))
    with pytest.raises(ValueError, match="step must be larger than 10"):
        direct.update(NET, PARAMS, step=10)
    with pytest.raises(ValueError, match="step must be at least 0"):
        direct.update(NET, PARAMS, step=-1)


def test_update_continues_from_a_state_dict(tmp_path: Path) -> None:
    snapshots = Snapshots()
    train(NET, PARAMS, (X, Y), steps=8, optimizer=optim.GD(lr=0.3), callbacks=[snapshots])
    whole = NTKTracker(X, Y, every=2)
    for step, params in snapshots.params.items():
        whole.update(NET, params, step=step)
    first, second = (NTKTracker(X, Y, every=2, out=tmp_path) for _ in range(2))
    for step in range(6):
        first.update(NET, snapshots.params[step], step=step)
    second.load_state_dict(first.state_dict())
    for step in range(6, 9):
        second.update(NET, snapshots.params[step], step=step, loss=1.5)
    np.testing.assert_array_equal(second.history["velocity"], whole.history["velocity"])
    np.testing.assert_array_equal(second.history["rotation"], whole.history["rotation"])
    assert second.history["loss"].tolist()[3:] == [1.5, 1.5]
    with pytest.raises(ValueError, match="status must be one of 'completed'"):
        second.close("done")
    with pytest.raises(RuntimeError, match="follows no run yet"):
        NTKTracker(X, Y).close()


# --- the history as a mapping ---


def test_a_history_is_a_mapping_of_arrays() -> None:
    history = run(NTKTracker(X, Y, every=4, top_k=3))
    assert set(history.to_dict()) == set(history)
    assert len(history) == len(list(history))
    assert "alignment" in history
    assert "nonsense" not in history
    assert history["step"].dtype == np.int64
    assert history["eigenvalues"].shape == (4, 3)
    assert history != run(NTKTracker(X, Y, every=4, top_k=3))
    assert len({history}) == 1
    assert "4 tracked steps, steps 0 to 12, status 'completed'" in repr(history)
    with pytest.raises(KeyError, match="not recorded; there are step, time"):
        history["nonsense"]
    with pytest.raises(KeyError, match="no kernel is stored for step 1"):
        history.kernel(1)
    with pytest.raises(KeyError, match="tracked without x_test"):
        history.test_kernel(0)
    with pytest.raises(KeyError, match="for the first and, once the run has ended"):
        history.predictions(4)
    distance = history["distance_to_final"]
    distance[:] = 7
    assert history["distance_to_final"][-1] == 0
    history.predictions(0)[:] = 7
    assert not (history.predictions(0) == 7).any()


def test_a_history_feeds_the_verdict() -> None:
    verdict = run(NTKTracker(X, Y, every=1), steps=60).silent_alignment()
    assert verdict.verdict in {"silent", "concurrent", "lazy", "undetermined"}
    assert verdict.rotation > 0


def test_the_history_before_a_run_is_empty() -> None:
    tracker = NTKTracker(X, Y)
    assert len(tracker.history) == 0
    assert tracker.history.config["every"] == 10
    assert tracker.state_dict() == {}


def test_series_say_what_diagnostics_say_of_the_stored_kernels() -> None:
    history = run(NTKTracker(X, Y, every=4, top_k=3))
    kernels = [history.kernel(step) for step in history.steps]
    tops = [np.linalg.eigh(kernel)[1][:, :-4:-1] for kernel in kernels]
    for i, kernel in enumerate(kernels):
        assert history["alignment"][i] == pytest.approx(kernel_target_alignment(kernel, Y), abs=1e-13)
        assert history["rotation"][i] == pytest.approx(1 - kernel_alignment(kernel, kernels[0]), abs=1e-13)
        if i:
            assert history["velocity"][i] == pytest.approx(1 - kernel_alignment(kernel, kernels[i - 1]), abs=1e-13)
            assert history["subspace_overlap"][i] == pytest.approx(subspace_overlap(tops[i], tops[i - 1]), abs=1e-9)
    np.testing.assert_array_equal(pack_triangle(kernels[0]), kernels[0][np.triu_indices(14)])


# --- what is refused ---


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"every": 0}, ValueError, "every must be at least 1"),
        ({"every": 2.5}, TypeError, "every must be an integer or a sequence"),
        ({"every": "10"}, TypeError, "every must be an integer or a sequence"),
        ({"every": [3, 1]}, ValueError, "every must be sorted"),
        ({"every": [1, 1]}, ValueError, "every must be sorted"),
        ({"every": [-1, 1]}, ValueError, r"every\[0\] must be at least 0"),
        ({"every": [0.5]}, TypeError, r"every\[0\] must be an integer"),
        ({"top_k": 0}, ValueError, "top_k must be at least 1"),
        ({"top_k": 2.0}, TypeError, "top_k must be an integer"),
        ({"metrics": "alignment"}, ValueError, "metrics must be 'default' or a sequence"),
        ({"metrics": ["alignement"]}, ValueError, "metrics must be among kernel_norm.*got 'alignement'"),
        ({"metrics": 3}, TypeError, "metrics must be 'default' or a sequence"),
        ({"max_overhead": 0}, ValueError, "max_overhead must be greater than 0"),
        ({"max_overhead": math.nan}, ValueError, "max_overhead must be finite"),
        ({"outputs": "diagonal"}, ValueError, "outputs must be one of 'full'"),
        ({"kernel_budget": -1}, ValueError, "kernel_budget must be at least 0"),
        ({"out": 3}, TypeError, "out must be a path or None"),
        ({"x_probe": X[:0], "y_probe": Y[:0]}, ValueError, "x_probe must hold at least one example"),
        ({"x_probe": X[:, 0]}, ValueError, "x_probe must be examples"),
        ({"x_probe": X.astype(np.float16)}, TypeError, "x_probe must be float32 or float64"),
        ({"x_probe": np.where(X > 2, np.nan, X)}, ValueError, "x_probe must be finite"),
        ({"y_probe": Y[:3]}, ValueError, "y_probe must have 14 examples like x_probe"),
        ({"y_probe": np.full(14, np.inf)}, ValueError, "y_probe must be finite"),
        ({"y_probe": np.zeros((14, 0))}, ValueError, "y_probe must have at least one target"),
        ({"y_probe": Y.astype(np.float32)}, TypeError, "y_probe is float32 but x_probe is float64"),
        ({"y_probe": ["a"] * 14}, TypeError, "y_probe must be an array of real numbers"),
        ({"x_test": X_TEST[:, :2]}, ValueError, r"x_test must have examples of shape \(5,\)"),
        ({"x_test": X_TEST.astype(np.float32)}, TypeError, "x_test is float32 but x_probe is float64"),
        ({"x_test": X_TEST[:0]}, ValueError, "x_test must hold at least one example"),
    ],
)
def test_bad_arguments_are_refused_by_name(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        NTKTracker(**({"x_probe": X, "y_probe": Y} | change))


@pytest.mark.parametrize(
    ("classes", "y", "message"),
    [
        (1, np.ones((14, 2)), r"y_probe must have 1 column\(s\)"),
        (3, np.ones((14, 2)), r"y_probe must have 3 column\(s\)"),
        (3, np.arange(14), "integer labels from 0 to 2, got 3 at index 3"),
        (3, np.linspace(0, 2, 14), "integer labels from 0 to 2"),
        (3, -np.ones(14, dtype=int), "integer labels from 0 to 2, got -1 at index 0"),
    ],
)
def test_targets_that_do_not_fit_the_network_are_refused_at_the_first_step(classes: int, y: Any, message: str) -> None:
    net = nets.MLP(widths=[5, 4, classes])
    with pytest.raises(ValueError, match=message):
        run(NTKTracker(X, y), net=net, params=net.init(seed=0), y=np.zeros((14, classes)))


@pytest.mark.parametrize("form", ["list", "boolean", "column", "not contiguous", "read-only"])
def test_targets_come_in_many_forms(form: str) -> None:
    frozen = Y.copy()
    frozen.flags.writeable = False
    y = {
        "list": (Y > 0).astype(int).tolist(),
        "boolean": Y > 0,
        "column": Y[:, None],
        "not contiguous": np.repeat(Y, 2)[::2],
        "read-only": frozen,
    }[form]
    expected = (Y > 0).astype(float) if form in {"list", "boolean"} else Y
    reference = run(NTKTracker(X, expected, every=6))
    same_series(run(NTKTracker(X, y, every=6)), reference)
    same_series(run(NTKTracker(np.asfortranarray(X), y, every=6)), reference)


def test_a_tracker_records_one_run() -> None:
    tracker = NTKTracker(X, Y, metrics=[])
    run(tracker)
    with pytest.raises(ValueError, match="holds a run already"):
        run(tracker)
    assert len(tracker.history.steps) == 3


def test_a_folder_with_another_run_is_refused_untouched(tmp_path: Path) -> None:
    run(NTKTracker(X, Y, every=4, out=tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(RunFolderError, match=r"holds another run \(4 tracked steps, completed\)"):
        run(NTKTracker(X, Y, every=4, out=tmp_path))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_disk_that_fills_up_stops_training_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = LocalPlace.write

    def fill_up(self: LocalPlace, file: str, content: Any, **options: Any) -> None:
        if file == "kernels/14/c.3.0":
            raise RunFolderError(f"{file}: cannot write: No space left on device")
        write(self, file, content, **options)

    reference = run(NTKTracker(X, Y, every=4), steps=20)
    monkeypatch.setattr(LocalPlace, "write", fill_up)
    with pytest.raises(RunFolderError, match=r"c\.3\.0: cannot write: No space left on device"):
        run(NTKTracker(X, Y, every=4, out=tmp_path), steps=20)
    history = load_run(tmp_path)
    assert history.status == "failed"
    assert history.steps.tolist() == [0, 4, 8]
    assert history.kernel_steps == [0, 4, 8]
    np.testing.assert_array_equal(history["alignment"], reference["alignment"][:3])
    assert history.predictions(0).shape == (14, 1)
