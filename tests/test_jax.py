"""Gradient features of JAX functions, against the contraction of Jacobians that JAX expands."""

from __future__ import annotations

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="JAX is not installed")

import jax.numpy as jnp  # noqa: E402

import kernelgrowth as kg  # noqa: E402
from kernelgrowth._backend.arrays import to_numpy  # noqa: E402
from kernelgrowth.gradients.jax import gradient_features  # noqa: E402


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    with jax.enable_x64(request.param == "float64"):
        yield request.param


def mlp(widths, dtype, seed=0):
    keys = jax.random.split(jax.random.PRNGKey(seed), len(widths))
    return [
        {"w": jax.random.normal(k, (i, o), dtype) / i**0.5, "b": 0.1 * jnp.ones(o, dtype)}
        for k, i, o in zip(keys, widths[:-1], widths[1:], strict=False)
    ]


def apply_mlp(params, x):
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return x @ params[-1]["w"] + params[-1]["b"]


def exact_kernel(apply_fn, params, x):
    with jax.default_matmul_precision("highest"):
        jacobian = jax.jacrev(lambda p: apply_fn(p, x).reshape(len(jax.tree_util.tree_leaves(x)[0]), -1))(params)
    rows = [np.asarray(j, np.float64).reshape(*j.shape[:2], -1) for j in jax.tree_util.tree_leaves(jacobian)]
    rows = np.concatenate(rows, axis=2)
    return np.einsum("ncp,mep->nmce", rows, rows)


def assert_same(kernel, exact, dtype):
    kernel = np.asarray(to_numpy(kernel))
    exact = exact[:, :, 0, 0] if exact.shape[2] == 1 else exact
    diagonal = np.einsum("nncc->nc", exact) if exact.ndim == 4 else np.diag(exact)
    scale = np.sqrt(np.einsum("nc,me->nmce", diagonal, diagonal) if exact.ndim == 4 else np.outer(diagonal, diagonal))
    assert np.max(np.abs(kernel - exact) / scale) < (1e-9 if dtype == "float64" else 1e-5)


@pytest.mark.parametrize("widths", [(5, 7, 1), (5, 4, 4, 3)])
def test_plain_functions(widths, dtype):
    params, x = mlp(widths, dtype), jax.random.normal(jax.random.PRNGKey(9), (6, 5), dtype)
    feats = gradient_features(apply_mlp, params, x)
    assert list(feats) == [f"{i}/{kind}" for i in range(len(widths) - 1) for kind in ("b", "w")]
    kernel = kg.empirical_ntk(feats)
    assert isinstance(kernel, jax.Array)
    assert_same(kernel, exact_kernel(apply_mlp, params, x), dtype)
    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(to_numpy(feats.predictions), apply_mlp(params, x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("chosen", [None, "tensorfloat32"])
def test_products_are_not_rounded_unless_that_was_chosen(chosen):
    seen = set()

    def apply_fn(params, x):
        seen.add(jax.config.jax_default_matmul_precision)
        return apply_mlp(params, x)

    with jax.default_matmul_precision(chosen):
        gradient_features(apply_fn, mlp((5, 4, 3), "float32"), jnp.ones((3, 5), jnp.float32))
    assert seen == {chosen or "highest"}


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_chunks_change_nothing_but_rounding(batch_size, dtype, monkeypatch):
    params, x = mlp((5, 4, 3), dtype), jax.random.normal(jax.random.PRNGKey(9), (6, 5), dtype)
    # So few numbers that every leaf is a group of its own.
    monkeypatch.setattr("kernelgrowth.gradients.jax._CHUNK_BYTES", 40)
    feats = gradient_features(apply_mlp, params, x, batch_size=batch_size)
    assert_same(kg.empirical_ntk(feats), exact_kernel(apply_mlp, params, x), dtype)
    assert_same(kg.empirical_ntk(gradient_features(apply_mlp, params, x)), exact_kernel(apply_mlp, params, x), dtype)


def test_token_ids_pytrees_and_tied_weights(dtype):
    def apply_fn(params, x):
        h = params["table"][x["ids"]].mean(1) * x["weight"][:, None] + params["count"]
        return jnp.tanh(h) @ params["table"].T

    key = jax.random.PRNGKey(0)
    params = {"table": jax.random.normal(key, (11, 4), dtype), "count": jnp.ones((), jnp.int32), "none": None}
    x = {"ids": jax.random.randint(key, (5, 6), 0, 11), "weight": jax.random.normal(key, (5,), dtype)}
    feats = gradient_features(apply_fn, params, x)
    assert list(feats) == ["table"]
    only = lambda p, x: apply_fn({**params, "table": p}, x)  # noqa: E731
    assert_same(kg.empirical_ntk(feats), exact_kernel(only, params["table"], x), dtype)


def test_outputs_and_preconditioner(dtype):
    params, x = mlp((5, 4, 3), dtype), jax.random.normal(jax.random.PRNGKey(9), (6, 5), dtype)
    total = kg.empirical_ntk(gradient_features(apply_mlp, params, x, outputs="sum_logits"))
    exact = exact_kernel(apply_mlp, params, x)
    np.testing.assert_allclose(total, exact.sum((2, 3)), rtol=1e-3, atol=1e-4)
    feats = gradient_features(apply_mlp, params, x, output=lambda y: y[:, 1])
    assert_same(kg.empirical_ntk(feats), exact[:, :, 1:2, 1:2], dtype)
    rates = {name: jnp.full(block.num_parameters, 4.0, dtype) for name, block in feats.items()}
    assert_same(kg.empirical_ntk(feats, preconditioner=rates), 4.0 * exact[:, :, 1:2, 1:2], dtype)


def test_flax_linen(dtype):
    linen = pytest.importorskip("flax.linen", reason="Flax is not installed")

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.Conv(4, (3, 3), param_dtype=dtype, dtype=dtype)(x)
            x = linen.LayerNorm(param_dtype=dtype, dtype=dtype)(jnp.tanh(x))
            return linen.Dense(3, param_dtype=dtype, dtype=dtype)(x.mean((1, 2)))

    x = jax.random.normal(jax.random.PRNGKey(1), (5, 6, 6, 2), dtype)
    model = Net()
    params = model.init(jax.random.PRNGKey(0), x)
    feats = gradient_features(model.apply, params, x)
    assert "params/Dense_0/kernel" in feats
    assert_same(kg.empirical_ntk(feats), exact_kernel(model.apply, params, x), dtype)


def test_flax_nnx(dtype):
    nnx = pytest.importorskip("flax.nnx", reason="Flax is not installed")
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0), param_dtype=dtype, dtype=dtype)
    graph, params = nnx.split(model, nnx.Param)

    def apply_fn(params, x):
        return nnx.merge(graph, params)(x)

    x = jax.random.normal(jax.random.PRNGKey(1), (5, 4), dtype)
    feats = gradient_features(apply_fn, params, x)
    assert feats.num_parameters == 15
    assert_same(kg.empirical_ntk(feats), exact_kernel(apply_fn, params, x), dtype)


