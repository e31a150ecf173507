"""The kernel at the end of training of deep linear networks."""

from __future__ import annotations

import math
from typing import Any

from kernelgrowth._backend.arrays import array_namespace
from kernelgrowth._backend.checks import check_integer, check_number
from kernelgrowth.theory.alignment import spike_strength
from kernelgrowth.theory.arguments import (
    LayerRates,
    as_given,
    check_direction,
    check_flag,
    check_inputs,
    check_layer_rates,
    check_teacher,
)

__all__ = ["final_kernel", "final_kernel_multi", "hidden_kernel"]

# Singular values of a teacher below this fraction of the largest are rounding error, not modes.
_MODE_CUTOFF = 1e-10


def final_kernel(
    X: Any,
    beta: Any,
    s: float,
    depth: int,
    layer_lr: LayerRates | None = None,
    *,
    rate_weighted: bool = False,
) -> Any:
    """NTK of a deep linear network with one output at the end of training from small initialisation.

    ``K = c X [I + a beta beta^T] X^T`` with ``kappa = (s^2 / prod_l eta_l)^(1/L)``, ``c = s^2 / (kappa eta_1)`` and
    ``a = eta_1 sum_{l>=2} 1/eta_l``. With equal rates ``K = s^(2 - 2/L) X [I + (L - 1) beta beta^T] X^T``.

    Parameters
    ----------
    X : array_like (N, D), float32 or float64
        Examples as rows.
    beta : array_like (D,)
        Direction of the teacher ``y = s beta . x``, of length 1, in the span of the rows of `X`.
    s : float
        Strength of the teacher, > 0.
    depth : int
        Number of weight layers L, at least 1.
    layer_lr : sequence of L floats or mapping, optional
        Learning rates of the layers, input layer first, or by name ("layer1", ..., missing ones are 1).
    rate_weighted : bool
        Return the kernel in which layer l counts with its rate, ``sum_l eta_l J_l J_l^T``, which governs the training:
        ``(s^2 / kappa) X [I + (L - 1) beta beta^T] X^T``.

    Returns
    -------
    ndarray (N, N)
        In the dtype and kind of `X`.

    Raises
    ------
    TypeError, ValueError
        If shapes or dtypes do not fit, a value is not finite, or `beta` has not length 1.

    Notes
    -----
    Derivation: the flow conserves ``W_l W_l^T / eta_l - W_{l+1}^T W_{l+1} / eta_{l+1}``, about 0 from small
    initialisation, so the weights end as rank-one matrices in line, of squared strength ``kappa eta_l``, whose product
    is ``s beta^T``. The gradient of layer 1 then gives ``s^2 / (kappa eta_1) X X^T`` and that of layer l > 1
    gives ``s^2 / (kappa eta_l) X beta beta^T X^T``. (Atanasov, Bordelon, Pehlevan 2022; the rates are an extension.)

    Valid for loss 0 and small initial scale sigma: the relative error is 1 to 2 times ``sigma^2`` on whitened inputs,
    and up to 8 times with rates that differ by a factor of 5. Cost O(N^2 D).
    """
    inputs = check_inputs(X)
    direction = check_direction(beta, inputs)
    s = check_number("s", s, minimum=0.0, exclusive_minimum=True)
    depth = check_integer("depth", depth, minimum=1)
    rates = check_layer_rates(layer_lr, depth)
    rate_weighted = check_flag("rate_weighted", rate_weighted)
    # Logarithms, because s^2 or the product of the rates can leave the range of floats where the result does not.
    log_kappa = (2.0 * math.log(s) - sum(math.log(rate) for rate in rates)) / depth
    scale = math.exp(2.0 * math.log(s) - log_kappa)
    spike = float(depth - 1)
    if not rate_weighted:
        scale /= rates[0]
        spike = spike_strength(rates)
    along = inputs @ direction
    return as_given(scale * (inputs @ inputs.T + spike * array_namespace(inputs).outer(along, along)), X)


