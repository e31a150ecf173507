"""Optimizers: pure functions of parameters, gradients and a state of arrays, with one learning rate for each layer.

The learning rate of a layer is the optimizer's `lr` times the layer's entry in `lr_scale`, 1 where it has none; a layer
is named by what comes before the last dot of a parameter's name. Adam's steps are scaled, not its gradients.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from kernelgrowth._backend.arrays import array_namespace
from kernelgrowth._backend.checks import check_choice, check_number

__all__ = ["GD", "OPTIMIZERS", "Adam", "Momentum", "Optimizer", "from_config"]


@dataclass(frozen=True)
class Optimizer(ABC):
    """An update rule.

    Parameters
    ----------
    lr : float
        Learning rate η, greater than 0.
    """

    name: ClassVar[str]

    lr: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "lr", check_number("lr", self.lr, minimum=0, exclusive_minimum=True))

    def config(self) -> dict[str, Any]:
        """Return a JSON-able description; `from_config` rebuilds the optimizer from it."""
        return {"name": self.name, **dataclasses.asdict(self)}

    def init(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the state before the first update: a flat dict of arrays that live where `params` do."""
        return {}

    def update(
        self,
        params: Mapping[str, Any],
        grads: Mapping[str, Any],
        state: Mapping[str, Any],
        lr_scale: Mapping[str, float] | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return new parameters and a new state; no array given is changed.

        Parameters
        ----------
        params, grads : mapping of str to array
            Parameters and their gradients, same names, shapes and dtype.
        state : mapping of str to array
            As returned by `init` or by the update before.
        lr_scale : mapping of str to float, optional
            Layer name -> multiplier of the learning rate.
        """
        scales = {} if lr_scale is None else lr_scale
        steps, state = self._steps(grads, state)
        new = {
            name: value - (self.lr * scales.get(name.rpartition(".")[0], 1.0)) * steps[name]
            for name, value in params.items()
        }
        return new, state

    @abstractmethod
    def _steps(self, grads: Mapping[str, Any], state: Mapping[str, Any]) -> tuple[Mapping[str, Any], dict[str, Any]]:
        """Return what is subtracted at a learning rate of 1, and the new state."""


@dataclass(frozen=True)
class GD(Optimizer):
    """Gradient descent, θ ← θ − η g.

    Parameters
    ----------
    lr : float
        Learning rate η, greater than 0.
    """

    name = "gd"

    def _steps(self, grads: Mapping[str, Any], state: Mapping[str, Any]) -> tuple[Mapping[str, Any], dict[str, Any]]:
        return grads, {}


@dataclass(frozen=True)
class Momentum(Optimizer):
    """Heavy-ball gradient descent, v ← β v + g, θ ← θ − η v; with Nesterov's look-ahead θ ← θ − η (g + β v).

    Parameters
    ----------
    lr : float
        Learning rate η, greater than 0.
    beta : float
        β, in [0, 1).
    nesterov : bool
        Whether to look ahead (Sutskever et al. 2013).
    """

    name = "momentum"

    beta: float = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "beta", _check_decay("beta", self.beta))
        if not isinstance(self.nesterov, bool):
            raise TypeError(f"nesterov must be True or False, got {self.nesterov!r}")

    def init(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return zero velocities ``"velocity/<parameter>"``."""
        return _zeros("velocity", params)

    def _steps(self, grads: Mapping[str, Any], state: Mapping[str, Any]) -> tuple[Mapping[str, Any], dict[str, Any]]:
        velocity = {name: self.beta * state[f"velocity/{name}"] + grad for name, grad in grads.items()}
        steps = {name: grads[name] + self.beta * v for name, v in velocity.items()} if self.nesterov else velocity
        return steps, {f"velocity/{name}": v for name, v in velocity.items()}


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam (Kingma & Ba 2015) with bias correction.

    m ← β₁ m + (1 − β₁) g, v ← β₂ v + (1 − β₂) g², θ ← θ − η m̂ / (√v̂ + ε) with m̂ = m / (1 − β₁ᵗ), v̂ = v / (1 − β₂ᵗ).

    Parameters
    ----------
    lr : float
        Learning rate η, greater than 0.
    beta1, beta2 : float
        Decays β₁ and β₂, in [0, 1).
    eps : float
        ε, greater than 0. It limits the steps where gradients are of its size, as those of deep nets with small
        initial weights are.
    """

    name = "adam"

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "beta1", _check_decay("beta1", self.beta1))
        object.__setattr__(self, "beta2", _check_decay("beta2", self.beta2))
        object.__setattr__(self, "eps", check_number("eps", self.eps, minimum=0, exclusive_minimum=True))

    def init(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return zero moments ``"first_moment/<parameter>"``, ``"second_moment/<parameter>"`` and ``"updates"``, 0."""
        return {**_zeros("first_moment", params), **_zeros("second_moment", params), "updates": np.zeros((), np.int64)}

    def _steps(self, grads: Mapping[str, Any], state: Mapping[str, Any]) -> tuple[Mapping[str, Any], dict[str, Any]]:
        updates = int(state["updates"]) + 1
        first_correction, second_correction = 1 - self.beta1**updates, 1 - self.beta2**updates
        m, v, steps = {}, {}, {}
        for name, grad in grads.items():
            first = self.beta1 * state[f"first_moment/{name}"] + (1 - self.beta1) * grad
            second = self.beta2 * state[f"second_moment/{name}"] + (1 - self.beta2) * (grad * grad)
            root = array_namespace(second).sqrt(second / second_correction)
            steps[name] = (first / first_correction) / (root + self.eps)
            m[f"first_moment/{name}"], v[f"second_moment/{name}"] = first, second
        return steps, {**m, **v, "updates": np.array(updates)}


OPTIMIZERS: dict[str, type[Optimizer]] = {kind.name: kind for kind in (GD, Momentum, Adam)}
"""Every optimizer's class by name."""


def from_config(config: Mapping[str, Any]) -> Optimizer:
    """Rebuild an optimizer from what its `config()` returned.

    Raises
    ------
    TypeError, ValueError
        If the name is unknown, or a key or value is none that the optimizer takes.
    """
    if not isinstance(config, Mapping):
        raise TypeError(f"config must be a mapping, got {type(config).__name__}")
    options = dict(config)
    kind = OPTIMIZERS[check_choice("config['name']", options.pop("name", None), OPTIMIZERS)]
    known = [field.name for field in dataclasses.fields(kind)]
    for key in options:
        if key not in known:
            raise ValueError(f"config must hold only 'name', {', '.join(known)} for {kind.name!r}, got {key!r} as well")
    if "lr" not in options:
        raise ValueError(f"config must hold 'lr' for {kind.name!r}")
    return kind(**options)


def _check_decay(name: str, value: Any) -> float:
    return check_number(name, value, minimum=0, maximum=1, exclusive_maximum=True)


def _zeros(prefix: str, params: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}/{name}": array_namespace(value).zeros_like(value) for name, value in params.items()}
