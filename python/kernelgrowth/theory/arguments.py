"""Checks of what the closed forms are given, and how their results go back; every message names the argument."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kernelgrowth._backend.arrays import FloatArray, array_namespace, as_array, float_dtype, is_cupy, like, to_numpy
from kernelgrowth._backend.checks import check_number

__all__ = [
    "LayerRates",
    "as_curve",
    "as_given",
    "check_direction",
    "check_flag",
    "check_inputs",
    "check_layer_rates",
    "check_targets",
    "check_teacher",
    "check_values",
]

LayerRates = Sequence[float] | Mapping[str, float]

# A direction may be off unit length by the rounding of float32, not by more.
_UNIT_TOLERANCE = 1e-5


def check_inputs(X: Any) -> Any:
    """Return the examples (N, D) as an array."""
    inputs = as_array("X", X, ndim=2)
    if 0 in inputs.shape:
        raise ValueError(f"X must have at least one example and one feature, got shape {inputs.shape}")
    return inputs


def check_direction(beta: Any, inputs: Any) -> Any:
    """Return a unit vector over the features of the inputs."""
    direction = as_array("beta", beta, ndim=1)
    float_dtype(X=inputs, beta=direction)
    xp = array_namespace(inputs, direction)
    if direction.shape[0] != inputs.shape[1]:
        raise ValueError(f"beta must have the {inputs.shape[1]} features of X, got shape {direction.shape}")
    length = float(xp.linalg.norm(direction))
    if abs(length - 1.0) > _UNIT_TOLERANCE:
        raise ValueError(f"beta must have length 1, got {length:g}: divide it by that and multiply s by it")
    return direction


def check_teacher(B: Any, inputs: Any) -> Any:
    """Return a linear map (C, D) of the inputs that is not zero."""
    teacher = as_array("B", B, ndim=2)
    float_dtype(X=inputs, B=teacher)
    array_namespace(inputs, teacher)
    if teacher.shape[0] == 0 or teacher.shape[1] != inputs.shape[1]:
        raise ValueError(f"B must have shape (C, {inputs.shape[1]}) with C >= 1, got {teacher.shape}")
    if not bool((teacher != 0).any()):
        raise ValueError("B must not be zero: nothing would be learnt")
    return teacher


def check_targets(y: Any, inputs: Any) -> Any:
    """Return the targets (N,) of the inputs."""
    targets = as_array("y", y, ndim=1)
    float_dtype(X=inputs, y=targets)
    array_namespace(inputs, targets)
    if targets.shape[0] != inputs.shape[0]:
        raise ValueError(f"y must have the {inputs.shape[0]} examples of X, got shape {targets.shape}")
    return targets


def check_values(name: str, values: Any, what: str, *, minimum: float, maximum: float = math.inf) -> FloatArray:
    """Return numbers of any shape as float64 on the host, all within [minimum, maximum]."""
    found = to_numpy(as_array(name, values)).astype(np.float64)
    if found.size == 0 or found.min() < minimum or found.max() > maximum:
        bounds = f">= {minimum:g}" if maximum == math.inf else f"between {minimum:g} and {maximum:g}"
        raise ValueError(f"{name} must hold at least one {what}, all {bounds}, got {values!r}")
    return found


def check_flag(name: str, value: Any) -> bool:
    """Return `value` if it is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def check_layer_rates(layer_lr: Any, depth: int) -> tuple[float, ...]:
    """Return the rates of the `depth` layers, input layer first; 1 for each when `layer_lr` is None."""
    if layer_lr is None:
        return (1.0,) * depth
    names = [f"layer{number}" for number in range(1, depth + 1)]
    if isinstance(layer_lr, Mapping):
        unknown = [name for name in layer_lr if name not in names]
        if unknown:
            raise ValueError(f"layer_lr must name layers among {names}, got {unknown[0]!r}")
        values = [layer_lr.get(name, 1.0) for name in names]
    else:
        if isinstance(layer_lr, (str, bytes, numbers.Number)) or not hasattr(layer_lr, "__iter__"):
            raise TypeError(f"layer_lr must be a sequence of {depth} rates or a mapping, got {layer_lr!r}")
        values = list(layer_lr)
        if len(values) != depth:
            raise ValueError(f"layer_lr must have one rate for each of the {depth} layers, got {len(values)}")
    return tuple(
        check_number(f"layer_lr of {name}", value, minimum=0.0, exclusive_minimum=True)
        for name, value in zip(names, values, strict=True)
    )


def as_given(result: Any, template: Any) -> Any:
    """Return a kernel as the kind of array that the examples were."""
    return result if is_cupy(result) else like(result, template)


def as_curve(values: FloatArray, template: Any) -> Any:
    """Return values on the host as the kind of array that their arguments were; a number for a number."""
    return values[()] if np.ndim(values) == 0 else like(values, template)
