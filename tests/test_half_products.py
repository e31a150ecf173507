"""What a worker does for a product with a distributed kernel, without workers: sums of gradients, and their images."""

from __future__ import annotations

import itertools
import pickle
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelgrowth.distributed import halves
from kernelgrowth.distributed.halves import SumLayout, images, precondition, sum_gradients
from kernelgrowth.distributed.operator import _diagonal
from kernelgrowth.distributed.shards import Settings, describe, first_example, prepared, produce
from kernelgrowth.gradients import Embedding, GradientFeatures, OuterProduct, Rows
from kernelgrowth.kernels import NTKOperator
from product_cases import PROMISE, exact, preconditioner
from strategies import Case, cases
from test_operator_on_gpu import placed

modes = st.sampled_from(["full", "trace", "mean_trace", "sum_logits"])
seeds = st.integers(0, 2**32 - 1)
some_cases = cases(max_examples=30, max_outputs=3, max_length=60, max_positions=4, max_blocks=3, symmetric=True)


def product(feats, cuts, v, outputs, eta=None, occurring=None):
    """K v by the halves of the parts between `cuts`."""
    weights = {name: e if isinstance(e, tuple) else (e,) for name, e in (eta or {}).items()}
    common = Settings(outputs, weights, occurring or {}, 1)
    shards = [produce(lambda part: feats.examples(*part), part, 1) for part in itertools.pairwise(cuts)]
    parts = [prepared(shard, common, shard.checksum) for shard in shards]
    each = SumLayout(parts[0], common).rows_each
    pieces = [v[begin * each : end * each] for begin, end in itertools.pairwise(cuts)]
    total = sum(sum_gradients(part, piece, common) for part, piece in zip(parts, pieces, strict=True))
    if eta:
        total = precondition(total, first_example(shards[0]), common)
    return np.concatenate([images(part, total, common) for part in parts])


def close(case, found, kernel, scale, v):
    """Within the promise for every entry of the kernel, and its rounding for the sum of parts."""
    bound = 4 * PROMISE[case.dtype] * (scale @ np.abs(np.float64(v))) + 1e-30
    assert (np.abs(found - kernel @ np.float64(v)) <= bound).all()


@settings(max_examples=150)
@given(case=some_cases, outputs=modes, weighted=st.booleans(), k=st.integers(1, 5), seed=seeds, data=st.data())
def test_halves_make_the_product_with_the_expanded_jacobian(case, outputs, weighted, k, seed, data):
    eta = preconditioner(case, seed) if weighted else {}
    kernel, scale = exact(case, outputs, eta)
    feats = case.features[0]
    n = feats.num_examples
    cuts = sorted({0, n, *data.draw(st.lists(st.integers(0, n), max_size=3))})
    v = np.random.default_rng(seed).normal(size=(len(kernel), k)).astype(case.dtype)
    found = product(feats, cuts, v, outputs, eta)
    assert found.dtype == case.dtype
    close(case, found, kernel, scale, v)


@settings(max_examples=60)
@given(case=some_cases, outputs=modes, seed=seeds)
def test_many_small_steps_give_the_same(case, outputs, seed):
    """Groups of one vector, a few rows at a time, and runs of a few entries."""
    kernel, scale = exact(case, outputs, {})
    v = np.random.default_rng(seed).normal(size=(len(kernel), 3)).astype(case.dtype)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("_ROWS", 5), ("_BYTES", 16), ("_RUN", 7)):
            patch.setattr(halves, name, value)
        found = product(case.features[0], [0, case.features[0].num_examples], v, outputs)
    close(case, found, kernel, scale, v)


