"""Many kernels in one call: the bits of single calls."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kernelgrowth as kg


def features(rng, n, c, t, dtype, kinds, vocabulary=9):
    def draw(*shape):
        return rng.standard_normal(shape).astype(dtype)

    blocks = {
        "dense": lambda: kg.OuterProduct(draw(n, 7), draw(n, c, 5), bias=True, scale=0.5),
        "sequence": lambda: kg.OuterProduct(draw(n, t, 6), draw(n, c, t, 3)),
        "rows": lambda: kg.Rows(draw(n, c, 4)),
        "table": lambda: kg.Embedding(rng.integers(0, vocabulary, (n, t)), draw(n, c, t, 3), num_embeddings=vocabulary),
    }
    return kg.GradientFeatures({kind: blocks[kind]() for kind in kinds})


@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 9),
    n=st.sampled_from([1, 3, 16, 17, 97]),
    c=st.integers(1, 3),
    t=st.integers(1, 4),
    dtype=st.sampled_from([np.float32, np.float64]),
    kinds=st.sets(st.sampled_from(["dense", "sequence", "rows"]), min_size=1),
    outputs=st.sampled_from(["full", "trace", "mean_trace", "diagonal", "sum_logits"]),
    threads=st.sampled_from([1, 2, 5]),
    rectangular=st.booleans(),
    preconditioned=st.booleans(),
)
def test_bits_of_single_calls(seed, count, n, c, t, dtype, kinds, outputs, threads, rectangular, preconditioned):
    rng, kinds = np.random.default_rng(seed), sorted(kinds)
    left = [features(rng, n, c, t, dtype, kinds) for _ in range(count)]
    right = [features(rng, n + 2, c, t, dtype, kinds) for _ in range(count)] if rectangular else [None] * count
    eta = None
    if preconditioned:
        shapes = {"dense": [(5, 7), (5,)], "sequence": [(3, 6)], "rows": [(4,)]}
        eta = {kind: tuple(rng.random(shape).astype(dtype) for shape in shapes[kind]) for kind in kinds}
    expected = [kg.empirical_ntk(a, b, outputs=outputs, preconditioner=eta) for a, b in zip(left, right, strict=True)]
    stack, stack2 = kg.stack(left), kg.stack(right) if rectangular else None
    found = kg.empirical_ntk(stack, stack2, outputs=outputs, preconditioner=eta, num_threads=threads)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, np.stack(expected))


def test_embeddings():
    rng = np.random.default_rng(0)
    parts = [features(rng, 6, 1, 4, np.float64, ["table", "dense"], vocabulary=200) for _ in range(5)]
    found = kg.empirical_ntk(kg.stack(parts))
    np.testing.assert_allclose(found, [kg.empirical_ntk(part) for part in parts], rtol=1e-12, atol=1e-12)


def test_a_stack_is_a_sequence_of_features():
    rng = np.random.default_rng(0)
    parts = [features(rng, 6, 2, 2, np.float32, ["dense", "rows"]) for _ in range(3)]
    stack = kg.stack(parts)
    assert (len(stack), stack.num_examples) == (3, 6)
    for part, other in zip(parts, stack, strict=True):
        np.testing.assert_array_equal(part["rows"].rows, other["rows"].rows)
    np.testing.assert_array_equal(stack[-1]["rows"].rows, parts[-1]["rows"].rows)
    with pytest.raises(IndexError, match="there are 3 features"):
        stack[3]
    assert "S=3" in repr(stack)


def test_little_memory_changes_no_bit():
    rng = np.random.default_rng(0)
    parts = [features(rng, 60, 1, 3, np.float32, ["dense", "sequence", "rows"]) for _ in range(8)]
    stack = kg.stack(parts)
    expected = kg.empirical_ntk(stack)
    with pytest.raises(kg.MemoryLimitError) as refusal:
        kg.empirical_ntk(stack, memory_limit=2**12)
    # The least that suffices, for one kernel at a time; then more, for several.
    for limit in (refusal.value.needed, 2 * refusal.value.needed, 2**24):
        np.testing.assert_array_equal(kg.empirical_ntk(stack, memory_limit=limit), expected)


def test_refusals():
    rng = np.random.default_rng(0)
    one, other = (features(rng, n, 1, 1, np.float64, ["rows"]) for n in (4, 5))
    stack = kg.stack([one, one])
    with pytest.raises(ValueError, match="features must hold at least one"):
        kg.stack([])
    with pytest.raises(TypeError, match=r"features\[1\] must be GradientFeatures, got int"):
        kg.stack([one, 3])
    with pytest.raises(ValueError, match=r"features\[1\] must have the blocks and shapes of features\[0\]"):
        kg.stack([one, other])
    with pytest.raises(TypeError, match="feats2 must be a FeatureStack"):
        kg.empirical_ntk(stack, one)
    with pytest.raises(TypeError, match="feats2 is a FeatureStack but feats is not"):
        kg.empirical_ntk(one, stack)
    with pytest.raises(ValueError, match="feats2 must hold 2 features"):
        kg.empirical_ntk(stack, kg.stack([one]))
    for name, value in (("per_layer", True), ("out", np.empty((2, 4, 4))), ("devices", 0)):
        with pytest.raises(ValueError, match=f"{name} cannot be given with a FeatureStack"):
            kg.empirical_ntk(stack, **{name: value})
    huge = kg.GradientFeatures({"rows": kg.Rows(np.full((2, 3), 1e30, np.float32))})
    with pytest.raises(ValueError, match="rescale"):
        kg.empirical_ntk(kg.stack([huge, huge]))
