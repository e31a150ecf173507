"""The plan's predicted times and the rates they come from."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from kernelgrowth._backend import calibration as rates
from kernelgrowth.gradients import GradientFeatures, OuterProduct
from kernelgrowth.kernels import NTKOperator, empirical_ntk

ROUND = rates.Calibration(
    multiply_add_peak=1e9,
    copy_bandwidth=1e9,
    gram_efficiency=0.5,
    expansion_efficiency=0.25,
    output_bandwidth=1e8,
    call_seconds=1e-5,
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    rates.calibration.cache_clear()
    yield tmp_path / "kernelgrowth" / "calibration.json"
    rates.calibration.cache_clear()


@pytest.fixture
def measured(monkeypatch):
    """Count measurements instead of making them."""
    calls = []

    def measure(dtype, threads):
        calls.append((dtype, threads))
        return ROUND

    monkeypatch.setattr(rates, "measure", measure)
    return calls


def features(n=50):
    rng = np.random.default_rng(0)
    return GradientFeatures(
        {
            "dense": OuterProduct(rng.normal(size=(n, 20)), rng.normal(size=(n, 7))),
            "conv": OuterProduct(rng.normal(size=(n, 6, 20)), rng.normal(size=(n, 6, 7)), bias=True),
        }
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rates_are_measured(dtype):
    measured = rates.measure(dtype, 1)
    assert measured.multiply_add_peak > 1e8
    assert measured.copy_bandwidth > 1e7
    assert measured.output_bandwidth > 1e6
    assert 0 < measured.call_seconds < 0.1
    assert measured.gram_efficiency > 0
    assert measured.expansion_efficiency > 0


def test_rates_are_measured_once_a_machine(cache, measured):
    assert rates.calibration("float32", 1) == ROUND
    assert rates.calibration("float32", 1) == ROUND
    assert measured == [("float32", 1)]
    rates.calibration.cache_clear()
    assert rates.calibration("float32", 1) == ROUND
    assert measured == [("float32", 1)]
    rates.calibration("float64", 1)
    rates.calibration("float32", 2)
    assert measured == [("float32", 1), ("float64", 1), ("float32", 2)]
    assert len(json.loads(cache.read_text())) == 3


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"x": 1}', "\x00\xff"])
def test_an_unreadable_cache_is_measured_again(cache, measured, content):
    rates.calibration("float32", 1)
    rates.calibration.cache_clear()
    cache.write_text(content)
    assert rates.calibration("float32", 1) == ROUND
    assert len(measured) == 2
    rates.calibration.cache_clear()
    known = json.loads(cache.read_text())
    (key,) = (key for key in known if "float32" in key)
    for wrong in ({}, {"multiply_add_peak": 1.0}, {**known[key], "copy_bandwidth": "fast"}):
        cache.write_text(json.dumps({key: wrong}))
        rates.calibration.cache_clear()
        assert rates.calibration("float32", 1) == ROUND
    assert len(measured) == 5


def test_an_unwritable_cache_is_no_error(cache, measured):
    cache.parent.parent.joinpath("kernelgrowth").write_text("a file where the folder should be")
    assert rates.calibration("float32", 1) == ROUND
    assert len(measured) == 1


def test_computing_a_kernel_measures_and_writes_nothing(cache, measured):
    operator = NTKOperator(features())
    operator.plan()
    operator.gram()
    empirical_ntk(features())
    assert not measured
    assert not cache.exists()
    assert operator.plan().seconds > 0
    assert len(measured) == 1


def test_importing_writes_nothing(tmp_path):
    code = "import kernelgrowth, kernelgrowth.kernels"
    environment = {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert not list(tmp_path.iterdir())


def test_the_prediction_adds_up(cache, measured):
    plan = NTKOperator(features()).plan()
    dense, conv = plan.blocks
    computed = 50 * (50 + 24)
    expected = computed * 27 / 0.5e9 + 2 * 50 * 27 * 8 / 1e9
    assert dense.cost.seconds(ROUND) == pytest.approx(expected)
    expansion = 50 * 6 * 7 * (2 * 20 + 1)
    moved = (50 * 6 * 27 + 50 * 7 * 21) * 8
    assert conv.cost.seconds(ROUND) == pytest.approx(computed * 7 * 21 / 0.5e9 + expansion / 0.25e9 + moved / 1e9)
    output = 50 * 50 * 8
    assert plan.passes == (1, 1)
    assert plan.seconds - sum(plan.block_seconds) == pytest.approx(1e-4 + output / 1e8 + 2 * output / 1e9 + 1e-5)
    assert f"{plan.seconds * 1e3:.3f}" in str(plan)
    assert plan.flops == sum(block.flops for block in plan.blocks)
