"""Checks of what `train` is given; every message names the argument."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from kernelgrowth._backend.arrays import array_namespace, as_array, float_dtype
from kernelgrowth._backend.checks import check_number
from kernelgrowth.nets.network import Network
from kernelgrowth.training.callbacks import Callback
from kernelgrowth.training.losses import Loss
from kernelgrowth.training.progress import ProgressCall, ProgressLine

__all__ = [
    "check_callbacks",
    "check_data",
    "check_gradients",
    "check_layer_lr",
    "check_lr_scale",
    "check_net",
    "check_params",
]

_CALLBACK_METHODS = ("on_start", "on_step", "on_end", "state_dict", "load_state_dict")


def check_net(net: Any) -> Network:
    """Return `net` if it has all that training asks of a network."""
    if not isinstance(net, Network):
        raise TypeError(f"net must be a network such as kernelgrowth.nets.MLP, got {type(net).__name__}")
    return net


def check_params(params: Any) -> dict[str, Any]:
    """Return the parameters as contiguous arrays, checked to be finite and of a floating dtype."""
    if not isinstance(params, Mapping):
        raise TypeError(f"params must be a dict of arrays as from net.init, got {type(params).__name__}")
    # The memory order decides which matrix product is called, and so the last bits: a restored array has this one.
    return {
        name: array_namespace(array).ascontiguousarray(as_array(f"params[{name!r}]", array))
        for name, array in params.items()
    }


def check_data(data: Any, net: Network, params: Mapping[str, Any], loss: Loss) -> tuple[Any, Any]:
    """Return inputs and prepared targets, checked against each other, the net and the loss."""
    if hasattr(data, "x") and hasattr(data, "y"):
        x, y = data.x, data.y
    elif isinstance(data, Sequence) and len(data) == 2:
        x, y = data
    else:
        raise TypeError(f"data must be (x, y) or an object with attributes x and y, got {type(data).__name__}")
    x = as_array("x", x)
    if x.ndim == 0 or len(x) == 0:
        raise ValueError(f"x must hold at least one example, got shape {x.shape}")
    x = array_namespace(x).ascontiguousarray(x)
    if params:
        name, first = next(iter(params.items()))
        array_namespace(x, first)
        float_dtype(**{f"params[{name!r}]": first, "x": x})
    # One example is enough for the net to refuse shapes and names that do not fit.
    with np.errstate(all="ignore"):
        net.forward(params, x[:1], check_finite=False)
    y = loss.prepare_targets(y, num_outputs=net.num_outputs, dtype=x.dtype)
    array_namespace(x, y)
    if len(y) != len(x):
        raise ValueError(f"y must hold one target for each of the {len(x)} examples in x, got {len(y)}")
    return x, array_namespace(y).ascontiguousarray(y)


def check_layer_lr(
    layer_lr: Mapping[str, float] | None, layers: Sequence[str], name: str = "layer_lr"
) -> dict[str, float]:
    """Return every layer's multiplier; messages call the argument `name`."""
    given = {} if layer_lr is None else layer_lr
    if not isinstance(given, Mapping):
        raise TypeError(f"{name} must map layer names to multipliers, got {type(given).__name__}")
    for layer in given:
        if layer not in layers:
            raise ValueError(f"{name} must name layers of the net ({', '.join(layers)}), got {layer!r}")
    return {layer: check_number(f"{name}[{layer!r}]", given.get(layer, 1.0), minimum=0) for layer in layers}


def check_gradients(grads: Any) -> None:
    """Check gradients by parameter: a mapping, not empty, to finite floating arrays."""
    if not isinstance(grads, Mapping) or not grads:
        raise TypeError(f"grads must be a dict of arrays, at least one, got {_described(grads)}")
    for name, array in grads.items():
        as_array(f"grads[{name!r}]", array)


def check_lr_scale(lr_scale: Mapping[str, float] | None, grads: Mapping[str, Any]) -> dict[str, float]:
    """Return the multipliers given, checked to be of layers that have a gradient."""
    return check_layer_lr(lr_scale, list(dict.fromkeys(name.rpartition(".")[0] for name in grads)), name="lr_scale")


def check_callbacks(callbacks: Any, progress: Any) -> list[Any]:
    """Return all callbacks as a list, the one that shows progress last."""
    if not isinstance(callbacks, Iterable):
        raise TypeError(f"callbacks must be an iterable of callbacks, got {type(callbacks).__name__}")
    every = list(callbacks)
    for callback in every:
        for method in _CALLBACK_METHODS:
            if not callable(getattr(callback, method, None)):
                raise TypeError(
                    f"callbacks must have the methods of {Callback.__name__}, got {type(callback).__name__} "
                    f"without {method}"
                )
    if progress is True:
        every.append(ProgressLine())
    elif callable(progress):
        every.append(ProgressCall(progress))
    elif progress is not False:
        raise TypeError(f"progress must be True, False or a function of the state, got {progress!r}")
    return every


def _described(value: Any) -> str:
    return "an empty one" if isinstance(value, Mapping) else type(value).__name__
