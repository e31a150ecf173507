"""Eigenpairs of kernels on a GPU: vectors that stay there, and the same numbers, tried without a GPU.

The compiled iteration's kernels are tested in C++ (`cpp/tests/test_cuda_eigen.cpp`).
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelgrowth import BackendError, NotConvergedWarning, SolveInterrupted
from kernelgrowth._backend.eigen import symmetry
from kernelgrowth.spectra import EigenTracker, eigsh, estimate_trace, nystrom
from stand_in_cupy import Device, ndarray, on_gpu, stand_in

_cuda = pytest.importorskip("kernelgrowth._cuda", reason="built without CUDA", exc_type=ImportError)


@pytest.fixture
def module(monkeypatch):
    return stand_in(monkeypatch, _cuda)


def kernel(seed, n, rank, dtype=np.float64):
    factor = np.random.default_rng(seed).standard_normal((n, rank)) * 0.9 ** np.arange(rank)
    return (factor @ factor.T).astype(dtype)


class OnGpu:
    """An operator known by its products, that takes and gives CuPy arrays."""

    def __init__(self, matrix, device=None):
        self.matrix, self.device = on_gpu(matrix, device), device or Device()
        self.shape, self.dtype = matrix.shape, matrix.dtype

    def __matmul__(self, block):
        assert isinstance(block, ndarray)
        assert block.device == self.device
        return self.matrix @ block


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(1, 400), st.integers(1, 12), st.sampled_from(["float32", "float64"]))
def test_eigenpairs_are_the_cpus(gpu, seed, n, k, dtype):
    k, matrix = min(k, n), kernel(seed, n, 30, dtype)
    wanted, found = eigsh(matrix, k), eigsh(gpu(matrix), k)
    for array in (found.eigenvalues, found.eigenvectors, found.residuals, found.converged):
        assert gpu.holds(array)
    assert found.eigenvectors.dtype == dtype
    assert abs(found.passes - wanted.passes) <= int(gpu.is_real)
    tolerance = 1e-4 if dtype == "float32" else 1e-10
    np.testing.assert_allclose(
        found.eigenvalues.get(), wanted.eigenvalues, rtol=0, atol=tolerance * wanted.eigenvalues[0]
    )
    rest = matrix @ found.eigenvectors.get() - found.eigenvectors.get() * found.eigenvalues.get()
    assert np.linalg.norm(rest, axis=0).max() <= (2e-5 if dtype == "float32" else 1e-5) * wanted.eigenvalues[0]


def test_a_start_may_come_from_anywhere(gpu):
    matrix = kernel(1, 600, 40)
    start = eigsh(matrix, 5).eigenvectors
    for v0 in (start, gpu(start)):
        found = eigsh(gpu(matrix), 5, v0=v0, block_size=9)
        assert gpu.holds(found.eigenvectors)
        assert found.converged.all()
    if not gpu.is_real:
        assert {call["stream"] for call in gpu.module.calls} == {17}


def test_an_operator_gets_and_gives_arrays_of_its_gpu(module):
    matrix = kernel(2, 500, 30)
    device = Device(1)
    found = eigsh(OnGpu(matrix, device), 4)
    assert isinstance(found.eigenvectors, ndarray)
    np.testing.assert_allclose(found.eigenvalues.get(), eigsh(matrix, 4).eigenvalues, rtol=1e-9)
    assert nystrom(OnGpu(matrix, device), 40).error_bound <= 1e-6 * np.trace(matrix)
    assert estimate_trace(OnGpu(matrix, device), seed=1).value == estimate_trace(OnGpu(matrix, device), seed=1).value


def test_a_tracker_follows_on_the_gpu_and_resumes_anywhere(gpu):
    on_cpu, tracker = EigenTracker(4), EigenTracker(4)
    for step in range(3):
        matrix = kernel(3, 400, 30) + 0.05 * step * kernel(4, 400, 30)
        wanted, found = on_cpu.update(matrix), tracker.update(gpu(matrix))
        assert gpu.holds(found.eigenvectors)
        np.testing.assert_allclose(found.eigenvalues.get(), wanted.eigenvalues, rtol=1e-3)
        assert found.tracks.tolist() == wanted.tracks.tolist()
        assert found.rotation == pytest.approx(wanted.rotation, abs=1e-6, nan_ok=True)
        state = tracker.state_dict()
        assert not any(gpu.holds(value) for value in state.values())
        tracker = EigenTracker(4)
        tracker.load_state_dict(state)
    # A dense solution is followed by an iteration, and the other way round.
    small = EigenTracker(2)
    assert gpu.holds(small.update(gpu(kernel(5, 20, 9))).eigenvectors)
    assert small.update(gpu(kernel(5, 20, 9))).growth == pytest.approx(1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [1, 5, 1024, 1500])
def test_symmetry_is_seen_as_on_the_cpu(gpu, n, dtype):
    matrix = kernel(6, n, 3, dtype)
    assert symmetry(gpu(matrix)).gap == 0
    matrix[n // 3, n - 1] += 1
    wanted, found = symmetry(matrix), symmetry(gpu(matrix))
    assert (found.gap, found.largest, found.finite) == (wanted.gap, wanted.largest, True)
    assert n == 1 or {found.row, found.column} == {wanted.row, wanted.column}
    np.testing.assert_allclose([found.squared_norm, found.trace], [wanted.squared_norm, wanted.trace], rtol=1e-12)
    matrix[n - 1, n // 2] = np.nan
    assert not symmetry(gpu(matrix)).finite


def test_refusals(module):
    matrix = kernel(7, 300, 5)
    matrix[2, 299] += 1
    with pytest.raises(ValueError, match=r"A must be symmetric, got .* at \((2, 299|299, 2)\)"):
        eigsh(on_gpu(matrix), 2)
    matrix[3, 7] = np.inf
    with pytest.raises(ValueError, match=r"A must be finite, got inf at index \(3, 7\)"):
        eigsh(on_gpu(matrix), 2)
    good = kernel(7, 900, 50)
    with pytest.warns(NotConvergedWarning, match="2 of 2 eigenpairs have a residual above"):
        eigsh(on_gpu(good), 2, max_passes=1, tol=1e-12)
    module.failure = "tall product: CUDA says: out of memory"
    with pytest.raises(BackendError, match="CUDA says: out of memory"):
        eigsh(on_gpu(good), 2)


def test_what_the_operator_raises_comes_through(module):
    class Failing(OnGpu):
        calls = 0

        def __matmul__(self, block):
            self.calls += 1
            if self.calls == 3:
                raise self.error
            return super().__matmul__(block)

    failing = Failing(kernel(8, 700, 60))
    failing.error = RuntimeError("enough")
    with pytest.raises(RuntimeError, match="enough"):
        eigsh(failing, 3, tol=1e-12)
    failing.calls, failing.error = 0, KeyboardInterrupt()
    with pytest.raises(SolveInterrupted) as interrupted:
        eigsh(failing, 3, tol=1e-12)
    assert isinstance(interrupted.value.partial.eigenvectors, ndarray)
