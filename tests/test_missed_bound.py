"""`missed_bound`: never below what a stored matrix left out, seldom for an operator, and close to it for kernels."""

import warnings

import numpy as np
import pytest
from scipy import stats

import kernelgrowth as kg
from kernelgrowth._backend.errors import NotConvergedWarning
from kernelgrowth.spectra import eigsh

pytestmark = pytest.mark.filterwarnings("ignore::kernelgrowth._backend.errors.NotConvergedWarning")

DTYPES = [np.float32, np.float64]


class Opaque:
    """An operator that is nothing but its product."""

    def __init__(self, matrix):
        self.matrix, self.shape, self.dtype = matrix, matrix.shape, matrix.dtype

    def __matmul__(self, block):
        return self.matrix @ block


def mirrored(matrix, vector):
    v = vector / np.linalg.norm(vector)
    mv = matrix @ v
    matrix = matrix - 2 * np.outer(v, mv) - 2 * np.outer(mv, v) + 4 * (v @ mv) * np.outer(v, v)
    return (matrix + matrix.T) / 2


def reflected(values, rng, one_sign=False):
    """A symmetric matrix with these eigenvalues; `one_sign`: the eigenvector of the first is positive."""
    first, n = np.eye(len(values))[0], len(values)
    target = rng.uniform(0.9, 1.1, n) if one_sign else rng.standard_normal(n)
    matrix = mirrored(np.diag(np.asarray(values, float)), rng.standard_normal(n) * (1 - first))
    return mirrored(matrix, first - target / np.linalg.norm(target))


def left_out(matrix, result):
    """λ_max of the matrix on the complement of the vectors returned, in float64, -inf if they are a basis."""
    wide = matrix.astype(float)
    vectors = np.linalg.qr(np.asarray(result.eigenvectors, float))[0]
    if vectors.shape[1] == len(wide):
        return -np.inf
    norm = np.linalg.norm(wide)
    images = wide @ vectors
    cross = vectors @ images.T
    projected = wide - cross - cross.T + vectors @ (vectors.T @ images) @ vectors.T - 2 * norm * vectors @ vectors.T
    return float(np.linalg.eigvalsh((projected + projected.T) / 2)[-1])


