"""Kernel gradient flow in the eigenbasis of the kernel."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from kernelgrowth._backend.arrays import FloatArray

__all__ = ["KernelFlow", "kept_rates", "time_where"]

# Rounding spreads the zero eigenvalues of a singular kernel to both sides alike; the most negative one shows how far.
_NOISE_MARGIN = 4.0


def kept_rates(rates: FloatArray, cutoff: float) -> npt.NDArray[np.bool_]:
    """Whether eigenvalues of K + μ I, not empty, exceed the cut-off and what rounding makes of zero."""
    return np.asarray(rates > max(cutoff * float(rates.max()), -_NOISE_MARGIN * float(rates.min()), 0.0))


class KernelFlow:
    """The flow ``df/dt = -K (f - y) / N`` (with weight decay μ / N), solved once and evaluated at any time.

    In the eigenbasis, the coefficients α of ``f(t) - f_0 = K α`` are those of ``y - f_0`` filtered by
    ``(1 - exp(-(λ + μ) t / N)) / (λ + μ)``.

    Parameters
    ----------
    values, vectors : (n,) and (n, n) float64 arrays
        Eigenvalues of K in ascending order, and its eigenvectors.
    residuals : (n, m) float64 array
        ``y - f_0``.
    ridge : float
        μ >= 0.
    cutoff : float
        Eigenvalues of K + μ I at or below this share of the largest are left out, as are those within four times the
        most negative one of zero.
    examples : int
        N, which the loss is averaged over.

    Attributes
    ----------
    rank : int
        Eigenvalues kept.
    condition : float
        Largest over smallest of them, NaN if there is none.
    error, settled
        As in `KrylovFlow`: the flow is known to rounding.
    """

    error, settled = 0.0, True

    def __init__(
        self,
        values: FloatArray,
        vectors: FloatArray,
        residuals: FloatArray,
        *,
        ridge: float,
        cutoff: float,
        examples: int,
    ) -> None:
        shifted = values + ridge
        keep = kept_rates(shifted, cutoff)
        self.rank = int(np.count_nonzero(keep))
        self._rates = shifted[keep]
        self._shares = np.clip(values[keep] / self._rates, 0.0, 1.0)
        self._vectors = vectors[:, keep]
        self._examples = examples
        components = vectors.T @ residuals
        self._components = components[keep]
        self._powers = np.sum(self._components**2, axis=1)
        self._still = float(np.sum(components[~keep] ** 2))
        self.condition = float(self._rates[-1] / self._rates[0]) if self.rank else math.nan

    def coefficients(self, t: float) -> FloatArray:
        """Return α at time t, (n, m); t may be infinite."""
        progress = -np.expm1(-self._rates * (t / self._examples))
        return np.asarray(self._vectors @ ((progress / self._rates)[:, None] * self._components))

    def loss(self, t: float) -> float:
        """Return ``½⟨(f(t) - y)²⟩`` on the training examples; it never increases with t."""
        # 1 - share * progress, without the cancellation that would hide a small remainder.
        remaining = (1.0 - self._shares) + self._shares * np.exp(-self._rates * (t / self._examples))
        return (self._still + float(np.sum(remaining**2 * self._powers))) / (2 * self._examples)

    def time_of_loss(self, loss: float) -> float:
        """Return the time at which the training loss equals `loss`.

        Raises
        ------
        ValueError
            If `loss` is above the loss at t = 0 or below that at t = ∞ by more than rounding.
        """
        first, last = self.loss(0.0), self.loss(math.inf)
        slack = 1e-12 * first
        if not last - slack <= loss <= first + slack:
            raise ValueError(f"train_loss must be between {last:.6g} (t = inf) and {first:.6g} (t = 0), got {loss:.6g}")
        if loss >= first:
            return 0.0
        if loss <= last:
            return math.inf
        return time_where(self.loss, loss, start=self._examples / float(self._rates[-1]))


def time_where(curve: Callable[[float], float], loss: float, *, start: float) -> float:
    """Return the time at which a falling `curve` equals `loss`, sought from the time `start` on; infinity if nowhere.

    `loss` lies below ``curve(0)`` and above ``curve(inf)``.
    """
    from scipy.optimize import brentq

    # The logarithms make decades of decay equally long.
    low = high = start
    while low > 0 and curve(low) < loss:
        low /= 4
    while curve(high) > loss:
        high *= 4
    if low == high or low == 0 or math.isinf(high):
        return low if low == 0 else high
    target = math.log(loss)
    root = brentq(
        lambda s: math.log(max(curve(math.exp(s)), 5e-324)) - target, math.log(low), math.log(high), xtol=1e-14
    )
    return math.exp(root)
