"""Optimizers: pure functions of parameters, gradients and a state of arrays, with one learning rate for each layer.

The learning rate of a layer is the optimizer's `lr` times the layer's entry in `lr_scale`, 1 where it has none; a layer
is named by what comes before the last dot of a parameter's name. Steps of adaptive optimizers are scaled, not their
gradients.

Every update is θ ← θ − η_t m_t, entry by entry: m_t is the gradient or an average of it over the steps, η_t >= 0 a
learning rate for each parameter. To first order it changes the network's outputs by −J diag(η_t) m_t, which is
−K_η r with the optimizer's kernel K_η = J diag(η_t) Jᵀ where m_t = Jᵀ r; r is the loss's derivative by the outputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kernelgrowth._backend.arrays import array_namespace
from kernelgrowth._backend.checks import check_choice, check_integer, check_number
from kernelgrowth.training.optimizer import Advance, Optimizer

__all__ = ["GD", "OPTIMIZERS", "Adam", "Momentum", "Optimizer", "RMSprop", "from_config"]


@dataclass(frozen=True)
class GD(Optimizer):
    """Gradient descent, θ ← θ − η g.

    Parameters
    ----------
    lr : float
        Learning rate η, greater than 0.
    """

    name = "gd"

    def _advance(self, grads: Mapping[str, Any], state: Mapping[str, Any]) -> Advance:
        return grads, None, {}


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

    def averaging_weights(self, updates: int) -> npt.NDArray[np.float64]:
        """Return β^(t−s); with Nesterov's look-ahead β^(t−s+1), and 1 + β for the last. See the base class."""
        powers = self.beta ** np.arange(check_integer("updates", updates, minimum=1))[::-1].astype(np.float64)
        return powers * self.beta + super().averaging_weights(updates) if self.nesterov else powers

    def _advance(self, grads: Mapping[str, Any], state: Mapping[str, Any]) -> Advance:
        velocity = {name: self.beta * state[f"velocity/{name}"] + grad for name, grad in grads.items()}
        steps = {name: grads[name] + self.beta * v for name, v in velocity.items()} if self.nesterov else velocity
        return steps, None, {f"velocity/{name}": v for name, v in velocity.items()}


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

    def averaging_weights(self, updates: int) -> npt.NDArray[np.float64]:
        """Return (1 − β₁) β₁^(t−s) / (1 − β₁ᵗ), which sum to 1. See the base class."""
        powers = self.beta1 ** np.arange(check_integer("updates", updates, minimum=1))[::-1].astype(np.float64)
        weights: npt.NDArray[np.float64] = powers / powers.sum()
        return weights

    def _advance(self, grads: Mapping[str, Any], state: Mapping[str, Any]) -> Advance:
        updates = int(state["updates"]) + 1
        first_correction, second_correction = 1 - self.beta1**updates, 1 - self.beta2**updates
        averages, divisors, m, v = {}, {}, {}, {}
        for name, grad in grads.items():
            first = self.beta1 * state[f"first_moment/{name}"] + (1 - self.beta1) * grad
            second = self.beta2 * state[f"second_moment/{name}"] + (1 - self.beta2) * (grad * grad)
            averages[name] = first / first_correction
            divisors[name] = array_namespace(second).sqrt(second / second_correction) + self.eps
            m[f"first_moment/{name}"], v[f"second_moment/{name}"] = first, second
        return averages, divisors, {**m, **v, "updates": np.array(updates)}


@dataclass(frozen=True)
class RMSprop(Optimizer):
    """RMSprop (Hinton 2012), v ← α v + (1 − α) g², θ ← θ − η g / (√v + ε): PyTorch's, not centred, without momentum.

    Parameters
    ----------
    lr : float
        Learning rate η, greater than 0.
    alpha : float
        Decay α of the squared gradients' average, in [0, 1). It starts at 0 and is not corrected for that, so the first
        step is η / √(1 − α) times the gradient's sign.
    eps : float
        ε, greater than 0, added to the root as PyTorch does; other libraries add it to v.
    """

    name = "rmsprop"

    alpha: float = 0.99
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "alpha", _check_decay("alpha", self.alpha))
        object.__setattr__(self, "eps", check_number("eps", self.eps, minimum=0, exclusive_minimum=True))

    def init(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return zero averages ``"squared_average/<parameter>"``."""
        return _zeros("squared_average", params)

    def _advance(self, grads: Mapping[str, Any], state: Mapping[str, Any]) -> Advance:
        squares = {
            name: self.alpha * state[f"squared_average/{name}"] + (1 - self.alpha) * (grad * grad)
            for name, grad in grads.items()
        }
        divisors = {name: array_namespace(v).sqrt(v) + self.eps for name, v in squares.items()}
        return grads, divisors, {f"squared_average/{name}": v for name, v in squares.items()}


OPTIMIZERS: dict[str, type[Optimizer]] = {kind.name: kind for kind in (GD, Momentum, Adam, RMSprop)}
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
