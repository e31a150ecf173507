"""Gaussian inputs and teachers: the stated distributions, the stated targets, reproducibility."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelgrowth.datasets import Dataset, gaussian_teacher

SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.integers(1, 20)


def targets(info, x):
    """The targets by the formula of the docstring, from what `info` says."""
    if info["teacher"] == "mlp":
        y = np.maximum(x @ info["hidden_weights"].T, 0) @ info["output_weights"].T
    else:
        y = x @ info["B"].T
        y = np.maximum(y, 0) if info["teacher"] == "relu" else y
    return y[:, 0] if y.shape[1] == 1 else y


@given(
    seed=SEEDS,
    n=SIZES,
    d=SIZES,
    n_test=st.integers(0, 5),
    outputs=st.integers(1, 4),
    teacher=st.sampled_from(["linear", "relu", "mlp"]),
    whiten=st.sampled_from([False, True, 0.5]),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_targets_are_those_of_the_teacher_on_the_inputs_returned(seed, n, d, n_test, outputs, teacher, whiten, dtype):
    data = gaussian_teacher(
        n, d, n_test=n_test, outputs=outputs, teacher=teacher, whiten=whiten, seed=seed, dtype=dtype, teacher_width=7
    )
    assert data.x.shape == (n, d)
    assert data.x.dtype == data.y.dtype == dtype
    assert data.num_test == n_test
    tolerance = 1e-4 if dtype == np.float32 else 1e-11
    np.testing.assert_allclose(data.y, targets(data.info, data.x), rtol=tolerance, atol=tolerance)
    assert data.y.shape == ((n,) if outputs == 1 else (n, outputs))
    if n_test:
        np.testing.assert_allclose(data.y_test, targets(data.info, data.x_test), rtol=tolerance, atol=tolerance * 10)
    if whiten is True and n > d:
        np.testing.assert_allclose(data.x.T @ data.x / n, np.eye(d), atol=1e-5 if dtype == np.float32 else 1e-11)


@given(seed=SEEDS, d=SIZES, s=st.floats(0.01, 100.0))
def test_one_output_has_strength_and_direction(seed, d, s):
    data = gaussian_teacher(30, d, s=s, seed=seed)
    beta = data.info["beta"]
    assert np.linalg.norm(beta) == pytest.approx(1.0)
    assert data.info["s"] == pytest.approx(s)
    np.testing.assert_allclose(data.y, s * data.x @ beta, rtol=1e-9, atol=1e-9 * s)


@given(
    seed=SEEDS,
    d=st.integers(3, 12),
    outputs=st.integers(2, 5),
    values=st.lists(st.floats(0.1, 9.0), min_size=1, max_size=2),
)
def test_several_outputs_have_the_singular_values_asked_for(seed, d, outputs, values):
    data = gaussian_teacher(4, d, outputs=outputs, s=values, seed=seed)
    found = np.linalg.svd(data.info["B"], compute_uv=False)
    expected = np.zeros(min(outputs, d))
    expected[: len(values)] = sorted(values, reverse=True)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    equal = np.linalg.svd(gaussian_teacher(4, d, outputs=outputs, s=2.0, seed=seed).info["B"], compute_uv=False)
    np.testing.assert_allclose(equal, 2.0)


@pytest.mark.parametrize(
    "arguments",
    [{}, {"power_law": 1.5}, {"spectrum": [4.0, 1.0, 0.0, 0.25]}],
    ids=["identity", "power law", "spectrum"],
)
def test_covariance_is_the_spectrum(arguments):
    data = gaussian_teacher(40_000, 4, seed=1, **arguments)
    spectrum = data.info["spectrum"]
    covariance = data.x.T @ data.x / 40_000
    # Entries of a sample covariance scatter by sqrt((1 + [i = j]) spectrum_i spectrum_j / N).
    scatter = np.sqrt(2 * np.outer(spectrum, spectrum) / 40_000)
    assert np.all(np.abs(covariance - np.diag(spectrum)) <= 5 * scatter)
    expected = {"identity": np.ones(4)}.get("identity") if not arguments else arguments.get("spectrum")
    if expected is not None:
        np.testing.assert_array_equal(spectrum, expected)


@given(d=st.integers(1, 30), exponent=st.floats(0.0, 3.0))
def test_power_law(d, exponent):
    spectrum = gaussian_teacher(2, d, power_law=exponent).info["spectrum"]
    assert spectrum.mean() == pytest.approx(1.0)
    np.testing.assert_allclose(spectrum / spectrum[0], np.arange(1, d + 1.0) ** -exponent)


def test_mlp_teacher_has_the_stated_strength():
    squares = [
        np.mean(gaussian_teacher(400, 20, teacher="mlp", s=3.0, teacher_width=50, seed=seed).y ** 2)
        for seed in range(40)
    ]
    assert np.mean(squares) == pytest.approx(9.0, rel=0.25)


def test_streams_are_apart():
    base = gaussian_teacher(10, 5, n_test=3, seed=4)
    again = gaussian_teacher(10, 5, n_test=3, seed=4)
    for name in ("x", "y", "x_test", "y_test"):
        np.testing.assert_array_equal(getattr(base, name), getattr(again, name))
    more = gaussian_teacher(10, 5, n_test=8, seed=4, noise=0.5)
    np.testing.assert_array_equal(more.x, base.x)
    np.testing.assert_array_equal(more.info["beta"], base.info["beta"])
    np.testing.assert_allclose(more.y_test, more.x_test @ more.info["beta"])
    assert not np.array_equal(more.y, base.y)
    assert not np.array_equal(gaussian_teacher(10, 5, seed=5).x, base.x)


def test_noise_has_its_size():
    clean, noisy = (gaussian_teacher(20_000, 3, noise=noise, outputs=2, seed=2) for noise in (0.0, 0.3))
    assert np.std(noisy.y - clean.y) == pytest.approx(0.3, rel=0.02)


def test_given_teachers_are_used():
    beta = np.array([3.0, 0.0, 4.0])
    np.testing.assert_allclose(gaussian_teacher(5, 3, beta=beta, s=2.0).info["beta"], beta / 5)
    matrix = np.arange(6.0).reshape(2, 3)
    data = gaussian_teacher(5, 3, B=matrix)
    np.testing.assert_allclose(data.y, data.x @ matrix.T)
    single = gaussian_teacher(5, 3, B=[[0.0, 2.0, 0.0]])
    assert single.info["s"] == 2.0
    np.testing.assert_allclose(single.y, 2.0 * single.x[:, 1])


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"n_train": 0}, ValueError, "n_train must be at least 1"),
        ({"dim": 0}, ValueError, "dim must be at least 1"),
        ({"n_train": 2.5}, TypeError, "n_train must be an integer"),
        ({"spectrum": [1.0, 2.0]}, ValueError, "spectrum must have one eigenvalue"),
        ({"spectrum": [1.0, -2.0, 0.0]}, ValueError, "spectrum must have no negative"),
        ({"spectrum": [0.0, 0.0, 0.0]}, ValueError, "at least one positive"),
        ({"spectrum": [1.0, np.nan, 0.0]}, ValueError, "spectrum must be finite"),
        ({"spectrum": [1.0, 1.0, 1.0], "power_law": 1.0}, ValueError, "spectrum and power_law exclude"),
        ({"power_law": -1.0}, ValueError, "power_law must be at least 0"),
        ({"teacher": "tanh"}, ValueError, "teacher must be one of"),
        ({"s": 0.0}, ValueError, "s must be greater than 0"),
        ({"s": [1.0, 2.0, 3.0, 4.0], "outputs": 4}, ValueError, "s must be positive, one number or 1 to 3"),
        ({"s": [1.0, 0.0], "outputs": 2}, ValueError, "s must be positive"),
        ({"outputs": 0}, ValueError, "outputs must be at least 1"),
        ({"beta": [0.0, 0.0, 0.0]}, ValueError, "beta must be a non-zero vector"),
        ({"beta": [1.0, 0.0]}, ValueError, "beta must be a non-zero vector of 3"),
        ({"beta": [1.0, 0.0, 0.0], "outputs": 2}, ValueError, "beta belongs to a teacher with one output"),
        ({"beta": [1.0, 0.0, 0.0], "B": [[1.0, 0.0, 0.0]]}, ValueError, "beta and B exclude"),
        ({"B": [[0.0, 0.0, 0.0]]}, ValueError, "B must be a non-zero matrix"),
        ({"B": [[1.0]]}, ValueError, "B must be a non-zero matrix of shape"),
        ({"B": [[1.0, 0.0, 0.0]], "teacher": "mlp"}, ValueError, "beta and B belong to"),
        ({"noise": -1.0}, ValueError, "noise must be at least 0"),
        ({"whiten": 1}, TypeError, "whiten must be True, False or a float gamma, got the integer 1"),
        ({"whiten": 1.5}, ValueError, "whiten must be at most 1"),
        ({"whiten": "yes"}, TypeError, "whiten must be True, False"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"dtype": np.int32}, TypeError, "dtype must be float32 or float64"),
        ({"dtype": "real"}, TypeError, "dtype must be float32 or float64"),
        ({"dtype": None}, TypeError, "dtype must be float32 or float64"),
    ],
)
def test_bad_arguments_are_named(arguments, error, words):
    with pytest.raises(error, match=words):
        gaussian_teacher(**{"n_train": 4, "dim": 3, **arguments})


# The data set itself.


@settings(max_examples=30)
@given(n=SIZES, d=SIZES, c=st.integers(0, 3), m=st.integers(0, 4), dtype=st.sampled_from([np.float32, np.float64]))
def test_a_dataset_knows_its_sizes(n, d, c, m, dtype):
    def draw(*shape):
        return np.ones(shape, dtype)

    columns = (c,) if c else ()
    test = (draw(m, d), draw(m, *columns)) if m else (None, None)
    data = Dataset(draw(n, d), draw(n, *columns), *test, name="ones")
    assert (data.num_examples, data.num_features, data.num_test) == (n, d, m)
    assert repr(data).startswith("Dataset('ones', x ")


def test_a_dataset_keeps_integer_targets():
    data = Dataset(np.ones((3, 2)), np.array([0, 1, 2]))
    assert data.y.dtype.kind == "i"
    assert Dataset(np.ones((3, 2)), [0, 1, 2]).y.dtype == np.float64


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((np.ones(3), np.ones(3)), ValueError, "x must have 2 dimension"),
        ((np.ones((0, 3)), np.ones(0)), ValueError, "x must have at least one example"),
        ((np.ones((3, 0)), np.ones(3)), ValueError, "x must have at least one example and one feature"),
        ((np.ones((3, 2)), np.ones(4)), ValueError, "y must have one row for each of the 3 examples"),
        ((np.ones((3, 2)), np.ones((3, 0))), ValueError, "y must have at least one column"),
        ((np.ones((3, 2)), np.ones((3, 1, 1))), ValueError, "y must have 1 or 2"),
        ((np.ones((3, 2)), np.ones((3, 1, 1), np.int64)), ValueError, "y must have 1 or 2"),
        ((np.ones((3, 2)), np.ones(3, np.float32)), TypeError, "y is float32 but x is float64"),
        ((np.full((3, 2), np.inf), np.ones(3)), ValueError, "x must be finite"),
        ((np.ones((3, 2)), np.full(3, np.nan)), ValueError, "y must be finite"),
        ((np.ones((3, 2)), np.ones(3), np.ones((2, 3))), ValueError, "x_test must have the 2 features"),
        ((np.ones((3, 2)), np.ones(3), np.ones((2, 2), np.float32)), TypeError, "x_test is float32"),
        ((np.ones((3, 2)), np.ones(3), None, np.ones(2)), ValueError, "y_test was given without x_test"),
        ((np.ones((3, 2)), np.ones(3), np.ones((2, 2)), np.ones(3)), ValueError, "y_test must have one row"),
        ((np.ones((3, 2)), np.ones(3), np.ones((2, 2)), np.ones((2, 1))), ValueError, "y_test must have the columns"),
        ((np.ones((3, 2)), np.ones(3), np.ones((2, 2)), np.ones(2, np.int64)), TypeError, "y_test is int64"),
        ((np.ones((3, 2)), np.ones(3), None, None, 5), TypeError, "name must be a string"),
        ((np.ones((3, 2)), np.ones(3), None, None, "n", []), TypeError, "info must be a dict"),
    ],
)
def test_a_dataset_names_what_does_not_fit(arguments, error, words):
    with pytest.raises(error, match=words):
        Dataset(*arguments)
