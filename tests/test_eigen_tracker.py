"""`EigenTracker`: kernels that grow, turn, cross, vanish and come back, against LAPACK on each of them."""

import signal
import warnings

import numpy as np
import pytest

import kernelgrowth as kg
from kernelgrowth._backend.errors import NotConvergedWarning, SolveInterrupted
from kernelgrowth.spectra import EigenTracker

DTYPES = [np.float32, np.float64]
TOL = 1e-3


class Opaque:
    """An operator that is nothing but its product; `at` a product, counted from one, `error` is raised."""

    def __init__(self, matrix, at=0, error=None):
        self.matrix, self.shape, self.dtype = matrix, matrix.shape, matrix.dtype
        self.products, self.at, self.error = 0, at, error

    def __matmul__(self, block):
        self.products += 1
        if self.products == self.at:
            raise self.error
        return self.matrix @ block


KINDS = [np.asarray, Opaque]


def basis(n, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]


def kernel(vectors, values, dtype=np.float64):
    matrix = vectors * values @ vectors.T
    return ((matrix + matrix.T) / 2).astype(dtype)


def turned(vectors, i, j, angle):
    vectors = vectors.copy()
    c, s = np.cos(angle), np.sin(angle)
    vectors[:, [i, j]] = vectors[:, [i, j]] @ np.array([[c, -s], [s, c]])
    return vectors


def check(result, matrix, *, tol=TOL, missed=True):
    """Values within a tenth of the tolerance of LAPACK's or missed_bound says so; orthonormal; residuals true."""
    wide = matrix.astype(float)
    k, eps = len(result.eigenvalues), float(np.finfo(matrix.dtype).eps)
    values = np.linalg.eigvalsh(wide)[::-1]
    top = np.abs(values).max()
    vectors = np.asarray(result.eigenvectors, float)
    assert result.eigenvalues.dtype == result.eigenvectors.dtype == matrix.dtype
    assert (np.diff(result.eigenvalues) <= 0).all()
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(k), atol=128 * eps)
    residuals = np.linalg.norm(wide @ vectors - vectors * np.asarray(result.eigenvalues, float), axis=0)
    np.testing.assert_allclose(result.residuals, residuals, rtol=1e-3, atol=128 * eps * top)
    assert len(set(result.tracks.tolist())) == k
    error = np.abs(result.eigenvalues - values[:k]).max()
    if missed:
        assert error <= 0.1 * tol * top
    elif error > 0.1 * tol * top:
        assert result.missed_bound >= values[:k][np.abs(result.eigenvalues - values[:k]) > 0.1 * tol * top].max()
    if k == len(values):
        assert result.missed_bound == -np.inf
    else:
        assert result.missed_bound >= values[k] - 1e-9 * top


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [50, 300])
def test_a_kernel_that_only_grows_takes_one_pass_and_does_not_turn(n, kind, dtype):
    matrix = kernel(basis(n), 0.7 ** np.arange(n), dtype)
    tracker = EigenTracker(6, tol=TOL)
    first = tracker.update(kind(matrix))
    assert np.isnan(first.growth)
    assert np.isnan(first.rotation)
    np.testing.assert_array_equal(first.tracks, np.arange(6))
    before, size = first, 1.0
    for scale in (2.0, 8.0, 8.0, 0.1, 1e-12, 1e12):
        now = (matrix * dtype(scale)).astype(dtype)
        result = tracker.update(kind(now))
        check(result, now)
        # A pass of probes comes on top where K is not stored; up to 64 rows, stored kernels are LAPACK's.
        assert result.passes <= (1 if kind is np.asarray else 2)
        np.testing.assert_allclose(result.growth, scale / size, rtol=1e-5)
        assert 0 <= result.rotation <= 1e-5
        np.testing.assert_array_equal(result.tracks, first.tracks)
        assert (np.sum(result.eigenvectors * before.eigenvectors, axis=0) > 0.9).all()
        before, size = result, scale


