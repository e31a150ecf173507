"""Gradient features of networks, which are known here only by what they offer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from kernelgrowth.gradients.features import GradientFeatures, OuterProduct

__all__ = ["HasGradientFactors", "HasGradientFeatures", "from_net"]


class _Factors(Protocol):
    @property
    def activations(self) -> Any: ...
    @property
    def backprops(self) -> Any: ...
    @property
    def bias(self) -> bool: ...
    @property
    def scale(self) -> float: ...


class _NetworkFactors(Protocol):
    @property
    def predictions(self) -> Any: ...
    @property
    def blocks(self) -> Mapping[str, _Factors]: ...


class HasGradientFactors(Protocol):
    """A network whose every weight's gradient is a sum of outer products."""

    def gradient_factors(self, params: Any, x: Any) -> Any:
        """Return an object with `predictions` (N, C) and `blocks`, name to activations, backprops, bias, scale.

        An attribute `finite` that is true spares the factors another look at each of their values.
        """


class HasGradientFeatures(Protocol):
    """Whatever makes its gradient features itself, such as a module of another library.

    A method ``preconditioner(feats)``, where there is one, returns η by block for the kernel J diag(η) Jᵀ that is to be
    followed in place of J Jᵀ; an attribute ``preconditioned_by`` says whose it is.
    """

    def gradient_features(self, params: Any, x: Any, *, check_finite: bool) -> GradientFeatures:
        """Return the features at the examples `x`."""


def from_net(
    net: HasGradientFactors | HasGradientFeatures, params: Any, x: Any, *, check_finite: bool = True
) -> GradientFeatures:
    """Return the gradients of every output of `net` with respect to every parameter, at the examples `x`.

    Parameters
    ----------
    net : object with `gradient_factors(params, x)`
        Any network of `kernelgrowth.nets`; or an object with `gradient_features(params, x, check_finite=...)`, which is
        asked for them.
    params : mapping of str to array
        Its parameters.
    x : array_like, shape (N, ...)
        Examples, of the parameters' dtype.
    check_finite : bool
        Whether factors that are not finite are refused; it takes about a tenth of the time.

    Returns
    -------
    GradientFeatures
        One `OuterProduct` a layer, with `predictions` filled in. Costs one forward and C backward sweeps.

    Raises
    ------
    ValueError
        If a factor is not finite.
    """
    if not hasattr(net, "gradient_factors"):
        return net.gradient_features(params, x, check_finite=check_finite)
    factors: _NetworkFactors = net.gradient_factors(params, x)
    unproved = check_finite and not getattr(factors, "finite", False)
    blocks = {
        name: OuterProduct(
            block.activations, block.backprops, bias=block.bias, scale=block.scale, check_finite=unproved
        )
        for name, block in factors.blocks.items()
    }
    return GradientFeatures(blocks, predictions=factors.predictions)
