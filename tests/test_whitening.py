"""Whitening: what it promises of the covariance, and what it must not depend on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelgrowth.datasets import Whitening, partial_whiten, whiten

SHAPES = st.tuples(st.integers(1, 24), st.integers(1, 24))
SEEDS = st.integers(0, 2**32 - 1)
GAMMAS = st.floats(0.0, 1.0)
DTYPES = st.sampled_from([np.float32, np.float64])


def draw_rows(seed, shape, rank=None, spread=1.0):
    """Rows with singular values between 10^-spread and 1, of a given rank."""
    rng = np.random.default_rng(seed)
    n, d = shape
    r = min(n, d, rank or n)
    left = np.linalg.qr(rng.standard_normal((n, r)))[0]
    right = np.linalg.qr(rng.standard_normal((d, r)))[0]
    values = np.sort(10.0 ** rng.uniform(-spread, 0.0, r))[::-1]
    return (left * values) @ right.T


def draw_orthogonal(seed, d):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))[0]


def reference(x, gamma):
    """The definition, by the eigenvectors of the covariance."""
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    kept = s > 1e-8 * s[0]
    u, s, vt = u[:, kept], s[kept], vt[kept]
    return np.sqrt(len(x)) * (u * (s**gamma / np.sqrt(np.mean(s ** (2 * gamma))))) @ vt


@given(seed=SEEDS, shape=SHAPES, rank=st.integers(1, 24), dtype=DTYPES)
def test_covariance_of_whitened_rows_is_the_projector_on_their_span(seed, shape, rank, dtype):
    x = draw_rows(seed, shape, rank).astype(dtype)
    white = whiten(x, rcond=1e-5)
    covariance = white.astype(np.float64).T @ white / len(x)
    tolerance = 2e-5 if dtype == np.float32 else 1e-11
    assert white.dtype == dtype
    np.testing.assert_allclose(covariance @ covariance, covariance, atol=tolerance)
    np.testing.assert_allclose(np.trace(covariance), min(*shape, rank), atol=20 * tolerance)
    np.testing.assert_allclose(x @ covariance, x, atol=tolerance)


@given(seed=SEEDS, n=st.integers(2, 30), d=st.integers(1, 12))
def test_more_examples_than_features_gives_the_identity(seed, n, d):
    x = draw_rows(seed, (n + d, d))
    white = whiten(x)
    np.testing.assert_allclose(white.T @ white / len(x), np.eye(d), atol=1e-12)


@given(seed=SEEDS, n=st.integers(1, 12), extra=st.integers(0, 20))
def test_no_more_examples_than_features_gives_orthogonal_examples(seed, n, extra):
    white = whiten(draw_rows(seed, (n, n + extra)))
    np.testing.assert_allclose(white @ white.T, n * np.eye(n), atol=1e-11)


@given(seed=SEEDS, shape=SHAPES, rank=st.integers(1, 24), gamma=GAMMAS)
def test_definition(seed, shape, rank, gamma):
    x = draw_rows(seed, shape, rank)
    np.testing.assert_allclose(partial_whiten(x, gamma), reference(x, gamma), atol=1e-11)


@given(seed=SEEDS, shape=SHAPES, gamma=GAMMAS)
def test_mean_variance_over_the_span_is_one(seed, shape, gamma):
    x = draw_rows(seed, shape)
    result = partial_whiten(x, gamma)
    assert np.sum(result**2) / len(x) == pytest.approx(min(shape), rel=1e-12)


@given(seed=SEEDS, shape=SHAPES, rank=st.integers(1, 24))
def test_whitening_is_idempotent(seed, shape, rank):
    white = whiten(draw_rows(seed, shape, rank))
    np.testing.assert_allclose(whiten(white), white, atol=1e-11)


@given(seed=SEEDS, shape=SHAPES, gamma=GAMMAS)
def test_rotating_the_features_rotates_the_result(seed, shape, gamma):
    x = draw_rows(seed, shape)
    rotation = draw_orthogonal(seed + 1, shape[1])
    np.testing.assert_allclose(partial_whiten(x @ rotation, gamma), partial_whiten(x, gamma) @ rotation, atol=1e-11)


@given(seed=SEEDS, shape=SHAPES, gamma=GAMMAS)
def test_permuting_and_negating_examples_permutes_and_negates_the_result(seed, shape, gamma):
    x = draw_rows(seed, shape)
    rng = np.random.default_rng(seed)
    order, signs = rng.permutation(len(x)), rng.choice([-1.0, 1.0], len(x))[:, None]
    np.testing.assert_allclose(
        partial_whiten(x[order] * signs, gamma), partial_whiten(x, gamma)[order] * signs, atol=1e-11
    )


@given(seed=SEEDS, shape=SHAPES, gamma=GAMMAS, exponent=st.integers(-900, 900))
def test_scale_does_not_matter(seed, shape, gamma, exponent):
    x = draw_rows(seed, shape)
    np.testing.assert_allclose(partial_whiten(np.ldexp(x, exponent), gamma), partial_whiten(x, gamma), atol=1e-11)


@given(seed=SEEDS, shape=SHAPES)
def test_gamma_one_returns_the_rows_up_to_scale(seed, shape):
    x = draw_rows(seed, shape)
    scale = np.sqrt(len(x) * min(shape)) / np.linalg.norm(x)
    np.testing.assert_allclose(partial_whiten(x, 1.0), scale * x, atol=1e-12)


@given(seed=SEEDS, shape=SHAPES, gamma=st.floats(0.0, 0.999))
def test_continuous_in_gamma(seed, shape, gamma):
    x = draw_rows(seed, shape, spread=2.0)
    step = 1e-4
    change = np.linalg.norm(partial_whiten(x, gamma + step) - partial_whiten(x, gamma))
    # d/dgamma of s^gamma / rms(s^gamma) is at most 2 |ln(s_max / s_min)| <= 2 ln(100) in relative terms.
    assert change <= 2 * np.log(100) * step * np.sqrt(len(x) * min(shape)) * 1.01


@given(seed=SEEDS, shape=SHAPES, rank=st.integers(1, 24), gamma=GAMMAS)
def test_reduced_rows_have_the_same_gram_matrix_in_fewer_coordinates(seed, shape, rank, gamma):
    x = draw_rows(seed, shape, rank)
    full, reduced = partial_whiten(x, gamma), partial_whiten(x, gamma, reduce=True)
    assert reduced.shape == (shape[0], min(*shape, rank))
    np.testing.assert_allclose(reduced @ reduced.T, full @ full.T, atol=1e-10)


@given(seed=SEEDS, shape=SHAPES, gamma=GAMMAS, reduce=st.booleans(), dtype=DTYPES)
def test_the_fitted_map_gives_the_same_rows(seed, shape, gamma, reduce, dtype):
    x = draw_rows(seed, shape).astype(dtype)
    whitening = Whitening.fit(x, gamma, reduce=reduce)
    tolerance = 1e-5 if dtype == np.float32 else 1e-10
    transformed = whitening.transform(x)
    assert transformed.dtype == dtype
    np.testing.assert_allclose(transformed, partial_whiten(x, gamma, reduce=reduce), atol=tolerance)


@given(seed=SEEDS, n=st.integers(1, 8), d=st.integers(9, 16))
def test_the_fitted_map_is_linear_and_drops_what_lies_off_the_span(seed, n, d):
    x = draw_rows(seed, (n, d))
    whitening = Whitening.fit(x)
    assert whitening.rank == n
    new = np.random.default_rng(seed).standard_normal((5, d))
    off = new - new @ whitening.basis.T @ whitening.basis
    np.testing.assert_allclose(whitening.transform(off), 0.0, atol=1e-9)
    weights = np.random.default_rng(seed + 1).standard_normal((3, n))
    np.testing.assert_allclose(whitening.transform(weights @ x), weights @ whiten(x), atol=1e-9)


def test_tiny_directions_are_dropped_and_small_ones_kept():
    x = np.diag([1.0, 1e-7, 1e-9])
    assert Whitening.fit(x).rank == 2
    np.testing.assert_allclose(whiten(x), np.sqrt(3) * np.diag([1.0, 1.0, 0.0]), atol=1e-12)
    assert Whitening.fit(x, rcond=1e-10).rank == 3
    assert Whitening.fit(x.astype(np.float32), rcond=1e-10).rank == 1


def test_basis_has_a_fixed_sign():
    x = draw_rows(3, (20, 6))
    basis = Whitening.fit(x).basis
    np.testing.assert_allclose(basis, Whitening.fit(-x).basis, atol=1e-12)
    assert np.all(basis[np.arange(6), np.abs(basis).argmax(axis=1)] > 0)


@settings(max_examples=20)
@given(seed=SEEDS, shape=SHAPES)
def test_layout_and_input_are_left_alone(seed, shape):
    x = draw_rows(seed, shape)
    expected = whiten(x)
    padded = np.zeros((2 * shape[0], shape[1] + 3))
    padded[::2, :-3] = x
    frozen = np.asfortranarray(x)
    frozen.flags.writeable = False
    for view in (padded[::2, :-3], frozen, x.tolist()):
        np.testing.assert_allclose(whiten(view), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((np.zeros((3, 2)), 0.0), ValueError, "X must not be all zero"),
        ((np.ones(3), 0.0), ValueError, "X must have 2 dimension"),
        ((np.ones((0, 3)), 0.0), ValueError, "at least one example"),
        ((np.ones((3, 0)), 0.0), ValueError, "one feature"),
        ((np.array([[1.0, np.nan]]), 0.0), ValueError, "X must be finite"),
        ((np.array([[1.0, np.inf]]), 0.0), ValueError, "X must be finite"),
        ((np.ones((2, 2), np.float16), 0.0), TypeError, "X must be float32 or float64"),
        ((np.ones((2, 2), complex), 0.0), TypeError, "X must be"),
        (("rows", 0.0), TypeError, "X must be"),
        ((np.ones((2, 2)), -0.1), ValueError, "gamma must be at least 0"),
        ((np.ones((2, 2)), 1.1), ValueError, "gamma must be at most 1"),
        ((np.ones((2, 2)), np.nan), ValueError, "gamma must be finite"),
        ((np.ones((2, 2)), "half"), TypeError, "gamma must be a number"),
    ],
)
def test_bad_arguments_are_named(arguments, error, words):
    with pytest.raises(error, match=words):
        partial_whiten(*arguments)
    with pytest.raises(error, match=words):
        Whitening.fit(*arguments)


def test_bad_options_are_named():
    x = np.eye(3)
    with pytest.raises(ValueError, match="rcond must be less than 1"):
        whiten(x, rcond=1.0)
    with pytest.raises(TypeError, match="reduce must be True or False"):
        whiten(x, reduce="yes")
    with pytest.raises(ValueError, match="X must have the 3 features"):
        Whitening.fit(x).transform(np.ones((2, 4)))
    with pytest.raises(ValueError, match="X must be finite"):
        Whitening.fit(x).transform(np.full((2, 3), np.nan))
