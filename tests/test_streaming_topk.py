"""StreamingTopK: every stream stays within the bounds that its own result states."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelgrowth._backend.errors import MemoryLimitError
from kernelgrowth.gradients import GradientFeatures, OuterProduct, Rows
from kernelgrowth.spectra.frequent_directions import FrequentDirections
from kernelgrowth.spectra.streaming import StreamingResult, StreamingTopK
from memory import smallest_limit
from reference import jacobian
from strategies import cases

SHAPES = ("power law", "clusters", "low rank", "zero", "repeated rows", "flat", "growing", "shrinking")


def rows_of(shape, rng, n, p):
    """A matrix whose Gram matrix has a spectrum of this shape, and whose rows come in random order (or not)."""
    noise, rank = rng.standard_normal((n, p)), min(n, p)
    if shape in ("power law", "clusters"):
        u, _, v = np.linalg.svd(noise, full_matrices=False)
        decay = rng.uniform(0.2, 3)
        values = np.arange(1, rank + 1.0) ** -decay if shape == "power law" else 10.0 ** -(np.arange(rank) // 3)
        return u * values @ v
    if shape == "low rank":
        rank = int(rng.integers(1, 6))
        return rng.standard_normal((n, rank)) @ rng.standard_normal((rank, p))
    if shape == "zero":
        return noise * 0 if rng.random() < 0.5 else noise * (rng.random((n, 1)) < 0.05)
    if shape == "repeated rows":
        return noise[rng.integers(0, rng.integers(1, n + 1), size=n)]
    if shape in ("growing", "shrinking"):
        sizes = 10.0 ** np.linspace(-rng.uniform(0, 6), 0, n)
        return noise * (sizes if shape == "growing" else sizes[::-1])[:, None]
    return noise


def in_chunks(rng, rows):
    """The rows in parts of random sizes, some of them empty."""
    cuts = np.sort(rng.integers(0, len(rows) + 1, size=rng.integers(0, 12)))
    return np.split(rows, cuts)


def fitted(parts, k, **options):
    top = StreamingTopK(k, **options)
    for part in parts:
        assert top.partial_fit(part) is top
    return top


def sine(directions, basis):
    """The sine of the largest angle between a span and that of orthonormal columns."""
    directions = np.asarray(directions, np.float64)
    return np.linalg.norm(directions - basis @ (basis.T @ directions), 2)


def check_bounds(result, rows, k):
    """Compare a result with the spectrum of all rows; the slack is the rounding of that SVD itself."""
    wide = rows.astype(np.float64)
    exponent = np.frexp(np.abs(wide).max(initial=0.0))[1]
    _, singular, right = np.linalg.svd(np.ldexp(wide, -exponent), full_matrices=len(wide) < wide.shape[1])
    exact = np.zeros(wide.shape[1])
    exact[: len(singular)] = singular**2
    slack = 1e-13 * exact[0]
    values, bounds = (np.ldexp(np.asarray(x), -2 * exponent) for x in (result.eigenvalues, result.value_bound))
    assert (np.diff(values) <= slack).all()
    assert (np.abs(values - exact[:k]) <= bounds + slack).all()
    assert (bounds <= np.ldexp(result.shrinkage / 2 + result.rounding, -2 * exponent) + slack).all()
    directions = np.asarray(result.directions, np.float64)
    np.testing.assert_allclose(directions.T @ directions, np.eye(k), atol=10 * np.finfo(rows.dtype).eps)
    gap = exact[k - 1] - (exact[k] if k < len(exact) else 0.0)
    error = sine(directions, right[:k].T)
    assert error <= result.subspace_bound + (4 * slack / gap if gap > 0 else 1.0)
    assert 0 <= result.subspace_bound <= 1
    np.testing.assert_allclose(np.ldexp(result.trace, -2 * exponent), exact.sum(), rtol=1e-12)


def check_projections(result, rows):
    wide = rows.astype(np.float64)
    exact = wide @ np.asarray(result.directions, np.float64)
    scale = max(np.abs(wide).max(initial=0.0), np.finfo(np.float32).tiny)
    distance = np.linalg.norm((result.projections.astype(np.float64) - exact) / scale, axis=1)
    assert (distance <= result.projection_errors / scale * (1 + 1e-12) + 1e-13).all()
    norms = np.linalg.norm(result.eigenvectors, axis=0)
    assert (np.isclose(norms, 1, atol=1e-5) | (norms == 0)).all()


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(SHAPES),
    st.sampled_from([np.float32, np.float64]),
    st.sampled_from([-20, -7, 0, 3, 20]),
)
@settings(max_examples=150)
def test_every_stream_stays_within_its_own_bounds(seed, shape, dtype, exponent):
    rng = np.random.default_rng(seed)
    n, p = int(rng.integers(1, 150)), int(rng.integers(1, 60))
    k = int(rng.integers(1, min(p, 8) + 1))
    rows = rows_of(shape, rng, n, p)
    rows = (rows / max(np.abs(rows).max(), 1e-300) * 10.0**exponent).astype(dtype)
    size = int(rng.integers(k, 3 * k + 8))
    result = fitted(in_chunks(rng, rows), k, sketch_size=size, keep_projections=True).result()
    check_bounds(result, rows, k)
    check_projections(result, rows)
    assert (result.rows_seen, result.num_parameters) == (n, p)


@pytest.mark.parametrize("seed", range(50))
def test_fifty_long_streams_stay_within_their_own_bounds(seed):
    rng = np.random.default_rng(seed)
    k, p = int(rng.integers(1, 6)), int(rng.integers(20, 200))
    shape = SHAPES[seed % len(SHAPES)]
    rows = (rows_of(shape, rng, 1500, p) * 10.0 ** rng.uniform(-20, 20)).astype([np.float32, np.float64][seed % 2])
    result = fitted(in_chunks(rng, rows), k).result()
    check_bounds(result, rows, k)


@given(st.integers(0, 10**6), st.sampled_from(["power law", "clusters"]))
@settings(max_examples=20)
def test_bits_do_not_depend_on_the_chunks(seed, shape):
    rng = np.random.default_rng(seed)
    rows = rows_of(shape, rng, 90, 40)
    first, second = (fitted(in_chunks(rng, rows), 3, keep_projections=True).result() for _ in range(2))
    for name in ("eigenvalues", "directions", "value_bound", "shrinkage", "subspace_bound", "projections"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    np.testing.assert_allclose(first.trace, second.trace, rtol=1e-14)


@given(cases(max_examples=20, max_length=12, max_positions=3, max_outputs=3, symmetric=True), st.integers(1, 4))
@settings(max_examples=40)
def test_features_are_the_rows_that_the_reference_writes_out(case, k):
    feats, rows = case.features[0], jacobian(case.blocks[0])
    rows = rows.reshape(-1, rows.shape[-1])
    k = min(k, rows.shape[1])
    cut = feats.num_examples // 2
    parts = [feats.examples(0, cut)] * bool(cut) + [feats.examples(cut, feats.num_examples)]
    top, dense = fitted(parts, k, sketch_size=k + 2, keep_projections=True), fitted([rows], k, sketch_size=k + 2)
    result, expected = top.result(), dense.result()
    assert result.rows_seen == len(rows)
    assert result.directions.dtype == case.dtype
    np.testing.assert_allclose(result.trace, expected.trace, rtol=1e-12)
    check_bounds(expected, rows, k)
    exact = np.zeros(k)
    singular = np.linalg.svd(rows, compute_uv=False)[:k] ** 2
    exact[: len(singular)] = singular
    assert (np.abs(result.eigenvalues - exact) <= result.value_bound + 1e-12 * exact[0]).all()
    tolerance = 1e-5 if case.dtype == np.float32 else 1e-12
    projected = rows @ result.directions.astype(np.float64)
    np.testing.assert_allclose(top.transform(feats), projected, atol=tolerance * max(1, np.abs(projected).max()))


def test_a_stream_of_fewer_rows_than_the_buffer_is_exact():
    rows = np.random.default_rng(0).standard_normal((40, 70))
    result = fitted([rows], 5, sketch_size=20, keep_projections=True).result()
    assert result.shrinkage == 0
    assert result.subspace_bound < 1e-8
    singular = np.linalg.svd(rows, compute_uv=False)[:5]
    np.testing.assert_allclose(result.eigenvalues, singular**2, rtol=1e-12)
    kernel = rows @ rows.T
    np.testing.assert_allclose(kernel @ result.eigenvectors, result.eigenvectors * result.eigenvalues, atol=1e-9)


def test_what_was_subtracted_is_known_to_be_missing():
    # Without the compensation the bound would be half of the shrinkage.
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((2000, 100)) * np.arange(1, 101.0) ** -1
    result = fitted([rows], 5).result()
    assert result.value_bound[0] < 0.01 * result.shrinkage / 2
    assert result.subspace_bound < 0.3
    check_bounds(result, rows, 5)


def test_eigenvectors_of_the_kernel_from_projections():
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((600, 100)) * np.arange(1, 101.0) ** -2
    result = fitted([rows], 3, keep_projections=True).result()
    left = np.linalg.svd(rows, full_matrices=False)[0][:, :3]
    np.testing.assert_allclose(np.abs(np.sum(left * result.eigenvectors, axis=0)), 1, atol=1e-4)


def test_memory_is_flat_in_the_number_of_rows():
    def peak(count):
        rng = np.random.default_rng(0)
        tracemalloc.start()
        top = StreamingTopK(4)
        for _ in range(count):
            top.partial_fit(rng.standard_normal((16, 3000)).astype(np.float32))
        top.result()
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    peak(4)
    assert peak(80) <= 1.02 * peak(10)


@pytest.mark.parametrize(("count", "p"), [(200, 6000), (1500, 20)])
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("structured", [False, True])
def test_the_limit_is_kept_or_refused_before_any_work(keep, structured, count, p):
    rng = np.random.default_rng(0)
    chunks = [rng.standard_normal((count, 1, p)) for _ in range(3)]
    parts = [GradientFeatures({"w": Rows(c)}) if structured else c[:, 0] for c in chunks]

    def compute(memory_limit):
        top = StreamingTopK(3, memory_limit=memory_limit, keep_projections=keep)
        for part in parts:
            top.partial_fit(part)
        top.result()

    limit = smallest_limit(compute)
    with pytest.raises(MemoryLimitError, match=rf"a sketch of 16 rows with {p} parameters needs .* memory_limit is"):
        compute(limit - 1)
    tracemalloc.start()
    compute(limit)
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert used <= limit


def test_a_refused_call_leaves_the_stream_as_it_was():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((50, 12)).astype(np.float32)
    top, undisturbed = StreamingTopK(2), StreamingTopK(2)
    for bad, error in (
        (np.full((3, 12), np.nan, np.float32), ValueError),
        (rows.astype(np.float64), TypeError),
        (rows[:, :11], ValueError),
        (rows[0], ValueError),
        ("rows", TypeError),
    ):
        top.partial_fit(rows)
        undisturbed.partial_fit(rows)
        with pytest.raises(error, match="rows"):
            top.partial_fit(bad)
    np.testing.assert_array_equal(top.result().directions, undisturbed.result().directions)
    assert top.rows_seen == 250


def test_an_interrupted_stream_is_refused(monkeypatch):
    top = StreamingTopK(2).partial_fit(np.eye(5))

    def interrupted(self, count):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FrequentDirections, "advance", interrupted)
        with pytest.raises(KeyboardInterrupt):
            top.partial_fit(np.eye(5))
    for call in (top.result, lambda: top.partial_fit(np.eye(5)), lambda: top.transform(np.eye(5))):
        with pytest.raises(RuntimeError, match="partial_fit was interrupted"):
            call()


def test_squares_beyond_float64_are_refused_and_tiny_ones_are_not():
    with pytest.raises(ValueError, match="rows must be finite with squared norms that float64 can add up"):
        StreamingTopK(1).partial_fit(np.full((2, 3), 1e160))
    features = GradientFeatures({"w": OuterProduct(np.array([[np.inf]]), np.ones((1, 1)), check_finite=False)})
    with pytest.raises(ValueError, match="rows must be finite"):
        StreamingTopK(1).partial_fit(features)
    rows = np.random.default_rng(0).standard_normal((100, 8)) * np.arange(1, 9.0)
    tiny, large = (fitted([rows * 2.0**e], 2, sketch_size=3).result() for e in (-400, 0))
    np.testing.assert_array_equal(tiny.directions, large.directions)


def test_results_may_be_read_at_any_time():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((300, 30)) * np.arange(1, 31.0) ** -1
    top = StreamingTopK(3)
    for start in range(0, 300, 10):
        top.partial_fit(rows[start : start + 10])
        assert isinstance(top.result(), StreamingResult)
        assert top.result() is top.result()
    np.testing.assert_array_equal(top.result().directions, fitted([rows], 3).result().directions)
    assert "rows_seen=300" in repr(top)


class Foreign:
    """An array of another library, as far as DLPack and the array API standard tell."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __array_namespace__(self):
        return Foreign

    @staticmethod
    def from_dlpack(array):
        return Foreign(np.asarray(array))


