"""The operator of features on a GPU: it is that of the CPU, with CuPy arrays.

On the stand-in for CuPy, kernels and statistics are the CPU core's; products by factors are made of CuPy's functions
alone, so they are tried as they are.
"""

from __future__ import annotations

import contextlib
import sys
import tracemalloc
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelgrowth import BackendError, MemoryLimitError
from kernelgrowth._backend import cuda_products
from kernelgrowth.gradients import GradientFeatures, OuterProduct, Rows
from kernelgrowth.kernels import NTKOperator, streamed
from product_cases import PROMISE, exact, preconditioner, vectors
from stand_in_cupy import CuPy, Device, on_gpu, stand_in
from strategies import cases

modes = st.sampled_from(["full", "trace", "mean_trace", "sum_logits"])
ways = st.sampled_from(["stored", "tiles", "factored"])
dtypes = st.sampled_from([np.float32, np.float64])
seeds = st.integers(0, 2**32 - 1)
some_cases = cases(max_examples=30, max_outputs=3, max_length=60, max_positions=4, max_blocks=3)


@pytest.fixture
def module(monkeypatch):
    """The stand-in, also where there is a GPU."""
    compiled = pytest.importorskip("kernelgrowth._cuda", reason="built without CUDA", exc_type=ImportError)
    return stand_in(monkeypatch, compiled)


def strided(gpu):
    """Place arrays so that their entries are not side by side."""
    return lambda array: gpu(np.repeat(array, 2, axis=-1))[..., ::2]


def placed(place, features):
    if features is None:
        return None
    blocks = {}
    for name, block in features.items():
        if isinstance(block, Rows):
            blocks[name] = Rows(place(block.rows), scale=block.scale)
        else:
            factors = place(block.activations), place(block.backprops)
            blocks[name] = OuterProduct(*factors, bias=block.bias, scale=block.scale)
    return GradientFeatures(blocks)


def placed_weights(place, eta):
    return {name: tuple(map(place, e)) if isinstance(e, tuple) else place(e) for name, e in eta.items()} or None


@contextlib.contextmanager
def small_parts():
    """Let kernels be cut into tiles, chunks, runs and groups of vectors where they are small."""
    sizes = {"_RUNS": {4: 5, 8: 7}, "_ROWS": 9, "_COLUMNS": 24, "_COPIED_BYTES": 2000}
    with mock.patch.multiple(cuda_products, **sizes), mock.patch.object(streamed, "_ROWS_ON_GPU", 16):
        yield


def dense_features(rng, n, d_in, d_out, c=1, t=1, bias=False, dtype=np.float32):
    a, d = rng.normal(size=(n, t, d_in)).astype(dtype), rng.normal(size=(n, c, t, d_out)).astype(dtype)
    return GradientFeatures({"w": OuterProduct(a, d, bias=bias)})


@settings(max_examples=150)
@given(
    some_cases,
    modes,
    ways,
    st.booleans(),
    st.booleans(),
    st.booleans(),
    dtypes,
    st.integers(1, 20),
    st.sampled_from(["contiguous", "one", "fortran"]),
    seeds,
)
def test_products_are_those_of_the_exact_kernel(
    gpu, case, outputs, way, weighted, cut, apart, dtype, count, layout, seed
):
    rng = np.random.default_rng(seed)
    eta = preconditioner(case, seed) if weighted else {}
    kernel, scale = exact(case, outputs, eta)
    place = strided(gpu) if apart else gpu
    pair = [placed(place, side) for side in case.pair]
    with small_parts() if cut else contextlib.nullcontext():
        operator = NTKOperator(*pair, outputs=outputs, preconditioner=placed_weights(place, eta), products=way)
        v, u = (vectors(rng, rows, count, dtype, layout) for rows in kernel.shape[::-1])
        for product, wanted, allowed in (
            (operator @ place(v), kernel @ v.astype(np.float64), scale @ np.abs(v.astype(np.float64))),
            (operator.rmatmat(place(u)), kernel.T @ u.astype(np.float64), scale.T @ np.abs(u.astype(np.float64))),
        ):
            assert gpu.holds(product)
            assert product.shape == wanted.shape
            assert product.dtype == np.result_type(case.dtype, dtype)
            assert np.all(np.abs(product.get() - wanted) <= PROMISE[case.dtype] * allowed)


