"""Convolutional networks against explicit loops, finite differences and expanded Jacobians."""

from __future__ import annotations

import json
import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.special import erf

import kernelgrowth as kg
import reference
from kernelgrowth import nets
from kernelgrowth._backend import native
from kernelgrowth.nets import CNN, AveragePool, Conv, Dense, Flatten, GlobalAveragePool, sweeps, windows
from kernelgrowth.training import optim, train
from network_cases import assert_close_in_norm, difference_quotients, expanded_jacobian

ACTIVATIONS = ["linear", "relu", "tanh", "erf"]
PARAMETERIZATIONS = ["standard", "ntk", "mup"]
BIASES = [False, True, "hidden"]
PHI = {"linear": lambda z: z, "relu": lambda z: np.where(z > 0, z, 0.0), "tanh": np.tanh, "erf": erf}
seeds = st.integers(0, 2**32 - 1)
pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def architectures(draw: Any, largest: int = 6) -> tuple[tuple[int, ...], list[Any]]:
    """An input shape and layers that fit it."""
    channels, height, width = draw(st.integers(1, 3)), draw(st.integers(1, largest)), draw(st.integers(1, largest))
    layers: list[Any] = []
    size = [height, width]
    for _ in range(draw(st.integers(0, 3))):
        if draw(st.integers(0, 3)) == 0:
            kernel, padding = tuple(min(k, s) for k, s in zip(draw(pairs), size, strict=True)), (0, 0)
            stride = draw(pairs)
            layers.append(AveragePool(kernel, stride))
        else:
            padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
            kernel = tuple(min(k, s + 2 * p) for k, s, p in zip(draw(pairs), size, padding, strict=True))
            stride = draw(pairs)
            layers.append(Conv(draw(st.integers(1, 3)), kernel, stride, padding))
        size = [(n + 2 * p - k) // s + 1 for n, p, k, s in zip(size, padding, kernel, stride, strict=True)]
    layers.append(draw(st.sampled_from([Flatten(), GlobalAveragePool()])))
    layers += [Dense(width) for width in draw(st.lists(st.integers(1, 3), max_size=2))]
    assume(any(isinstance(layer, Conv | Dense) for layer in layers))
    return (channels, height, width), layers


nets_drawn = st.builds(
    lambda architecture, *rest: CNN(*architecture, *rest),
    architectures(),
    st.sampled_from(ACTIVATIONS),
    st.sampled_from(PARAMETERIZATIONS),
    st.sampled_from([0.3, 1.0, 1.7]),
    st.sampled_from(BIASES),
)


def multipliers(net: CNN) -> list[tuple[float, float]]:
    """Weight and bias multiplier of every layer, written out from the definition."""
    shapes = [shape for name, shape in net.parameter_shapes.items() if name.endswith("weight")]
    result = []
    for index, (fan_out, *rest) in enumerate(shapes):
        fan_in = math.prod(rest)
        if net.parameterization == "ntk":
            result.append((fan_in**-0.5, 1.0))
        elif net.parameterization == "standard" or len(shapes) == 1:
            result.append((1.0, 1.0))
        elif index == 0:
            result.append((fan_out**0.5, fan_out**0.5))
        elif index == len(shapes) - 1:
            result.append((fan_in**-0.5, 1.0))
        else:
            result.append((1.0, fan_out**0.5))
    return result


def pre_activations(net: CNN, params: dict[str, Any], x: np.ndarray) -> list[np.ndarray]:
    applied = [
        (weight * params[f"{name}.weight"], bias * params[f"{name}.bias"] if f"{name}.bias" in params else None)
        for name, (weight, bias) in zip(net.layer_names, multipliers(net), strict=True)
    ]
    images = x.reshape(len(x), *net.input_shape)
    return reference.cnn_pre_activations(net.config()["layers"], applied, images, PHI[net.activation])


def random_case(net: CNN, seed: int, num_examples: int = 3) -> tuple[dict[str, Any], np.ndarray]:
    """Parameters with nonzero biases, and inputs, off the kinks of ReLU (but where a window sees nothing but zeros)."""
    rng = np.random.default_rng(seed)
    params = net.init(seed=seed % 1000)
    for name in params:
        if name.endswith("bias"):
            params[name] = rng.normal(size=params[name].shape)
    x = rng.normal(size=(num_examples, net.num_inputs))
    if net.activation == "relu":
        hidden = pre_activations(net, params, x)[:-2]
        assume(all(np.abs(z[z != 0]).min(initial=1) > 1e-3 for z in hidden))
    return params, x


@st.composite
def windowed_images(draw: Any) -> tuple[np.ndarray, np.ndarray, dict[str, tuple[int, int]]]:
    """Images and columns of small integers, and the window between them."""
    size = draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
    padding = draw(st.tuples(st.integers(0, 4), st.integers(0, 4)))
    kernel = tuple(draw(st.integers(1, s + 2 * p)) for s, p in zip(size, padding, strict=True))
    stride = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    window = {"kernel": kernel, "stride": stride, "padding": padding}
    n, channels = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    places = math.prod((s + 2 * p - k) // t + 1 for s, p, k, t in zip(size, padding, kernel, stride, strict=True))
    rng = np.random.default_rng(draw(seeds))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    images = rng.integers(-9, 10, size=(n, *size, channels)).astype(dtype)
    columns = rng.integers(-9, 10, size=(n, places, math.prod(kernel) * channels)).astype(dtype)
    return images, columns, window


@given(case=windowed_images(), threads=st.integers(1, 3))
def test_im2col_shows_what_a_convolution_multiplies(case: Any, threads: int) -> None:
    images, columns, window = case
    native.im2col(images, columns, **window, threads=threads)
    (kh, kw), channels = window["kernel"], images.shape[3]
    # A convolution with every unit weight, one output channel each.
    unit = np.eye(kh * kw * channels).reshape(-1, kh, kw, channels).transpose(0, 3, 1, 2)
    wanted = reference.convolution(images.transpose(0, 3, 1, 2), unit, window["stride"], window["padding"])
    np.testing.assert_array_equal(columns, wanted.reshape(*wanted.shape[:2], -1).transpose(0, 2, 1))


@given(case=windowed_images(), threads=st.integers(1, 3))
def test_col2im_is_the_transpose_of_im2col(case: Any, threads: int) -> None:
    """<im2col(x), y> = <x, col2im(y)>, exactly, in integers."""
    images, columns, window = case
    forward, backward = np.full_like(columns, np.nan), np.full_like(images, np.nan)
    native.im2col(images, forward, **window, threads=threads)
    native.col2im(columns, backward, **window, threads=threads)
    assert np.vdot(forward, columns) == np.vdot(images, backward)


@given(case=windowed_images())
def test_array_library_windows_are_those_of_the_core(case: Any) -> None:
    """What CuPy arrays go through, tried on NumPy's."""
    images, columns, options = case
    window = windows.Window(**options)
    made, wanted = np.full_like(columns, np.nan), np.full_like(columns, np.nan)
    windows._im2col(window, images, made)
    window.im2col(images, wanted)
    np.testing.assert_array_equal(made, wanted)
    made, wanted = np.full_like(images, np.nan), np.full_like(images, np.nan)
    windows._col2im(window, columns, made)
    window.col2im(columns, wanted)
    np.testing.assert_array_equal(made, wanted)


def test_bits_of_col2im_do_not_depend_on_threads() -> None:
    columns = np.random.default_rng(0).standard_normal((64, 64, 9 * 16), dtype=np.float32)
    images = [np.empty((64, 8, 8, 16), dtype=np.float32) for _ in range(2)]
    for threads, result in zip((1, 4), images, strict=True):
        native.col2im(columns, result, kernel=(3, 3), padding=(1, 1), threads=threads)
    np.testing.assert_array_equal(*images)


@given(net=nets_drawn, seed=seeds)
@settings(max_examples=80)
def test_forward_is_the_explicit_composition(net: CNN, seed: int) -> None:
    params, x = random_case(net, seed)
    wanted = pre_activations(net, params, x)[-1]
    np.testing.assert_allclose(net.forward(params, x), wanted, rtol=1e-11, atol=1e-12)
    assert net.num_outputs == wanted.shape[1]


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_factors_are_the_jacobian_by_finite_differences(activation: str, parameterization: str, bias: Any) -> None:
    @given(architecture=architectures(largest=4), seed=seeds)
    @settings(max_examples=8)
    def check(architecture: Any, seed: int) -> None:
        net = CNN(*architecture, activation, parameterization, 1.1, bias)
        params, x = random_case(net, seed, num_examples=2)
        jacobian = expanded_jacobian(net, net.gradient_factors(params, x))
        assert_close_in_norm(jacobian, difference_quotients(net, params, x), 1e-7)

    check()


@given(net=nets_drawn, seed=seeds)
@settings(max_examples=60)
def test_vjp_is_the_contraction_of_the_factors(net: CNN, seed: int) -> None:
    params, x = random_case(net, seed, num_examples=5)
    factors = net.gradient_factors(params, x)
    df = np.random.default_rng(seed).normal(size=(5, net.num_outputs))
    wanted = {name: np.tensordot(df, rows, axes=2) for name, rows in expanded_jacobian(net, factors).items()}
    outputs, pullback = net.vjp(params, x)
    np.testing.assert_array_equal(outputs, factors.predictions)
    np.testing.assert_array_equal(outputs, net.forward(params, x))
    gradient = pullback(df)
    assert_close_in_norm(gradient, wanted, 1e-11)
    again = pullback(df)
    for name, value in gradient.items():
        assert value.flags.c_contiguous
        np.testing.assert_array_equal(value, again[name])


@given(net=nets_drawn, seed=seeds, part_bytes=st.integers(1, 20000))
@settings(max_examples=60)
def test_parts_of_the_examples_change_nothing_but_rounding(net: CNN, seed: int, part_bytes: int) -> None:
    params, x = random_case(net, seed, num_examples=7)
    whole, wanted = net.gradient_factors(params, x), net.vjp(params, x)[1](np.ones((7, net.num_outputs)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweeps, "_PART_BYTES", part_bytes)
        parts, gradient = net.gradient_factors(params, x), net.vjp(params, x)[1](np.ones((7, net.num_outputs)))
        np.testing.assert_array_equal(net.forward(params, x), parts.predictions)
    np.testing.assert_allclose(parts.predictions, whole.predictions, rtol=1e-11, atol=1e-12)
    assert_close_in_norm(expanded_jacobian(net, parts), expanded_jacobian(net, whole), 1e-12)
    assert_close_in_norm(gradient, wanted, 1e-12)


@given(net=nets_drawn, seed=seeds)
@settings(max_examples=40)
def test_float32_is_close_to_float64_and_stays_float32(net: CNN, seed: int) -> None:
    params, x = random_case(net, seed)
    params32 = {name: value.astype(np.float32) for name, value in params.items()}
    factors, factors32 = net.gradient_factors(params, x), net.gradient_factors(params32, x.astype(np.float32))
    scale = 1 + float(np.abs(factors.predictions).max())
    np.testing.assert_allclose(factors32.predictions, factors.predictions, atol=1e-4 * scale)
    for name, block in factors32.blocks.items():
        assert factors32.predictions.dtype == block.activations.dtype == block.backprops.dtype == np.float32
        assert block.activations.flags.c_contiguous
        assert block.backprops.flags.c_contiguous
        wanted = factors.blocks[name].backprops
        np.testing.assert_allclose(block.backprops, wanted, rtol=1e-3, atol=1e-4 * (1 + np.abs(wanted).max()))
    outputs, pullback = net.vjp(params32, x.astype(np.float32))
    assert {value.dtype for value in pullback(outputs).values()} == {np.dtype(np.float32)}


def _features(net: CNN, seed: int, num_examples: int = 4) -> tuple[Any, np.ndarray]:
    params, x = random_case(net, seed, num_examples)
    jacobian = expanded_jacobian(net, net.gradient_factors(params, x))
    rows = np.concatenate([j.reshape(*j.shape[:2], -1) for j in jacobian.values()], axis=-1)
    return kg.gradients.from_net(net, params, x), rows


@given(net=nets_drawn, seed=seeds, outputs=st.sampled_from(["full", "trace", "sum_logits"]))
@settings(max_examples=40)
def test_empirical_ntk_is_the_kernel_of_the_expanded_jacobian(net: CNN, seed: int, outputs: str) -> None:
    features, jacobian = _features(net, seed)
    wanted = reference.ntk(jacobian, jacobian, outputs)
    scale = reference.entry_scale(jacobian, jacobian, outputs)
    kernel = kg.empirical_ntk(features, outputs=outputs)
    assert np.all(np.abs(kernel - wanted) <= 1e-12 * scale + 1e-300)


def test_a_preconditioner_takes_the_order_of_block_matrix() -> None:
    net = CNN((2, 4, 4), [Conv(3, stride=2), Flatten(), Dense(2)], "tanh")
    features, jacobian = _features(net, 5)
    eta = {name: np.random.default_rng(1).uniform(0.5, 2, shape) for name, shape in net.parameter_shapes.items()}
    flat = np.concatenate([value.ravel() for value in eta.values()])
    preconditioner = {name: net.block_matrix(name, eta[f"{name}.weight"]) for name in net.layer_names}
    kernel = kg.empirical_ntk(features, preconditioner=preconditioner)
    np.testing.assert_allclose(kernel, reference.ntk(jacobian * np.sqrt(flat), jacobian * np.sqrt(flat)), rtol=1e-12)


def test_a_window_of_the_whole_image_is_a_dense_layer() -> None:
    shape = (2, 3, 5)
    net = CNN(shape, [Conv(4, (3, 5), padding=0), Flatten(), Dense(2)], "tanh", "mup", bias=True)
    mlp = nets.MLP([30, 4, 2], "tanh", "mup", bias=True)
    params, x = random_case(net, 3)
    same = dict(zip(mlp.parameter_shapes, (value.reshape(len(value), -1) for value in params.values()), strict=True))
    same = {name: value.reshape(mlp.parameter_shapes[name]) for name, value in same.items()}
    np.testing.assert_allclose(net.forward(params, x), mlp.forward(same, x), rtol=1e-12)
    for ours, theirs in zip(
        net.gradient_factors(params, x).blocks.values(), mlp.gradient_factors(same, x).blocks.values(), strict=True
    ):
        assert ours.scale == theirs.scale
        np.testing.assert_allclose(ours.backprops.reshape(theirs.backprops.shape), theirs.backprops, rtol=1e-12)


def test_images_are_rows_in_channel_first_order_and_may_be_strided_and_read_only() -> None:
    net = CNN((2, 5, 4), [Conv(3, stride=2), AveragePool(2), Flatten(), Dense(2)], "linear", "mup", bias=True)
    params, x = random_case(net, 1, num_examples=6)
    images = np.asfortranarray(x.reshape(6, 2, 5, 4))
    df = np.ones((6, 2))
    for array in (*params.values(), x, images, df):
        array.flags.writeable = False
    np.testing.assert_array_equal(net.forward(params, images), net.forward(params, x))
    np.testing.assert_array_equal(net.forward(params, x[::2]), net.forward(params, x[::2].copy()))
    fortran = {name: np.asfortranarray(value) for name, value in params.items()}
    for name, value in net.vjp(fortran, images)[1](df).items():
        np.testing.assert_allclose(value, net.vjp(params, x)[1](df)[name], rtol=1e-12)
    assert net.gradient_factors(params, images).blocks["conv1"].activations.flags.c_contiguous
    assert CNN((5, 4), [Flatten(), Dense(1)]).input_shape == (1, 5, 4)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bits_do_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch, dtype: Any) -> None:
    monkeypatch.setattr(sweeps, "_PART_BYTES", 1 << 15)
    net = CNN((3, 12, 12), [Conv(9), Conv(17, stride=2), AveragePool(2), Flatten(), Dense(3)], "tanh", bias=True)
    params = net.init(dtype=dtype)
    x = np.random.default_rng(0).standard_normal((23, 3, 12, 12)).astype(dtype)
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


def test_a_part_that_fails_ends_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "_PART_BYTES", 1)
    monkeypatch.setenv("KERNELGROWTH_NUM_THREADS", "3")
    monkeypatch.setattr(windows, "im2col", lambda *arguments, **options: 1 / 0)
    net = CNN((1, 4, 4), [Conv(2), Flatten(), Dense(1)])
    with pytest.raises(ZeroDivisionError):
        net.forward(net.init(), np.ones((50, 1, 4, 4)))


def test_a_sweep_of_many_outputs_takes_little_memory_beside_its_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "_PART_BYTES", 1 << 16)
    monkeypatch.setenv("KERNELGROWTH_NUM_THREADS", "1")  # each thread has a part of its own
    net = CNN((3, 16, 16), [Conv(8), Conv(8), AveragePool(2), Flatten(), Dense(20)])
    params, x = net.init(dtype=np.float32), np.ones((40, 768), dtype=np.float32)
    tracemalloc.start()
    try:
        factors = net.gradient_factors(params, x)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    result = sum(block.activations.nbytes + block.backprops.nbytes for block in factors.blocks.values())
    one_example = 20 * 8 * 16 * 16 * 4  # all outputs' derivatives with respect to one example's image
    assert peak - result < 4 * one_example


