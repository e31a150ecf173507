"""Networks and training on a GPU: the same numbers as on the CPU, arrays that stay on the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpu import Gpu
from kernelgrowth import nets
from kernelgrowth.training import optim, train

rng = np.random.default_rng(0)
X = rng.normal(size=(13, 5))
TARGETS = {
    "mse": (2, rng.normal(size=(13, 2))),
    "logistic": (1, rng.choice([-1.0, 1.0], size=13)),
    "cross_entropy": (3, rng.integers(0, 3, size=13)),
}


@pytest.mark.parametrize("parameterization", ["standard", "ntk", "mup"])
@pytest.mark.parametrize("activation", ["linear", "relu", "tanh", "erf"])
def test_passes_agree_with_the_cpu(gpu: Gpu, activation: str, parameterization: str) -> None:
    net = nets.MLP([5, 7, 6, 2], activation, parameterization, bias=True)
    params, params_cuda = net.init(3), net.init(3, device="cuda")
    assert gpu.holds(*params_cuda.values())
    f, pullback = net.vjp(params, X)
    f_cuda, pullback_cuda = net.vjp(params_cuda, gpu(X))
    np.testing.assert_allclose(f_cuda.get(), f, rtol=1e-11, atol=1e-13)
    grads, grads_cuda = pullback(f), pullback_cuda(f_cuda)
    assert gpu.holds(*grads_cuda.values())
    for name, grad in grads.items():
        np.testing.assert_allclose(grads_cuda[name].get(), grad, rtol=1e-10, atol=1e-12)
    blocks = net.gradient_factors(params, X).blocks
    for name, block in net.gradient_factors(params_cuda, gpu(X)).blocks.items():
        np.testing.assert_allclose(block.activations.get(), blocks[name].activations, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(block.backprops.get(), blocks[name].backprops, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("optimizer", [optim.GD(0.05), optim.Momentum(0.02), optim.Adam(0.01)])
@pytest.mark.parametrize("loss", ["mse", "logistic", "cross_entropy"])
def test_training_agrees_with_the_cpu_and_resumes(
    gpu: Gpu, tmp_path: Path, loss: str, optimizer: optim.Optimizer
) -> None:
    num_outputs, y = TARGETS[loss]
    net = nets.MLP([5, 7, num_outputs], "tanh", bias=True)
    arguments: dict[str, Any] = {"loss": loss, "optimizer": optimizer, "batch_size": 5}
    cpu = train(net, net.init(), (X, y), steps=20, **arguments)
    data = (gpu(X), gpu(y))
    on_gpu = train(net, net.init(device="cuda"), data, steps=20, **arguments)
    assert gpu.holds(*on_gpu.params.values())
    np.testing.assert_allclose(on_gpu.losses, cpu.losses, rtol=1e-9)
    for steps in (7, 20):
        resumed = train(
            net, net.init(device="cuda"), data, steps=steps, checkpoint=tmp_path / "run", resume=True, **arguments
        )
    assert gpu.holds(*resumed.params.values())
    np.testing.assert_allclose(resumed.losses, on_gpu.losses, rtol=1e-12)


def test_arrays_of_both_kinds_are_refused(gpu: Gpu) -> None:
    net = nets.MLP([5, 7, 1])
    y = X[:, 0]
    with pytest.raises(TypeError, match="all be NumPy or all be CuPy"):
        train(net, net.init(device="cuda"), (X, y), steps=1)
    with pytest.raises(TypeError, match="all be NumPy or all be CuPy"):
        train(net, net.init(device="cuda"), (gpu(X), y), steps=1)


@pytest.mark.parametrize("last", [[nets.AveragePool(2), nets.Flatten()], [nets.GlobalAveragePool()]])
def test_convolutions_agree_with_the_cpu(gpu: Gpu, last: list[Any]) -> None:
    layers = [nets.Conv(4, 3, padding=1), nets.Conv(3, (2, 3), stride=2), *last, nets.Dense(3)]
    net = nets.CNN((2, 7, 6), layers, "relu", bias=True)
    images = rng.normal(size=(7, 2, 7, 6))
    params, params_cuda = net.init(3), net.init(3, device="cuda")
    gpu.agree(net.forward(params_cuda, gpu(images)), net.forward(params, images), 1e-11)
    f, pullback = net.vjp(params, images)
    f_cuda, pullback_cuda = net.vjp(params_cuda, gpu(images))
    grads = pullback(f)
    for name, grad in pullback_cuda(f_cuda).items():
        gpu.agree(grad, grads[name], 1e-10)
    blocks = net.gradient_factors(params, images).blocks
    for name, block in net.gradient_factors(params_cuda, gpu(images)).blocks.items():
        gpu.agree(block.activations, blocks[name].activations, 1e-10)
        gpu.agree(block.backprops, blocks[name].backprops, 1e-10)
