"""Kernels of vectors rounded to bfloat16, on request."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

import reference
from kernelgrowth import BackendError
from kernelgrowth._backend import native
from kernelgrowth.gradients import GradientFeatures, OuterProduct
from kernelgrowth.kernels import empirical_ntk
from strategies import cases, modes

has_bf16 = native.has_bf16()


def features(dtype):
    rng = np.random.default_rng(0)
    return GradientFeatures({"w": OuterProduct(rng.normal(size=(9, 4)).astype(dtype), np.ones((9, 3), dtype))})


@pytest.mark.skipif(not has_bf16, reason="this processor does not multiply bfloat16")
@settings(max_examples=40)
@given(cases(max_positions=4, max_examples=60), modes)
def test_bfloat16_keeps_two_digits(case, outputs):
    if case.dtype is not np.float32:
        return
    kernel = empirical_ntk(*case.pair, outputs=outputs, precision="bf16")
    j1, j2 = (reference.jacobian(blocks) for blocks in case.block_pair)
    exact = reference.ntk(j1, j2, outputs)
    assert kernel.shape == exact.shape
    # Rounded activations and backprops of several positions may cancel in the gradient, which is their sum.
    positions = max(block["A"].shape[1] if "A" in block else 1 for block in case.blocks[0].values())
    scale = positions * reference.entry_scale(j1, j2, outputs) + 1e-3 * np.abs(exact).max()
    assert np.median(np.abs(kernel - exact) / np.where(scale > 0, scale, 1)) <= 1e-2
    assert np.array_equal(kernel, empirical_ntk(*case.pair, outputs=outputs, precision="bf16", num_threads=2))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_precision_of_the_features_is_the_default(dtype):
    assert np.array_equal(empirical_ntk(features(dtype)), empirical_ntk(features(dtype), precision=dtype))


def test_refusals_name_the_argument(monkeypatch):
    with pytest.raises(ValueError, match="precision must be one of"):
        empirical_ntk(features("float32"), precision="fp8")
    with pytest.raises(BackendError, match="precision='tf32' needs features on a GPU"):
        empirical_ntk(features("float32"), precision="tf32")
    with pytest.raises(ValueError, match="precision='float64' wants float64 features, got float32"):
        empirical_ntk(features("float32"), precision="float64")
    with pytest.raises(ValueError, match="precision='bf16' wants float32 features, got float64"):
        empirical_ntk(features("float64"), precision="bf16")
    monkeypatch.setattr(native, "has_bf16", lambda: False)
    with pytest.raises(BackendError, match="precision='bf16' needs a processor with AVX512_BF16"):
        empirical_ntk(features("float32"), precision="bf16")
