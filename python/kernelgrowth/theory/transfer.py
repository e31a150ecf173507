"""Learning curves of kernel regression with a kernel that has learnt another task before."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernelgrowth._backend.arrays import FloatArray
from kernelgrowth._backend.checks import check_integer, check_number
from kernelgrowth.theory.arguments import as_curve, check_values

__all__ = ["transfer_curve"]

_MAX_STEPS = 200


def transfer_curve(n: Any, dim: int, spike: float, overlap: float, *, ridge: float = 0.0) -> Any:
    """Test error of regression with the kernel ``x^T (A beta beta^T + I) x'`` on a task that overlaps with beta.

    Inputs are Gaussian, ``x ~ N(0, I)`` in D dimensions, and targets ``w . x`` with
    ``w = alpha beta + sqrt(1 - alpha^2) w_perp``. The kernel's eigenvalues are ``1 + A`` once and 1 otherwise; with
    ``kappa = ridge + kappa sum_k lambda_k / (lambda_k P + kappa)`` and
    ``gamma = P sum_k lambda_k^2 / (lambda_k P + kappa)^2``,
    ``E_g = kappa^2 / (1 - gamma) sum_k w_k^2 / (lambda_k P + kappa)^2``.

    Parameters
    ----------
    n : int or array_like of numbers
        Training examples P of the new task, >= 0.
    dim : int
        Input dimension D, at least 2.
    spike : float
        Spike strength A, at least 0: L - 1 for the final kernel of a network of L layers (see `final_kernel`), 0 for
        one that has learnt nothing.
    overlap : float in [-1, 1]
        ``alpha``, the cosine between the new task and the old.
    ridge : float
        What is added to the diagonal of the kernel matrix, at least 0.

    Returns
    -------
    float or ndarray of the shape of `n`, float64
        ``E_g``, the mean of ``(f(x) - w . x)^2`` over new inputs and training sets: 1 at P = 0, and 0 for P >= D where
        there is no ridge.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type, not finite or out of range.

    Notes
    -----
    Derivation: averaged over training sets, regression leaves the share ``kappa / (lambda_k P + kappa)`` of mode k
    unlearnt, and ``1 / (1 - gamma)`` adds the variance over training sets (Bordelon, Canatar, Pehlevan 2020, by
    replicas). The eigenfunctions are the coordinates of x, of unit variance, with ``w_k`` alpha along beta and
    ``sqrt(1 - alpha^2)`` across.

    Valid for large D and P. At D = 25 it is within 5 % of simulation for P = 5, 10, 20, A <= 10 and alpha <= 0.75; but
    for alpha = 1 and A >= 5, where one mode alone decides, it is 7 to 24 % too low, and where a small ridge alone
    leaves an error (P > D) about 10 %.
    """
    examples = check_values("n", n, "number of examples", minimum=0.0)
    dim = check_integer("dim", dim, minimum=2)
    spike = check_number("spike", spike, minimum=0.0)
    overlap = check_number("overlap", overlap, minimum=-1.0, maximum=1.0)
    ridge = check_number("ridge", ridge, minimum=0.0)
    eigenvalues, counts = np.array([1.0 + spike, 1.0]), np.array([1.0, dim - 1.0])
    power = np.array([overlap**2, 1.0 - overlap**2])
    errors = [_error(float(p), ridge, eigenvalues, counts, power) for p in examples.flat]
    return as_curve(np.array(errors).reshape(examples.shape), n)


def _error(p: float, ridge: float, eigenvalues: FloatArray, counts: FloatArray, power: FloatArray) -> float:
    """Return E_g for eigenvalues that occur `counts` times and hold `power` of the target."""
    if ridge == 0.0 and p >= counts.sum():
        # As many examples as dimensions determine the target.
        return 0.0
    kappa = _kappa(p, ridge, eigenvalues, counts)
    left = 1.0 / (eigenvalues * p + kappa)
    # 1 - gamma = ridge/kappa + kappa sum_k lambda_k left_k^2, by the equation of kappa: nothing cancels.
    return float(kappa**3 * (power @ left**2) / (ridge + kappa**2 * (counts * eigenvalues) @ left**2))


def _kappa(p: float, ridge: float, eigenvalues: FloatArray, counts: FloatArray) -> float:
    """Solve ``kappa = ridge + kappa sum_k lambda_k / (lambda_k p + kappa)`` for its positive root."""
    # The right side is concave, so Newton's iteration from above comes down to the root without passing it.
    kappa = ridge + float(counts @ eigenvalues)
    for _ in range(_MAX_STEPS):
        share = counts * eigenvalues / (eigenvalues * p + kappa)
        excess = kappa - ridge - kappa * float(share.sum())
        slope = 1.0 - float(share @ (eigenvalues * p / (eigenvalues * p + kappa)))
        step = excess / slope
        if step <= 1e-15 * kappa:
            break
        kappa -= step
    return kappa