def final_kernel_multi(
    X: Any, B: Any, depth: int, layer_lr: LayerRates | None = None, *, rate_weighted: bool = False
) -> Any:
    """NTK of a deep linear network with several outputs at the end of training from small initialisation.

    For the teacher ``y = B x`` with ``B = sum_a s_a z_a v_a^T`` and ``u_a = s_a^(1/L)``,
    ``K[n, m, c, e] = sum_{l=1}^{L} [Z_l]_{ce} x_n . V_l x_m`` with ``Z_l = sum_a u_a^(2(L-l)) z_a z_a^T``
    (the identity for l = L) and ``V_l = sum_a u_a^(2(l-1)) v_a v_a^T`` (the identity for l = 1). With rates, the
    squared strength ``u_a^2`` of layer k is ``(s_a^2 / prod_l eta_l)^(1/L) eta_k``.

    Parameters
    ----------
    X : array_like (N, D), float32 or float64
        Examples as rows.
    B : array_like (C, D)
        The teacher, not zero, its rows in the span of the rows of `X`.
    depth : int
        Number of weight layers L, at least 1.
    layer_lr : sequence of L floats or mapping, optional
        Learning rates of the layers, input layer first, or by name ("layer1", ..., missing ones are 1).
    rate_weighted : bool
        Return the kernel in which layer l counts with its rate, ``sum_l eta_l J_l J_l^T``.

    Returns
    -------
    ndarray (N, N, C, C), or (N, N) when C is 1
        In the dtype and kind of `X`, laid out as `empirical_ntk` with ``outputs="full"``.

    Raises
    ------
    TypeError, ValueError
        If shapes or dtypes do not fit, a value is not finite or out of range, or `B` is zero.

    Notes
    -----
    Derivation: the conserved balance ``W_l W_l^T / eta_l - W_{l+1}^T W_{l+1} / eta_{l+1}``, about 0, makes the weights
    end as ``W_l = sum_a u_a r_a^l (r_a^(l-1))^T`` with orthonormal ``r_a^l``, ``r^0 = v`` and ``r^L = z``. The layers
    above l then map back to ``Z_l`` in output space and those below to ``V_l`` in input space, and the gradient of
    layer l contributes their product. (Atanasov, Bordelon, Pehlevan 2022, multiple outputs; the rates are an
    extension.)

    Valid for loss 0, hidden layers no narrower than the rank of B and small initial scale sigma: the relative error
    is of order ``sigma^2``. Cost O(L N^2 (D + C^2)).
    """
    inputs = check_inputs(X)
    teacher = check_teacher(B, inputs)
    depth = check_integer("depth", depth, minimum=1)
    rates = check_layer_rates(layer_lr, depth)
    rate_weighted = check_flag("rate_weighted", rate_weighted)
    xp = array_namespace(inputs)
    z, v, log_strengths = _modes(teacher, rates)
    along = inputs @ v.T
    num_examples, num_outputs = inputs.shape[0], teacher.shape[0]
    kernel = xp.zeros((num_examples, num_examples, num_outputs, num_outputs), dtype=inputs.dtype)
    for layer in range(depth):
        above = xp.eye(num_outputs, dtype=inputs.dtype)
        if layer < depth - 1:
            above = _spread(z, log_strengths[layer + 1 :])
        if rate_weighted:
            above = rates[layer] * above
        below = inputs @ inputs.T if layer == 0 else _spread(along, log_strengths[:layer])
        kernel += below[:, :, None, None] * above
    return as_given(kernel[:, :, 0, 0] if num_outputs == 1 else kernel, X)


def hidden_kernel(X: Any, B: Any, depth: int, layer: int, layer_lr: LayerRates | None = None) -> Any:
    """Inner products of a hidden layer's activations at the end of training a deep linear network.

    ``K_l(x, x') = h_l(x) . h_l(x') = x^T (B^T B)^(l/L) x'`` for ``h_l = W_l ... W_1 x`` and the teacher ``y = B x``.
    With rates, ``x^T V [prod_{k<=l} eta_k kappa_a] V^T x'`` with ``kappa_a = (s_a^2 / prod_k eta_k)^(1/L)`` along the
    right singular vectors V of B.

    Parameters
    ----------
    X : array_like (N, D), float32 or float64
        Examples as rows.
    B : array_like (C, D)
        The teacher, not zero, its rows in the span of the rows of `X`; for one output ``s beta^T``.
    depth : int
        Number of weight layers L, at least 1.
    layer : int
        Number l of the layer, from 1 to L; L is the output's, whose kernel is ``X B^T B X^T``.
    layer_lr : sequence of L floats or mapping, optional
        Learning rates of the layers, input layer first, or by name ("layer1", ..., missing ones are 1).

    Returns
    -------
    ndarray (N, N)
        In the dtype and kind of `X`.

    Raises
    ------
    TypeError, ValueError
        If shapes or dtypes do not fit, a value is not finite or out of range, or `B` is zero.

    Notes
    -----
    Derivation: the weights end as ``W_l = sum_a u_a r_a^l (r_a^(l-1))^T`` with orthonormal ``r_a^l`` (see
    `final_kernel_multi`), ``r^0 = v`` and ``u_a = s_a^(1/L)``, so ``h_l = sum_a u_a^l r_a^l (v_a . x)``, whose inner
    products are ``sum_a s_a^(2l/L) (v_a . x)(v_a . x')``.

    Valid for loss 0, hidden layers no narrower than the rank of B and small initial scale sigma: what is left of the
    initial weights adds ``sigma^2`` times that of layer l at initialisation.
    """
    inputs = check_inputs(X)
    teacher = check_teacher(B, inputs)
    depth = check_integer("depth", depth, minimum=1)
    layer = check_integer("layer", layer, minimum=1, maximum=depth)
    rates = check_layer_rates(layer_lr, depth)
    _, v, log_strengths = _modes(teacher, rates)
    return as_given(_spread(inputs @ v.T, log_strengths[:layer]), X)


def _modes(teacher: Any, rates: tuple[float, ...]) -> tuple[Any, Any, Any]:
    """Return the singular vectors of the teacher, as columns (C, A) and rows (A, D), and ``ln u^2`` (L, A)."""
    xp = array_namespace(teacher)
    z, s, v = xp.linalg.svd(teacher, full_matrices=False)
    modes = int((s > _MODE_CUTOFF * s[0]).sum())
    # Logarithms, because s^2 or the product of the rates can leave the range of floats where the result does not.
    log_rates = xp.asarray([math.log(rate) for rate in rates])
    log_kappa = (2.0 * xp.log(s[:modes].astype(xp.float64)) - log_rates.sum()) / len(rates)
    return z[:, :modes], v[:modes], log_kappa + log_rates[:, None]


def _spread(vectors: Any, log_strengths: Any) -> Any:
    """Return ``sum_a prod_k u_ka^2 e_a e_a^T`` for vectors in columns (n, A) and the layers' ``ln u^2`` (k, A)."""
    xp = array_namespace(vectors)
    return (vectors * xp.exp(log_strengths.sum(axis=0)).astype(vectors.dtype)) @ vectors.T
