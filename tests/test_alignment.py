"""Alignments, distances, overlaps and effective ranks against their formulas written out with explicit matrices."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelgrowth.diagnostics import (
    effective_rank,
    eigenvector_alignment,
    kernel_alignment,
    kernel_distance,
    kernel_target_alignment,
    subspace_overlap,
)
from kernelgrowth.spectra import eigsh

SEEDS = st.integers(0, 10**6)
DTYPES = st.sampled_from([np.float32, np.float64])
PROPERTY = settings(deadline=None, max_examples=40)


def psd(rng, n, rank=None):
    factor = rng.standard_normal((n, rank or n))
    return factor @ factor.T + 0.3


def centring(n):
    return np.eye(n) - np.ones((n, n)) / n


def cosine(a, b):
    return float(np.sum(a * b) / (np.linalg.norm(a) * np.linalg.norm(b)))


def tolerance(dtype):
    return 1e-5 if dtype == np.float32 else 1e-11


class Operator:
    def __init__(self, matrix):
        self.matrix, self.shape = matrix, matrix.shape

    def gram(self):
        return self.matrix


@given(SEEDS, st.integers(2, 40), st.integers(1, 4), st.booleans(), DTYPES)
@PROPERTY
def test_target_alignment_of_a_shared_kernel(seed, n, outputs, centered, dtype):
    rng = np.random.default_rng(seed)
    kernel, y = psd(rng, n).astype(dtype), rng.standard_normal((n, outputs))
    h = centring(n) if centered else np.eye(n)
    wide = kernel.astype(float)
    expected = np.trace((h @ y).T @ h @ wide @ h @ (h @ y)) / (np.sum((h @ y) ** 2) * np.linalg.norm(h @ wide @ h))
    got = kernel_target_alignment(kernel, y, centered=centered)
    assert got == pytest.approx(expected, abs=tolerance(dtype))
    assert 0 <= got <= 1
    assert kernel_target_alignment(Operator(kernel), y, centered=centered) == got


@given(SEEDS, st.integers(2, 12), st.integers(2, 4), st.booleans())
@PROPERTY
def test_target_alignment_of_a_kernel_over_examples_and_outputs(seed, n, outputs, centered):
    rng = np.random.default_rng(seed)
    kernel, y = psd(rng, n * outputs), rng.standard_normal((n, outputs))
    flat, h = y.reshape(-1), np.eye(n * outputs)
    if centered:
        flat, h = (y - y.mean(axis=0)).reshape(-1), centring(n * outputs)
    middle = h @ kernel @ h
    expected = flat @ middle @ flat / (flat @ flat * np.linalg.norm(middle))
    assert kernel_target_alignment(kernel, y, centered=centered) == pytest.approx(expected, abs=1e-11)


@given(SEEDS, st.integers(2, 30), st.booleans(), st.integers(-60, 60), st.integers(-60, 60), DTYPES)
@PROPERTY
def test_powers_of_two_change_no_alignment(seed, n, centered, first, second, dtype):
    rng = np.random.default_rng(seed)
    kernel, other, y = psd(rng, n).astype(dtype), psd(rng, n).astype(dtype), rng.standard_normal(n)
    assert kernel_target_alignment(np.ldexp(kernel, first), np.ldexp(y, second), centered=centered) == pytest.approx(
        kernel_target_alignment(kernel, y, centered=centered), rel=1e-12
    )
    assert kernel_alignment(np.ldexp(kernel, first), np.ldexp(other, second), centered=centered) == pytest.approx(
        kernel_alignment(kernel, other, centered=centered), rel=1e-12
    )


@given(SEEDS, st.integers(2, 30), st.booleans())
@PROPERTY
def test_order_of_examples_changes_no_alignment(seed, n, centered):
    rng = np.random.default_rng(seed)
    kernel, other, y, order = psd(rng, n), psd(rng, n), rng.standard_normal(n), rng.permutation(n)
    shuffled = np.ix_(order, order)
    assert kernel_target_alignment(kernel[shuffled], y[order], centered=centered) == pytest.approx(
        kernel_target_alignment(kernel, y, centered=centered), abs=1e-12
    )
    assert kernel_alignment(kernel[shuffled], other[shuffled], centered=centered) == pytest.approx(
        kernel_alignment(kernel, other, centered=centered), abs=1e-12
    )


@given(SEEDS, st.integers(1, 30), st.integers(1, 30), DTYPES)
@PROPERTY
def test_kernel_alignment_is_the_cosine_for_any_shape(seed, n, m, dtype):
    rng = np.random.default_rng(seed)
    first, second = (rng.standard_normal((n, m)).astype(dtype) for _ in range(2))
    a, b = first.astype(float), second.astype(float)
    assert kernel_alignment(first, second) == pytest.approx(cosine(a, b), abs=tolerance(dtype))
    assert kernel_distance(first, second) == pytest.approx(1 - cosine(a, b), abs=tolerance(dtype))
    assert kernel_distance(first, 3 * first) == pytest.approx(0, abs=tolerance(dtype))
    assert kernel_distance(first, -first) == pytest.approx(2, abs=tolerance(dtype))
    if min(n, m) > 1:
        expected = cosine(centring(n) @ a @ centring(m), centring(n) @ b @ centring(m))
        assert kernel_alignment(first, second, centered=True) == pytest.approx(expected, abs=tolerance(dtype))


@given(SEEDS, st.integers(3, 30))
@PROPERTY
def test_centred_alignment_is_cka(seed, n):
    rng = np.random.default_rng(seed)
    x, z, h = rng.standard_normal((n, 4)) + 5, rng.standard_normal((n, 3)) - 2, centring(n)
    x_centred, z_centred = h @ x, h @ z
    cka = np.linalg.norm(z_centred.T @ x_centred) ** 2 / (
        np.linalg.norm(x_centred.T @ x_centred) * np.linalg.norm(z_centred.T @ z_centred)
    )
    assert kernel_alignment(x @ x.T, z @ z.T, centered=True) == pytest.approx(cka, abs=1e-10)


@pytest.mark.parametrize("offset", [1e3, 1e6, 1e9])
def test_a_large_mean_costs_centred_alignment_no_digits_it_need_not(offset):
    rng = np.random.default_rng(0)
    # Entries that stay exact beside the offset, so that the centred kernel is known exactly.
    kernel = np.rint(psd(rng, 20) * 64) / 64
    other, y = np.rint(psd(rng, 20) * 64) / 64, rng.standard_normal(20)
    assert kernel_target_alignment(kernel + offset, y, centered=True) == pytest.approx(
        kernel_target_alignment(kernel, y, centered=True), rel=1e-6
    )
    assert kernel_alignment(kernel + offset, other + offset, centered=True) == pytest.approx(
        kernel_alignment(kernel, other, centered=True), rel=1e-6
    )


@pytest.mark.parametrize(
    ("dtype", "scale"), [(np.float32, 1e-20), (np.float32, 1e18), (np.float64, 1e-200), (np.float64, 1e200)]
)
@pytest.mark.parametrize("centered", [False, True])
def test_tiny_and_huge_kernels_align_like_others(dtype, scale, centered):
    rng = np.random.default_rng(0)
    kernel, other, y = psd(rng, 9), psd(rng, 9), rng.standard_normal(9)
    small, small_other = (kernel * scale).astype(dtype), (other * scale).astype(dtype)
    assert kernel_target_alignment(small, y * 1e-200, centered=centered) == pytest.approx(
        kernel_target_alignment(kernel, y, centered=centered), rel=1e-5
    )
    assert kernel_alignment(small, small_other, centered=centered) == pytest.approx(
        kernel_alignment(kernel, other, centered=centered), rel=1e-5
    )


def test_the_kernel_of_the_target_is_aligned_with_it():
    y = np.random.default_rng(0).standard_normal(15)
    assert kernel_target_alignment(np.outer(y, y), y) == pytest.approx(1, abs=1e-15)
    assert kernel_target_alignment(-np.outer(y, y), y) == pytest.approx(-1, abs=1e-15)
    assert kernel_target_alignment(np.eye(15), y) == pytest.approx(1 / math.sqrt(15))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_undefined_is_nan(dtype):
    rng = np.random.default_rng(0)
    kernel, y = psd(rng, 7).astype(dtype), rng.standard_normal(7)
    zero, constant = np.zeros((7, 7), dtype), np.full((7, 7), 0.1, dtype)
    assert math.isnan(kernel_target_alignment(zero, y))
    assert math.isnan(kernel_target_alignment(zero, y, centered=True))
    assert math.isnan(kernel_target_alignment(kernel, np.zeros(7)))
    assert math.isnan(kernel_target_alignment(kernel, np.full(7, 0.1), centered=True))
    assert math.isnan(kernel_target_alignment(constant, y, centered=True))
    assert math.isnan(kernel_target_alignment(constant[:1, :1], [2.0], centered=True))
    assert kernel_target_alignment(constant[:1, :1], [2.0]) == 1.0
    assert math.isnan(kernel_alignment(kernel, zero))
    assert math.isnan(kernel_alignment(kernel, constant, centered=True))
    assert math.isnan(kernel_distance(zero, kernel))


def test_strided_and_read_only_arrays_are_taken_as_they_are():
    rng = np.random.default_rng(0)
    kernel, y = psd(rng, 8), rng.standard_normal(8)
    wide = np.zeros((16, 24))
    wide[::2, ::3] = kernel
    view = wide[::2, ::3]
    view.flags.writeable = False
    for same in (view, np.asfortranarray(kernel), kernel[::-1][::-1]):
        assert kernel_target_alignment(same, y) == pytest.approx(kernel_target_alignment(kernel, y), rel=1e-14)
        assert kernel_alignment(same, kernel) == pytest.approx(1, rel=1e-14)


@given(SEEDS, st.integers(1, 20), st.integers(1, 3), st.booleans())
@PROPERTY
def test_eigenvector_alignment_decomposes_the_target(seed, n, outputs, flattened):
    rng = np.random.default_rng(seed)
    rows = n * outputs if flattened else n
    vectors, y = np.linalg.qr(rng.standard_normal((rows, rows)))[0], rng.standard_normal((n, outputs))
    columns = y.reshape(rows, 1) if flattened else y
    shares = eigenvector_alignment(vectors, y)
    expected = [np.sum((v @ columns) ** 2) / np.sum(y**2) for v in vectors.T]
    np.testing.assert_allclose(shares, expected, atol=1e-13)
    assert shares.sum() == pytest.approx(1)
    np.testing.assert_allclose(eigenvector_alignment(vectors * 7.0, y * 1e-180), shares, rtol=1e-12, atol=1e-15)


def test_eigenvector_alignment_takes_results_and_says_nan():
    kernel = np.diag([3.0, 2.0, 1.0])
    result = eigsh(kernel, 2)
    np.testing.assert_allclose(eigenvector_alignment(result, [0.0, 2.0, 0.0]), [0, 1], atol=1e-15)
    assert np.isnan(eigenvector_alignment(result, np.zeros(3))).all()
    np.testing.assert_array_equal(
        np.isnan(eigenvector_alignment(np.eye(3) * [1, 0, 1], np.ones(3))), [False, True, False]
    )


@given(SEEDS, st.integers(1, 20), st.data())
@PROPERTY
def test_subspace_overlap_is_the_mean_squared_cosine_of_principal_angles(seed, n, data):
    rng = np.random.default_rng(seed)
    first = rng.standard_normal((n, data.draw(st.integers(1, n))))
    second = rng.standard_normal((n, data.draw(st.integers(1, n))))
    cosines = np.linalg.svd(np.linalg.qr(first)[0].T @ np.linalg.qr(second)[0], compute_uv=False)
    overlap = subspace_overlap(first, second)
    assert overlap == pytest.approx(np.mean(cosines**2), abs=1e-9)
    assert 0 <= overlap <= 1
    assert subspace_overlap(second, first) == pytest.approx(overlap, abs=1e-9)
    assert subspace_overlap(first, first @ rng.standard_normal((first.shape[1],) * 2)) == pytest.approx(1, abs=1e-6)


def test_subspace_overlap_of_known_spaces():
    basis = np.eye(6)
    assert subspace_overlap(basis[:, :2], basis[:, 2:4]) == 0
    assert subspace_overlap(basis[:, :2], basis[:, 1:3]) == pytest.approx(0.5)
    assert subspace_overlap(basis[:, :2], basis[:, :5]) == pytest.approx(1)
    assert subspace_overlap(eigsh(np.diag([3.0, 2, 1]), 1), np.array([[1.0], [1.0], [0.0]])) == pytest.approx(0.5)


@given(st.lists(st.floats(0, 1e3, allow_subnormal=False), min_size=1, max_size=50), st.integers(-60, 60))
@PROPERTY
def test_effective_ranks_are_ordered_bounded_and_scale_free(values, exponent):
    values = np.array(values)
    entropy, participation, stable = (effective_rank(values, kind=k) for k in ("entropy", "participation", "stable"))
    if not values.any():
        assert math.isnan(entropy)
        assert math.isnan(participation)
        assert math.isnan(stable)
        return
    unit = values / values.max()
    p = unit[unit > 0] / unit.sum()
    assert entropy == pytest.approx(math.exp(-np.sum(p * np.log(p))), rel=1e-9)
    assert participation == pytest.approx(unit.sum() ** 2 / np.sum(unit**2), rel=1e-9)
    assert stable == pytest.approx(unit.sum(), rel=1e-9)
    slack = 1 + 1e-12
    assert 1 <= stable * slack <= participation * slack**2 <= entropy * slack**3 <= len(values) * slack**4
    if values.max() > 1e-200:
        assert effective_rank(np.ldexp(values, exponent)) == pytest.approx(entropy, rel=1e-9)


@pytest.mark.parametrize("kind", ["entropy", "participation", "stable"])
@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e200])
def test_effective_rank_of_a_flat_spectrum_is_its_length(kind, scale):
    for m in (1, 2, 7):
        assert effective_rank([scale] * m + [0.0] * 5, kind=kind) == pytest.approx(m, rel=1e-12)
    assert effective_rank(np.float32([2, 2, -1e-6]), kind=kind) == pytest.approx(2, rel=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: kernel_target_alignment(np.ones((2, 3)), np.ones(2)),
            ValueError,
            r"K must be square, got shape \(2, 3\)",
        ),
        (
            lambda: kernel_target_alignment(np.eye(3), np.ones(2)),
            ValueError,
            r"y must be .* the number of rows .* 3, got shape \(2,\)",
        ),
        (lambda: kernel_target_alignment(np.eye(3), np.ones((2, 2))), ValueError, "y must be"),
        (lambda: kernel_target_alignment(np.eye(2), [1.0, np.nan]), ValueError, "y must be finite"),
        (lambda: kernel_target_alignment(np.full((2, 2), np.inf), [1.0, 2.0]), ValueError, "K must be finite"),
        (lambda: kernel_target_alignment(np.ones((2, 2, 1, 1)), [1.0, 2.0]), ValueError, r"NTKOperator.gram\(\)"),
        (lambda: kernel_target_alignment(np.ones((0, 0)), []), ValueError, "K must have at least one row"),
        (lambda: kernel_target_alignment(np.eye(2), ["a", "b"]), TypeError, "y must be an array of real numbers"),
        (lambda: kernel_alignment(np.eye(2), np.eye(3)), ValueError, r"K2 must have the shape of K1, \(2, 2\)"),
        (
            lambda: kernel_alignment(np.eye(2), np.eye(2, dtype=np.float32)),
            TypeError,
            "K2 is float32 but K1 is float64",
        ),
        (
            lambda: kernel_alignment(np.eye(2), Operator(np.full((2, 2), np.nan))),
            ValueError,
            r"K2.gram\(\) must be finite",
        ),
        (lambda: eigenvector_alignment(np.eye(3), np.ones(4)), ValueError, "y must be"),
        (lambda: eigenvector_alignment(np.ones((3, 0)), np.ones(3)), ValueError, "vectors must have at least one"),
        (lambda: subspace_overlap(np.eye(3), np.eye(4)), ValueError, "V2 must have the 3 rows of V1, got 4"),
        (lambda: subspace_overlap(np.ones((3, 2)), np.eye(3)), ValueError, "V1 must have linearly independent columns"),
        (
            lambda: subspace_overlap(np.eye(3), np.zeros((3, 1))),
            ValueError,
            "V2 must have linearly independent columns",
        ),
        (lambda: effective_rank([]), ValueError, "eigenvalues must"),
        (lambda: effective_rank([1.0, -0.5]), ValueError, "positive semi-definite"),
        (lambda: effective_rank([1.0], kind="rank"), ValueError, "kind must be one of"),
    ],
)
def test_misuse_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
