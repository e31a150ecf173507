"""Wide residual networks: their layers, training and kernel at the paper's size, and PyTorch's gradients."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

import kernelgrowth as kg
import reference
from gpu import Gpu
from kernelgrowth import nets
from kernelgrowth.nets import CNN, WideResNet, sweeps
from kernelgrowth.training import optim, train


def wide_resnet_layers(k: int, b: int) -> list[tuple[int, ...]]:
    """Channels in and out, and window, of every convolution, from the description of the paper."""
    shapes = [(3, 16, 3)]
    before = 16
    for width, stride in ((16 * k, 1), (32 * k, 2), (64 * k, 2)):
        for block in range(b):
            shapes += [(before, width, 3), (width, width, 3)]
            if block == 0 and (before != width or stride != 1):
                shapes.append((before, width, 1))
            before = width
    return shapes


@pytest.mark.parametrize(("k", "b"), [(1, 1), (1, 3), (2, 2), (4, 1)])
def test_wide_resnet_is_the_network_of_its_layers(k: int, b: int) -> None:
    net = WideResNet((3, 8, 8), 2, k, b, "tanh", sigma=0.3, first_sigma=6.0, bias="hidden")
    convolutions = [shape for shape in net.parameter_shapes.values() if len(shape) == 4]
    assert convolutions == [(out, into, size, size) for into, out, size in wide_resnet_layers(k, b)]
    assert net.parameter_shapes["dense1.weight"] == (2, 64 * k)
    assert net.depth == 6 * b + 2 + sum(name.startswith("shortcut") for name in net.layer_names)
    cnn = CNN((3, 8, 8), net.layers, "tanh", sigma=0.3, bias="hidden")
    assert cnn.layer_names == net.layer_names
    params, x = net.init(seed=1), np.random.default_rng(0).normal(size=(2, 192))
    assert np.std(params["conv1.weight"]) * math.sqrt(27) == pytest.approx(6, rel=0.15)
    assert np.std(params["conv2.weight"]) * math.sqrt(144) == pytest.approx(0.3, rel=0.15)
    for name, value in cnn.init(seed=1).items():
        np.testing.assert_array_equal(value, params[name])
    np.testing.assert_array_equal(net.forward(params, x), cnn.forward(params, x))
    applied = [(params[f"{name}.weight"], params.get(f"{name}.bias")) for name in net.layer_names]
    wanted = reference.residual_outputs(cnn.config()["layers"], applied, x.reshape(2, 3, 8, 8), np.tanh)
    np.testing.assert_allclose(net.forward(params, x), wanted, rtol=1e-10)
    rebuilt = nets.from_config(json.loads(json.dumps(net.config())))
    assert rebuilt == net
    assert rebuilt.config() == net.config()


def test_training_lowers_the_loss_and_is_tracked() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 3, 8, 8)), np.sign(rng.normal(size=20))
    net = WideResNet((3, 8, 8), 1, sigma=0.7, first_sigma=1.5)
    tracker = kg.NTKTracker(x[:9], y[:9], every=10, top_k=2)
    run = train(net, net.init(seed=2), (x, y), steps=20, optimizer=optim.Adam(lr=3e-3), callbacks=[tracker], seed=1)
    assert run.losses[-1] < 0.5 * run.losses[0]
    assert "layers/shortcut1/norm" in tracker.history
    one = train(net, run.params, (x, y), steps=2, optimizer=optim.GD(lr=1e-4))
    assert one.losses[1] < one.losses[0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bits_do_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch, dtype: Any) -> None:
    monkeypatch.setattr(sweeps, "_PART_BYTES", 1 << 15)
    net = WideResNet((3, 9, 8), 3, activation="tanh", bias=True)
    params = net.init(dtype=dtype)
    x = np.random.default_rng(0).standard_normal((11, 3, 9, 8)).astype(dtype)
    results = []
    for threads in ("1", "2", "5"):
        monkeypatch.setenv("KERNELGROWTH_NUM_THREADS", threads)
        outputs, pullback = net.vjp(params, x)
        factors = net.gradient_factors(params, x)
        blocks = [array for block in factors.blocks.values() for array in (block.activations, block.backprops)]
        results.append([net.forward(params, x), outputs, *pullback(outputs).values(), *blocks])
    for result in results[1:]:
        for made, wanted in zip(result, results[0], strict=True):
            np.testing.assert_array_equal(made, wanted)


def test_kernel_of_the_papers_network_says_what_a_small_step_does() -> None:
    """k = 4, b = 1 on a hundred images of CIFAR's shape: f changes by −η K (f − y)."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((100, 3, 32, 32), dtype=np.float32), np.sign(rng.standard_normal(100)).astype(np.float32)
    net = WideResNet((3, 32, 32), 1, widening=4, sigma=0.3, first_sigma=6.0)
    params = net.init(dtype=np.float32)
    features = kg.gradients.from_net(net, params, x)
    kernel = kg.empirical_ntk(features)
    before = features.predictions
    # The loss is the mean of (f − y)²/2.
    wanted = kernel @ (y - before[:, 0]) / 100
    rate = 1e-2 * float(np.abs(before).mean() / np.abs(wanted).mean())
    run = train(net, params, (x, y), steps=1, optimizer=optim.GD(lr=rate))
    change = (net.forward(run.params, x) - before)[:, 0]
    assert np.linalg.norm(change - rate * wanted) < 0.02 * np.linalg.norm(change)


