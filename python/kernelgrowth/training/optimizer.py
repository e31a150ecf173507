"""What optimizers have in common: updates θ ← θ − η_t m_t, and what η_t and m_t are."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from kernelgrowth._backend.arrays import array_namespace
from kernelgrowth._backend.checks import check_integer, check_number
from kernelgrowth.nets.network import Network
from kernelgrowth.training.arguments import check_gradients, check_lr_scale
from kernelgrowth.training.blocks import by_block

__all__ = ["Advance", "Optimizer"]

# m_t, what it is divided by (None for nothing), and the new state.
Advance = tuple[Mapping[str, Any], Mapping[str, Any] | None, dict[str, Any]]


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
        averages, divisors, state = self._advance(grads, state)
        new = {}
        for name, value in params.items():
            step = averages[name] if divisors is None else averages[name] / divisors[name]
            new[name] = value - self._rate(name, scales) * step
        return new, state

    def learning_rates(
        self, grads: Mapping[str, Any], state: Mapping[str, Any], lr_scale: Mapping[str, float] | None = None
    ) -> dict[str, Any]:
        """Return η_t of the update that `update` would make of the same arguments, a number for each parameter entry.

        η_t is what an entry of m_t, the `averaged_gradient`, is multiplied by: η for GD and Momentum, η / (√v̂ + ε) for
        Adam and η / (√v + ε) for RMSprop, with the second moment that has taken in this step's gradient, and with η the
        layer's learning rate. Adam's correction of v is in η_t, that of m in m_t, whose weights thus sum to 1.

        Parameters
        ----------
        grads : mapping of str to array
            This step's gradients by parameter, float32 or float64.
        state : mapping of str to array
            Before the update, as returned by `init` or by the update before.
        lr_scale : mapping of str to float, optional
            Layer name -> multiplier of the learning rate, at least 0.

        Returns
        -------
        dict of str to array
            Like `grads`. Costs about as much as the update.

        Raises
        ------
        TypeError, ValueError
            If an argument is not of that kind, a gradient is not finite, or `state` is not that of this optimizer and
            these parameters; the message names it.
        """
        _, divisors = self._checked_advance(grads, state)
        scales = check_lr_scale(lr_scale, grads)
        if divisors is not None:
            return {name: self._rate(name, scales) / divisor for name, divisor in divisors.items()}
        return {name: array_namespace(g).full_like(g, self._rate(name, scales)) for name, g in grads.items()}

    def averaged_gradient(self, grads: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
        """Return m_t, which the update multiplies by `learning_rates`: g, or v, g + β v or m̂ of the class' formulas.

        Parameters
        ----------
        grads, state
            As in `learning_rates`; so are the errors.

        Returns
        -------
        dict of str to array
            Like `grads`.
        """
        return dict(self._checked_advance(grads, state)[0])

    def averaging_weights(self, updates: int) -> npt.NDArray[np.float64]:
        """Return w with m_t = Σ_s w_s g_s over the gradients of the updates s = 1 … t, the oldest first.

        As long as J hardly changes, m_t = Jᵀ r̄ with r̄ = Σ_s w_s r_s the average of the losses' derivatives by the
        outputs, and the update changes the outputs by −K_η r̄.

        Parameters
        ----------
        updates : int
            t >= 1, the updates since `init`, the one about to be made included.

        Returns
        -------
        float64 array (t,)
        """
        weights = np.zeros(check_integer("updates", updates, minimum=1))
        weights[-1] = 1.0
        return weights

    def preconditioner(
        self,
        net: Network,
        grads: Mapping[str, Any],
        state: Mapping[str, Any],
        lr_scale: Mapping[str, float] | None = None,
    ) -> dict[str, Any]:
        """Return `learning_rates` by gradient block, as ``kg.empirical_ntk(feats, preconditioner=...)`` takes them.

        Parameters
        ----------
        net : Network
            Whose parameters they are: it says which of them a block holds, and in which order.
        grads, state, lr_scale
            As in `learning_rates`; so are the errors.

        Returns
        -------
        dict of str to array or (array, array)
            Layer name -> (d_out, d_in), or a tuple of that and (d_out,) for a layer with bias.
        """
        return by_block(net, self.learning_rates(grads, state, lr_scale))

    def _rate(self, name: str, scales: Mapping[str, float]) -> float:
        return self.lr * scales.get(name.rpartition(".")[0], 1.0)

    def _checked_advance(
        self, grads: Mapping[str, Any], state: Mapping[str, Any]
    ) -> tuple[Mapping[str, Any], Mapping[str, Any] | None]:
        check_gradients(grads)
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be a dict of arrays as from init, got {type(state).__name__}")
        try:
            averages, divisors, _ = self._advance(grads, state)
        except KeyError as error:
            kind = type(self).__name__
            raise ValueError(f"state must be that of {kind} for the parameters in grads, but lacks {error}") from None
        return averages, divisors

    @abstractmethod
    def _advance(self, grads: Mapping[str, Any], state: Mapping[str, Any]) -> Advance:
        """Return m_t, what it is divided by (None: nothing) and the new state; η times the quotient is subtracted."""
