"""Kernels of features on the host computed on GPUs, tried on a stand-in for CuPy with as many as a test asks for.

Its copies from and to page-locked memory land when they are waited for, and not before: a buffer that is used again too
early, or read, gives other bits.
"""

from __future__ import annotations

import errno
import functools
import json
import signal
import sys
import threading
import weakref
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelgrowth import BackendError, ChunkedFeatures, MemoryLimitError
from kernelgrowth._backend import gpu_workers
from kernelgrowth.gradients import GradientFeatures, OuterProduct, Rows
from kernelgrowth.gradients.identity import arrays_of
from kernelgrowth.kernels import empirical_ntk, pieces
from memory import smallest_limit
from reference import as_matrix
from stand_in_cupy import CUDARuntimeError, CuPy, Device, PageLockedMemory, ndarray, stand_in
from strategies import OUTPUTS, cases, modes, sizes
from tile_cases import LargestTile, Store, chunked, random_features, random_preconditioner, tile_count

_cuda = pytest.importorskip("kernelgrowth._cuda", reason="built without CUDA", exc_type=ImportError)


class Counting(CuPy):
    """CuPy with `count` GPUs that counts what is taken of their memory, and of page-locked memory."""

    def __init__(self, count=1, free=2**30):
        super().__init__(free, count)
        self.taken = self.peak = self.locked = 0
        self.lock = threading.Lock()
        self.cuda.alloc_pinned_memory = self._page_locked

    def _page_locked(self, size):
        memory = PageLockedMemory(size)
        self.locked += len(memory)
        return memory

    def empty(self, shape, dtype):
        array = ndarray(np.empty(shape, dtype))
        if array.dtype.kind == "f":
            array._host.fill(np.nan)  # whoever reads it too early is found out
        with self.lock:
            self.taken += array.nbytes
            self.peak = max(self.peak, self.taken)
        weakref.finalize(array._host, self._back, array.nbytes)
        return array

    def _back(self, size):
        with self.lock:
            self.taken -= size


class World:
    """The stand-ins; `cupy` is put in place anew for each number of GPUs, `calls` are the Grams."""

    def __init__(self, monkeypatch):
        self._patch = monkeypatch
        self.module = stand_in(monkeypatch, _cuda)
        self.calls = self.module.calls

    def gpus(self, count, free=2**30):
        self.cupy = Counting(count, free)
        self._patch.setitem(sys.modules, "cupy", self.cupy)
        return list(range(count))

    def fail_at(self, patch, call, error):
        """Fail, as long as `patch` lasts, when a Gram of that number, from now on, is asked for."""
        inner, numbers = self.module._call, iter(range(10**9))

        def answer(**about):
            if next(numbers) == call:
                raise error
            inner(**about)

        patch.setattr(self.module, "_call", answer)


@pytest.fixture
def world(monkeypatch):
    yield World(monkeypatch)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("kernelgrowth-gpu")]


@pytest.fixture(autouse=True)
def small_buffers(monkeypatch):
    """Buffers so small that arrays are copied in many strips."""
    monkeypatch.setattr(gpu_workers, "_HALF", 512)
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


# The bits of the CPU


