"""eigsh on drawn spectra against float64 LAPACK: values, subspaces, residuals, what is left out; and misbehaving input.

Stored matrices up to 256 rows go to LAPACK, larger ones and opaque operators to the block Krylov iteration.
"""

import os
import signal
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import aslinearoperator

import kernelgrowth as kg
from kernelgrowth._backend.errors import NotConvergedWarning, SolveInterrupted
from kernelgrowth.spectra import EigenResult, eigsh

DTYPES = [np.float32, np.float64]
EPS = float(np.finfo(float).eps)
# Residuals and values are those of products as they were made, whose rounding is at most this many eps of the dtype, in
# units of λ_1: runs of 256 products are summed in the dtype, and equal terms round in one direction.
PRODUCT_ROUNDING = 256


def with_spectrum(values, seed, dtype=np.float64):
    """A symmetric matrix with about these eigenvalues: a diagonal one between a few Householder reflections."""
    rng = np.random.default_rng(seed)
    matrix = np.diag(np.asarray(values, float))
    for _ in range(3):
        u = rng.standard_normal(len(matrix))
        u /= np.linalg.norm(u)
        mu = matrix @ u
        matrix += -2 * np.outer(u, mu) - 2 * np.outer(mu, u) + 4 * (u @ mu) * np.outer(u, u)
    return ((matrix + matrix.T) / 2).astype(dtype)


class Opaque:
    """An operator that is nothing but its product; `at` a product, counted from one, `instead` has the say."""

    def __init__(self, matrix, at=0, instead=None):
        self.matrix, self.shape, self.dtype = matrix, matrix.shape, matrix.dtype
        self.products, self.at, self.instead = 0, at, instead

    def __matmul__(self, block):
        self.products += 1
        product = self.matrix @ block
        return self.instead(product) if self.products == self.at else product


def raising(error):
    def instead(product):
        raise error

    return instead


def left_out(matrix, values):
    """The largest eigenvalue once those nearest to the returned ones are gone, -inf if none is left."""
    rest = np.linalg.eigvalsh(matrix.astype(float))
    for value in np.sort(np.asarray(values, float))[::-1]:
        rest = np.delete(rest, np.abs(rest - value).argmin())
    return rest.max(initial=-np.inf)


def check_is_honest(result, matrix):
    """What holds of every result, converged or not."""
    eps, wide = float(np.finfo(result.eigenvectors.dtype).eps), matrix.astype(float)
    # Of order one, so that no square underflows.
    scale = max(np.abs(wide).max(), np.finfo(float).tiny)
    wide = wide / scale
    values = np.asarray(result.eigenvalues, float) / scale
    vectors = np.asarray(result.eigenvectors, float)
    norm = max(np.abs(np.linalg.eigvalsh(wide)).max(), np.finfo(float).tiny)
    assert np.isfinite(values).all()
    assert (np.diff(values) <= 0).all()
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(vectors.shape[1]), atol=128 * eps)
    residuals = np.linalg.norm(wide @ vectors - vectors * values, axis=0)
    reported = np.asarray(result.residuals, float) / scale
    np.testing.assert_allclose(reported, residuals, rtol=1e-3, atol=PRODUCT_ROUNDING * eps * norm)
    bound = result.missed_bound / scale
    assert not np.isnan(bound)
    if vectors.shape[1] == len(matrix):
        assert bound == -np.inf
    else:
        # Of two that are closer than the values' rounding, the wrong one may count as left out.
        assert bound >= left_out(wide, values) - (len(matrix) * EPS + eps) * norm


