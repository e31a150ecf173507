"""Weights with positions, computed either way, and how the way is chosen."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from kernelgrowth.gradients import GradientFeatures, OuterProduct
from kernelgrowth.kernels import NTKOperator, empirical_ntk, lowering
from kernelgrowth.kernels.lowering import lower
from kernelgrowth.kernels.strategy import Shape, choose
from memory import smallest_limit
from strategies import OUTPUTS, cases, modes

PROMISE = {np.float32: 1e-5, np.float64: 1e-12}
shapes = st.builds(
    Shape,
    examples=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    positions=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    outputs=st.integers(1, 5),
    folded=st.integers(1, 5),
    columns=st.integers(1, 600),
    rows=st.integers(1, 600),
    itemsize=st.sampled_from([4, 8]),
)


@pytest.fixture(params=["expand", "pairs"])
def way(request, monkeypatch):
    monkeypatch.setattr(lowering, "choose", lambda shape: request.param)
    return request.param


@pytest.mark.parametrize("way", ["expand", "pairs"])
@settings(max_examples=40)
@given(case=cases(max_examples=20, max_length=30, max_positions=12, max_blocks=2), outputs=modes)
def test_either_way_equals_the_expanded_jacobian(way, case, outputs):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lowering, "choose", lambda shape: way)
        kernel = empirical_ntk(*case.pair, outputs=outputs)
        diagonal = None
        if len(case.features) == 1 and outputs != "diagonal":
            diagonal = NTKOperator(case.features[0], outputs=outputs).diagonal()
    j1, j2 = (reference.jacobian(blocks) for blocks in case.block_pair)
    exact, scale = reference.ntk(j1, j2, outputs), reference.entry_scale(j1, j2, outputs)
    assert np.all(np.abs(kernel - exact) <= PROMISE[case.dtype] * scale)
    if diagonal is not None:
        wanted, allowed = (np.diag(reference.as_matrix(matrix)) for matrix in (exact, scale))
        assert np.all(np.abs(diagonal - wanted) <= PROMISE[case.dtype] * allowed)


def sequences(n=18, c=2, t=7):
    rng = np.random.default_rng(8)
    return GradientFeatures(
        {
            "first": OuterProduct(rng.normal(size=(n, t, 40)), rng.normal(size=(n, c, t, 50)), bias=True),
            "second": OuterProduct(rng.normal(size=(n, 3, 40)), rng.normal(size=(n, c, 3, 9)), scale=0.5),
            "dense": OuterProduct(rng.normal(size=(n, 9)), rng.normal(size=(n, c, 8))),
        }
    )


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_same_bits_whatever_the_memory_threads_and_parts(way, outputs):
    features = sequences()
    problem = lower(features, None, outputs, {}, 2**40)
    assert [block.strategy for block in problem.blocks] == [way, way, "hadamard"]
    kernel = empirical_ntk(features, outputs=outputs, num_threads=1)
    assert np.array_equal(kernel, empirical_ntk(features, features, outputs=outputs))
    compute = functools.partial(empirical_ntk, features, outputs=outputs, num_threads=3)
    assert np.array_equal(kernel, compute(memory_limit=smallest_limit(compute)))


@given(shapes)
def test_the_choice_is_the_same_for_either_order(shape):
    turned = Shape(
        shape.examples[::-1],
        shape.positions[::-1],
        shape.outputs,
        shape.folded,
        shape.columns,
        shape.rows,
        shape.itemsize,
    )
    assert choose(shape) == choose(turned)
    assert shape.expansion_work() > 0
    assert shape.position_pairs_work() > 0


def test_few_positions_of_wide_layers_are_summed_in_pairs_and_many_of_narrow_ones_written_out():
    rng = np.random.default_rng(0)
    features = GradientFeatures(
        {
            "wide": OuterProduct(rng.normal(size=(30, 4, 200)), rng.normal(size=(30, 4, 200))),
            "narrow": OuterProduct(rng.normal(size=(30, 100, 9)), rng.normal(size=(30, 100, 8))),
        }
    )
    plan = NTKOperator(features).plan()
    assert [block.strategy for block in plan.blocks] == ["pairs", "expand"]
    wide, narrow = plan.blocks
    assert wide.flops == 30 * 31 // 2 * 16 * (2 * 200 + 2 * 200 + 3)
    assert narrow.flops == 2 * 30 * 100 * 9 * 8 + 30 * 31 * 9 * 8
    eta = {"wide": np.ones((200, 200)), "narrow": np.ones((8, 9))}
    weighted = NTKOperator(features, preconditioner=eta)
    assert [block.strategy for block in weighted.plan().blocks] == ["expand", "expand"]
    np.testing.assert_allclose(weighted.gram(), NTKOperator(features).gram(), rtol=1e-10, atol=1e-8)


def test_parts_take_the_choice_of_the_whole():
    rng = np.random.default_rng(0)
    a, d = rng.normal(size=(200, 9, 60)), rng.normal(size=(200, 9, 40))
    features = GradientFeatures({"w": OuterProduct(a, d)})

    def chosen(part, **options):
        problem = lower(part, None, "full", {}, 2**40, **options)
        return problem.blocks[0].strategy

    counts = {count: chosen(features.examples(0, count)) for count in (1, 200)}
    assert counts == {1: "pairs", 200: "expand"}
    assert chosen(features.examples(0, 1), examples=(200, 200)) == "expand"