def test_equinox(dtype):
    eqx = pytest.importorskip("equinox", reason="Equinox is not installed")
    model = eqx.nn.MLP(4, 3, 5, 2, key=jax.random.PRNGKey(0), dtype=dtype)
    params, rest = eqx.partition(model, eqx.is_inexact_array)

    def apply_fn(params, x):
        return jax.vmap(eqx.combine(params, rest))(x)

    x = jax.random.normal(jax.random.PRNGKey(1), (5, 4), dtype)
    feats = gradient_features(apply_fn, params, x)
    assert "layers/0/weight" in feats
    assert_same(kg.empirical_ntk(feats), exact_kernel(apply_fn, params, x), dtype)


def test_a_function_is_compiled_once():
    calls = []

    def counted(params, x):
        calls.append(x.shape)
        return apply_mlp(params, x)

    params, x = mlp((5, 4, 1), "float32"), jnp.ones((6, 5), "float32")
    gradient_features(counted, params, x, batch_size=4)
    first = len(calls)
    gradient_features(counted, mlp((5, 4, 1), "float32", seed=1), 2 * x, batch_size=4)
    assert len(calls) == first


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"apply_fn": 3}, TypeError, "apply_fn must be callable"),
        ({"output": 3}, TypeError, "output must be callable"),
        ({"outputs": "all"}, ValueError, "outputs must be one of"),
        ({"batch_size": 0}, ValueError, "batch_size must be"),
        ({"params": {}}, ValueError, "params must hold at least one floating array"),
        ({"params": {"w": 3.0}}, TypeError, r"params\['w'\] must be an array, got float"),
        ({"params": {"w": jnp.ones(3, jnp.bfloat16)}}, TypeError, r"params\['w'\] is bfloat16"),
        ({"x": jnp.ones((0, 5))}, ValueError, "x must hold arrays of the same N examples"),
        (
            {"x": {"a": jnp.ones((2, 5)), "b": jnp.ones((3, 5))}},
            ValueError,
            "x must hold arrays of the same N examples",
        ),
        ({"apply_fn": lambda p, x: jnp.ones((3, 2, 2))}, ValueError, "say by output="),
        ({"apply_fn": lambda p, x: {"y": x}}, ValueError, "got dict: say by output="),
        ({"apply_fn": lambda p, x: apply_mlp(p, x - x.mean(0))}, ValueError, "depends on the batch"),
        ({"memory_limit": 100}, kg.MemoryLimitError, "memory_limit is 100 B, which holds 0"),
        ({"apply_fn": lambda p, x: jnp.sqrt(apply_mlp(p, 0 * x) * 0)}, ValueError, "gradient of '0/b'.*must be finite"),
    ],
)
def test_refusals(change, error, message):
    arguments = {
        "apply_fn": apply_mlp,
        "params": mlp((5, 4, 2), "float32"),
        "x": jax.random.normal(jax.random.PRNGKey(0), (3, 5), "float32"),
    }
    arguments |= change
    with pytest.raises(error, match=message):
        gradient_features(**arguments)


def test_mixed_precision_is_refused():
    with jax.enable_x64(True):
        params = {"a": jnp.ones(3, "float32"), "b": jnp.ones(3, "float64")}
        with pytest.raises(TypeError, match=r"params\['b'\] is float64 but params\['a'\] is float32"):
            gradient_features(lambda p, x: x @ p["a"], params, jnp.ones((2, 3)))
        with pytest.raises(TypeError, match="apply_fn returns float64 but params are float32: convert x"):
            gradient_features(lambda p, x: x @ p["a"], {"a": params["a"]}, jnp.ones((2, 3), "float64"))
