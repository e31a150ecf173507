"""The core's matrix product against NumPy's in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelgrowth import _core
from kernelgrowth._backend import native

# Around the edges of register tiles and panels, and of depth blocks.
sizes = st.one_of(st.integers(1, 9), st.sampled_from([15, 16, 17, 47, 48, 49, 95, 96, 97, 145]))
depths = st.one_of(sizes, st.sampled_from([255, 256, 257, 513, 1025]))
layouts = st.sampled_from(["rows", "columns", "spread", "reversed", "repeated"])


def matrix(rng: np.random.Generator, rows: int, cols: int, layout: str, dtype: Any) -> Any:
    if layout == "rows":
        return rng.standard_normal((rows, cols)).astype(dtype)
    if layout == "columns":
        return rng.standard_normal((cols, rows)).astype(dtype).T
    if layout == "spread":
        return rng.standard_normal((2 * rows, 3 * cols + 1)).astype(dtype)[::2, 1::3]
    if layout == "reversed":
        return rng.standard_normal((rows, cols)).astype(dtype)[::-1, ::-1]
    return np.broadcast_to(rng.standard_normal((rows, 1)).astype(dtype), (rows, cols))


@given(
    shape=st.tuples(sizes, depths, sizes),
    layouts=st.tuples(layouts, layouts),
    dtype=st.sampled_from([np.float32, np.float64]),
    isa=st.sampled_from(_core.available_isas()),
    threads=st.integers(2, 3),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=80)
def test_product_is_numpys_and_its_bits_depend_on_row_and_column_alone(
    shape: tuple[int, int, int], layouts: tuple[str, str], dtype: Any, isa: str, threads: int, seed: int
) -> None:
    rows, depth, cols = shape
    rng = np.random.default_rng(seed)
    a, b = matrix(rng, rows, depth, layouts[0], dtype), matrix(rng, depth, cols, layouts[1], dtype)
    product = native.gemm(a, b, threads=1, isa=isa)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    norms = np.linalg.norm(a.astype(np.float64), axis=1)[:, None] * np.linalg.norm(b.astype(np.float64), axis=0)
    assert product.dtype == dtype
    assert np.all(np.abs(product - exact) <= (1e-5 if dtype == np.float32 else 1e-12) * norms)

    out = np.full((rows, cols + 2), np.nan, dtype=dtype)
    assert native.gemm(a, b, out[:, 1:-1], threads=threads, isa=isa).base is out
    np.testing.assert_array_equal(out[:, 1:-1], product)
    assert np.isnan(out[:, [0, -1]]).all()
    some, others = rng.permutation(rows)[: rows // 2 + 1], rng.permutation(cols)[: cols // 3 + 1]
    np.testing.assert_array_equal(native.gemm(a[some], b[:, others], isa=isa), product[np.ix_(some, others)])


def test_large_products_shared_by_threads() -> None:
    rng = np.random.default_rng(0)
    for rows, depth, cols in ((700, 300, 80), (5, 40, 30000), (30, 2100, 1200)):
        a, b = rng.standard_normal((rows, depth)), rng.standard_normal((depth, cols))
        product = native.gemm(a, b, threads=1)
        np.testing.assert_array_equal(native.gemm(a, b, threads=4), product)
        assert np.abs(product - a @ b).max() <= 1e-12 * depth


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"a": np.ones((2, 3, 1))}, ValueError, "a must be a matrix"),
        ({"a": np.ones((2, 4))}, ValueError, "the columns of a are not the rows of b"),
        ({"a": np.ones((0, 3))}, ValueError, "a matrix is empty"),
        ({"b": np.ones((3, 4), np.float32)}, TypeError, "must all be float32"),
        ({"a": np.ones((2, 3), np.int64)}, TypeError, "must all be float32"),
        ({"b": np.ones(4)}, ValueError, "b must be a matrix"),
        ({"b": np.ones(4, dtype=[("x", "f8"), ("y", "f4")])["x"][None].repeat(3, 0)[:, ::1]}, None, ""),
        ({"b": np.ones((3, 4), dtype=[("x", "f4"), ("y", "f8")])["y"]}, ValueError, "b has strides between elements"),
        ({"out": np.ones((2, 3))}, ValueError, "out does not have the product's shape"),
        ({"out": np.ones((4, 2)).T}, ValueError, "the rows of out must be contiguous"),
        ({"out": np.broadcast_to(np.ones(4), (2, 4))}, ValueError, "out must be writeable"),
        ({"isa": "none"}, ValueError, "none"),
        ({"threads": 0}, ValueError, "num_threads must be at least 1"),
    ],
)
def test_bad_arguments_are_refused(change: dict[str, Any], error: type[Exception] | None, message: str) -> None:
    arguments = {"a": np.ones((2, 3)), "b": np.ones((3, 4)), "out": np.empty((2, 4)), **change}
    if error is None:
        np.testing.assert_array_equal(native.gemm(**arguments), np.full((2, 4), 3.0))
        return
    with pytest.raises(error, match=message):
        native.gemm(**arguments)


def test_out_must_not_be_an_operand() -> None:
    square = np.eye(3)
    with pytest.raises(ValueError, match="out must not share memory"):
        native.gemm(square, np.eye(3), square)
    with pytest.raises(ValueError, match="out must not share memory"):
        native.gemm(np.eye(3), square, square[::-1])


def test_what_is_not_finite_stays_in_its_row_and_column() -> None:
    a, b = np.ones((20, 5)), np.ones((5, 50))
    a[7, 2], b[1, 33] = math.nan, math.inf
    product = native.gemm(a, b)
    assert np.isnan(product[7]).all()
    assert np.isinf(np.delete(product[:, 33], 7)).all()
    assert np.isfinite(np.delete(np.delete(product, 7, 0), 33, 1)).all()
