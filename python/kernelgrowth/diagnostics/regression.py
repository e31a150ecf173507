"""Kernel regression with a given kernel, at its end or stopped on the way."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy.linalg

from kernelgrowth._backend.arrays import FloatArray, as_array, like, to_numpy
from kernelgrowth._backend.checks import check_number
from kernelgrowth.diagnostics.flow import KernelFlow
from kernelgrowth.diagnostics.kernel_input import as_kernel, as_targets
from kernelgrowth.spectra.dense import scaled_symmetric
from kernelgrowth.spectra.symmetry import check_symmetric

__all__ = ["KernelRegression"]

# A kernel whose most negative eigenvalue is beyond this share of the largest is not the Gram matrix of anything.
_INDEFINITE = 1e-3


class KernelRegression:
    """Regression ``f(x) = f_0(x) + k(x)ᵀ (K + μ I)⁻¹ (y - f_0)``, that of a network with a frozen kernel.

    Parameters
    ----------
    K : (n, n) array or NTKOperator
        Kernel of the training examples, float32 or float64, symmetric positive semi-definite up to rounding. It is
        solved in float64 and copied, so that it may change afterwards.
    diag_reg : float
        Ridge μ >= 0, relative to the mean diagonal entry of K.
    absolute : bool
        Take `diag_reg` as μ itself.

    Attributes
    ----------
    method : {"cholesky", "eigh"}
        How the system was solved. The second is the fall-back for a singular K (duplicate examples, more examples than
        the kernel has features): eigenvalues at or below ``n * eps * λ_1`` are dropped, eps being that of the dtype of
        K (of float64 when μ > 0, since the ridge says how much of the spectrum to trust), and so are those within four
        times the most negative one of zero, which is rounding. The result is then the pseudo-inverse's.
    rank : int
        Number of eigenvalues kept; n for Cholesky.
    condition : float
        Largest over smallest eigenvalue kept, of K + μ I; for Cholesky, LAPACK's estimate of its condition number in
        the 1-norm. NaN at rank 0.
    residual : float
        ``||(K + μ I) α - (y - f_0)|| / ||y - f_0||``: rounding, or the share of the target that K cannot express; 0 for
        a zero target.

    Raises
    ------
    ValueError
        If K is not square, not symmetric or not finite, or `diag_reg` is negative; in `fit`, if K is clearly not
        positive semi-definite.

    Notes
    -----
    Memory: two float64 copies of K, four for the fall-back and for `predict_at`. Work: n³/3 multiplications for
    Cholesky, some thirty times that for the others. Atanasov, Bordelon and Pehlevan (arXiv 2111.00034) compare a
    trained network with this predictor for its initial and its final kernel.
    """

    method: str
    rank: int
    condition: float
    residual: float

    def __init__(self, K: Any, *, diag_reg: float = 0.0, absolute: bool = False) -> None:
        kernel = as_kernel("K", K, square=True)
        diag_reg = check_number("diag_reg", diag_reg, minimum=0.0)
        if not isinstance(absolute, bool):
            raise TypeError(f"absolute must be True or False, got {absolute!r}")
        self._kernel, self._exponent = scaled_symmetric(kernel, check_symmetric("K", kernel))
        self._ridge = _scaled(diag_reg, -self._exponent)
        if not absolute:
            self._ridge = diag_reg * max(0.0, float(np.mean(np.diag(self._kernel))))
        eps = np.finfo(np.float64 if self._ridge > 0 else kernel.dtype).eps
        self._cutoff = float(len(kernel) * eps)
        self._eigen: tuple[FloatArray, FloatArray] | None = None
        self._flow: KernelFlow | None = None
        self._coefficients: FloatArray | None = None
        self._residuals: FloatArray | None = None
        self._examples, self._outputs = 0, 0
        self._per_row, self._flat, self._has_offset = False, False, False

    def fit(self, y: Any, f0: Any = None) -> KernelRegression:
        """Solve for targets and return self.

        Parameters
        ----------
        y : (N,) or (N, C) array
            Training targets; K has N * C rows (example-major) or N rows shared by all outputs.
        f0 : array of the shape of y, optional
            Predictions before training on the training examples; given here, they must be given to the prediction too.

        Raises
        ------
        ValueError
            If a shape does not fit or a value is not finite.
        """
        targets, self._per_row = as_targets("y", y, len(self._kernel))
        self._outputs = targets.shape[1]
        self._flat = np.ndim(y) == 1
        self._has_offset = f0 is not None
        residuals = targets if f0 is None else targets - _as_offset(f0, targets.shape)
        self._examples = len(residuals)
        residuals = residuals.reshape(-1, 1) if self._per_row else residuals
        self._residuals, self._flow = residuals, None

        solution = self._solve_cholesky(residuals)
        if solution is None:
            flow = self._flow_of_fit()
            solution = flow.coefficients(math.inf)
            self.method, self.rank, self.condition = "eigh", flow.rank, flow.condition
        self._coefficients = solution
        norm = float(np.linalg.norm(residuals))
        error = float(np.linalg.norm(self._kernel @ solution + self._ridge * solution - residuals))
        self.residual = error / norm if norm > 0 else 0.0
        return self

    def predict(self, K_test_train: Any, f0: Any = None) -> Any:
        """Return ``f_0 + K_test_train α``.

        Parameters
        ----------
        K_test_train : (M, n) array or NTKOperator
            Kernel between test and training examples; (M * C, n) where K has a row for each output.
        f0 : (M,) or (M, C) array, optional
            Predictions before training on the test examples; wanted exactly when `fit` had them.

        Returns
        -------
        (M,) or (M, C) array
            Like the targets of `fit`, in the dtype and kind of `K_test_train`.

        Raises
        ------
        RuntimeError
            Before `fit`.
        ValueError
            If a shape does not fit, or `f0` was given to `fit` and not here or the other way round.
        """
        if self._coefficients is None:
            raise RuntimeError("KernelRegression.predict needs fit first")
        return self._apply(K_test_train, self._coefficients, f0)

    def predict_at(
        self, K_test_train: Any, t: float | None = None, train_loss: float | None = None, f0: Any = None
    ) -> Any:
        """Return the predictions of kernel gradient flow stopped on its way to `predict`.

        The flow is that of the loss ``½⟨(f - y)²⟩`` (mean over the N training examples, sum over outputs) at rate 1,
        ``df/dt = -K (f - y) / N`` from ``f_0``, so that on the training examples
        ``f(t) - y = exp(-K t / N) (f_0 - y)``. With a ridge it is the flow with weight decay μ / N, which ends in the
        ridge solution. Directions that the pseudo-inverse drops stay at rest.

        Parameters
        ----------
        K_test_train, f0
            As in `predict`.
        t : float
            Time at which the flow is stopped, 0 to infinity (where it equals `predict`).
        train_loss : float
            Instead of a time, the training loss at which it is stopped: between the loss of ``f_0`` and that at t = ∞.

        Returns
        -------
        (M,) or (M, C) array
            Like those of `predict`.

        Raises
        ------
        ValueError
            If not exactly one of `t` and `train_loss` is given, a time is negative, or the flow never has that loss.
        """
        flow = self._flow_of_fit()
        if t is not None and train_loss is None:
            time = math.inf if t == math.inf else check_number("t", t, minimum=0.0)
        elif train_loss is not None and t is None:
            time = self.stopping_time(train_loss)
        else:
            raise ValueError(
                f"exactly one of t and train_loss must be given, got t={t!r} and train_loss={train_loss!r}"
            )
        return self._apply(K_test_train, flow.coefficients(_scaled(time, self._exponent)), f0)

    def stopping_time(self, train_loss: float) -> float:
        """Return the time at which the flow of `predict_at` has this training loss; infinity for its final loss.

        Raises
        ------
        ValueError
            If the flow never has that loss.
        """
        loss = check_number("train_loss", train_loss, minimum=0.0)
        return _scaled(self._flow_of_fit().time_of_loss(loss), -self._exponent)

    def _solve_cholesky(self, residuals: FloatArray) -> FloatArray | None:
        """Return the solution by Cholesky, or None if the system is singular up to the cut-off."""
        system = self._kernel.copy()
        system.flat[:: len(system) + 1] += self._ridge
        norm = np.linalg.norm(system, 1)
        try:
            factor = scipy.linalg.cho_factor(system, lower=True, overwrite_a=True, check_finite=False)
        except scipy.linalg.LinAlgError:
            return None
        reciprocal = float(scipy.linalg.lapack.dpocon(factor[0], norm, uplo="L")[0])
        if not reciprocal > self._cutoff:
            return None
        self.method, self.rank, self.condition = "cholesky", len(system), max(1.0, 1.0 / reciprocal)
        return np.asarray(scipy.linalg.cho_solve(factor, residuals, check_finite=False))

    def _flow_of_fit(self) -> KernelFlow:
        if self._residuals is None:
            raise RuntimeError("KernelRegression.predict_at needs fit first")
        if self._eigen is None:
            values, vectors = scipy.linalg.eigh(self._kernel, driver="evd", check_finite=False)
            largest = float(np.abs(values).max())
            if values[0] < -_INDEFINITE * largest:
                raise ValueError(
                    "K must be positive semi-definite up to rounding, got an eigenvalue of "
                    f"{values[0] / largest:.2g} times the largest absolute one"
                )
            self._eigen = values, vectors
        if self._flow is None:
            self._flow = KernelFlow(
                *self._eigen, self._residuals, ridge=self._ridge, cutoff=self._cutoff, examples=self._examples
            )
        return self._flow

    def _apply(self, K_test_train: Any, coefficients: FloatArray, f0: Any) -> Any:
        kernel = as_kernel("K_test_train", K_test_train)
        group = self._outputs if self._per_row else 1
        if kernel.shape[1] != len(coefficients) or kernel.shape[0] % group:
            raise ValueError(
                f"K_test_train must have {len(coefficients)} columns"
                f"{f' and a multiple of {group} rows' if group > 1 else ''}, got shape {kernel.shape}"
            )
        if (f0 is not None) != self._has_offset:
            where = "fit but not to the prediction" if self._has_offset else "the prediction but not to fit"
            raise ValueError(f"f0 must be given both to fit and to the prediction, or to neither: it came to {where}")
        # The coefficients are those of the scaled kernel, so that neither side leaves the range of float64.
        scaled = np.ldexp(kernel.astype(np.float64), -self._exponent)
        predictions = (scaled @ coefficients).reshape(-1, self._outputs)
        if f0 is not None:
            predictions = predictions + _as_offset(f0, predictions.shape)
        result = (predictions[:, 0] if self._flat else predictions).astype(kernel.dtype)
        return like(result, K_test_train)


def _as_offset(f0: Any, shape: tuple[int, ...]) -> FloatArray:
    offset = to_numpy(as_array("f0", f0, ndim=(1, 2))).astype(np.float64)
    if offset.ndim == 1 or (shape[1] == 1 and offset.size == shape[0]):
        # Predictions (N, C) beside targets over the N * C rows of the kernel are in the same order.
        offset = offset.reshape(-1, 1)
    if offset.shape != shape:
        raise ValueError(f"f0 must have shape {shape} (examples, outputs), got {offset.shape}")
    return offset


def _scaled(time: float, exponent: int) -> float:
    """Return ``time * 2**exponent``, infinite where that overflows."""
    with np.errstate(over="ignore", under="ignore"):
        return float(np.ldexp(time, exponent))
