"""Embeddings: kernels of tables that are looked up, against their gradients written out by the reference."""

from __future__ import annotations

import functools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kernelgrowth as kg
import reference
from kernelgrowth import BackendError, ChunkedFeatures, Embedding, GradientFeatures, MemoryLimitError
from kernelgrowth.gradients import OuterProduct, Rows, jvp
from kernelgrowth.gradients.identity import checksum, layout
from kernelgrowth.kernels import NTKOperator, empirical_ntk
from kernelgrowth.kernels.diagonal import diagonal
from kernelgrowth.spectra import eigsh
from kernelgrowth.spectra.gradient_rows import gradient_rows
from kernelgrowth.tracking.layers import LayerKernels
from memory import smallest_limit
from product_cases import PROMISE, exact, preconditioner
from stand_in_cupy import CuPy, stand_in
from strategies import OUTPUTS, Case, dtypes, modes
from tile_cases import LargestTile, Store, chunked

matrix_modes = st.sampled_from(["full", "trace", "mean_trace", "sum_logits"])
ways = st.sampled_from(["stored", "tiles", "factored"])
seeds = st.integers(0, 2**32 - 1)


def lookups(rng, n, t, vocabulary):
    """Indices among few of a table's rows, so that some are looked up again: in an example, or in others."""
    some = rng.integers(0, vocabulary, rng.integers(1, 2 * t + 2))
    return rng.choice(some, (n, t)) if rng.random() < 0.8 else rng.integers(0, vocabulary, (n, t))


@st.composite
def embedding_cases(draw, *, max_examples=18, symmetric=None, layouts=("contiguous", "strided")):
    """A table beside explicit rows, and sometimes a second table."""
    rng = np.random.default_rng(draw(seeds))
    dtype = draw(dtypes)
    c = draw(st.integers(1, 3))
    one_sided = draw(st.booleans()) if symmetric is None else symmetric
    counts = [draw(st.integers(1, max_examples)) for _ in range(1 if one_sided else 2)]
    sides = [({}, {}) for _ in counts]
    for name in ["words", "kinds"][: draw(st.integers(1, 2))]:
        t, width = draw(st.sampled_from([1, 1, 2, 5, 9])), draw(st.sampled_from([1, 3, 17, 40]))
        vocabulary = draw(st.sampled_from([1, 2, 7, 60]))
        scale = draw(st.sampled_from([1.0, 0.5, 0.3, 0.0]))
        strided = draw(st.sampled_from(layouts)) == "strided"
        for n, (features, blocks) in zip(counts, sides, strict=True):
            ids, d = lookups(rng, n, t, vocabulary), rng.normal(size=(n, c, t, width)).astype(dtype)
            if strided:
                ids, d = np.asfortranarray(ids).astype(np.int32), np.repeat(d, 2, axis=0)[::2][..., ::-1]
            features[name] = Embedding(ids, d, num_embeddings=vocabulary, scale=scale)
            blocks[name] = {"I": ids, "V": vocabulary, "D": d, "scale": scale}
    for n, (features, blocks) in zip(counts, sides, strict=True):
        g = rng.normal(size=(n, c, 3)).astype(dtype)
        features["rows"], blocks["rows"] = Rows(g), {"G": g, "scale": 1.0}
    return Case([GradientFeatures(f) for f, _ in sides], [b for _, b in sides], dtype)


def table(seed=0, *, n=23, c=2, t=4, d=5, vocabulary=200, dtype=np.float32):
    rng = np.random.default_rng(seed)
    backprops = rng.normal(size=(n, c, t, d)).astype(dtype)
    return GradientFeatures(
        {
            "words": Embedding(rng.integers(0, vocabulary, (n, t)), backprops, num_embeddings=vocabulary),
            "rows": Rows(rng.normal(size=(n, c, 3)).astype(dtype)),
        }
    )


def weights(features, seed=1):
    rng = np.random.default_rng(seed)
    words = features["words"]
    eta = {"words": rng.random((words.num_embeddings, words.backprops.shape[3])), "rows": rng.random(3)}
    return {name: array.astype(features.dtype) for name, array in eta.items()}


def jacobians(case, eta):
    roots = {name: (np.sqrt(np.float64(array)),) for name, array in eta.items()}
    return [reference.jacobian(blocks, roots) for blocks in case.block_pair]