def check(result, matrix, tol):
    """What holds of a converged result, with the values of LAPACK in float64."""
    check_is_honest(result, matrix)
    assert result.converged.all()
    k, eps = len(result.eigenvalues), float(np.finfo(result.eigenvectors.dtype).eps)
    scale = max(np.abs(matrix.astype(float)).max(), np.finfo(float).tiny)
    values, vectors = np.linalg.eigh(matrix.astype(float) / scale)
    values, vectors = values[::-1], vectors[:, ::-1]
    top = max(np.abs(values).max(), np.finfo(float).tiny)
    error = (tol + PRODUCT_ROUNDING * eps) * top
    np.testing.assert_allclose(np.asarray(result.eigenvalues, float) / scale, values[:k], rtol=0, atol=error)
    for i in range(1, k + 1):
        gap = values[i - 1] - values[i] if i < len(values) else np.inf
        if 0.02 * top < gap < np.inf:
            ours, theirs = np.asarray(result.eigenvectors[:, :i], float), vectors[:, :i]
            distance = np.linalg.norm(ours - theirs @ (theirs.T @ ours), 2)
            # Davis and Kahan's sin θ theorem.
            assert distance <= 2 * np.sqrt(i) * error / gap


@st.composite
def spectra(draw, least, most):
    n = draw(st.integers(least, most))
    kind = draw(st.sampled_from(["clusters", "multiple", "low rank", "zero", "power law", "geometric", "indefinite"]))
    seed = draw(st.integers(0, 10**6))
    rng = np.random.default_rng(seed)
    i = np.arange(n)
    if kind == "clusters":
        centres = rng.choice([10.0, 9.0, 5.0, 1.0, 0.1], n)
        values = centres * (1 + draw(st.sampled_from([0, 1e-12, 1e-7, 1e-4])) * rng.standard_normal(n))
    elif kind == "multiple":
        values = np.repeat(np.linspace(5, 0, n), draw(st.integers(1, 10)))[:n]
    elif kind == "low rank":
        values = np.where(i < draw(st.integers(1, 12)), 1 + rng.random(n), 0)
    elif kind == "zero":
        values = np.zeros(n)
    elif kind == "power law":
        values = (i + 1.0) ** -draw(st.sampled_from([0.5, 1.0, 2.0, 4.0]))
    elif kind == "geometric":
        values = draw(st.sampled_from([0.2, 0.6, 0.9])) ** i
    else:
        values = np.concatenate([[3, 2, 2, 1.5], -rng.random(n)])[:n]
    return values, seed


def drawn(data, least, most, dtype):
    values, seed = data.draw(spectra(least, most))
    scale = 10.0 ** data.draw(st.sampled_from([-20, -3, 0, 4, 20]), label="log10 scale")
    return (with_spectrum(values, seed) * scale).astype(dtype)


@given(st.data(), st.sampled_from(DTYPES), st.sampled_from(["stored", "opaque", "scipy", "sparse"]))
@settings(deadline=None, max_examples=80)
def test_small_spectra(data, dtype, kind):
    matrix = drawn(data, 1, 60, dtype)
    k = data.draw(st.sampled_from(sorted({1, min(5, len(matrix)), max(1, len(matrix) - 3), len(matrix)})), label="k")
    operator = {"stored": np.asarray, "opaque": Opaque, "scipy": aslinearoperator, "sparse": scipy.sparse.csr_array}
    tol = 1e-5 if dtype == np.float32 else 1e-9
    check(eigsh(operator[kind](matrix), k, tol=tol), matrix, tol)


@given(st.data(), st.sampled_from(DTYPES), st.sampled_from(["stored", "fortran", "opaque"]))
@settings(deadline=None, max_examples=40)
def test_large_spectra(data, dtype, kind):
    matrix = drawn(data, 260, 400, dtype)
    k = data.draw(st.sampled_from([1, 2, 7, 10]), label="k")
    operator = {"stored": np.asarray, "fortran": np.asfortranarray, "opaque": Opaque}[kind](matrix)
    tol = 1e-5 if dtype == np.float32 else 1e-8
    result = eigsh(operator, k, tol=tol, max_passes=400)
    assert result.passes > 0
    check(result, matrix, tol)


