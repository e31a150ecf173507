from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from kernelgrowth._backend import native

FIELDS = (
    "squared_norm",
    "trace",
    "row_sums",
    "column_sums",
    "quadratic_forms",
    "inner_product",
    "other_squared_norm",
    "other_row_sums",
    "other_column_sums",
)


@st.composite
def kernels(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = draw(st.one_of(st.integers(1, 70), st.sampled_from([128, 257])))
    columns = rows if draw(st.booleans()) else draw(st.integers(1, 70))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    magnitude = draw(st.sampled_from([1.0, 1e-20, 1e15]))
    shape = (rows, 2 * columns)
    step = draw(st.sampled_from([1, 2]))
    kernel, other = ((rng.normal(size=shape) * magnitude).astype(dtype)[:, : step * columns : step] for _ in range(2))
    targets = rng.normal(size=(rows, draw(st.integers(1, 3)))) if rows == columns else None
    return kernel, targets, other if draw(st.booleans()) else None


@settings(max_examples=120)
@given(kernels(), st.sampled_from(native.info()["available_isas"]))
def test_equals_the_reference(drawn, isa):
    kernel, targets, other = drawn
    result = native.kernel_statistics(kernel, targets, other, isa=isa)
    expected = reference.statistics(kernel, targets, other)
    size = np.linalg.norm(kernel.astype(np.float64)) + (
        0 if other is None else np.linalg.norm(other.astype(np.float64))
    )
    weight = 1 if targets is None else np.square(targets).sum()
    for name, value in expected.items():
        got = getattr(result, name)
        power = 2 if "squared" in name or name == "inner_product" else 1
        tolerance = 1e-13 * (size + 1e-300) ** power * len(kernel) * weight
        assert np.shape(got) == np.shape(value)
        assert np.all((np.abs(got - value) <= tolerance) | (np.isnan(got) & np.isnan(value))), name


@settings(max_examples=20)
@given(kernels())
def test_same_bits_for_any_number_of_threads(drawn):
    one, three = (native.kernel_statistics(*drawn, threads=threads) for threads in (1, 3))
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(one, name), getattr(three, name))


def test_tiny_float32_kernels_do_not_underflow():
    kernel = np.full((4, 4), 1e-30, np.float32)
    assert native.kernel_statistics(kernel).squared_norm == pytest.approx(16e-60, rel=1e-6)


def test_refusals():
    square = np.eye(3)
    with pytest.raises(ValueError, match="targets must have one row per row of a square kernel"):
        native.kernel_statistics(square, np.ones(4))
    with pytest.raises(ValueError, match="targets must have one row per row of a square kernel"):
        native.kernel_statistics(np.ones((3, 4)), np.ones(3))
    with pytest.raises(ValueError, match=r"other must have the kernel's shape \(3, 3\)"):
        native.kernel_statistics(square, None, np.ones((3, 4)))
    with pytest.raises(TypeError, match="other must be float64"):
        native.kernel_statistics(square, None, np.ones((3, 3), np.float32))
    with pytest.raises(ValueError, match=r"kernel must have 2 dimension"):
        native.kernel_statistics(np.ones(3))
    with pytest.raises(ValueError, match="'mmx' is not one this machine and build can run"):
        native.kernel_statistics(square, isa="mmx")