@settings(max_examples=80)
@given(
    cases(max_examples=49, max_outputs=3, max_length=49, max_positions=3, max_blocks=3),
    modes,
    sizes(60),
    sizes(60),
    st.tuples(sizes(30), sizes(30)),
    st.booleans(),
    st.sampled_from([1, 3]),
    st.data(),
)
def test_tiles_on_gpus_have_the_bits_of_the_stand_ins_core(
    world, case, outputs, first, second, chunks, weighted, count, data
):
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
    devices = world.gpus(count)
    world.calls.clear()
    with LargestTile(data.draw(st.integers(1, 60)) ** 2 * per_pair * 2):
        returned = empirical_ntk(*sides, outputs=outputs, out=out, preconditioner=preconditioner, devices=devices)
    assert returned is out
    assert np.array_equal(out.data, expected)
    assert (out.written == 1).all()
    if feats2 is None:
        matrices = expected if expected.ndim == 3 else as_matrix(expected)
        assert np.array_equal(matrices, matrices.swapaxes(-1, -2))
    assert {call["stream"] for call in world.calls}.isdisjoint({17})
    assert world.cupy.taken == 0


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("count", [1, 3])
def test_memory_of_the_gpus_decides_how_large_tiles_are(world, outputs, count):
    long = np.random.default_rng(9).normal(size=(200, 2, 3000)).astype("f4")
    features = GradientFeatures({**random_features(n=200).blocks, "long": Rows(long)})
    expected = empirical_ntk(features, outputs=outputs)
    grams = []
    for free in (2**26, 12 * 2**20, 6 * 2**20):
        devices = world.gpus(count, free)
        world.calls.clear()
        assert np.array_equal(empirical_ntk(features, outputs=outputs, devices=devices), expected)
        assert world.cupy.peak <= count * free // 2
        grams.append(len(world.calls))
    assert grams[0] <= grams[1] < grams[2]


def test_every_limit_of_the_gpu_that_is_not_refused_will_do(world):
    features = random_features(n=30)
    expected = empirical_ntk(features, outputs="trace")
    refusals = []

    def compute(free):
        return empirical_ntk(features, outputs="trace", devices=world.gpus(1, free))

    free = 4
    while True:
        try:
            found = compute(free)
        except MemoryLimitError as error:
            refusals.append(error)
            free = 4 * error.needed
        else:
            break
    assert len(refusals) > 1
    for error, free_then in zip(refusals, [4, *(4 * error.needed for error in refusals)], strict=False):
        assert error.limit == free_then // 4
        assert "of the memory of GPU 0 a worker may take" in str(error)
    assert np.array_equal(found, expected)
    assert world.cupy.peak <= free // 2


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_memory_maps_stay_on_disk(world, tmp_path, outputs):
    a, d, g = (np.random.default_rng(k).normal(size=(50, 2, n)).astype("f4") for k, n in enumerate((6, 4, 9)))
    mapped = []
    for name, array in (("a", a[:, 0]), ("d", d), ("g", g)):
        np.save(tmp_path / f"{name}.npy", array)
        mapped.append(np.load(tmp_path / f"{name}.npy", mmap_mode="r"))
    features = GradientFeatures({"w": OuterProduct(mapped[0], mapped[1], bias=True), "g": Rows(mapped[2])})
    expected = empirical_ntk(
        GradientFeatures({"w": OuterProduct(a[:, 0], d, bias=True), "g": Rows(g)}), outputs=outputs
    )
    out = np.lib.format.open_memmap(tmp_path / "K.npy", "w+", "f4", expected.shape)
    with LargestTile(2000):
        empirical_ntk(features, outputs=outputs, out=out, devices=world.gpus(3)[1:])
    assert np.array_equal(np.load(tmp_path / "K.npy"), expected)
    assert tile_count(tmp_path / "K.npy.progress") > 5


def test_a_number_names_one_gpu_and_results_are_of_the_features_kind(world):
    torch = pytest.importorskip("torch")
    world.gpus(3)
    rows = np.random.default_rng(0).normal(size=(9, 1, 5))
    found = empirical_ntk(GradientFeatures({"w": Rows(torch.from_numpy(rows))}), devices=2)
    assert isinstance(found, torch.Tensor)
    assert np.array_equal(found.numpy(), empirical_ntk(GradientFeatures({"w": Rows(rows)})))


def test_it_is_the_kernel_of_cupy_arrays(gpu):
    features = random_features(n=300)
    blocks = {}
    for name, block in features.items():
        if isinstance(block, Rows):
            blocks[name] = Rows(gpu(block.rows), scale=block.scale)
        else:
            blocks[name] = OuterProduct(
                gpu(block.activations), gpu(block.backprops), bias=block.bias, scale=block.scale
            )
    with LargestTile(20_000):
        found = empirical_ntk(features, devices=0)
    # A GPU may take another kernel for tiles than for the whole, and add up in another order.
    gpu.agree(gpu(found), empirical_ntk(GradientFeatures(blocks)).get(), tolerance=0)


