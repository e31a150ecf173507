"""Kernels of features that are divided among three worker processes, against the kernel on one machine."""

from __future__ import annotations

import functools
import gc
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

import distributed
import zarr
from benchmarks import sharded
from benchmarks.traffic import Traffic

from kernelgrowth import (
    BackendError,
    EigenTracker,
    KernelRegression,
    MemoryLimitError,
    NTKOperator,
    eigsh,
    empirical_ntk,
    nystrom,
)
from kernelgrowth.distributed import ShardedFeatures, ShardedOperator
from kernelgrowth.distributed import cluster as distributed_cluster
from kernelgrowth.distributed import empirical_ntk as sharded_ntk
from kernelgrowth.distributed.cluster import Cluster
from sharded_cases import (
    deadly,
    failing,
    heavy,
    no_features,
    of_another_shape,
    part_of_whole,
    parts,
    preconditioner,
    whole,
    wide,
)

WORKERS = 3
MODES = ["full", "trace", "mean_trace", "sum_logits"]


@pytest.fixture(scope="module")
def cluster():
    options = {"threads_per_worker": 1, "processes": True, "dashboard_address": ":0", "memory_limit": "1GiB"}
    with distributed.LocalCluster(n_workers=WORKERS, **options) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def client(cluster):
    with distributed.Client(cluster) as client:
        yield client


@pytest.fixture(scope="module")
def feats(client):
    return ShardedFeatures(client, part_of_whole, parts(60, 5))


@pytest.fixture(scope="module")
def wide_feats(client):
    return ShardedFeatures(client, functools.partial(wide, n=600, width=100), parts(600, 3))


@pytest.mark.parametrize("outputs", MODES)
@pytest.mark.parametrize("weighted", [False, True])
def test_products_are_those_of_the_operator(feats, outputs, weighted):
    local, eta = whole(), None
    if weighted:
        eta = preconditioner(local)
    operator = ShardedOperator(feats, outputs=outputs, preconditioner=eta)
    wanted = NTKOperator(local, outputs=outputs, preconditioner=eta, products="factored")
    v = np.random.default_rng(0).normal(size=(operator.shape[0], 3)).astype(np.float32)
    v[:, 1] *= 1e-25  # columns are scaled to moderate size
    assert operator.shape == wanted.shape
    assert operator.dtype == wanted.dtype
    found, exact = operator @ v, wanted @ v
    assert found.dtype == exact.dtype
    np.testing.assert_allclose(found / np.abs(exact).max(0), exact / np.abs(exact).max(0), atol=3e-6)
    np.testing.assert_array_equal(operator.rmatvec(v[:, 0]), (operator @ v[:, 0]))
    np.testing.assert_allclose(operator.diagonal(), wanted.diagonal(), rtol=1e-6)
    assert operator.trace() == pytest.approx(wanted.trace(), rel=1e-12)
    assert operator.frobenius_norm() == pytest.approx(wanted.frobenius_norm(), rel=1e-5)


def test_vectors_that_do_not_fit_together_are_multiplied_in_groups(feats):
    operator = ShardedOperator(feats, outputs="trace")
    v = np.random.default_rng(0).normal(size=(60, 40)).astype(np.float32)
    wanted = operator @ v
    tight = ShardedOperator(feats, outputs="trace", memory_limit=operator._layout.workspace(feats.head, 12) + 50_000)
    assert 1 <= tight._group(40) < 40
    np.testing.assert_array_equal(tight @ v, wanted)
    with pytest.raises(MemoryLimitError, match="product with one vector needs"):
        ShardedOperator(feats, memory_limit=1000) @ v.reshape(-1, 1)[:120]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_eigsh_agrees_and_moves_what_the_model_says(client, dtype):
    feats = ShardedFeatures(client, functools.partial(wide, dtype=dtype), parts(900, WORKERS))
    operator = Counted(feats)
    local = eigsh(NTKOperator(wide((0, 900), dtype=dtype), products="factored"), 8)
    with Traffic(client) as traffic:
        found = eigsh(operator, 8)
    top = local.eigenvalues[0]
    np.testing.assert_allclose(found.eigenvalues, local.eigenvalues, rtol=0, atol=1e-6 * top)
    residual = NTKOperator(wide((0, 900), dtype=dtype)) @ found.eigenvectors - found.eigenvectors * found.eigenvalues
    assert np.linalg.norm(residual, axis=0).max() < 3e-6 * top
    one_way = operator.vector_bytes // 2
    model = operator.between_workers + one_way
    assert operator.between_workers == operator.passes * 0 + 2 * (WORKERS - 1) * operator.factor_bytes
    assert operator.between_workers > 5 * one_way
    assert model <= traffic.sent <= 1.2 * model
    assert model <= traffic.received <= 1.2 * model


