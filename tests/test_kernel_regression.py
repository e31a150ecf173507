"""Kernel regression and its flow against explicit solves, pseudo-inverses and an integrated differential equation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelgrowth.diagnostics import KernelRegression

SEEDS = st.integers(0, 10**6)
PROPERTY = settings(deadline=None, max_examples=40)


class Problem:
    """A feature kernel between train and test examples, with targets and predictions before training."""

    def __init__(self, seed, n, outputs=1, rank=None, per_row=False, flat=False):
        rng = np.random.default_rng(seed)
        rows, test_rows = (n * outputs, 5 * outputs) if per_row else (n, 5)
        rank = 2 * rows if rank is None else rank
        features, test = rng.standard_normal((rows, rank)), rng.standard_normal((test_rows, rank))
        self.kernel, self.cross = features @ features.T, test @ features.T
        self.y, self.f0, self.f0_test = (rng.standard_normal((m, outputs)) for m in (n, n, 5))
        if flat:
            self.y, self.f0, self.f0_test = self.y[:, 0], self.f0[:, 0], self.f0_test[:, 0]
        self.n, self.per_row = n, per_row

    def expected(self, inverse):
        """f_0 + K_test_train · inverse · (y - f_0) in the shape of the targets."""
        residuals = self.y - self.f0
        columns = residuals.reshape(-1, 1) if self.per_row else residuals
        return self.f0_test + (self.cross @ inverse @ columns).reshape(self.f0_test.shape)

    def flow(self, t, ridge=0.0):
        """(1 - e^{-(λ + μ) t / N}) / (λ + μ) of the kernel."""
        values, vectors = np.linalg.eigh(self.kernel)
        return (vectors * [-math.expm1(-(v + ridge) * t / self.n) / (v + ridge) for v in values]) @ vectors.T


def problems(**fixed):
    options = {"n": st.integers(1, 15), "outputs": st.integers(1, 3), "per_row": st.booleans(), **fixed}
    return st.builds(Problem, SEEDS, **options)


@given(problems())
@PROPERTY
def test_nonsingular_kernels_are_interpolated(problem):
    model = KernelRegression(problem.kernel).fit(problem.y, problem.f0)
    assert model.method == "cholesky"
    assert model.rank == len(problem.kernel)
    assert model.condition >= 1
    assert model.residual < 1e-8
    np.testing.assert_allclose(model.predict(problem.kernel, problem.f0), problem.y, atol=1e-7)
    np.testing.assert_allclose(
        model.predict(problem.cross, problem.f0_test),
        problem.expected(np.linalg.inv(problem.kernel)),
        rtol=1e-6,
        atol=1e-6,
    )


@given(problems(), st.floats(1e-6, 10), st.booleans())
@PROPERTY
def test_ridge_formula(problem, ridge, absolute):
    mean = 1.0 if absolute else np.mean(np.diag(problem.kernel))
    inverse = np.linalg.inv(problem.kernel + ridge * mean * np.eye(len(problem.kernel)))
    model = KernelRegression(problem.kernel, diag_reg=ridge, absolute=absolute).fit(problem.y, problem.f0)
    np.testing.assert_allclose(
        model.predict(problem.cross, problem.f0_test), problem.expected(inverse), rtol=1e-6, atol=1e-7
    )
    np.testing.assert_allclose(
        model.predict_at(problem.cross, t=math.inf, f0=problem.f0_test), problem.expected(inverse), rtol=1e-6, atol=1e-7
    )
    assert model.residual < 1e-8


@given(problems(n=st.integers(6, 15), rank=st.integers(1, 4), outputs=st.integers(1, 2)))
@PROPERTY
def test_singular_kernels_get_the_pseudo_inverse(problem):
    model = KernelRegression(problem.kernel).fit(problem.y, problem.f0)
    rank = np.linalg.matrix_rank(problem.kernel)
    inverse = np.linalg.pinv(problem.kernel, rcond=1e-11, hermitian=True)
    assert model.method == "eigh"
    assert model.rank == rank
    values = np.linalg.eigvalsh(problem.kernel)[-rank:]
    assert model.condition == pytest.approx(values[-1] / values[0], rel=1e-6)
    np.testing.assert_allclose(
        model.predict(problem.cross, problem.f0_test), problem.expected(inverse), rtol=1e-6, atol=1e-6
    )
    columns = (problem.y - problem.f0).reshape(len(problem.kernel), -1)
    missed = columns - problem.kernel @ inverse @ columns
    assert model.residual == pytest.approx(np.linalg.norm(missed) / np.linalg.norm(columns), abs=1e-9)


def test_duplicated_examples_are_averaged():
    kernel = np.array([[2.0, 2.0, 0.0], [2.0, 2.0, 0.0], [0.0, 0.0, 1.0]])
    model = KernelRegression(kernel).fit([1.0, 3.0, 5.0])
    assert (model.method, model.rank) == ("eigh", 2)
    np.testing.assert_allclose(model.predict(kernel), [2.0, 2.0, 5.0], atol=1e-14)


def test_more_whitened_examples_than_dimensions():
    rng = np.random.default_rng(0)
    x = np.linalg.qr(rng.standard_normal((60, 7)))[0]
    teacher = rng.standard_normal(7)
    kernel = (x @ x.T).astype(np.float32)
    model = KernelRegression(kernel).fit(x @ teacher)
    assert (model.method, model.rank) == ("eigh", 7)
    assert model.condition == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(model.predict(kernel), x @ teacher, atol=1e-5)
    assert model.predict(kernel).dtype == np.float32


@given(problems(), st.floats(0, 20), st.sampled_from([0.0, 0.5]))
@PROPERTY
def test_flow_stopped_at_a_time(problem, t, ridge):
    model = KernelRegression(problem.kernel, diag_reg=ridge, absolute=True).fit(problem.y, problem.f0)
    got = model.predict_at(problem.cross, t, f0=problem.f0_test)
    np.testing.assert_allclose(got, problem.expected(problem.flow(t, ridge)), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("per_row", [False, True])
def test_flow_solves_its_differential_equation(per_row):
    problem = Problem(3, 4, outputs=2, per_row=per_row)
    everything = np.concatenate([problem.kernel, problem.cross])
    f = np.concatenate([problem.f0, problem.f0_test]).reshape(len(everything), -1)
    targets = problem.y.reshape(len(problem.kernel), -1)
    steps, t = 4000, 0.5
    for _ in range(steps):  # the midpoint rule, second order

        def slope(f):
            return -everything @ (f[: len(targets)] - targets) / problem.n

        f = f + t / steps * slope(f + t / steps / 2 * slope(f))
    model = KernelRegression(problem.kernel).fit(problem.y, problem.f0)
    got = np.concatenate(
        [model.predict_at(problem.kernel, t=t, f0=problem.f0), model.predict_at(problem.cross, t=t, f0=problem.f0_test)]
    )
    np.testing.assert_allclose(got.reshape(f.shape), f, atol=1e-5)


@given(problems(rank=st.integers(1, 40)))
@PROPERTY
def test_flow_begins_at_f0_and_ends_at_the_prediction(problem):
    model = KernelRegression(problem.kernel).fit(problem.y, problem.f0)
    np.testing.assert_array_equal(model.predict_at(problem.cross, t=0, f0=problem.f0_test), problem.f0_test)
    end = model.predict(problem.cross, problem.f0_test)
    for t in (math.inf, 1e30):
        np.testing.assert_allclose(model.predict_at(problem.cross, t=t, f0=problem.f0_test), end, rtol=1e-4, atol=1e-5)


def train_loss(predictions, y):
    return np.sum((predictions - y) ** 2) / (2 * len(y))


@given(problems(rank=st.integers(1, 40)), st.floats(0, 1), st.sampled_from([0.0, 0.3]))
@PROPERTY
def test_flow_stopped_at_a_loss_has_that_loss(problem, share, ridge):
    model = KernelRegression(problem.kernel, diag_reg=ridge).fit(problem.y, problem.f0)
    first = train_loss(problem.f0, problem.y)
    last = train_loss(model.predict_at(problem.kernel, t=math.inf, f0=problem.f0), problem.y)
    wanted = last + share * (first - last)
    got = model.predict_at(problem.kernel, train_loss=wanted, f0=problem.f0)
    assert train_loss(got, problem.y) == pytest.approx(wanted, rel=1e-8, abs=1e-10 * first)
    with pytest.raises(ValueError, match=r"train_loss must be between .* \(t = inf\) and .* \(t = 0\)"):
        model.predict_at(problem.kernel, train_loss=first * 1.01 + 1e-9, f0=problem.f0)


@given(problems(n=st.integers(2, 10), rank=st.integers(1, 40)))
@PROPERTY
def test_a_lower_loss_takes_longer(problem):
    model = KernelRegression(problem.kernel).fit(problem.y, problem.f0)
    first = train_loss(problem.f0, problem.y)
    last = train_loss(model.predict(problem.kernel, problem.f0), problem.y)
    times = [model.stopping_time(last + s * (first - last)) for s in (1, 0.9, 0.5, 0.1, 0.01)]
    assert times[0] <= 1e-9 * times[1]
    assert (np.diff(times) > 0).all()
    assert model.stopping_time(last) > times[-1]


def test_losses_many_decades_down_are_reached():
    problem = Problem(0, 10, rank=200, flat=True)
    model = KernelRegression(problem.kernel).fit(problem.y)
    for loss in (1e-3, 1e-8, 1e-14, 1e-22):
        got = model.predict_at(problem.kernel, train_loss=loss)
        assert train_loss(got, problem.y) == pytest.approx(loss, rel=1e-3)
    assert model.stopping_time(0.0) == math.inf


def test_a_loss_below_what_a_singular_kernel_can_reach_is_refused():
    model = KernelRegression(np.diag([1.0, 0.0])).fit([1.0, 1.0])
    assert model.stopping_time(0.25) == math.inf
    with pytest.raises(ValueError, match=r"between 0.25 \(t = inf\) and 0.5 \(t = 0\), got 0.2"):
        model.predict_at(np.eye(2), train_loss=0.2)


@pytest.mark.parametrize(("dtype", "scale"), [(np.float32, 1e-20), (np.float64, 1e-200), (np.float64, 1e200)])
@pytest.mark.parametrize("rank", [3, 40])
def test_the_scale_of_the_kernel_does_not_matter(dtype, scale, rank):
    problem = Problem(1, 9, rank=rank, flat=True)
    kernel, cross = problem.kernel.astype(np.float32), problem.cross.astype(np.float32)
    plain = KernelRegression(kernel).fit(problem.y, problem.f0)
    model = KernelRegression((kernel * np.float64(scale)).astype(dtype)).fit(problem.y, problem.f0)
    small = (cross * np.float64(scale)).astype(dtype)
    assert model.rank == plain.rank
    want = plain.predict(cross, problem.f0_test)
    np.testing.assert_allclose(model.predict(small, problem.f0_test), want, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        model.predict_at(small, t=0.1 / scale, f0=problem.f0_test),
        plain.predict_at(cross, t=0.1, f0=problem.f0_test),
        rtol=1e-3,
        atol=1e-5,
    )
    assert model.stopping_time(plain_loss := train_loss(problem.f0, problem.y) * 0.95) == pytest.approx(
        plain.stopping_time(plain_loss) / scale, rel=1e-4
    )


def test_a_zero_kernel_predicts_f0():
    model = KernelRegression(np.zeros((3, 3)), diag_reg=0.1).fit([1.0, 2.0, 3.0], [0.5, 0.5, 0.5])
    assert (model.method, model.rank, model.residual) == ("eigh", 0, 1.0)
    assert math.isnan(model.condition)
    np.testing.assert_array_equal(model.predict(np.ones((2, 3)), [7.0, 8.0]), [7.0, 8.0])
    np.testing.assert_array_equal(model.predict_at(np.ones((2, 3)), t=5.0, f0=[7.0, 8.0]), [7.0, 8.0])


def test_one_example_and_a_target_already_reached():
    model = KernelRegression([[4.0]]).fit([2.0])
    np.testing.assert_allclose(model.predict([[4.0], [2.0]]), [2.0, 1.0])
    reached = KernelRegression(np.eye(2)).fit([1.0, 2.0], [1.0, 2.0])
    assert reached.residual == 0.0
    np.testing.assert_array_equal(reached.predict(np.ones((1, 2)), [3.0]), [3.0])
    assert reached.stopping_time(0.0) == 0.0


@given(problems(n=st.integers(2, 10)), SEEDS)
@PROPERTY
def test_order_of_examples_does_not_matter(problem, seed):
    if problem.per_row:
        return
    order = np.random.default_rng(seed).permutation(problem.n)
    plain = KernelRegression(problem.kernel).fit(problem.y, problem.f0)
    shuffled = KernelRegression(problem.kernel[np.ix_(order, order)]).fit(problem.y[order], problem.f0[order])
    np.testing.assert_allclose(
        shuffled.predict(problem.cross[:, order], problem.f0_test),
        plain.predict(problem.cross, problem.f0_test),
        rtol=1e-6,
        atol=1e-6,
    )


def test_shapes_follow_the_targets():
    kernel, cross = np.eye(3), np.ones((2, 3))
    assert KernelRegression(kernel).fit(np.ones(3)).predict(cross).shape == (2,)
    assert KernelRegression(kernel).fit(np.ones((3, 1))).predict(cross).shape == (2, 1)
    assert KernelRegression(kernel).fit(np.ones((3, 4))).predict(cross).shape == (2, 4)
    assert KernelRegression(np.eye(6)).fit(np.ones((3, 2))).predict(np.ones((4, 6))).shape == (2, 2)
    # A network's predictions (N, 1) beside targets (N,).
    model = KernelRegression(kernel).fit(np.ones(3), np.zeros((3, 1)))
    assert model.predict(cross, np.zeros((2, 1))).shape == (2,)


def test_operators_are_taken_and_nothing_is_changed():
    class Operator:
        def __init__(self, matrix):
            self.matrix = matrix
            matrix.flags.writeable = False

        def gram(self):
            return self.matrix

    problem = Problem(0, 6, flat=True)
    kernel = problem.kernel.copy()
    want = KernelRegression(kernel).fit(problem.y).predict(problem.cross)
    model = KernelRegression(Operator(problem.kernel)).fit(problem.y)
    np.testing.assert_array_equal(model.predict(Operator(problem.cross)), want)
    kernel[:] = 0
    np.testing.assert_array_equal(model.fit(problem.y).predict(problem.cross), want)


def fitted(f0=None):
    return KernelRegression(np.eye(2)).fit([1.0, 2.0], f0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: KernelRegression(np.ones((2, 3))), ValueError, "K must be square"),
        (lambda: KernelRegression([[1.0, 2.0], [0.0, 1.0]]), ValueError, "K must be symmetric"),
        (lambda: KernelRegression([[np.nan]]), ValueError, "K must be finite"),
        (lambda: KernelRegression([[1.0]], diag_reg=-1), ValueError, "diag_reg must be at least 0"),
        (lambda: KernelRegression([[1.0]], absolute=1), TypeError, "absolute must be True or False"),
        (
            lambda: KernelRegression(np.diag([1.0, -1.0])).fit([1.0, 2.0]),
            ValueError,
            "K must be positive semi-definite",
        ),
        (lambda: KernelRegression(np.eye(2)).fit([1.0, 2.0, 3.0]), ValueError, "y must be"),
        (lambda: KernelRegression(np.eye(2)).fit([1.0, np.inf]), ValueError, "y must be finite"),
        (lambda: fitted([1.0]), ValueError, r"f0 must have shape \(2, 1\)"),
        (lambda: fitted().predict(np.ones((1, 3))), ValueError, "K_test_train must have 2 columns, got shape"),
        (
            lambda: KernelRegression(np.eye(4)).fit(np.ones((2, 2))).predict(np.ones((3, 4))),
            ValueError,
            "K_test_train must have 4 columns and a multiple of 2 rows",
        ),
        (lambda: fitted().predict(np.eye(2), [0.0, 0.0]), ValueError, "came to the prediction but not to fit"),
        (lambda: fitted([0.0, 0.0]).predict(np.eye(2)), ValueError, "came to fit but not to the prediction"),
        (lambda: fitted().predict_at(np.eye(2)), ValueError, "exactly one of t and train_loss"),
        (lambda: fitted().predict_at(np.eye(2), 1.0, 0.1), ValueError, "exactly one of t and train_loss"),
        (lambda: fitted().predict_at(np.eye(2), t=-1.0), ValueError, "t must be at least 0"),
        (lambda: fitted().predict_at(np.eye(2), train_loss=math.nan), ValueError, "train_loss must be finite"),
        (lambda: KernelRegression(np.eye(2)).predict(np.eye(2)), RuntimeError, "needs fit first"),
        (lambda: KernelRegression(np.eye(2)).predict_at(np.eye(2), t=1.0), RuntimeError, "needs fit first"),
    ],
)
def test_misuse_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
