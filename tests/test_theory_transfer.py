"""Learning curves of transferred kernels against regression on drawn training sets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelgrowth.theory import transfer_curve

DIM = 25
NUMBERS = st.integers(0, 60)
SPIKES = st.floats(0.0, 20.0)
OVERLAPS = st.floats(-1.0, 1.0)


def simulated(n, spike, overlap, ridge=0.0, draws=3000):
    """Mean test error over training sets; that of a linear predictor on Gaussian inputs is |w - w_found|^2."""
    rng = np.random.default_rng(n)
    x = rng.standard_normal((draws, n, DIM))
    w = np.zeros(DIM)
    w[:2] = overlap, np.sqrt(1.0 - overlap**2)
    variances = np.ones(DIM)
    variances[0] += spike
    kernels = (x * variances) @ x.transpose(0, 2, 1) + ridge * np.eye(n)
    coefficients = np.linalg.solve(kernels, (x @ w)[:, :, None])
    found = variances * (x.transpose(0, 2, 1) @ coefficients)[:, :, 0]
    return np.mean(np.sum((found - w) ** 2, axis=1))


@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.75])
@pytest.mark.parametrize("spike", [0.0, 1.0, 3.0, 10.0])
def test_curves_are_those_of_simulation(spike, overlap):
    numbers = [5, 10, 20]
    expected = [simulated(n, spike, overlap) for n in numbers]
    np.testing.assert_allclose(transfer_curve(numbers, DIM, spike, overlap), expected, rtol=0.05)


@pytest.mark.parametrize(("spike", "overlap"), [(0.0, 0.5), (3.0, 0.5), (3.0, 0.75)])
def test_curves_with_a_ridge_are_those_of_simulation(spike, overlap):
    expected = [simulated(n, spike, overlap, ridge=2.0, draws=1500) for n in (5, 10)]
    np.testing.assert_allclose(transfer_curve([5, 10], DIM, spike, overlap, ridge=2.0), expected, rtol=0.05)


def test_full_overlap_is_worse_than_the_curve_in_few_dimensions():
    for spike in (5.0, 10.0):
        for n in (5, 10, 20):
            ratio = transfer_curve(n, DIM, spike, 1.0) / simulated(n, spike, 1.0, draws=6000)
            assert 0.7 < ratio < 0.95


@given(n=NUMBERS, dim=st.integers(2, 50), spike=SPIKES, overlap=OVERLAPS, ridge=st.floats(0.01, 10.0))
def test_curve_solves_its_equations(n, dim, spike, overlap, ridge):
    eigenvalues = np.array([1.0 + spike] + [1.0] * (dim - 1))
    w = np.array([overlap, np.sqrt(1.0 - overlap**2)] + [0.0] * (dim - 2))
    low, high = 0.0, ridge + eigenvalues.sum() + 1.0
    for _ in range(200):
        kappa = 0.5 * (low + high)
        above = kappa > ridge + kappa * np.sum(eigenvalues / (eigenvalues * n + kappa))
        low, high = (low, kappa) if above else (kappa, high)
    gamma = n * np.sum(eigenvalues**2 / (eigenvalues * n + kappa) ** 2)
    expected = kappa**2 / (1.0 - gamma) * np.sum(w**2 / (eigenvalues * n + kappa) ** 2)
    assert transfer_curve(n, dim, spike, overlap, ridge=ridge) == pytest.approx(expected, rel=1e-8)


@given(n=NUMBERS, dim=st.integers(2, 50), overlap=OVERLAPS)
def test_without_spike_or_ridge_every_example_takes_one_dimension(n, dim, overlap):
    assert transfer_curve(n, dim, 0.0, overlap) == pytest.approx(max(0.0, 1.0 - n / dim), rel=1e-9)


@given(dim=st.integers(2, 50), spike=SPIKES, overlap=OVERLAPS, ridge=st.sampled_from([0.0, 1e-9, 0.5]))
def test_curves_fall_from_one(dim, spike, overlap, ridge):
    errors = transfer_curve(np.arange(dim + 5), dim, spike, overlap, ridge=ridge)
    assert errors[0] == pytest.approx(1.0, rel=1e-12)
    assert np.all(errors >= 0.0)
    if ridge == 0.0:
        assert np.all(errors[dim:] == 0.0)
    if overlap == 0.0 or spike == 0.0:
        return
    # A kernel turned towards the task helps if the task is all along beta.
    aligned, plain = (transfer_curve(dim // 2, dim, a, 1.0, ridge=ridge) for a in (spike, 0.0))
    assert aligned <= plain * (1.0 + 1e-9)


def test_a_spike_helps_tasks_along_it_and_harms_tasks_across():
    along, across = ([transfer_curve(10, DIM, a, overlap) for a in (0.0, 5.0)] for overlap in (1.0, 0.0))
    assert along[1] < 0.2 * along[0]
    assert across[1] > across[0]


def test_shapes():
    assert np.ndim(transfer_curve(5, DIM, 1.0, 0.5)) == 0
    assert transfer_curve([[5, 6, 7]], DIM, 1.0, 0.5).shape == (1, 3)
    assert transfer_curve(np.float32([5]), DIM, 1.0, 0.5).dtype == np.float64


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: transfer_curve(-1, DIM, 1.0, 0.5), ValueError, "n must hold at least one number of examples"),
        (lambda: transfer_curve([], DIM, 1.0, 0.5), ValueError, "n must hold"),
        (lambda: transfer_curve(np.nan, DIM, 1.0, 0.5), ValueError, "n must be finite"),
        (lambda: transfer_curve("5", DIM, 1.0, 0.5), TypeError, "n must be an array of real numbers"),
        (lambda: transfer_curve(5, 1, 1.0, 0.5), ValueError, "dim must be at least 2"),
        (lambda: transfer_curve(5, 2.5, 1.0, 0.5), TypeError, "dim must be an integer"),
        (lambda: transfer_curve(5, DIM, -0.5, 0.5), ValueError, "spike must be at least 0"),
        (lambda: transfer_curve(5, DIM, 1.0, 1.5), ValueError, "overlap must be at most 1"),
        (lambda: transfer_curve(5, DIM, 1.0, 0.5, ridge=-1.0), ValueError, "ridge must be at least 0"),
    ],
)
def test_bad_arguments_are_named(call, error, words):
    with pytest.raises(error, match=words):
        call()
