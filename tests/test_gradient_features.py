from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelgrowth.gradients import GradientFeatures, OuterProduct, Rows, from_net
from kernelgrowth.nets import CNN, MLP, AveragePool, Conv, Dense, Flatten, layered
from strategies import cases

ones = np.ones


@pytest.mark.parametrize(
    ("activations", "backprops", "shape"),
    [
        ((4, 3), (4, 5), (4, 1, 1, 5)),
        ((4, 3), (4, 2, 5), (4, 2, 1, 5)),
        ((4, 3), (4, 2, 1, 5), (4, 2, 1, 5)),
        ((4, 1, 3), (4, 2, 5), (4, 2, 1, 5)),
        ((4, 7, 3), (4, 7, 5), (4, 1, 7, 5)),
        ((4, 7, 3), (4, 2, 7, 5), (4, 2, 7, 5)),
        ((4, 7, 3), (4, 7, 7, 5), (4, 7, 7, 5)),
    ],
)
def test_shapes_are_read_from_the_activations(activations, backprops, shape):
    block = OuterProduct(ones(activations), ones(backprops))
    assert block.backprops.shape == shape
    assert block.activations.shape == (4, shape[2], 3)
    assert (block.num_examples, block.num_outputs, block.num_positions) == shape[:3]
    assert block.num_parameters == 15
    assert OuterProduct(ones(activations), ones(backprops), bias=True).num_parameters == 20


