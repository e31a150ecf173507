"""The silent-alignment verdict on histories whose every number is worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelgrowth.diagnostics import SilentAlignment, silent_alignment

NAN = math.nan

# The kernel turns from t = 0 to 2 and grows from t = 2 on, when the loss falls.
SILENT = {
    "time": [0.0, 1.0, 2.0, 3.0, 4.0],
    "loss": [1.0, 1.0, 0.8, 0.2, 0.0],
    "alignment": [0.1, 0.5, 0.5, 0.5, 0.5],
    "kernel_norm": [0.01, 0.01, 0.05, 0.85, 1.0],
    "distance_to_final": [0.5, 0.1, 0.02, 0.0, 0.0],
}
# Everything moves on straight lines together.
CONCURRENT = {
    "time": [0.0, 1.0, 2.0, 3.0, 4.0],
    "loss": [1.0, 0.75, 0.5, 0.25, 0.0],
    "alignment": [0.1, 0.2, 0.3, 0.4, 0.5],
    "kernel_norm": [1.0, 6.0, 11.0, 16.0, 21.0],
    "distance_to_final": [0.4, 0.3, 0.2, 0.1, 0.0],
}


def test_silent_history():
    got = silent_alignment(SILENT)
    # The loss passes 0.9 halfway between t = 1 and 2, where d = 0.06.
    assert got.t_loss == pytest.approx(1.5)
    assert got.score == pytest.approx(1 - 0.06 / 0.5)
    # Trapezoids of d over the falls 0, 0.2, 0.6, 0.2.
    assert got.weighted_score == pytest.approx(1 - (0.06 * 0.2 + 0.01 * 0.6) / 0.5)
    assert got.rotation == 0.5
    assert got.growth == pytest.approx(100)
    # 0.1 + 0.9 * 0.4 = 0.46 is nine tenths of the first interval; the norm passes 0.1 a sixteenth into the third.
    assert got.t_align == pytest.approx(0.9)
    assert got.t_grow == pytest.approx(2 + 0.05 / 0.8)
    assert got.verdict == "silent"
    assert "88 % of its rotation" in got.summary()
    assert "t = 1.5" in got.summary()


def test_concurrent_history():
    got = silent_alignment(CONCURRENT)
    assert got.t_loss == pytest.approx(0.4)
    assert got.score == pytest.approx(0.1)
    assert got.weighted_score == pytest.approx(0.5)
    assert got.t_align == pytest.approx(3.6)
    assert got.t_grow == pytest.approx(0.22)
    assert got.growth == pytest.approx(21)
    assert got.verdict == "concurrent"
    assert "still turning" in got.summary()


def test_turning_early_without_growing_is_concurrent():
    got = silent_alignment({**SILENT, "kernel_norm": [0.2, 0.2, 0.2, 0.9, 1.0]})
    assert got.verdict == "concurrent"
    assert got.growth == pytest.approx(5)
    assert math.isnan(got.t_grow)
    assert "did not grow tenfold" in got.summary()


def test_lazy_history():
    got = silent_alignment({**CONCURRENT, "distance_to_final": [0.019, 0.01, 0.01, 0.0, 0.0], "kernel_norm": [1.0] * 5})
    assert got.verdict == "lazy"
    assert math.isnan(got.score)
    assert math.isnan(got.weighted_score)
    assert got.rotation == 0.019
    assert got.growth == 1
    assert got.t_loss == pytest.approx(0.4)
    assert math.isnan(got.t_grow)
    assert got.summary().startswith("Lazy")


@pytest.mark.parametrize("distance", [SILENT["distance_to_final"], [0.0] * 5])
def test_a_network_that_never_learned_gets_no_verdict(distance):
    got = silent_alignment({**SILENT, "loss": [1.0, 1.1, 1.0, 0.95, 0.91], "distance_to_final": distance})
    assert got.verdict == "undetermined"
    assert math.isnan(got.t_loss)
    assert math.isnan(got.score)
    assert math.isnan(got.weighted_score)
    assert got.t_align == pytest.approx(0.9)
    assert "did not learn" in got.summary()


def test_a_loss_that_ends_where_it_began_gets_no_verdict():
    got = silent_alignment({**SILENT, "loss": [1.0, 0.8, 0.5, 0.8, 1.0]})
    assert got.verdict == "undetermined"
    assert got.t_loss == pytest.approx(0.5)
    assert math.isnan(got.weighted_score)
    assert "no lower than it began" in got.summary()


def test_two_kernels_show_that_it_turned_but_not_when():
    ends = {name: [values[0], values[-1]] for name, values in SILENT.items()}
    got = silent_alignment(ends)
    assert got.verdict == "undetermined"
    assert math.isnan(got.score)
    assert math.isnan(got.weighted_score)
    assert (got.rotation, got.growth) == (0.5, pytest.approx(100))
    assert (got.t_loss, got.t_align) == (pytest.approx(0.4), pytest.approx(3.6))
    assert got.t_grow == pytest.approx(4 * 0.09 / 0.99)
    assert "fewer than three kernels" in got.summary()
    assert silent_alignment({**ends, "distance_to_final": [0.01, 0.0]}).verdict == "lazy"


def test_one_step_only():
    got = silent_alignment({name: values[:1] for name, values in SILENT.items()})
    assert got.verdict == "undetermined"
    assert got.growth == 1
    assert all(math.isnan(x) for x in (got.score, got.weighted_score, got.t_align, got.t_grow, got.t_loss))


def test_steps_without_a_kernel_are_left_out():
    dense = {name: np.repeat(values, 2).astype(float) for name, values in CONCURRENT.items()}
    for values in dense.values():
        values[1:-1:2] = (values[:-2:2] + values[2::2]) / 2
    dense["loss"][1] = 0.99  # halfway in time, but hardly fallen
    dense["distance_to_final"][1:-1:2] = NAN
    got = silent_alignment(dense)
    # The loss reaches 0.9 at 0.5 + 0.5 * 0.09 / 0.24, between kernels at t = 0 and 1.
    assert got.t_loss == pytest.approx(0.6875)
    assert got.score == pytest.approx(0.6875 / 4)
    assert got.weighted_score == pytest.approx(0.5)


def test_a_kernel_that_turns_away_first_has_a_negative_score():
    got = silent_alignment({**CONCURRENT, "distance_to_final": [0.2, 0.6, 0.4, 0.1, 0.0]})
    assert got.score == pytest.approx(1 - 0.36 / 0.2)
    assert got.verdict == "concurrent"


def test_an_alignment_that_falls_is_timed_as_well():
    got = silent_alignment({**SILENT, "alignment": [0.5, 0.1, 0.1, 0.1, 0.1]})
    assert got.t_align == pytest.approx(0.9)


@pytest.mark.parametrize(
    "alignment",
    [
        [0.3, 0.5, 0.4, 0.2, 0.3],
        [NAN, 0.1, 0.2, 0.3, 0.4],
        [0.1, 0.2, 0.3, 0.4, NAN],
        [NAN] * 5,
        [0.3, 0.9, 0.3, 0.3, 0.3 + 1e-7],
    ],
)
def test_alignment_time_is_nan_where_undefined(alignment):
    assert math.isnan(silent_alignment({**SILENT, "alignment": alignment}).t_align)


def test_alignment_gaps_in_between_are_bridged():
    got = silent_alignment({**CONCURRENT, "alignment": [0.1, NAN, 0.3, NAN, 0.5]})
    assert got.t_align == pytest.approx(3.6)


def test_growth_of_a_kernel_that_was_zero_is_nan():
    got = silent_alignment({**SILENT, "kernel_norm": [0.0, 0.1, 0.2, 0.5, 1.0]})
    assert math.isnan(got.growth)
    assert got.t_grow == pytest.approx(1.0)
    assert got.verdict == "concurrent"


def test_a_loss_that_starts_at_zero_gets_no_verdict():
    got = silent_alignment({**SILENT, "loss": [0.0] * 5})
    assert (got.verdict, math.isnan(got.t_loss)) == ("undetermined", True)


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, "silent"),
        ({"kernel_norm": [0.101, 0.2, 0.5, 0.9, 1.0]}, "concurrent"),
        ({"kernel_norm": [0.1, 0.2, 0.5, 0.9, 1.0]}, "silent"),
        ({"distance_to_final": [0.02, 0.0, 0.0, 0.0, 0.0]}, "silent"),
        ({"distance_to_final": [0.0199, 0.0, 0.0, 0.0, 0.0]}, "lazy"),
        # With d = (0.5, a, b, 0, 0), the score is 1 - a - b and the weighted one 1 - 0.2 a - 0.8 b.
        ({"distance_to_final": [0.5, 0.29, 0.0, 0.0, 0.0]}, "silent"),
        ({"distance_to_final": [0.5, 0.31, 0.0, 0.0, 0.0]}, "concurrent"),
        ({"distance_to_final": [0.5, 0.0, 0.24, 0.0, 0.0]}, "silent"),
        ({"distance_to_final": [0.5, 0.0, 0.26, 0.0, 0.0]}, "concurrent"),
    ],
)
def test_thresholds(change, verdict):
    assert silent_alignment({**SILENT, **change}).verdict == verdict


@given(st.integers(0, 10**6), st.integers(-40, 40), st.integers(-40, 40), st.integers(-40, 40))
@settings(deadline=None, max_examples=40)
def test_units_of_time_loss_and_kernel_do_not_matter(seed, time, loss, norm):
    rng = np.random.default_rng(seed)
    history = {
        "time": np.cumsum(rng.random(8)),
        "loss": np.sort(rng.random(8))[::-1],
        "alignment": rng.random(8),
        "kernel_norm": np.sort(rng.random(8)),
        "distance_to_final": np.append(rng.random(7), 0.0),
    }
    plain = silent_alignment(history)
    scaled = {
        **history,
        **{k: np.ldexp(history[k], e) for k, e in (("time", time), ("loss", loss), ("kernel_norm", norm))},
    }
    other = silent_alignment(scaled)
    for name in ("score", "weighted_score", "rotation", "growth"):
        assert getattr(other, name) == pytest.approx(getattr(plain, name), nan_ok=True)
    for name in ("t_align", "t_grow", "t_loss"):
        assert getattr(other, name) == pytest.approx(math.ldexp(getattr(plain, name), time), nan_ok=True)
    assert other.verdict == plain.verdict
    if not math.isnan(plain.score):
        assert plain.score <= 1
        assert plain.weighted_score <= 1
    assert plain.summary().endswith(".")


def test_result_is_frozen_plain_numbers():
    got = silent_alignment({name: np.array(values, dtype=np.float32) for name, values in SILENT.items()})
    assert isinstance(got, SilentAlignment)
    assert all(type(getattr(got, name)) is float for name in ("score", "weighted_score", "t_align", "t_grow", "t_loss"))
    assert type(got.rotation) is float
    assert type(got.growth) is float
    with pytest.raises(AttributeError):
        got.score = 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"time": [0.0, 1.0]}, r"history\['loss'\] must have one entry for each tracked step"),
        ({name: [] for name in SILENT}, r"history\['time'\] must"),
        ({"loss": [1.0, 1.0, NAN, 0.2, 0.0]}, r"history\['loss'\] must be finite"),
        ({"loss": [[1.0]] * 5}, r"history\['loss'\] must have 1 dimension"),
        ({"time": [0.0, 2.0, 1.0, 3.0, 4.0]}, "must not decrease"),
        ({"kernel_norm": [-1.0, 1.0, 1.0, 1.0, 1.0]}, r"history\['kernel_norm'\] must not be negative"),
        ({"distance_to_final": [NAN, 0.1, 0.0, 0.0, 0.0]}, "must be known at the first step"),
        ({"distance_to_final": [0.1, math.inf, 0.0, 0.0, 0.0]}, "must be finite or NaN"),
    ],
)
def test_misuse_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        silent_alignment({**SILENT, **change})


def test_a_missing_series_is_named():
    with pytest.raises(ValueError, match="got none named 'alignment'"):
        silent_alignment({name: values for name, values in SILENT.items() if name != "alignment"})
