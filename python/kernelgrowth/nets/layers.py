"""The layers that a convolutional network is described by."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernelgrowth._backend.checks import check_choice, check_integer, check_number

__all__ = [
    "LAYERS",
    "AveragePool",
    "Conv",
    "Dense",
    "Flatten",
    "GlobalAveragePool",
    "LayerKind",
    "PlainLayer",
    "Residual",
    "check_layers",
    "check_weights",
    "layer_from_config",
    "layer_to_config",
    "layers_from_config",
]


@dataclass(frozen=True)
class Conv:
    """A convolution (as everywhere in the field, a cross-correlation) of an image.

    Parameters
    ----------
    channels : int
        Output channels, at least 1.
    kernel, stride : int or (int, int)
        The window's size and its steps, (height, width) or one number for both, at least 1.
    padding : int or (int, int), optional
        Rows of zeros above and below, and columns left and right. By default half the kernel, rounded down, with which
        an odd kernel of stride 1 keeps the image's size.
    sigma : float, optional
        Scale of this layer's weights at initialisation, at least 0; by default the network's.
    """

    channels: int
    kernel: int | tuple[int, int] = 3
    stride: int | tuple[int, int] = 1
    padding: int | tuple[int, int] | None = None
    sigma: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", check_integer("channels", self.channels, minimum=1))
        kernel = _pair("kernel", self.kernel, 1)
        padding = (kernel[0] // 2, kernel[1] // 2) if self.padding is None else self.padding
        object.__setattr__(self, "kernel", kernel)
        object.__setattr__(self, "stride", _pair("stride", self.stride, 1))
        object.__setattr__(self, "padding", _pair("padding", padding, 0))
        _check_sigma(self)


@dataclass(frozen=True)
class AveragePool:
    """The mean over a moving window; where it would reach beyond the image's last row or column it does not stand.

    Parameters
    ----------
    size : int or (int, int)
        Of the window, (height, width) or one number for both, at least 1.
    stride : int or (int, int), optional
        Its steps; by default its size.
    """

    size: int | tuple[int, int] = 2
    stride: int | tuple[int, int] | None = None

    def __post_init__(self) -> None:
        size = _pair("size", self.size, 1)
        object.__setattr__(self, "size", size)
        object.__setattr__(self, "stride", size if self.stride is None else _pair("stride", self.stride, 1))


@dataclass(frozen=True)
class GlobalAveragePool:
    """The mean over all pixels: an image becomes the vector of its channels' means."""


@dataclass(frozen=True)
class Flatten:
    """An image becomes a vector, in the order (channel, row, column)."""


@dataclass(frozen=True)
class Dense:
    """A fully connected layer on a vector, which `Flatten` or `GlobalAveragePool` make of an image.

    Parameters
    ----------
    width : int
        Outputs, at least 1.
    sigma : float, optional
        Scale of this layer's weights at initialisation, at least 0; by default the network's.
    """

    width: int
    sigma: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "width", check_integer("width", self.width, minimum=1))
        _check_sigma(self)


@dataclass(frozen=True)
class Residual:
    """A block whose layers' output is added to its input: z becomes S z + layers(φ(z)).

    It is of the pre-activation kind (He et al. 2016). What comes directly from a `Conv`, `Dense` or `Residual` reaches
    the block as z, without the nonlinearity, which stands at the head of its layers instead; the sum is treated like
    the output of a layer with weights. Where a pool or nothing lies before the block, its layers see what comes as it
    is. Inside, the nonlinearity stands after every layer with weights but the last, as in the network itself.

    Parameters
    ----------
    layers : sequence of layers
        At least one with weights among them; `Residual` is allowed.
    shortcut : Conv or Dense, optional
        S, a layer without nonlinearity, such as ``Conv(channels, 1, stride)``; by default the identity, which `layers`
        that keep the shape need.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is no layer, or holds none with weights. Whether shapes fit is found out when a network
        is made.
    """

    layers: Sequence[LayerKind]
    shortcut: Conv | Dense | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", check_layers(self.layers))
        check_weights(self.layers)
        if not isinstance(self.shortcut, Conv | Dense | None):
            raise TypeError(f"shortcut must be Conv, Dense or None, got {self.shortcut!r}")


