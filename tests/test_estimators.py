"""Stochastic traces and norms: unbiased, and as far off as their standard errors say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelgrowth.gradients import GradientFeatures, OuterProduct
from kernelgrowth.kernels import NTKOperator
from kernelgrowth.spectra import estimators
from kernelgrowth.spectra.estimators import Estimate, estimate_frobenius_norm, estimate_trace, frobenius_norm

N = 150
SPECTRA = {
    "power": np.arange(1, N + 1.0) ** -1.0,
    "exponential": 0.8 ** np.arange(N),
    "indefinite": np.linspace(-1, 1.5, N),
    "cluster": np.array([1.0] * 20 + [1e-3] * (N - 20)),
    "one large": np.array([5.0] + [1.0] * 30 + [0.0] * (N - 31)),
}
SEEDS = 300


def with_spectrum(values, seed=0, dtype=np.float64):
    basis = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values), len(values))))[0]
    matrix = basis * values @ basis.T
    return ((matrix + matrix.T) / 2).astype(dtype)


class Opaque:
    """An operator that is nothing but its product, and counts it."""

    def __init__(self, matrix):
        self.matrix, self.shape, self.dtype = matrix, matrix.shape, matrix.dtype
        self.widths = []

    def __matmul__(self, block):
        assert block.dtype == self.dtype
        self.widths.append(block.shape[1])
        return self.matrix @ block


def features(n, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    a, d = rng.standard_normal((n, 6)).astype(dtype), rng.standard_normal((n, 2)).astype(dtype)
    return GradientFeatures({"w": OuterProduct(a, d)})


def traced(operator, seed, samples):
    """The estimate, its standard error, and the exact value, of what is claimed to be unbiased."""
    estimate = estimate_trace(operator, samples=samples, seed=seed)
    return estimate.value, estimate.standard_error, np.trace(operator.matrix, dtype=np.float64)


def squared(operator, seed, samples):
    estimate = estimate_frobenius_norm(operator, samples=samples, seed=seed)
    error = 2 * estimate.value * estimate.standard_error
    return estimate.value**2, error, np.square(operator.matrix, dtype=np.float64).sum()


@pytest.mark.parametrize("name", sorted(SPECTRA))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("samples", [2, 12])
@pytest.mark.parametrize("kind", [traced, squared])
def test_estimates_are_unbiased_and_standard_errors_are_true(kind, samples, dtype, name):
    operator = Opaque(with_spectrum(SPECTRA[name], dtype=dtype))
    results = np.array([kind(operator, seed, samples) for seed in range(SEEDS)])
    values, errors, exact = results[:, 0], results[:, 1], results[0, 2]
    rounding = 2 * np.finfo(dtype).eps * np.abs(SPECTRA[name]).sum()
    # The mean of 300 seeds is normal: 5.5 of its standard errors are exceeded with probability below 1e-7.
    assert abs(values.mean() - exact) <= 5.5 * values.std() / np.sqrt(SEEDS) + rounding
    # Squared errors average to the variance; both have spreads of a few tenths over 300 seeds.
    ratio = np.sqrt(np.square(errors).mean()) / values.std()
    assert 0.75 < ratio < 1.35


@given(st.integers(0, 2**32 - 1), st.sampled_from([np.float32, np.float64]), st.sampled_from([-20, 0, 18]))
def test_estimates_of_a_nearly_low_rank_kernel_are_nearly_exact(seed, dtype, exponent):
    values = np.array([3.0, -2.0, 1.0] + [0.0] * (N - 3)) * 10.0**exponent
    operator = Opaque(with_spectrum(values, seed % 1000, dtype))
    trace, norm = (
        estimate_trace(operator, samples=6, seed=seed),
        estimate_frobenius_norm(operator, samples=6, seed=seed),
    )
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(trace.value, values.sum(), rtol=50 * eps)
    np.testing.assert_allclose(norm.value, np.linalg.norm(values / 10.0**exponent) * 10.0**exponent, rtol=50 * eps)
    for estimate, size in ((trace, 2.0), (norm, 3.7)):
        assert 0 < estimate.standard_error <= 20 * eps * size * 10.0**exponent
        assert (estimate.samples, estimate.passes) == (6, 2)


@pytest.mark.parametrize("estimate", [estimate_trace, estimate_frobenius_norm])
def test_two_products_with_as_many_vectors_as_it_says(estimate):
    operator = Opaque(with_spectrum(SPECTRA["power"]))
    estimate(operator, samples=9)
    assert operator.widths == [9, 18]


@pytest.mark.parametrize("estimate", [estimate_trace, estimate_frobenius_norm, frobenius_norm])
def test_same_seed_gives_same_bits_and_powers_of_two_are_exact(estimate):
    matrix = with_spectrum(SPECTRA["exponential"])
    first, second = (estimate(Opaque(matrix), seed=3) for _ in range(2))
    assert first == second
    assert first.standard_error > 0
    scaled = estimate(Opaque(np.ldexp(matrix, -40)), seed=3)
    assert (scaled.value, scaled.standard_error) == (first.value * 2.0**-40, first.standard_error * 2.0**-40)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", [np.asarray, Opaque])
@pytest.mark.parametrize("n", [1, 2, 40])
def test_small_and_stored_kernels_are_exact(n, kind, dtype):
    matrix = with_spectrum(np.arange(1.0, n + 1), dtype=dtype)
    wide = matrix.astype(np.float64)
    for result, exact in (
        (estimate_trace(kind(matrix)), np.trace(wide)),
        (estimate_frobenius_norm(kind(matrix)), np.linalg.norm(wide)),
        (frobenius_norm(kind(matrix)), np.linalg.norm(wide)),
    ):
        assert isinstance(result, Estimate)
        np.testing.assert_allclose(result.value, exact, rtol=1e-14)
        assert (result.standard_error, result.samples) == (0, 0)


def test_zero_kernels():
    operator = Opaque(np.zeros((N, N), np.float32))
    for estimate in (estimate_trace, estimate_frobenius_norm, frobenius_norm):
        result = estimate(operator)
        assert (result.value, result.standard_error) == (0, 0)


def test_any_matrix_has_an_exact_norm_whatever_its_size():
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((600, 7))
    np.testing.assert_allclose(frobenius_norm(matrix).value, np.linalg.norm(matrix), rtol=1e-14)
    np.testing.assert_allclose(frobenius_norm(matrix * 2.0**-700).value, np.linalg.norm(matrix) * 2.0**-700, rtol=1e-14)
    np.testing.assert_allclose(frobenius_norm(matrix * 2.0**700).value, np.linalg.norm(matrix) * 2.0**700, rtol=1e-14)
    assert frobenius_norm([[3.0, 4.0]]).value == 5


@pytest.mark.parametrize("rtol", [0.1, 0.01, 1e-3])
@pytest.mark.parametrize("name", sorted(SPECTRA))
def test_samples_are_added_until_the_standard_error_is_small(name, rtol):
    spectrum = np.repeat(SPECTRA[name], 4)
    operator = Opaque(with_spectrum(spectrum))
    result = frobenius_norm(operator, rtol=rtol)
    exact = np.linalg.norm(spectrum)
    assert result.standard_error <= rtol / 2 * result.value
    # Five standard errors of 16 samples or more, for seeds that are fixed.
    assert abs(result.value - exact) <= 5 * result.standard_error + 1e-12 * exact
    assert sum(operator.widths) <= 2 * len(spectrum)
    assert result.passes == len(operator.widths) or result.standard_error == 0


def test_an_operator_is_exact_unless_products_are_the_cheaper_way(monkeypatch):
    small = NTKOperator(features(60), products="factored")
    result = frobenius_norm(small)
    assert result == Estimate(small.frobenius_norm(), 0.0, 0, 0)
    monkeypatch.setattr(estimators, "_SMALL_ROWS", 10)
    for operator in (
        NTKOperator(features(150), products="stored"),
        NTKOperator(features(150), products="tiles"),
        NTKOperator(features(150), features(150, seed=1), products="factored"),
        NTKOperator(features(150), features(20, seed=1), products="factored"),
    ):
        assert frobenius_norm(operator) == Estimate(operator.frobenius_norm(), 0.0, 0, 0)
    operator = NTKOperator(features(300, dtype=np.float32), products="factored")
    exact = operator.frobenius_norm()
    estimate = frobenius_norm(operator)
    assert estimate.samples > 0
    assert 0 < estimate.standard_error <= 0.005 * exact
    assert abs(estimate.value - exact) <= 5 * estimate.standard_error
    assert operator.frobenius_norm() == exact
    hard = frobenius_norm(operator, rtol=1e-9)
    assert (hard.value, hard.standard_error) == (exact, 0)


def test_an_operators_trace_is_exact():
    operator = NTKOperator(features(200), products="factored")
    assert estimate_trace(operator) == Estimate(operator.trace(), 0.0, 0, 0)
    with pytest.raises(ValueError, match="this operator was given feats2"):
        estimate_trace(NTKOperator(features(20), features(20)))


@pytest.mark.parametrize("estimate", [estimate_trace, estimate_frobenius_norm])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"op": np.ones((2, 3))}, ValueError, r"op must be a square matrix .* \(2, 3\)"),
        ({"op": np.array([[1.0, 2.0], [0.0, 1.0]])}, ValueError, "op must be symmetric"),
        ({"op": Opaque(np.triu(np.ones((90, 90))))}, ValueError, "op must be symmetric"),
        ({"op": Opaque(np.full((90, 90), np.inf))}, ValueError, "op @ V must be finite"),
        ({"op": Opaque(np.eye(3, dtype=complex))}, TypeError, "op must compute in float32 or float64"),
        ({"samples": 1}, ValueError, "samples must be at least 2"),
        ({"samples": 2.5}, TypeError, "samples must be an integer"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_misuse_is_named(estimate, arguments, error, message):
    with pytest.raises(error, match=message):
        estimate(**{"op": np.eye(4), **arguments})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"op": Opaque(np.ones((2, 3)))}, ValueError, "op must be a square matrix"),
        ({"op": np.ones(3)}, ValueError, "op must have 2 dimension"),
        ({"op": "kernel"}, TypeError, "op must be an array of real numbers"),
        ({"rtol": 0.0}, ValueError, "rtol must be greater than 0"),
        ({"rtol": "small"}, TypeError, "rtol must be a number"),
        ({"seed": 0.5}, TypeError, "seed must be an integer"),
    ],
)
def test_misuse_of_the_norm_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        frobenius_norm(**{"op": np.eye(4), **arguments})
