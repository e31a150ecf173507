"""Kernels larger than memory: features on disk or produced in chunks, tiles written to arrays on disk, resumption."""

from __future__ import annotations

import errno
import functools
import os
import subprocess
import sys
import textwrap
import threading
from contextlib import nullcontext, suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kernelgrowth as kg
from kernelgrowth import (
    ChunkedFeatures,
    GradientFeatures,
    MemoryLimitError,
    OuterProduct,
    Rows,
    RunFolderError,
    empirical_ntk,
    nets,
)
from kernelgrowth._backend import arrays
from kernelgrowth.gradients import from_net
from memory import smallest_limit
from reference import as_matrix
from strategies import OUTPUTS, cases, modes, sizes
from tile_cases import LargestTile, Store, chunked, random_features, random_preconditioner, tile_count


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """What was written survives the end of the process without it; only a power cut would not spare the rest."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


# The same bits as in memory


@settings(max_examples=60)
@given(
    cases(max_examples=49, max_outputs=3, max_length=49, max_positions=3, max_blocks=3),
    modes,
    sizes(60),
    sizes(60),
    st.tuples(sizes(30), sizes(30)),
    st.booleans(),
    st.integers(1, 3),
    st.data(),
)
def test_tiles_and_chunks_change_no_bit(case, outputs, first, second, chunks, weighted, threads, data):
    feats, feats2 = case.pair
    preconditioner = random_preconditioner(feats) if weighted else None
    expected = empirical_ntk(feats, feats2, outputs=outputs, preconditioner=preconditioner)
    sides = [feats, feats2]
    for k, chunk_size in enumerate((first, second)):
        if sides[k] is not None and data.draw(st.booleans()):
            sides[k] = chunked(sides[k], chunk_size)
    stored = {2: chunks, 3: (1, *chunks), 4: (*chunks, 1, 2)}[expected.ndim]
    out = Store(expected.shape, expected.dtype, chunks=data.draw(st.sampled_from([None, stored])))
    per_pair = (
        expected.itemsize * expected.size // (feats.num_examples * expected.shape[2 if expected.ndim == 3 else 1])
    )
    with LargestTile(data.draw(st.integers(1, 60)) ** 2 * per_pair * 2):
        returned = empirical_ntk(*sides, outputs=outputs, out=out, preconditioner=preconditioner, num_threads=threads)
    assert returned is out
    assert np.array_equal(out.data, expected)
    assert (out.written == 1).all()
    if feats2 is None:
        matrices = expected if expected.ndim == 3 else as_matrix(expected)
        assert np.array_equal(matrices, matrices.swapaxes(-1, -2))


@pytest.mark.parametrize("layout", [np.asfortranarray, np.ascontiguousarray, lambda g: g[::-1]])
def test_the_order_of_a_sum_over_many_outputs_is_that_of_the_outputs(layout):
    rng = np.random.default_rng(0)
    for shape in ((17, 11, 1), (3, 9, 5)):
        features = GradientFeatures({"w": Rows(layout(rng.normal(size=shape)))})
        expected = empirical_ntk(features, outputs="sum_logits")
        with LargestTile(8):
            out = empirical_ntk(features, outputs="sum_logits", out=Store(expected.shape, expected.dtype))
        assert np.array_equal(out.data, expected)


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_any_limit_that_is_not_refused_gives_the_same_bits(outputs, tmp_path):
    features = random_features(n=11)
    preconditioner = random_preconditioner(features)
    expected = empirical_ntk(features, outputs=outputs, preconditioner=preconditioner)
    source = chunked(features, 4)
    out = np.lib.format.open_memmap(tmp_path / "K.npy", "w+", expected.dtype, expected.shape)
    compute = functools.partial(empirical_ntk, source, outputs=outputs, out=out, preconditioner=preconditioner)
    least = smallest_limit(compute)
    roots = sum(np.asarray(eta).nbytes for etas in preconditioner.values() for eta in etas)
    assert least > 2 * source.chunk_bytes + roots
    for limit in (least, least + 2000, 10 * least):
        out[...] = np.nan
        compute(memory_limit=limit)
        assert np.array_equal(out, expected)
    assert np.array_equal(np.load(tmp_path / "K.npy"), expected)


def test_features_on_disk_are_not_loaded(tmp_path):
    features = random_features()
    expected = empirical_ntk(features)
    blocks = {}
    for name, block in features.items():
        arrays = [block.rows] if isinstance(block, Rows) else [block.activations, block.backprops]
        mapped = []
        for k, array in enumerate(arrays):
            np.save(tmp_path / f"{name}{k}.npy", array)
            mapped.append(np.load(tmp_path / f"{name}{k}.npy", mmap_mode="r"))
        extra = {} if isinstance(block, Rows) else {"bias": block.bias}
        blocks[name] = type(block)(*mapped, scale=block.scale, **extra)
        held = [blocks[name].rows] if isinstance(block, Rows) else [blocks[name].activations, blocks[name].backprops]
        assert all(np.shares_memory(a, b) for a, b in zip(held, mapped, strict=True))
    on_disk = GradientFeatures(blocks)
    assert np.array_equal(empirical_ntk(on_disk), expected)
    with LargestTile(5000):
        assert np.array_equal(empirical_ntk(on_disk, out=Store(expected.shape, "f4")).data, expected)
    inside = np.load(tmp_path / "dense0.npy", mmap_mode="r+")
    other = GradientFeatures({"w": Rows(np.load(tmp_path / "dense0.npy", mmap_mode="r"))})
    square = np.memmap(tmp_path / "dense0.npy", inside.dtype, "r+", shape=(15, 15))
    with pytest.raises(ValueError, match="out and the features are mappings of one file"):
        empirical_ntk(other.examples(0, 15), out=square)


def test_values_that_are_not_finite_are_counted_a_part_at_a_time(monkeypatch):
    monkeypatch.setattr(arrays, "_LOOKED_AT", 6)
    rows = np.ones((7, 3), np.float32)
    rows[4, 1], rows[6] = np.inf, np.nan
    with pytest.raises(ValueError, match=r"rows must be finite, got inf at index \(4, 1\) \(4 such value"):
        Rows(rows)


def test_a_zarr_array_gets_every_chunk_once(tmp_path):
    zarr = pytest.importorskip("zarr")
    features = random_features()
    expected = empirical_ntk(features)
    out = zarr.create_array(tmp_path / "K.zarr", shape=expected.shape, chunks=(8, 8, 2, 2), dtype="f4")
    assert kg.kernels.tile_grid.write_unit(out, expected.shape) == 8
    with LargestTile(20_000):
        empirical_ntk(chunked(features, 12), out=out, progress=tmp_path / "p", resume=True)
        assert np.array_equal(out[...], expected)
        out[:8] = 0
        with pytest.warns(RuntimeWarning, match=r"out does not hold \d of the \d+ tiles"):
            empirical_ntk(chunked(features, 12), out=out, progress=tmp_path / "p", resume=True)
    assert np.array_equal(out[...], expected)
    sharded = zarr.create_array(
        tmp_path / "S.zarr", shape=expected.shape, chunks=(4, 4, 2, 2), shards=(16, 16, 2, 2), dtype="f4"
    )
    assert kg.kernels.tile_grid.write_unit(sharded, expected.shape) == 16
    empirical_ntk(features, out=sharded)
    assert np.array_equal(sharded[...], expected)


def test_the_result_comes_in_memory_where_no_out_is_given():
    features = random_features(c=3, n=12)
    for outputs in OUTPUTS:
        expected = empirical_ntk(features, outputs=outputs)
        compute = functools.partial(empirical_ntk, chunked(features, 5), outputs=outputs)
        assert np.array_equal(compute(), expected)
        least = smallest_limit(compute)
        assert least > expected.nbytes
        assert np.array_equal(compute(memory_limit=least), expected)


def test_networks_produce_their_gradients_in_chunks():
    net = nets.MLP(widths=[5, 8, 2], activation="relu", bias=True)
    params = net.init(seed=0)
    x = np.random.default_rng(0).normal(size=(23, 5))
    source = ChunkedFeatures.from_net(net, params, x, chunk_size=6)
    assert (source.num_examples, source.num_chunks, source.num_outputs) == (23, 4, 2)
    assert source.num_parameters == from_net(net, params, x).num_parameters
    exact = empirical_ntk(from_net(net, params, x))
    np.testing.assert_allclose(empirical_ntk(source), exact, rtol=1e-12, atol=1e-12 * exact.max())


# Producers


@pytest.mark.parametrize("chunk_size", [7, 12, 40, 100])
@pytest.mark.parametrize("tile", [1, 500, 10**6])
def test_no_more_than_two_chunks_are_alive_and_few_are_produced(chunk_size, tile):
    features = random_features()
    alive, most, count = set(), 0, 0

    class Chunk(GradientFeatures):
        def __del__(self):
            alive.discard(id(self))

    def produce(start, stop):
        nonlocal most, count
        assert start % chunk_size == 0
        part = Chunk(features.examples(start, stop).blocks)
        alive.add(id(part))
        most, count = max(most, len(alive)), count + 1
        return part

    source = ChunkedFeatures(40, produce, chunk_size=chunk_size)
    with LargestTile(tile * 16):
        out = Store((40, 40), np.float32)
        empirical_ntk(source, outputs="trace", out=out)
    m = source.num_chunks
    assert most <= 2
    # Every pair once; with tiles larger than chunks, one more for a tile.
    assert count <= m * (m + 1) // 2 + 1 + (out.writes if tile * 16 > 4 * chunk_size**2 else 0)


def test_a_producer_that_does_not_repeat_itself_is_refused():
    features = random_features()
    rng = np.random.default_rng(0)
    order = np.arange(40)

    def shuffled(start, stop):
        rows = features["norm"].rows[order[start:stop]]
        rng.shuffle(order)
        return GradientFeatures({"w": Rows(rows)})

    source = ChunkedFeatures(40, shuffled, chunk_size=10)
    with pytest.raises(ValueError, match=r"produce\(0, 10\) returned other numbers than before.*shuffle"):
        empirical_ntk(source)

    buffer = np.zeros((10, 2, 7), np.float32)

    def overwriting(start, stop):
        buffer[:] = features["norm"].rows[start:stop]
        return GradientFeatures({"w": Rows(buffer)})

    with pytest.raises(ValueError, match="produce overwrote the features of examples 0 to 10"):
        empirical_ntk(ChunkedFeatures(40, overwriting, chunk_size=10))

    shared = np.ones((10, 2, 7), np.float32)
    same = ChunkedFeatures(40, lambda start, stop: GradientFeatures({"w": Rows(shared[: stop - start])}), chunk_size=10)
    assert (empirical_ntk(same, outputs="trace") == 14).all()


def changed(features, **blocks):
    return GradientFeatures({**features.blocks, **blocks})


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda f: GradientFeatures({"norm": f["norm"]}),
            r"returned the block \['norm', 'Rows'.* the first chunk \['dense', 'OuterP",
        ),
        (
            lambda f: changed(f, norm=Rows(f["norm"].rows[..., 1:])),
            r"block \['norm', 'Rows', 2, 6, .* the first chunk \['norm', 'Rows', 2, 7",
        ),
        (
            lambda f: changed(f, norm=Rows(f["norm"].rows, scale=2.0)),
            r"block \['norm', 'Rows', 2, 7, 2.0, .*, the first chunk \['norm', 'Rows', 2, 7, 1.0",
        ),
        (lambda f: GradientFeatures(dict(reversed(f.blocks.items()))), r"block \['norm'.*, the first chunk \['dense'"),
        (lambda f: f.examples(1, f.num_examples), "must return the features of 10 examples, got N = 9"),
        (dict, "must return GradientFeatures, got dict"),
        (lambda f: random_features(n=10, dtype=np.float64), r"block \['dense'.*float64'\], the first chunk .*float32"),
        (lambda f: random_features(n=10, c=3), r"block \['dense', 'OuterProduct', 3, .* 'OuterProduct', 2"),
    ],
)
def test_chunks_unlike_the_first_are_refused(change, match):
    features = random_features()

    def produce(start, stop):
        part = features.examples(start, stop)
        return change(part) if start == 20 else part

    with pytest.raises((ValueError, TypeError), match=match) as caught:
        empirical_ntk(ChunkedFeatures(40, produce, chunk_size=10))
    assert "produce(20, 30)" in str(caught.value)


def test_arguments_are_checked_by_name(tmp_path):
    features = random_features(c=1)
    source = chunked(features, 10)
    with pytest.raises(TypeError, match="produce must be callable"):
        ChunkedFeatures(3, features, chunk_size=1)
    with pytest.raises(ValueError, match="chunk_size must be at least 1"):
        ChunkedFeatures(3, features.examples, chunk_size=0)
    with pytest.raises(ValueError, match="num_examples must be at least 1"):
        ChunkedFeatures(0, features.examples, chunk_size=1)
    with pytest.raises(ValueError, match="per_layer=True wants GradientFeatures, but feats are ChunkedFeatures"):
        empirical_ntk(source, per_layer=True)
    with pytest.raises(TypeError, match="feats2 must be GradientFeatures or ChunkedFeatures, got ndarray"):
        empirical_ntk(source, np.eye(3))
    with pytest.raises(ValueError, match=r"feats2 must have the blocks of feats"):
        empirical_ntk(source, GradientFeatures({"norm": features["norm"]}))
    for arguments in ({"resume": True}, {"progress": tmp_path / "p"}):
        with pytest.raises(ValueError, match="resume and progress need out"):
            empirical_ntk(features, **arguments)
    with pytest.raises(ValueError, match="resume=True with a Store as out needs progress"):
        empirical_ntk(features, out=Store((40, 40), "f4"), resume=True)
    with pytest.raises(ValueError, match=r"out must have shape \(40, 40\), got \(40, 41\)"):
        empirical_ntk(features, out=Store((40, 41), "f4"))
    with pytest.raises(TypeError, match="out must be float32 like the features, got float64"):
        empirical_ntk(features, out=Store((40, 40), "f8"))
    with pytest.raises(TypeError, match="out must be a NumPy array or one with shape, dtype"):
        empirical_ntk(features, out=[])
    np.save(tmp_path / "K.npy", np.zeros((40, 40), np.float32))
    with pytest.raises(ValueError, match="out is a copy-on-write memmap"):
        empirical_ntk(features, out=np.load(tmp_path / "K.npy", mmap_mode="c"))
    with pytest.raises(TypeError, match="progress must be a path, got int"):
        empirical_ntk(features, out=Store((40, 40), "f4"), progress=3)


# Resumption


@settings(max_examples=40)
@given(
    modes,
    st.booleans(),
    st.sampled_from([None, 12, 15]),
    st.integers(0, 60),
    st.sampled_from([KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")]),
    st.integers(0, 30),
    st.integers(1, 3),
)
def test_what_was_interrupted_is_continued(
    tmp_path_factory, outputs, rectangular, chunk_size, fails_at, error, torn, threads
):
    path = tmp_path_factory.mktemp("resume") / "progress"
    features, other = random_features(), random_features(3, n=25) if rectangular else None
    source = features if chunk_size is None else chunked(features, chunk_size)
    expected = empirical_ntk(features, other, outputs=outputs)
    out = Store(expected.shape, "f4", fails_at=fails_at, error=error)
    compute = functools.partial(empirical_ntk, source, other, outputs=outputs, out=out, progress=path)
    with LargestTile(12_000):
        with suppress(KeyboardInterrupt, OSError):
            compute()
        finished, writes = tile_count(path), out.writes
        content = path.read_bytes()
        lines = content.splitlines(keepends=True)
        if lines[-1].startswith(b'{"tile"'):
            # The last line cut short: as if never written.
            path.write_bytes(content[: len(content) - min(torn, len(lines[-1]))])
            finished -= torn > 0
    with LargestTile(3_000_000):
        compute(resume=True, num_threads=threads, memory_limit=2**30)
        assert np.array_equal(out.data, expected)
        assert path.read_text().endswith('{"complete": true}\n')
        total = tile_count(path)
        assert out.writes - writes <= (1 if rectangular else 2) * (total - finished)
        before = out.writes
        compute(resume=True)
    assert out.writes == before


def interrupted(tmp_path, features, *, fails_at=9, **arguments):
    """A computation that stopped after a few tiles, its output and its progress file."""
    out = Store((40, 40), "f4", fails_at=fails_at, error=OSError(errno.ENOSPC, "No space left on device"))
    with LargestTile(400), pytest.raises(OSError, match="No space left") if fails_at else nullcontext():
        empirical_ntk(features, outputs="trace", out=out, progress=tmp_path / "p", **arguments)
    assert tile_count(tmp_path / "p") > 3
    return out


def test_a_tile_is_written_while_the_next_is_computed(tmp_path):
    features = random_features()
    writing, produced = threading.Event(), threading.Event()

    class Slow(Store):
        def __setitem__(self, index, value):
            writing.set()
            assert produced.wait(60)
            super().__setitem__(index, value)

    def produce(start, stop):
        if start >= 10:
            assert writing.wait(60)
            produced.set()
            if start == 20:
                raise OSError("no such chunk")
        return features.examples(start, stop)

    out = Slow((40, 40), np.float32)
    source = ChunkedFeatures(40, produce, chunk_size=10)
    with LargestTile(12 * 100), pytest.raises(OSError, match="no such chunk"):
        empirical_ntk(source, outputs="trace", out=out)
    # What was on its way is written nevertheless: tiles (0, 0) and (0, 1), and the latter's mirror.
    assert out.writes == 3


def test_progress_of_another_kernel_is_refused(tmp_path):
    features = random_features()
    eta = random_preconditioner(features)
    out = interrupted(tmp_path, features, preconditioner=eta)
    before = (tmp_path / "p").read_bytes(), out.data.copy()
    compute = functools.partial(empirical_ntk, out=out, progress=tmp_path / "p", resume=True)
    moved = GradientFeatures({**features.blocks, "norm": Rows(np.nextafter(features["norm"].rows, np.float32(9)))})
    scaled = GradientFeatures({**features.blocks, "norm": Rows(features["norm"].rows, scale=2.0)})
    for wrong, name in [
        ((features, "trace", random_preconditioner(features, 2)), "preconditioner"),
        ((features, "trace", None), "preconditioner"),
        ((features, "mean_trace", eta), "outputs"),
        ((moved, "trace", eta), "features"),
        ((scaled, "trace", eta), "blocks"),
        ((chunked(features, 10), "trace", eta), "chunk_size"),
    ]:
        source, outputs, preconditioner = wrong
        with pytest.raises(ValueError, match=f"progress .*/p was written for another kernel: its {name} is"):
            compute(source, outputs=outputs, preconditioner=preconditioner)
    with pytest.raises(ValueError, match="its symmetric is True"):
        compute(features, features, outputs="trace", preconditioner=eta)
    assert (tmp_path / "p").read_bytes() == before[0]
    assert np.array_equal(out.data, before[1], equal_nan=True)
    compute(features, outputs="trace", preconditioner=eta)
    assert np.array_equal(out.data, empirical_ntk(features, outputs="trace", preconditioner=eta))


def test_the_tiles_of_the_interrupted_call_must_fit(tmp_path):
    features = random_features()
    out = interrupted(tmp_path, features)
    written, content = out.writes, (tmp_path / "p").read_bytes()
    compute = functools.partial(empirical_ntk, features, outputs="trace", out=out, progress=tmp_path / "p", resume=True)
    with pytest.raises(MemoryLimitError, match="tiles of 5 x 5 examples"):
        compute(memory_limit=1000)
    assert (out.writes, (tmp_path / "p").read_bytes()) == (written, content)
    compute(memory_limit=smallest_limit(lambda memory_limit: compute(memory_limit=memory_limit)))
    assert np.array_equal(out.data, empirical_ntk(features, outputs="trace"))


def test_an_output_created_anew_is_noticed(tmp_path):
    features = random_features()
    out = interrupted(tmp_path, features, fails_at=None)
    compute = functools.partial(empirical_ntk, features, outputs="trace", progress=tmp_path / "p")
    fresh = Store((40, 40), "f4")
    count = tile_count(tmp_path / "p")
    with pytest.warns(RuntimeWarning, match=f"out does not hold {count} of the {count} tiles") as caught:
        compute(out=fresh, resume=True)
    assert caught[0].filename == __file__
    assert np.array_equal(fresh.data, out.data)


def test_what_lies_at_the_path_already(tmp_path):
    features = random_features()
    compute = functools.partial(empirical_ntk, features, outputs="trace", progress=tmp_path / "p")
    expected = empirical_ntk(features, outputs="trace")
    for content in ("", '{"format": "kernelgrowth tiles", "form'):
        (tmp_path / "p").write_text(content)
        assert np.array_equal(compute(out=Store((40, 40), "f4"), resume=True).data, expected)
    # A file of an earlier computation is overwritten, anything else is not.
    interrupted(tmp_path, random_features(5))
    assert np.array_equal(compute(out=Store((40, 40), "f4")).data, expected)
    for content in ("precious", "precious\n", '{"format": "another"}\n'):
        (tmp_path / "p").write_text(content)
        for resume in (False, True):
            with pytest.raises(ValueError, match="exists and is no progress file"):
                compute(out=Store((40, 40), "f4"), resume=resume)
        assert (tmp_path / "p").read_text() == content
    (tmp_path / "p").write_text('{"format": "kernelgrowth tiles", "format_version": 99}\n')
    with pytest.raises(ValueError, match="has format version 99"):
        compute(out=Store((40, 40), "f4"), resume=True)


def test_one_computation_at_a_time_holds_the_file(tmp_path):
    features = random_features()

    class Meanwhile(Store):
        def __setitem__(self, index, value):
            for resume in (False, True):
                with pytest.raises(RunFolderError, match="another process is computing this kernel"):
                    empirical_ntk(features, out=Store(self.shape, "f4"), progress=tmp_path / "p", resume=resume)
            super().__setitem__(index, value)

    expected = empirical_ntk(features)
    out = Meanwhile(expected.shape, "f4")
    empirical_ntk(features, out=out, progress=tmp_path / "p")
    assert np.array_equal(out.data, expected)


def python(code, *arguments):
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], capture_output=True)


KILLED = """
import os, signal, sys, threading
import numpy as np
from kernelgrowth import ChunkedFeatures, GradientFeatures, OuterProduct, empirical_ntk
from kernelgrowth.kernels import tiles
path, delay, tile, limit, threads = sys.argv[1], float(sys.argv[2]), *map(int, sys.argv[3:])
tiles.LARGEST_TILE = tile
def produce(start, stop):
    rng = [np.random.default_rng(n) for n in range(start, stop)]
    a, d = (np.array([r.normal(size=(2, size)) for r in rng], np.float32) for size in (30, 8))
    return GradientFeatures({"w": OuterProduct(a, d[:, None], bias=True)})