@pytest.mark.parametrize("kind", KINDS)
def test_growth_and_rotation_are_those_of_the_top_part(kind):
    n, k = 280, 5
    vectors = basis(n)
    tracker = EigenTracker(k, tol=1e-8)
    before = None
    for step in range(6):
        values = np.concatenate([[9.0, 7.0, 5.0, 3.0, 2.0], np.linspace(0.5, 0, n - k)]) * (1 + step) ** 0.5
        vectors = turned(turned(vectors, 0, n - 1, 0.2), 2, 150, 0.3)
        result = tracker.update(kind(kernel(vectors, values)))
        now = vectors[:, :k] * values[:k] @ vectors[:, :k].T
        if before is not None:
            norms = np.linalg.norm(before), np.linalg.norm(now)
            np.testing.assert_allclose(result.growth, norms[1] / norms[0], rtol=1e-6)
            np.testing.assert_allclose(result.rotation, 1 - np.sum(now * before) / (norms[0] * norms[1]), atol=1e-6)
        before = now


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_turning_subspace_is_followed_with_continuous_signs(kind, dtype):
    n, k = 300, 5
    vectors = basis(n)
    values = np.concatenate([[9.0, 7.0, 5.0, 3.0, 2.0], np.linspace(0.8, 0, n - k)])
    tracker = EigenTracker(k, tol=TOL)
    before = None
    for step in range(25):
        vectors = turned(turned(vectors, 0, 200, 0.15), 1, 3, 0.1)
        matrix = kernel(vectors, values, dtype)
        result = tracker.update(kind(matrix))
        check(result, matrix)
        if step:
            np.testing.assert_array_equal(result.tracks, np.arange(k))
            assert (np.sum(result.eigenvectors * before.eigenvectors, axis=0) > 0.9).all()
            # ||K||² without the turned parts: 1 - <K, K'>/(||K|| ||K'||) of small angles.
            assert 0 < result.rotation < 0.05
        before = result


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_tracks_follow_vectors_through_crossings_while_values_stay_in_order(kind, dtype):
    n, k = 270, 4
    vectors = basis(n)
    tracker = EigenTracker(k, tol=TOL)
    rest = np.linspace(0.5, 0, n - k)
    by_track = {}
    for time in np.linspace(0, 1, 12):
        values = np.array([4 - 2.5 * time, 1 + 4 * time, 3.0, 2.0])
        matrix = kernel(vectors, np.concatenate([values, rest]), dtype)
        result = tracker.update(kind(matrix))
        check(result, matrix)
        for j, track in enumerate(result.tracks):
            mine = int(np.abs(vectors[:, :k].T @ result.eigenvectors[:, j]).argmax())
            by_track.setdefault(int(track), set()).add(mine)
            np.testing.assert_allclose(result.eigenvalues[j], values[mine], rtol=1e-3)
    assert sorted(by_track) == list(range(k))
    assert all(len(seen) == 1 for seen in by_track.values())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_vector_that_enters_from_outside_is_found_or_told_of(kind, dtype):
    n, k = 300, 4
    vectors = basis(n)
    values = np.concatenate([[5.0, 4.0, 3.0, 2.0], np.linspace(0.5, 0, n - k)])
    for seed in range(10):
        tracker = EigenTracker(k, tol=TOL, seed=seed)
        matrix = kernel(vectors, values, dtype)
        first = tracker.update(kind(matrix))
        # From nothing to a visible size in one step, in a direction that no vector before has a part in.
        newcomer = np.random.default_rng(seed).uniform(2.2, 8.0)
        now = values.copy()
        now[-1] = newcomer
        matrix = kernel(vectors, now, dtype)
        result = tracker.update(kind(matrix))
        check(result, matrix, missed=False)
        found = np.abs(result.eigenvalues - newcomer) < 0.1 * TOL * now.max()
        assert found.any() or result.missed_bound >= newcomer * (1 - 1e-6)
        if found.any():
            assert result.tracks[int(found.argmax())] not in first.tracks
            assert set(result.tracks[~found].tolist()) <= set(first.tracks.tolist())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 3])
def test_a_vector_that_has_turned_is_not_passed_over_for_those_below_it(k, kind, dtype):
    """Its Ritz value on the vectors before falls below those of others, which have converged: not a reason to stop."""
    n = 300
    values = np.concatenate([[5.0, 4.9, 4.8, 4.7, 4.6], np.linspace(1, 0, n - 5)])
    for turning in range(k):
        vectors = basis(n)
        tracker = EigenTracker(k, tol=TOL)
        tracker.update(kind(kernel(vectors, values, dtype)))
        vectors = turned(vectors, turning, 200, 0.5)
        for _ in range(3):
            matrix = kernel(vectors, values, dtype)
            check(tracker.update(kind(matrix)), matrix)


@pytest.mark.parametrize("n", [40, 300])
@pytest.mark.parametrize("kind", KINDS)
def test_signs_and_tracks_do_not_depend_on_what_the_caller_does_to_results(kind, n):
    matrix = kernel(basis(n), 0.7 ** np.arange(n))
    ours, theirs = EigenTracker(3), EigenTracker(3)
    for scale in (1.0, 1.1, 1.2):
        expected = ours.update(kind(matrix * scale))
        result = theirs.update(kind(matrix * scale))
        np.testing.assert_array_equal(result.eigenvectors, expected.eigenvectors)
        np.testing.assert_array_equal(result.tracks, expected.tracks)
        assert result.rotation == expected.rotation or scale == 1.0
        for part in (result.eigenvectors, result.eigenvalues, result.tracks):
            part[:] = 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop", [0, 1, 3])