@settings(max_examples=60)
@given(some_cases, modes, st.sampled_from(["tiles", "factored"]), st.integers(1, 12), st.floats(0, 1), seeds)
def test_products_within_any_memory_that_is_enough(gpu, case, outputs, way, count, more, seed):
    kernel, scale = exact(case, outputs, {})
    v = np.random.default_rng(seed).normal(size=(kernel.shape[1], count)).astype(case.dtype)
    pair = [placed(gpu, side) for side in case.pair]
    with small_parts():
        operator = NTKOperator(*pair, outputs=outputs, products=way, memory_limit=2**30)
        with pytest.raises(MemoryLimitError) as error:
            NTKOperator(*pair, outputs=outputs, products=way, memory_limit=1) @ gpu(v)
        least, plan = error.value.needed, operator.product_plan(count)
        most = max(least, plan.output_bytes + plan.workspace_bytes)
        for limit in (least, least + int(more * (most - least))):
            small = NTKOperator(*pair, outputs=outputs, products=way, memory_limit=limit)
            found = (small @ gpu(v)).get()
            assert np.all(np.abs(found - kernel @ v) <= PROMISE[case.dtype] * (scale @ np.abs(v)))
        with pytest.raises(MemoryLimitError):
            NTKOperator(*pair, outputs=outputs, products=way, memory_limit=least - 1) @ gpu(v)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("outputs", ["full", "trace"])
@pytest.mark.parametrize(
    "shape",
    [
        {"d_in": 300, "d_out": 600, "bias": True},
        {"d_in": 600, "d_out": 300, "c": 3},
        {"d_in": 300, "d_out": 300, "c": 3, "t": 4, "bias": True},
        {"d_in": 150, "d_out": 800, "c": 2, "t": 6},
    ],
)
def test_factored_products_stay_within_their_memory(module, shape, outputs, dtype):
    rng = np.random.default_rng(0)
    features = dense_features(rng, 200, **shape, dtype=dtype)
    on_device = placed(on_gpu, features)
    wanted = NTKOperator(features, outputs=outputs, products="factored")
    v = rng.normal(size=(wanted.shape[1], 6)).astype(dtype)
    product, scale = wanted @ v, np.abs(wanted.diagonal()).max() * np.abs(v).sum(axis=0)
    with pytest.raises(MemoryLimitError) as error:
        NTKOperator(on_device, outputs=outputs, products="factored", memory_limit=1) @ on_gpu(v)
    for limit in (2 * error.value.needed, 6 * error.value.needed, 2**30):
        operator = NTKOperator(on_device, outputs=outputs, products="factored", memory_limit=limit)
        planned = operator.product_plan(6)
        vectors_on_device = on_gpu(v)
        tracemalloc.start()
        found = operator @ vectors_on_device
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        # NumPy's buffers where it casts, and Python's own, are not CuPy's.
        assert peak <= planned.output_bytes + planned.workspace_bytes + 2**18 <= limit + 2**18
        assert np.all(np.abs(found.get() - product) <= PROMISE[dtype] * scale)


@settings(max_examples=50)
@given(some_cases, modes, st.booleans(), seeds)
def test_kernel_and_layers(gpu, case, outputs, weighted, seed):
    eta = preconditioner(case, seed) if weighted else {}
    wanted = NTKOperator(*case.pair, outputs=outputs, preconditioner=eta or None)
    pair = [placed(gpu, side) for side in case.pair]
    operator = NTKOperator(*pair, outputs=outputs, preconditioner=placed_weights(gpu, eta))
    assert (operator.shape, operator.dtype) == (wanted.shape, wanted.dtype)
    assert operator.gram() is operator.gram()
    gpu.agree(operator.gram(), wanted.gram(), 2 * PROMISE[case.dtype])
    parts = operator.per_layer()
    for name, part in wanted.per_layer().items():
        gpu.agree(parts[name].gram(), part.gram(), 2 * PROMISE[case.dtype])


@settings(max_examples=50)
@given(
    cases(max_examples=40, max_outputs=3, max_length=20, max_positions=3, symmetric=True),
    modes,
    ways,
    st.booleans(),
    seeds,
)
def test_diagonal_trace_and_norm(gpu, case, outputs, way, weighted, seed):
    eta = preconditioner(case, seed) if weighted else {}
    features, weights = placed(gpu, case.features[0]), placed_weights(gpu, eta)
    operator = NTKOperator(features, outputs=outputs, preconditioner=weights, products=way)
    kernel, scale = exact(case, outputs, eta)
    diagonal = operator.diagonal()
    assert gpu.holds(diagonal)
    assert diagonal.dtype == case.dtype
    assert np.all(np.abs(diagonal.get() - np.diag(kernel)) <= PROMISE[case.dtype] * np.diag(scale))
    with small_parts():
        trace, norm = operator.trace(), operator.frobenius_norm()
    assert type(trace) is type(norm) is float
    assert abs(trace - np.trace(kernel)) <= 1e-12 * np.trace(scale)
    assert abs(norm - np.linalg.norm(kernel)) <= 2 * PROMISE[case.dtype] * np.linalg.norm(scale)


