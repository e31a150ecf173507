"""Networks from their JSON-able descriptions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kernelgrowth._backend.checks import check_choice
from kernelgrowth.nets.cnn import CNN
from kernelgrowth.nets.layers import layer_from_config
from kernelgrowth.nets.mlp import MLP

__all__ = ["from_config"]

_COMMON = ("activation", "parameterization", "sigma", "bias")


def from_config(config: Mapping[str, Any]) -> MLP | CNN:
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
    build, needed = _KINDS[kind]
    known = (*needed, *_COMMON)
    for key in options:
        if key not in known:
            raise ValueError(f"config must hold only {', '.join(map(repr, known))} and 'kind', got {key!r} as well")
    for key in needed:
        if key not in options:
            raise ValueError(f"config must hold {key!r}")
    return build(**options)


def _cnn(*, layers: Any, **options: Any) -> CNN:
    if not isinstance(layers, list | tuple):
        raise TypeError(f"config['layers'] must be a list, got {type(layers).__name__}")
    return CNN(layers=[layer_from_config(f"config['layers'][{i}]", item) for i, item in enumerate(layers)], **options)


_KINDS: dict[str, tuple[Callable[..., MLP | CNN], tuple[str, ...]]] = {
    "mlp": (MLP, ("widths",)),
    "cnn": (_cnn, ("input_shape", "layers")),
}