def test_array_kinds_go_back_as_they_came():
    rows = np.random.default_rng(0).standard_normal((30, 6)).astype(np.float32)
    top = fitted([Foreign(rows)], 2, keep_projections=True)
    result = top.result()
    for name in ("eigenvalues", "directions", "projections", "eigenvectors", "value_bound"):
        assert isinstance(getattr(result, name), Foreign)
    assert result.directions.array.dtype == np.float32
    assert isinstance(top.transform(rows), np.ndarray)
    np.testing.assert_allclose(top.transform(Foreign(rows)).array, rows @ result.directions.array, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"k": 0}, ValueError, "k must be at least 1"),
        ({"k": 1.5}, TypeError, "k must be an integer"),
        ({"k": 5, "sketch_size": 4}, ValueError, "sketch_size must be at least k = 5, got 4"),
        ({"keep_projections": 1}, TypeError, "keep_projections must be True or False"),
        ({"memory_limit": 0}, ValueError, "memory_limit must be at least 1"),
    ],
)
def test_misuse_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        StreamingTopK(**{"k": 1, **arguments})


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        (np.ones((3, 2)), ValueError, "rows must have at least k = 3 parameters, got 2"),
        (np.ones((3, 0)), ValueError, "rows must have at least one parameter"),
        (np.ones((3, 4), complex), TypeError, "rows must be float32 or float64"),
        (None, TypeError, "rows must be a matrix of gradients or GradientFeatures, got NoneType"),
        ({"w": 1}, TypeError, "rows must be a matrix of gradients or GradientFeatures, got dict"),
    ],
)
def test_unusable_rows_are_named(rows, error, message):
    with pytest.raises(error, match=message):
        StreamingTopK(3).partial_fit(rows)


def test_results_and_transforms_need_rows():
    top = StreamingTopK(2)
    with pytest.raises(ValueError, match="rows must have been given to partial_fit"):
        top.result()
    top.partial_fit(np.empty((0, 5)))
    with pytest.raises(ValueError, match="rows must have been given to partial_fit"):
        top.transform(np.ones((1, 5)))
    top.partial_fit(np.eye(5))
    with pytest.raises(ValueError, match="rows must have 5 parameters"):
        top.transform(np.ones((1, 4)))