# How little is copied, and how much is held


def test_a_worker_sends_the_rows_of_a_row_of_tiles_once(world, monkeypatch):
    features = GradientFeatures({"w": Rows(np.random.default_rng(0).normal(size=(64, 1, 16)))})
    other = GradientFeatures({"w": Rows(np.random.default_rng(1).normal(size=(256, 1, 16)))})
    sent = []
    inner = gpu_workers.Worker.upload
    monkeypatch.setattr(gpu_workers.Worker, "upload", lambda self, a: sent.append((self, len(a))) or inner(self, a))
    with LargestTile(8 * 64**2):  # 1 x 4 tiles
        empirical_ntk(features, other, devices=world.gpus(1), memory_limit=2**30)
    workers = {id(worker) for worker, _ in sent}
    assert len(sent) == 4 + len(workers)


@pytest.mark.parametrize("chunk_size", [7, 12, 40, 100])
@pytest.mark.parametrize("tile", [1, 500, 10**6])
def test_no_more_than_two_chunks_are_alive(world, chunk_size, tile):
    features = random_features()
    alive, most, threads = set(), 0, set()

    def produce(start, stop):
        nonlocal most
        threads.add(threading.current_thread())
        part = features.examples(start, stop)
        rows = part["norm"].rows.copy()
        alive.add(id(rows))
        weakref.finalize(rows, alive.discard, id(rows))
        most = max(most, len(alive))
        return GradientFeatures({"norm": Rows(rows)})

    source = ChunkedFeatures(40, produce, chunk_size=chunk_size)
    expected = empirical_ntk(GradientFeatures({"norm": features["norm"]}), outputs="trace")
    with LargestTile(tile * 16):
        out = empirical_ntk(source, outputs="trace", out=Store((40, 40), np.float32), devices=world.gpus(3))
    assert np.array_equal(out.data, expected)
    assert most <= 2
    assert threads == {threading.main_thread()}


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_any_limit_of_the_host_that_is_not_refused_gives_the_same_bits(world, outputs, tmp_path):
    features = random_features(n=11)
    preconditioner = random_preconditioner(features)
    expected = empirical_ntk(features, outputs=outputs, preconditioner=preconditioner)
    source = chunked(features, 4)
    out = np.lib.format.open_memmap(tmp_path / "K.npy", "w+", expected.dtype, expected.shape)
    compute = functools.partial(
        empirical_ntk, source, outputs=outputs, out=out, preconditioner=preconditioner, devices=world.gpus(2)
    )
    least = smallest_limit(compute)
    held = 2 * source.chunk_bytes + sum(np.asarray(eta).nbytes for etas in preconditioner.values() for eta in etas)
    tiles_begun = 8 * expected.nbytes // 11**2
    assert least == held + world.cupy.locked + tiles_begun
    for limit in (least, least + 2000, 10 * least):
        world.cupy.locked = 0
        out[...] = np.nan
        compute(memory_limit=limit)
        assert np.array_equal(out, expected)
        assert 0 < world.cupy.locked <= limit - held - tiles_begun
    with pytest.raises(MemoryLimitError, match="with 8 tiles at a time and .* of page-locked buffers"):
        compute(memory_limit=least - 1)


def test_an_example_larger_than_a_buffer(world):
    features = GradientFeatures({"w": Rows(np.random.default_rng(0).normal(size=(5, 3, 1000)).astype("f4"))})
    expected = empirical_ntk(features)
    assert np.array_equal(empirical_ntk(features, devices=world.gpus(1)), expected)
    assert world.cupy.locked == 2 * 2 * 16384
    assert gpu_workers.half_bytes([(3, 40), (1, 1)]) == 256
    assert gpu_workers.half_bytes([(3, 400), (1, 1)]) == 512


