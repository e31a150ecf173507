"""The benchmark of the GPU: its measure of errors, tried with a stand-in for CuPy."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import gpu, gpu_experiments

from stand_in_cupy import Module, stand_in

_cuda = pytest.importorskip("kernelgrowth._cuda", reason="built without CUDA", exc_type=ImportError)


@pytest.fixture
def module(monkeypatch):
    return stand_in(monkeypatch, _cuda)


def test_right_kernels_are_within_what_is_promised(module):
    results = list(gpu.errors(5, 100))
    assert len(results) == 5 * 4 * 2 * 2
    assert all(result["ok"] for result in results)
    assert max(result["error"] for result in results if result["precision"] == "float32") > 0


def test_wrong_ones_are_found(module):
    def gram(terms, out, **options):
        Module.gram(module, terms, out, **options)
        out[..., -1, -1] += 1e-2 * np.abs(out).max()

    module.gram = gram
    found = [result["ok"] for result in gpu.errors(5, 100) if result["precision"] in ("float32", "float64")]
    assert found
    assert not any(found)


def test_products_and_eigenpairs_are_the_cpus(module):
    results = list(gpu_experiments.agreements((6, 9, 1), 300, 3))
    assert len(results) == 9
    assert all(result["ok"] for result in results)


def test_large_tiles_are_compared(module):
    results = list(gpu.errors_of_large_tiles(20))
    assert [result["precision"] for result in results] == ["float32", "tf32", "bf16"]
    assert all(result["ok"] for result in results)


def test_rows_of_what_is_timed_are_compared():
    rng = np.random.default_rng(0)
    layers = [(rng.standard_normal((30, 5)), rng.standard_normal((30, 4))) for _ in range(2)]
    kernel = sum((a @ a.T) * (d @ d.T) for a, d in layers)
    assert gpu.error_of_rows(kernel, layers, 8) < 1e-14
    for place in ((2, 20), (29, 0)):
        wrong = kernel.copy()
        wrong[place] += 1e-2 * kernel.max()
        assert gpu.error_of_rows(wrong, layers, 8) > 1e-3
        wrong[place] = np.nan
        assert np.isnan(gpu.error_of_rows(wrong, layers, 8))


def test_experiments_say_what_was_measured(module):
    for result in (
        gpu_experiments.solver((6, 9, 1), 300, 3),
        gpu_experiments.tracked_step((6, 9, 1), 40, 3),
        gpu_experiments.streamed(50, 4),
    ):
        assert result["seconds"] > 0
        assert result.get("ok", True)
        assert result["name"] in gpu.described(result)