# Kernels


@settings(max_examples=150)
@given(embedding_cases(), modes, st.booleans(), seeds)
def test_kernel_is_that_of_the_written_out_gradients(case, outputs, weighted, seed):
    eta = preconditioner(case, seed) if weighted else {}
    j1, j2 = jacobians(case, eta)
    kernel = empirical_ntk(*case.pair, outputs=outputs, preconditioner=eta or None)
    wanted, allowed = reference.ntk(j1, j2, outputs), reference.entry_scale(j1, j2, outputs)
    assert kernel.shape == wanted.shape
    assert kernel.dtype == case.dtype
    assert np.all(np.abs(kernel - wanted) <= PROMISE[case.dtype] * allowed)
    by_layer = empirical_ntk(*case.pair, outputs=outputs, preconditioner=eta or None, per_layer=True)
    assert list(by_layer) == list(case.features[0])
    assert np.all(np.abs(sum(by_layer.values()) - wanted) <= 4 * PROMISE[case.dtype] * allowed)


def test_a_vocabulary_much_larger_than_what_occurs():
    rng = np.random.default_rng(0)
    ids, d = rng.integers(0, 50_000, (4, 5)), rng.normal(size=(4, 2, 5, 3))
    ids[2, 3] = ids[0, 0]
    kernel = empirical_ntk(GradientFeatures({"words": Embedding(ids, d, num_embeddings=50_000)}))
    j = reference.jacobian({"words": {"I": ids, "V": 50_000, "D": d, "scale": 1.0}})
    np.testing.assert_allclose(kernel, reference.ntk(j, j), rtol=1e-13, atol=1e-13)


def test_rows_looked_up_on_one_side_alone_contribute_nothing():
    rng = np.random.default_rng(0)
    d = rng.normal(size=(3, 4))
    left, right = (
        GradientFeatures({"words": Embedding(ids, d, num_embeddings=9)}) for ids in ([[0], [1], [2]], [[8], [2], [7]])
    )
    kernel = empirical_ntk(left, right)
    wanted = np.zeros((3, 3))
    wanted[2, 1] = d[2] @ d[1]
    np.testing.assert_allclose(kernel, wanted)
    assert not empirical_ntk(left.examples(0, 2), right).any()
    assert not (NTKOperator(left.examples(0, 2), right, products="factored") @ np.ones(3)).any()


@settings(max_examples=40)
@given(embedding_cases(symmetric=True), modes)
def test_symmetric_to_the_bit_and_the_rectangular_kernel_with_itself(case, outputs):
    (features,) = case.features
    kernel = empirical_ntk(features, outputs=outputs)
    assert np.array_equal(kernel, empirical_ntk(features, features, outputs=outputs))
    for matrix in kernel if kernel.ndim == 3 else [reference.as_matrix(kernel)]:
        assert np.array_equal(matrix, matrix.T)


@settings(max_examples=40)
@given(embedding_cases(), modes, st.booleans())
def test_bits_depend_on_neither_threads_nor_memory(case, outputs, weighted):
    eta = preconditioner(case, 0) if weighted else None
    compute = functools.partial(empirical_ntk, *case.pair, outputs=outputs, preconditioner=eta)
    expected = compute(num_threads=1)
    assert np.array_equal(compute(num_threads=3, memory_limit=smallest_limit(compute)), expected)
    by_layer = functools.partial(compute, per_layer=True)
    by_layer(memory_limit=smallest_limit(by_layer))


# The operator


@settings(max_examples=100)
@given(embedding_cases(), matrix_modes, ways, st.booleans(), seeds)
def test_products(case, outputs, way, weighted, seed):
    eta = preconditioner(case, seed) if weighted else {}
    kernel, scale = exact(case, outputs, eta)
    make = functools.partial(NTKOperator, *case.pair, outputs=outputs, preconditioner=eta or None, products=way)
    operator = make()
    rng = np.random.default_rng(seed)
    v, u = rng.normal(size=(kernel.shape[1], 3)), rng.normal(size=kernel.shape[0])
    promise = 2 * PROMISE[case.dtype]
    assert np.all(np.abs(operator @ v - kernel @ v) <= promise * (scale @ np.abs(v)))
    assert np.all(np.abs(operator.rmatvec(u) - kernel.T @ u) <= promise * (scale.T @ np.abs(u)))
    assert np.all(np.abs(operator.gram() - kernel) <= PROMISE[case.dtype] * scale)
    assert abs(operator.frobenius_norm() - np.linalg.norm(kernel)) <= promise * np.linalg.norm(scale)
    assert "words" in str(operator.plan())
    assert "words" in str(operator.product_plan(3))
    parts = operator.per_layer()
    assert np.all(np.abs(sum(part @ v for part in parts.values()) - kernel @ v) <= 3 * promise * (scale @ np.abs(v)))

    def product(memory_limit):
        return make(memory_limit=memory_limit) @ v

    assert np.array_equal(product(smallest_limit(product)), make() @ v)


