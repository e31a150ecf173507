"""Networks against an explicit forward pass, finite differences and expanded Jacobians."""

from __future__ import annotations

import math
import sys
import types
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.special import erf

from kernelgrowth import nets
from kernelgrowth._backend.errors import BackendError
from kernelgrowth.training.losses import LOSSES

ACTIVATIONS = ["linear", "relu", "tanh", "erf"]
PARAMETERIZATIONS = ["standard", "ntk", "mup"]
BIASES = [False, True, "hidden"]
PHI = {"linear": lambda z: z, "relu": lambda z: np.where(z > 0, z, 0.0), "tanh": np.tanh, "erf": erf}

widths = st.lists(st.integers(1, 6), min_size=2, max_size=5)
seeds = st.integers(0, 2**32 - 1)
nets_drawn = st.builds(
    nets.MLP,
    widths=widths,
    activation=st.sampled_from(ACTIVATIONS),
    parameterization=st.sampled_from(PARAMETERIZATIONS),
    sigma=st.sampled_from([0.3, 1.0, 1.7]),
    bias=st.sampled_from(BIASES),
)


def multipliers(net: nets.MLP, layer: int) -> tuple[float, float]:
    """Weight and bias multiplier of a layer (from 0), written out from the definition."""
    fan_in, fan_out = net.widths[layer], net.widths[layer + 1]
    depth = len(net.widths) - 1
    if net.parameterization == "ntk":
        return fan_in**-0.5, 1.0
    if net.parameterization == "standard" or depth == 1:
        return 1.0, 1.0
    if layer == 0:
        return fan_out**0.5, fan_out**0.5
    if layer == depth - 1:
        return fan_in**-0.5, 1.0
    return 1.0, fan_out**0.5


def pre_activations(net: nets.MLP, params: dict[str, Any], x: np.ndarray) -> list[np.ndarray]:
    result = []
    h = x
    for layer in range(len(net.widths) - 1):
        weight, bias = multipliers(net, layer)
        z = h @ (weight * params[f"layer{layer + 1}.weight"]).T
        if f"layer{layer + 1}.bias" in params:
            z = z + bias * params[f"layer{layer + 1}.bias"]
        result.append(z)
        h = PHI[net.activation](z)
    return result


def random_case(net: nets.MLP, seed: int, num_examples: int = 3) -> tuple[dict[str, Any], np.ndarray]:
    """Parameters with nonzero biases, and inputs, off the kinks of ReLU."""
    rng = np.random.default_rng(seed)
    params = net.init(seed=seed % 1000)
    for name in params:
        if name.endswith("bias"):
            params[name] = rng.normal(size=params[name].shape)
    x = rng.normal(size=(num_examples, net.num_inputs))
    if net.activation == "relu":
        assume(all(np.abs(z).min() > 1e-3 for z in pre_activations(net, params, x)[:-1]))
    return params, x


def expanded_jacobian(factors: nets.GradientFactors) -> dict[str, np.ndarray]:
    """Parameter name -> (N, C, *shape), from the factors' definition."""
    jacobian = {}
    for name, block in factors.blocks.items():
        outer = np.einsum("nco,ni->ncoi", block.backprops, block.activations)
        jacobian[f"{name}.weight"] = math.sqrt(block.scale) * outer
        if block.bias:
            jacobian[f"{name}.bias"] = math.sqrt(block.scale) * block.backprops
    return jacobian


def difference_quotients(function: Any, params: dict[str, Any], step: float = 1e-5) -> dict[str, np.ndarray]:
    """Central differences of an array-valued function by every parameter entry: name -> (*output, *shape)."""
    result = {}
    for name, value in params.items():
        columns = []
        for index in np.ndindex(value.shape):
            shift = np.zeros_like(value)
            shift[index] = step
            above, below = function({**params, name: value + shift}), function({**params, name: value - shift})
            columns.append((np.asarray(above) - np.asarray(below)) / (2 * step))
        stacked = np.stack(columns, axis=-1)
        result[name] = stacked.reshape(*stacked.shape[:-1], *value.shape)
    return result


def assert_close_in_norm(actual: dict[str, Any], wanted: dict[str, Any], relative: float) -> None:
    assert actual.keys() == wanted.keys()
    scale = math.sqrt(sum(float(np.sum(value**2)) for value in wanted.values()))
    for name, value in wanted.items():
        assert actual[name].shape == value.shape
        assert np.linalg.norm(actual[name] - value) <= relative * scale + 1e-12, name