@given(net=nets_drawn, seed=seeds)
@settings(max_examples=60)
def test_homogeneity_degree_is_that_of_the_function(net: CNN, seed: int) -> None:
    params, x = random_case(net, seed)
    if net.homogeneity_degree is not None:
        doubled = net.forward({name: 2 * value for name, value in params.items()}, x)
        wanted = 2.0**net.homogeneity_degree * net.forward(params, x)
        np.testing.assert_allclose(doubled, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_applied_weights_start_with_variance_sigma_squared_over_fan_in(parameterization: str) -> None:
    layers = [Conv(30), Conv(40, 5), GlobalAveragePool(), Dense(50)]
    net = CNN((20, 8, 8), layers, "relu", parameterization, sigma=0.7)
    params = net.init(seed=3)
    for index, (name, (multiplier, _)) in enumerate(zip(net.layer_names, multipliers(net), strict=True)):
        weight = params[f"{name}.weight"]
        applied = 1.0 if parameterization == "mup" and index == 2 else multiplier
        fan_in = math.prod(weight.shape[1:])
        assert np.std(applied * weight) * math.sqrt(fan_in) / 0.7 == pytest.approx(1, abs=0.04)


@given(net=nets_drawn)
def test_config_rebuilds_the_net(net: CNN) -> None:
    rebuilt = nets.from_config(json.loads(json.dumps(net.config())))
    assert rebuilt == net
    assert rebuilt.config() == net.config()
    params = net.init(seed=4)
    assert net.parameter_shapes == {name: value.shape for name, value in params.items()}
    assert net.num_parameters == sum(value.size for value in params.values())
    assert net.layer_names == list(net.gradient_factors(params, np.ones((1, net.num_inputs))).blocks)
    assert isinstance(net, nets.Network)


def test_training_lowers_the_loss_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 2 * 6 * 6)), np.sign(rng.normal(size=30))
    net = CNN((2, 6, 6), [Conv(4), AveragePool(2), Conv(5, stride=2), Flatten(), Dense(1)], bias=True)
    options: dict[str, Any] = {"optimizer": optim.Momentum(lr=0.1), "batch_size": 8, "seed": 1}
    whole = train(net, net.init(seed=2), (x, y), steps=60, **options)
    assert whole.losses[-5:].mean() < 0.5 * whole.losses[:5].mean()
    checkpoint = tmp_path / "checkpoint.npz"
    for steps in (23, 60):
        tracker = kg.NTKTracker(x[:9], y[:9], every=20, top_k=2)
        resumed = train(
            net,
            net.init(seed=2),
            (x, y),
            steps=steps,
            checkpoint=checkpoint,
            resume=True,
            callbacks=[tracker],
            **options,
        )
    np.testing.assert_array_equal(resumed.losses, whole.losses)
    for name, value in whole.params.items():
        np.testing.assert_array_equal(resumed.params[name], value)
    assert "layers/conv2/norm" in tracker.history


