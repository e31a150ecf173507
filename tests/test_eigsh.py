"""eigsh: LAPACK and the block Krylov iteration against spectra that are known by construction."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import LinearOperator, aslinearoperator

from kernelgrowth._backend.errors import NotConvergedWarning
from kernelgrowth.spectra import EigenResult, eigsh

MULTIPLE = [10.0, 10.0, 10.0, 9.0, 8.0, *np.linspace(7.0, 0.0, 45)]


def with_spectrum(values, seed=0, dtype=np.float64):
    """A symmetric matrix with these eigenvalues and random eigenvectors, and the eigenvalues in descending order."""
    values = np.asarray(values, dtype=float)
    basis = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values), len(values))))[0]
    matrix = basis * values @ basis.T
    return ((matrix + matrix.T) / 2).astype(dtype), np.sort(values)[::-1]


def reflected(values):
    """The same for large matrices, cheaply: a diagonal matrix between two Householder reflections."""
    u = np.random.default_rng(0).standard_normal(len(values))
    u /= np.linalg.norm(u)
    du = values * u
    matrix = np.diag(values) - 2 * np.outer(u, du) - 2 * np.outer(du, u) + 4 * (u @ du) * np.outer(u, u)
    return (matrix + matrix.T) / 2, np.sort(values)[::-1]


def check(result, matrix, expected, rtol):
    k = len(expected)
    scale = float(max(np.abs(expected).max(), np.abs(matrix).max(), np.finfo(float).tiny))
    matrix = matrix.astype(float)
    values, vectors = np.asarray(result.eigenvalues, float), np.asarray(result.eigenvectors, float)
    assert result.eigenvalues.dtype == result.eigenvectors.dtype == result.residuals.dtype
    assert vectors.shape == (len(matrix), k)
    np.testing.assert_allclose(values, expected, atol=rtol * scale, rtol=0)
    assert (np.diff(values) <= 0).all()
    eps = np.finfo(result.eigenvectors.dtype).eps
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(k), atol=50 * eps)
    residuals = np.linalg.norm(matrix / scale @ vectors - vectors * (values / scale), axis=0)
    np.testing.assert_allclose(np.asarray(result.residuals, float) / scale, residuals, atol=20 * eps)
    assert result.converged.all()
    assert result.converged.dtype == bool
    left_out = np.sort(np.linalg.eigvalsh(matrix / scale))[::-1][k:]
    assert result.missed_bound / scale >= (left_out[0] - 1e-12 if len(left_out) else -np.inf)
    assert len(left_out) or result.missed_bound == -np.inf


class Opaque:
    """An operator that is nothing but its product, and counts it."""

    def __init__(self, matrix):
        self.matrix, self.shape, self.dtype = matrix, matrix.shape, matrix.dtype
        self.widths = []

    def __matmul__(self, block):
        assert block.dtype == self.dtype
        self.widths.append(block.shape[1])
        return self.matrix @ block


class WithGram(Opaque):
    """An operator whose matrix can be had."""

    def gram(self):
        return self.matrix


SPECTRA = st.one_of(
    st.lists(st.sampled_from([10.0, 9.0, 8.0, 1.0, 1e-3, 0.0]), min_size=1, max_size=40),
    st.lists(st.floats(-3, 5, allow_subnormal=False), min_size=1, max_size=40),
)


@given(SPECTRA, st.data(), st.sampled_from([np.float32, np.float64]), st.sampled_from([np.asarray, Opaque, WithGram]))
@settings(deadline=None, max_examples=60)
def test_agrees_with_the_spectrum_it_was_built_from(values, data, dtype, kind):
    matrix, expected = with_spectrum(values, seed=data.draw(st.integers(0, 99)), dtype=dtype)
    k = data.draw(st.integers(1, len(values)))
    tol = 1e-6 if dtype == np.float64 else 1e-5
    with warnings.catch_warnings():
        # An indefinite matrix can have its largest eigenvalue at zero, against which no residual is small.
        warnings.simplefilter("error" if expected[0] > 1e-2 or not expected.any() else "ignore")
        result = eigsh(kind(matrix), k, tol=tol)
    if expected[0] > 1e-2:
        check(result, matrix, expected[:k], rtol=1e-5 if dtype == np.float32 else 1e-9)


@pytest.mark.parametrize("block_size", [None, 1, 2, 3, 5])
@pytest.mark.parametrize("kind", [np.asarray, Opaque])
def test_repeated_eigenvalues_are_not_missed(kind, block_size):
    matrix, expected = with_spectrum(MULTIPLE)
    result = eigsh(kind(matrix), 5, block_size=block_size, max_passes=1000)
    np.testing.assert_allclose(result.eigenvalues, [10, 10, 10, 9, 8], atol=1e-9)
    check(result, matrix, expected[:5], rtol=1e-9)


@given(st.integers(0, 10**6))
@settings(deadline=None, max_examples=30)
def test_narrow_blocks_and_misleading_starts_miss_nothing(seed):
    rng = np.random.default_rng(seed)
    matrix, expected = with_spectrum(rng.choice([10, 9.9, 8, 3, 1e-3, 0, -2], size=rng.integers(8, 50)), seed)
    k = int(rng.integers(1, 6))
    # Exact eigenvectors of the bottom of the spectrum: an iteration from them alone would stay there.
    start = np.linalg.eigh(matrix)[1][:, :3]
    result = eigsh(Opaque(matrix), k, block_size=int(rng.integers(1, 4)), v0=start, max_passes=3000, seed=seed)
    np.testing.assert_allclose(result.eigenvalues, expected[:k], atol=1e-5)


def test_large_stored_matrices_are_iterated_on_with_few_passes():
    matrix, expected = reflected(np.arange(1.0, 1102) ** -2.0)
    result = eigsh(matrix, 10)
    check(result, matrix, expected[:10], rtol=1e-9)
    assert 0 < result.passes <= 15


def test_a_large_fraction_of_a_large_stored_matrix_is_solved_directly():
    matrix, expected = reflected(np.linspace(0, 1, 1001))
    result = eigsh(matrix, 130)
    assert result.passes == 0
    check(result, matrix, expected[:130], rtol=1e-12)


def test_passes_are_the_products_made_and_at_most_as_wide_as_asked():
    matrix, _ = with_spectrum(0.8 ** np.arange(200))
    operator = Opaque(matrix)
    result = eigsh(operator, 6, block_size=4)
    assert result.passes == len(operator.widths)
    assert max(operator.widths) <= 4
    assert eigsh(WithGram(matrix), 6).passes == 0


def test_a_warm_start_is_searched_as_well_and_costs_no_more():
    matrix, _ = with_spectrum(0.9 ** np.arange(300))
    cold, warm = Opaque(matrix), Opaque(matrix + 1e-8 * np.eye(300))
    result = eigsh(cold, 8)
    again = eigsh(warm, 8, v0=result.eigenvectors)
    assert again.converged.all()
    np.testing.assert_allclose(again.eigenvalues, result.eigenvalues + 1e-8, atol=1e-12)
    assert sum(warm.widths) <= sum(cold.widths)


def test_same_seed_gives_same_bits():
    matrix, _ = with_spectrum(MULTIPLE)
    first, second = (eigsh(Opaque(matrix), 4, seed=7) for _ in range(2))
    np.testing.assert_array_equal(first.eigenvectors, second.eigenvectors)


@pytest.mark.parametrize(("dtype", "scale"), [(np.float32, 1e-20), (np.float32, 1e-30), (np.float64, 1e-200)])
@pytest.mark.parametrize("kind", [np.asarray, Opaque])
def test_tiny_kernels_have_the_spectrum_of_large_ones(dtype, scale, kind):
    matrix, expected = with_spectrum([5.0, 3.0, 3.0, 1.0, *[0.1] * 20])
    result = eigsh(kind((matrix * scale).astype(dtype)), 4, tol=1e-5)
    np.testing.assert_allclose(result.eigenvalues / dtype(scale), expected[:4], rtol=1e-5)
    assert result.converged.all()


@given(st.integers(-60, 60))
@settings(deadline=None, max_examples=10)
def test_scaling_by_a_power_of_two_is_exact(exponent):
    matrix, _ = with_spectrum(np.arange(12.0))
    once, scaled = eigsh(matrix, 3), eigsh(np.ldexp(matrix, exponent), 3)
    np.testing.assert_array_equal(np.ldexp(once.eigenvalues, exponent), scaled.eigenvalues)
    np.testing.assert_array_equal(once.eigenvectors, scaled.eigenvectors)


@pytest.mark.parametrize("kind", [np.asarray, Opaque])
@pytest.mark.parametrize("n", [1, 2, 30])
def test_zero_matrix(kind, n):
    result = eigsh(kind(np.zeros((n, n))), n)
    np.testing.assert_array_equal(result.eigenvalues, 0)
    np.testing.assert_allclose(result.eigenvectors.T @ result.eigenvectors, np.eye(n), atol=1e-14)
    assert result.converged.all()
    assert not result.residuals.any()


def test_one_by_one_and_negative():
    for kind in (np.asarray, Opaque):
        result = eigsh(kind(np.array([[-3.0]])), 1)
        assert result.eigenvalues == [-3.0]
        assert result.converged.all()


def test_fewer_eigenvalues_than_asked_for_are_above_zero():
    rng = np.random.default_rng(0)
    factor = rng.standard_normal((80, 3)).astype(np.float32)
    matrix = factor @ factor.T
    for kind in (np.asarray, Opaque):
        result = eigsh(kind(matrix), 6)
        check(result, matrix, np.linalg.eigvalsh(matrix.astype(float))[::-1][:6], rtol=1e-5)


def test_unfinished_iterations_warn_and_hand_over_what_they_have():
    matrix, _ = with_spectrum(np.linspace(0, 1, 400))
    with pytest.warns(NotConvergedWarning, match="residual above the tolerance") as caught:
        result = eigsh(Opaque(matrix), 5, max_passes=3)
    assert isinstance(result, EigenResult)
    assert result.eigenvectors.shape == (400, 5)
    assert not result.converged.all()
    assert caught[0].message.partial is result
    residuals = np.linalg.norm(matrix @ result.eigenvectors - result.eigenvectors * result.eigenvalues, axis=0)
    np.testing.assert_allclose(result.residuals, residuals, atol=1e-12)


def test_an_unfinished_search_for_left_out_eigenvalues_warns():
    matrix, _ = with_spectrum([1.0, *np.linspace(0, 0.999, 300)])
    top = np.linalg.eigh(matrix)[1][:, -1]
    with pytest.warns(NotConvergedWarning, match="search for left-out eigenvalues") as caught:
        result = eigsh(Opaque(matrix), 1, v0=top, block_size=1, max_passes=8)
    assert result.converged.all()
    assert caught[0].message.partial is result


def test_scipy_operators_and_lists_are_taken():
    matrix, expected = with_spectrum(MULTIPLE)
    for operator in (aslinearoperator(matrix), LinearOperator(matrix.shape, matvec=lambda v: matrix @ v)):
        np.testing.assert_allclose(eigsh(operator, 2).eigenvalues, expected[:2], atol=1e-9)
    assert eigsh([[2.0, 0.0], [0.0, 1.0]], 1).eigenvalues == [2.0]
    assert eigsh(np.diag([2, 1]), 1).eigenvalues == [2.0]


def test_array_kinds_go_back_as_they_came():
    class Namespace:
        @staticmethod
        def from_dlpack(array):
            return Foreign(np.asarray(array))

    class Foreign:
        def __init__(self, array):
            self.array = array

        def __dlpack__(self, **options):
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

        def __array_namespace__(self):
            return Namespace

    result = eigsh(Foreign(np.diag([3.0, 2.0, 1.0])), 2)
    assert isinstance(result.eigenvectors, Foreign)
    np.testing.assert_allclose(result.eigenvalues.array, [3.0, 2.0])


def test_read_only_and_strided_matrices_are_left_alone():
    matrix, expected = with_spectrum(MULTIPLE)
    wide = np.zeros((100, 150))
    wide[::2, ::3] = matrix
    view = wide[::2, ::3]
    view.flags.writeable = False
    copy = view.copy()
    np.testing.assert_allclose(eigsh(view, 3).eigenvalues, expected[:3])
    np.testing.assert_array_equal(view, copy)


def test_asymmetry_is_refused_and_rounding_is_not():
    matrix, expected = with_spectrum(MULTIPLE)
    wrong = matrix.copy()
    wrong[3, 7] += 0.1
    with pytest.raises(ValueError, match=r"A must be symmetric, got .* at \(3, 7\)"):
        eigsh(wrong, 2)
    with pytest.raises(ValueError, match="A must be symmetric"):
        eigsh(Opaque(np.triu(matrix)), 2)
    rounded = matrix.copy()
    rounded[3, 7] += 1e-12
    np.testing.assert_allclose(eigsh(rounded, 2).eigenvalues, expected[:2])
    large = np.eye(1100)
    large[700, 20] = 1.0
    with pytest.raises(ValueError, match=r"at \(20, 700\)"):
        eigsh(large, 2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"A": np.ones((2, 3))}, ValueError, r"A must be a square matrix .* \(2, 3\)"),
        ({"A": np.ones(3)}, ValueError, "A must have 2 dimension"),
        ({"A": np.ones((0, 0))}, ValueError, "at least one row"),
        ({"A": np.array([[1.0, np.nan], [np.nan, 1.0]])}, ValueError, "A must be finite"),
        ({"A": np.eye(2, dtype=complex)}, TypeError, "A must be float32 or float64"),
        ({"A": Opaque(np.eye(3, dtype=complex))}, TypeError, "A must compute in float32 or float64"),
        ({"A": Opaque(np.ones((2, 3)))}, ValueError, "A must be a square matrix"),
        ({"A": Opaque(np.full((3, 3), np.inf))}, ValueError, "A @ V must be finite"),
        ({"k": 0}, ValueError, "k must be at least 1"),
        ({"k": 5}, ValueError, "k must be at most the number of rows of A, 4, got 5"),
        ({"k": 1.5}, TypeError, "k must be an integer"),
        ({"tol": -1.0}, ValueError, "tol must be at least 0"),
        ({"v0": np.ones(3)}, ValueError, "v0 must have the 4 rows of A"),
        ({"block_size": 0}, ValueError, "block_size must be at least 1"),
        ({"max_passes": 0}, ValueError, "max_passes must be at least 1"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_misuse_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        eigsh(**{"A": np.eye(4), "k": 1, **arguments})


def test_operators_with_products_of_the_wrong_shape_are_refused():
    class Flat(Opaque):
        def __matmul__(self, block):
            return (self.matrix @ block)[:, 0]

    with pytest.raises(ValueError, match="A @ V must have shape"):
        eigsh(Flat(np.eye(4)), 1)