class Counted(ShardedOperator):
    """Adds up what the model says of each product."""

    passes = factor_bytes = between_workers = vector_bytes = 0

    def __matmul__(self, v):
        cost = self.pass_cost(v.shape[1])
        self.passes += 1
        for name in ("factor_bytes", "between_workers", "vector_bytes"):
            setattr(self, name, getattr(self, name) + getattr(cost, name))
        return super().__matmul__(v)


def test_everything_that_takes_an_operator_takes_this_one(wide_feats):
    operator = ShardedOperator(wide_feats)
    local = NTKOperator(wide((0, 600), n=600, width=100), products="factored")
    y = np.random.default_rng(0).normal(size=(600, 2))
    found, wanted = (
        KernelRegression(kernel, diag_reg=0.1, method="cg", rank=64, tol=1e-3).fit(y).predict(local)
        for kernel in (operator, local)
    )
    np.testing.assert_allclose(found, wanted, atol=2e-3 * np.abs(wanted).max())
    tracker = EigenTracker(4)
    first, second = tracker.update(operator), tracker.update(operator)
    assert second.passes < first.passes
    np.testing.assert_array_equal(first.tracks, second.tracks)
    approximations = nystrom(operator, 20, seed=1), nystrom(local, 20, seed=1)
    top = [np.max(a.eigenvalues) for a in approximations]
    assert top[0] == pytest.approx(top[1], rel=1e-4)


def test_a_worker_killed_in_the_middle_of_a_product_changes_no_bit(cluster, client):
    make = functools.partial(wide, n=1500, width=256)
    feats = ShardedFeatures(client, make, parts(1500, 6))
    operator = ShardedOperator(feats)
    v = np.random.default_rng(0).normal(size=(1500, 48)).astype(np.float32)
    wanted = operator @ v
    for prefix in ("kernelgrowth__sum_of_shards", "kernelgrowth__images"):
        killer = Killer(cluster, prefix)
        killer.start()
        found = operator @ v
        killer.join(30)
        assert killer.killed, "the product was over before a worker could be killed"
        np.testing.assert_array_equal(found, wanted)
        client.wait_for_workers(2, timeout=30)
    # The workers that took the places of the dead have their share again.
    counts = [feats.placement().count(worker) for worker in feats.cluster.workers()]
    assert max(counts) - min(counts) < 2
    np.testing.assert_array_equal(operator @ v, wanted)


def test_bits_do_not_depend_on_the_number_of_workers(client):
    v = np.random.default_rng(0).normal(size=(120, 5)).astype(np.float32)
    wanted = ShardedOperator(ShardedFeatures(client, part_of_whole, parts(60, 7))) @ v
    for count in (1, 2):
        client.wait_for_workers(count, timeout=30)
        some = sorted(client.nthreads())[:count]
        with (
            mock.patch.object(Cluster, "workers", lambda _, some=some: some),
            mock.patch.object(Cluster, "workers_waited_for", lambda _, some=some: some),
        ):
            feats = ShardedFeatures(client, part_of_whole, parts(60, 7))
            assert len(set(feats.placement())) == count
            np.testing.assert_array_equal(ShardedOperator(feats) @ v, wanted)


def test_an_interrupted_product_leaves_nothing_behind(cluster, client):
    feats = ShardedFeatures(client, functools.partial(wide, n=1500, width=256), parts(1500, 3))
    operator = ShardedOperator(feats)
    v = np.random.default_rng(0).normal(size=(1500, 48)).astype(np.float32)
    wanted = operator @ v
    interrupt = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        eigsh(operator, 24, tol=0.0, max_passes=1000)
    interrupt.join()
    sweeps = ("kernelgrowth__sum_of_shards", "kernelgrowth__add", "kernelgrowth__images")
    deadline = time.monotonic() + 20
    while left := [key for key in list(cluster.scheduler.tasks) if key.startswith(sweeps)]:
        assert time.monotonic() < deadline, left
        gc.collect()  # one that was submitted at that very moment is in the frames of the interruption
        time.sleep(0.01)
    np.testing.assert_array_equal(operator @ v, wanted)


class Killer(threading.Thread):
    """Sends SIGKILL to the first worker that runs a task whose name begins with `prefix`, or then to all of them."""

    def __init__(self, cluster, prefix, *, everyone=False):
        super().__init__(daemon=True)
        self.scheduler, self.prefix, self.killed, self.everyone = cluster.scheduler, prefix, None, everyone
        self.pids = {nanny.worker_address: nanny.process.pid for nanny in cluster.workers.values()}

    def run(self):
        deadline = time.monotonic() + 20
        while self.killed is None and time.monotonic() < deadline:
            for key, task in list(self.scheduler.tasks.items()):
                if str(key).startswith(self.prefix) and task.processing_on is not None:
                    self.killed = task.processing_on.address
                    for pid in self.pids.values() if self.everyone else [self.pids[self.killed]]:
                        os.kill(pid, signal.SIGKILL)
                    return
            time.sleep(0.001)


