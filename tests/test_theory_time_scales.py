"""Durations of plateaus: that they are the times of the curves they belong to."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from kernelgrowth.theory import deep_linear, half_loss_time, mode_times, two_layer

DEPTHS = st.integers(1, 7)
STRENGTHS = st.floats(0.1, 10.0)


def duration(s, c0, c1, depth):
    """The integral of dc / c' from c0 to c1, in the logarithm of c."""
    return quad(
        lambda z: math.exp(z * (2 / depth - 1)) / (depth * (s - math.exp(z))),
        math.log(c0),
        math.log(c1),
        epsrel=1e-11,
        epsabs=0.0,
        limit=400,
    )[0]


@given(s=STRENGTHS, fraction=st.floats(1e-8, 0.999), depth=DEPTHS)
def test_half_loss_time_is_where_the_loss_is_half(s, fraction, depth):
    c0 = fraction * s
    time = half_loss_time(s, c0, depth)
    left = (s - deep_linear(s, c0, depth, time)) / (s - c0)
    # After a long plateau the curve is steep in time.
    assert left**2 == pytest.approx(0.5, rel=1e-5)


@given(s=STRENGTHS, fraction=st.floats(1e-6, 0.99), depth=DEPTHS)
def test_half_loss_time_is_the_integral(s, fraction, depth):
    c0 = fraction * s
    expected = duration(s, c0, s - (s - c0) / math.sqrt(2), depth)
    assert half_loss_time(s, c0, depth) == pytest.approx(expected, rel=1e-9)


@given(s=STRENGTHS, fraction=st.floats(1e-6, 0.49), depth=DEPTHS)
def test_mode_times_are_the_integral(s, fraction, depth):
    c0 = fraction * s
    assert mode_times(s, c0, depth) == pytest.approx(duration(s, c0, s / 2, depth), rel=1e-9)


@given(s=STRENGTHS, sigma=st.floats(1e-7, 1e-4), depth=st.integers(3, 7))
def test_half_loss_time_at_small_scales(s, sigma, depth):
    leading = sigma ** (2 - depth) / (s * (depth - 2))
    assert half_loss_time(s, sigma**depth, depth) == pytest.approx(leading, rel=1e-2)
    assert half_loss_time(s, sigma**2, 2) - half_loss_time(s, (10 * sigma) ** 2, 2) == pytest.approx(
        math.log(10) / s, rel=1e-2
    )


@given(s=STRENGTHS, fraction=st.floats(1e-9, 0.4))
def test_two_layers_need_the_time_of_their_strength(s, fraction):
    q0 = 2 * fraction * s
    found = two_layer(s, q0, half_loss_time(s, q0 / 2, 2))
    assert (s - found.c) ** 2 == pytest.approx(0.5 * (s - q0 / 2) ** 2, rel=1e-8)
    assert mode_times(s, q0 / 2, 2) == pytest.approx(math.log(2 * s / q0 - 1) / (2 * s), rel=1e-10)


@given(s=STRENGTHS, fraction=st.floats(1e-8, 0.4), depth=DEPTHS, factor=st.sampled_from([0.125, 8.0]))
def test_times_scale_with_the_teacher(s, fraction, depth, factor):
    # c' = L c^(2 - 2/L) (s - c): times a for c and s, times a^(2/L - 2) for t.
    for time in (half_loss_time, mode_times):
        scaled = factor ** (2 / depth - 2) * time(s, fraction * s, depth)
        assert time(factor * s, fraction * factor * s, depth) == pytest.approx(scaled, rel=1e-9)


def test_strong_modes_are_learnt_first():
    for depth in (1, 2, 3, 4):
        times = mode_times([3.0, 2.0, 1.0], 1e-6, depth)
        assert times.shape == (3,)
        assert np.all(np.diff(times) > 0) or depth == 1
        for s, time in zip([3.0, 2.0, 1.0], times, strict=True):
            assert mode_times(s, 1e-6, depth) == time
    spread = mode_times([[3.0], [2.0]], [[1e-6, 1e-3]], 2)
    assert spread.shape == (2, 2)
    assert np.all(spread[:, 0] > spread[:, 1])


def test_extreme_scales():
    assert half_loss_time(1e200, 1.0, 3) > 0.0
    assert half_loss_time(1.0, 1e-300, 4) == pytest.approx(1e150 / 2, rel=1e-9)
    assert half_loss_time(1e-200, 1e-300, 6) == math.inf
    almost = half_loss_time(1.0, 1.0 - 2**-53, 5)
    assert almost == pytest.approx(math.log(2) / 10, rel=1e-6)


def test_gpu_arrays_of_strengths_come_back_as_such(gpu):
    strengths = np.array([3.0, 1.0])
    gpu.agree(mode_times(gpu(strengths), 1e-4, 3), mode_times(strengths, 1e-4, 3), 1e-12)
    times = np.linspace(0.0, 5.0, 4)
    gpu.agree(deep_linear(1.0, 0.1, 3, gpu(times)), deep_linear(1.0, 0.1, 3, times), 1e-12)
    gpu.agree(two_layer(1.0, 0.1, gpu(times)).q, two_layer(1.0, 0.1, times).q, 1e-12)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: half_loss_time(0.0, 0.1, 2), ValueError, "s must be greater than 0"),
        (lambda: half_loss_time(1.0, 1.0, 2), ValueError, "c0 must be less than 1"),
        (lambda: half_loss_time(1.0, 0.0, 2), ValueError, "c0 must be greater than 0"),
        (lambda: half_loss_time(1.0, 0.1, 0), ValueError, "depth must be at least 1"),
        (lambda: half_loss_time("1", 0.1, 2), TypeError, "s must be a number"),
        (lambda: mode_times([], 0.1, 2), ValueError, "s must hold at least one strength"),
        (lambda: mode_times([1.0, 0.0], 1e-3, 2), ValueError, "s must be greater than 0 in every mode"),
        (lambda: mode_times([1.0, -1.0], 1e-3, 2), ValueError, "s must hold at least one strength, all >= 0"),
        (lambda: mode_times([1.0, 0.1], 0.06, 2), ValueError, "c0 must be greater than 0 and less than half"),
        (lambda: mode_times([1.0, 0.1], 0.0, 2), ValueError, "c0 must be greater than 0"),
        (lambda: mode_times([1.0, 2.0], [0.1, 0.1, 0.1], 2), ValueError, r"c0 must have the shape \(2,\) of s"),
        (lambda: mode_times([1.0, np.inf], 0.1, 2), ValueError, "s must be finite"),
        (lambda: mode_times([1.0], 0.1, 2.0), TypeError, "depth must be an integer"),
        (lambda: two_layer(1.0, 0.1, 1.0, drag=2.0), ValueError, "drag must be less than 2"),
        (lambda: two_layer(1.0, 0.1, 1.0, drag=-0.1), ValueError, "drag must be at least 0"),
    ],
)
def test_bad_arguments_are_named(call, error, words):
    with pytest.raises(error, match=words):
        call()