def test_a_large_diagonal_in_chunks(gpu):
    rng = np.random.default_rng(0)
    features = GradientFeatures(
        {
            "written out": OuterProduct(rng.normal(size=(300, 60, 9)), rng.normal(size=(300, 2, 60, 70)), bias=True),
            "pairs": OuterProduct(rng.normal(size=(300, 3, 90)), rng.normal(size=(300, 2, 3, 70)), bias=True),
            "rows": Rows(rng.normal(size=(300, 2, 9000))),
        }
    )
    wanted = NTKOperator(features, outputs="trace").diagonal()
    found = NTKOperator(placed(gpu, features), outputs="trace").diagonal()
    np.testing.assert_allclose(found.get(), wanted, rtol=1e-12)
    with pytest.raises(MemoryLimitError, match="the diagonal needs"):
        NTKOperator(placed(gpu, features), memory_limit=2**20).diagonal()


@settings(max_examples=20)
@given(st.sampled_from(["tiles", "factored"]), st.integers(-270, 270), seeds)
def test_vectors_of_any_size(gpu, way, exponent, seed):
    rng = np.random.default_rng(seed)
    features = dense_features(rng, 30, 5, 4)
    v = rng.normal(size=(30, 3)) * [1.0, 10.0**exponent, 0.0]
    product = NTKOperator(placed(gpu, features), products=way) @ gpu(v)
    a, d = (np.float64(x) for x in (features["w"].activations[:, 0], features["w"].backprops[:, 0, 0]))
    kernel = (a @ a.T) * (d @ d.T)
    scale = np.sqrt(np.outer(np.diag(kernel), np.diag(kernel)))
    assert np.all(np.abs(product.get() - kernel @ v) <= 1e-5 * (scale @ np.abs(v)))


@pytest.mark.parametrize("way", ["stored", "tiles", "factored"])
def test_products_that_no_number_can_hold(gpu, way):
    features = GradientFeatures({"w": Rows(gpu(np.full((3, 2), 1e15, np.float32)))})
    v = np.full(3, 1e10, np.float32)
    with pytest.raises(ValueError, match="feats give a product that float32 cannot hold"):
        NTKOperator(features, products=way) @ gpu(v)
    unchecked = NTKOperator(features, products=way, check_finite=False) @ gpu(v)
    assert np.all(np.isinf(unchecked.get()))
    assert np.all(np.isfinite((NTKOperator(features, products=way) @ gpu(v.astype(np.float64))).get()))
    v[1] = np.nan
    assert not np.isfinite((NTKOperator(features, products=way) @ gpu(v)).get()).any()


@pytest.mark.parametrize("method", ["gram", "diagonal", "trace"])
def test_kernels_that_no_number_can_hold(gpu, method):
    size, dtype = (1e200, np.float64) if method == "trace" else (1e20, np.float32)
    features = GradientFeatures({"w": Rows(gpu(np.full((3, 2), size, dtype)))})
    with pytest.raises(ValueError, match="feats give a"):
        getattr(NTKOperator(features), method)()
    unchecked = getattr(NTKOperator(features, check_finite=False), method)()
    assert np.all(np.isinf(unchecked if method == "trace" else unchecked.get()))


@pytest.mark.parametrize("value", [1 / 3, 0.1])
@pytest.mark.parametrize("rows", [100_000, 5_000])
def test_sums_of_equal_numbers(gpu, rows, value):
    # Where one number after another is added, as in the sum of a bias' gradients, rounding does not average out.
    backprops = np.full((rows, 1, 1, 1), value, np.float32)
    features = GradientFeatures({"w": OuterProduct(np.ones((rows, 1, 1), np.float32), backprops, bias=True)})
    product = NTKOperator(placed(gpu, features), products="factored") @ gpu(np.full(rows, 1 / 7, np.float32))
    wanted = 2 * rows * float(np.float32(value)) ** 2 * float(np.float32(1 / 7))
    np.testing.assert_allclose(product.get(), wanted, rtol=1e-5)


def test_no_vectors(gpu):
    features = GradientFeatures({"w": Rows(gpu(np.ones((4, 2))))})
    for way in ("stored", "tiles", "factored"):
        product = NTKOperator(features, products=way) @ gpu(np.ones((4, 0)))
        assert gpu.holds(product)
        assert product.shape == (4, 0)


def test_plans(gpu):
    features = placed(gpu, dense_features(np.random.default_rng(0), 40, 10, 6, c=2))
    operator = NTKOperator(features, memory_limit=2**30)
    assert [block.strategy for block in operator.plan().blocks] == ["hadamard"]
    text = str(operator.plan())
    for word in ("hadamard", "80 x 80", "1.0 GiB allowed", "on a GPU"):
        assert word in text
    assert " ms" not in text
    assert "thread" not in text
    with pytest.raises(BackendError, match="times are predicted on the CPU only"):
        _ = operator.plan().seconds
    for way in ("stored", "tiles", "factored"):
        plan = NTKOperator(features, products=way, memory_limit=2**30).product_plan(3)
        assert plan.way == way
        assert "80 x 80 times 3 vector(s)" in str(plan)
        assert "on a GPU" in str(plan)
    narrow = NTKOperator(placed(gpu, dense_features(np.random.default_rng(0), 3000, 6, 4)))
    assert narrow.product_plan().way == "factored"
    narrow.gram()
    assert narrow.product_plan().way == "stored"


