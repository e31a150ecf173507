from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import timing
from benchmarks.case import OURS, Workload
from benchmarks.factors import features_of, kernel_error, random_layers
from benchmarks.measure import Result, check
from benchmarks.suite import CASES
from benchmarks.table import as_text
from benchmarks.timing import Timing, interleaved

from kernelgrowth.kernels import empirical_ntk


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
