"""Residual networks against explicit loops, finite differences, expanded Jacobians, and PyTorch's gradients."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.special import erf

import kernelgrowth as kg
import reference
from gpu import Gpu
from kernelgrowth import nets
from kernelgrowth.nets import (
    CNN,
    AveragePool,
    Conv,
    Dense,
    Flatten,
    GlobalAveragePool,
    Residual,
    layered,
    sweeps,
)
from network_cases import assert_close_in_norm, difference_quotients, expanded_jacobian

ACTIVATIONS = ["linear", "relu", "tanh", "erf"]
PARAMETERIZATIONS = ["standard", "ntk", "mup"]
BIASES = [False, True, "hidden"]
PHI = {"linear": lambda z: z, "relu": lambda z: np.where(z > 0, z, 0.0), "tanh": np.tanh, "erf": erf}
WEIGHTED = {"conv", "dense", "residual"}
seeds = st.integers(0, 2**32 - 1)
small = st.integers(1, 3)
sigmas = st.none() | st.sampled_from([0.5, 2.0])


@st.composite
def image_layers(draw: Any, shape: list[int], count: int, depth: int, weights: bool = False) -> list[Any]:
    """Layers for images of a shape (channels, height, width), which is changed to that behind them."""
    layers: list[Any] = []
    for i in range(count):
        kinds = ["conv", "pool", "residual", "residual"] if depth else ["conv", "conv", "pool"]
        kind = draw(st.sampled_from(kinds))
        if weights and i == count - 1 and not any(not isinstance(layer, AveragePool) for layer in layers):
            kind = "conv"
        if kind == "residual":
            before = list(shape)
            body = draw(image_layers(shape, draw(st.integers(1, 2)), depth - 1, weights=True))
            layers.append(Residual(body, draw(shortcuts(before, shape))))
            continue
        padding = [0, 0] if kind == "pool" else draw(st.lists(st.integers(0, 1), min_size=2, max_size=2))
        kernel = tuple(min(draw(small), n + 2 * p) for n, p in zip(shape[1:], padding, strict=True))
        stride = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
        if kind == "pool":
            layers.append(AveragePool(kernel, stride))
        else:
            shape[0] = draw(small)
            layers.append(Conv(shape[0], kernel, stride, tuple(padding), draw(sigmas)))
        sizes = zip(shape[1:], padding, kernel, stride, strict=True)
        shape[1:] = [(n + 2 * p - k) // s + 1 for n, p, k, s in sizes]
    return layers


@st.composite
def shortcuts(draw: Any, before: list[int], after: list[int]) -> Any:
    if before == after and draw(st.booleans()):
        return None
    if [-(-n // 2) for n in before[1:]] == after[1:]:
        return Conv(after[0], 1, 2)
    pairs = list(zip(before[1:], after[1:], strict=True))
    kernel, padding = tuple(abs(b - a) + 1 for b, a in pairs), tuple(max(0, a - b) for b, a in pairs)
    return Conv(after[0], kernel, padding=padding, sigma=draw(sigmas))


@st.composite
def vector_layers(draw: Any, width: int) -> list[Any]:
    layers: list[Any] = []
    for residual in draw(st.lists(st.booleans(), max_size=2)):
        widths = draw(st.lists(small, min_size=1, max_size=2))
        if residual:
            identity = widths[-1] == width and draw(st.booleans())
            layers.append(Residual([Dense(w) for w in widths], None if identity else Dense(widths[-1])))
        else:
            layers += [Dense(w, draw(sigmas)) for w in widths]
        width = widths[-1]
    return layers


@st.composite
def architectures(draw: Any, largest: int = 6, most: int = 3) -> tuple[tuple[int, ...], list[Any]]:
    """An input shape and layers that fit it, with at least one residual block."""
    shape = [draw(small), draw(st.integers(1, largest)), draw(st.integers(1, largest))]
    input_shape = tuple(shape)
    layers = draw(image_layers(shape, draw(st.integers(1, most)), 2))
    flat = draw(st.booleans())
    layers.append(Flatten() if flat else GlobalAveragePool())
    layers += draw(vector_layers(math.prod(shape) if flat else shape[0]))
    assume(any(isinstance(layer, Residual) for layer in layers))
    return input_shape, layers


nets_drawn = st.builds(
    lambda architecture, *rest: CNN(*architecture, *rest),
    architectures(),
    st.sampled_from(ACTIVATIONS),
    st.sampled_from(PARAMETERIZATIONS),
    st.sampled_from([0.3, 1.0, 1.7]),
    st.sampled_from(BIASES),
)


def roles(layers: list[dict[str, Any]], before: bool = False, after: bool = False) -> Iterator[tuple[bool, bool]]:
    """Whether each layer with weights is the first one, and the last one, on every way through the network."""
    for i, layer in enumerate(layers):
        follows = before or any(other["kind"] in WEIGHTED for other in layers[:i])
        leads = after or any(other["kind"] in WEIGHTED for other in layers[i + 1 :])
        if layer["kind"] == "residual":
            yield from roles(layer["layers"], follows, leads)
            if layer["shortcut"] is not None:
                yield not follows, not leads
        elif layer["kind"] in WEIGHTED:
            yield not follows, not leads


def multipliers(net: CNN) -> list[tuple[float, float]]:
    """Weight and bias multiplier of every layer, written out from the definition."""
    result = []
    shapes = [shape for name, shape in net.parameter_shapes.items() if name.endswith("weight")]
    for (first, last), (fan_out, *rest) in zip(roles(net.config()["layers"]), shapes, strict=True):
        fan_in = math.prod(rest)
        if net.parameterization == "ntk":
            result.append((fan_in**-0.5, 1.0))
        elif net.parameterization == "standard" or (first and last):
            result.append((1.0, 1.0))
        elif first:
            result.append((fan_out**0.5, fan_out**0.5))
        elif last:
            result.append((fan_in**-0.5, 1.0))
        else:
            result.append((1.0, fan_out**0.5))
    return result


def explicit(net: CNN, params: dict[str, Any], x: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """The outputs, and what the nonlinearity is applied to."""
    seen = []

    def phi(z: np.ndarray) -> np.ndarray:
        seen.append(z)
        return PHI[net.activation](z)

    applied = [
        (weight * params[f"{name}.weight"], bias * params[f"{name}.bias"] if f"{name}.bias" in params else None)
        for name, (weight, bias) in zip(net.layer_names, multipliers(net), strict=True)
    ]
    images = x.reshape(len(x), *net.input_shape)
    return reference.residual_outputs(net.config()["layers"], applied, images, phi), seen


def random_case(net: CNN, seed: int, num_examples: int = 3) -> tuple[dict[str, Any], np.ndarray]:
    """Parameters with nonzero biases, and inputs, off the kinks of ReLU (but where a window sees nothing but zeros)."""
    rng = np.random.default_rng(seed)
    params = net.init(seed=seed % 1000)
    for name in params:
        if name.endswith("bias"):
            params[name] = rng.normal(size=params[name].shape)
    x = rng.normal(size=(num_examples, net.num_inputs))
    if net.activation == "relu":
        assume(all(np.abs(z[z != 0]).min(initial=1) > 3e-4 for z in explicit(net, params, x)[1]))
    return params, x


def as_rows(jacobian: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([j.reshape(*j.shape[:2], -1) for j in jacobian.values()], axis=-1)


@given(net=nets_drawn, seed=seeds)
@settings(max_examples=100)
def test_forward_is_the_explicit_composition(net: CNN, seed: int) -> None:
    params, x = random_case(net, seed)
    wanted, _ = explicit(net, params, x)
    np.testing.assert_allclose(net.forward(params, x), wanted, rtol=1e-11, atol=1e-11 * np.abs(wanted).max())
    assert net.num_outputs == wanted.shape[1]


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_factors_and_their_kernel_are_those_of_finite_differences(
    activation: str, parameterization: str, bias: Any
) -> None:
    @given(architecture=architectures(largest=4, most=2), seed=seeds)
    @settings(max_examples=6)
    def check(architecture: Any, seed: int) -> None:
        net = CNN(*architecture, activation, parameterization, 1.1, bias)
        params, x = random_case(net, seed, num_examples=2)
        wanted = difference_quotients(net, params, x)
        assert_close_in_norm(expanded_jacobian(net, net.gradient_factors(params, x)), wanted, 1e-7)
        kernel, rows = kg.empirical_ntk(kg.gradients.from_net(net, params, x), outputs="full"), as_rows(wanted)
        scale = reference.entry_scale(rows, rows, "full")
        assert np.all(np.abs(kernel - reference.ntk(rows, rows, "full")) <= 1e-6 * scale.max() + 1e-12)

    check()


@given(net=nets_drawn, seed=seeds)
@settings(max_examples=60)
def test_vjp_is_the_contraction_of_the_factors(net: CNN, seed: int) -> None:
    params, x = random_case(net, seed, num_examples=5)
    for array in (*params.values(), x):
        array.flags.writeable = False
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


@given(net=nets_drawn, seed=seeds)
@settings(max_examples=40)
def test_empirical_ntk_is_the_kernel_of_the_expanded_jacobian(net: CNN, seed: int) -> None:
    params, x = random_case(net, seed, num_examples=4)
    rows = as_rows(expanded_jacobian(net, net.gradient_factors(params, x)))
    kernel = kg.empirical_ntk(kg.gradients.from_net(net, params, x), outputs="full")
    scale = reference.entry_scale(rows, rows, "full")
    assert np.all(np.abs(kernel - reference.ntk(rows, rows, "full")) <= 1e-12 * scale + 1e-300)


@given(net=nets_drawn, seed=seeds, part_bytes=st.integers(1, 20000))
@settings(max_examples=40)
def test_parts_of_the_examples_change_nothing_but_rounding(net: CNN, seed: int, part_bytes: int) -> None:
    params, x = random_case(net, seed, num_examples=7)
    whole, wanted = net.gradient_factors(params, x), net.vjp(params, x)[1](np.ones((7, net.num_outputs)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweeps, "_PART_BYTES", part_bytes)
        parts, gradient = net.gradient_factors(params, x), net.vjp(params, x)[1](np.ones((7, net.num_outputs)))
        np.testing.assert_array_equal(net.forward(params, x), parts.predictions)
    scale = float(np.abs(whole.predictions).max())
    np.testing.assert_allclose(parts.predictions, whole.predictions, rtol=1e-11, atol=1e-11 * scale)
    assert_close_in_norm(expanded_jacobian(net, parts), expanded_jacobian(net, whole), 1e-12)
    assert_close_in_norm(gradient, wanted, 1e-12)


@given(net=nets_drawn, seed=seeds)
@settings(max_examples=40)
def test_float32_is_close_to_float64_and_stays_float32(net: CNN, seed: int) -> None:
    params, x = random_case(net, seed)
    params32 = {name: value.astype(np.float32) for name, value in params.items()}
    factors, factors32 = net.gradient_factors(params, x), net.gradient_factors(params32, x.astype(np.float32))
    assert factors32.predictions.dtype == np.float32
    for block in factors32.blocks.values():
        for array in (block.activations, block.backprops):
            assert array.dtype == np.float32
            assert array.flags.c_contiguous
    assert_close_in_norm(expanded_jacobian(net, factors32), expanded_jacobian(net, factors), 1e-4)
    _, pullback = net.vjp(params32, x.astype(np.float32))
    assert {value.dtype for value in pullback(factors32.predictions).values()} == {np.dtype(np.float32)}


def test_a_block_without_weights_in_its_layers_hands_on_what_comes() -> None:
    plain = CNN((2, 5, 4), [Conv(3), Flatten(), Dense(2)], "tanh", bias="hidden")
    net = CNN((2, 5, 4), [Conv(3), Residual([Conv(4), Conv(3)]), Flatten(), Dense(2)], "tanh", bias="hidden")
    params, x = random_case(plain, 5)
    silent = {name: params.get(name, np.zeros(shape)) for name, shape in net.parameter_shapes.items()}
    np.testing.assert_array_equal(net.forward(silent, x), plain.forward(params, x))


@given(net=nets_drawn, seed=seeds)
@settings(max_examples=60)
def test_homogeneity_degree_is_that_of_the_function(net: CNN, seed: int) -> None:
    params, x = random_case(net, seed)
    if net.homogeneity_degree is not None:
        doubled = net.forward({name: 2 * value for name, value in params.items()}, x)
        wanted = 2.0**net.homogeneity_degree * net.forward(params, x)
        np.testing.assert_allclose(doubled, wanted, rtol=1e-10, atol=1e-10 * np.abs(wanted).max())


def test_homogeneity_degree_by_kind_of_block() -> None:
    def degree(block: Residual, **options: Any) -> int | None:
        return CNN((1, 3, 3), [Conv(2), block, Flatten(), Dense(1)], **options).homogeneity_degree

    assert degree(Residual([Conv(2)])) is None
    assert degree(Residual([Conv(2)], Conv(2))) == 3
    assert degree(Residual([Conv(2)], Conv(2)), bias=True) is None
    assert degree(Residual([Conv(2)], Conv(2)), activation="tanh") is None
    assert degree(Residual([Conv(2), Conv(2)], Conv(2))) is None


@given(
    activation=st.sampled_from(ACTIVATIONS),
    parameterization=st.sampled_from(PARAMETERIZATIONS),
    bias=st.booleans(),
    size=st.floats(-10, 20),
    inputs=st.floats(-10, 40),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60)
def test_networks_say_finite_only_of_finite_factors(
    activation: str, parameterization: str, bias: bool, size: float, inputs: float, seed: int
) -> None:
    """Powers of ten around the largest float32, so that some sweeps overflow and some do not."""
    block = Residual([Conv(3)])
    blocks = [Residual([Conv(3), block], Conv(3)), block, Flatten(), Residual([Dense(5)], Dense(5))]
    net = CNN((2, 4, 4), [Conv(3), *blocks, Dense(2)], activation, parameterization, bias=bias)
    with np.errstate(all="ignore"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(layered, "_FEW", 0)
        params = {
            name: (value + (value.ndim == 1)) * np.float32(10) ** np.float32(size if value.ndim == 1 else size / 2)
            for name, value in net.init(seed=seed, dtype=np.float32).items()
        }
        x = np.random.default_rng(seed).standard_normal((3, 32)).astype(np.float32)
        x = np.nan_to_num(x * np.float32(10) ** np.float32(inputs))
        factors = net.gradient_factors(params, x)
        arrays = [array for block in factors.blocks.values() for array in (block.activations, block.backprops)]
        if factors.finite:
            assert all(np.isfinite(array).all() for array in (*arrays, factors.predictions))
        if size < 2 and inputs < 4:
            assert factors.finite


def test_sums_may_overflow_where_no_way_through_the_network_does() -> None:
    net = CNN((1, 1), [*[Residual([Conv(1, 1)])] * 40, Flatten(), Dense(1)], "linear")
    params = {name: np.ones(shape, np.float32) for name, shape in net.parameter_shapes.items()}
    with np.errstate(over="ignore"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(layered, "_FEW", 0)
        for factor, finite in ((2.0**-39, False), (2.0**-60, True)):
            x = np.full((1, 1), np.finfo(np.float32).max * factor, dtype=np.float32)
            factors = net.gradient_factors(params, x)
            assert factors.finite is finite
            assert bool(np.isfinite(factors.predictions).all()) is finite


def test_layers_start_with_variance_of_their_own_sigma() -> None:
    block = Residual([Conv(40, sigma=3.0), Conv(50)], Conv(50, 3, sigma=0.1))
    net = CNN((20, 8, 8), [Conv(30, sigma=6), block, GlobalAveragePool(), Dense(60, sigma=0.0)], sigma=0.7)
    params = net.init(seed=3)
    wanted = {"conv1": 6.0, "conv2": 3.0, "conv3": 0.7, "shortcut1": 0.1, "dense1": 0.0}
    assert net.layer_names == list(wanted)
    for name, sigma in wanted.items():
        weight = params[f"{name}.weight"]
        assert np.std(weight) * math.sqrt(weight[0].size) == pytest.approx(sigma, rel=0.04)


@given(net=nets_drawn)
def test_config_rebuilds_the_net(net: CNN) -> None:
    rebuilt = nets.from_config(json.loads(json.dumps(net.config())))
    assert rebuilt == net
    assert hash(rebuilt) == hash(net)
    assert rebuilt.config() == net.config()
    params, again = net.init(seed=4), rebuilt.init(seed=4)
    assert net.parameter_shapes == {name: value.shape for name, value in params.items()}
    assert all(np.array_equal(value, again[name]) for name, value in params.items())
    assert net.num_parameters == sum(value.size for value in params.values())
    assert net.layer_names == list(net.gradient_factors(params, np.ones((1, net.num_inputs))).blocks)
    assert isinstance(net, nets.Network)


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_arrays_on_a_gpu_give_the_numbers_of_the_cpu(gpu: Gpu, activation: str, bias: Any) -> None:
    blocks = [
        Residual([AveragePool(2, 1), Conv(3)], Conv(3, 2, padding=0)),
        Residual([Conv(4), Residual([Conv(4)]), Conv(3)]),
        Flatten(),
        Residual([Dense(3)], Dense(3)),
    ]
    net = CNN((2, 5, 4), [*blocks, Dense(2)], activation, bias=bias)
    params, x = net.init(3), np.random.default_rng(1).normal(size=(3, net.num_inputs))
    on_gpu = net.init(3, device="cuda")
    gpu.agree(net.forward(on_gpu, gpu(x)), net.forward(params, x), 1e-11)
    f, pullback = net.vjp(params, x)
    f_on_gpu, pullback_on_gpu = net.vjp(on_gpu, gpu(x))
    grads = pullback(f)
    for name, grad in pullback_on_gpu(f_on_gpu).items():
        gpu.agree(grad, grads[name], 1e-10)
    factors = net.gradient_factors(params, x)
    for name, block in net.gradient_factors(on_gpu, gpu(x)).blocks.items():
        gpu.agree(block.activations, factors.blocks[name].activations, 1e-10)
        gpu.agree(block.backprops, factors.blocks[name].backprops, 1e-10)


IMAGE = [Conv(2), GlobalAveragePool(), Dense(1)]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Residual(Conv(2)), TypeError, "layers must be a sequence"),  # type: ignore[arg-type]
        (lambda: Residual([Conv(2), 3]), TypeError, r"layers\[1\] must be one of Conv, .*, Residual, got 3"),  # type: ignore[list-item]
        (lambda: Residual([]), ValueError, "layers must hold at least one Conv or Dense"),
        (lambda: Residual([AveragePool(1)]), ValueError, "layers must hold at least one Conv or Dense"),
        (lambda: Residual([Conv(2)], Flatten()), TypeError, "shortcut must be Conv, Dense or None"),  # type: ignore[arg-type]
        (lambda: Conv(2, sigma=-1.0), ValueError, "sigma must be at least 0"),
        (lambda: Dense(2, sigma="1"), TypeError, "sigma must be a number"),  # type: ignore[arg-type]
        (
            lambda: CNN((2, 6, 5), [Conv(3), Residual([Conv(4, stride=2)]), *IMAGE]),
            ValueError,
            r"\[1\]: its layers make an image of 4 channels and 3 x 3 pixels, but the shortcut .* 3 channels and 6 x 5",
        ),
        (
            lambda: CNN((2, 6, 5), [Flatten(), Residual([Dense(4)], Dense(5)), Dense(1)]),
            ValueError,
            r"layers\[1\]: its layers make a vector of 4 numbers, but the shortcut hands on a vector of 5",
        ),
        (
            lambda: CNN((2, 6, 5), [Residual([Conv(2), Residual([Dense(2)])]), *IMAGE]),
            ValueError,
            r"layers\[0\].layers\[1\].layers\[0\]: Dense needs a vector",
        ),
        (
            lambda: CNN((2, 6, 5), [Residual([Conv(2)], Conv(2, 9, padding=0)), *IMAGE]),
            ValueError,
            r"layers\[0\].shortcut: a window of 9 x 9 does not fit into 6 x 5",
        ),
    ],
)
def test_bad_descriptions_are_refused(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("block", "error", "message"),
    [
        ({"layers": 3}, TypeError, r"config\['layers'\]\[0\]\['layers'\] must be a list"),
        ({"layers": [3]}, TypeError, r"config\['layers'\]\[0\]\['layers'\]\[0\] must be a mapping"),
        ({"layers": [], "shortcut": None}, ValueError, r"config\['layers'\]\[0\]: layers must hold at least one"),
        ({"layers": [{"kind": "conv", "channels": 2}], "shortcut": 3}, TypeError, r"\['shortcut'\] must be a mapping"),
        ({"layers": [{"kind": "conv", "channels": 2}], "scale": 3}, ValueError, "must hold only 'kind', 'layers', "),
        ({}, ValueError, r"config\['layers'\]\[0\] must hold 'layers'"),
    ],
)
def test_bad_configs_are_refused(block: dict[str, Any], error: type[Exception], message: str) -> None:
    config = CNN((2, 5, 5), IMAGE).config()
    with pytest.raises(error, match=message):
        nets.from_config({**config, "layers": [{"kind": "residual", **block}]})


def test_a_preconditioner_takes_the_order_of_block_matrix() -> None:
    net = CNN((2, 4, 4), [Conv(3), Residual([Conv(2, 2), Conv(4, 2, padding=0)], Conv(4)), Flatten(), Dense(2)], "tanh")
    params, x = random_case(net, 5)
    rows = as_rows(expanded_jacobian(net, net.gradient_factors(params, x)))
    eta = {name: np.random.default_rng(1).uniform(0.5, 2, shape) for name, shape in net.parameter_shapes.items()}
    preconditioner = {name: net.block_matrix(name, eta[f"{name}.weight"]) for name in net.layer_names}
    kernel = kg.empirical_ntk(kg.gradients.from_net(net, params, x), preconditioner=preconditioner)
    scaled = rows * np.sqrt(np.concatenate([value.ravel() for value in eta.values()]))
    np.testing.assert_allclose(kernel, reference.ntk(scaled, scaled), rtol=1e-11)
