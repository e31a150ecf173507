"""Kernels of features on a GPU: what is asked of the CUDA module, and what is refused, tried without a GPU.

The module's kernels are tested in C++ (`cpp/tests/test_cuda_gram.cpp`), its boundary in `test_cuda_module.py`.
"""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelgrowth import BackendError, MemoryLimitError
from kernelgrowth._backend.native import kernel_statistics
from kernelgrowth.diagnostics import kernel_target_alignment
from kernelgrowth.gradients import GradientFeatures, OuterProduct, Rows
from kernelgrowth.kernels import empirical_ntk
from stand_in_cupy import CuPy, Device, on_gpu, stand_in

_cuda = pytest.importorskip("kernelgrowth._cuda", reason="built without CUDA", exc_type=ImportError)

MODES = ("full", "trace", "mean_trace", "diagonal", "sum_logits")


@pytest.fixture
def module(monkeypatch):
    return stand_in(monkeypatch, _cuda)


def arrays(seed, n=9, c=2, t=3, dtype=np.float32):
    rng = np.random.default_rng(seed)
    shapes = {"a": (n, 5), "d": (n, c, 4), "b": (n, t, 3), "e": (n, c, t, 2), "g": (n, c, 6)}
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def features(of, place=lambda array: array):
    a, d, b, e, g = (place(of[name]) for name in "adbeg")
    return GradientFeatures(
        {"dense": OuterProduct(a, d, bias=True), "conv": OuterProduct(b, e, bias=True), "norm": Rows(g, scale=0.5)}
    )


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 9),
    st.integers(1, 3),
    st.sampled_from(MODES),
    st.booleans(),
    st.sampled_from(["float32", "float64"]),
)
def test_terms_arrive_as_on_the_cpu(gpu, seed, n, c, outputs, symmetric, dtype):
    left, right = arrays(seed, n, c, dtype=dtype), None if symmetric else arrays(seed + 1, 4, c, dtype=dtype)
    wanted = empirical_ntk(features(left), None if symmetric else features(right), outputs=outputs)
    kernel = empirical_ntk(features(left, gpu), None if symmetric else features(right, gpu), outputs=outputs)
    gpu.agree(kernel, wanted, 0)
    if not gpu.is_real:
        assert all(call["stream"] == 17 and call["precision"] == dtype for call in gpu.module.calls)
        gpu.module.calls.clear()


def test_layers_and_preconditioners(gpu):
    of = arrays(1)
    rng = np.random.default_rng(2)
    eta = {
        "dense": (rng.random((4, 5), np.float32), rng.random(4, np.float32)),
        "conv": (rng.random((2, 3), np.float32), rng.random(2, np.float32)),
        "norm": rng.random(6, np.float32),
    }
    placed = {k: tuple(map(gpu, v)) if isinstance(v, tuple) else gpu(v) for k, v in eta.items()}
    wanted = empirical_ntk(features(of), preconditioner=eta, per_layer=True)
    kernels = empirical_ntk(features(of, gpu), preconditioner=placed, per_layer=True)
    for name in wanted:
        gpu.agree(kernels[name], wanted[name], 0)


@pytest.mark.parametrize(
    ("asked", "capability", "used"),
    [("tf32", "90", "tf32"), ("bf16", "80", "bf16"), (None, "90", "float32"), (None, "75", "simt")],
)
def test_precision_is_the_gpus(module, asked, capability, used):
    placed = features(arrays(3), lambda array: on_gpu(array, Device(0, capability)))
    empirical_ntk(placed, precision=asked)
    assert {call["precision"] for call in module.calls} == {used}


def test_an_older_gpu_refuses_what_it_lacks(module):
    old = lambda array: on_gpu(array, Device(0, "75"))  # noqa: E731
    with pytest.raises(
        BackendError, match=r"precision='bf16' needs a GPU of compute capability 8\.0 or newer, got 7\.5"
    ):
        empirical_ntk(features(arrays(3), old), precision="bf16")
    with pytest.raises(BackendError, match="precision='float64' needs a GPU"):
        empirical_ntk(features(arrays(3, dtype=np.float64), old))