out = np.load(path, mmap_mode="r+")
feats = ChunkedFeatures(len(out), produce, chunk_size=64)
if delay >= 0:
    threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
empirical_ntk(feats, out=out, resume=True, memory_limit=limit, num_threads=threads)
os._exit(0)
"""


def test_killed_at_any_moment_and_resumed(tmp_path):
    n = 256
    path = tmp_path / "K.npy"
    np.save(path, np.zeros((n, n), np.float32))
    rng = np.random.default_rng()
    seen = 0
    for attempt in range(4):
        delay = rng.uniform(0, 0.25) if attempt < 3 else -1
        done = python(KILLED, path, delay, [1024, 10**5, 10**6, 10**7][attempt], 2**28 >> attempt, 1 + attempt)
        assert done.returncode in ((-9, 0) if attempt < 3 else (0,)), done.stderr.decode()
        progress = path.with_name("K.npy.progress")
        if progress.exists():
            count = tile_count(progress)
            assert count >= seen
            seen = count
    code = KILLED.split("out = ", maxsplit=1)[0] + "np.save(sys.argv[1], empirical_ntk(produce(0, 256)))"
    assert python(code, tmp_path / "exact.npy", 0, 1, 1, 1).returncode == 0
    assert np.array_equal(np.load(path), np.load(tmp_path / "exact.npy"))


MEMORY = """
import sys, threading, time
import numpy as np
import kernelgrowth as kg
def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))
def watch():
    while True:
        peak[0] = max(peak[0], anonymous())
        stop.wait(0.001)
