"""The first phase of two-layer linear networks, on inputs that need not be whitened."""

from __future__ import annotations

from typing import Any

from kernelgrowth._backend.arrays import array_namespace, as_array, float_dtype
from kernelgrowth._backend.checks import check_number
from kernelgrowth.theory.arguments import as_curve, as_given, check_inputs, check_targets, check_values
from kernelgrowth.theory.dynamics import TwoLayerSolution, two_layer

__all__ = ["early_growth", "early_kernel"]


def early_growth(X: Any, y: Any, q0: float, t: Any, r0: float = 0.0) -> TwoLayerSolution:
    """Growth of the two-layer linear network ``f(x) = a . W x`` along ``X^T y`` before its loss has moved.

    With the direction ``g = X^T y / |X^T y|`` in which the weights are driven: ``q' = 2 G r`` and ``r' = 2 G q`` with
    ``G = |X^T y| / N``, until f slows it down: at the rate ``G - h r``, ``h = |X g|^2 / N``.

    Parameters
    ----------
    X : array_like (N, D), float32 or float64
        Examples as rows, whitened or not.
    y : array_like (N,)
        Targets, not orthogonal to all features. For ``y = s X beta`` the direction g is that of ``Sigma beta``.
    q0, r0 : float
        Initial values of ``q = (|W g|^2 + |a|^2)/2``, > 0, and of ``r = a . W g``, with ``|r0| <= q0``.
    t : float or array_like
        Times of gradient flow on the loss ``mean (f - y)^2 / 2``, >= 0.

    Returns
    -------
    TwoLayerSolution
        ``q`` and ``r`` along g, in float64, of the shape of `t`; ``|a|^2 = q + (|a_0|^2 - |W_0 g|^2)/2``, which is q as
        soon as it has grown.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type, not finite or out of range, or shapes do not fit.

    Notes
    -----
    Derivation: while ``f << y`` the flow is ``W' = a G g^T``, ``a' = G W g``, and W grows along g alone. Then
    ``f(x) = r g . x`` takes ``h r`` from G, which makes the equations those of `two_layer` with the teacher's strength
    ``G / h`` on the clock ``h t``; the force across g is of the order of r and acts on r in the order r^2.

    Valid to first order in f, and as long as the weights have not turned from g: the relative error is about that of
    the loss by then. On whitened inputs ``G = s``, ``h = 1`` and it is `two_layer`.
    """
    inputs = check_inputs(X)
    targets = check_targets(y, inputs)
    times = check_values("t", t, "time", minimum=0.0)
    force, direction = _force(inputs, targets)
    curvature = float(array_namespace(inputs).mean((inputs @ direction) ** 2))
    q, r = two_layer(force / curvature, q0, curvature * times, r0)
    return TwoLayerSolution(as_curve(q, t), as_curve(r, t))


def early_kernel(X: Any, y: Any, a_squared: float, K0: Any = None) -> Any:
    """NTK of a two-layer linear network before its loss has moved: a spike along ``X^T y`` that grows with ``|a|^2``.

    ``K = K_0 + |a|^2 X [g g^T + I] X^T`` with ``g = X^T y / |X^T y|``. For ``y = s X beta`` the spike is
    ``Sigma beta beta^T Sigma / (beta^T Sigma^2 beta)``, ``Sigma = X^T X / N``.

    Parameters
    ----------
    X : array_like (N, D), float32 or float64
        Examples as rows, whitened or not.
    y : array_like (N,)
        Targets, not orthogonal to all features.
    a_squared : float
        ``|a|^2`` of the output weights, at least 0: measured, or q of `early_growth`.
    K0 : array_like (N, N), optional
        The kernel at initialisation; left out, what is returned is the kernel's change.

    Returns
    -------
    ndarray (N, N)
        In the dtype and kind of `X`.

    Raises
    ------
    TypeError, ValueError
        If shapes or dtypes do not fit, a value is not finite or out of range, or all features are orthogonal to `y`.

    Notes
    -----
    Derivation: the flow ``W' = a y^T X / N``, ``a' = W X^T y / N`` for ``f << y`` grows the one mode
    ``W = w g^T``, ``|w| = |a|``; the gradient of a then gives ``|w|^2 X g g^T X^T`` and that of W gives
    ``|a|^2 X X^T``.

    Valid for small initial scale while the loss has hardly moved, with an error of order ``sigma / |a|`` from the rest
    of W and ``|f| / |y|`` from what has been learnt. Unless the inputs are whitened, g is not the teacher's direction:
    the spike has to turn to it later, which is what breaks silence.
    """
    inputs = check_inputs(X)
    targets = check_targets(y, inputs)
    a_squared = check_number("a_squared", a_squared, minimum=0.0)
    initial = None if K0 is None else _check_kernel(K0, inputs)
    _, direction = _force(inputs, targets)
    along = inputs @ direction
    kernel = a_squared * (inputs @ inputs.T + array_namespace(inputs).outer(along, along))
    return as_given(kernel if initial is None else initial + kernel, X)


def _force(inputs: Any, targets: Any) -> tuple[float, Any]:
    """Return the length and the direction of ``X^T y / N``."""
    force = inputs.T @ targets / len(inputs)
    length = float(array_namespace(force).linalg.norm(force))
    if length == 0.0:
        raise ValueError("y must not be orthogonal to all features of X: nothing would be learnt")
    return length, force / length


def _check_kernel(K0: Any, inputs: Any) -> Any:
    kernel = as_array("K0", K0, ndim=2)
    float_dtype(X=inputs, K0=kernel)
    array_namespace(inputs, kernel)
    if kernel.shape != (len(inputs), len(inputs)):
        raise ValueError(f"K0 must have shape {(len(inputs), len(inputs))} like X X^T, got {kernel.shape}")
    return kernel