@given(st.data(), st.sampled_from(DTYPES), st.sampled_from([np.asarray, Opaque]))
@settings(deadline=None, max_examples=40)
def test_narrow_blocks_and_starts_of_any_kind_miss_nothing(data, dtype, kind):
    matrix = drawn(data, 260, 300, dtype)
    k, width = data.draw(st.integers(1, 6), label="k"), data.draw(st.integers(1, 8), label="width")
    first = data.draw(st.sampled_from([0, 1, 100, 250]), label="first eigenvector of v0")
    vectors = np.linalg.eigh(matrix.astype(float) / max(float(np.abs(matrix).max()), 1e-300))[1][:, ::-1]
    v0 = vectors[:, first : first + data.draw(st.integers(1, 4), label="vectors")]
    passes = data.draw(st.sampled_from([1, 2, 5, 50]), label="max_passes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotConvergedWarning)
        result = eigsh(kind(matrix), k, v0=v0, block_size=width, max_passes=passes, tol=1e-5)
    check_is_honest(result, matrix)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [50, 300])
@pytest.mark.parametrize("kind", [np.asarray, Opaque])
def test_a_repeated_eigenvalue_comes_as_often_as_it_is_repeated(kind, n, dtype):
    matrix = with_spectrum([10, 10, 10, 9, 8, *np.linspace(7, 0, n - 5)], 0, dtype)
    result = eigsh(kind(matrix), 5, tol=1e-5, max_passes=200)
    np.testing.assert_allclose(result.eigenvalues, [10, 10, 10, 9, 8], atol=1e-4)
    check(result, matrix, 1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_duplicated_rows(dtype):
    rng = np.random.default_rng(0)
    rows = np.repeat(rng.standard_normal((65, 40)), 5, axis=0)
    matrix = (rows @ rows.T).astype(dtype)
    matrix = (matrix + matrix.T) / 2
    for kind in (np.asarray, Opaque):
        result = eigsh(kind(matrix), 40, tol=1e-5)
        check(result, matrix, 1e-5)
        # 325 rows of rank 40: nothing is left out but zeros and rounding.
        assert result.missed_bound <= 0.02 * result.eigenvalues[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("start", ["none", "bottom", "top"])
def test_matrices_of_low_rank_are_searched_without_being_called_asymmetric(start, k, dtype):
    """Outside the answer is nothing but rounding, which is not symmetric."""
    for seed in range(10):
        factor = np.random.default_rng(seed).standard_normal((280, 3)).astype(dtype)
        matrix = factor @ factor.T
        matrix = (matrix + matrix.T) / 2
        vectors = np.linalg.eigh(matrix)[1]
        v0 = {"none": None, "bottom": vectors[:, :2], "top": vectors[:, -2:]}[start]
        for kind in (np.asarray, Opaque):
            check_is_honest(eigsh(kind(matrix), k, v0=v0, block_size=3, tol=1e-5), matrix)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "entry"), [(522, 0.7562189), (589, 0.763173), (554, 0.7618745), (300, 1.0)])
def test_constant_matrices_whose_products_round_in_one_direction(n, entry, dtype):
    matrix = np.full((n, n), entry, dtype)
    for k in (1, 7):
        for options in ({}, {"block_size": 3}, {"v0": np.ones(n)}, {"v0": np.ones(n), "block_size": 3}):
            result = eigsh(matrix, k, tol=1e-4, **options)
            np.testing.assert_allclose(result.eigenvalues[0], n * float(matrix[0, 0]), rtol=1e-4)
            check_is_honest(result, matrix)
            assert result.converged.all()


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("first", [100, 300])
def test_residuals_are_true_where_a_start_holds_eigenvectors_of_the_bottom(ratio, first):
    """Their images are rounding, which must not take the place of what is short but real in other images."""
    matrix = with_spectrum(ratio ** np.arange(400.0), 3)
    v0 = np.linalg.eigh(matrix)[1][:, ::-1][:, first : first + 3]
    for tol in (1e-6, 1e-9, 1e-12):
        result = eigsh(matrix, 8, v0=v0, tol=tol)
        residuals = np.linalg.norm(matrix @ result.eigenvectors - result.eigenvectors * result.eigenvalues, axis=0)
        np.testing.assert_allclose(result.residuals, residuals, rtol=0, atol=PRODUCT_ROUNDING * EPS)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [np.asarray, Opaque])
