"""`max_overhead`: what tracking costs stays within its fraction of training, by an injected clock."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelgrowth import nets
from kernelgrowth.gradients import from_net
from kernelgrowth.tracking import History, NTKTracker, load_run
from kernelgrowth.tracking.overhead import Overhead
from kernelgrowth.tracking.schedule import count_due, is_due
from kernelgrowth.training import optim, train

N = 1024
LIMIT = 0.05


class Run:
    """A training run whose seconds are drawn instead of measured, and what tracking it came to."""

    def __init__(
        self,
        overhead: Overhead,
        cost: Any,
        rng: np.random.Generator,
        *,
        steps: int,
        every: int,
        step_seconds: float,
        horizon: bool,
    ) -> None:
        self.sizes: dict[int, int] = {}
        self.training = 0.0
        for step in range(steps + 1):
            self.training += step_seconds * float(rng.uniform(0.7, 1.3))
            size = N if step in (0, steps) else 0
            if not size and is_due(every, step):
                whole = self.training * steps / (step + 1) if horizon else None
                size = overhead.affordable(self.training, whole, count_due(every, steps) if horizon else 0)
            if size:
                self.sizes[step] = size
                overhead.note(size, cost(size) * float(rng.uniform(0.8, 1.2)))
        self.tracking = overhead.seconds

    @property
    def between(self) -> list[int]:
        return [size for step, size in self.sizes.items() if step not in (0, max(self.sizes))]


@settings(deadline=None, max_examples=200)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 600),
    st.integers(1, 40),
    st.floats(-2.0, 3.0),
    st.sampled_from([1.0, 1.5, 2.0]),
    st.booleans(),
)
def test_the_cost_is_kept_within_the_fraction(
    seed: int, steps: int, every: int, scale: float, power: float, horizon: bool
) -> None:
    # A tracked step takes as long as 10^scale steps of training, and half of the examples 2^-power of it.
    rng = np.random.default_rng(seed)
    unit = 10.0**scale
    run = Run(
        Overhead(LIMIT, N),
        lambda size: unit * (size / N) ** power,
        rng,
        steps=steps,
        every=every,
        step_seconds=1.0,
        horizon=horizon,
    )
    assert run.tracking <= 0.06 * run.training or not run.between
    assert run.sizes[0] == run.sizes[steps] == N
    assert run.between == sorted(run.between, reverse=True)
    assert set(run.sizes.values()) <= {N >> halvings for halvings in range(5)}
    if not horizon:
        assert set(run.between) <= {N}


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.floats(0.3, 0.8))
def test_costs_of_many_sizes_average_out_over_a_long_run(seed: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    run = Run(
        Overhead(LIMIT, N),
        lambda size: 4.0 * size / N * float(rng.lognormal(0.0, spread)),
        rng,
        steps=6000,
        every=5,
        step_seconds=1.0,
        horizon=True,
    )
    assert run.tracking <= 0.06 * run.training


def make_run(cost: float, *, steps: int = 1000, every: int = 10, least: float = 0.0) -> Run:
    rng = np.random.default_rng(0)
    return Run(
        Overhead(LIMIT, N),
        lambda size: max(least, cost * size / N),
        rng,
        steps=steps,
        every=every,
        step_seconds=0.1,
        horizon=True,
    )


@pytest.mark.parametrize(
    ("cost", "size"),
    [
        # 100 seconds of training allow 5 of tracking, of which the ends take two costs.
        (0.01, 1024),
        (0.3, 1024),
        (0.5, 512),
        (1.0, 256),
        (1.8, 64),
    ],
)
def test_examples_are_halved_until_a_handful_of_steps_fits(cost: float, size: int) -> None:
    run = make_run(cost)
    assert set(run.between) == {size}
    assert len(run.between) >= 7
    assert run.tracking > 0.6 * min(LIMIT * run.training, cost * (2 + 99))
    # They are spread over the whole of training.
    gaps = np.diff(list(run.sizes))
    assert gaps.max() <= 2 * np.median(gaps)


def test_as_few_steps_as_are_due_are_not_paid_for_with_examples() -> None:
    assert make_run(1.0, every=500).between == [N]


def test_where_halving_saves_nothing_steps_stay_whole() -> None:
    run = make_run(0.004, steps=16, every=1, least=0.004)
    assert set(run.between) <= {N}


def test_what_cannot_be_afforded_leaves_the_ends() -> None:
    assert list(make_run(2.6).sizes) == [0, 1000]


def test_without_a_limit_everything_is_affordable() -> None:
    overhead = Overhead(None, N)
    overhead.note(N, 100.0)
    assert overhead.affordable(1e-9, 1e-9, 10) == N


@settings(deadline=None)
@given(st.lists(st.floats(0.01, 5.0), min_size=1, max_size=12), st.floats(1.0, 1e4))
def test_a_resumed_run_decides_alike(costs: list[float], training: float) -> None:
    first, second = Overhead(LIMIT, N), Overhead(LIMIT, N)
    for i, cost in enumerate(costs):
        first.note(N if i < 3 else 512, cost)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for whole in (None, training, 3 * training):
        assert first.affordable(training, whole, 9) == second.affordable(training, whole, 9)
    assert first.seconds == second.seconds


@given(st.integers(1, 30), st.sets(st.integers(0, 60)), st.integers(0, 60))
def test_due_steps_between_the_ends_are_counted(period: int, steps: set[int], last: int) -> None:
    for every in (period, tuple(sorted(steps))):
        assert count_due(every, last) == sum(is_due(every, step) for step in range(1, last))


# --- in a run ---

RNG = np.random.default_rng(8)
X = RNG.standard_normal((256, 5))
Y = np.sign(X @ RNG.standard_normal(5))
NET = nets.MLP(widths=[5, 8, 1], activation="tanh", bias=True, sigma=0.7)
PARAMS = NET.init(seed=1)


class Clock:
    """Seconds that pass only where they are told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, step: float, measurement: float) -> None:
        self.now = 0.0
        monkeypatch.setattr("time.perf_counter", lambda: self.now)
        vjp = nets.MLP.vjp

        def slow_vjp(net: Any, *args: Any, **kwargs: Any) -> Any:
            self.now += step
            return vjp(net, *args, **kwargs)

        def slow_from_net(net: Any, params: Any, x: Any, **kwargs: Any) -> Any:
            self.now += measurement * len(x) / len(X)
            return from_net(net, params, x, **kwargs)

        monkeypatch.setattr(nets.MLP, "vjp", slow_vjp)
        monkeypatch.setattr("kernelgrowth.tracking.meter.from_net", slow_from_net)