def test_a_tracker_that_was_stopped_and_restored_gives_the_same_bits(stop, kind, dtype):
    n, vectors, matrices = 280, basis(280), []
    for step in range(6):
        vectors = turned(vectors, 0, 100 + step, 0.2)
        matrices.append(kernel(vectors, (1 + step) * (np.arange(n) + 1.0) ** -1.5, dtype))
    tracker = EigenTracker(5, seed=3)
    expected = [tracker.update(kind(matrix)) for matrix in matrices]
    stopped = EigenTracker(5, seed=3)
    for matrix in matrices[:stop]:
        stopped.update(kind(matrix))
    state = {name: np.copy(part) for name, part in stopped.state_dict().items()}
    restored = EigenTracker(5, seed=3)
    restored.update(kind(matrices[-1]))
    restored.load_state_dict(state)
    for matrix, before in zip(matrices[stop:], expected[stop:], strict=True):
        result = restored.update(kind(matrix))
        for name in ("eigenvalues", "eigenvectors", "residuals", "converged", "tracks", "growth", "rotation"):
            np.testing.assert_array_equal(getattr(result, name), getattr(before, name))
        assert (result.passes, result.missed_bound) == (before.passes, before.missed_bound)


@pytest.mark.parametrize("n", [50, 300])
@pytest.mark.parametrize("kind", KINDS)
def test_refused_kernels_and_interruptions_leave_the_tracker_as_it_was(kind, n):
    matrix = kernel(basis(n), 0.7 ** np.arange(n))
    ours, theirs = EigenTracker(3), EigenTracker(3)
    ours.update(kind(matrix))
    theirs.update(kind(matrix))
    with pytest.raises(ValueError, match="use another EigenTracker"):
        theirs.update(kind(np.eye(n + 1)))
    with pytest.raises(ValueError, match="K must be float64 like the update before"):
        theirs.update(kind(matrix.astype(np.float32)))
    with pytest.raises(ValueError, match="must be finite"):
        theirs.update(kind(np.where(np.eye(n) > 0, np.nan, matrix)))
    with pytest.raises(ValueError, match="must be symmetric"):
        theirs.update(kind(np.triu(matrix)))
    with pytest.raises(SolveInterrupted):
        theirs.update(Opaque(basis(n) * np.linspace(0, 1, n) @ basis(n).T, 2, KeyboardInterrupt()))
    with pytest.raises(OSError, match="gone"):
        theirs.update(Opaque(matrix, 1, OSError("gone")))
    expected, result = ours.update(kind(2 * matrix)), theirs.update(kind(2 * matrix))
    np.testing.assert_array_equal(result.eigenvectors, expected.eigenvectors)
    np.testing.assert_array_equal(result.tracks, expected.tracks)
    assert result.growth == expected.growth


@pytest.mark.parametrize("n", [30, 300])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_kernels_in_between(kind, n, dtype):
    matrix = kernel(basis(n), 0.5 ** np.arange(n), dtype)
    zero = np.zeros_like(matrix)
    tracker = EigenTracker(3, tol=TOL)
    growths, rotations = [], []
    for now in (zero, zero, matrix, zero, matrix, 3 * matrix):
        result = tracker.update(kind(now))
        if now is zero:
            assert not result.eigenvalues.any()
            assert result.converged.all()
        else:
            check(result, now)
        growths.append(result.growth)
        rotations.append(result.rotation)
    np.testing.assert_allclose(growths, [np.nan, np.nan, np.nan, 0, np.nan, 3], rtol=1e-5)
    np.testing.assert_allclose(rotations, [np.nan] * 5 + [0], atol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 7, 12, 70])