LAYERS = [Conv(2), Flatten(), Dense(1)]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"input_shape": 3}, TypeError, r"input_shape must be \(channels, height, width\)"),
        ({"input_shape": "332"}, TypeError, "input_shape must be"),
        ({"input_shape": (3, 3, 3, 3)}, ValueError, "input_shape must be"),
        ({"input_shape": (3, 0, 3)}, ValueError, r"input_shape\[1\] must be at least 1"),
        ({"layers": Conv(2)}, TypeError, "layers must be a sequence"),
        ({"layers": [Conv(2), "flatten"]}, TypeError, r"layers\[1\] must be one of Conv, .* got 'flatten'"),
        ({"layers": []}, ValueError, "layers must hold at least one Conv or Dense"),
        ({"layers": [Flatten()]}, ValueError, "layers must hold at least one Conv or Dense"),
        ({"layers": [Conv(2)]}, ValueError, "layers must end with a vector"),
        ({"layers": [Dense(2)]}, ValueError, r"layers\[0\]: Dense needs a vector"),
        ({"layers": [Flatten(), Conv(2)]}, ValueError, r"layers\[1\]: Conv needs an image, but a vector of 75"),
        ({"layers": [Conv(2, 7, padding=0)]}, ValueError, r"layers\[0\]: a window of 7 x 7 does not fit into 5 x 5"),
        ({"layers": [AveragePool((2, 6))]}, ValueError, r"layers\[0\]: a window of 2 x 6 does not fit"),
        ({"activation": "gelu"}, ValueError, "activation must be one of"),
        ({"parameterization": "sp"}, ValueError, "parameterization must be one of"),
        ({"sigma": -1.0}, ValueError, "sigma must be at least 0"),
        ({"bias": "output"}, ValueError, "bias must be True, False or 'hidden'"),
    ],
)
def test_bad_descriptions_are_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        CNN(**{"input_shape": (3, 5, 5), "layers": LAYERS, **arguments})


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Conv(0), ValueError, "channels must be at least 1"),
        (lambda: Conv(2.0), TypeError, "channels must be an integer"),  # type: ignore[arg-type]
        (lambda: Conv(1, 0), ValueError, "kernel must be at least 1"),
        (lambda: Conv(1, (3, 0)), ValueError, r"kernel\[1\] must be at least 1"),
        (lambda: Conv(1, (3, 3, 3)), ValueError, r"kernel must be an integer or \(height, width\)"),  # type: ignore[arg-type]
        (lambda: Conv(1, stride=0), ValueError, "stride must be at least 1"),
        (lambda: Conv(1, padding=-1), ValueError, "padding must be at least 0"),
        (lambda: Conv(1, padding="same"), TypeError, "padding must be an integer"),  # type: ignore[arg-type]
        (lambda: AveragePool(0), ValueError, "size must be at least 1"),
        (lambda: AveragePool(2, (1, 0)), ValueError, r"stride\[1\] must be at least 1"),
        (lambda: Dense(0), ValueError, "width must be at least 1"),
    ],
)
def test_bad_layers_are_refused(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"layers": None}, TypeError, r"config\['layers'\] must be a list"),
        ({"layers": [3]}, TypeError, r"config\['layers'\]\[0\] must be a mapping"),
        ({"layers": [{"kind": "lstm"}]}, ValueError, r"config\['layers'\]\[0\]\['kind'\] must be one of 'conv'"),
        ({"layers": [{"kind": "conv"}]}, ValueError, r"config\['layers'\]\[0\] must hold 'channels'"),
        ({"layers": [{"kind": "conv", "width": 1}]}, ValueError, r"config\['layers'\]\[0\] must hold only .* 'width'"),
        ({"layers": [{"kind": "dense", "width": 0}]}, ValueError, r"config\['layers'\]\[0\]: width must be at least 1"),
        ({"widths": [1, 2]}, ValueError, "config must hold only 'input_shape', 'layers', .* got 'widths'"),
    ],
)
def test_bad_configs_are_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    config = CNN((3, 5, 5), LAYERS).config()
    with pytest.raises(error, match=message):
        nets.from_config({**config, **change})
    del config["layers"]
    with pytest.raises(ValueError, match="config must hold 'layers'"):
        nets.from_config(config)