def test_memory_is_the_gpus(module, monkeypatch):
    placed = features(arrays(4, n=200), on_gpu)
    empirical_ntk(placed)
    enough = 2 * max(call["workspace_bytes"] for call in module.calls)
    with pytest.raises(MemoryLimitError, match="memory_limit is"):
        empirical_ntk(placed, memory_limit=4 * 400 * 400)
    empirical_ntk(placed, memory_limit=4 * 400 * 400 + enough)
    monkeypatch.setitem(sys.modules, "cupy", CuPy(free=2**20))
    with pytest.raises(MemoryLimitError, match=r"memory_limit is 512\.0 KiB"):
        empirical_ntk(placed)


def test_mixed_places_are_refused_by_name(module):
    of = arrays(5)
    with pytest.raises(TypeError, match="feats and feats2 hold NumPy and CuPy arrays"):
        empirical_ntk(features(of), features(of, on_gpu))
    with pytest.raises(ValueError, match="arrays must live on one GPU, got feats on GPU 0, feats2 on GPU 1"):
        empirical_ntk(features(of, on_gpu), features(of, lambda array: on_gpu(array, Device(1))))
    with pytest.raises(BackendError, match="out cannot be given with features on a GPU"):
        empirical_ntk(features(of, on_gpu), out=np.empty((9, 9, 2, 2), np.float32))


@pytest.mark.parametrize("targets", [None, 1, 6])
@pytest.mark.parametrize("two", [False, True])
@pytest.mark.parametrize("shape", [(7, 7), (7, 4)])
def test_statistics_are_the_cpus(gpu, shape, two, targets):
    rng = np.random.default_rng(8)
    kernel, other = rng.standard_normal((2, *shape)).astype(np.float32)
    y = rng.standard_normal((7, targets)) if targets and shape == (7, 7) else None
    wanted = kernel_statistics(kernel, y, other if two else None)
    for place in (lambda array: array, gpu):  # targets may be the host's
        placed = None if y is None else place(y)
        found = kernel_statistics(gpu(kernel), placed, gpu(other) if two else None)
        for field in dataclasses.fields(wanted):
            np.testing.assert_allclose(
                getattr(found, field.name), getattr(wanted, field.name), rtol=1e-12, atol=1e-11, err_msg=field.name
            )


def test_alignment_of_a_kernel_on_a_gpu(module):
    of = arrays(9, n=12, c=1)
    y = np.random.default_rng(10).standard_normal(12)
    kernel = empirical_ntk(features(of, on_gpu))
    wanted = kernel_target_alignment(empirical_ntk(features(of)), y)
    assert kernel_target_alignment(kernel, y) == wanted
    assert kernel_target_alignment(kernel, on_gpu(y)) == wanted
    with pytest.raises(TypeError, match="kernel and other hold NumPy and CuPy arrays"):
        kernel_statistics(kernel, other=kernel.get())
    with pytest.raises(TypeError, match="CuPy"):
        kernel_statistics(kernel.get(), on_gpu(y))
    module.failure = "statistics: CUDA says: out of memory"
    with pytest.raises(BackendError, match="out of memory"):
        kernel_statistics(kernel)


def test_what_cuda_says_is_passed_on(module):
    module.failure = "rows: CUDA says: no CUDA-capable device is detected"
    with pytest.raises(BackendError, match="no CUDA-capable device is detected"):
        empirical_ntk(features(arrays(6), on_gpu))


def test_a_build_without_cuda_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", CuPy())
    monkeypatch.setitem(sys.modules, "kernelgrowth._cuda", None)
    with pytest.raises(BackendError, match="CuPy arrays need the CUDA module, which this build lacks"):
        empirical_ntk(features(arrays(7), on_gpu))