# Interruptions and errors


@settings(max_examples=30)
@given(
    modes,
    st.booleans(),
    st.sampled_from([None, 12, 15]),
    st.integers(0, 40),
    st.sampled_from(["write", "gram", "produce"]),
    st.sampled_from([KeyboardInterrupt, OSError]),
    st.sampled_from([1, 3]),
)
def test_what_was_interrupted_is_continued(
    world, tmp_path_factory, outputs, rectangular, chunk_size, fails_at, place, kind, count
):
    path = tmp_path_factory.mktemp("resume") / "progress"
    features, other = random_features(), random_features(3, n=25) if rectangular else None
    expected = empirical_ntk(features, other, outputs=outputs)
    error = kind() if kind is KeyboardInterrupt else OSError(errno.ENOSPC, "No space left on device")
    armed = False
    produced = iter(range(10**9))

    def produce(start, stop):
        if armed and place == "produce" and next(produced) == fails_at:
            raise error
        return features.examples(start, stop)

    source = features if chunk_size is None else ChunkedFeatures(40, produce, chunk_size=chunk_size)
    out = Store(expected.shape, "f4", fails_at=fails_at if place == "write" else None, error=error)
    compute = functools.partial(empirical_ntk, source, other, outputs=outputs, out=out, progress=path)
    armed = True
    with LargestTile(12_000), pytest.MonkeyPatch.context() as patch:
        if place == "gram":
            world.fail_at(patch, fails_at, error)
        with suppress(KeyboardInterrupt, OSError):
            compute(devices=world.gpus(count))
    armed = False
    finished, writes = tile_count(path) if path.exists() else 0, out.writes
    with LargestTile(3_000_000):
        compute(resume=True, devices=world.gpus(4 - count), memory_limit=2**30)
        assert np.array_equal(out.data, expected)
        assert path.read_text().endswith('{"complete": true}\n')
        assert out.writes - writes <= (1 if rectangular else 2) * (tile_count(path) - finished)
        before = out.writes
        compute(resume=True, devices=0)
    assert out.writes == before


def test_an_error_in_a_worker_reaches_the_caller_after_the_tiles_before_it(world, tmp_path):
    features = random_features()
    expected = empirical_ntk(features, outputs="trace")
    out = Store((40, 40), "f4")
    compute = functools.partial(empirical_ntk, features, outputs="trace", out=out, progress=tmp_path / "p")
    devices = world.gpus(1)
    with LargestTile(800):
        compute(devices=devices)
        per_tile = len(world.calls) // tile_count(tmp_path / "p")
        with pytest.MonkeyPatch.context() as patch:
            error = RuntimeError("gram: CUDA says: an illegal memory access was encountered")
            world.fail_at(patch, 9 * per_tile, error)
            with pytest.raises(BackendError, match="illegal memory access"):
                compute(devices=devices)
    # Those that were being computed or waited when it came are not written.
    assert 5 <= tile_count(tmp_path / "p") <= 9
    compute(resume=True, devices=world.gpus(2))
    assert np.array_equal(out.data, expected)


def test_control_c_while_workers_work(world, tmp_path, monkeypatch):
    features = random_features()
    out = Store((40, 40), "f4")
    compute = functools.partial(empirical_ntk, features, outputs="trace", out=out, progress=tmp_path / "p")
    inner, numbers = world.module._call, iter(range(10**9))

    def answer(**about):
        if next(numbers) == 24:  # of 30; the first tiles are written by then
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        inner(**about)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with LargestTile(800), monkeypatch.context() as patch:
            patch.setattr(world.module, "_call", answer)
            with pytest.raises(KeyboardInterrupt):
                compute(devices=world.gpus(1))
    finally:
        signal.signal(signal.SIGINT, before)
    assert tile_count(tmp_path / "p") > 0
    compute(resume=True, devices=world.gpus(2))
    assert np.array_equal(out.data, empirical_ntk(features, outputs="trace"))