def adversarial(rng, n):
    """Values of which an iteration that is stopped early leaves out large ones."""
    i = np.arange(n)
    kind = rng.integers(7)
    if kind == 0:
        return (i + 1.0) ** -rng.uniform(0.3, 3)
    if kind == 1:
        return np.where(i < rng.integers(1, 15), 1.0, 0.0)
    if kind == 2:
        return rng.choice([1.0, -1.0], n)
    if kind == 3:
        return np.concatenate([[1.0], np.full(n - 1, 10 ** rng.uniform(-5, -0.5))])
    if kind == 4:
        return np.concatenate([[1.0], np.zeros(n - 2), [10 ** rng.uniform(-4, -0.1)]])
    if kind == 5:
        return rng.standard_normal(n)
    return np.concatenate([[1e4], rng.random(n - 1)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("one_sign", [False, True])
def test_of_a_stored_matrix_it_is_never_below_what_is_left_out(one_sign, dtype):
    eps = float(np.finfo(float).eps)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(257, 330))
        values = adversarial(rng, n)
        matrix = (reflected(values, rng, one_sign) * 10.0 ** rng.choice([-18, 0, 15])).astype(dtype)
        options = {"max_passes": int(rng.choice([1, 2, 3, 100])), "tol": float(rng.choice([1e-1, 1e-3, 1e-6]))}
        if rng.random() < 0.7:
            options["block_size"] = int(rng.integers(1, 9))
        if rng.random() < 0.7:
            vectors = np.linalg.eigh(matrix.astype(float))[1]
            chosen = {0: slice(0, 3), 1: slice(-2, None), 2: slice(100, 103)}[int(rng.integers(3))]
            options["v0"] = vectors[:, chosen]
        result = eigsh(matrix, int(rng.integers(1, 8)), seed=seed, **options)
        norm = np.linalg.norm(matrix.astype(float), 2)
        assert result.missed_bound >= left_out(matrix, result) - n * eps * norm, (seed, options)


@pytest.mark.parametrize(
    ("dtype", "n", "entry"),
    [
        (np.float32, 512, 0.8511862),
        (np.float32, 576, 0.8025132),
        (np.float64, 768, 0.7593167195844988),
        (np.float64, 1084, 0.6895738393499342),
    ],
)
def test_rounding_in_one_direction_does_not_hide_what_is_left_out(dtype, n, entry):
    """λ_1 comes out too large for these constant matrices: its square then covers for a small eigenvalue elsewhere."""
    eps = float(np.finfo(dtype).eps)
    for excess in (30, 60, 100, 140, 180, 220):
        small = np.sqrt(excess * eps) * n * entry
        matrix = np.full((n, n), entry)
        matrix[:2, :2] += small / 2 * np.array([[1, -1], [-1, 1]])
        matrix = matrix.astype(dtype)
        for seed in range(3):
            result = eigsh(matrix, 1, block_size=1, max_passes=1, v0=np.ones(n), seed=seed)
            assert result.missed_bound >= float(matrix[0, 0] - matrix[0, 1]) * (1 - 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spectrum", ["one hidden", "a few hidden", "flat", "signs", "low rank"])
def test_of_an_operator_it_is_seldom_below_what_is_left_out(spectrum, dtype):
    """Violations are counted over independent seeds; more than the 1 - 1e-7 quantile allows would be a false promise.

    Ten such tests together fail by chance with a probability below 1e-6.
    """
    n, trials = 60, 300
    values = {
        "one hidden": [1.0, *np.zeros(n - 2), 0.9],
        "a few hidden": [1.0, *np.zeros(n - 4), 0.5, 0.6, 0.6],
        "flat": np.ones(n),
        "signs": np.where(np.arange(n) % 2, 1.0, -1.0),
        "low rank": np.where(np.arange(n) < 5, 1.0, 0.0),
    }[spectrum]
    matrix = reflected(values, np.random.default_rng(0)).astype(dtype)
    top = np.linalg.eigh(matrix.astype(float))[1][:, -1]
    violations, bounds = 0, []
    for seed in range(trials):
        result = eigsh(Opaque(matrix), 1, v0=top, block_size=1, max_passes=1, seed=seed)
        largest = left_out(matrix, result)
        violations += result.missed_bound < largest * (1 - 1e-6)
        bounds.append(result.missed_bound / largest)
    assert violations <= stats.binom.ppf(1 - 1e-7, trials, 0.01)
    # Nor is it far above: the probes see ||A''||_F, times 2.2 for the confidence.
    assert np.median(bounds) <= 4 * np.sqrt(n)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", ["stored", "tiles", "factored"])
@pytest.mark.parametrize("centred", [False, True])
def test_of_kernels_it_is_close_to_the_next_eigenvalue(centred, way, dtype):
    """Within a factor of 2.5 for stored kernels, of 4 for operators, on spectra that decay like those of networks."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 20)) * np.arange(1, 21) ** -0.7 + (not centred) * 0.5
    net = kg.nets.MLP(widths=[20, 40, 1], activation="relu", sigma=0.3)
    features = kg.gradients.from_net(net, net.init(seed=0, dtype=dtype), x.astype(dtype))
    values = np.linalg.eigvalsh(np.array(kg.NTKOperator(features).gram(), float))[::-1]
    for k in (1, 5, 20):
        for tol in (1e-3, 1e-5):
            result = eigsh(kg.NTKOperator(features, products=way), k, tol=tol)
            assert values[k] <= result.missed_bound <= (2.5 if way == "stored" else 4) * values[k]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [5, 300])
def test_it_is_minus_infinity_where_nothing_is_left_out_and_about_zero_outside_the_range(n, dtype):
    rng = np.random.default_rng(0)
    factor = rng.standard_normal((n, 3)).astype(dtype)
    matrix = factor @ factor.T
    matrix = (matrix + matrix.T) / 2
    top = np.linalg.norm(matrix, 2)
    for kind in (np.asarray, Opaque):
        assert eigsh(kind(matrix), n).missed_bound == -np.inf
        assert -1e-5 * top <= eigsh(kind(matrix), 3, tol=1e-5).missed_bound <= 0.02 * top
        assert eigsh(kind(np.zeros((n, n), dtype)), 2).missed_bound == 0


def test_of_a_negative_definite_matrix_it_is_above_the_next_eigenvalue():
    for kind in (np.asarray, Opaque):
        for n in (40, 300):
            matrix = reflected(-np.arange(1.0, n + 1), np.random.default_rng(0))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NotConvergedWarning)
                result = eigsh(kind(matrix), 2, max_passes=200)
            np.testing.assert_allclose(result.eigenvalues, [-1, -2], atol=1e-3 * n)
            assert result.missed_bound >= -3 - 1e-9


def test_unfinished_iterations_have_looser_bounds():
    matrix = reflected(0.95 ** np.arange(400.0), np.random.default_rng(0))
    for kind in (np.asarray, Opaque):
        bounds = [eigsh(kind(matrix), 5, max_passes=passes).missed_bound for passes in (1, 3, 12)]
        assert bounds[0] > bounds[1] > bounds[2] >= 0.95**5 * (1 - 1e-9)
        assert bounds[2] <= 1.5 * 0.95**5
