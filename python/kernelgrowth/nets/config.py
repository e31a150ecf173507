"""Networks from their JSON-able descriptions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kernelgrowth._backend.checks import check_choice
from kernelgrowth.nets.cnn import CNN
from kernelgrowth.nets.layers import layers_from_config
from kernelgrowth.nets.mlp import MLP
from kernelgrowth.nets.wide_resnet import WideResNet

__all__ = ["from_config"]

_COMMON = ("activation", "parameterization", "sigma", "bias")


def from_config(config: Mapping[str, Any]) -> MLP | CNN | WideResNet:
    """Rebuild a network from what its `config()` returned.

    Raises
    ------
    TypeError, ValueError
        If `config` is no mapping, of an unknown kind, or holds a key or value that the network does not take.
    """
    if not isinstance(config, Mapping):
        raise TypeError(f"config must be a mapping, got {type(config).__name__}")
    options = dict(config)
    kind = check_choice("config['kind']", options.pop("kind", None), tuple(_KINDS))
    build, needed, optional = _KINDS[kind]
    known = (*needed, *optional, *_COMMON)
    for key in options:
        if key not in known:
            raise ValueError(f"config must hold only {', '.join(map(repr, known))} and 'kind', got {key!r} as well")
    for key in needed:
        if key not in options:
            raise ValueError(f"config must hold {key!r}")
    return build(**options)


def _cnn(*, layers: Any, **options: Any) -> CNN:
    return CNN(layers=layers_from_config("config['layers']", layers), **options)


# How a network is built, the keys that it needs, and those that it alone takes beside them.
_KINDS: dict[str, tuple[Callable[..., MLP | CNN | WideResNet], tuple[str, ...], tuple[str, ...]]] = {
    "mlp": (MLP, ("widths",), ()),
    "cnn": (_cnn, ("input_shape", "layers"), ()),
    "wide_resnet": (WideResNet, ("input_shape", "outputs"), ("widening", "blocks", "first_sigma")),
}