@pytest.mark.parametrize("method", ["forward", "vjp", "gradient_factors"])
def test_bad_inputs_are_refused(method: str) -> None:
    net = CNN((3, 5, 4), LAYERS)
    params, x = net.init(), np.ones((2, 60))
    call = getattr(net, method)
    wanted = r"x must have shape \(N, 3, 5, 4\) or \(N, 60\) with N >= 1, got "
    for shape in ((0, 60), (2, 59), (2, 5, 4, 3), (0, 3, 5, 4)):
        with pytest.raises(ValueError, match=wanted):
            call(params, np.ones(shape))
    with pytest.raises(ValueError, match="x must have 2 or 4 dimension"):
        call(params, np.ones((3, 5, 4)))
    with pytest.raises(TypeError, match="x is float32"):
        call(params, x.astype(np.float32))
    x[1, 2] = np.nan
    with pytest.raises(ValueError, match=r"x must be finite, got nan at index \(1, 2\)"):
        call(params, x)
    with pytest.raises(ValueError, match=r"'dense1\.weight' is missing"):
        call({"conv1.weight": params["conv1.weight"]}, x)
    with pytest.raises(ValueError, match=r"params\['conv1.weight'\] must be an array of shape \(2, 3, 3, 3\)"):
        call({**params, "conv1.weight": params["conv1.weight"][0]}, np.ones((2, 60)))
    assert np.isnan(net.forward(params, x, check_finite=False)[1]).all()