def test_pairs_that_are_not_converged_never_go_without_a_warning(kind, dtype):
    """Near the rounding of the dtype, rounding a value can lift its residual above the tolerance."""
    eps = float(np.finfo(dtype).eps)
    matrix = with_spectrum(1 / np.arange(1.0, 301), 5, dtype)
    for factor in (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = eigsh(kind(matrix), 6, tol=factor * eps, max_passes=30)
        assert result.converged.all() == (not caught)
        check_is_honest(result, matrix)


def _mlp_operator(n, way, dtype, outputs, preconditioned):
    rng = np.random.default_rng(n)
    net = kg.nets.MLP(widths=[6, 10, outputs], activation="relu", sigma=0.7)
    params = net.init(seed=1, dtype=dtype)
    features = kg.gradients.from_net(net, params, rng.standard_normal((n, 6)).astype(dtype))
    weights = None
    if preconditioned:
        shapes = {name: (block.backprops.shape[-1], block.activations.shape[-1]) for name, block in features.items()}
        weights = {name: (0.1 + rng.random(shape)).astype(dtype) for name, shape in shapes.items()}
    return kg.NTKOperator(features, products=way, preconditioner=weights)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", ["stored", "tiles", "factored"])
@pytest.mark.parametrize("outputs", [1, 2])
def test_kernels_have_the_spectrum_of_their_gram_matrix(way, outputs, dtype):
    for n, preconditioned in ((1, False), (30, False), (30, True), (150, False), (290, True)):
        operator = _mlp_operator(n, way, dtype, outputs, preconditioned)
        matrix = np.array(_mlp_operator(n, "stored", dtype, outputs, preconditioned).gram(), float)
        top = np.linalg.norm(matrix, 2)
        for k in sorted({1, min(9, n * outputs)}):
            result = eigsh(operator, k, tol=1e-5)
            assert result.converged.all()
            # The ways agree within the accuracy promise of products: 1e-5 in float32, 1e-12 in float64.
            slack = (1e-5 if dtype == np.float32 else 1e-12) * top
            np.testing.assert_allclose(
                result.eigenvalues, np.linalg.eigvalsh(matrix)[::-1][:k], rtol=0, atol=1e-5 * top + slack
            )
            assert result.missed_bound >= left_out(matrix, result.eigenvalues) - slack


MISBEHAVING = {
    "nan": (lambda product: np.where(np.arange(product.size).reshape(product.shape) == 7, np.nan, product), "finite"),
    "inf": (lambda product: product + np.inf, "finite"),
    "too narrow": (lambda product: product[:, :1], "must have shape"),
    "flat": (np.ravel, "must have shape"),
    "transposed": (np.transpose, "must have shape"),
    "nothing": (lambda product: None, "must have shape"),
    "its own error": (raising(ValueError("out of ink")), "out of ink"),
}


@pytest.mark.parametrize("name", MISBEHAVING)
@pytest.mark.parametrize("at", [1, 4])
def test_operators_that_misbehave_are_refused_whenever_they_do(name, at):
    instead, message = MISBEHAVING[name]
    matrix = with_spectrum(np.linspace(0, 1, 120), 0)
    with pytest.raises(ValueError, match=message):
        eigsh(Opaque(matrix, at, instead), 3, max_passes=40)


def test_complex_products_are_refused():
    matrix = with_spectrum(np.linspace(0, 1, 50), 0)
    with pytest.raises(TypeError, match="A @ V must be real numbers, got dtype complex128"):
        eigsh(Opaque(matrix, 2, lambda product: product + 1j), 3)


@pytest.mark.parametrize("error", [SystemExit(3), MemoryError("full"), ZeroDivisionError()])
def test_what_an_operator_raises_comes_out(error):
    with pytest.raises(type(error)):
        eigsh(Opaque(with_spectrum(np.linspace(0, 1, 120), 0), 3, raising(error)), 3)


@pytest.mark.parametrize("convert", [np.asfortranarray, lambda p: np.repeat(p, 2, axis=1)[:, ::2], np.ndarray.tolist])
def test_products_come_in_any_layout(convert):
    class Converting(Opaque):
        def __matmul__(self, block):
            return convert(self.matrix @ block)

    matrix = with_spectrum([5.0, 4.0, 3.0, *np.linspace(1, 0, 60)], 0)
    expected, result = eigsh(Opaque(matrix), 3), eigsh(Converting(matrix), 3)
    np.testing.assert_array_equal(result.eigenvectors, expected.eigenvectors)


def test_products_that_are_more_precise_or_integers_are_taken():
    class Wider(Opaque):
        def __matmul__(self, block):
            assert block.dtype == np.float32
            return self.matrix.astype(float) @ block

    matrix = with_spectrum([5.0, 4.0, 3.0, *np.linspace(1, 0, 60)], 0, np.float32)
    result = eigsh(Wider(matrix), 3, tol=1e-5)
    assert result.eigenvectors.dtype == np.float32
    check(result, matrix, 1e-5)
    result = eigsh(Opaque(np.diag(np.arange(40))), 3)
    np.testing.assert_allclose(result.eigenvalues, [39, 38, 37])
    result = eigsh(Opaque(np.zeros((40, 40), bool)), 3)
    assert not result.eigenvalues.any()


def test_operators_may_write_to_what_they_are_given_and_return_one_buffer():
    class Rude(Opaque):
        def __matmul__(self, block):
            self.buffer = getattr(self, "buffer", {})
            out = self.buffer.setdefault(block.shape, np.empty_like(block))
            np.matmul(self.matrix, block, out=out)
            block[:] = np.nan
            return out

    matrix = with_spectrum([5.0, 4.0, 3.0, *np.linspace(1, 0, 60)], 0)
    np.testing.assert_array_equal(eigsh(Rude(matrix), 3).eigenvectors, eigsh(Opaque(matrix), 3).eigenvectors)


def test_operators_may_solve_eigenproblems_of_their_own():
    class Nested(Opaque):
        def __matmul__(self, block):
            self.inner = eigsh(Opaque(self.matrix[:40, :40]), 2)
            eigsh(self.matrix, 2)
            return self.matrix @ block

    matrix = with_spectrum([5.0, 4.0, 3.0, *np.linspace(1, 0, 300)], 0)
    nested = Nested(matrix)
    np.testing.assert_array_equal(eigsh(nested, 3).eigenvectors, eigsh(Opaque(matrix), 3).eigenvectors)
    np.testing.assert_array_equal(nested.inner.eigenvectors, eigsh(Opaque(matrix[:40, :40]), 2).eigenvectors)


def test_solves_in_several_threads_are_those_of_one():
    matrices = [with_spectrum(0.9 ** np.arange(300), seed) for seed in range(4)]
    expected = [eigsh(matrix, 4).eigenvectors for matrix in matrices]
    results = [None] * 4

    def solve(i):
        results[i] = eigsh(Opaque(matrices[i]) if i % 2 else matrices[i], 4)

    threads = [threading.Thread(target=solve, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in (0, 2):
        np.testing.assert_array_equal(results[i].eigenvectors, expected[i])
    for i in range(4):
        check(results[i], matrices[i], 1e-6)


SOLVES = """
import hashlib, os, sys, numpy as np
import kernelgrowth as kg
def digest():
    bits = hashlib.sha256()
    for dtype in (np.float32, np.float64):
        a = np.random.default_rng(0).standard_normal((700, 300)).astype(dtype)
        for result in (kg.eigsh(a @ a.T, 12, tol=1e-5), kg.eigsh(a @ a.T, 3, tol=1e-5, block_size=2, v0=np.ones(700))):
            for part in (result.eigenvalues, result.eigenvectors, result.residuals):
                bits.update(np.ascontiguousarray(part).tobytes())
    return bits.hexdigest()
"""


def test_results_have_the_same_bits_for_any_number_of_threads():
    digests = set()
    for threads in ("1", "2", "3"):
        env = {**os.environ, "KERNELGROWTH_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": "1"}
        digests.add(subprocess.check_output([sys.executable, "-c", SOLVES + "print(digest())"], env=env, text=True))
    assert len(digests) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork is missing on this platform")
def test_a_forked_child_solves_like_its_parent():
    script = SOLVES + (
        "before = digest()\n"
        "child = os.fork()\n"
        "if child == 0: os._exit(0 if digest() == before else 1)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0\n"
        "assert digest() == before\n"
    )
    env = {**os.environ, "KERNELGROWTH_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-W", "ignore::DeprecationWarning", "-c", script], env=env, check=True, timeout=120)


@pytest.mark.parametrize("options", [{}, {"v0": np.eye(300)[:, :2]}, {"block_size": 2}, {"block_size": 2, "seed": 3}])
def test_an_interruption_at_any_product_hands_over_what_was_found(options):
    """Also in the search for left-out eigenvalues, and among the probes: the pairs found before stay known."""
    matrix = with_spectrum(np.linspace(0, 1, 300) ** 3, 0)
    whole = Opaque(matrix)
    eigsh(whole, 4, max_passes=200, tol=1e-4, **options)
    interrupted = KeyboardInterrupt()
    for at in range(1, whole.products + 1):
        operator = Opaque(matrix, at, raising(interrupted))
        with pytest.raises(KeyboardInterrupt) as raised:
            eigsh(operator, 4, max_passes=200, tol=1e-4, **options)
        assert operator.products == at
        if raised.value is interrupted:
            # There is nothing to hand over yet: a first block that is wider than a product takes several.
            assert at <= (1 if "block_size" not in options else 3)
            continue
        assert isinstance(raised.value, SolveInterrupted)
        assert isinstance(raised.value.partial, EigenResult)
        assert raised.value.__cause__ is interrupted
        check_is_honest(raised.value.partial, matrix)


def test_an_interruption_among_the_probes_leaves_their_part_of_the_bound_unknown():
    """A hidden eigenvalue that only the probes would have told of."""
    n = 200
    matrix = np.diag([1.0, *np.zeros(n - 2), 0.9])
    top = np.eye(n)[:, :1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotConvergedWarning)
        whole = Opaque(matrix)
        eigsh(whole, 1, v0=top, block_size=1, max_passes=1)
    for at in range(3, whole.products + 1):
        with pytest.raises(SolveInterrupted) as raised:
            eigsh(Opaque(matrix, at, raising(KeyboardInterrupt())), 1, v0=top, block_size=1, max_passes=1)
        check_is_honest(raised.value.partial, matrix)


@pytest.mark.parametrize(("k", "block_size"), [(8, None), (8, 2), (60, None)])
def test_ctrl_c_ends_the_iteration_on_a_stored_matrix_within_half_a_second(k, block_size):
    matrix = with_spectrum(np.linspace(0, 1, 1200), 0)
    sent = []

    def interrupt():
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(0.4, interrupt)
    timer.start()
    try:
        with pytest.raises(SolveInterrupted) as raised:
            eigsh(matrix, k, tol=0.0, max_passes=10**6, block_size=block_size)
        assert time.perf_counter() - sent[0] < 0.5
    finally:
        timer.join()
    partial = raised.value.partial
    assert partial.eigenvectors.shape == (1200, k)
    check_is_honest(partial, matrix)


def test_ctrl_c_ends_the_iteration_on_an_operator_that_takes_its_time():
    class Slow(Opaque):
        def __matmul__(self, block):
            time.sleep(0.01)
            return self.matrix @ block

    matrix = with_spectrum(np.linspace(0, 1, 300), 0)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(SolveInterrupted) as raised:
            eigsh(Slow(matrix), 3, tol=0.0, max_passes=10**6)
    finally:
        timer.join()
    check_is_honest(raised.value.partial, matrix)


@pytest.mark.parametrize("time_limit", [0.0, 0.05])
@pytest.mark.parametrize("kind", [np.asarray, Opaque])
def test_a_time_limit_leaves_the_best_pairs(kind, time_limit):
    matrix = with_spectrum(np.linspace(0, 1, 400), 0)
    with pytest.warns(NotConvergedWarning) as caught:
        result = eigsh(kind(matrix), 5, tol=0.0, max_passes=10**6, time_limit=time_limit)
    assert caught[0].message.partial is result
    assert not result.converged.all()
    check_is_honest(result, matrix)


def test_values_beyond_the_range_of_the_dtype_are_not_returned_in_silence():
    matrix = np.full((300, 300), 3e38, np.float32)
    with pytest.raises((ValueError, OverflowError, RuntimeWarning)):
        eigsh(matrix, 2)
