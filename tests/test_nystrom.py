"""Nyström approximation: bounds that hold, on spectra chosen to break them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse.linalg import aslinearoperator

from kernelgrowth.gradients import GradientFeatures, OuterProduct
from kernelgrowth.kernels import NTKOperator
from kernelgrowth.spectra.low_rank import NystromResult, nystrom
from reference import as_matrix, jacobian, ntk
from strategies import cases

N = 120
SPECTRA = {
    "power": np.arange(1, N + 1.0) ** -1.5,
    "exponential": 0.7 ** np.arange(N),
    "flat": np.ones(N),
    "low rank": np.array([3.0, 2.0, 1.0] + [0.0] * (N - 3)),
    "step after the rank": np.array([1.0] * 8 + [1e-4] * (N - 8)),
    "step before the rank": np.array([1.0] * 7 + [1e-4] * (N - 7)),
    "one outlier below": np.array([1.0] * 40 + [1e-3] * (N - 40)),
    "graded": 10.0 ** -np.linspace(0, 30, N),
}


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


def error_of(result, matrix):
    """The spectral norm of the error, in units of the matrix' largest entry."""
    scale = max(np.abs(matrix.astype(np.float64)).max(), np.finfo(np.float64).tiny)
    vectors = np.asarray(result.eigenvectors, np.float64)
    values = np.asarray(result.eigenvalues, np.float64) / scale
    return np.linalg.norm(matrix.astype(np.float64) / scale - vectors * values @ vectors.T, 2), scale


def check_shape(result, n, rank, dtype):
    assert isinstance(result, NystromResult)
    assert result.eigenvalues.shape == (rank,)
    assert result.eigenvectors.shape == (n, rank)
    assert result.eigenvalues.dtype == result.eigenvectors.dtype == dtype
    assert (result.eigenvalues >= 0).all()
    assert (np.diff(result.eigenvalues) <= 0).all()
    vectors = result.eigenvectors.astype(np.float64)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(rank), atol=20 * np.finfo(dtype).eps)


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(sorted(SPECTRA)),
    st.sampled_from([np.float32, np.float64]),
    st.sampled_from([-20, -5, 0, 20]),
    st.integers(0, 12),
)
def test_the_trace_bound_always_holds(seed, name, dtype, exponent, oversampling):
    matrix = with_spectrum(SPECTRA[name] * 10.0**exponent, seed % 1000, dtype)
    rank = 1 + seed % 15
    result = nystrom(matrix, rank, oversampling=oversampling, seed=seed)
    check_shape(result, N, rank, dtype)
    assert result.bound_kind == "trace"
    error, scale = error_of(result, matrix)
    assert error <= result.error_bound / scale
    # No approximation from below has eigenvalues above those of the matrix.
    exact = np.linalg.eigvalsh(matrix.astype(np.float64))[::-1][:rank]
    slack = 1e-4 if dtype == np.float32 else 1e-12
    assert (result.eigenvalues.astype(np.float64) <= exact + slack * exact[0]).all()


@pytest.mark.parametrize("name", sorted(SPECTRA))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_probed_bound_holds_as_often_as_it_says(name, dtype):
    # Of 40 fixed seeds, each of which may fail with probability 0.01, 8 fail with probability below 1e-8.
    operator = Opaque(with_spectrum(SPECTRA[name], dtype=dtype))
    failures = 0
    for seed in range(40):
        result = nystrom(operator, 8, oversampling=4, seed=seed)
        assert result.bound_kind == "probes"
        error, scale = error_of(result, operator.matrix)
        failures += error > result.error_bound / scale
    assert failures < 8


def test_the_probed_bound_is_sharp_for_errors_of_rank_one():
    # What is left is one eigenvalue, for which ||E ω||² is λ² χ²_10: about one seed in a hundred must fail. Of 1000,
    # more than 40 or none at all have probability below 1e-4 each, and none at all would show a bound that is too wide.
    matrix = np.diag([1.0, 0.5, 0.25])
    failures = 0
    for seed in range(1000):
        result = nystrom(Opaque(matrix), 2, oversampling=1, seed=seed)
        failures += np.linalg.norm(matrix - result.eigenvectors * result.eigenvalues @ result.eigenvectors.T, 2) > (
            result.error_bound * (1 + 1e-9)
        )
    assert 0 < failures <= 40


@pytest.mark.parametrize("kind", [np.asarray, Opaque])
def test_bounds_are_useful(kind):
    for name in ("power", "exponential", "low rank"):
        matrix = with_spectrum(SPECTRA[name])
        result = nystrom(kind(matrix), 10)
        tail = SPECTRA[name][10:].sum()
        assert result.error_bound <= 3 * tail + 1e-10


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", [np.asarray, Opaque])
def test_a_low_rank_kernel_is_found_whole(kind, dtype):
    matrix = with_spectrum(SPECTRA["low rank"], dtype=dtype)
    result = nystrom(kind(matrix), 3)
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(result.eigenvalues, [3, 2, 1], rtol=200 * eps)
    assert result.error_bound < 3000 * eps