@given(net=nets_drawn, seed=seeds)
@settings(deadline=None, max_examples=60)
def test_forward_is_the_explicit_composition(net: nets.MLP, seed: int) -> None:
    params, x = random_case(net, seed)
    np.testing.assert_allclose(net.forward(params, x), pre_activations(net, params, x)[-1], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_factors_are_the_jacobian_by_finite_differences(activation: str, parameterization: str, bias: Any) -> None:
    @given(widths=widths, seed=seeds)
    @settings(deadline=None, max_examples=6)
    def check(widths: list[int], seed: int) -> None:
        net = nets.MLP(widths, activation, parameterization, 1.1, bias)
        params, x = random_case(net, seed)
        jacobian = expanded_jacobian(net.gradient_factors(params, x))
        assert_close_in_norm(jacobian, difference_quotients(lambda p: net.forward(p, x), params), 1e-7)

    check()


@given(net=nets_drawn, seed=seeds)
@settings(deadline=None, max_examples=60)
def test_vjp_with_unit_vectors_is_the_expanded_jacobian(net: nets.MLP, seed: int) -> None:
    params, x = random_case(net, seed)
    factors = net.gradient_factors(params, x)
    jacobian = expanded_jacobian(factors)
    outputs, pullback = net.vjp(params, x)
    np.testing.assert_array_equal(outputs, factors.predictions)
    np.testing.assert_array_equal(outputs, net.forward(params, x))
    for n, c in np.ndindex(outputs.shape):
        unit = np.zeros_like(outputs)
        unit[n, c] = 1
        assert_close_in_norm(pullback(unit), {name: rows[n, c] for name, rows in jacobian.items()}, 1e-12)


@given(net=nets_drawn, seed=seeds)
@settings(deadline=None, max_examples=40)
def test_vjp_sums_over_examples_and_outputs(net: nets.MLP, seed: int) -> None:
    params, x = random_case(net, seed, num_examples=5)
    df = np.random.default_rng(seed).normal(size=(5, net.num_outputs))
    jacobian = expanded_jacobian(net.gradient_factors(params, x))
    wanted = {name: np.tensordot(df, rows, axes=2) for name, rows in jacobian.items()}
    _, pullback = net.vjp(params, x)
    assert_close_in_norm(pullback(df), wanted, 1e-11)
    again = pullback(df)
    for name, value in pullback(df).items():
        np.testing.assert_array_equal(value, again[name])


@given(net=nets_drawn, seed=seeds)
@settings(deadline=None, max_examples=40)
def test_float32_is_close_to_float64_and_stays_float32(net: nets.MLP, seed: int) -> None:
    params, x = random_case(net, seed)
    params32 = {name: value.astype(np.float32) for name, value in params.items()}
    factors = net.gradient_factors(params, x)
    factors32 = net.gradient_factors(params32, x.astype(np.float32))
    scale = 1 + float(np.abs(factors.predictions).max())
    assert factors32.predictions.dtype == np.float32
    np.testing.assert_allclose(factors32.predictions, factors.predictions, atol=1e-4 * scale)
    for name, block in factors32.blocks.items():
        assert block.activations.dtype == block.backprops.dtype == np.float32
        assert block.activations.flags.c_contiguous
        assert block.backprops.flags.c_contiguous
        np.testing.assert_allclose(block.backprops, factors.blocks[name].backprops, rtol=1e-3, atol=1e-4 * scale)
    outputs, pullback = net.vjp(params32, x.astype(np.float32))
    assert {value.dtype for value in pullback(outputs).values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_of_nets_by_finite_differences(loss: str, activation: str, parameterization: str, bias: Any) -> None:
    num_outputs = 1 if loss == "logistic" else 3

    @given(hidden=st.lists(st.integers(1, 4), max_size=2), seed=seeds)
    @settings(deadline=None, max_examples=3)
    def check(hidden: list[int], seed: int) -> None:
        net = nets.MLP([3, *hidden, num_outputs], activation, parameterization, 1.2, bias)
        params, x = random_case(net, seed)
        rng = np.random.default_rng(seed)
        targets = {
            "mse": rng.normal(size=(3, 3)),
            "logistic": np.array([1, -1, 1]),
            "cross_entropy": np.array([0, 2, 1]),
        }
        y = targets[loss]
        f, pullback = net.vjp(params, x)
        gradient = pullback(LOSSES[loss].value_and_gradient(f, y)[1])
        quotients = difference_quotients(lambda p: LOSSES[loss](net.forward(p, x), y), params)
        assert_close_in_norm(gradient, quotients, 1e-6)

    check()


@given(
    widths=widths,
    activation=st.sampled_from(["linear", "relu"]),
    parameterization=st.sampled_from(PARAMETERIZATIONS),
    seed=seeds,
    factor=st.floats(0.1, 3.0),
)
@settings(deadline=None, max_examples=40)
def test_nets_without_biases_are_homogeneous_of_degree_depth(
    widths: list[int], activation: str, parameterization: str, seed: int, factor: float
) -> None:
    net = nets.MLP(widths, activation, parameterization)
    assert net.homogeneity_degree == len(widths) - 1
    params, x = random_case(net, seed)
    scaled = {name: factor * value for name, value in params.items()}
    wanted = factor**net.homogeneity_degree * net.forward(params, x)
    np.testing.assert_allclose(net.forward(scaled, x), wanted, rtol=1e-10, atol=1e-12)


@given(net=nets_drawn, seed=seeds)
@settings(deadline=None, max_examples=60)
def test_homogeneity_degree_is_that_of_the_function(net: nets.MLP, seed: int) -> None:
    params, x = random_case(net, seed)
    doubled = net.forward({name: 2 * value for name, value in params.items()}, x)
    if net.homogeneity_degree is not None:
        wanted = 2.0**net.homogeneity_degree * net.forward(params, x)
        np.testing.assert_allclose(doubled, wanted, rtol=1e-10, atol=1e-12)


def test_homogeneity_degree_by_kind_of_net() -> None:
    assert nets.MLP([3, 4, 2], "relu", bias="hidden").homogeneity_degree == 2
    assert nets.MLP([3, 4, 2], "relu", bias=True).homogeneity_degree is None
    assert nets.MLP([3, 4, 4, 2], "relu", bias="hidden").homogeneity_degree is None
    assert nets.MLP([3, 4, 2], "tanh").homogeneity_degree is None
    assert nets.MLP([3, 2], "tanh", bias=True).homogeneity_degree == 1


def ntk(net: nets.MLP, params: dict[str, Any], x: np.ndarray) -> dict[str, np.ndarray]:
    kernel = {}
    for name, block in net.gradient_factors(params, x).blocks.items():
        flat = block.backprops.reshape(-1, block.backprops.shape[2])
        inputs = np.repeat(block.activations, net.num_outputs, axis=0)
        kernel[name] = block.scale * (inputs @ inputs.T) * (flat @ flat.T)
    return kernel


@given(widths=widths, activation=st.sampled_from(ACTIVATIONS), seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=40)
def test_parameterizations_agree_in_function_space_at_initialisation(
    widths: list[int], activation: str, seed: int
) -> None:
    """The same seed gives the same function, and layer kernels that differ by the squared multiplier alone."""
    standard, ntk_net, mup = (nets.MLP(widths, activation, kind, sigma=0.8) for kind in PARAMETERIZATIONS)
    x = np.random.default_rng(seed).normal(size=(4, widths[0]))
    p_standard, p_ntk, p_mup = (net.init(seed) for net in (standard, ntk_net, mup))
    np.testing.assert_allclose(ntk_net.forward(p_ntk, x), standard.forward(p_standard, x), rtol=1e-11, atol=1e-13)
    last = multipliers(mup, len(widths) - 2)[0]
    np.testing.assert_allclose(mup.forward(p_mup, x), last * standard.forward(p_standard, x), rtol=1e-11, atol=1e-13)
    k_standard, k_ntk, k_mup = ntk(standard, p_standard, x), ntk(ntk_net, p_ntk, x), ntk(mup, p_mup, x)
    for layer, name in enumerate(k_standard):
        np.testing.assert_allclose(k_ntk[name], k_standard[name] / widths[layer], rtol=1e-9, atol=1e-12)
        below = last**2 if layer < len(widths) - 2 else 1.0
        wanted = below * multipliers(mup, layer)[0] ** 2 * k_standard[name]
        np.testing.assert_allclose(k_mup[name], wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_applied_weights_start_with_variance_sigma_squared_over_fan_in(parameterization: str) -> None:
    net = nets.MLP([80, 120, 90, 100], "relu", parameterization, sigma=0.7)
    params = net.init(seed=3)
    for layer in range(3):
        weight = params[f"layer{layer + 1}.weight"]
        multiplier = multipliers(net, layer)[0]
        if parameterization == "mup" and layer == 2:
            multiplier = 1.0
        assert weight.shape == (net.widths[layer + 1], net.widths[layer])
        spread = np.std(multiplier * weight) * math.sqrt(net.widths[layer]) / 0.7
        assert spread == pytest.approx(1, abs=0.04)
        assert abs(np.mean(weight)) < 0.05 * np.std(weight)


def test_mup_training_moves_features_alike_at_every_width() -> None:
    """One SGD step at one learning rate changes hidden features by an amount that does not depend on the width."""
    changes = []
    for width in (64, 1024):
        net = nets.MLP([5, width, width, 1], "relu", "mup")
        params = net.init(seed=1)
        x = np.random.default_rng(0).normal(size=(8, 5))
        f, pullback = net.vjp(params, x)
        grads = pullback(np.ones_like(f) / 8)
        moved = {name: params[name] - 0.1 * grads[name] for name in params}
        before, after = (pre_activations(net, p, x)[1] for p in (params, moved))
        changes.append(np.sqrt(np.mean((after - before) ** 2)))
    assert 0.5 < changes[1] / changes[0] < 2


def test_init_depends_on_the_seed_alone() -> None:
    net = nets.MLP([4, 6, 2], bias=True)
    first, again, other = net.init(seed=5), net.init(seed=5), net.init(seed=6)
    single = net.init(seed=5, dtype=np.float32)
    for name, value in first.items():
        np.testing.assert_array_equal(value, again[name])
        np.testing.assert_array_equal(single[name], value.astype(np.float32))
        assert single[name].dtype == np.float32
        if name.endswith("bias"):
            assert not value.any()
        else:
            assert not np.array_equal(value, other[name])
    double, half = nets.MLP([4, 6, 2], sigma=2.0).init(5), nets.MLP([4, 6, 2], sigma=0.5).init(5)
    np.testing.assert_allclose(double["layer1.weight"], 4 * half["layer1.weight"])


@given(net=nets_drawn)
def test_config_rebuilds_the_net(net: nets.MLP) -> None:
    rebuilt = nets.from_config(net.config())
    assert rebuilt == net
    assert rebuilt.config() == net.config()
    params = net.init()
    assert net.num_parameters == sum(value.size for value in params.values())
    assert net.parameter_shapes == {name: value.shape for name, value in params.items()}
    assert net.layer_names == [f"layer{i + 1}" for i in range(net.depth)]
    assert net.layer_names == list(net.gradient_factors(params, np.ones((1, net.num_inputs))).blocks)


def test_inputs_may_be_read_only_and_strided() -> None:
    net = nets.MLP([3, 5, 2], "tanh")
    params = net.init()
    x = np.random.default_rng(0).normal(size=(8, 6))
    strided = x[::2, ::2]
    strided.flags.writeable = False
    copy = strided.copy()
    np.testing.assert_allclose(net.forward(params, strided), net.forward(params, copy), rtol=1e-12)
    _, pullback = net.vjp({name: np.asfortranarray(value) for name, value in params.items()}, strided)
    wanted = net.vjp(params, copy)[1](np.ones((4, 2)))
    for name, value in pullback(np.ones((4, 2))).items():
        np.testing.assert_allclose(value, wanted[name], rtol=1e-12)
    assert net.gradient_factors(params, strided).blocks["layer1"].activations.flags.c_contiguous


def test_passes_leave_their_arguments_alone() -> None:
    net = nets.MLP([3, 5, 4, 2], "linear", "mup", bias=True)
    params, x = net.init(), np.random.default_rng(0).normal(size=(4, 3))
    df = np.ones((4, 2))
    for array in (*params.values(), x, df):
        array.flags.writeable = False
    net.vjp(params, x)[1](df)
    net.gradient_factors(params, x)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"widths": 3}, TypeError, "widths must be a sequence"),
        ({"widths": "34"}, TypeError, "widths must be a sequence"),
        ({"widths": [3]}, ValueError, "widths must hold at least"),
        ({"widths": [3, 0, 1]}, ValueError, r"widths\[1\] must be at least 1"),
        ({"widths": [3, 2.5, 1]}, TypeError, r"widths\[1\] must be an integer"),
        ({"activation": "gelu"}, ValueError, "activation must be one of"),
        ({"parameterization": "sp"}, ValueError, "parameterization must be one of"),
        ({"sigma": -1.0}, ValueError, "sigma must be at least 0"),
        ({"sigma": math.nan}, ValueError, "sigma must be finite"),
        ({"bias": "output"}, ValueError, "bias must be True, False or 'hidden'"),
    ],
)
def test_bad_descriptions_are_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        nets.MLP(**{"widths": [3, 4, 1], **arguments})


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (3, TypeError, "config must be a mapping"),
        ({"widths": [1, 1]}, ValueError, r"config\['kind'\]"),
        ({"kind": "mlp"}, ValueError, "'widths'"),
        ({"kind": "mlp", "widths": [1, 1], "depth": 2}, ValueError, "'depth'"),
    ],
)
def test_bad_configs_are_refused(config: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        nets.from_config(config)


@pytest.mark.parametrize("method", ["forward", "vjp", "gradient_factors"])
def test_bad_inputs_are_refused(method: str) -> None:
    net = nets.MLP([3, 4, 1])
    params, x = net.init(), np.ones((2, 3))
    call = getattr(net, method)
    with pytest.raises(ValueError, match=r"x must have shape \(N, 3\) with N >= 1, got \(0, 3\)"):
        call(params, np.ones((0, 3)))
    with pytest.raises(ValueError, match=r"x must have shape \(N, 3\)"):
        call(params, np.ones((2, 4)))
    with pytest.raises(ValueError, match="x must have 2 dimension"):
        call(params, np.ones(3))
    with pytest.raises(TypeError, match="x is float32"):
        call(params, x.astype(np.float32))
    with pytest.raises(TypeError, match="x must be float32 or float64"):
        call(params, x.astype(np.float16))
    with pytest.raises(ValueError, match=r"x must be finite, got nan at index \(1, 2\)"):
        call(params, np.array([[1, 1, 1], [1, 1, np.nan]]))
    with pytest.raises(TypeError, match="params must be a dict"):
        call(None, x)
    with pytest.raises(ValueError, match=r"'layer2\.weight' is missing"):
        call({"layer1.weight": params["layer1.weight"]}, x)
    with pytest.raises(ValueError, match=r"got 'layer1\.bias' as well"):
        call({**params, "layer1.bias": np.zeros(4)}, x)
    with pytest.raises(
        ValueError, match=r"params\['layer1.weight'\] must be an array of shape \(4, 3\), got shape \(3, 4\)"
    ):
        call({**params, "layer1.weight": params["layer1.weight"].T}, x)
    with pytest.raises(ValueError, match=r"params\['layer1.weight'\] must be an array of shape .* got float"):
        call({**params, "layer1.weight": 1.0}, x)
    with pytest.raises(TypeError, match=r"params\['layer2.weight'\] is float32"):
        call({**params, "layer2.weight": params["layer2.weight"].astype(np.float32)}, x)
    net_output = net.forward(params, np.full((1, 3), np.nan), check_finite=False)
    assert np.isnan(net_output).all()


def test_bad_cotangents_are_refused() -> None:
    net = nets.MLP([3, 4, 2])
    _, pullback = net.vjp(net.init(), np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"df must have the shape \(2, 2\)"):
        pullback(np.ones((2, 1)))
    with pytest.raises(TypeError, match="df must be float64"):
        pullback(np.ones((2, 2), dtype=np.float32))


def test_bad_initialisations_are_refused() -> None:
    net = nets.MLP([3, 4, 2])
    with pytest.raises(ValueError, match="seed must be at least 0"):
        net.init(seed=-1)
    with pytest.raises(TypeError, match="seed must be an integer"):
        net.init(seed=0.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="dtype must be float32 or float64, got float16"):
        net.init(dtype=np.float16)
    with pytest.raises(ValueError, match="device must be one of"):
        net.init(device="gpu")  # type: ignore[arg-type]


def test_a_missing_gpu_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(BackendError, match="device='cuda' needs CuPy"):
        nets.MLP([3, 4, 2]).init(device="cuda")


def test_a_missing_device_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def asarray(array: Any) -> Any:
        raise RuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")

    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(asarray=asarray))
    with pytest.raises(BackendError, match=r"device='cuda' found no usable CUDA device: cudaErrorNoDevice"):
        nets.MLP([3, 4, 2]).init(device="cuda")
