"""The layers that a convolutional network is described by."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernelgrowth._backend.checks import check_choice, check_integer

__all__ = ["LAYERS", "AveragePool", "Conv", "Dense", "Flatten", "GlobalAveragePool", "LayerKind", "layer_from_config"]


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
    """

    channels: int
    kernel: int | tuple[int, int] = 3
    stride: int | tuple[int, int] = 1
    padding: int | tuple[int, int] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", check_integer("channels", self.channels, minimum=1))
        kernel = _pair("kernel", self.kernel, 1)
        padding = (kernel[0] // 2, kernel[1] // 2) if self.padding is None else self.padding
        object.__setattr__(self, "kernel", kernel)
        object.__setattr__(self, "stride", _pair("stride", self.stride, 1))
        object.__setattr__(self, "padding", _pair("padding", padding, 0))


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
    """

    width: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "width", check_integer("width", self.width, minimum=1))


LayerKind = Conv | AveragePool | GlobalAveragePool | Flatten | Dense

LAYERS: dict[str, type[LayerKind]] = {
    "conv": Conv,
    "average_pool": AveragePool,
    "global_average_pool": GlobalAveragePool,
    "flatten": Flatten,
    "dense": Dense,
}
"""Every layer by the name it has in a configuration."""


def layer_to_config(layer: LayerKind) -> dict[str, Any]:
    """Return a JSON-able description; `layer_from_config` rebuilds the layer from it."""
    kind = next(name for name, kind in LAYERS.items() if type(layer) is kind)
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(layer).items()}
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
    try:
        return kind(**options)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None


def _pair(name: str, value: Any, minimum: int) -> tuple[int, int]:
    """Return (height, width) of a pair or of one number for both."""
    if isinstance(value, tuple | list | np.ndarray):
        if len(value) != 2:
            raise ValueError(f"{name} must be an integer or (height, width), got {value!r}")
        height, width = (check_integer(f"{name}[{i}]", item, minimum=minimum) for i, item in enumerate(value))
        return height, width
    number = check_integer(name, value, minimum=minimum)
    return number, number
