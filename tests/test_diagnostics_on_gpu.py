"""What is made of kernels where features, parameters and targets are CuPy arrays: the same calls and numbers."""

from __future__ import annotations

import numpy as np
import pytest

from kernelgrowth import diagnostics, theory
from kernelgrowth.datasets import gaussian_teacher, partial_whiten, whiten
from kernelgrowth.gradients import GradientFeatures, from_net
from kernelgrowth.kernels import NTKOperator, empirical_ntk
from kernelgrowth.nets import MLP
from kernelgrowth.spectra import EigenTracker, StreamingTopK, eigsh, estimate_frobenius_norm, frobenius_norm, nystrom
from kernelgrowth.tracking import NTKTracker, load_run
from kernelgrowth.training import optim, train

NET = MLP([6, 9, 8, 1], "tanh")
SERIES = (
    *("loss", "kernel_norm", "trace", "alignment", "alignment_centered", "eigenvalues", "eigenvector_alignment"),
    *("effective_rank", "velocity", "rotation", "subspace_overlap"),
)


@pytest.fixture
def data():
    return gaussian_teacher(60, 6, seed=1, n_test=20)


@pytest.fixture
def sides(gpu, data):
    """Features and targets of a network: the CPU's, and the GPU's."""

    def features(device, place, x):
        return from_net(NET, NET.init(seed=0, device=device), place(x))

    return {
        "cpu": (features("cpu", np.asarray, data.x), data.y, features("cpu", np.asarray, data.x_test)),
        "gpu": (features("cuda", gpu, data.x), gpu(data.y), features("cuda", gpu, data.x_test)),
    }


def host(array):
    return array.get() if hasattr(array, "get") else array


def of(run, sides):
    return run(*sides["gpu"]), run(*sides["cpu"])


@pytest.mark.parametrize("form", [empirical_ntk, NTKOperator, lambda f: NTKOperator(f, products="factored")])
def test_alignments(sides, form):
    for run in (
        lambda f, y, t: diagnostics.kernel_target_alignment(form(f), y),
        lambda f, y, t: diagnostics.kernel_target_alignment(form(f), y, centered=True),
        lambda f, y, t: diagnostics.kernel_alignment(form(f), form(GradientFeatures({"last": f[list(f)[-1]]}))),
        lambda f, y, t: diagnostics.eigenvector_alignment(eigsh(form(f), 3), y),
        lambda f, y, t: diagnostics.effective_rank(eigsh(form(f), 5).eigenvalues),
    ):
        found, wanted = of(run, sides)
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("method", ["direct", "cg"])
def test_kernel_regression(gpu, sides, method):
    def predictions(features, y, test):
        model = diagnostics.KernelRegression(NTKOperator(features), diag_reg=1e-3, method=method).fit(y)
        return model.predict(NTKOperator(test, features))

    found, wanted = of(predictions, sides)
    np.testing.assert_allclose(host(found), wanted, rtol=1e-4, atol=1e-6)


def test_estimates_and_approximations(sides):
    for run in (
        lambda f, y, t: nystrom(NTKOperator(f), 10).error_bound,
        lambda f, y, t: frobenius_norm(NTKOperator(f)).value,
        lambda f, y, t: frobenius_norm(empirical_ntk(f)).value,
        lambda f, y, t: estimate_frobenius_norm(NTKOperator(f), seed=3).value,
    ):
        found, wanted = of(run, sides)
        assert found == pytest.approx(wanted, rel=1e-6)


def test_a_tracker_of_eigenpairs(sides):
    def tracked(features, y, test):
        tracker = EigenTracker(3)
        tracker.update(NTKOperator(features))
        return tracker.update(NTKOperator(features)).rotation

    found, wanted = of(tracked, sides)
    assert found == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("folder", [False, True])
def test_training_is_tracked(gpu, data, tmp_path, folder, outputs):
    net = MLP([6, 9, outputs], "tanh")
    y = np.stack([data.y, data.y**2], axis=1)[:, :outputs] if outputs > 1 else data.y

    def history(device, place):
        out = tmp_path / device if folder else None
        tracker = NTKTracker(place(data.x), place(y), every=2, top_k=4, out=out, x_test=place(data.x_test))
        params = net.init(seed=0, device=device)
        train(net, params, (place(data.x), place(y)), optimizer=optim.GD(0.05), steps=6, callbacks=[tracker])
        return load_run(out) if folder else tracker.history

    found, wanted = history("cuda", gpu), history("cpu", np.asarray)
    assert found["step"].tolist() == wanted["step"].tolist()
    for name in SERIES:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5, atol=1e-7, err_msg=name)
    np.testing.assert_allclose(found.kernel(6), wanted.kernel(6), rtol=1e-8, atol=1e-10)


def test_a_budgeted_run_measures_subsamples(gpu, data):
    tracker = NTKTracker(gpu(data.x), gpu(data.y), every=1, top_k=2, max_overhead=0.5)
    params = NET.init(seed=0, device="cuda")
    train(NET, params, (gpu(data.x), gpu(data.y)), optimizer=optim.GD(0.05), steps=5, callbacks=[tracker])
    assert np.isfinite(tracker.history["kernel_norm"]).all()


def test_rows_of_a_stream(gpu, sides):
    """A stream of gradient rows is the host's; arrays of a GPU come in all the same."""
    rows = np.random.default_rng(3).standard_normal((40, 12))
    found, wanted = (StreamingTopK(3).partial_fit(place(rows)).result() for place in (gpu, np.asarray))
    np.testing.assert_allclose(host(found.eigenvalues), wanted.eigenvalues)


def test_whitening_and_theory(gpu, data):
    for run in (lambda x: whiten(x)[0], lambda x: partial_whiten(x, 0.5)[0]):
        found = run(gpu(data.x))
        np.testing.assert_allclose(host(found), run(data.x), atol=1e-9)
    direction = np.ones(6) / np.sqrt(6)
    found = theory.final_kernel(gpu(data.x), gpu(direction), 1.5, depth=2)
    gpu.agree(found, theory.final_kernel(data.x, direction, 1.5, depth=2), 1e-10)
