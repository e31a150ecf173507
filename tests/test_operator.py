from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from kernelgrowth import MemoryLimitError
from kernelgrowth.gradients import GradientFeatures, OuterProduct, Rows
from kernelgrowth.kernels import NTKOperator, empirical_ntk
from strategies import cases

PROMISE = {np.float32: 1e-5, np.float64: 1e-12}
matrix_modes = st.sampled_from(["full", "trace", "mean_trace", "sum_logits"])
small_cases = cases(max_examples=20, max_length=20, max_positions=3)


@settings(max_examples=50)
@given(small_cases, matrix_modes)
def test_gram_is_the_kernel_as_a_matrix(case, outputs):
    operator = NTKOperator(*case.pair, outputs=outputs)
    kernel = reference.as_matrix(np.asarray(empirical_ntk(*case.pair, outputs=outputs)))
    assert operator.shape == kernel.shape
    assert operator.dtype == kernel.dtype
    assert np.array_equal(operator.gram(), kernel)
    assert operator.gram() is operator.gram()
    assert repr(operator).startswith(f"NTKOperator(shape={kernel.shape}")


@settings(max_examples=50)
@given(small_cases, matrix_modes, st.integers(0, 100))
def test_products(case, outputs, seed):
    operator = NTKOperator(*case.pair, outputs=outputs)
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(operator.shape[1], 3)).astype(case.dtype)
    kernel = operator.gram()
    np.testing.assert_array_equal(operator @ vectors, kernel @ vectors)
    np.testing.assert_array_equal(operator @ vectors[:, 0], kernel @ vectors[:, 0])
    left = rng.normal(size=operator.shape[0]).astype(case.dtype)
    linear = scipy.sparse.linalg.aslinearoperator(operator)
    tolerance = {"rtol": 1e-4, "atol": 1e-4 * (1 + np.abs(kernel).max()) * len(left)}
    np.testing.assert_allclose(linear.matvec(vectors[:, 0]), kernel @ vectors[:, 0], **tolerance)
    np.testing.assert_allclose(linear.matmat(vectors), kernel @ vectors, **tolerance)
    np.testing.assert_allclose(linear.rmatvec(left), kernel.T @ left, **tolerance)


@settings(max_examples=50)
@given(cases(max_examples=20, max_length=20, max_positions=3, symmetric=True), matrix_modes)
def test_diagonal_trace_and_norm(case, outputs):
    operator = NTKOperator(case.features[0], outputs=outputs)
    j = reference.jacobian(case.blocks[0])
    kernel = reference.as_matrix(reference.ntk(j, j, outputs))
    scale = reference.entry_scale(j, j, outputs)
    scale = np.diag(reference.as_matrix(scale))
    assert np.all(np.abs(operator.diagonal() - np.diag(kernel)) <= PROMISE[case.dtype] * scale)
    assert operator.diagonal().dtype == case.dtype
    assert abs(operator.trace() - np.trace(kernel)) <= PROMISE[case.dtype] * scale.sum()
    assert abs(operator.frobenius_norm() - np.linalg.norm(kernel)) <= 2 * PROMISE[case.dtype] * scale.sum()


@settings(max_examples=20)
@given(small_cases, matrix_modes)
def test_per_layer_operators_add_up(case, outputs):
    operator = NTKOperator(*case.pair, outputs=outputs)
    parts = operator.per_layer()
    assert list(parts) == list(case.features[0])
    total = sum(part.gram().astype(np.float64) for part in parts.values())
    size = sum(np.abs(part.gram()).astype(np.float64) for part in parts.values())
    assert np.all(np.abs(total - operator.gram()) <= 10 * PROMISE[case.dtype] * (size + size.max()))


def test_preconditioned_diagonal():
    rng = np.random.default_rng(0)
    features = GradientFeatures(
        {
            "conv": OuterProduct(rng.normal(size=(5, 2, 3)), rng.normal(size=(5, 2, 2, 4)), bias=True, scale=0.5),
            "norm": Rows(rng.normal(size=(5, 2, 6))),
        }
    )
    eta = {"conv": (rng.random((4, 3)), rng.random(4)), "norm": rng.random(6)}
    for outputs in ("full", "trace", "mean_trace", "sum_logits"):
        operator = NTKOperator(features, outputs=outputs, preconditioner=eta)
        np.testing.assert_allclose(operator.diagonal(), np.diag(operator.gram()), rtol=1e-12)
        parts = operator.per_layer()
        np.testing.assert_allclose(sum(p.gram() for p in parts.values()), operator.gram(), rtol=1e-12, atol=1e-13)


def test_the_plan_says_what_it_does(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    rng = np.random.default_rng(0)
    features = GradientFeatures(
        {
            "dense": OuterProduct(rng.normal(size=(40, 10)), rng.normal(size=(40, 2, 6))),
            "conv": OuterProduct(rng.normal(size=(40, 3, 5)), rng.normal(size=(40, 2, 3, 7)), bias=True),
            "norm": Rows(rng.normal(size=(40, 2, 9))),
        }
    )
    plan = NTKOperator(features, memory_limit=2**30).plan()
    assert [block.strategy for block in plan.blocks] == ["hadamard", "expand", "rows"]
    assert [block.terms for block in plan.blocks] == [1, 1, 1]
    assert plan.passes == (1, 1, 1)
    dense, conv, norm = plan.blocks
    assert dense.flops == 40 * 41 * 10 + 80 * 81 * 6
    assert norm.flops == 80 * 81 * 9
    assert conv.flops == 2 * 40 * 2 * 3 * 5 * 7 + 40 * 2 * 3 * 7 + 80 * 81 * (5 * 7 + 7)
    assert plan.flops == dense.flops + conv.flops + norm.flops
    assert plan.output_bytes == 80 * 80 * 8
    text = str(plan)
    for word in ("dense", "hadamard", "conv", "expand", "norm", "rows", "80 x 80", "1.0 GiB allowed", "thread"):
        assert word in text


def test_memory_limit_is_checked_before_any_work():
    features = GradientFeatures({"w": Rows(np.ones((500, 3)))})
    operator = NTKOperator(features, memory_limit=500 * 500 * 8)
    with pytest.raises(MemoryLimitError, match="workspace"):
        operator.gram()


def test_refusals():
    square = GradientFeatures({"w": Rows(np.ones((4, 2, 3)))})
    rectangular = NTKOperator(square, GradientFeatures({"w": Rows(np.ones((4, 2, 3)))}))
    for method in (rectangular.diagonal, rectangular.trace):
        with pytest.raises(ValueError, match="this operator was given feats2"):
            method()
    with pytest.raises(ValueError, match="outputs must be one of"):
        NTKOperator(square, outputs="diagonal")
    operator = NTKOperator(square)
    with pytest.raises(ValueError, match=r"v must have 8 rows, got shape \(7,\)"):
        operator @ np.ones(7)
    with pytest.raises(ValueError, match=r"v must have 8 rows, got shape \(7,\)"):
        operator.rmatvec(np.ones(7))
    with pytest.raises(ValueError, match=r"v must have 1 or 2 dimension"):
        operator @ np.ones((8, 1, 1))
    with pytest.raises(ValueError, match="read-only"):
        operator.gram()[0, 0] = 1.0