def test_bad_cotangents_and_blocks_are_refused() -> None:
    net = CNN((3, 5, 4), LAYERS)
    _, pullback = net.vjp(net.init(), np.ones((2, 60)))
    with pytest.raises(ValueError, match=r"df must have the shape \(2, 1\)"):
        pullback(np.ones((2, 2)))
    with pytest.raises(TypeError, match="df must be float64"):
        pullback(np.ones((2, 1), dtype=np.float32))
    with pytest.raises(ValueError, match="name must be one of 'conv1', 'dense1', got 'conv2'"):
        net.block_matrix("conv2", np.ones(3))
    with pytest.raises(ValueError, match=r"array must have the weight's shape \(2, 3, 3, 3\)"):
        net.block_matrix("conv1", np.ones((2, 27)))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": np.ones((2, 4, 3))}, ValueError, "images must have 4 dimension"),
        ({"images": np.ones((2, 4, 3, 0))}, ValueError, "images must have at least one pixel"),
        ({"images": np.ones((4, 4, 3, 5))[::2]}, ValueError, "images must be contiguous"),
        ({"columns": np.ones((2, 12, 45), np.float32)}, TypeError, "columns must be float64"),
        ({"columns": np.ones((2, 11, 45))}, ValueError, r"columns must have shape \(2, 12, 45\)"),
        ({"kernel": 3}, TypeError, r"kernel must be \(height, width\)"),
        ({"kernel": (3, 0)}, ValueError, "kernel must be at least 1"),
        ({"kernel": (7, 3)}, ValueError, "kernel must fit into 4 x 3 pixels"),
        ({"stride": (0, 1)}, ValueError, "stride must be at least 1"),
        ({"stride": (1, 1.5)}, TypeError, "stride must be an integer"),
        ({"padding": (1, -1)}, ValueError, "padding must be at least 0"),
    ],
)
def test_bad_windows_are_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    good = {"images": np.ones((2, 4, 3, 5)), "columns": np.ones((2, 12, 45)), "kernel": (3, 3), "padding": (1, 1)}
    native.im2col(**good)
    for function in (native.im2col, native.col2im):
        with pytest.raises(error, match=message):
            function(**{**good, **change})


def test_what_is_written_must_be_writeable() -> None:
    images, columns = np.ones((1, 2, 2, 1)), np.ones((1, 4, 1))
    images.flags.writeable = columns.flags.writeable = False
    with pytest.raises(ValueError, match="columns must be writeable"):
        native.im2col(images, columns, kernel=(1, 1))
    with pytest.raises(ValueError, match="images must be writeable"):
        native.col2im(columns, images, kernel=(1, 1))
