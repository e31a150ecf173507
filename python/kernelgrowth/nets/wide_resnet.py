"""Wide residual networks (Zagoruyko & Komodakis 2016) without normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from kernelgrowth._backend.checks import check_integer, check_number
from kernelgrowth.nets.convolutional import Convolutional
from kernelgrowth.nets.graph import Graph
from kernelgrowth.nets.layers import Conv, Dense, GlobalAveragePool, LayerKind, Residual

__all__ = ["WideResNet"]

_STEM = 16  # channels of the first convolution, and of the first group before it is widened
_STRIDES = (1, 2, 2)


@dataclass(frozen=True)
class WideResNet(Convolutional):
    """A wide residual network without normalisation: a convolution, three groups of residual blocks, a mean, an output.

    The first convolution has 16 channels; the groups have b blocks each, of 16k, 32k and 64k channels, and the second
    and the third halve the image. A block is z + W_2 φ(W_1 φ(z)), two 3 x 3 convolutions; where the shape changes, z
    goes through a 1 x 1 convolution. Behind the blocks stand φ, the mean over all pixels and a dense layer.

    Parameters
    ----------
    input_shape : (C_in, H, W) or (H, W)
        Of an example; (H, W) has one channel.
    outputs : int
        C, at least 1.
    widening : int
        k, at least 1.
    blocks : int
        b, residual blocks in each group, at least 1: there are 6b + 2 layers, shortcuts not counted.
    activation, parameterization, bias
        As for `CNN`.
    sigma : float
        Scale of the weights at initialisation, at least 0.
    first_sigma : float, optional
        That of the first convolution; by default `sigma`.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is of the wrong type or out of range.

    Notes
    -----
    It is the `CNN` with its `layers`, which is where to start from for a network that differs: the shortcuts, say, are
    3 x 3 convolutions in some codes, and see φ(z) in others. Layers are named "conv1", ..., "shortcut1", ..., "dense1".

    Ways through the network have different numbers of layers, so it is not homogeneous. Where σ is small, the shortest
    of them, through all shortcuts, outweighs the others.

    With k = 4, b = 1 and 32 x 32 images of three channels, an example takes 0.17 billion multiply-adds in the forward
    pass, and 7 MB of gradient factors in float32 where there is one output.

    Examples
    --------
    >>> from kernelgrowth.nets import WideResNet
    >>> net = WideResNet((3, 32, 32), 1, widening=4, sigma=0.3, first_sigma=6.0)
    >>> net.layer_names[:4]
    ['conv1', 'conv2', 'conv3', 'shortcut1']
    """

    input_shape: Sequence[int]
    outputs: int
    widening: int = 1
    blocks: int = 1
    activation: str = "relu"
    parameterization: str = "standard"
    sigma: float = 1.0
    first_sigma: float | None = None
    bias: bool | Literal["hidden"] = False
    _graph: Graph = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("outputs", "widening", "blocks"):
            object.__setattr__(self, name, check_integer(name, getattr(self, name), minimum=1))
        if self.first_sigma is not None:
            object.__setattr__(self, "first_sigma", check_number("first_sigma", self.first_sigma, minimum=0))
        self._set_graph(self.layers)

    @property
    def layers(self) -> tuple[LayerKind, ...]:
        """What `CNN` makes the same network of."""
        layers: list[LayerKind] = [Conv(_STEM, sigma=self.first_sigma)]
        channels = _STEM
        for group, group_stride in enumerate(_STRIDES):
            width = _STEM * 2**group * self.widening
            for block in range(self.blocks):
                stride = group_stride if block == 0 else 1
                same = channels == width and stride == 1
                shortcut = None if same else Conv(width, 1, stride)
                layers.append(Residual([Conv(width, stride=stride), Conv(width)], shortcut))
                channels = width
        return (*layers, GlobalAveragePool(), Dense(self.outputs))

    def config(self) -> dict[str, Any]:
        """Return a JSON-able description; `kernelgrowth.nets.from_config` rebuilds the net from it."""
        return {
            "kind": "wide_resnet",
            "input_shape": list(self.input_shape),
            "outputs": self.outputs,
            "widening": self.widening,
            "blocks": self.blocks,
            "activation": self.activation,
            "parameterization": self.parameterization,
            "sigma": self.sigma,
            "first_sigma": self.first_sigma,
            "bias": self.bias,
        }
