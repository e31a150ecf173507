"""What a layer does to the data of a convolutional network: linear maps of examples and their transposes.

One example is an image (H, W, C), channels last, or a vector (d,).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from kernelgrowth._backend.arrays import array_namespace
from kernelgrowth.nets.layers import AveragePool, Dense, Flatten, GlobalAveragePool, PlainLayer
from kernelgrowth.nets.windows import Window

__all__ = ["FixedStage", "Stage", "WeightStage", "make_stage"]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class FixedStage(ABC):
    """A linear map without parameters."""

    in_shape: Shape

    @property
    @abstractmethod
    def out_shape(self) -> Shape:
        """Shape of one example behind it."""

    @abstractmethod
    def forward(self, h: Any) -> Any:
        """(n, *in_shape) -> (n, *out_shape)."""

    @abstractmethod
    def backward(self, delta: Any) -> Any:
        """Return the transpose of `forward`: (n, *out_shape) -> (n, *in_shape), perhaps a read-only view."""


class _Flattening(FixedStage):
    @property
    def out_shape(self) -> Shape:
        return (math.prod(self.in_shape),)

    def forward(self, h: Any) -> Any:
        return h.transpose(0, 3, 1, 2).reshape(len(h), -1)

    def backward(self, delta: Any) -> Any:
        height, width, channels = self.in_shape
        return delta.reshape(-1, channels, height, width).transpose(0, 2, 3, 1)


@dataclass(frozen=True)
class _Averaging(FixedStage):
    window: Window

    @property
    def out_shape(self) -> Shape:
        return (*self.window.places(*self.in_shape[:2]), self.in_shape[2])

    def forward(self, h: Any) -> Any:
        return self.window.average(h)

    def backward(self, delta: Any) -> Any:
        return self.window.spread(delta, *self.in_shape[:2])


class _GlobalAveraging(FixedStage):
    @property
    def out_shape(self) -> Shape:
        return self.in_shape[2:]

    def forward(self, h: Any) -> Any:
        return h.mean(axis=(1, 2))

    def backward(self, delta: Any) -> Any:
        height, width, channels = self.in_shape
        share = (delta * (1 / (height * width)))[:, None, None, :]
        return array_namespace(delta).broadcast_to(share, (len(delta), height, width, channels))


@dataclass(frozen=True)
class WeightStage(ABC):
    """A map whose outputs at each of its positions are a matrix (d_out, d_in) times a column of its input."""

    prefix: ClassVar[str]
    in_shape: Shape
    weight_shape: Shape

    @property
    @abstractmethod
    def out_shape(self) -> Shape:
        """Shape of one example behind it."""

    @property
    def d_out(self) -> int:
        """Rows of the matrix."""
        return self.weight_shape[0]

    @property
    def d_in(self) -> int:
        """Columns of the matrix."""
        return math.prod(self.weight_shape[1:])

    @property
    def positions(self) -> int:
        """T."""
        return math.prod(self.out_shape) // self.d_out

    @abstractmethod
    def matrix(self, weight: Any) -> Any:
        """Return a weight as the matrix."""

    @abstractmethod
    def weight(self, matrix: Any) -> Any:
        """Return the matrix as a contiguous weight."""

    @abstractmethod
    def gather(self, h: Any, columns: Any) -> None:
        """Write the columns (n, T, d_in) of the inputs (n, *in_shape)."""

    @abstractmethod
    def scatter(self, columns: Any, h: Any) -> None:
        """Write the transpose of `gather` at `columns` to h (n, *in_shape)."""


@dataclass(frozen=True)
class _Convolving(WeightStage):
    """The columns are what the window shows, in the order (row, column, channel)."""

    prefix = "conv"
    window: Window

    @property
    def out_shape(self) -> Shape:
        return (*self.window.places(*self.in_shape[:2]), self.d_out)

    def matrix(self, weight: Any) -> Any:
        return weight.transpose(0, 2, 3, 1).reshape(self.d_out, self.d_in)

    def weight(self, matrix: Any) -> Any:
        channels, (height, width) = self.in_shape[2], self.window.kernel
        weight = matrix.reshape(self.d_out, height, width, channels).transpose(0, 3, 1, 2)
        return array_namespace(matrix).ascontiguousarray(weight)

    def gather(self, h: Any, columns: Any) -> None:
        self.window.im2col(h, columns)

    def scatter(self, columns: Any, h: Any) -> None:
        self.window.col2im(columns, h)


class _Connecting(WeightStage):
    prefix = "dense"

    @property
    def out_shape(self) -> Shape:
        return (self.d_out,)

    def matrix(self, weight: Any) -> Any:
        return weight

    def weight(self, matrix: Any) -> Any:
        return matrix

    def gather(self, h: Any, columns: Any) -> None:
        columns[:, 0] = h

    def scatter(self, columns: Any, h: Any) -> None:
        h[...] = columns[:, 0]


Stage = FixedStage | WeightStage


def make_stage(layer: PlainLayer, in_shape: Shape) -> Stage:
    """Return what `layer` does to examples of a shape; a ValueError says why it cannot."""
    if isinstance(layer, Dense):
        if len(in_shape) != 1:
            raise ValueError("Dense needs a vector, but an image comes: put Flatten or GlobalAveragePool before it")
        return _Connecting(in_shape, (layer.width, in_shape[0]))
    if len(in_shape) != 3:
        raise ValueError(f"{type(layer).__name__} needs an image, but a vector of {in_shape[0]} numbers comes")
    if isinstance(layer, Flatten):
        return _Flattening(in_shape)
    if isinstance(layer, GlobalAveragePool):
        return _GlobalAveraging(in_shape)
    if isinstance(layer, AveragePool):
        window = Window(kernel=layer.size, stride=layer.stride)  # type: ignore[arg-type]
    else:
        window = Window(layer.kernel, layer.stride, layer.padding)  # type: ignore[arg-type]
    if min(window.places(*in_shape[:2])) < 1:
        (rows, columns), (height, width) = window.kernel, in_shape[:2]
        raise ValueError(
            f"a window of {rows} x {columns} does not fit into {height} x {width} pixels with padding {window.padding}"
        )
    if isinstance(layer, AveragePool):
        return _Averaging(in_shape, window)
    return _Convolving(in_shape, (layer.channels, in_shape[2], *window.kernel), window)
