"""Arrays by parameter, as a training loop has them, brought into the form of the tangent kernel's blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kernelgrowth._backend.arrays import as_array
from kernelgrowth.nets.network import Network

__all__ = ["by_block"]


def by_block(net: Network, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Return arrays by parameter (learning rates, a gradient, a step) by block of the network's gradient features.

    Parameters
    ----------
    net : Network
        Such as `kernelgrowth.nets.MLP` or `CNN`; one that has weights of other than two dimensions tells by
        ``block_matrix(layer, array)`` in which order a block holds them.
    arrays : mapping of str to array
        One for each of the network's parameters, of its shape, float32 or float64: names "<layer>.weight", and
        "<layer>.bias" where the layer has one.

    Returns
    -------
    dict of str to array or (array, array)
        Layer name -> (d_out, d_in), or a tuple of that and (d_out,) for a layer with bias: what `empirical_ntk` and
        `NTKOperator` take as `preconditioner`, and `gradients.jvp` as `tangent`. Arrays are not copied where a layer
        is dense.

    Raises
    ------
    TypeError
        If `arrays` is no mapping of floating arrays.
    ValueError
        If a layer has no weight among them, a name belongs to no layer, or a shape does not fit.
    """
    if not isinstance(arrays, Mapping):
        raise TypeError(f"arrays must map parameter names to arrays, got {type(arrays).__name__}")
    known = {f"{layer}.{kind}" for layer in net.layer_names for kind in ("weight", "bias")}
    for name in arrays:
        if name not in known:
            raise ValueError(f"arrays must hold weights and biases of {', '.join(net.layer_names)}, got {name!r}")
    blocks: dict[str, Any] = {}
    for layer in net.layer_names:
        if f"{layer}.weight" not in arrays:
            raise ValueError(f"arrays must hold a weight of every layer, but {f'{layer}.weight'!r} is missing")
        weight = _matrix(net, layer, as_array(f"arrays['{layer}.weight']", arrays[f"{layer}.weight"], finite=False))
        bias = arrays.get(f"{layer}.bias")
        if bias is None:
            blocks[layer] = weight
            continue
        bias = as_array(f"arrays['{layer}.bias']", bias, finite=False)
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"arrays['{layer}.bias'] must have shape {weight.shape[:1]}, got {bias.shape}")
        blocks[layer] = (weight, bias)
    return blocks


def _matrix(net: Network, layer: str, weight: Any) -> Any:
    block_matrix = getattr(net, "block_matrix", None)
    if block_matrix is not None:
        return block_matrix(layer, weight)
    if weight.ndim != 2:
        raise ValueError(
            f"arrays['{layer}.weight'] has shape {weight.shape}, and {type(net).__name__} has no block_matrix that "
            "would bring it into the order of its gradient block"
        )
    return weight