@pytest.mark.parametrize("k", [1, 5, 11, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_kernels_of_few_rows(kind, k, n):
    """k above n, and n below k and the vectors beside them."""
    tracker = EigenTracker(k, tol=TOL)
    for step in range(4):
        matrix = kernel(turned(basis(n), 0, n - 1, 0.3 * step) if n > 1 else basis(n), np.arange(n) ** 2.0 + step + 1)
        result = tracker.update(kind(matrix))
        assert len(result.eigenvalues) == min(k, n)
        check(result, matrix)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_kernels_of_low_rank_and_with_repeated_rows(kind, dtype):
    rng = np.random.default_rng(0)
    factor = np.repeat(rng.standard_normal((100, 3)), 3, axis=0)
    tracker = EigenTracker(6, tol=TOL)
    for step in range(5):
        rows = factor * [1 + step, 1.0, 1.0]
        matrix = (rows @ rows.T).astype(dtype)
        matrix = (matrix + matrix.T) / 2
        result = tracker.update(kind(matrix))
        check(result, matrix)
        if step:
            np.testing.assert_array_equal(result.tracks[:3], result.tracks[0] + np.arange(3))
            assert result.passes <= 3


def test_repeated_eigenvalues_are_a_subspace_whose_growth_and_rotation_are_exact():
    n = 300
    matrix = kernel(basis(n), np.concatenate([[5.0] * 4, [1.0] * 3, np.zeros(n - 7)]))
    tracker = EigenTracker(4, tol=TOL)
    tracker.update(matrix)
    result = tracker.update(2 * matrix)
    check(result, 2 * matrix)
    np.testing.assert_allclose(result.growth, 2, rtol=1e-9)
    assert result.rotation <= 1e-9


def test_unfinished_updates_warn_with_the_result_and_move_on():
    n = 300
    tracker = EigenTracker(5, tol=1e-9, max_passes=2)
    matrix = kernel(basis(n), np.linspace(1, 0, n))
    with pytest.warns(NotConvergedWarning, match="residuals above the tolerance") as caught:
        first = tracker.update(matrix)
    assert caught[0].message.partial is first
    assert not first.converged.all()
    residuals = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotConvergedWarning)
        for _ in range(6):
            residuals.append(tracker.update(matrix).residuals.max())
    assert residuals[-1] < residuals[0] < first.residuals.max()


def _trained_kernels(dtype, whiten, steps=90, every=6):
    """NTKs of an MLP that learns to tell 0 from 1, and the gradients they are made of."""
    data = kg.datasets.digits((0, 1), n_train=280, n_test=0, whiten=whiten, dtype=dtype)
    x, y = data.x, data.y
    net = kg.nets.MLP(widths=[x.shape[1], 40, 1], activation="relu", sigma=0.1)
    params, kernels = net.init(seed=0, dtype=dtype), []

    class Keep(kg.Callback):
        def on_step(self, state):
            if state.step % every == 0:
                features = kg.gradients.from_net(net, state.params, x)
                kernels.append((np.array(kg.empirical_ntk(features)), features))

    kg.train(net, params, (x, y), optimizer=kg.optim.GD(lr=0.2), steps=steps, callbacks=[Keep()])
    return kernels


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("whiten", [False, True])
def test_kernels_along_training(whiten, dtype):
    kernels = _trained_kernels(dtype, whiten)
    assert len(kernels) >= 10
    for way in ("array", "opaque", "stored", "factored"):
        tracker, passes, before = EigenTracker(10, tol=TOL), [], None
        for matrix, features in kernels:
            kinds = {"array": lambda m=matrix: m, "opaque": lambda m=matrix: Opaque(m)}
            operator = kinds[way]() if way in kinds else kg.NTKOperator(features, products=way)
            result = tracker.update(operator)
            check(result, matrix)
            passes.append(result.passes)
            values, vectors = np.linalg.eigh(matrix.astype(float))
            now = vectors[:, -10:] * values[-10:] @ vectors[:, -10:].T
            if before is not None:
                np.testing.assert_allclose(result.growth, np.linalg.norm(now) / np.linalg.norm(before), rtol=1e-3)
                cosine = np.sum(now * before) / np.linalg.norm(now) / np.linalg.norm(before)
                np.testing.assert_allclose(result.rotation, 1 - cosine, atol=1e-4)
            before = now
        if way in ("array", "opaque"):
            # A start from the pairs before takes fewer passes than one from nothing.
            kind = Opaque if way == "opaque" else np.asarray
            cold = [EigenTracker(10, tol=TOL).update(kind(matrix)).passes for matrix, _ in kernels[1:]]
            assert sum(passes[1:]) < sum(cold)


def test_ctrl_c_comes_as_an_interruption_with_the_pairs_so_far():
    n = 300

    class Slow(Opaque):
        def __matmul__(self, block):
            self.products += 1
            if self.products == 4:
                signal.raise_signal(signal.SIGINT)
            return self.matrix @ block

    matrix = kernel(basis(n), np.linspace(1, 0, n))
    with pytest.raises(SolveInterrupted) as raised:
        EigenTracker(3, tol=0.0).update(Slow(matrix))
    partial = raised.value.partial
    assert partial.eigenvectors.shape == (n, 3)
    residuals = np.linalg.norm(matrix @ partial.eigenvectors - partial.eigenvectors * partial.eigenvalues, axis=0)
    np.testing.assert_allclose(partial.residuals, residuals, atol=1e-12)
    assert partial.missed_bound >= 0.9
