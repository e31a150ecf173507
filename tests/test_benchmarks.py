from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

import threadpoolctl
from benchmarks import at_scale, killing, kills, out_of_core, passes, timing, tracking
from benchmarks.case import OURS, Workload
from benchmarks.eigenpairs import arpack, loosest_tolerance, pairs_error
from benchmarks.factors import features_of, kernel_error, random_layers
from benchmarks.measure import Result, check
from benchmarks.networks import random_kernel
from benchmarks.peers import with_blas_threads
from benchmarks.suite import CASES
from benchmarks.table import as_text
from benchmarks.timing import Timing, interleaved
from benchmarks.tracking import TrackedByHand

from kernelgrowth.kernels import empirical_ntk
from kernelgrowth.nets import MLP
from kernelgrowth.tracking import NTKTracker
from kernelgrowth.training import optim, train


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_contenders_give_the_right_answer(case):
    workload = case.workload(tiny=True)
    contenders, errors, skipped = check(workload)
    assert next(iter(contenders)) == OURS
    assert len(contenders) > 1, "nothing to compare with"
    assert list(errors) == list(contenders)
    assert all(name.startswith(("JAX", "torch")) for name in skipped)
    assert workload.flops > 0
    assert workload.bytes > 0


@pytest.mark.parametrize("outputs", ["full", "trace", "diagonal", "sum_logits"])
def test_the_check_sees_an_error_where_it_looks(outputs):
    layers = random_layers([(1, 5, 4), (3, 4, 2)], 6, outputs=3, dtype="float64")
    kernel = empirical_ntk(features_of(layers), outputs=outputs)
    if outputs == "full":
        kernel = kernel.transpose(0, 2, 1, 3).reshape(18, 18)
    error = kernel_error(layers, outputs)
    assert error(kernel) < 1e-14
    kernel[..., -1, 0] *= 1 + 1e-3  # the first and the last example are among those looked at
    assert error(kernel) > 1e-6


def test_names_are_unique():
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_sizes_are_those_that_the_tiny_form_replaces(case):
    assert set(case.tiny) <= set(case.sizes)


@pytest.mark.parametrize("wrong", [np.nan, 1.0])
def test_a_wrong_answer_is_refused(wrong):
    workload = Workload({OURS: lambda: 0.0, "peer": lambda: wrong}, abs, 1e-5, flops=1, bytes=1)
    with pytest.raises(AssertionError, match="peer: an answer is"):
        check(workload)


def test_contenders_take_turns(monkeypatch):
    monkeypatch.setattr(timing, "_REST", 0)
    monkeypatch.setattr(timing, "_WARM", 0)
    calls = []
    timings = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=1)
    assert calls == sorted(calls)
    assert set(calls) == {"a", "b"}
    assert all(t.fastest <= t.median <= t.slowest for t in timings.values())


def test_a_slow_contender_runs_once_beside_its_check(monkeypatch):
    monkeypatch.setattr(timing, "_REST", 0)
    calls = []
    contenders = {"a": lambda: calls.append("a"), "slow": lambda: calls.append("slow")}
    timings = interleaved(contenders, repeats=3, once=("slow",))
    assert calls.count("slow") == 1
    assert calls.count("a") > 3
    assert timings["slow"].fastest == timings["slow"].slowest


def test_the_table_names_the_roof_and_what_was_skipped():
    timings = {OURS: Timing(1.0, 0.5, 2.0), "NumPy": Timing(2.0, 1.0, 4.0)}
    result = Result(
        name="work",
        dtype="float32",
        flops=10**9,
        bytes=10**9,
        ceiling=1e11,
        bandwidth=2e9,
        timings=timings,
        errors={OURS: 0.0, "NumPy": 1e-7},
        tolerance=1e-5,
        skipped=("JAX, jit",),
    )
    assert (result.roof, result.best_peer, result.rate("NumPy")) == (2e9, "NumPy", 5e8)
    text = as_text(result)
    assert "the roof is the bandwidth, 2 GFLOP/s" in text
    assert "JAX, jit" in text
    assert "not installed" in text


def test_a_part_is_nobodys_peer():
    timings = {OURS: Timing(2.0, 2.0, 2.0), f"{OURS}, otherwise": Timing(1.0, 1.0, 1.0), "NumPy": Timing(3.0, 3.0, 3.0)}
    timings["a part"] = Timing(0.5, 0.5, 0.5)
    errors = dict.fromkeys(timings, 0.0)
    result = Result("work", "float32", 1, 1, 1.0, 1.0, timings, errors, 1e-5, (), parts=("a part",))
    assert result.best_peer == "NumPy"


@pytest.fixture(scope="module")
def kernel():
    return random_kernel((30, 20, 1), 200, "float32")