folder, limit, outputs = sys.argv[1], int(sys.argv[2]), sys.argv[3]
a, d, g = (np.load(f"{folder}/{name}.npy", mmap_mode="r") for name in "adg")
out = np.load(f"{folder}/K.npy", mmap_mode="r+")
def features(n):
    return kg.GradientFeatures({"w": kg.OuterProduct(a[:n], d[:n], bias=True), "g": kg.Rows(g[:n])})
kg.empirical_ntk(features(20), outputs=outputs, out=np.empty((20, 20), np.float32), num_threads=1)
peak, stop = [0], threading.Event()
threading.Thread(target=watch, daemon=True).start()
base = anonymous()
kg.empirical_ntk(features(len(a)), outputs=outputs, out=out, memory_limit=limit, num_threads=1)
print(max(peak[0], anonymous()) - base)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc/self/status")
def test_the_memory_limit_is_kept(tmp_path):
    # Features of 154 MiB and a kernel of 64 MiB on disk, whose pages are the file cache's and not the process's.
    n, limit = 4096, 64 * 2**20
    rng = np.random.default_rng(0)
    for name, shape in (("a", (n, 8192)), ("d", (n, 2, 64)), ("g", (n, 2, 512))):
        np.save(tmp_path / f"{name}.npy", rng.standard_normal(shape, np.float32))
    np.save(tmp_path / "K.npy", np.zeros((n, n), np.float32))
    done = python(MEMORY, tmp_path, limit, "trace")
    assert done.returncode == 0, done.stderr.decode()
    # Pages are counted in pairs of megabytes, and Python itself breathes.
    assert int(done.stdout) <= limit + 4 * 2**20
    kernel = np.load(tmp_path / "K.npy", mmap_mode="r")
    part = GradientFeatures(
        {
            "w": OuterProduct(
                np.load(tmp_path / "a.npy", mmap_mode="r")[-9:], np.load(tmp_path / "d.npy")[-9:], bias=True
            ),
            "g": Rows(np.load(tmp_path / "g.npy")[-9:]),
        }
    )
    assert np.array_equal(kernel[-9:, -9:], empirical_ntk(part, outputs="trace"))
