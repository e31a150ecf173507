"""Embeddings: gradients of tables, against the outer products that they stand for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kernelgrowth as kg
from kernelgrowth.gradients import jvp
from kernelgrowth.gradients.identity import checksum, layout


def draw(seed, n, c, t, d, vocabulary, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return rng.integers(0, vocabulary, (n, t)), rng.standard_normal((n, c, t, d)).astype(dtype)


def table_rows(ids, d, vocabulary):
    """Every example's and output's gradient by the table, (N, C, V d), by loops."""
    n, c, t, width = d.shape
    rows = np.zeros((n, c, vocabulary, width))
    for i in range(n):
        for k in range(t):
            rows[i, :, ids[i, k]] += d[i, :, k]
    return rows.reshape(n, c, -1)


SHAPES = {
    "n": st.integers(1, 18),
    "c": st.integers(1, 3),
    "t": st.integers(1, 9),
    "d": st.integers(1, 17),
    "vocabulary": st.sampled_from([1, 2, 7, 50_000]),
}


@st.composite
def cases(draw_):
    shape = {name: draw_(strategy) for name, strategy in SHAPES.items()}
    if shape["vocabulary"] == 50_000:
        # The loops' rows are of the whole table.
        shape |= {"n": min(shape["n"], 4), "d": min(shape["d"], 3), "t": min(shape["t"], 4)}
    return draw_(st.integers(0, 2**32 - 1)), shape


def blocks(ids, d, vocabulary, rng, **options):
    """An embedding beside another block."""
    n, c = d.shape[:2]
    g = rng.standard_normal((n, c, 3)).astype(d.dtype)
    return kg.GradientFeatures(
        {"table": kg.Embedding(ids, d, num_embeddings=vocabulary, **options), "rows": kg.Rows(g)}
    ), g


@given(
    case=cases(),
    outputs=st.sampled_from(["full", "trace", "mean_trace", "diagonal", "sum_logits"]),
    single=st.booleans(),
)
def test_kernel_is_that_of_the_written_out_gradients(case, outputs, single):
    seed, shape = case
    ids, d = draw(seed, **shape, dtype=np.float32 if single else np.float64)
    feats, g = blocks(ids, d, shape["vocabulary"], np.random.default_rng(seed), scale=0.5)
    rows = np.concatenate([np.sqrt(0.5) * table_rows(ids, d, shape["vocabulary"]), g], axis=2)
    exact = kg.empirical_ntk(kg.GradientFeatures({"all": kg.Rows(rows)}), outputs=outputs)
    found = kg.empirical_ntk(feats, outputs=outputs)
    scale = np.abs(rows).sum() ** 2
    np.testing.assert_allclose(found, exact, rtol=1e-4 if single else 1e-10, atol=(1e-6 if single else 1e-14) * scale)
    assert found.dtype == d.dtype
    by_layer = kg.empirical_ntk(feats, outputs=outputs, per_layer=True)
    np.testing.assert_allclose(by_layer["table"] + by_layer["rows"], found, rtol=1e-3, atol=1e-6 * scale)


@given(case=cases(), outputs=st.sampled_from(["full", "trace", "sum_logits"]))
def test_rectangular_and_preconditioned_kernels(case, outputs):
    seed, shape = case
    ids, d = draw(seed, **shape)
    ids2, d2 = draw(seed + 1, **{**shape, "n": 3})
    rng, v = np.random.default_rng(seed), shape["vocabulary"]
    feats, g = blocks(ids, d, v, rng)
    feats2, g2 = blocks(ids2, d2, v, rng)
    eta = {"table": rng.random((d.shape[3], v)), "rows": rng.random(3)}
    weights = np.sqrt(np.concatenate([eta["table"].T.ravel(), eta["rows"]]))
    rows, rows2 = (
        np.concatenate([table_rows(i, x, v), y], axis=2) * weights for i, x, y in ((ids, d, g), (ids2, d2, g2))
    )
    sides = [kg.GradientFeatures({"all": kg.Rows(r)}) for r in (rows, rows2)]
    found = kg.empirical_ntk(feats, feats2, outputs=outputs, preconditioner=eta)
    np.testing.assert_allclose(found, kg.empirical_ntk(*sides, outputs=outputs), rtol=1e-9, atol=1e-12)


@given(case=cases(), products=st.sampled_from(["stored", "tiles", "factored"]), preconditioned=st.booleans())
def test_operator(case, products, preconditioned):
    seed, shape = case
    ids, d = draw(seed, **shape)
    rng, v = np.random.default_rng(seed), shape["vocabulary"]
    feats, g = blocks(ids, d, v, rng)
    eta = {"table": rng.random((d.shape[3], v)), "rows": rng.random(3)} if preconditioned else None
    rows = np.concatenate([table_rows(ids, d, v), g], axis=2)
    if eta is not None:
        rows = rows * np.sqrt(np.concatenate([eta["table"].T.ravel(), eta["rows"]]))
    rows = rows.reshape(-1, rows.shape[2])
    op = kg.NTKOperator(feats, products=products, preconditioner=eta)
    vectors = rng.standard_normal((len(rows), 2))
    scale = np.abs(rows @ rows.T).max()
    np.testing.assert_allclose(op @ vectors, rows @ (rows.T @ vectors), atol=1e-9 * scale)
    np.testing.assert_allclose(op.diagonal(), (rows**2).sum(1), atol=1e-10 * scale)
    np.testing.assert_allclose(op.trace(), (rows**2).sum(), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(op.gram(), rows @ rows.T, atol=1e-9 * scale)
    assert "table" in str(op.plan())


def test_eigenpairs():
    ids, d = draw(0, 40, 1, 5, 6, 30)
    feats = kg.GradientFeatures({"table": kg.Embedding(ids, d, num_embeddings=30)})
    rows = table_rows(ids, d, 30)[:, 0]
    values = np.linalg.eigvalsh(rows @ rows.T)[::-1][:4]
    np.testing.assert_allclose(kg.eigsh(kg.NTKOperator(feats), 4).eigenvalues, values, rtol=1e-6)


@given(case=cases())
def test_jvp_and_streamed_rows(case):
    seed, shape = case
    ids, d = draw(seed, **shape)
    rng, v = np.random.default_rng(seed), shape["vocabulary"]
    feats, g = blocks(ids, d, v, rng, scale=2.0)
    tangent = {"table": rng.standard_normal((d.shape[3], v)), "rows": rng.standard_normal(3)}
    rows = np.concatenate([np.sqrt(2.0) * table_rows(ids, d, v), g], axis=2)
    flat = np.concatenate([tangent["table"].T.ravel(), tangent["rows"]])
    np.testing.assert_allclose(jvp(feats, tangent), rows @ flat, atol=1e-9 * (1 + np.abs(rows).sum()))
    if v <= 7:
        order = np.arange(rows.shape[2] - 3).reshape(v, -1).T.ravel()
        written = np.concatenate([rows[:, :, order], rows[:, :, -3:]], axis=2)
        streams = [kg.StreamingTopK(1).partial_fit(f) for f in (feats, kg.GradientFeatures({"all": kg.Rows(written)}))]
        values = [stream.result().eigenvalues[0] for stream in streams]
        np.testing.assert_allclose(values[0], values[1], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("preconditioned", [False, True])
def test_out_of_core(tmp_path, preconditioned):
    ids, d = draw(3, 23, 2, 4, 5, 200, np.float32)
    rng = np.random.default_rng(1)
    feats, _ = blocks(ids, d, 200, rng)
    eta = {"table": rng.random((5, 200), np.float32), "rows": rng.random(3, np.float32)} if preconditioned else None
    exact = kg.empirical_ntk(feats, outputs="trace", preconditioner=eta)
    out = np.lib.format.open_memmap(tmp_path / "K.npy", "w+", np.float32, (23, 23))
    kg.empirical_ntk(feats, outputs="trace", out=out, preconditioner=eta, progress=tmp_path / "progress")
    np.testing.assert_array_equal(out, exact)

    chunked = kg.ChunkedFeatures(23, feats.examples, chunk_size=5)
    found = kg.empirical_ntk(chunked, outputs="trace", preconditioner=eta)
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(found, found.T)


def test_a_large_vocabulary_takes_no_memory():
    ids, d = draw(0, 50, 1, 4, 8, 1_000_000, np.float32)
    feats = kg.GradientFeatures({"table": kg.Embedding(ids, d, num_embeddings=1_000_000)})
    assert feats.num_parameters == 8_000_000
    kg.empirical_ntk(feats, memory_limit=2**22)
    with pytest.raises(kg.MemoryLimitError, match="the inputs of the embedding 'table', 200 of which occur"):
        kg.empirical_ntk(feats, memory_limit=2**16)


def test_what_tells_embeddings_apart():
    ids, d = draw(0, 4, 1, 2, 3, 9)
    one = kg.GradientFeatures({"table": kg.Embedding(ids, d, num_embeddings=9)})
    other = kg.GradientFeatures({"table": kg.Embedding((ids + 1) % 9, d, num_embeddings=9)})
    dense = kg.GradientFeatures({"table": kg.OuterProduct(one["table"].activations, d)})
    assert checksum(one) != checksum(other)
    assert layout(one) == layout(other) != layout(dense)
    np.testing.assert_allclose(kg.empirical_ntk(one), kg.empirical_ntk(dense))
    with pytest.raises(ValueError, match="another parameter"):
        kg.empirical_ntk(one, dense)
    assert "num_embeddings=9" in repr(one)
    part = one.examples(1, 3)
    assert part["table"].indices.tolist() == ids[1:3].tolist()


@pytest.mark.parametrize(
    ("ids", "d", "v", "error", "message"),
    [
        (np.zeros((2, 3)), np.ones((2, 3, 4)), 5, TypeError, "indices must be integers"),
        (np.array([[0], [5]]), np.ones((2, 4)), 5, ValueError, r"indices must lie in \[0, 5\), got 0 to 5"),
        (np.array([[0], [-1]]), np.ones((2, 4)), 5, ValueError, r"indices must lie in \[0, 5\), got -1 to 0"),
        (np.zeros((2, 3, 1), int), np.ones((2, 3, 4)), 5, ValueError, "indices must have 1 or 2 dimension"),
        (np.zeros((0, 3), int), np.ones((0, 3, 4)), 5, ValueError, "indices must not be empty"),
        (np.zeros((2, 3), int), np.ones((3, 3, 4)), 5, ValueError, "backprops must have the 2 examples"),
        (np.zeros((2, 3), int), np.ones((2, 4)), 5, ValueError, "lack positions"),
        (np.zeros((2, 3), int), np.full((2, 3, 4), np.nan), 5, ValueError, "backprops must be finite"),
        (np.zeros((2, 3), int), np.ones((2, 3, 4)), 0, ValueError, "num_embeddings must be"),
        (np.zeros((2, 3), int), np.ones((2, 3, 4), np.float16), 5, TypeError, "backprops must be float32 or float64"),
    ],
)
def test_refusals(ids, d, v, error, message):
    with pytest.raises(error, match=message):
        kg.Embedding(ids, d, num_embeddings=v)


def test_indices_of_any_integers_and_one_position():
    d = np.random.default_rng(0).standard_normal((3, 4))
    for dtype in (np.uint8, np.int32, np.int64):
        block = kg.Embedding(np.array([2, 0, 2], dtype), d, num_embeddings=3)
        kernel = kg.empirical_ntk(kg.GradientFeatures({"table": block}))
        assert kernel[0, 1] == 0
        np.testing.assert_allclose(kernel[0, 2], d[0] @ d[2])