@settings(max_examples=60)
@given(embedding_cases(symmetric=True), matrix_modes, st.booleans(), seeds)
def test_diagonal_and_trace(case, outputs, weighted, seed):
    eta = preconditioner(case, seed) if weighted else {}
    kernel, scale = exact(case, outputs, eta)
    operator = NTKOperator(case.features[0], outputs=outputs, preconditioner=eta or None)
    assert abs(operator.trace() - np.trace(kernel)) <= 1e-12 * np.trace(scale)
    assert np.all(np.abs(operator.diagonal() - np.diag(kernel)) <= PROMISE[case.dtype] * np.diag(scale))
    # Without what an operator makes for them.
    plain = diagonal(case.features[0], outputs, {name: (array,) for name, array in eta.items()}, 2**30)
    assert np.all(np.abs(plain - np.diag(kernel)) <= 1e-12 * np.diag(scale))
    smallest_limit(lambda memory_limit: NTKOperator(case.features[0], memory_limit=memory_limit).diagonal())


def test_eigenpairs():
    features = table(n=40, c=1, t=5, vocabulary=30, dtype=np.float64)
    words = features["words"]
    blocks = {
        "words": {"I": words.indices, "V": 30, "D": words.backprops, "scale": 1.0},
        "rows": {"G": features["rows"].rows, "scale": 1.0},
    }
    j = reference.jacobian(blocks)[:, 0]
    for way in ("stored", "factored"):
        found = eigsh(NTKOperator(features, products=way), 4)
        np.testing.assert_allclose(found.eigenvalues, np.linalg.eigvalsh(j @ j.T)[::-1][:4], rtol=1e-6)


# Products with the Jacobian, and gradients written out


@settings(max_examples=60)
@given(embedding_cases(symmetric=True), seeds)
def test_jvp(case, seed):
    (features,) = case.features
    rng = np.random.default_rng(seed)
    shapes = {name: np.shape(array) for name, array in preconditioner(case, 0).items()}
    tangent = {name: rng.normal(size=shape).astype(case.dtype) for name, shape in shapes.items()}
    j = reference.jacobian(case.blocks[0])
    direction = np.concatenate([tangent[name].ravel() for name in features]).astype(np.float64)
    allowed = PROMISE[case.dtype] * (np.abs(j) @ np.abs(direction) + 1e-30)
    assert np.all(np.abs(jvp(features, tangent) - j @ direction) <= allowed)


@settings(max_examples=60)
@given(embedding_cases(symmetric=True))
def test_streamed_gradient_rows(case):
    (features,) = case.features
    j = reference.jacobian(case.blocks[0])
    j = j.reshape(-1, j.shape[2])
    rows = np.full(j.shape, np.nan)
    gradient_rows("rows", features).write(0, rows)
    np.testing.assert_allclose(rows, j, rtol=1e-13, atol=1e-13)
    make = functools.partial(kg.StreamingTopK, 1)
    top = make().partial_fit(features)
    result = top.result()
    assert result.trace == pytest.approx(np.square(j).sum(), rel=1e-12)
    assert abs(result.eigenvalues[0] - np.linalg.norm(j, 2) ** 2) <= result.value_bound * (1 + 1e-9) + 1e-12
    np.testing.assert_allclose(top.transform(features), j @ result.directions, rtol=1e-3, atol=1e-4)
    smallest_limit(lambda memory_limit: make(memory_limit=memory_limit).partial_fit(features))


# Out of core