@pytest.mark.parametrize(
    ("outputs", "dtype"), [("full", np.float64), *((mode, np.float32) for mode in [*MODES, "diagonal"])]
)
def test_the_kernel_on_disk_has_the_bits_of_the_kernel_in_memory(client, tmp_path, outputs, dtype):
    feats = ShardedFeatures(client, functools.partial(part_of_whole, dtype=dtype), [(0, 24), (24, 32), (32, 60)])
    local = whole(dtype=dtype)
    eta = preconditioner(local) if outputs == "full" else None
    wanted = empirical_ntk(local, outputs=outputs, preconditioner=eta)
    out = stored(tmp_path / "K.zarr", wanted.shape, dtype)
    found = sharded_ntk(feats, out=out, outputs=outputs, preconditioner=eta)
    assert found is out
    np.testing.assert_array_equal(out[...], wanted)


def test_a_killed_computation_is_resumed(client, feats, tmp_path):
    progress, shape = tmp_path / "progress", (60, 60)
    out = stored(tmp_path / "K.zarr", shape, np.float32, chunk=12)
    sharded_ntk(feats, out=out, outputs="trace", progress=progress)
    wanted, lines = out[...], progress.read_text().splitlines()
    assert len(lines) == 1 + 15 + 1
    # Killed after six pairs, while a seventh was being written.
    progress.write_text("\n".join([*lines[:7], lines[7][:5]]))
    undone = [json.loads(line)["tile"] for line in lines[7:-1]]
    for i, j in undone:
        out[12 * i : 12 * i + 12, 12 * j : 12 * j + 12] = np.nan
    sharded_ntk(feats, out=out, outputs="trace", progress=progress, resume=True)
    np.testing.assert_array_equal(out[...], wanted)
    assert sorted(progress.read_text().splitlines()) == sorted(lines)

    # What is finished is left alone, whatever holds it.
    blank = stored(tmp_path / "K.zarr", shape, np.float32, chunk=12)
    with pytest.warns(RuntimeWarning, match="does not hold 15 of the 15 blocks"):
        sharded_ntk(feats, out=blank, outputs="trace", progress=progress, resume=True)
    np.testing.assert_array_equal(blank[...], wanted)
    with pytest.raises(ValueError, match="its outputs is trace, this call's is sum_logits"):
        sharded_ntk(feats, out=blank, outputs="sum_logits", progress=progress, resume=True)
    others = ShardedFeatures(client, functools.partial(part_of_whole, seed=1), parts(60, 5))
    with pytest.raises(ValueError, match="its features is"):
        sharded_ntk(others, out=blank, outputs="trace", progress=progress, resume=True)


def test_a_worker_killed_while_it_writes_changes_nothing(cluster, client, tmp_path):
    feats = ShardedFeatures(client, functools.partial(wide, n=1200), parts(1200, 4))
    out = stored(tmp_path / "K.zarr", (1200, 1200), np.float32, chunk=100)
    killer = Killer(cluster, "kernelgrowth__write")
    killer.start()
    sharded_ntk(feats, out=out, progress=tmp_path / "progress")
    killer.join(30)
    assert killer.killed
    np.testing.assert_array_equal(out[...], empirical_ntk(wide((0, 1200), n=1200)))


def test_a_tile_that_does_not_fit_is_refused(feats, tmp_path):
    out = stored(tmp_path / "K.zarr", (60, 60), np.float32, chunk=12)
    with pytest.raises(MemoryLimitError, match="tiles of 12 x 12 examples take") as caught:
        sharded_ntk(feats, out=out, outputs="trace", memory_limit=1000)
    assert caught.value.limit == 1000


def test_the_benchmark_compares_what_it_times(client, capsys):
    make, n = functools.partial(sharded.make, widths=[30, 20, 1]), 700
    local, operator = NTKOperator(make((0, n))), ShardedOperator(ShardedFeatures(client, make, parts(n, WORKERS)))
    v = np.random.default_rng(0).normal(size=(n, 4)).astype(np.float32)
    sharded.print_products(local, {1: operator}, v, rounds=1)
    sharded.print_traffic(WORKERS, operator, client, v)
    sharded.print_eigsh(local, operator, client, 3)
    printed = capsys.readouterr().out
    assert "1.00 of one worker process" in printed
    assert "eigsh, k = 3: eigenvalues within" in printed
    doubled = 2 * local.gram()
    with pytest.raises(SystemExit, match="off by"):
        sharded.print_products(local, {1: doubled}, v, rounds=1)


