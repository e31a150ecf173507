"""The kernels of PyTorch's optimizers: learning rates of single parameters, from the live state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from kernelgrowth.gradients.torch import ModuleFeatures
from kernelgrowth.gradients.torch.module import unwrapped

__all__ = ["learning_rates", "preconditioner", "unwrapped_optimizer"]


def preconditioner(optimizer: Any, module: Any, feats: ModuleFeatures, *, pending: bool = True) -> dict[str, Any]:
    """Return η_t by block, for `empirical_ntk(feats, preconditioner=...)`: the kernel J diag(η_t) Jᵀ of an optimizer.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
    module : torch.nn.Module
        Whose parameters it updates.
    feats : ModuleFeatures
        Of `module`.
    pending : bool
        As in `learning_rates`.

    Returns
    -------
    dict of str to Tensor or (Tensor, Tensor)
        Zero for parameters that the optimizer does not hold, or that have no gradient.

    Raises
    ------
    TypeError, ValueError
        As `learning_rates`; also if it updates no parameter of `module`.
    """
    if not isinstance(feats, ModuleFeatures):
        raise TypeError(f"feats must be what gradient_features of a module returned, got {type(feats).__name__}")
    rates = learning_rates(optimizer, pending=pending)
    parameters = dict(unwrapped(module).named_parameters(remove_duplicate=False))
    if all(id(p) not in rates for p in parameters.values()):
        raise ValueError("optimizer updates no parameter of module: it was made for another module, or a copy")
    return feats.by_block({name: rates.get(id(p), torch.zeros_like(p)) for name, p in parameters.items()})


def learning_rates(optimizer: Any, *, pending: bool = True) -> dict[int, Any]:
    """Return η_t of every parameter entry by the parameter's identity: an update is θ ← θ − η_t m_t.

    η_t is the group's learning rate for SGD with or without momentum, η / (√v̂ + ε) for Adam and AdamW, with `amsgrad`
    of the largest v̂ so far, and η / (√v + ε) for RMSprop, v less the squared mean gradient where it is centred.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        SGD, Adam, AdamW or RMSprop; what wraps one is unwrapped.
    pending : bool
        Whether the update that is meant is the one that ``optimizer.step()`` would make now, of the gradients that the
        parameters have: to be called after ``loss.backward()``. Else it is the last one made, whose second moments the
        optimizer's state has.

    Returns
    -------
    dict of int to Tensor
        ``id(parameter)`` -> η_t, of its shape, dtype and device; parameters without a gradient (or state) are left out.

    Raises
    ------
    TypeError
        If it is another optimizer.
    ValueError
        If it maximises, or no parameter has a gradient (or has been updated yet).

    Notes
    -----
    Decay of weights is no part of the kernel. Where it is added to the gradient (Adam, RMSprop) it counts in v, as in
    the optimizer; AdamW's does not. Gradients have to be those that the update is made of: clipped, where they are
    clipped, and divided again by what a scaler for mixed precision multiplied them with.
    """
    optimizer = unwrapped_optimizer(optimizer)
    rule = _RULES[type(optimizer)]
    rates: dict[int, Any] = {}
    with torch.no_grad():
        for group in optimizer.param_groups:
            if group.get("maximize", False):
                raise ValueError("optimizer maximises: its kernel makes the loss rise, so it is not followed")
            for p in group["params"]:
                state = optimizer.state.get(p, {})
                if (p.grad is None) if pending else (rule is not _sgd and not state):
                    continue
                rates[id(p)] = rule(p, group, state, pending)
    if not rates:
        raise ValueError(
            "no parameter of optimizer has a gradient: call this after loss.backward() and before optimizer.step()"
            if pending
            else "optimizer has made no update yet, so it has no second moments"
        )
    return rates


def unwrapped_optimizer(optimizer: Any) -> Any:
    """Return the SGD, Adam, AdamW or RMSprop that Lightning, Accelerate or another wrapped.

    Raises
    ------
    TypeError
        If it is another optimizer.
    """
    inner = optimizer
    # By the very class: what Lightning wraps an optimizer in is of a class derived from the optimizer's.
    while type(inner) not in _RULES:
        if not hasattr(inner, "optimizer"):
            known = ", ".join(kind.__name__ for kind in _RULES)
            raise TypeError(f"optimizer must be one of {known}, got {type(optimizer).__name__}")
        inner = inner.optimizer
    return inner


def _sgd(p: Any, group: Mapping[str, Any], state: Mapping[str, Any], pending: bool) -> Any:
    return torch.full_like(p, float(group["lr"]))


def _adam(p: Any, group: Mapping[str, Any], state: Mapping[str, Any], pending: bool) -> Any:
    decay = group["betas"][1]
    steps = int(state.get("step", 0)) + int(pending)
    v = state.get("exp_avg_sq", torch.zeros_like(p))
    if pending:
        g = p.grad
        if group["weight_decay"] and not group.get("decoupled_weight_decay", group.get("_decoupled", False)):
            g = g + group["weight_decay"] * p
        v = decay * v + (1 - decay) * g * g
    if group["amsgrad"]:
        v = torch.maximum(state.get("max_exp_avg_sq", torch.zeros_like(p)), v)
    return float(group["lr"]) / ((v / (1 - decay**steps)).sqrt() + group["eps"])


def _adamw(p: Any, group: Mapping[str, Any], state: Mapping[str, Any], pending: bool) -> Any:
    return _adam(p, {**group, "_decoupled": True}, state, pending)


def _rmsprop(p: Any, group: Mapping[str, Any], state: Mapping[str, Any], pending: bool) -> Any:
    alpha = group["alpha"]
    v, mean = state.get("square_avg", torch.zeros_like(p)), state.get("grad_avg", torch.zeros_like(p))
    if pending:
        g = p.grad + group["weight_decay"] * p if group["weight_decay"] else p.grad
        v, mean = alpha * v + (1 - alpha) * g * g, alpha * mean + (1 - alpha) * g
    if group["centered"]:
        v = (v - mean * mean).clamp(min=0)
    return float(group["lr"]) / (v.sqrt() + group["eps"])


_RULES = {
    torch.optim.SGD: _sgd,
    torch.optim.Adam: _adam,
    torch.optim.AdamW: _adamw,
    torch.optim.RMSprop: _rmsprop,
}