def test_pieces_are_planned_and_computed_where_their_arrays_are(world, monkeypatch):
    inner, seen = pieces.lower, []

    def lower(feats, *arguments, **options):
        here = world.cupy.zeros(()).device
        assert all(array.device == here for array in arrays_of(feats))
        seen.append((here.id, threading.current_thread() is threading.main_thread()))
        return inner(feats, *arguments, **options)

    features = random_features()
    expected = empirical_ntk(features, outputs="sum_logits")
    monkeypatch.setattr(pieces, "lower", lower)
    with LargestTile(800):
        found = empirical_ntk(features, outputs="sum_logits", devices=world.gpus(3)[1:])
    assert np.array_equal(found, expected)
    assert {(1, False), (2, False)} < set(seen) <= {(1, False), (2, False), (1, True), (2, True)}


def test_what_cuda_says_of_copies_and_memory_is_passed_on(world, monkeypatch):
    features = random_features()
    devices = world.gpus(2)
    kernel = functools.partial(empirical_ntk, features, devices=devices)
    with monkeypatch.context() as patch:

        def fail(self, host, stream=None):
            raise CUDARuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered")

        patch.setattr(ndarray, "set", fail)
        with pytest.raises(BackendError, match=r"GPU [01]: cudaErrorIllegalAddress"):
            kernel()

    def no_more(shape, dtype):
        raise world.cupy.cuda.memory.OutOfMemoryError("Out of memory allocating 512 bytes")

    with monkeypatch.context() as patch:
        patch.setattr(world.cupy, "empty", no_more)
        with pytest.raises(BackendError, match="GPU 0: Out of memory allocating 512 bytes"):
            kernel()

    def not_locked(size):
        raise CUDARuntimeError("cudaErrorMemoryAllocation: out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(world.cupy.cuda, "alloc_pinned_memory", not_locked)
        with pytest.raises(BackendError, match="GPU 0: cudaErrorMemoryAllocation"):
            kernel()
    assert np.array_equal(kernel(), empirical_ntk(features))


def test_a_kernel_beyond_its_dtype_is_refused(world):
    features = GradientFeatures({"w": Rows(np.full((30, 1, 3), 1e30, np.float32))})
    with LargestTile(400), pytest.raises(ValueError, match="feats give a kernel that float32 cannot hold"):
        empirical_ntk(features, devices=world.gpus(2))


def test_a_producer_that_reuses_its_memory_is_noticed(world):
    buffer = np.zeros((10, 1, 7), np.float32)
    given = np.random.default_rng(0).normal(size=(40, 1, 7)).astype("f4")

    def overwriting(start, stop):
        buffer[:] = given[start:stop]
        return GradientFeatures({"w": Rows(buffer)})

    with pytest.raises(ValueError, match="produce overwrote the features of examples"):
        empirical_ntk(ChunkedFeatures(40, overwriting, chunk_size=10), devices=world.gpus(1))


# Progress files


def test_progress_tells_gpus_and_their_precision_from_the_cpu(world, tmp_path):
    features = random_features()
    out = Store((40, 40), "f4")
    compute = functools.partial(empirical_ntk, features, outputs="trace", out=out, progress=tmp_path / "p")
    compute(devices=world.gpus(1))
    for arguments, value in [({}, None), ({"devices": 0, "precision": "tf32"}, "tf32")]:
        with pytest.raises(ValueError, match=f"its gpu is float32, this call's is {value}"):
            compute(resume=True, **arguments)
    compute(devices=0, precision="tf32")
    assert {call["precision"] for call in world.calls} == {"float32", "tf32"}
    with pytest.raises(ValueError, match="its gpu is tf32, this call's is None"):
        compute(resume=True)
    # Of a computation on the CPU before there were others.
    compute()
    header, *tiles_done = (tmp_path / "p").read_text().splitlines(keepends=True)
    older = json.loads(header)
    assert older.pop("gpu") is None
    (tmp_path / "p").write_text(json.dumps(older) + "\n" + "".join(tiles_done))
    writes = out.writes
    compute(resume=True)
    assert out.writes == writes
    with pytest.raises(ValueError, match="its gpu is None, this call's is float32"):
        compute(resume=True, devices=0)


# Refusals


def test_devices_are_checked_by_name(world):
    features = random_features()
    world.gpus(3)
    for devices, kind, match in [
        ("0", TypeError, "devices must be an integer, got '0'"),
        (0.5, TypeError, "devices must be an integer, got 0.5"),
        (True, TypeError, "devices must be an integer, got True"),
        (np.arange(2), TypeError, "devices must be an integer"),
        ([0, "1"], TypeError, r"devices\[1\] must be an integer, got '1'"),
        ([], ValueError, "devices must name at least one GPU"),
        (-1, ValueError, "devices must be at least 0, got -1"),
        ((0, -2), ValueError, r"devices\[1\] must be at least 0, got -2"),
        ([0, 1, 0], ValueError, r"devices must be different GPUs, got \[0, 1, 0\]"),
        ([0, 3], BackendError, r"devices=\[0, 3\]: there are 3 GPU\(s\), numbered from 0"),
    ]:
        with pytest.raises(kind, match=match):
            empirical_ntk(features, devices=devices)
    on_gpu = GradientFeatures({"w": Rows(world.cupy.asarray(np.ones((3, 1, 2))))})
    with pytest.raises(ValueError, match="devices are for features on the host, but feats holds CuPy arrays"):
        empirical_ntk(on_gpu, devices=0)
    with pytest.raises(ValueError, match="devices are for features on the host, but feats2 holds CuPy arrays"):
        empirical_ntk(chunked(features, 9), on_gpu, devices=0)
    with pytest.raises(ValueError, match="devices cannot be given with per_layer=True"):
        empirical_ntk(features, devices=0, per_layer=True)
    with pytest.raises(ValueError, match="precision='float64' wants float64 features"):
        empirical_ntk(features, devices=0, precision="float64")
    assert world.calls == []


def test_gpus_of_different_kinds_are_refused(world, monkeypatch):
    world.gpus(2)
    kinds = ["75", "90"]
    monkeypatch.setattr(world.cupy.cuda, "Device", lambda number: Device(number, kinds[number]))
    features = random_features()
    with pytest.raises(BackendError, match=r"devices=\[0, 1\] have compute capabilities 7\.5, 9\.0"):
        empirical_ntk(features, devices=[0, 1])
    with pytest.raises(BackendError, match="precision='tf32' needs a GPU of compute capability 8"):
        empirical_ntk(features, devices=0, precision="tf32")
    empirical_ntk(features, devices=0)
    assert {call["precision"] for call in world.calls} == {"simt"}


def test_where_there_is_no_gpu_cuda_says_so(world, monkeypatch):
    world.gpus(0)

    def none():
        raise CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")

    features = random_features()
    with pytest.raises(BackendError, match=r"devices=\[0\]: there are 0 GPU\(s\)"):
        empirical_ntk(features, devices=0)
    monkeypatch.setattr(world.cupy.cuda.runtime, "getDeviceCount", none)
    with pytest.raises(BackendError, match=r"devices=\[0\]: no GPU: cudaErrorNoDevice: no CUDA-capable device"):
        empirical_ntk(features, devices=[0])
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(BackendError, match=r"devices=\[0\] needs CuPy: install kernelgrowth\[cuda13\]"):
        empirical_ntk(features, devices=0)


def test_a_build_without_cuda_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", CuPy())
    monkeypatch.setitem(sys.modules, "kernelgrowth._cuda", None)
    with pytest.raises(BackendError, match=r"devices=\[0\]: .* the CUDA module, which this build lacks"):
        empirical_ntk(random_features(), devices=0)
