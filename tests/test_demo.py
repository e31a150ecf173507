"""The demo keeps its promise: silent alignment on whitened digits, and none on digits as they are."""

from __future__ import annotations

import math

import pytest
import threadpoolctl

from kernelgrowth.experiments import ExperimentConfig, demo_config, run_experiment


@pytest.fixture
def run_demo(tmp_path):
    """Run the demo without drawing it."""

    def run(seed: int, *, whiten: bool):
        tables = demo_config(seed, whiten=whiten).to_dict()
        config = ExperimentConfig.from_dict({**tables, "output": {"report": False}})
        # As the command does: matrices this small are slower when threads of BLAS wait for each other.
        with threadpoolctl.threadpool_limits(1, user_api="blas"):
            return run_experiment(config, tmp_path / "demo")

    return run


@pytest.mark.parametrize("seed", range(4))
def test_alignment_is_silent_on_whitened_digits(run_demo, seed):
    result = run_demo(seed, whiten=True)
    summary = result.summary
    assert summary["verdict"] == "silent"
    assert summary["silent_alignment_score"] >= 0.7
    assert summary["weighted_score"] >= 0.8
    assert summary["growth"] >= 50
    assert summary["t_align"] < summary["t_loss"] < summary["t_grow"]
    assert summary["loss_ratio"] < 1e-4
    assert summary["predictor_error_final"] <= 0.06
    assert summary["predictor_error_final_matched"] <= 0.06
    assert summary["predictor_error_initial"] >= 3 * summary["predictor_error_final"]
    assert summary["alignment_final"] == pytest.approx(summary["alignment_max_theory"], rel=0.2)
    # The silence is resolved: many recorded steps lie before each event.
    for moment in ("t_align", "t_loss", "t_grow"):
        assert (result.history["time"] < summary[moment]).sum() >= 7


def test_alignment_is_not_silent_on_digits_as_they_are(run_demo):
    summary = run_demo(0, whiten=False).summary
    assert summary["verdict"] != "silent"
    assert summary["silent_alignment_score"] < 0.6
    assert math.isnan(summary["alignment_max_theory"])


@pytest.mark.parametrize("seed", [-1, 1.5, "0"])
def test_impossible_seeds_are_named(seed):
    with pytest.raises((TypeError, ValueError), match="seed"):
        demo_config(seed)