@pytest.mark.parametrize(
    ("activations", "backprops", "match"),
    [
        ((4, 7, 3), (4, 5), r"backprops of shape \(4, 5\) lack positions"),
        ((4, 7, 3), (4, 2, 5), "which outputs and positions they hold cannot be told"),
        ((4, 7, 3), (4, 2, 6, 5), r"backprops must be \(N, C, T, d_out\) with the T = 7"),
        ((4, 3), (5, 3), "backprops must have the 4 examples of activations"),
        ((4, 3), (4,), r"backprops must have 2 or 3 or 4 dimension\(s\)"),
        ((4, 3, 1, 1), (4, 3), r"activations must have 2 or 3 dimension\(s\)"),
        ((0, 3), (0, 2), "activations must not be empty"),
        ((4, 0), (4, 2), "activations must not be empty"),
        ((4, 3), (4, 0, 2), "backprops must not be empty"),
        ((4, 3), (4, 0), "backprops must not be empty"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(activations, backprops, match):
    with pytest.raises(ValueError, match=match):
        OuterProduct(ones(activations), ones(backprops))


@pytest.mark.parametrize("bias", [np.ones(5), "no", None])
def test_a_bias_is_there_or_not(bias):
    with pytest.raises(TypeError, match="bias must be True or False, got"):
        OuterProduct(np.ones((2, 3)), np.ones((2, 5)), bias=bias)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_values_are_refused_with_their_place(value):
    array = ones((4, 3))
    array[2, 1] = value
    place = r"got (nan|inf|-inf) at index \(2, 1\) \(1 such value"
    with pytest.raises(ValueError, match="activations must be finite, " + place):
        OuterProduct(array, ones((4, 2)))
    with pytest.raises(ValueError, match="backprops must be finite"):
        OuterProduct(ones((4, 2)), array)
    with pytest.raises(ValueError, match="rows must be finite"):
        Rows(array)
    assert Rows(array, check_finite=False).num_parameters == 3


def test_large_finite_values_are_taken():
    assert Rows(np.full((3, 4), np.finfo(np.float64).max)).num_examples == 3


def test_dtypes():
    with pytest.raises(TypeError, match="backprops must be float32 like the other arrays, got float64"):
        OuterProduct(ones((4, 3), np.float32), ones((4, 2)))
    for dtype in (np.float16, np.longdouble, np.complex128, ">f8"):
        with pytest.raises(TypeError, match=r"rows must be (float32 or float64|an array of real numbers)"):
            Rows(ones((4, 3), dtype))
    assert Rows(ones((4, 3), np.int32)).dtype == np.float64
    assert Rows([[1, 2], [3, 4]]).rows.shape == (2, 1, 2)
    with pytest.raises(ValueError, match="rows is not a rectangular array"):
        Rows([[1, 2], [3]])
    with pytest.raises(TypeError, match="rows must be an array of real numbers, got str"):
        Rows("gradients")


@pytest.mark.parametrize("scale", [1e39, 1e-50])
def test_scales_that_the_dtype_cannot_hold(scale):
    assert Rows(ones((2, 2)), scale=scale).scale == scale
    with pytest.raises(ValueError, match="scale must be a number that float32 can hold"):
        Rows(ones((2, 2), np.float32), scale=scale)


@pytest.mark.parametrize("scale", [-1.0, np.nan, np.inf])
def test_scales(scale):
    with pytest.raises(ValueError, match="scale must be"):
        Rows(ones((2, 2)), scale=scale)
    with pytest.raises(ValueError, match="scale must be"):
        OuterProduct(ones((2, 2)), ones((2, 2)), scale=scale)


def test_blocks_must_agree():
    good = Rows(ones((4, 2, 3)))
    with pytest.raises(TypeError, match="blocks must map names to OuterProduct or Rows, got list"):
        GradientFeatures([good])
    with pytest.raises(ValueError, match="at least one block"):
        GradientFeatures({})
    with pytest.raises(TypeError, match=r"blocks\['b'\] must be an OuterProduct, Embedding or Rows, got ndarray"):
        GradientFeatures({"a": good, "b": ones((4, 2))})
    with pytest.raises(ValueError, match=r"blocks\['b'\] has N = 5, C = 2 but blocks\['a'\] has N = 4, C = 2"):
        GradientFeatures({"a": good, "b": Rows(ones((5, 2, 3)))})
    with pytest.raises(ValueError, match=r"blocks\['b'\] has N = 4, C = 1"):
        GradientFeatures({"a": good, "b": Rows(ones((4, 3)))})
    with pytest.raises(TypeError, match=r"blocks\['b'\] is float32 but blocks\['a'\] is float64"):
        GradientFeatures({"a": good, "b": Rows(ones((4, 2, 3), np.float32))})
    with pytest.raises(ValueError, match=r"predictions must have shape \(4, 2\)"):
        GradientFeatures({"a": good}, predictions=ones((4, 3)))


@settings(max_examples=20)
@given(cases(max_examples=9, max_length=9, max_positions=3))
def test_a_mapping_from_names_to_blocks_that_prints_what_it_holds(case):
    features = case.features[0]
    assert list(features) == list(case.blocks[0])
    assert len(features) == len(case.blocks[0])
    assert features.num_parameters == sum(block.num_parameters for block in features.values())
    text = repr(features)
    assert all(f"{name}: {type(features[name]).__name__}(" in text for name in features)
    assert f"C={features.num_outputs}" in text


@settings(max_examples=25)
@given(
    st.sampled_from(["linear", "relu", "tanh", "erf"]),
    st.sampled_from(["standard", "ntk", "mup"]),
    st.sampled_from([False, True, "hidden"]),
    st.integers(0, 1000),
)
def test_from_net_expands_to_the_derivatives_of_the_network(activation, parameterization, bias, seed):
    import reference

    net = MLP(widths=[3, 4, 5, 2], activation=activation, parameterization=parameterization, bias=bias)
    params = {
        name: value + (0.1 if value.ndim == 1 else 0.0) for name, value in net.init(seed=seed, dtype=np.float64).items()
    }
    x = np.random.default_rng(seed).normal(size=(6, 3))
    features = from_net(net, params, x)
    np.testing.assert_array_equal(features.predictions, net.forward(params, x))
    _, pullback = net.vjp(params, x)
    for c in range(2):
        for n in range(6):
            seed_gradient = np.zeros((6, 2))
            seed_gradient[n, c] = 1.0
            gradients = pullback(seed_gradient)
            for name, block in features.items():
                expanded = reference.expand(
                    {"A": block.activations, "D": block.backprops, "bias": block.bias, "scale": block.scale}
                )[n, c]
                expected = [gradients[f"{name}.weight"].ravel()]
                expected += [gradients[f"{name}.bias"]] if block.bias else []
                np.testing.assert_allclose(expanded, np.concatenate(expected), rtol=1e-10, atol=1e-12)


@settings(max_examples=60)
@given(
    st.sampled_from(["linear", "relu", "tanh", "erf"]),
    st.sampled_from(["standard", "ntk", "mup"]),
    st.booleans(),
    st.booleans(),
    st.floats(-10, 40),
    st.floats(-10, 40),
    st.integers(0, 1000),
)
def test_networks_say_finite_only_of_finite_factors(activation, parameterization, bias, image, size, inputs, seed):
    """Powers of ten around the largest float32, so that some sweeps overflow and some do not."""
    layers = [Conv(3), AveragePool(2, (1, 2)), Conv(2), Flatten(), Dense(2)]
    net = (
        CNN((2, 4, 4), layers, activation, parameterization, bias=bias)
        if image
        else MLP([32, 5, 4, 2], activation, parameterization, bias=bias)
    )
    with np.errstate(all="ignore"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(layered, "_FEW", 0)
        params = {
            name: (value + (value.ndim == 1)) * np.float32(10) ** np.float32(size if value.ndim == 1 else size / 2)
            for name, value in net.init(seed=seed, dtype=np.float32).items()
        }
        x = np.random.default_rng(seed).standard_normal((3, 32), dtype=np.float32) * np.float32(10) ** np.float32(
            inputs
        )
        x = np.nan_to_num(x)
        factors = net.gradient_factors(params, x)
        arrays = [array for block in factors.blocks.values() for array in (block.activations, block.backprops)]
        finite = all(np.isfinite(array).all() for array in arrays)
        if factors.finite:
            assert finite
            assert np.isfinite(factors.predictions).all()
        if max(size, inputs) < 4:
            assert factors.finite
        if finite:
            assert from_net(net, params, x).num_examples == 3
        else:
            with pytest.raises(ValueError, match="must be finite"):
                from_net(net, params, x)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_inside_a_network_is_refused(value):
    """ReLU would hide minus infinity from the predictions."""
    net = MLP([3, 4, 2])
    params = net.init(seed=0)
    params["layer1.weight"][1, 2] = value
    with pytest.raises(ValueError, match="activations must be finite"), np.errstate(all="ignore"):
        from_net(net, params, np.full((5, 3), -1.0 if value < 0 else 1.0))


def test_a_part_of_the_examples_is_a_view():
    rng = np.random.default_rng(0)
    features = GradientFeatures(
        {
            "w": OuterProduct(rng.normal(size=(6, 3)), rng.normal(size=(6, 2, 4)), bias=True),
            "g": Rows(rng.normal(size=(6, 2, 5))),
        },
        predictions=rng.normal(size=(6, 2)),
    )
    part = features.examples(1, 4)
    assert (part.num_examples, part.num_outputs, part.num_parameters) == (3, 2, features.num_parameters)
    assert np.shares_memory(part["w"].backprops, features["w"].backprops)
    assert np.array_equal(part["g"].rows, features["g"].rows[1:4])
    assert np.array_equal(part.predictions, features.predictions[1:4])
