"""Kernel regression by products alone, against dense float64 solves and against the factorising path."""

import functools
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import LinearOperator, aslinearoperator

import kernelgrowth as kg
from kernelgrowth._backend.errors import MemoryLimitError, NotConvergedWarning
from kernelgrowth.diagnostics import KernelRegression

SEEDS = st.integers(0, 10**6)
PROPERTY = settings(deadline=None, max_examples=40)


class Network:
    """The kernel of a network on digits as operators, and dense in float64."""

    def __init__(self, classes, outputs, whiten, dtype, products):
        data = kg.datasets.digits(classes=classes, whiten=whiten, dtype=dtype)
        last = 1 if data.y.ndim == 1 else data.y.shape[1]
        net = kg.nets.MLP(widths=[data.x.shape[1], 60, last], activation="relu", sigma=1.0)
        params = net.init(seed=0, dtype=dtype)
        feats, test = (kg.gradients.from_net(net, params, x) for x in (data.x, data.x_test))
        self.kernel = kg.NTKOperator(feats, outputs=outputs, products=products)
        self.cross = kg.NTKOperator(test, feats, outputs=outputs, products=products)
        self.dense, self.dense_cross = (
            kg.NTKOperator(*pair, outputs=outputs).gram().astype(float) for pair in ((feats,), (test, feats))
        )
        self.y = np.asarray(data.y, float)
        self.columns = self.y.reshape(len(self.dense), -1)

    def solved(self, ridge):
        system = self.dense + ridge * np.mean(np.diag(self.dense)) * np.eye(len(self.dense))
        predictions = self.dense_cross @ np.linalg.solve(system, self.columns)
        return predictions.reshape((-1, *np.shape(self.y)[1:]))


@functools.cache
def network(classes=(0, 1), outputs="full", whiten=False, dtype=np.float64, products="factored"):
    return Network(classes, outputs, whiten, dtype, products)


class Opaque:
    """An operator that is nothing but its product, and keeps the widths of the blocks that came."""

    def __init__(self, matrix):
        self.matrix, self.shape, self.dtype = matrix, matrix.shape, matrix.dtype
        self.widths = []

    def __matmul__(self, block):
        self.widths.append(block.shape[1])
        return self.matrix @ block


class WithTrace(Opaque):
    def trace(self):
        return np.trace(self.matrix)


def distance(got, want):
    return np.linalg.norm(np.asarray(got, float) - want) / np.linalg.norm(want)


def with_spectrum(values, seed=0):
    basis = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values), len(values))))[0]
    matrix = basis * np.asarray(values, float) @ basis.T
    return (matrix + matrix.T) / 2


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("products", ["factored", "tiles", "stored"])
@pytest.mark.parametrize(("classes", "outputs"), [((0, 1), "full"), ((0, 1, 2), "full"), ((0, 1, 2), "trace")])
@pytest.mark.parametrize(("dtype", "ridge"), [(np.float32, 0.1), (np.float64, 0.1), (np.float64, 1e-3)])
def test_predictions_are_those_of_a_dense_solve(whiten, products, classes, outputs, dtype, ridge):
    net = network(classes, outputs, whiten, dtype, products)
    model = KernelRegression(net.kernel, diag_reg=ridge, method="cg").fit(net.y)
    assert model.method == "cg"
    assert 0 < model.rank <= len(net.dense) // 2
    assert model.iterations > 0
    got = model.predict(net.cross)
    assert got.dtype == dtype
    assert distance(got, net.solved(ridge)) < 1e-5


