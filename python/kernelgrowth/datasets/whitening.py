"""Whitening and partial whitening of inputs, in the polar (ZCA) form that has no sign ambiguity."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from kernelgrowth._backend.arrays import array_namespace, as_array, is_cupy, like
from kernelgrowth._backend.checks import check_number

__all__ = ["DEFAULT_RCOND", "Whitening", "partial_whiten", "whiten"]

# Directions whose singular value is below this fraction of the largest are rounding error, not data.
DEFAULT_RCOND = 1e-8


@dataclass(frozen=True, eq=False)
class Whitening:
    """The linear map that whitens one set of examples, to be applied to others.

    With the thin singular value decomposition ``X = U S V^T`` of the N rows that were fitted, restricted to the r
    singular values above the cut-off, the map is ``x -> x V diag(gains) V^T`` with
    ``gains_i = sqrt(N) s_i^(gamma - 1) / rms(s^gamma)``. So the fitted rows become
    ``X_gamma = sqrt(N) U S^gamma V^T / rms(s^gamma)``: their variance, averaged over the span, is 1 at every gamma.

    Directions off the span of the fitted rows are dropped, because the fitted rows say nothing of their scale.

    Attributes
    ----------
    basis : ndarray (r, D)
        Right singular vectors as rows: an orthonormal basis of the span of the fitted rows, in descending order of the
        singular values; the sign of each makes its entry of largest magnitude positive.
    singular_values : ndarray (r,), float64
        Singular values of the fitted rows, descending.
    gains : ndarray (r,), float64
        Factor on each coordinate along `basis`.
    gamma : float
        0 whitens, 1 only rescales.
    reduce : bool
        Whether `transform` returns the r coordinates along `basis` instead of the D ambient ones.
    """

    basis: Any
    singular_values: Any
    gains: Any
    gamma: float
    reduce: bool = False

    @classmethod
    def fit(cls, X: Any, gamma: float = 0.0, *, reduce: bool = False, rcond: float = DEFAULT_RCOND) -> Whitening:
        """Find the map that gives the rows of `X` the covariance of `partial_whiten`.

        Parameters
        ----------
        X : array_like (N, D), float32 or float64
            Examples as rows. They are not centred: the second moment about 0 is what a bias-free network sees.
        gamma : float in [0, 1]
            Exponent on the singular values.
        reduce : bool
            Whether `transform` returns coordinates in the r-dimensional span.
        rcond : float in [0, 1)
            Singular values below `rcond` (or the rounding error of the dtype of `X`, if that is larger) times the
            largest are dropped.

        Raises
        ------
        TypeError, ValueError
            If `X` is no finite, non-zero matrix of real numbers, or a parameter is out of range.

        Notes
        -----
        One singular value decomposition in float64: O(N D min(N, D)) operations, 8 N D bytes.
        """
        _, _, whitening = _decompose(X, gamma, reduce, rcond)
        return whitening

    @property
    def rank(self) -> int:
        """Dimension r of the span of the fitted rows."""
        return int(self.singular_values.shape[0])

    @property
    def num_features(self) -> int:
        """Ambient dimension D."""
        return int(self.basis.shape[1])

    def transform(self, X: Any) -> Any:
        """Apply the fitted map to the rows of `X`.

        Parameters
        ----------
        X : array_like (M, D), float32 or float64
            Examples as rows.

        Returns
        -------
        ndarray (M, D), or (M, r) with `reduce`
            In the dtype of `X`; computed in float64.
        """
        rows = as_array("X", X, ndim=2)
        if rows.shape[1] != self.num_features:
            raise ValueError(f"X must have the {self.num_features} features of the fitted rows, got shape {rows.shape}")
        array_namespace(rows, self.basis)
        coordinates = (rows.astype(self.basis.dtype) @ self.basis.T) * self.gains
        return _as_given(coordinates if self.reduce else coordinates @ self.basis, rows.dtype, X)


def whiten(X: Any, *, reduce: bool = False, rcond: float = DEFAULT_RCOND) -> Any:
    """Whiten the rows of `X` exactly: ``sqrt(N) U V^T`` for ``X = U S V^T``.

    Equals `partial_whiten` at gamma = 0. The covariance ``X^T X / N`` of the result is the projector on the span of
    the rows (the identity when they span all D dimensions); when the rows are independent (N <= D) its Gram matrix
    ``X X^T`` is N times the identity.

    Parameters
    ----------
    X : array_like (N, D), float32 or float64
        Examples as rows; not centred.
    reduce : bool
        Return coordinates (N, r) in an orthonormal basis of the r-dimensional span instead of ambient ones (N, D).
        The Gram matrix of the rows is the same.
    rcond : float in [0, 1)
        Singular values below `rcond` times the largest are dropped.

    Returns
    -------
    ndarray (N, D), or (N, r) with `reduce`
        In the dtype and kind of `X`; computed in float64.

    Raises
    ------
    TypeError, ValueError
        If `X` is no finite, non-zero matrix of real numbers, or `rcond` is out of range.

    See Also
    --------
    Whitening : the same map fitted once and applied to other examples.
    """
    return partial_whiten(X, 0.0, reduce=reduce, rcond=rcond)


def partial_whiten(X: Any, gamma: float, *, reduce: bool = False, rcond: float = DEFAULT_RCOND) -> Any:
    """Interpolate between whitened rows (gamma = 0) and the rows themselves (gamma = 1).

    ``X_gamma = sqrt(N) U S^gamma V^T / rms(s^gamma)`` for ``X = U S V^T`` (Atanasov, Bordelon, Pehlevan 2022,
    figure 4, where the prefactor is left open). The prefactor makes the variance, averaged over the r dimensions of the
    span, 1 at every gamma, so that one learning rate serves all of them: gamma = 1 returns
    ``X sqrt(N r) / |X|_F``. The result does not depend on the scale of `X`.

    Parameters
    ----------
    X : array_like (N, D), float32 or float64
        Examples as rows; not centred.
    gamma : float in [0, 1]
        Exponent on the singular values.
    reduce, rcond
        As in `whiten`.

    Returns
    -------
    ndarray (N, D), or (N, r) with `reduce`
        In the dtype and kind of `X`; computed in float64.
    """
    left, scaled, whitening = _decompose(X, gamma, reduce, rcond)
    # From U rather than from X V / s, whose error grows like 1 / s for the smallest singular values.
    coordinates = left * scaled
    given = as_array("X", X, ndim=2, finite=False)
    return _as_given(coordinates if reduce else coordinates @ whitening.basis, given.dtype, X)


def _decompose(X: Any, gamma: float, reduce: bool, rcond: float) -> tuple[Any, Any, Whitening]:
    """Return U, the singular values of X_gamma, and the map, all restricted to the span."""
    rows = as_array("X", X, ndim=2)
    exponent = check_number("gamma", gamma, minimum=0.0, maximum=1.0)
    cutoff = check_number("rcond", rcond, minimum=0.0, maximum=1.0, exclusive_maximum=True)
    if not isinstance(reduce, bool):
        raise TypeError(f"reduce must be True or False, got {reduce!r}")
    if 0 in rows.shape:
        raise ValueError(f"X must have at least one example and one feature, got shape {rows.shape}")
    xp = array_namespace(rows)
    largest = float(abs(rows).max())
    if largest == 0.0:
        raise ValueError("X must not be all zero: there is no direction to whiten")
    # Entries of order 1: squares of very large or very small entries would leave the range of float64.
    left, s, basis = xp.linalg.svd(rows.astype(xp.float64) / largest, full_matrices=False)
    kept = int((s > max(cutoff, float(xp.finfo(rows.dtype).eps)) * s[0]).sum())
    left, s, basis = left[:, :kept], s[:kept], basis[:kept]
    peaks = xp.take_along_axis(basis, abs(basis).argmax(axis=1)[:, None], axis=1)
    signs = xp.where(peaks < 0, -1.0, 1.0)
    left, basis = left * signs[:, 0], basis * signs
    power = (s / s[0]) ** exponent
    scaled = power * (math.sqrt(rows.shape[0]) / xp.sqrt((power**2).mean()))
    return left, scaled, Whitening(basis, s * largest, scaled / s / largest, exponent, reduce)


def _as_given(result: Any, dtype: Any, template: Any) -> Any:
    result = result.astype(dtype)
    return result if is_cupy(result) else like(result, template)