def run(tracker: NTKTracker, *, steps: int = 300, **kwargs: Any) -> History:
    train(NET, PARAMS, (X, Y), steps=steps, optimizer=optim.GD(lr=0.3), callbacks=[tracker], **kwargs)
    return tracker.history


def test_a_run_on_subsamples(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = run(NTKTracker(X, Y, every=10, top_k=4))
    Clock(monkeypatch, step=1.0, measurement=2.0)
    history = run(NTKTracker(X, Y, every=10, top_k=4, max_overhead=LIMIT, out=tmp_path / "run", x_test=X[:3]))
    assert history["seconds"].sum() <= 0.06 * 300
    sizes = history["num_examples"]
    assert sizes.dtype == np.int64
    assert sizes[0] == sizes[-1] == 256
    assert set(sizes[1:-1]) == {128}
    assert len(sizes) > 5
    at = {int(step): i for i, step in enumerate(whole.steps)}
    for loaded in (history, load_run(tmp_path / "run")):
        for i, step in enumerate(loaded.steps):
            reference = at[int(step)]
            for name in ("kernel_norm", "trace", "alignment", "alignment_centered", "loss"):
                error = loaded[f"{name}_error"][i]
                assert (error == 0.0) == (sizes[i] == 256)
                assert abs(loaded[name][i] - whole[name][reference]) <= 4 * error + 1e-12, name
            examples = loaded.examples(int(step))
            np.testing.assert_allclose(
                loaded.kernel(int(step)), whole.kernel(int(step))[np.ix_(examples, examples)], rtol=1e-9, atol=1e-12
            )
            assert loaded["rotation"][i] == pytest.approx(whole["rotation"][reference], abs=0.02, rel=0.2)
            assert loaded["distance_to_final"][i] == pytest.approx(
                whole["distance_to_final"][reference], abs=0.005, rel=0.2
            )
            assert loaded["eigenvalues"][i][0] == pytest.approx(whole["eigenvalues"][reference][0], rel=0.2)
        assert np.isfinite(loaded["velocity"][1:]).all()
        assert ((loaded["subspace_overlap"][1:] > 0.3) & (loaded["subspace_overlap"][1:] <= 1)).all()
        assert loaded.test_kernel(300).shape == (3, 256)
        ends, verdict = whole.silent_alignment(), loaded.silent_alignment()
        assert (verdict.rotation, verdict.growth) == pytest.approx((ends.rotation, ends.growth), rel=1e-9)
        assert verdict.verdict == ends.verdict
    with pytest.raises(KeyError, match="step 1 was not tracked"):
        history.examples(1)


@pytest.mark.parametrize("on_disk", [True, False])
@pytest.mark.parametrize("stop", [0, 31, 100, 222])
def test_it_resumes_to_the_same_bits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, on_disk: bool, stop: int) -> None:
    Clock(monkeypatch, step=1.0, measurement=2.0)
    options: dict[str, Any] = {"every": 10, "top_k": 4, "max_overhead": LIMIT}
    expected = run(NTKTracker(X, Y, **options))
    out = tmp_path / "run" if on_disk else None

    def stop_there(state: Any) -> None:
        if state.step == stop:
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        run(
            NTKTracker(X, Y, out=out, **options),
            checkpoint=tmp_path / "c.npz",
            checkpoint_every=31,
            progress=stop_there,
        )
    history = run(NTKTracker(X, Y, out=out, **options), checkpoint=tmp_path / "c.npz", checkpoint_every=31, resume=True)
    assert list(history) == list(expected)
    for name in expected:
        np.testing.assert_array_equal(history[name], expected[name], err_msg=name)