def test_the_kernel_is_that_of_pytorchs_gradients() -> None:
    torch = pytest.importorskip("torch")
    conv2d, relu = torch.nn.functional.conv2d, torch.relu
    net = WideResNet((3, 32, 32), 2, widening=4, sigma=0.9, first_sigma=3.0)
    params, x = net.init(seed=0), np.random.default_rng(0).normal(size=(4, 3, 32, 32))
    weights = [torch.tensor(value, requires_grad=True) for value in params.values()]
    stem, *blocks, dense = weights
    z = conv2d(torch.tensor(x), stem, padding=1)
    for stride, (first, second, shortcut) in zip((1, 2, 2), zip(*[iter(blocks)] * 3, strict=True), strict=True):
        branch = conv2d(relu(conv2d(relu(z), first, stride=stride, padding=1)), second, padding=1)
        z = conv2d(z, shortcut, stride=stride) + branch
    outputs = relu(z).mean((2, 3)) @ dense.T
    rows = [torch.autograd.grad(value, weights, retain_graph=True) for value in outputs.flatten()]
    jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    wanted = (jacobian @ jacobian.T).numpy()
    for dtype, tolerance in ((np.float64, 1e-11), (np.float32, 1e-4)):
        features = kg.gradients.from_net(net, {k: v.astype(dtype) for k, v in params.items()}, x.astype(dtype))
        np.testing.assert_allclose(features.predictions, outputs.detach().numpy(), rtol=tolerance)
        kernel = reference.as_matrix(kg.empirical_ntk(features, outputs="full"))
        assert np.all(np.abs(kernel - wanted) <= tolerance * np.abs(wanted).max())


def test_training_on_a_gpu_gives_the_numbers_of_the_cpu(gpu: Gpu) -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(4, 3, 6, 5)), rng.normal(size=(4, 2))
    net = WideResNet((3, 6, 5), 2, activation="tanh", parameterization="mup", first_sigma=2.0, bias="hidden")
    optimizer = optim.Momentum(lr=0.01)
    on_cpu = train(net, net.init(3), (x, y), steps=3, optimizer=optimizer)
    on_gpu = train(net, net.init(3, device="cuda"), (gpu(x), gpu(y)), steps=3, optimizer=optimizer)
    np.testing.assert_allclose(on_gpu.losses, on_cpu.losses, rtol=1e-10)
    for name, value in on_gpu.params.items():
        gpu.agree(value, on_cpu.params[name], 1e-9)
    kernel = kg.empirical_ntk(kg.gradients.from_net(net, on_cpu.params, x))
    gpu.agree(kg.empirical_ntk(kg.gradients.from_net(net, on_gpu.params, gpu(x))), kernel, 1e-8)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: WideResNet((3, 8), 1, 0), ValueError, "widening must be at least 1"),
        (lambda: WideResNet((3, 8), 1, blocks=1.0), TypeError, "blocks must be an integer"),  # type: ignore[arg-type]
        (lambda: WideResNet((3, 8), 0), ValueError, "outputs must be at least 1"),
        (lambda: WideResNet((3,), 1), ValueError, "input_shape must be"),
        (lambda: WideResNet((3, 8), 1, first_sigma=-1), ValueError, "first_sigma must be at least 0"),
        (lambda: WideResNet((3, 8), 1, sigma=math.nan), ValueError, "sigma must be finite"),
        (lambda: WideResNet((3, 8), 1, activation="gelu"), ValueError, "activation must be one of"),
    ],
)
def test_bad_descriptions_are_refused(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_bad_configs_are_refused() -> None:
    config = WideResNet((2, 5, 5), 1).config()
    with pytest.raises(ValueError, match="config must hold only 'input_shape', 'outputs', .* got 'layers'"):
        nets.from_config({**config, "layers": []})
    del config["outputs"]
    with pytest.raises(ValueError, match="config must hold 'outputs'"):
        nets.from_config(config)