@pytest.mark.parametrize("way", ["stored", "tiles", "factored"])
def test_everything_is_where_the_features_are(module, way):
    rng = np.random.default_rng(0)
    gpu = Device(1, "75")

    def place(array):
        return on_gpu(array, gpu)

    features = dense_features(rng, 20, 5, 4, c=2, t=3, bias=True)
    eta = {"w": (rng.random((4, 5), np.float32), rng.random(4, np.float32))}
    wanted = NTKOperator(features, preconditioner=eta, products=way)
    operator = NTKOperator(placed(place, features), preconditioner=placed_weights(place, eta), products=way)
    v = rng.normal(size=(40, 3)).astype(np.float32)
    for found, expected in (
        (operator @ place(v), wanted @ v),
        (operator.rmatvec(place(v[:, 0])), wanted.rmatvec(v[:, 0])),
        (operator @ place(v[:, :0]), v[:, :0]),
        (operator.gram(), wanted.gram()),
        (operator.diagonal(), wanted.diagonal()),
    ):
        assert found.device == gpu
        np.testing.assert_allclose(found.get(), expected, rtol=1e-4, atol=1e-4 * np.abs(wanted.gram()).max())
    assert operator.frobenius_norm() == pytest.approx(wanted.frobenius_norm(), rel=1e-5)
    assert operator.device == gpu
    assert wanted.device is None
    # A GPU without tensor cores multiplies in another way.
    assert {call["precision"] for call in module.calls if "precision" in call} == {"simt"}


def test_memory_is_the_gpus(module, monkeypatch):
    features = placed(on_gpu, dense_features(np.random.default_rng(0), 400, 5, 4))
    monkeypatch.setitem(sys.modules, "cupy", CuPy(free=2**20))
    with pytest.raises(MemoryLimitError, match=r"memory_limit is 512\.0 KiB"):
        NTKOperator(features).gram()
    assert NTKOperator(features).product_plan().way == "factored"


def test_mixed_places_are_refused_by_name(module):
    features = dense_features(np.random.default_rng(0), 6, 3, 2)
    eta = {"w": np.ones((2, 3), np.float32)}
    host, gpu = NTKOperator(features), NTKOperator(placed(on_gpu, features))
    with pytest.raises(BackendError, match="v is a CuPy array, but the features are on the CPU: move one of them"):
        host @ on_gpu(np.ones(6))
    with pytest.raises(BackendError, match="v is a NumPy array, but the features are on a GPU: move one of them"):
        gpu @ np.ones(6)
    with pytest.raises(ValueError, match="arrays must live on one GPU, got feats on GPU 0, v on GPU 1"):
        gpu.rmatvec(on_gpu(np.ones(6), Device(1)))
    with pytest.raises(TypeError, match=r"feats and preconditioner\['w'\] hold NumPy and CuPy arrays"):
        NTKOperator(features, preconditioner=placed_weights(on_gpu, eta))
    with pytest.raises(TypeError, match=r"feats and preconditioner\['w'\] hold NumPy and CuPy arrays"):
        NTKOperator(placed(on_gpu, features), preconditioner=eta)
    with pytest.raises(ValueError, match=r"got feats on GPU 0, preconditioner\['w'\] on GPU 1"):
        NTKOperator(
            placed(on_gpu, features), preconditioner=placed_weights(lambda array: on_gpu(array, Device(1)), eta)
        )
    with pytest.raises(TypeError, match="feats and feats2 hold NumPy and CuPy arrays"):
        NTKOperator(placed(on_gpu, features), features)


def test_too_little_workspace_is_refused(module):
    features = dense_features(np.random.default_rng(0), 6, 3, 2)["w"]
    side = (on_gpu(features.activations), on_gpu(features.backprops))
    minimum, full = cuda_products.matmul_workspace(side, None, 4, bias=False, fold=False)
    assert 0 < minimum < full
    v, out = on_gpu(np.ones((6, 4), np.float32)), on_gpu(np.zeros((6, 4)))
    cuda_products.matmul(side, None, v, out, bias=False, fold=False, workspace=minimum)
    with pytest.raises(MemoryLimitError, match="a product on a GPU needs a workspace of"):
        cuda_products.matmul(side, None, v, out, bias=False, fold=False, workspace=minimum - 1)