def test_one_product_with_as_many_vectors_as_it_says():
    operator = Opaque(with_spectrum(SPECTRA["power"]))
    nystrom(operator, 7, oversampling=5)
    assert operator.widths == [7 + 5 + 10]


@given(cases(max_examples=30, max_length=10, max_outputs=2, max_blocks=2, symmetric=True), st.integers(0, 99))
def test_kernels_of_features(case, seed):
    operator = NTKOperator(case.features[0], products="factored")
    j = jacobian(case.blocks[0])
    exact = as_matrix(ntk(j, j))
    rank = 1 + seed % len(exact)
    result = nystrom(operator, rank, oversampling=3, seed=seed)
    assert result.bound_kind == "trace"
    error, scale = error_of(result, exact)
    assert error <= result.error_bound / scale + 1e-12


def test_the_kernel_is_not_formed():
    rng = np.random.default_rng(0)
    feats = GradientFeatures({"w": OuterProduct(rng.standard_normal((50, 8)), rng.standard_normal((50, 3)))})
    operator = NTKOperator(feats, products="factored")
    nystrom(operator, 4)
    assert operator.product_plan().way == "factored"
    two = NTKOperator(feats, feats, products="factored")
    with pytest.raises(ValueError, match="this operator was given feats2"):
        nystrom(two, 4)


@pytest.mark.parametrize("kind", [np.asarray, Opaque])
@pytest.mark.parametrize("n", [1, 2, 30])
def test_zero_matrix(kind, n):
    result = nystrom(kind(np.zeros((n, n))), n)
    check_shape(result, n, n, np.float64)
    assert not result.eigenvalues.any()
    assert result.error_bound == 0


@given(st.integers(-60, 60))
def test_scaling_by_a_power_of_two_is_exact(exponent):
    matrix = with_spectrum(SPECTRA["exponential"])
    once, scaled = nystrom(matrix, 5), nystrom(np.ldexp(matrix, exponent), 5)
    np.testing.assert_array_equal(np.ldexp(once.eigenvalues, exponent), scaled.eigenvalues)
    np.testing.assert_array_equal(once.eigenvectors, scaled.eigenvectors)
    assert np.ldexp(once.error_bound, exponent) == scaled.error_bound


def test_same_seed_gives_same_bits_and_scipy_operators_are_taken():
    matrix = with_spectrum(SPECTRA["power"])
    first, second = (nystrom(Opaque(matrix), 4, seed=7) for _ in range(2))
    np.testing.assert_array_equal(first.eigenvectors, second.eigenvectors)
    third = nystrom(aslinearoperator(matrix), 4, seed=7)
    np.testing.assert_allclose(third.eigenvalues, first.eigenvalues, rtol=1e-12)


@pytest.mark.parametrize("kind", [np.asarray, Opaque])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_indefinite_kernels_are_refused_and_rounding_is_not(kind, dtype):
    values = SPECTRA["step after the rank"].copy()
    values[3] = -0.5
    with pytest.raises(ValueError, match="op must be positive semidefinite"):
        nystrom(kind(with_spectrum(values, dtype=dtype)), 20)
    values[3] = -4 * np.finfo(dtype).eps
    nystrom(kind(with_spectrum(values, dtype=dtype)), 20)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"op": np.ones((2, 3))}, ValueError, r"op must be a square matrix .* \(2, 3\)"),
        ({"op": np.array([[1.0, 2.0], [0.0, 1.0]])}, ValueError, "op must be symmetric"),
        ({"op": Opaque(np.triu(np.ones((30, 30))))}, ValueError, "op must be symmetric"),
        ({"op": np.array([[1.0, np.nan], [np.nan, 1.0]])}, ValueError, "op must be finite"),
        ({"op": Opaque(np.full((3, 3), np.inf))}, ValueError, "op @ V must be finite"),
        ({"op": Opaque(np.eye(3, dtype=complex))}, TypeError, "op must compute in float32 or float64"),
        ({"op": np.eye(2, dtype=complex)}, TypeError, "op must be float32 or float64"),
        ({"rank": 0}, ValueError, "rank must be at least 1"),
        ({"rank": 5}, ValueError, "rank must be at most the number of rows of op, 4, got 5"),
        ({"rank": 1.5}, TypeError, "rank must be an integer"),
        ({"oversampling": -1}, ValueError, "oversampling must be at least 0"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_misuse_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        nystrom(**{"op": np.eye(4), "rank": 1, **arguments})


def test_operators_with_products_of_the_wrong_shape_are_refused():
    class Flat(Opaque):
        def __matmul__(self, block):
            return (self.matrix @ block)[:, 0]

    with pytest.raises(ValueError, match="op @ V must have shape"):
        nystrom(Flat(np.eye(4)), 1)
