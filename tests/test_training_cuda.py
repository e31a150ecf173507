"""Networks and training on a GPU: the same numbers as on the CPU, arrays that stay on the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernelgrowth import nets
from kernelgrowth.training import optim, train

cupy = pytest.importorskip("cupy", reason="CuPy is not installed")


@pytest.fixture(autouse=True)
def _device() -> None:
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        pytest.skip(f"no CUDA device: {error}")
    if count == 0:
        pytest.skip("no CUDA device")


rng = np.random.default_rng(0)
X = rng.normal(size=(13, 5))
TARGETS = {
    "mse": (2, rng.normal(size=(13, 2))),
    "logistic": (1, rng.choice([-1.0, 1.0], size=13)),
    "cross_entropy": (3, rng.integers(0, 3, size=13)),
}


def on_device(arrays: dict[str, Any]) -> bool:
    return all(isinstance(array, cupy.ndarray) for array in arrays.values())


@pytest.mark.parametrize("parameterization", ["standard", "ntk", "mup"])
@pytest.mark.parametrize("activation", ["linear", "relu", "tanh", "erf"])
def test_passes_agree_with_the_cpu(activation: str, parameterization: str) -> None:
    net = nets.MLP([5, 7, 6, 2], activation, parameterization, bias=True)
    params, params_cuda = net.init(3), net.init(3, device="cuda")
    assert on_device(params_cuda)
    f, pullback = net.vjp(params, X)
    f_cuda, pullback_cuda = net.vjp(params_cuda, cupy.asarray(X))
    np.testing.assert_allclose(f_cuda.get(), f, rtol=1e-11, atol=1e-13)
    grads, grads_cuda = pullback(f), pullback_cuda(f_cuda)
    assert on_device(grads_cuda)
    for name, grad in grads.items():
        np.testing.assert_allclose(grads_cuda[name].get(), grad, rtol=1e-10, atol=1e-12)
    blocks = net.gradient_factors(params, X).blocks
    for name, block in net.gradient_factors(params_cuda, cupy.asarray(X)).blocks.items():
        np.testing.assert_allclose(block.activations.get(), blocks[name].activations, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(block.backprops.get(), blocks[name].backprops, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("optimizer", [optim.GD(0.05), optim.Momentum(0.02), optim.Adam(0.01)])
@pytest.mark.parametrize("loss", ["mse", "logistic", "cross_entropy"])
def test_training_agrees_with_the_cpu_and_resumes(tmp_path: Path, loss: str, optimizer: optim.Optimizer) -> None:
    num_outputs, y = TARGETS[loss]
    net = nets.MLP([5, 7, num_outputs], "tanh", bias=True)
    arguments: dict[str, Any] = {"loss": loss, "optimizer": optimizer, "batch_size": 5}
    cpu = train(net, net.init(), (X, y), steps=20, **arguments)
    data = (cupy.asarray(X), cupy.asarray(y))
    gpu = train(net, net.init(device="cuda"), data, steps=20, **arguments)
    assert on_device(gpu.params)
    np.testing.assert_allclose(gpu.losses, cpu.losses, rtol=1e-9)
    for steps in (7, 20):
        resumed = train(
            net, net.init(device="cuda"), data, steps=steps, checkpoint=tmp_path / "run", resume=True, **arguments
        )
    assert on_device(resumed.params)
    np.testing.assert_allclose(resumed.losses, gpu.losses, rtol=1e-12)


def test_arrays_of_both_kinds_are_refused() -> None:
    net = nets.MLP([5, 7, 1])
    y = X[:, 0]
    with pytest.raises(TypeError, match="all be NumPy or all be CuPy"):
        train(net, net.init(device="cuda"), (X, y), steps=1)
    with pytest.raises(TypeError, match="all be NumPy or all be CuPy"):
        train(net, net.init(device="cuda"), (cupy.asarray(X), y), steps=1)