PlainLayer = Conv | AveragePool | GlobalAveragePool | Flatten | Dense
LayerKind = PlainLayer | Residual

LAYERS: dict[str, type[LayerKind]] = {
    "conv": Conv,
    "average_pool": AveragePool,
    "global_average_pool": GlobalAveragePool,
    "flatten": Flatten,
    "dense": Dense,
    "residual": Residual,
}
"""Every layer by the name it has in a configuration."""


def check_layers(layers: Any) -> tuple[LayerKind, ...]:
    """Return layers as a tuple."""
    if not isinstance(layers, Sequence) or isinstance(layers, str | bytes):
        raise TypeError(f"layers must be a sequence of layers of kernelgrowth.nets, got {layers!r}")
    for i, layer in enumerate(layers):
        if not isinstance(layer, LayerKind):
            names = ", ".join(kind.__name__ for kind in LAYERS.values())
            raise TypeError(f"layers[{i}] must be one of {names}, got {layer!r}")
    return tuple(layers)


def check_weights(layers: Sequence[LayerKind]) -> None:
    """Refuse layers without any weights."""
    if not any(isinstance(layer, Conv | Dense | Residual) for layer in layers):
        raise ValueError(f"layers must hold at least one Conv or Dense, got {list(layers)}")


def layer_to_config(layer: LayerKind) -> dict[str, Any]:
    """Return a JSON-able description; `layer_from_config` rebuilds the layer from it."""
    kind = next(name for name, kind in LAYERS.items() if type(layer) is kind)
    if isinstance(layer, Residual):
        shortcut = None if layer.shortcut is None else layer_to_config(layer.shortcut)
        return {"kind": kind, "layers": [layer_to_config(inner) for inner in layer.layers], "shortcut": shortcut}
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(layer).items()}
    if values.get("sigma", 0) is None:
        del values["sigma"]
    return {"kind": kind, **values}


def layer_from_config(name: str, config: Any) -> LayerKind:
    """Rebuild a layer; messages call the description `name`."""
    if not isinstance(config, Mapping):
        raise TypeError(f"{name} must be a mapping, got {type(config).__name__}")
    options = dict(config)
    kind = LAYERS[check_choice(f"{name}['kind']", options.pop("kind", None), tuple(LAYERS))]
    known = [item.name for item in dataclasses.fields(kind)]
    for key in options:
        if key not in known:
            raise ValueError(f"{name} must hold only {', '.join(map(repr, ['kind', *known]))}, got {key!r} as well")
    for item in dataclasses.fields(kind):
        if item.default is dataclasses.MISSING and item.name not in options:
            raise ValueError(f"{name} must hold {item.name!r}")
    if kind is Residual:
        options["layers"] = layers_from_config(f"{name}['layers']", options["layers"])
        if options.get("shortcut") is not None:
            options["shortcut"] = layer_from_config(f"{name}['shortcut']", options["shortcut"])
    try:
        return kind(**options)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None


def layers_from_config(name: str, config: Any) -> list[LayerKind]:
    """Rebuild layers; messages call their descriptions `name`."""
    if not isinstance(config, list | tuple):
        raise TypeError(f"{name} must be a list, got {type(config).__name__}")
    return [layer_from_config(f"{name}[{i}]", item) for i, item in enumerate(config)]


def _check_sigma(layer: Conv | Dense) -> None:
    if layer.sigma is not None:
        object.__setattr__(layer, "sigma", check_number("sigma", layer.sigma, minimum=0))


def _pair(name: str, value: Any, minimum: int) -> tuple[int, int]:
    """Return (height, width) of a pair or of one number for both."""
    if isinstance(value, tuple | list | np.ndarray):
        if len(value) != 2:
            raise ValueError(f"{name} must be an integer or (height, width), got {value!r}")
        height, width = (check_integer(f"{name}[{i}]", item, minimum=minimum) for i, item in enumerate(value))
        return height, width
    number = check_integer(name, value, minimum=minimum)
    return number, number
