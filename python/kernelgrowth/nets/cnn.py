"""Convolutional networks, described by the list of their layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from kernelgrowth.nets.convolutional import Convolutional
from kernelgrowth.nets.graph import Graph
from kernelgrowth.nets.layers import LayerKind, layer_to_config

__all__ = ["CNN"]


@dataclass(frozen=True)
class CNN(Convolutional):
    """A convolutional network, with the same nonlinearity after every layer with weights but the last.

    Parameters
    ----------
    input_shape : (C_in, H, W) or (H, W)
        Of an example; (H, W) has one channel.
    layers : sequence of Conv, AveragePool, GlobalAveragePool, Flatten, Dense, Residual
        From `kernelgrowth.nets`, in the order of the forward pass: at least one with weights, and a vector at the end.
        `Residual` says what skip connections do to the rule above.
    activation : {"relu", "linear", "tanh", "erf"}
        φ, the same in every hidden layer.
    parameterization : {"standard", "ntk", "mup"}
        Multipliers and initial variances, see `kernelgrowth.nets.PARAMETERIZATIONS`; a convolution's fan_in is
        C_in·kh·kw.
    sigma : float
        Scale of the weights at initialisation, at least 0: every weight is proportional to it, but of layers with a
        `sigma` of their own.
    bias : bool or "hidden"
        Trained biases nowhere, in every layer, or in every layer but the last (all that are followed by another one
        with weights). They start at 0.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is of the wrong type or out of range, or the layer that does not fit what comes before.

    Notes
    -----
    Parameters are a dict ``{"conv1.weight": (C_out, C_in, kh, kw), "conv1.bias": (C_out,), ..., "dense1.weight":
    (d_out, d_in), ...}`` of NumPy or CuPy arrays of one dtype, float32 or float64; each kind of layer counts from 1, in
    the order of `layers`, a block's shortcut ("shortcut1") after the block's layers.
    Inputs are images (N, C_in, H, W), or rows (N, C_in·H·W) in that order, of the same kind and dtype; nothing is cast.

    A convolution's gradient block is a matrix (C_out, kh·kw·C_in) with columns in the order (row, column, channel);
    `block_matrix` brings an array of the weight's shape, such as a preconditioner, into that form.

    Examples
    --------
    >>> import kernelgrowth as kg
    >>> from kernelgrowth.nets import CNN, Conv, Dense, Flatten
    >>> net = CNN((3, 32, 32), [Conv(32), Conv(64, stride=2), Conv(64, stride=2), Flatten(), Dense(10)])
    >>> net.layer_names
    ['conv1', 'conv2', 'conv3', 'dense1']
    """

    input_shape: Sequence[int]
    layers: Sequence[LayerKind]
    activation: str = "relu"
    parameterization: str = "standard"
    sigma: float = 1.0
    bias: bool | Literal["hidden"] = False
    _graph: Graph = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._set_graph(self.layers)
        object.__setattr__(self, "layers", tuple(self.layers))

    def config(self) -> dict[str, Any]:
        """Return a JSON-able description; `kernelgrowth.nets.from_config` rebuilds the net from it."""
        return {
            "kind": "cnn",
            "input_shape": list(self.input_shape),
            "layers": [layer_to_config(layer) for layer in self.layers],
            "activation": self.activation,
            "parameterization": self.parameterization,
            "sigma": self.sigma,
            "bias": self.bias,
        }
