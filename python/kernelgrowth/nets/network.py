"""What training asks of a network, whoever wrote it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

__all__ = ["Network"]


@runtime_checkable
class Network(Protocol):
    """A function f(params, x) with (N, C) outputs, its gradient, and a description that rebuilds it.

    Parameters are a flat dict named ``"<layer>.<kind>"``; a layer is also the block of the tangent kernel.
    """

    @property
    def layer_names(self) -> list[str]:
        """Names of the layers, in the order of the forward pass."""

    @property
    def num_outputs(self) -> int:
        """C."""

    def config(self) -> dict[str, Any]:
        """JSON-able description of the network."""

    def forward(self, params: Mapping[str, Any], x: Any, *, check_finite: bool = True) -> Any:
        """Return the outputs (N, C)."""

    def vjp(
        self, params: Mapping[str, Any], x: Any, *, check_finite: bool = True
    ) -> tuple[Any, Callable[[Any], dict[str, Any]]]:
        """Return the outputs and the map from df (N, C) to the gradient of Σ df·f."""
