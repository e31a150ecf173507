"""Kernels as triangles, which steps are due, and which kernels are kept."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kernelgrowth.tracking.packing import (
    matrix_size,
    pack_triangle,
    packed_cosine,
    packed_products,
    packed_size,
    unpack_triangle,
)
from kernelgrowth.tracking.schedule import check_every, is_due, kernel_capacity, kernel_stride, retained

# --- kernels as triangles ---


@settings(max_examples=30)
@given(st.integers(1, 70), st.sampled_from([np.float32, np.float64]), st.integers(0, 2**32 - 1))
def test_a_symmetric_matrix_survives_packing_to_the_bit(n: int, dtype: Any, seed: int) -> None:
    kernel = np.random.default_rng(seed).standard_normal((n, n)).astype(dtype)
    kernel = np.triu(kernel) + np.triu(kernel, 1).T
    packed = pack_triangle(kernel)
    assert packed.dtype == dtype
    assert matrix_size(len(packed)) == n
    assert len(packed) == packed_size(n)
    np.testing.assert_array_equal(packed, kernel[np.triu_indices(n)])
    np.testing.assert_array_equal(unpack_triangle(packed), kernel)


@settings(max_examples=30)
@given(st.integers(1, 70), st.sampled_from([np.float32, np.float64]), st.integers(0, 2**32 - 1))
def test_products_of_triangles_are_those_of_the_matrices(n: int, dtype: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = (m + m.T for m in rng.standard_normal((2, n, n)).astype(dtype))
    left, right = a.astype(np.float64), b.astype(np.float64)
    got = packed_products(pack_triangle(a), pack_triangle(b))
    tolerance = 1e-13 * (1 + np.sum(left**2) + np.sum(right**2))
    np.testing.assert_allclose(got, [np.sum(left * right), np.sum(left**2), np.sum(right**2)], rtol=0, atol=tolerance)
    cosine = np.sum(left * right) / np.linalg.norm(left) / np.linalg.norm(right)
    assert packed_cosine(pack_triangle(a), pack_triangle(b)) == pytest.approx(cosine, abs=1e-12)


@settings(max_examples=30)
@given(
    hnp.arrays(np.float64, st.integers(1, 12).map(packed_size), elements=st.floats(-1, 1, width=32)),
    st.sampled_from([0, -600, -1000, 600, 1000]),
)
def test_the_cosine_of_a_kernel_with_itself_is_exactly_one_at_any_scale(packed: np.ndarray, exponent: int) -> None:
    scaled = np.ldexp(packed, exponent)
    if scaled.any():
        assert packed_cosine(scaled, scaled) == 1.0
        assert packed_cosine(scaled, -scaled) == -1.0
    else:
        assert math.isnan(packed_cosine(scaled, scaled))


def test_a_cosine_with_a_kernel_that_is_not_finite_is_undefined() -> None:
    for bad in (math.nan, math.inf):
        assert math.isnan(packed_cosine(np.array([1.0, bad, 1.0]), np.ones(3)))
        assert math.isnan(packed_cosine(np.ones(3), np.array([1.0, bad, 1.0])))


@pytest.mark.parametrize("length", [2, 4, 5, 7, 4951])
def test_a_length_that_is_no_triangle_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"got {length}"):
        matrix_size(length)


# --- what is due, what is kept ---


@given(st.integers(1, 50), st.integers(0, 500))
def test_a_period_names_its_multiples(every: int, step: int) -> None:
    assert is_due(check_every(every), step) == (step % every == 0)


@given(st.sets(st.integers(0, 60)), st.integers(0, 60))
def test_a_sequence_names_its_members(steps: set[int], step: int) -> None:
    for form in (sorted(steps), np.array(sorted(steps), dtype=np.int64), tuple(sorted(steps))):
        assert is_due(check_every(form), step) == (step in steps)


def kept_one_by_one(total: int, capacity: int, restarts: list[int]) -> set[int]:
    """Keep and drop as a tracker does, going back to an earlier count (dropping what came later) at every restart."""
    stored: set[int] = set()
    pending = list(restarts)
    count = 0
    while count < total:
        stored.add(count)
        count += 1
        stored = {index for index in stored if retained(index, count, capacity)}
        assert len(stored) <= capacity
        assert {0, count - 1} <= stored
        if pending and count > pending[0]:
            count = pending.pop(0)
            stored = {index for index in stored if index < count}
    return stored


@given(st.integers(1, 200), st.integers(2, 12), st.lists(st.integers(0, 199), max_size=4))
def test_the_kept_kernels_do_not_depend_on_interruptions(total: int, capacity: int, restarts: list[int]) -> None:
    straight = kept_one_by_one(total, capacity, [])
    assert kept_one_by_one(total, capacity, [r for r in restarts if r < total]) == straight
    assert straight == {index for index in range(total) if retained(index, total, capacity)}
    stride = kernel_stride(total, capacity)
    assert straight == {*range(0, total, stride), total - 1}
    assert stride == 1 or len(range(0, total, stride // 2)) + 1 > capacity // 2


@given(st.integers(0, 10**6), st.integers(1, 100), st.sampled_from([4, 8]))
def test_the_capacity_fits_the_budget_but_for_two_kernels(budget: int, n: int, itemsize: int) -> None:
    capacity = kernel_capacity(budget, n, itemsize)
    assert capacity == 2 or capacity * packed_size(n) * itemsize <= budget