@settings(max_examples=60)
@given(embedding_cases(max_examples=30), modes, st.booleans(), st.integers(1, 900), st.integers(1, 3))
def test_tiles_change_no_bit(case, outputs, weighted, largest, threads):
    eta = preconditioner(case, 0) if weighted else None
    expected = empirical_ntk(*case.pair, outputs=outputs, preconditioner=eta)
    out = Store(expected.shape, expected.dtype)
    with LargestTile(largest * expected.itemsize):
        empirical_ntk(*case.pair, outputs=outputs, out=out, preconditioner=eta, num_threads=threads)
    assert np.array_equal(out.data, expected)
    assert (out.written == 1).all()


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_a_kernel_in_tiles_is_resumed(tmp_path, outputs):
    features = table(n=60)
    eta = weights(features)
    expected = empirical_ntk(features, outputs=outputs, preconditioner=eta)
    out = Store(expected.shape, expected.dtype, fails_at=3, error=OSError("the disk is full"))
    options = {"outputs": outputs, "out": out, "preconditioner": eta, "progress": tmp_path / "progress"}
    with LargestTile(expected.nbytes // 16):
        with pytest.raises(OSError, match="the disk is full"):
            empirical_ntk(features, **options)
        empirical_ntk(features, **options, resume=True)
    assert np.array_equal(out.data, expected)
    assert (out.written == 1).all()
    with pytest.raises(ValueError, match="was written for another kernel: its features"):
        empirical_ntk(table(n=60, seed=5), **options, resume=True)


def test_a_memmap_needs_no_inputs_of_all_examples(tmp_path):
    features = table(n=200, c=1, t=16, vocabulary=4000)
    inputs = 200 * 16 * len(np.unique(features["words"].indices)) * 4
    out = np.lib.format.open_memmap(tmp_path / "K.npy", "w+", np.float32, (200, 200))
    with pytest.raises(MemoryLimitError):
        empirical_ntk(features, memory_limit=inputs // 2)
    empirical_ntk(features, out=out, memory_limit=inputs // 2)
    assert np.array_equal(out, empirical_ntk(features))


@settings(max_examples=80)
@given(
    embedding_cases(max_examples=30), modes, st.booleans(), st.tuples(st.integers(1, 12), st.integers(1, 12)), st.data()
)
def test_chunks(case, outputs, weighted, sizes, data):
    eta = preconditioner(case, 0) if weighted else {}
    j1, j2 = jacobians(case, eta)
    sides = list(case.pair)
    for k, size in enumerate(sizes):
        if sides[k] is not None and data.draw(st.booleans()):
            sides[k] = chunked(sides[k], size)
    wanted, allowed = reference.ntk(j1, j2, outputs), PROMISE[case.dtype] * reference.entry_scale(j1, j2, outputs)
    found = []
    for _ in range(2):
        out = Store(wanted.shape, case.dtype)
        with LargestTile(data.draw(st.integers(1, 400)) * out.dtype.itemsize):
            empirical_ntk(*sides, outputs=outputs, out=out, preconditioner=eta or None)
        assert np.all(np.abs(out.data - wanted) <= allowed)
        found.append(out.data)
    # Entries depend on where chunks end, but not on tiles.
    assert np.array_equal(*found)
    if sides[1] is None:
        for matrix in found[0] if found[0].ndim == 3 else [reference.as_matrix(found[0])]:
            assert np.array_equal(matrix, matrix.T)


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("weighted", [False, True])
def test_a_limit_that_is_not_refused_suffices_for_chunks_with_more_indices_than_the_first(outputs, weighted):
    rng = np.random.default_rng(0)
    ids = np.concatenate([np.zeros((4, 6), int), rng.integers(0, 300, (8, 6))])
    features = GradientFeatures({"words": Embedding(ids, rng.normal(size=(12, 2, 6, 3)), num_embeddings=300)})
    eta = {"words": rng.random((300, 3))} if weighted else None
    for sides in ((chunked(features, 4),), (features, chunked(features, 4))):
        compute = functools.partial(empirical_ntk, *sides, outputs=outputs, preconditioner=eta)
        written = []

        def begun(memory_limit, compute=compute, written=written):
            out = Store(compute(memory_limit=2**30).shape, np.float64)
            try:
                compute(memory_limit=memory_limit, out=out)
            finally:
                written.append(out.writes)

        smallest_limit(begun)
        assert not any(written[:-1])


def test_chunks_must_be_of_one_table():
    features = table(vocabulary=9)
    words = features["words"]

    def produce(start, stop):
        part = features.examples(start, stop)
        if start:
            other = Embedding(part["words"].indices, part["words"].backprops, num_embeddings=10)
            return GradientFeatures({"words": other, "rows": part["rows"]})
        return part

    with pytest.raises(ValueError, match="returned the block"):
        empirical_ntk(ChunkedFeatures(23, produce, chunk_size=9))
    calls = []

    def shuffled(start, stop):
        calls.append(start)
        ids = (words.indices[start:stop] + len(calls)) % 9
        part = Embedding(ids, words.backprops[start:stop], num_embeddings=9)
        return GradientFeatures({"words": part})

    with pytest.raises(ValueError, match="returned other numbers than before"):
        empirical_ntk(ChunkedFeatures(23, shuffled, chunk_size=9))


# Memory


class TestNothingOfTheSizeOfTheVocabulary:
    """A table of so many rows that an array with one number for each of them cannot be made."""

    features = table(n=40, c=1, t=3, d=8, vocabulary=10**15)

    @pytest.mark.parametrize("outputs", OUTPUTS)
    def test_kernels(self, outputs, tmp_path):
        kernel = empirical_ntk(self.features, outputs=outputs)
        assert np.array_equal(empirical_ntk(self.features, self.features, outputs=outputs), kernel)
        out = np.lib.format.open_memmap(tmp_path / "K.npy", "w+", np.float32, kernel.shape)
        empirical_ntk(self.features, outputs=outputs, out=out, progress=tmp_path / "progress")
        assert np.array_equal(out, kernel)
        np.testing.assert_allclose(empirical_ntk(chunked(self.features, 7), outputs=outputs), kernel, atol=1e-4)

    @pytest.mark.parametrize("way", ["stored", "tiles", "factored"])
    def test_operators(self, way):
        operator = NTKOperator(self.features, products=way)
        assert operator.trace() == pytest.approx(float((operator @ np.eye(40)).trace()), rel=1e-5)
        operator.diagonal()
        eigsh(operator, 2)
        operator.per_layer()["words"].gram()

    def test_layers_of_a_tracked_network(self):
        rng = np.random.default_rng(0)
        ids = rng.integers(0, 10**15, (5, 1))
        features = GradientFeatures({"words": Embedding(ids, rng.normal(size=(5, 2)), num_embeddings=10**15)})
        ((_, kernel),) = LayerKernels(ids.astype(np.float64), "full").of(features)
        assert np.array_equal(kernel, empirical_ntk(features))

    def test_peak(self):
        features = table(n=200, c=1, t=8, d=16, vocabulary=1_000_000)
        inputs = 4 * 200 * 8 * len(np.unique(features["words"].indices))
        empirical_ntk(features)
        tracemalloc.start()
        try:
            empirical_ntk(features)
            peak = tracemalloc.get_traced_memory()[1]
            empirical_ntk(features, memory_limit=inputs + 2**24)
        finally:
            tracemalloc.stop()
        assert peak < inputs + 2**24
        with pytest.raises(MemoryLimitError, match=r"inputs of embeddings, one for each index that occurs \(\d+ in 'w"):
            empirical_ntk(features, memory_limit=inputs - 1)
        with pytest.raises(MemoryLimitError, match="are taken by inputs of embeddings: a kernel of shape") as caught:
            empirical_ntk(features, memory_limit=inputs + 1)
        assert caught.value.limit == inputs + 1


# GPUs


def on(gpu, features):
    blocks = {}
    for name, block in features.items():
        if isinstance(block, Embedding):
            arrays = gpu(block.indices), gpu(block.backprops)
            blocks[name] = Embedding(*arrays, num_embeddings=block.num_embeddings, scale=block.scale)
        else:
            blocks[name] = Rows(gpu(block.rows), scale=block.scale)
    return GradientFeatures(blocks)


@settings(max_examples=40)
@given(embedding_cases(layouts=("contiguous",)), matrix_modes, ways, st.booleans(), seeds)
def test_on_a_gpu(gpu, case, outputs, way, weighted, seed):
    eta = preconditioner(case, seed) if weighted else {}
    sides = [None if side is None else on(gpu, side) for side in case.pair]
    placed = {name: gpu(array) for name, array in eta.items()}
    kernel = empirical_ntk(*case.pair, outputs=outputs, preconditioner=eta or None)
    gpu.agree(empirical_ntk(*sides, outputs=outputs, preconditioner=placed or None), kernel, 0)
    operator = NTKOperator(*sides, outputs=outputs, preconditioner=placed or None, products=way)
    v = np.random.default_rng(seed).normal(size=(operator.shape[1], 2)).astype(case.dtype)
    wanted, scale = exact(case, outputs, eta)
    product = operator @ gpu(v)
    assert gpu.holds(product)
    assert np.all(np.abs(product.get() - wanted @ v) <= 4 * PROMISE[case.dtype] * (scale @ np.abs(v)))
    if sides[1] is None:
        assert np.all(np.abs(operator.diagonal().get() - np.diag(wanted)) <= PROMISE[case.dtype] * np.diag(scale))
        tangent = {name: gpu(array) for name, array in preconditioner(case, seed).items()}
        gpu.agree(jvp(sides[0], tangent), jvp(case.features[0], preconditioner(case, seed)), 1e-6)


def test_devices_take_features_in_memory_and_refuse_chunks(monkeypatch):
    compiled = pytest.importorskip("kernelgrowth._cuda", reason="built without CUDA", exc_type=ImportError)
    stand_in(monkeypatch, compiled)
    monkeypatch.setitem(__import__("sys").modules, "cupy", CuPy(count=2))
    features = table()
    expected = empirical_ntk(features)
    with LargestTile(expected.nbytes // 20):
        assert np.array_equal(empirical_ntk(features, devices=[0, 1]), expected)
    smallest_limit(functools.partial(empirical_ntk, features, devices=[0, 1]))
    with pytest.raises(BackendError, match="ChunkedFeatures with the embedding 'words' have no kernel on devices"):
        empirical_ntk(chunked(features, 9), devices=0)


# What is given, and what it is known by


def test_what_tells_embeddings_apart():
    features = table(vocabulary=9)
    words = features["words"]
    one = GradientFeatures({"words": words})
    other = GradientFeatures({"words": Embedding((words.indices + 1) % 9, words.backprops, num_embeddings=9)})
    assert checksum(one) != checksum(other)
    assert layout(one) == layout(other) == [["words", "Embedding", 2, 4, 5, 9, False, 1.0, "float32"]]
    assert checksum(one) == checksum(
        GradientFeatures({"words": Embedding(words.indices.astype(np.int16), words.backprops, num_embeddings=9)})
    )
    larger = GradientFeatures({"words": Embedding(words.indices, words.backprops, num_embeddings=10)})
    dense = GradientFeatures({"words": OuterProduct(words.activations, words.backprops)})
    for unlike in (larger, dense):
        assert layout(unlike) != layout(one)
        with pytest.raises(ValueError, match=r"feats2\['words'\] is .* another parameter"):
            empirical_ntk(one, unlike)
    np.testing.assert_allclose(empirical_ntk(one), empirical_ntk(dense), rtol=1e-5, atol=1e-5)
    assert repr(words) == "Embedding(N=23, C=2, T=4, num_embeddings=9, d=5, scale=1, float32)"
    assert one.num_parameters == 45
    part = one.examples(3, 7)["words"]
    assert np.shares_memory(part.indices, words.indices)
    assert np.shares_memory(part.backprops, words.backprops)
    np.testing.assert_allclose(empirical_ntk(one.examples(3, 7)), empirical_ntk(one)[3:7, 3:7], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("ids", "d", "shape"),
    [
        ((3,), (3, 4), (3, 1, 1, 4)),
        ((3,), (3, 2, 4), (3, 2, 1, 4)),
        ((3, 5), (3, 5, 4), (3, 1, 5, 4)),
        ((3, 5), (3, 2, 5, 4), (3, 2, 5, 4)),
    ],
)
def test_shapes(ids, d, shape):
    block = Embedding(np.zeros(ids, int), np.ones(d), num_embeddings=1)
    assert block.backprops.shape == shape
    assert block.indices.shape == (shape[0], shape[2])


def test_integers_of_other_kinds_and_libraries():
    features = table(n=5)
    words = features["words"]
    expected = empirical_ntk(GradientFeatures({"words": words}))
    for ids in (words.indices.astype(np.uint8), words.indices.astype(">i4"), words.indices.tolist()):
        block = Embedding(ids, words.backprops, num_embeddings=200)
        assert np.array_equal(empirical_ntk(GradientFeatures({"words": block})), expected)
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    for dtype in (torch.int64, torch.int32):
        ids = torch.from_numpy(words.indices).to(dtype)
        d = torch.from_numpy(words.backprops).requires_grad_()
        kernel = empirical_ntk(GradientFeatures({"words": Embedding(ids, d, num_embeddings=200)}))
        assert isinstance(kernel, torch.Tensor)
        assert np.array_equal(kernel.numpy(), expected)


@pytest.mark.parametrize(
    ("ids", "d", "v", "error", "message"),
    [
        (np.zeros((2, 3)), np.ones((2, 3, 4)), 5, TypeError, "indices must be integers, got dtype float64"),
        (np.zeros((2, 3), bool), np.ones((2, 3, 4)), 5, TypeError, "indices must be integers, got dtype bool"),
        (np.ma.zeros((2, 3), int), np.ones((2, 3, 4)), 5, TypeError, "indices must not be a masked array"),
        (np.array([[0], [5]]), np.ones((2, 4)), 5, ValueError, r"indices must lie in \[0, 5\), got 0 to 5"),
        (np.array([[0], [-1]]), np.ones((2, 4)), 5, ValueError, r"indices must lie in \[0, 5\), got -1 to 0"),
        (np.array([0, 2**64 - 1], np.uint64), np.ones((2, 4)), 5, ValueError, r"indices must lie in \[0, 5\)"),
        (np.zeros((2, 3, 1), int), np.ones((2, 3, 4)), 5, ValueError, "indices must have 1 or 2 dimension"),
        (np.zeros((0, 3), int), np.ones((0, 3, 4)), 5, ValueError, "indices must not be empty"),
        (np.zeros((2, 3), int), np.ones((2, 3, 0)), 5, ValueError, "backprops must not be empty"),
        (np.zeros((2, 3), int), np.ones((3, 3, 4)), 5, ValueError, "backprops must have the 2 examples"),
        (np.zeros((2, 3), int), np.ones((2, 4)), 5, ValueError, "lack positions"),
        (np.zeros((2, 3), int), np.ones((2, 2, 4, 4)), 5, ValueError, r"with the T = 3"),
        (np.zeros((2, 3), int), np.full((2, 3, 4), np.nan), 5, ValueError, "backprops must be finite"),
        (np.zeros((2, 3), int), np.ones((2, 3, 4)), 0, ValueError, "num_embeddings must be"),
        (np.zeros((2, 3), int), np.ones((2, 3, 4)), 5.0, TypeError, "num_embeddings must be an integer"),
        (np.zeros((2, 3), int), np.ones((2, 3, 4), np.float16), 5, TypeError, "backprops must be float32 or float64"),
    ],
)
def test_refusals(ids, d, v, error, message):
    with pytest.raises(error, match=message):
        Embedding(ids, d, num_embeddings=v)


def test_refused_scales_and_preconditioners():
    with pytest.raises(ValueError, match="scale must be"):
        Embedding([0], np.ones((1, 2)), num_embeddings=3, scale=-1.0)
    features = GradientFeatures({"words": Embedding([0, 2], np.ones((2, 3)), num_embeddings=4)})
    negative = np.ones((4, 3))
    negative[1, 0] = -1.0  # of a row that nobody looks up
    cases = [
        (np.ones((3, 4)), ValueError, r"preconditioner\['words'\] must have shape \(4, 3\)"),
        (np.ones((4, 3), np.float32), TypeError, r"preconditioner\['words'\] must be float64"),
        (np.full((4, 3), np.nan), ValueError, r"preconditioner\['words'\] must be finite"),
        (negative, ValueError, r"preconditioner\['words'\] must not be negative"),
    ]
    for eta, error, message in cases:
        for sides in ((features,), (chunked(features, 1),)):
            with pytest.raises(error, match=message):
                empirical_ntk(*sides, preconditioner={"words": eta})
        with pytest.raises(error, match=message):
            NTKOperator(features, preconditioner={"words": eta})


def test_arrays_of_two_libraries(gpu):
    with pytest.raises(TypeError, match="must all be NumPy or all be CuPy arrays"):
        Embedding(gpu(np.zeros((2, 1), int)), np.ones((2, 3)), num_embeddings=4)
