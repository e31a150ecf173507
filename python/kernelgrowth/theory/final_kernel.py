"""The kernel at the end of training of deep linear networks."""

from __future__ import annotations

import math
from typing import Any

from kernelgrowth._backend.arrays import array_namespace, as_array, float_dtype, is_cupy, like
from kernelgrowth._backend.checks import check_integer, check_number
from kernelgrowth.theory.alignment import LayerRates, check_layer_rates, spike_strength

__all__ = ["final_kernel", "final_kernel_multi"]

# A direction may be off unit length by the rounding of float32, not by more.
_UNIT_TOLERANCE = 1e-5
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
    inputs = _check_inputs(X)
    direction = as_array("beta", beta, ndim=1)
    float_dtype(X=inputs, beta=direction)
    xp = array_namespace(inputs, direction)
    if direction.shape[0] != inputs.shape[1]:
        raise ValueError(f"beta must have the {inputs.shape[1]} features of X, got shape {direction.shape}")
    length = float(xp.linalg.norm(direction))
    if abs(length - 1.0) > _UNIT_TOLERANCE:
        raise ValueError(f"beta must have length 1, got {length:g}: divide it by that and multiply s by it")
    s = check_number("s", s, minimum=0.0, exclusive_minimum=True)
    depth = check_integer("depth", depth, minimum=1)
    rates = check_layer_rates(layer_lr, depth)
    if not isinstance(rate_weighted, bool):
        raise TypeError(f"rate_weighted must be True or False, got {rate_weighted!r}")
    # Logarithms, because s^2 or the product of the rates can leave the range of floats where the result does not.
    log_kappa = (2.0 * math.log(s) - sum(math.log(rate) for rate in rates)) / depth
    scale = math.exp(2.0 * math.log(s) - log_kappa)
    spike = float(depth - 1)
    if not rate_weighted:
        scale /= rates[0]
        spike = spike_strength(rates)
    along = inputs @ direction
    return _as_given(scale * (inputs @ inputs.T + spike * xp.outer(along, along)), X)


def final_kernel_multi(X: Any, B: Any, depth: int) -> Any:
    """NTK of a deep linear network with several outputs at the end of training from small initialisation.

    For the teacher ``y = B x`` with ``B = sum_a s_a z_a v_a^T`` and ``u_a = s_a^(1/L)``,
    ``K[n, m, c, e] = sum_{l=1}^{L} [Z_l]_{ce} x_n . V_l x_m`` with ``Z_l = sum_a u_a^(2(L-l)) z_a z_a^T``
    (the identity for l = L) and ``V_l = sum_a u_a^(2(l-1)) v_a v_a^T`` (the identity for l = 1).

    Parameters
    ----------
    X : array_like (N, D), float32 or float64
        Examples as rows.
    B : array_like (C, D)
        The teacher, not zero, its rows in the span of the rows of `X`.
    depth : int
        Number of weight layers L, at least 1.

    Returns
    -------
    ndarray (N, N, C, C), or (N, N) when C is 1
        In the dtype and kind of `X`, laid out as `empirical_ntk` with ``outputs="full"``.

    Raises
    ------
    TypeError, ValueError
        If shapes or dtypes do not fit, a value is not finite, or `B` is zero.

    Notes
    -----
    Derivation: the conserved balance ``W_l W_l^T - W_{l+1}^T W_{l+1}``, about 0, makes the weights end as
    ``W_l = sum_a u_a r_a^l (r_a^(l-1))^T`` with orthonormal ``r_a^l``, ``r^0 = v`` and ``r^L = z``. The layers
    above l then map back to ``Z_l`` in output space and those below to ``V_l`` in input space, and the gradient of
    layer l contributes their product. (Atanasov, Bordelon, Pehlevan 2022, multiple outputs.)

    Valid for loss 0, hidden layers no narrower than the rank of B and small initial scale sigma: the relative error
    is of order ``sigma^2``. Cost O(L N^2 (D + C^2)).
    """
    inputs = _check_inputs(X)
    teacher = as_array("B", B, ndim=2)
    float_dtype(X=inputs, B=teacher)
    xp = array_namespace(inputs, teacher)
    if teacher.shape[0] == 0 or teacher.shape[1] != inputs.shape[1]:
        raise ValueError(f"B must have shape (C, {inputs.shape[1]}) with C >= 1, got {teacher.shape}")
    depth = check_integer("depth", depth, minimum=1)
    z, s, v = xp.linalg.svd(teacher, full_matrices=False)
    if float(s[0]) == 0.0:
        raise ValueError("B must not be zero: nothing would be learnt")
    modes = int((s > _MODE_CUTOFF * s[0]).sum())
    z, s, v = z[:, :modes], s[:modes], v[:modes]
    along = inputs @ v.T
    num_examples, num_outputs = inputs.shape[0], teacher.shape[0]
    kernel = xp.zeros((num_examples, num_examples, num_outputs, num_outputs), dtype=inputs.dtype)
    for layer in range(1, depth + 1):
        above = xp.eye(num_outputs, dtype=inputs.dtype)
        if layer < depth:
            above = (z * s ** (2.0 * (depth - layer) / depth)) @ z.T
        below = inputs @ inputs.T if layer == 1 else (along * s ** (2.0 * (layer - 1) / depth)) @ along.T
        kernel += below[:, :, None, None] * above
    return _as_given(kernel[:, :, 0, 0] if num_outputs == 1 else kernel, X)


def _check_inputs(X: Any) -> Any:
    inputs = as_array("X", X, ndim=2)
    if 0 in inputs.shape:
        raise ValueError(f"X must have at least one example and one feature, got shape {inputs.shape}")
    return inputs


def _as_given(result: Any, template: Any) -> Any:
    return result if is_cupy(result) else like(result, template)