def test_a_run_begun_without_a_bound_is_only_spaced_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Clock(monkeypatch, step=1.0, measurement=2.0)

    def stop_there(state: Any) -> None:
        if state.step == 35:
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        run(
            NTKTracker(X, Y, every=10, out=tmp_path / "run"),
            checkpoint=tmp_path / "c.npz",
            checkpoint_every=5,
            progress=stop_there,
        )
    history = run(
        NTKTracker(X, Y, every=10, out=tmp_path / "run", max_overhead=0.1),
        checkpoint=tmp_path / "c.npz",
        checkpoint_every=5,
        resume=True,
    )
    assert "num_examples" not in history
    assert history.steps.tolist()[:4] == [0, 10, 20, 30]
    assert len(history.steps) < 15
    assert history["seconds"].sum() <= 0.12 * 300


def test_a_bound_that_is_lifted_leaves_the_series_their_errors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Clock(monkeypatch, step=1.0, measurement=2.0)

    def stop_there(state: Any) -> None:
        if state.step == 150:
            raise RuntimeError("stopped")

    options: dict[str, Any] = {"checkpoint": tmp_path / "c.npz", "checkpoint_every": 5}
    with pytest.raises(RuntimeError, match="stopped"):
        run(NTKTracker(X, Y, every=10, max_overhead=LIMIT), progress=stop_there, **options)
    history = run(NTKTracker(X, Y, every=10), resume=True, **options)
    sizes = history["num_examples"]
    assert set(sizes[history.steps >= 150]) == {256}
    assert 128 in sizes
    assert np.isfinite(history["subspace_overlap"][1:]).all()
    assert (history["loss_error"] > 0).tolist() == (sizes < 256).tolist()


def test_constant_targets_have_no_centred_alignment(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch, step=1.0, measurement=2.0)
    tracker = NTKTracker(X, np.full(256, 0.1), every=10, max_overhead=LIMIT)
    history = run(tracker)
    assert np.isnan(history["alignment_centered"]).all()
    assert np.isfinite(history["alignment"]).all()


def test_metrics_restrict_the_errors_too(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch, step=1.0, measurement=2.0)
    history = run(NTKTracker(X, Y, every=10, metrics=["alignment", "subspace_overlap"], max_overhead=LIMIT))
    assert set(history) - {"step", "time", "train_loss", "seconds", "distance_to_final"} == {
        "loss",
        "loss_error",
        "num_examples",
        "alignment",
        "alignment_error",
        "subspace_overlap",
    }
    assert np.isfinite(history["subspace_overlap"][1:]).all()


def test_a_loop_of_ones_own_is_timed_between_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, step=0.0, measurement=1.0)
    tracker = NTKTracker(X, Y, every=1, metrics=[], max_overhead=LIMIT)
    tracked = []
    for step in range(601):
        tracked.append(tracker.update(NET, PARAMS, step=step, last=step == 600))
        clock.now += 1.0
    steps = np.flatnonzero(tracked)
    assert steps[0] == 0
    assert steps[-1] == 600
    assert 12 <= len(steps) <= 0.06 * 600
    assert set(tracker.history["num_examples"]) == {256}
    assert math.isclose(tracker.history["seconds"].sum(), len(steps))