def test_pairs_are_checked_by_residual_and_by_value(kernel):
    error = pairs_error(kernel, 3)
    values, vectors = np.linalg.eigh(kernel.astype(np.float64))
    assert error((values[-3:], vectors[:, -3:])) < 1e-5
    assert error((values[-3:][::-1], vectors[:, -3:][:, ::-1])) < 1e-5
    turned = vectors[:, -3:] + 0.1 * vectors[:, :1]
    assert error((values[-3:], turned)) > 1e-3
    # Pairs they are, but not those at the top.
    assert error((values[-4:-1], vectors[:, -4:-1])) > 1e-3


def test_arpack_gets_the_loosest_tolerance_that_suffices(kernel):
    error = pairs_error(kernel, 3)
    loosest = loosest_tolerance(kernel, 3, error, 1e-4)
    assert loosest >= 1e-4
    assert error(arpack(kernel, 3, loosest)) <= 1e-4
    assert loosest >= 0.5 or error(arpack(kernel, 3, 2 * loosest)) > 1e-4


def test_the_blas_gets_as_many_threads_as_said():
    def threads():
        return {pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"}

    before = threads()
    assert with_blas_threads(1, threads)() == {1}
    assert threads() == before


def test_series_by_hand_are_those_of_the_tracker():
    net, start, x, y = small_net(n=60)
    tracker, by_hand = NTKTracker(x, y, every=2, top_k=20), TrackedByHand(x, y, every=2)
    optimizer = optim.GD(lr=0.1)
    train(net, start, (x, y), optimizer=optimizer, steps=5, callbacks=[tracker, by_hand])
    history = tracker.history
    assert len(history.steps) == len(by_hand.records) == 4
    for name in ("loss", "kernel_norm", "trace", "alignment", "alignment_centered", "eigenvalues"):
        found = np.array([record[name] for record in by_hand.records])
        np.testing.assert_allclose(found, history[name], rtol=1e-4, atol=1e-4 * np.abs(found).max(), err_msg=name)
    for name in ("velocity", "rotation", "subspace_overlap"):
        found = np.array([record[name] for record in by_hand.records[1:]])
        np.testing.assert_allclose(found, history[name][1:], atol=1e-3, err_msg=name)
    for i, name in enumerate(("layer1", "layer2")):
        for what in ("norm", "alignment"):
            found = np.array([record[f"{what} {i}"] for record in by_hand.records])
            np.testing.assert_allclose(found, history[f"layers/{name}/{what}"], rtol=1e-4, err_msg=name)


def small_net(n):
    net = MLP(widths=(7, 40, 1))
    x = np.random.default_rng(0).standard_normal((n, 7), dtype=np.float32)
    return net, net.init(seed=0, dtype="float32"), x, np.sign(x[:, 0])


def test_arpack_makes_more_products_for_more_digits(kernel):
    few, many = (passes.arpack_products(kernel, 3, tol) for tol in (1e-1, 1e-6))
    assert 3 < few < many


def test_the_table_of_passes(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["passes", "--examples", "300", "--steps", "4", "--every", "2", "--k", "4"])
    passes.main()
    text = capsys.readouterr().out
    assert text.count("cold") == text.count("warm") == 2
    assert "nan" not in text


def test_factors_are_swept_some_examples_at_a_time(monkeypatch):
    at_once = at_scale.decaying_features((9, 8, 1), 5)
    monkeypatch.setattr(at_scale, "_CHUNK", 2)
    np.testing.assert_allclose(
        empirical_ntk(at_scale.decaying_features((9, 8, 1), 5)), empirical_ntk(at_once), rtol=1e-4
    )


def test_the_report_at_scale(capsys, monkeypatch):
    monkeypatch.setattr(at_scale, "_SIDE", 256)
    at_scale.main(["--examples", "600", "--widths", "9", "20", "1", "--k", "3"])
    text = capsys.readouterr().out
    assert "3 of 3 converged" in text
    assert "peak memory" in text


def test_the_share_of_training(capsys):
    tracking.main(["--examples", "40", "--widths", "9", "8", "1", "--steps", "6", "--every", "2", "--batch", "16"])
    text = capsys.readouterr().out
    assert "max_overhead None: 4 tracked steps on 40 to 40 examples" in text
    assert "max_overhead 0.05" in text


def test_a_kernel_out_of_core_is_killed_resumed_and_compared(capsys, tmp_path):
    sizes = ["--examples", "300", "--widths", "9", "8", "1", "--kills", "1", "--repeats", "1"]
    out_of_core.main([*sizes, "--folder", str(tmp_path)])
    text = capsys.readouterr().out
    assert "uninterrupted after" in text
    assert "0 of them differ; no tile was computed twice" in text
    assert text.count("of the throughput in memory") == len(out_of_core.STORED)
    assert not list(tmp_path.iterdir())


def test_killed_processes_are_started_again(capsys, tmp_path):
    kills.main(["--tiles", "1", "--runs", "1", "--folder", str(tmp_path)])
    assert capsys.readouterr().out.count("1 processes killed") == 2
    assert not list(tmp_path.iterdir())


def test_a_child_that_fails_is_no_killed_one():
    with pytest.raises(RuntimeError, match="ended with 1"):
        killing.run_child("benchmarks.no_such_module", kill_after=60)
