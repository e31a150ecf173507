"""Gradients written out while they are packed: positions, preconditioners, any strides, every instruction set."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelgrowth._backend import native
from kernelgrowth.gradients import GradientFeatures, OuterProduct, Rows
from kernelgrowth.kernels import NTKOperator, empirical_ntk
from memory import smallest_limit
from strategies import dtypes, sizes

PROMISE = {np.float32: 1e-5, np.float64: 1e-12}
ISAS = native.info()["available_isas"]


def strided(rng, shape, dtype, layout):
    if layout == "contiguous":
        return rng.normal(size=shape).astype(dtype)
    if layout == "reversed":
        return rng.normal(size=shape).astype(dtype)[..., ::-1, ::-1]
    if layout == "every other":
        return rng.normal(size=(*shape[:-1], 2 * shape[-1])).astype(dtype)[..., ::2]
    if layout == "positions side by side":
        return rng.normal(size=(*shape[:-2], shape[-1], shape[-2])).astype(dtype).swapaxes(-1, -2)
    if layout == "the same for all examples":
        return np.broadcast_to(rng.normal(size=shape[1:]).astype(dtype), shape)
    return np.asfortranarray(rng.normal(size=shape).astype(dtype))


layouts = st.sampled_from(
    ["contiguous", "reversed", "every other", "positions side by side", "the same for all examples", "fortran"]
)


@st.composite
def sides(draw, dtype, *, examples, outputs, d_in, d_out, bias, fold, weights):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    positions = draw(st.one_of(st.integers(1, 20), st.sampled_from([255, 256, 257, 600])))
    activations = strided(rng, (examples, positions, d_in), dtype, draw(layouts))
    backprops = strided(rng, (examples, outputs, positions, d_out), dtype, draw(layouts))
    return native.OuterProductRows(activations, backprops, bias, fold, weights)


@st.composite
def factors(draw):
    """Give two sides of one parameter, of different examples and positions."""
    dtype = draw(dtypes)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = {
        "outputs": draw(st.integers(1, 3)),
        "d_in": draw(sizes(60)),
        "d_out": draw(sizes(20)),
        "bias": draw(st.booleans()),
        "fold": draw(st.booleans()),
    }
    length = shape["d_out"] * (shape["d_in"] + shape["bias"]) * (shape["outputs"] if shape["fold"] else 1)
    shape["weights"] = rng.random(length).astype(dtype) if draw(st.booleans()) else None
    examples = [draw(sizes(50)) for _ in range(2)]
    return dtype, [draw(sides(dtype, examples=n, **shape)) for n in examples]


def written_out(side):
    gradients = np.einsum(
        "ncto,nti->ncoi", side.backprops.astype(np.float64), side.activations.astype(np.float64), optimize=True
    )
    if side.bias:
        total = side.backprops.astype(np.float64).sum(2)
        gradients = np.concatenate([gradients, total[..., None]], axis=-1)
    rows = gradients.reshape(len(gradients), 1, -1) if side.fold else gradients.reshape(*gradients.shape[:2], -1)
    return (rows if side.weights is None else rows * side.weights).reshape(-1, rows.shape[-1])


def assert_within_promise(kernel, left, right, dtype):
    scale = np.outer(np.linalg.norm(left, axis=1), np.linalg.norm(right, axis=1))
    assert np.all(np.abs(kernel - left @ right.T) <= PROMISE[dtype] * scale)


@settings(max_examples=60)
@given(factors(), st.sampled_from(ISAS))
def test_every_instruction_set_and_layout(case, isa):
    dtype, (left, right) = case
    j1, j2 = written_out(left), written_out(right)
    assert j1.shape == (left.shape[0] * left.shape[1], left.shape[2])
    symmetric = np.full((len(j1), len(j1)), np.nan, dtype)
    native.gram([native.GramTerm(native.Factor(left), scale=0.5)], symmetric, symmetric=True, isa=isa)
    assert_within_promise(2 * symmetric, j1, j1, dtype)
    assert np.array_equal(symmetric, symmetric.T)
    rectangular = np.full((len(j1), len(j2)), np.nan, dtype)
    native.gram([native.GramTerm(native.Factor(left, right))], rectangular, symmetric=False, isa=isa)
    assert_within_promise(rectangular, j1, j2, dtype)


@settings(max_examples=30)
@given(factors())
def test_same_bits_for_any_number_of_threads_workspace_and_layout(case):
    dtype, (side, _) = case
    size = side.shape[0] * side.shape[1]

    def compute(of, **options):
        out = np.full((size, size), np.nan, dtype)
        native.gram([native.GramTerm(native.Factor(of))], out, symmetric=True, **options)
        return out

    kernel = compute(side, threads=1)
    least = native.gram_workspace(
        [native.GramTerm(native.Factor(side))], (size, size), symmetric=True, threads=3
    ).minimum
    assert np.array_equal(kernel, compute(side, threads=3))
    assert np.array_equal(kernel, compute(side, threads=3, workspace=least))
    with pytest.raises(MemoryError, match="workspace"):
        compute(side, threads=3, workspace=least - 1)
    tidy = side._replace(activations=side.activations.copy("C"), backprops=side.backprops.copy("C"))
    assert np.array_equal(kernel, compute(tidy))


@pytest.mark.parametrize("isa", ISAS)
def test_many_positions_do_not_lose_digits(isa):
    positions = 300_000
    a, d = np.full((1, positions, 1), 0.1, np.float32), np.full((1, 1, positions, 1), 0.7, np.float32)
    out = np.empty((1, 1), np.float32)
    native.gram([native.GramTerm(native.Factor(native.OuterProductRows(a, d)))], out, symmetric=True, isa=isa)
    exact = (positions * float(np.float32(0.1)) * float(np.float32(0.7))) ** 2
    assert abs(out[0, 0] - exact) <= 1e-5 * exact


@pytest.mark.parametrize("outputs", ["full", "trace", "diagonal", "sum_logits"])
def test_a_preconditioned_kernel_has_the_same_bits_whatever_the_memory(outputs):
    rng = np.random.default_rng(4)
    features = GradientFeatures(
        {
            "conv": OuterProduct(rng.normal(size=(30, 3, 150)), rng.normal(size=(30, 2, 3, 120)), bias=True),
            "dense": OuterProduct(rng.normal(size=(30, 200)), rng.normal(size=(30, 2, 50))),
            "rows": Rows(rng.normal(size=(30, 2, 70_000))),
        }
    )
    eta = {
        "conv": (rng.random((120, 150)), rng.random(120)),
        "dense": rng.random((50, 200)),
        "rows": rng.random(70_000),
    }
    compute = functools.partial(empirical_ntk, features, outputs=outputs, preconditioner=eta, num_threads=1)
    kernel = compute()
    small = compute(memory_limit=smallest_limit(compute))
    assert np.array_equal(kernel, small)
    if outputs != "diagonal":
        operator = NTKOperator(features, outputs=outputs, preconditioner=eta)
        np.testing.assert_allclose(
            operator.diagonal(),
            np.diag(kernel) if kernel.ndim == 2 else np.einsum("nncc->nc", kernel).ravel(),
            rtol=1e-12,
        )


def test_refusals():
    a, d = np.ones((3, 2, 4)), np.ones((3, 1, 2, 5))
    out = np.empty((3, 3))

    def compute(side):
        native.gram([native.GramTerm(native.Factor(side))], out, symmetric=True)

    compute(native.OuterProductRows(a, d))
    with pytest.raises(ValueError, match="differ in examples or positions"):
        compute(native.OuterProductRows(a[:2], d))
    with pytest.raises(ValueError, match="differ in examples or positions"):
        compute(native.OuterProductRows(a[:, :1], d))
    with pytest.raises(TypeError, match="share one dtype"):
        compute(native.OuterProductRows(a.astype(np.float32), d))
    with pytest.raises(ValueError, match="weights must be contiguous, one for each entry"):
        compute(native.OuterProductRows(a, d, weights=np.ones(19)))
    with pytest.raises(ValueError, match="weights must be contiguous, one for each entry"):
        compute(native.WeightedRows(a[:, :1], np.ones(8)[::2]))
    with pytest.raises(ValueError, match="shape"):
        compute(native.OuterProductRows(a[0], d))


def test_equal_gradients_of_a_large_weight_round_within_the_promise():
    size, value = 2560, np.float32(0.7311)
    features = GradientFeatures({"w": OuterProduct(np.full((1, 2, size), value), np.full((1, 1, 2, size), value))})
    kernel = empirical_ntk(features, preconditioner={"w": np.ones((size, size), np.float32)})
    exact = (2 * float(value) ** 2) ** 2 * size**2
    assert abs(kernel[0, 0] - exact) <= 1e-5 * exact