def test_what_fails_names_the_part(client):
    with pytest.raises(OSError, match="the file is not there") as caught:
        ShardedFeatures(client, failing, ["good", "bad"])
    assert caught.value.__notes__ == ["This was shard 1 of 2, made of the part 'bad'."]
    with pytest.raises(ValueError, match=r"make\(\d\), shard \d, returned the block .*, but make\(\d\), shard \d,"):
        ShardedFeatures(client, of_another_shape, [4, 5, 4])
    with pytest.raises(TypeError, match="make must return GradientFeatures, got int"):
        ShardedFeatures(client, no_features, [1])
    with pytest.raises(ValueError, match="parts must name at least one"):
        ShardedFeatures(client, no_features, [])
    with pytest.raises(TypeError, match="make must be callable"):
        ShardedFeatures(client, 3, [1])
    with pytest.raises(TypeError, match="client must be a distributed.Client, got str"):
        ShardedFeatures("tcp://somewhere", failing, [1])


def test_shards_that_do_not_fit_are_refused_once_the_first_is_made(client):
    with pytest.raises(MemoryLimitError, match=r"shard \d+, made of the part .* take more workers"):
        ShardedFeatures(client, heavy, range(60))


def test_operators_refuse_what_they_cannot_multiply(feats):
    operator = ShardedOperator(feats)
    with pytest.raises(ValueError, match="v must have 120 rows, got shape \\(60,\\)"):
        operator @ np.ones(60)
    with pytest.raises(ValueError, match="outputs must be"):
        ShardedOperator(feats, outputs="diagonal")
    with pytest.raises(TypeError, match="feats must be ShardedFeatures"):
        ShardedOperator(whole())
    with pytest.raises(ValueError, match="preconditioner must have the blocks"):
        ShardedOperator(feats, preconditioner={"dense": np.ones((5, 9))})
    assert (operator @ np.empty((120, 0))).shape == (120, 0)
    with pytest.raises(ValueError, match="product that float32 cannot hold"):
        operator @ np.full(120, 3e38, np.float32)


def test_arrays_that_workers_cannot_share_are_refused(feats, tmp_path):
    with pytest.raises(TypeError, match="out must be a Zarr array, which every worker can open, got ndarray"):
        sharded_ntk(feats, out=np.empty((60, 60), np.float32), outputs="trace")
    in_memory = zarr.create_array(store=zarr.storage.MemoryStore(), shape=(60, 60), chunks=(12, 12), dtype="f4")
    with pytest.raises(ValueError, match="in this process' memory"):
        sharded_ntk(feats, out=in_memory, outputs="trace")
    with pytest.raises(ValueError, match="choose chunks that divide 12, or parts of a multiple of 8 examples"):
        sharded_ntk(feats, out=stored(tmp_path / "K.zarr", (60, 60), np.float32, chunk=8), outputs="trace")
    with pytest.raises(ValueError, match="out must have shape"):
        sharded_ntk(feats, out=stored(tmp_path / "K.zarr", (60, 61), np.float32, chunk=12), outputs="trace")
    with pytest.raises(ValueError, match="resume=True with a Array as out needs progress"):
        sharded_ntk(
            feats, out=stored(tmp_path / "K.zarr", (60, 60), np.float32, chunk=12), outputs="trace", resume=True
        )


def test_workers_killed_while_they_make_shards_are_replaced(cluster, client):
    client.wait_for_workers(2, timeout=30)
    killer = Killer(cluster, "kernelgrowth_produce")
    killer.start()
    feats = ShardedFeatures(client, functools.partial(wide, n=1500, width=400), parts(1500, 4))
    killer.join(30)
    assert killer.killed
    v = np.ones(1500, np.float32)
    wanted = NTKOperator(wide((0, 1500), n=1500, width=400), products="factored") @ v
    np.testing.assert_allclose(ShardedOperator(feats) @ v, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


def test_a_product_outlives_all_workers(cluster, client, feats):
    operator = ShardedOperator(feats)
    v = np.ones(120, np.float32)
    wanted = operator @ v
    killer = Killer(cluster, "kernelgrowth__sum_of_shards", everyone=True)
    killer.start()
    np.testing.assert_array_equal(operator @ v, wanted)
    killer.join(30)
    assert killer.killed


def test_a_part_that_kills_every_worker_is_given_up(client, monkeypatch):
    monkeypatch.setattr(distributed_cluster, "_MOST_LOSSES", 1)
    with pytest.raises(BackendError, match="workers died 2 times"):
        ShardedFeatures(client, deadly, [0])


def stored(path, shape, dtype, *, chunk=4):
    chunks = tuple(min(chunk, n) if n >= 32 else n for n in shape)
    return zarr.create_array(store=str(path), shape=shape, chunks=chunks, dtype=dtype, fill_value=0, overwrite=True)
