"""Products of a kernel with vectors: three ways, one answer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import tracemalloc
from unittest import mock

import numpy as np
import pytest
import scipy.sparse.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelgrowth import MemoryLimitError
from kernelgrowth.gradients import GradientFeatures, OuterProduct, Rows
from kernelgrowth.kernels import NTKOperator, streamed
from kernelgrowth.spectra import eigsh
from product_cases import PROMISE, exact, preconditioner, vectors
from strategies import cases

matrix_modes = st.sampled_from(["full", "trace", "mean_trace", "sum_logits"])
ways = st.sampled_from(["stored", "tiles", "factored"])
without_kernel = st.sampled_from(["tiles", "factored"])
vector_dtypes = st.sampled_from([np.float32, np.float64])
some_cases = cases(max_examples=30, max_outputs=3, max_length=60, max_positions=4, max_blocks=3)


def small_tiles():
    return mock.patch.object(streamed, "_ROWS", 16)


def threads(count):
    return mock.patch.dict(os.environ, {"KERNELGROWTH_NUM_THREADS": str(count)})


@settings(max_examples=150)
@given(
    some_cases,
    matrix_modes,
    ways,
    st.booleans(),
    vector_dtypes,
    st.integers(1, 20),
    st.sampled_from(["contiguous", "one", "fortran", "strided"]),
    st.integers(0, 2**32 - 1),
)
def test_products_are_those_of_the_exact_kernel(case, outputs, way, weighted, dtype, count, layout, seed):
    rng = np.random.default_rng(seed)
    eta = preconditioner(case, seed) if weighted else {}
    kernel, scale = exact(case, outputs, eta)
    operator = NTKOperator(*case.pair, outputs=outputs, preconditioner=eta or None, products=way)
    # Rounding the product of a stored kernel is NumPy's, with as many terms as the kernel has rows.
    promise = PROMISE[case.dtype]
    with small_tiles():
        v = vectors(rng, kernel.shape[1], count, dtype, layout)
        product = operator @ v
        assert product.shape == (kernel.shape[0], *v.shape[1:])
        assert product.dtype == np.result_type(case.dtype, dtype)
        assert np.all(
            np.abs(product - kernel @ v.astype(np.float64)) <= promise * (scale @ np.abs(v.astype(np.float64)))
        )
        u = vectors(rng, kernel.shape[0], count, dtype, layout)
        transposed = operator.rmatmat(u)
        allowed = promise * (scale.T @ np.abs(u.astype(np.float64)))
        assert np.all(np.abs(transposed - kernel.T @ u.astype(np.float64)) <= allowed)


@settings(max_examples=60)
@given(some_cases, matrix_modes, without_kernel, st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_bits_depend_on_neither_threads_nor_memory(case, outputs, way, count, seed):
    v = np.random.default_rng(seed).normal(size=(2000, count)).astype(case.dtype)
    with small_tiles():
        operator = NTKOperator(*case.pair, outputs=outputs, products=way, memory_limit=2**30)
        v = v[: operator.shape[1]]
        with threads(1):
            product = operator @ v
        with threads(3):
            assert np.array_equal(operator @ v, product)
            with pytest.raises(MemoryLimitError) as error:
                NTKOperator(*case.pair, outputs=outputs, products=way, memory_limit=1) @ v
            small = NTKOperator(*case.pair, outputs=outputs, products=way, memory_limit=error.value.needed)
            assert np.array_equal(small @ v, product)
            smaller = NTKOperator(*case.pair, outputs=outputs, products=way, memory_limit=error.value.needed - 1)
            with pytest.raises(MemoryLimitError):
                smaller @ v
        if way == "factored":
            assert np.array_equal(operator @ v[:, -1], product[:, -1])


@settings(max_examples=30)
@given(some_cases, matrix_modes, without_kernel, st.integers(0, 2**32 - 1))
def test_the_operator_and_its_transpose_are_adjoint(case, outputs, way, seed):
    rng = np.random.default_rng(seed)
    with small_tiles():
        operator = NTKOperator(*case.pair, outputs=outputs, products=way)
        v, u = rng.normal(size=operator.shape[1]), rng.normal(size=operator.shape[0])
        linear = scipy.sparse.linalg.aslinearoperator(operator)
        kernel = operator.gram().astype(np.float64)
        size = np.abs(u) @ np.outer(np.linalg.norm(kernel, axis=1), np.ones(len(v))) @ np.abs(v)
        tolerance = 10 * PROMISE[case.dtype] * (size + np.abs(u) @ np.abs(kernel) @ np.abs(v))
        assert abs(u @ linear.matvec(v) - linear.rmatvec(u) @ v) <= tolerance
        several = np.stack([v, -v], axis=1)
        assert np.array_equal(linear.matmat(several)[:, 0], -linear.matmat(several)[:, 1])
        assert np.array_equal(linear.adjoint().matmat(np.stack([u], axis=1))[:, 0], operator.rmatvec(u))


@settings(max_examples=30)
@given(cases(max_examples=40, max_outputs=3, max_length=20, max_positions=3, symmetric=True), matrix_modes)
def test_norm_diagonal_and_trace_without_the_kernel(case, outputs):
    operator = NTKOperator(case.features[0], outputs=outputs, products="factored", memory_limit=2**30)
    kernel, scale = exact(case, outputs, {})
    with small_tiles():
        norm = operator.frobenius_norm()
    assert abs(norm - np.linalg.norm(kernel)) <= 2 * PROMISE[case.dtype] * np.linalg.norm(scale)
    # In float64 from inputs as given, whatever their dtype.
    assert abs(operator.trace() - np.trace(kernel)) <= 1e-12 * np.trace(scale)
    assert np.all(np.abs(operator.diagonal() - np.diag(kernel)) <= PROMISE[case.dtype] * np.diag(scale))


def test_a_diagonal_that_no_number_can_hold():
    features = GradientFeatures({"w": Rows(np.full((3, 2), 1e20, np.float32))})
    with pytest.raises(ValueError, match="feats give a kernel that float32 cannot hold"):
        NTKOperator(features).diagonal()
    assert np.all(np.isinf(NTKOperator(features, check_finite=False).diagonal()))
    assert NTKOperator(features).trace() == pytest.approx(6e40)
    huge = GradientFeatures({"w": Rows(np.full((3, 2), 1e200))})
    with pytest.raises(ValueError, match="feats give a trace that float64 cannot hold"):
        NTKOperator(huge).trace()


def test_a_preconditioned_diagonal_stays_within_its_memory():
    # Sums over pairs of positions would take little; a preconditioner has the gradients written out.
    rng = np.random.default_rng(0)
    conv = OuterProduct(rng.normal(size=(40, 4, 300)), rng.normal(size=(40, 2, 4, 300)))
    wide = OuterProduct(rng.normal(size=(40, 700)), rng.normal(size=(40, 2, 800)))
    for block, limit in ((conv, 10 * 2**20), (wide, 6 * 2**20)):
        d_out, d_in = block.backprops.shape[3], block.activations.shape[2]
        operator = NTKOperator(
            GradientFeatures({"w": block}), preconditioner={"w": rng.random((d_out, d_in))}, memory_limit=limit
        )
        tracemalloc.start()
        try:
            operator.trace()
        except MemoryLimitError:
            assert block is wide
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak <= limit


def test_many_vectors_by_tiles_need_little_beside_a_tile():
    rng = np.random.default_rng(0)
    features = GradientFeatures({"w": OuterProduct(rng.normal(size=(1200, 3)), rng.normal(size=(1200, 4)))})
    operator = NTKOperator(features, products="tiles", memory_limit=24 * 2**20)
    v = rng.normal(size=(1200, 200))
    tracemalloc.start()
    product = operator @ v
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 24 * 2**20
    np.testing.assert_allclose(product, operator.gram() @ v, rtol=1e-9, atol=1e-9)


def test_the_diagonal_in_chunks():
    rng = np.random.default_rng(0)
    conv = OuterProduct(rng.normal(size=(300, 60, 9)), rng.normal(size=(300, 2, 60, 70)), bias=True)
    few = OuterProduct(rng.normal(size=(300, 3, 90)), rng.normal(size=(300, 2, 3, 70)), bias=True)
    features = GradientFeatures({"written out": conv, "pairs": few, "rows": Rows(rng.normal(size=(300, 2, 9000)))})
    eta = {
        "written out": (rng.random((70, 9)), rng.random(70)),
        "pairs": (rng.random((70, 90)), rng.random(70)),
        "rows": rng.random(9000),
    }
    for weights in (None, eta):
        for outputs in ("full", "trace", "sum_logits"):
            operator = NTKOperator(features, outputs=outputs, preconditioner=weights)
            np.testing.assert_allclose(operator.diagonal(), np.diag(operator.gram()), rtol=1e-12)
    with pytest.raises(MemoryLimitError, match="the diagonal needs"):
        NTKOperator(features, memory_limit=2**20).diagonal()


@settings(max_examples=20)
@given(without_kernel, st.integers(-270, 270), st.integers(0, 100))
def test_vectors_of_any_size(way, exponent, seed):
    rng = np.random.default_rng(seed)
    a, d = rng.normal(size=(30, 5)).astype(np.float32), rng.normal(size=(30, 4)).astype(np.float32)
    features = GradientFeatures({"layer": OuterProduct(a, d)})
    v = rng.normal(size=(30, 3)) * [1.0, 10.0**exponent, 0.0]
    operator = NTKOperator(features, products=way)
    product = operator @ v
    kernel = (a.astype(np.float64) @ a.T) * (d.astype(np.float64) @ d.T)
    scale = np.sqrt(np.outer(np.diag(kernel), np.diag(kernel)))
    assert np.all(np.abs(product - kernel @ v) <= 1e-5 * (scale @ np.abs(v)))
    # Scaling by a power of two changes no digit.
    assert np.array_equal(operator @ np.ldexp(v, 90), np.ldexp(product, 90))


@pytest.mark.parametrize("way", ["stored", "tiles", "factored"])
def test_products_that_no_number_can_hold(way):
    features = GradientFeatures({"w": Rows(np.full((3, 2), 1e15, np.float32))})
    v = np.full(3, 1e10, np.float32)
    with pytest.raises(ValueError, match="feats give a product that float32 cannot hold"):
        NTKOperator(features, products=way) @ v
    assert np.all(np.isinf(NTKOperator(features, products=way, check_finite=False) @ v))
    assert np.all(np.isfinite(NTKOperator(features, products=way) @ v.astype(np.float64)))
    v[1] = np.nan
    assert not np.isfinite(NTKOperator(features, products=way) @ v).any()


def test_a_float64_vector_casts_no_stored_kernel():
    features = GradientFeatures({"w": Rows(np.random.default_rng(0).normal(size=(1500, 3)).astype(np.float32))})
    operator = NTKOperator(features, products="stored")
    v = np.random.default_rng(1).normal(size=(1500, 2))
    np.testing.assert_allclose(operator @ v, operator.gram().astype(np.float64) @ v, rtol=1e-12)
    assert (operator @ v[:, 0]).shape == (1500,)


def test_no_vectors():
    features = GradientFeatures({"w": Rows(np.ones((4, 2)))})
    for way in ("stored", "tiles", "factored"):
        assert (NTKOperator(features, products=way) @ np.ones((4, 0))).shape == (4, 0)


def test_auto_takes_what_is_cheapest_and_fits():
    rng = np.random.default_rng(0)
    wide = GradientFeatures({"w": OuterProduct(rng.normal(size=(200, 300)), rng.normal(size=(200, 200)))})
    assert NTKOperator(wide).product_plan().way == "stored"
    narrow = GradientFeatures({"w": OuterProduct(rng.normal(size=(3000, 6)), rng.normal(size=(3000, 4)))})
    operator = NTKOperator(narrow)
    assert operator.product_plan().way == "factored"
    product = operator @ np.ones(3000)
    operator.gram()
    assert operator.product_plan().way == "stored"
    np.testing.assert_allclose(operator @ np.ones(3000), product, rtol=1e-9, atol=1e-9)
    # A kernel of 72 MB does not fit; its tiles of 8 MB need more than factors do.
    deep = GradientFeatures({"w": OuterProduct(rng.normal(size=(3000, 30)), rng.normal(size=(3000, 200)))})
    assert NTKOperator(deep).product_plan().way == "stored"
    assert NTKOperator(deep, memory_limit=2**26).product_plan().way in ("factored", "tiles")
    with pytest.raises(MemoryLimitError):
        NTKOperator(deep, memory_limit=2**10).product_plan()


def test_the_plan_of_a_product_says_what_it_does():
    rng = np.random.default_rng(0)
    features = GradientFeatures(
        {
            "dense": OuterProduct(rng.normal(size=(1500, 10)), rng.normal(size=(1500, 2, 6))),
            "conv": OuterProduct(rng.normal(size=(1500, 3, 5)), rng.normal(size=(1500, 2, 3, 7)), bias=True),
            "norm": Rows(rng.normal(size=(1500, 2, 9))),
        }
    )
    plan = NTKOperator(features, products="factored", outputs="trace", memory_limit=2**30).product_plan(20)
    assert plan.way == "factored"
    assert [block.name for block in plan.blocks] == ["dense", "conv", "norm"]
    dense, conv, norm = (block.flops for block in plan.blocks)
    assert dense == 20 * 2 * (1500 * 2 * 10 * 2 * 6 + 2 * 1500 * 2 * 6)
    assert conv == 20 * 2 * (1500 * 3 * 2 * 6 * 2 * 7 + 2 * 1500 * 2 * 3 * 7)
    assert norm == 20 * 2 * 2 * (1500 * 2 * 9 + 2 * 1500)
    assert (plan.multiply_flops, plan.output_bytes) == (0, 1500 * 20 * 8)
    text = str(plan)
    for word in ("dense", "conv", "norm", "factored", "1500 x 1500 times 20 vector(s)", "1.0 GiB allowed", "thread"):
        assert word in text
    for way in ("tiles", "stored"):
        operator = NTKOperator(features, products=way, outputs="trace", memory_limit=2**30)
        plan = operator.product_plan(20)
        assert plan.multiply_flops == 2 * 20 * 1500**2
        assert way in str(plan)
    operator.gram()
    assert operator.product_plan(20).flops == 2 * 20 * 1500**2


@pytest.mark.parametrize(("n", "m"), [(5, None), (16, None), (17, None), (32, None), (75, None), (20, 50), (16, 5)])
def test_the_plan_counts_every_tile(n, m):
    def features(count):
        return GradientFeatures({"w": Rows(np.ones((count, 3)))})

    with small_tiles():
        tiled = streamed.StreamedKernel(features(n), None if m is None else features(m), "full", {})
        computed = [tile.values.shape for tile in tiled.tiles(2**30, check_finite=True)]
        counted = [plan.shape for plan, count in tiled.plans(2**30) for _ in range(count)]
    assert sorted(computed) == sorted(counted)


def test_eigsh_forms_no_kernel():
    rng = np.random.default_rng(0)
    a, d = rng.normal(size=(1200, 8)), rng.normal(size=(1200, 5))
    d[:, 0] *= 10
    features = GradientFeatures({"w": OuterProduct(a, d)})
    expected = np.linalg.eigvalsh((a @ a.T) * (d @ d.T))[::-1][:3]
    for way in ("tiles", "factored"):
        operator = NTKOperator(features, products=way)
        with mock.patch.object(NTKOperator, "gram", side_effect=AssertionError):
            top = eigsh(operator, 3)
        np.testing.assert_allclose(top.eigenvalues, expected, rtol=1e-8)


@pytest.mark.parametrize("way", ["tiles", "factored"])
def test_an_interrupt_ends_a_product(way):
    class Stop(Exception):
        pass

    def stop(*_):
        raise Stop

    ones = np.broadcast_to(np.float32(1), (10**6, 300))  # minutes of work in little memory
    operator = NTKOperator(GradientFeatures({"w": OuterProduct(ones, ones, check_finite=False)}), products=way)
    v = np.broadcast_to(np.float32(1), (10**6, 8))
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.8)
    try:
        with pytest.raises(Stop):
            operator @ v
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_refusals():
    features = GradientFeatures({"w": Rows(np.ones((4, 2, 3)))})
    with pytest.raises(ValueError, match="products must be one of"):
        NTKOperator(features, products="fast")
    with pytest.raises(ValueError, match="num_vectors must be at least 1"):
        NTKOperator(features).product_plan(0)
    operator = NTKOperator(features, products="factored")
    with pytest.raises(ValueError, match=r"v must have 8 rows, got shape \(7,\)"):
        operator @ np.ones(7)
    with pytest.raises(TypeError, match="v must be float32 or float64"):
        operator @ np.ones(8, np.float16)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_products_stay_within_their_memory():
    program = """
        import re, sys
        import numpy as np
        from kernelgrowth.gradients import GradientFeatures, OuterProduct
        from kernelgrowth.kernels import NTKOperator

        def peak():
            return int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) * 1024

        def resident():
            return int(re.search(r"VmRSS:\\s*(\\d+)", open("/proc/self/status").read())[1]) * 1024

        rng = np.random.default_rng(0)
        a, d = (rng.random((30000, 128), dtype=np.float32) for _ in range(2))
        small = GradientFeatures({"w": OuterProduct(a[:50], d[:50])})
        NTKOperator(small, products="factored") @ np.ones((50, 8), np.float32)  # what is loaded once
        v = rng.random((30000, 8), dtype=np.float32)
        limit = int(sys.argv[1])
        operator = NTKOperator(GradientFeatures({"w": OuterProduct(a, d)}), products="factored", memory_limit=limit)
        open("/proc/self/clear_refs", "w").write("5")
        before = resident()
        product = operator @ v
        print(peak() - before)
    """
    limit = 20 * 2**20
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(limit)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "KERNELGROWTH_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=True,
    )
    # Beside what is counted, the allocators' own.
    assert int(done.stdout) <= limit + 2 * 2**20
