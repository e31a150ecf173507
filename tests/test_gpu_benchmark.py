"""The benchmark of the GPU: its measure of errors, tried with a stand-in for CuPy."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import gpu

from stand_in_cupy import Module, stand_in

_cuda = pytest.importorskip("kernelgrowth._cuda", reason="built without CUDA", exc_type=ImportError)


@pytest.fixture
def module(monkeypatch):
    return stand_in(monkeypatch, _cuda)


def test_right_kernels_are_within_what_is_promised(module):
    results = list(gpu.errors(5))
    assert len(results) == 5 * 4 * 2 * 2
    assert all(result["ok"] for result in results)
    assert max(result["error"] for result in results if result["precision"] == "float32") > 0


def test_wrong_ones_are_found(module):
    def gram(terms, out, **options):
        Module.gram(module, terms, out, **options)
        out[..., -1, -1] += 1e-2 * np.abs(out).max()

    module.gram = gram
    found = [result["ok"] for result in gpu.errors(5) if result["precision"] in ("float32", "float64")]
    assert found
    assert not any(found)
