"""What tests of networks of convolutions share: gradients written out, and by finite differences."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kernelgrowth import nets

__all__ = ["assert_close_in_norm", "difference_quotients", "expanded_jacobian"]


def expanded_jacobian(net: Any, factors: nets.GradientFactors) -> dict[str, np.ndarray]:
    """Parameter name -> (N, C, *shape), from the factors' definition and the documented order of a block's columns."""
    jacobian = {}
    for name, block in factors.blocks.items():
        a, d = block.activations, block.backprops
        if a.ndim == 2:
            a, d = a[:, None], d[:, :, None]
        matrix = math.sqrt(block.scale) * np.einsum("ncto,nti->ncoi", d, a)
        shape = net.parameter_shapes[f"{name}.weight"]
        if len(shape) == 4:
            fan_out, channels, kh, kw = shape
            matrix = matrix.reshape(*matrix.shape[:2], fan_out, kh, kw, channels).transpose(0, 1, 2, 5, 3, 4)
        jacobian[f"{name}.weight"] = matrix
        if block.bias:
            jacobian[f"{name}.bias"] = math.sqrt(block.scale) * d.sum(2)
    return jacobian


def difference_quotients(net: Any, params: dict[str, Any], x: np.ndarray, step: float = 1e-5) -> dict[str, np.ndarray]:
    """Central differences of the outputs by every parameter entry: name -> (N, C, *shape)."""
    result = {}
    for name, value in params.items():
        columns = []
        for index in np.ndindex(value.shape):
            shift = np.zeros_like(value)
            shift[index] = step
            above, below = (net.forward({**params, name: value + sign * shift}, x) for sign in (1, -1))
            columns.append((above - below) / (2 * step))
        result[name] = np.stack(columns, axis=-1).reshape(*columns[0].shape, *value.shape)
    return result


def assert_close_in_norm(actual: dict[str, Any], wanted: dict[str, Any], relative: float) -> None:
    assert actual.keys() == wanted.keys()
    scale = math.sqrt(sum(float(np.sum(value**2)) for value in wanted.values()))
    for name, value in wanted.items():
        assert actual[name].shape == value.shape
        assert np.linalg.norm(actual[name] - value) <= relative * scale + 1e-12, name