def test_ridge_systems_are_those_of_the_direct_path():
    net = network((0, 1, 2), "full", True)
    f0, f0_test = 0.3 * net.y, np.full((net.cross.shape[0] // 3, 3), 0.1)
    kwargs = {"diag_reg": 2.0, "absolute": True}
    direct = KernelRegression(net.dense, **kwargs).fit(net.y, f0)
    model = KernelRegression(net.kernel, **kwargs, method="cg").fit(net.y, f0)
    assert distance(model.predict(net.cross, f0_test), direct.predict(net.dense_cross, f0_test)) < 1e-7
    assert model.residual < 1e-8


@given(
    SEEDS, st.integers(1, 30), st.integers(1, 4), st.floats(0, 6), st.floats(1e-6, 10), st.sampled_from([0, 3, None])
)
@PROPERTY
def test_any_kernel_with_a_ridge_is_solved(seed, n, outputs, decades, ridge, rank):
    rng = np.random.default_rng(seed)
    kernel = with_spectrum(10.0 ** -np.linspace(0, decades, n), seed)
    y, cross = rng.standard_normal((n, outputs)), rng.standard_normal((4, n)) @ kernel
    direct = KernelRegression(kernel, diag_reg=ridge).fit(y)
    model = KernelRegression(kernel, diag_reg=ridge, method="cg", rank=rank).fit(y)
    assert model.residual < 1e-8
    assert distance(model.predict(cross), direct.predict(cross)) < 1e-5


@pytest.mark.parametrize(("classes", "outputs"), [((0, 1), "full"), ((0, 1, 2), "full"), ((0, 1, 2), "trace")])
def test_the_preconditioner_saves_iterations(classes, outputs):
    net = network(classes, outputs)
    counts = {}
    for rank in (0, None):
        model = KernelRegression(net.kernel, diag_reg=1e-3, method="cg", rank=rank, max_iterations=5000).fit(net.y)
        counts[rank] = model.iterations
        assert distance(model.predict(net.cross), net.solved(1e-3)) < 1e-5
    assert model.rank > 0
    assert counts[0] >= 5 * counts[None]


def test_the_condition_number_is_estimated():
    net = network()
    for ridge in (1e-1, 1e-3):
        for rank in (0, 30):
            model = KernelRegression(net.kernel, diag_reg=ridge, method="cg", rank=rank).fit(net.y)
            assert model.rank == rank
            values = np.linalg.eigvalsh(net.dense) + ridge * np.mean(np.diag(net.dense))
            assert model.condition == pytest.approx(values[-1] / values[0], rel=0.1)


@pytest.mark.parametrize(("classes", "outputs"), [((0, 1), "full"), ((0, 1, 2), "full"), ((0, 1, 2), "trace")])
@pytest.mark.parametrize("ridge", [0.0, 1e-3])
def test_flow_stopped_at_a_time_is_that_of_the_direct_path(classes, outputs, ridge):
    net = network(classes, outputs, whiten=True)
    direct = KernelRegression(net.dense, diag_reg=ridge).fit(net.y)
    model = KernelRegression(net.kernel, diag_reg=ridge, method="cg").fit(net.y)
    largest = np.linalg.eigvalsh(net.dense)[-1] / len(net.y)
    for t in (1e3 / largest, 0.1 / largest, 1.0 / largest, 30.0 / largest, 1e5 / largest, math.inf):
        want = direct.predict_at(net.dense_cross, t=t)
        assert distance(model.predict_at(net.cross, t=t), want) < 1e-6
    np.testing.assert_array_equal(model.predict_at(net.cross, t=0), np.zeros_like(want))


@pytest.mark.parametrize("outputs", ["full", "trace"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_flow_stopped_at_a_loss_is_that_of_the_direct_path(outputs, dtype):
    net = network((0, 1, 2), outputs, dtype=dtype)
    direct = KernelRegression(net.dense, diag_reg=1e-2).fit(net.y)
    model = KernelRegression(net.kernel, diag_reg=1e-2, method="cg").fit(net.y)
    first = np.sum(net.y**2) / (2 * len(net.y))
    last = np.sum((direct.predict(net.dense).reshape(net.y.shape) - net.y) ** 2) / (2 * len(net.y))
    tolerance = 1e-6 if dtype == np.float64 else 1e-4
    assert model.stopping_time(first) <= 1e-9 * model.stopping_time(0.9 * first)
    assert model.stopping_time(last) > direct.stopping_time(last + 1e-3 * (first - last))
    for share in (0.9, 0.5, 0.1, 1e-3):
        loss = last + share * (first - last)
        assert model.stopping_time(loss) == pytest.approx(direct.stopping_time(loss), rel=tolerance)
        want = direct.predict_at(net.dense_cross, train_loss=loss)
        assert distance(model.predict_at(net.cross, train_loss=loss), want) < tolerance


@given(SEEDS, st.integers(1, 30), st.integers(1, 3), st.sampled_from([0.0, 1e-2]), st.floats(-2, 4), st.booleans())
@PROPERTY
def test_the_flow_of_any_kernel_is_that_of_the_direct_path(seed, n, outputs, ridge, decades, duplicated):
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((n, 2 * n)) / np.sqrt(2 * n)
    if duplicated:
        features = features[rng.integers(0, n, n)]
    kernel, y = features @ features.T, rng.standard_normal((n, outputs))
    direct = KernelRegression(kernel, diag_reg=ridge).fit(y)
    model = KernelRegression(WithTrace(kernel), diag_reg=ridge, method="cg").fit(y)
    t = n * 10.0**decades
    want = direct.predict_at(kernel, t=t)
    assert distance(model.predict_at(kernel, t=t), want) < 1e-5
    loss = np.sum((want - y) ** 2) / (2 * n)
    assert distance(model.predict_at(kernel, train_loss=loss), want) < 1e-3


def test_one_krylov_space_serves_every_time():
    kernel = WithTrace(with_spectrum(np.linspace(1, 50, 60)))
    model = KernelRegression(kernel, diag_reg=0.1, method="cg").fit(np.ones(60))
    before = len(kernel.widths)
    model.predict_at(kernel.matrix, t=100.0)
    assert before + 10 < len(kernel.widths) <= before + 60
    before = len(kernel.widths)
    for t in (0.1, 10.0, 50.0):
        model.predict_at(kernel.matrix, t=t)
    assert len(kernel.widths) == before
    times = [model.stopping_time(loss) for loss in (0.1, 0.3)]
    before = len(kernel.widths)
    assert [model.stopping_time(loss) for loss in (0.1, 0.3)] == times
    assert len(kernel.widths) == before


def test_losses_many_decades_down_are_reached():
    kernel = with_spectrum(np.linspace(1, 3, 40))
    model = KernelRegression(kernel, method="cg", tol=1e-12).fit(np.random.default_rng(0).standard_normal(40))
    direct = KernelRegression(kernel).fit(np.random.default_rng(0).standard_normal(40))
    for loss in (1e-3, 1e-8, 1e-14, 1e-18):
        assert model.stopping_time(loss) == pytest.approx(direct.stopping_time(loss), rel=1e-3)


@given(SEEDS, st.integers(2, 20), st.integers(1, 3), st.sampled_from([0, 4, None]), st.floats(0, 2))
@PROPERTY
def test_duplicated_examples_get_the_pseudo_inverse(seed, n, outputs, rank, decades):
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((n, 2 * n)) * 10.0 ** -np.linspace(0, decades, 2 * n)
    order = rng.permutation(np.concatenate([np.arange(n), rng.integers(0, n, n)]))
    kernel = (features @ features.T)[np.ix_(order, order)]
    y = rng.standard_normal((2 * n, outputs))
    model = KernelRegression(aslinearoperator(kernel), method="cg", rank=rank, max_iterations=5000).fit(y)
    inverse = np.linalg.pinv(kernel, rcond=1e-11, hermitian=True)
    # With the identity for a test kernel, predictions are the coefficients: those of smallest norm.
    assert distance(model.predict(np.eye(2 * n)), inverse @ y) < 1e-5
    assert model.residual == pytest.approx(distance(kernel @ inverse @ y, y), abs=1e-7)


@pytest.mark.parametrize("rank", [0, None])
def test_more_whitened_examples_than_dimensions(rank):
    x = np.linalg.qr(np.random.default_rng(0).standard_normal((200, 7)))[0]
    y = np.random.default_rng(1).standard_normal((200, 2))
    for dtype in (np.float32, np.float64):
        kernel = (x @ x.T).astype(dtype)
        model = KernelRegression(aslinearoperator(kernel), method="cg", rank=rank).fit(y)
        np.testing.assert_allclose(model.predict(kernel), x @ (x.T @ y), atol=1e-5)
        assert model.condition == pytest.approx(1, rel=1e-4)
        assert model.iterations < 20
        flow = KernelRegression(kernel).fit(y).predict_at(kernel, t=100.0)
        np.testing.assert_allclose(model.predict_at(kernel, t=100.0), flow, atol=1e-5)
        np.testing.assert_allclose(model.predict_at(kernel, t=1e30), x @ (x.T @ y), atol=1e-5)


def test_a_zero_kernel_predicts_f0():
    for ridge, residual in ((0.0, 1.0), (0.5, 0.0)):
        model = KernelRegression(aslinearoperator(np.zeros((3, 3))), diag_reg=ridge, absolute=True, method="cg")
        model.fit([1.0, 2.0, 3.0], [0.5, 0.5, 0.5])
        assert (model.method, model.rank) == ("cg", 0)
        assert model.residual == pytest.approx(residual, abs=1e-8)
        np.testing.assert_array_equal(model.predict(np.zeros((2, 3)), [7.0, 8.0]), [7.0, 8.0])
        np.testing.assert_array_equal(model.predict_at(np.zeros((2, 3)), t=5.0, f0=[7.0, 8.0]), [7.0, 8.0])
    assert math.isnan(KernelRegression(np.zeros((3, 3)), method="cg").fit(np.ones(3)).condition)


def test_zero_targets_and_columns_that_stop_by_themselves():
    kernel = WithTrace(with_spectrum(np.linspace(1, 100, 50)))
    model = KernelRegression(kernel, diag_reg=0.1, method="cg", rank=0).fit(np.zeros((50, 2)))
    assert (model.iterations, model.residual) == (0, 0.0)
    np.testing.assert_array_equal(model.predict(np.eye(50)), np.zeros((50, 2)))
    assert model.stopping_time(0.0) == 0.0

    eigenvector = np.linalg.eigh(kernel.matrix)[1][:, -1]
    y = np.stack([np.zeros(50), eigenvector, np.random.default_rng(0).standard_normal(50)], axis=1)
    kernel.widths.clear()
    model.fit(y)
    assert kernel.widths[0] == 2
    assert kernel.widths.count(1) > 10
    np.testing.assert_allclose(
        model.predict(np.eye(50)), KernelRegression(kernel.matrix, diag_reg=0.1).fit(y).predict(np.eye(50)), atol=1e-8
    )


def test_one_example():
    for rank in (0, 1, None):
        model = KernelRegression(aslinearoperator(np.array([[4.0]])), method="cg", rank=rank).fit([2.0])
        np.testing.assert_allclose(model.predict([[4.0], [2.0]]), [2.0, 1.0])
        np.testing.assert_allclose(model.predict_at([[4.0]], t=0.25), [2.0 * -math.expm1(-1.0)])
        assert model.stopping_time(2.0 * math.exp(-2.0)) == pytest.approx(0.25)


@pytest.mark.parametrize(("dtype", "exponent"), [(np.float32, -66), (np.float32, 66), (np.float64, 660)])
@pytest.mark.parametrize("size", [12, 40])
def test_powers_of_two_change_no_bit(dtype, exponent, size):
    features = np.random.default_rng(0).standard_normal((40, size))
    kernel = (features @ features.T).astype(dtype)
    kernel = (kernel + kernel.T) / 2
    y = features @ np.random.default_rng(1).standard_normal((size, 2))

    def run(exponent, shift):
        model = KernelRegression(WithTrace(np.ldexp(kernel, exponent)), diag_reg=1e-2, method="cg")
        cross = aslinearoperator(np.ldexp(kernel[:5], exponent))
        model.fit(np.ldexp(y, shift))
        time = model.stopping_time(np.ldexp(0.5 * np.sum(y**2) / (2 * len(y)), 2 * shift))
        results = [model.predict(cross), model.predict_at(cross, t=math.ldexp(3.0, -exponent))]
        return [np.ldexp(result, -shift) for result in results] + [
            model.condition,
            model.residual,
            model.iterations,
            math.ldexp(time, exponent),
        ]

    plain = run(0, 0)
    for scaled in (run(exponent, 0), run(0, 20), run(exponent, -20)):
        for got, want in zip(scaled[:-1], plain[:-1], strict=True):
            np.testing.assert_array_equal(got, want)
        # A root is sought in the logarithm of the loss, which is rounded.
        assert scaled[-1] == pytest.approx(plain[-1], rel=1e-12)


def test_the_same_seed_gives_the_same_bits():
    net = network()
    got = [
        KernelRegression(net.kernel, diag_reg=1e-3, method="cg", seed=s).fit(net.y).predict(net.cross) for s in (5, 5)
    ]
    np.testing.assert_array_equal(got[0], got[1])


class LowRankPlusDiagonal(Opaque):
    """``F Fᵀ + d``, whose system the Woodbury identity solves exactly."""

    def __init__(self, n, seed=0):
        rng = np.random.default_rng(seed)
        self.features, self.shift = rng.standard_normal((n, 30)) * 2.0 ** -np.arange(30), 0.01
        self.shape, self.dtype, self.widths = (n, n), np.dtype(np.float64), []

    def __matmul__(self, block):
        self.widths.append(block.shape[1])
        return self.features @ (self.features.T @ block) + self.shift * block

    def trace(self):
        return np.sum(self.features**2) + self.shift * len(self.features)

    def inverse(self, ridge, y):
        shift = self.shift + ridge
        core = self.features.T @ self.features + shift * np.eye(30)
        return (y - self.features @ np.linalg.solve(core, self.features.T @ y)) / shift


def test_large_operators_are_never_written_out():
    kernel = LowRankPlusDiagonal(20_000)
    y = np.random.default_rng(2).standard_normal((20_000, 2))
    model = KernelRegression(kernel, diag_reg=1e-3).fit(y)
    assert model.method == "cg"
    assert max(kernel.widths) < 200
    ridge = 1e-3 * kernel.trace() / 20_000
    cross = np.random.default_rng(3).standard_normal((5, 30)) @ kernel.features.T
    want = cross @ kernel.inverse(ridge, y)
    assert distance(model.predict(cross), want) < 1e-5
    assert distance(model.predict(Opaque(cross)), want) < 1e-5
    late = model.predict_at(cross, t=1e4 * 20_000)
    assert distance(late, want) < 1e-5


def test_auto_factorises_what_is_small_or_stored():
    kernel = with_spectrum(np.linspace(1, 2, 30))
    y = np.random.default_rng(0).standard_normal(30)
    want = KernelRegression(kernel, diag_reg=0.1).fit(y)
    assert (want.method, want.iterations) == ("cholesky", 0)
    for operator in (aslinearoperator(kernel), Opaque(kernel)):
        model = KernelRegression(operator, diag_reg=0.1).fit(y)
        assert model.method == "cholesky"
        np.testing.assert_allclose(model.predict(kernel), want.predict(kernel), rtol=1e-12)
    model = KernelRegression(WithTrace(kernel), diag_reg=0.1, memory_limit=30_000).fit(y)
    assert model.method == "cg"
    np.testing.assert_allclose(model.predict(kernel), want.predict(kernel), rtol=1e-6)
    assert KernelRegression(kernel, method="cg").fit(y).method == "cg"
    assert KernelRegression(kernel, memory_limit=1).fit(y).method == "cholesky"


def test_test_kernels_may_be_operators():
    kernel = with_spectrum(np.linspace(1, 2, 30)).astype(np.float32)
    cross = np.random.default_rng(1).standard_normal((4, 30)).astype(np.float32)
    for method in ("direct", "cg"):
        model = KernelRegression(kernel, method=method).fit(np.ones((30, 2)))
        want = model.predict(cross)
        got = model.predict(aslinearoperator(cross))
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want, rtol=1e-6)
        np.testing.assert_allclose(
            model.predict_at(Opaque(cross), t=10.0), model.predict_at(cross, t=10.0), rtol=1e-5, atol=1e-7
        )


def test_a_tolerance_that_is_not_reached_is_a_warning_with_the_result():
    kernel = with_spectrum(10.0 ** -np.linspace(0, 8, 60))
    y = np.random.default_rng(0).standard_normal((60, 2))
    model = KernelRegression(kernel, diag_reg=1e-9, method="cg", rank=0, max_iterations=10)
    with pytest.warns(NotConvergedWarning, match="2 of 2 right-hand sides .* held up by max_iterations") as caught:
        model.fit(y)
    assert caught[0].message.partial is model
    assert caught[0].filename == __file__
    assert model.iterations == 10
    assert 1e-8 < model.residual < 1


def test_a_flow_that_is_not_settled_is_a_warning_with_the_result():
    kernel = with_spectrum(10.0 ** -np.linspace(0, 4, 60))
    y = np.random.default_rng(0).standard_normal((60, 2))
    model = KernelRegression(kernel, diag_reg=1e-3, method="cg", rank=60, max_iterations=10).fit(y)
    with pytest.warns(NotConvergedWarning, match="predict_at: the flow is known to") as caught:
        got = model.predict_at(kernel, t=1e5)
    assert caught[0].message.partial is got
    assert caught[0].filename == __file__
    first, last = (np.sum((f - y) ** 2) / (2 * len(y)) for f in (0.0, model.predict(kernel)))
    with pytest.warns(NotConvergedWarning, match="stopping_time: the flow is known to") as caught:
        time = model.stopping_time(last + 1e-2 * (first - last))
    assert caught[0].message.partial == time


def test_singular_systems_end():
    """Directions a little above the cut-off: nothing converges, and nothing loops."""
    kernel = with_spectrum([1.0, 0.5, 1e-11, 1e-11, 1e-12, 0.0, 0.0, 0.0])
    for rank in (0, None):
        model = KernelRegression(aslinearoperator(kernel), method="cg", rank=rank)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotConvergedWarning)
            model.fit(np.random.default_rng(0).standard_normal(8))
        assert model.iterations < 200
        assert np.isfinite(model.predict(kernel)).all()


@pytest.mark.parametrize("values", [[1.0, -1.0], [1.0, -0.5, *np.linspace(0.1, 0.9, 20)]])
@pytest.mark.parametrize("rank", [0, None])
def test_indefinite_kernels_are_refused(values, rank):
    y = np.random.default_rng(0).standard_normal(len(values))
    with pytest.raises(ValueError, match="must be positive semi-?definite"):
        KernelRegression(aslinearoperator(with_spectrum(values)), method="cg", rank=rank).fit(y)


def test_krylov_spaces_keep_to_the_memory_limit():
    kernel = with_spectrum(np.linspace(1, 1000, 300))
    model = KernelRegression(kernel, method="cg", memory_limit=300 * 8 * 20).fit(np.ones(300))
    model.predict_at(kernel, t=0.1)
    with pytest.raises(MemoryLimitError, match="kernel flow of 1 right-hand side.* needs Krylov bases of") as caught:
        model.predict_at(kernel, t=1e4)
    assert caught.value.needed > caught.value.limit == 300 * 8 * 20


def test_preconditioners_keep_to_the_memory_limit():
    kernel = with_spectrum(np.linspace(1, 1000, 300))
    limit = 300 * 64 * 30
    model = KernelRegression(kernel, method="cg", memory_limit=limit).fit(np.ones(300))
    assert 0 < model.rank <= 10
    with pytest.raises(MemoryLimitError, match="a preconditioner of rank 40 for 300 rows needs") as caught:
        KernelRegression(kernel, method="cg", memory_limit=limit, rank=40).fit(np.ones(300))
    assert caught.value.needed > caught.value.limit == limit


def crooked(n=3):
    return Opaque(np.triu(np.ones((n, n))))


def function(matvec, n=2):
    return LinearOperator((n, n), matvec=matvec, matmat=matvec, dtype=np.float64)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: KernelRegression(np.eye(2), method="minres"), ValueError, "method must be one of 'auto', 'direct'"),
        (lambda: KernelRegression(np.eye(2), rank=-1), ValueError, "rank must be at least 0"),
        (lambda: KernelRegression(np.eye(2), rank=1.5), TypeError, "rank must be an integer"),
        (lambda: KernelRegression(np.eye(2), tol=0), ValueError, "tol must be greater than 0"),
        (lambda: KernelRegression(np.eye(2), max_iterations=0), ValueError, "max_iterations must be at least 1"),
        (lambda: KernelRegression(np.eye(2), seed=-1), ValueError, "seed must be at least 0"),
        (lambda: KernelRegression(np.eye(2), memory_limit=0), ValueError, "memory_limit must be at least 1"),
        (lambda: KernelRegression(Opaque(np.ones((2, 3))), method="cg"), ValueError, "K must be a square matrix"),
        (lambda: KernelRegression(crooked(), method="cg"), ValueError, "K must be symmetric, got products"),
        (lambda: KernelRegression(crooked()), ValueError, "K @ I must be symmetric|K must be symmetric"),
        (
            lambda: KernelRegression(Opaque(np.eye(2)), diag_reg=0.1, method="cg"),
            ValueError,
            r"diag_reg is relative .* neither .trace\(\) nor .diagonal\(\): .* absolute=True",
        ),
        (
            lambda: KernelRegression(function(lambda v: v * np.nan), method="cg"),
            ValueError,
            "K @ V must be finite",
        ),
        (
            lambda: KernelRegression(Opaque(np.eye(2, dtype=complex)), method="cg"),
            TypeError,
            "K must compute in float32 or float64",
        ),
        (
            lambda: KernelRegression(Opaque(np.eye(9)), method="direct", memory_limit=100),
            MemoryLimitError,
            r"factorising K of shape \(9, 9\) needs 3.2 KiB, but memory_limit is 100 B: take method='cg'",
        ),
        (
            lambda: KernelRegression(np.eye(2), method="cg").fit(np.ones(2)).predict(Opaque(np.ones((2, 3)))),
            ValueError,
            "K_test_train must have 2 columns, got shape",
        ),
        (
            lambda: KernelRegression(np.eye(2), method="cg").fit(np.ones(2)).stopping_time(3.0),
            ValueError,
            r"train_loss must be between .* \(t = inf\) and 0.5 \(t = 0\), got 3",
        ),
        (
            lambda: KernelRegression(np.ones((2, 2)), method="cg").fit([1.0, -1.0]).stopping_time(0.1),
            ValueError,
            r"train_loss must be between 0.5 \(t = inf\)",
        ),
        (lambda: KernelRegression(np.eye(2), method="cg").predict(np.eye(2)), RuntimeError, "needs fit first"),
        (lambda: KernelRegression(np.eye(2), method="cg").predict_at(np.eye(2), t=1), RuntimeError, "needs fit first"),
    ],
)
def test_misuse_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