@settings(max_examples=60)
@given(case=some_cases, outputs=modes, weighted=st.booleans(), seed=seeds)
def test_halves_on_a_gpu_take_and_give_arrays_of_the_host(gpu, case, outputs, weighted, seed):
    eta = preconditioner(case, seed) if weighted else {}
    kernel, scale = exact(case, outputs, eta)
    feats = placed(gpu, case.features[0])
    v = np.random.default_rng(seed).normal(size=(len(kernel), 3)).astype(case.dtype)
    found = product(feats, [0, feats.num_examples // 2, feats.num_examples], v, outputs, eta)
    assert type(found) is np.ndarray
    close(case, found, kernel, scale, v)
    common = Settings(outputs, {name: e if isinstance(e, tuple) else (e,) for name, e in eta.items()}, {}, 1)
    shard = produce(lambda _: feats, None, 1)
    found = _diagonal(shard, shard.checksum, common, None)
    np.testing.assert_allclose(found, np.diag(kernel), rtol=PROMISE[case.dtype], atol=1e-30)


@settings(max_examples=40)
@given(seed=seeds, outputs=modes, c=st.integers(1, 3), t=st.integers(1, 4), weighted=st.booleans())
def test_embeddings_meet_over_all_shards(seed, outputs, c, t, weighted):
    rng = np.random.default_rng(seed)
    n, vocabulary, d = 12, 9, 5
    indices = rng.integers(0, vocabulary, (n, t))
    backprops = rng.normal(size=(n, c, t, d))
    feats = GradientFeatures({"table": Embedding(indices, backprops, num_embeddings=vocabulary, scale=0.5)})
    blocks = {"table": {"I": indices, "V": vocabulary, "D": backprops, "scale": 0.5}}
    case = Case([feats], [blocks], np.float64)
    eta = preconditioner(case, seed) if weighted else {}
    kernel, scale = exact(case, outputs, eta)
    v = rng.normal(size=(len(kernel), 2))
    found = product(feats, [0, 4, 5, n], v, outputs, eta, {"table": np.unique(indices)})
    close(case, found, kernel, scale, v)


@settings(max_examples=60)
@given(
    case=some_cases,
    outputs=st.sampled_from(["trace", "mean_trace", "sum_logits"]),
    seed=seeds,
    threads=st.integers(1, 3),
)
def test_a_column_of_the_sum_has_the_same_bits_beside_others_and_on_any_number_of_threads(case, outputs, seed, threads):
    feats = case.features[0]
    one, many = Settings(outputs, {}, {}, 1), Settings(outputs, {}, {}, threads)
    layout = SumLayout(feats, one)
    v = np.random.default_rng(seed).normal(size=(feats.num_examples * layout.rows_each, 4)).astype(case.dtype)
    alone, beside = sum_gradients(feats, v[:, 2:3], one), sum_gradients(feats, v, many)
    for (_, a), (_, b) in zip(layout.parts(alone), layout.parts(beside), strict=True):
        assert np.array_equal(a[:, 0], b[:, 2])


def test_sums_of_equal_numbers_lose_no_digits():
    """The worst case of summing in floats: a hundred thousand equal terms."""
    n = 100_000
    feats = GradientFeatures({"a": OuterProduct(np.full((n, 2), 0.1, np.float32), np.full((n, 3), 0.3, np.float32))})
    v = np.ones((n, 1), np.float32)
    total = sum_gradients(feats, v, Settings("full", {}, {}, 1))
    wanted = n * float(np.float32(0.1)) * float(np.float32(0.3))
    np.testing.assert_allclose(total, wanted, rtol=5e-6)


def test_the_count_of_operations_is_that_of_the_operator():
    rng = np.random.default_rng(0)
    feats = GradientFeatures(
        {
            "dense": OuterProduct(rng.normal(size=(50, 40)), rng.normal(size=(50, 2, 30))),
            "norm": Rows(rng.normal(size=(50, 2, 70))),
        }
    )
    for outputs in ("full", "trace"):
        counted = SumLayout(feats, Settings(outputs, {}, {}, 1)).flops_each(feats) * 50
        local = NTKOperator(feats, outputs=outputs, products="factored").product_plan(1).flops
        assert 0.9 < counted / local < 1.2


def test_a_shard_travels_once_and_says_what_it_weighs():
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(100, 200)), rng.normal(size=(100, 300))]
    feats = GradientFeatures({"a": OuterProduct(*arrays), "b": Rows(rng.normal(size=(100, 50)))})
    shard = produce(lambda _: feats, None, 1)
    assert shard.nbytes == 100 * 550 * 8
    assert sys.getsizeof(shard) >= shard.nbytes
    assert len(pickle.dumps(shard)) < shard.nbytes + 5000
    assert describe(shard).checksum == describe(pickle.loads(pickle.dumps(shard))).checksum
    assert len(pickle.dumps(first_example(shard))) < 550 * 8 + 3000


def test_a_shard_made_again_with_other_numbers_is_refused():
    shard = produce(random_rows, 0, 1)
    other = produce(random_rows, 1, 1)
    common = Settings("full", {}, {}, 1)
    assert prepared(shard, common, shard.checksum) is shard.features
    with pytest.raises(ValueError, match="made again"):
        prepared(other, common, shard.checksum)


def random_rows(seed):
    return GradientFeatures({"a": Rows(np.random.default_rng(seed).normal(size=(3, 4)))})
