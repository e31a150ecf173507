"""Kernel regression with a given kernel, at its end or stopped on the way."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np

from kernelgrowth._backend.arrays import FloatArray, like
from kernelgrowth._backend.checks import check_choice, check_integer, check_number
from kernelgrowth._backend.errors import NotConvergedWarning
from kernelgrowth._backend.memory import resolve_memory_limit
from kernelgrowth.diagnostics.direct import DirectSolver
from kernelgrowth.diagnostics.flow import KernelFlow
from kernelgrowth.diagnostics.iterative import ROUNDING_CUTOFF, IterativeSolver
from kernelgrowth.diagnostics.kernel_input import (
    as_offset,
    as_targets,
    cross_kernel,
    is_factorised,
    mean_diagonal,
    stored_kernel,
)
from kernelgrowth.diagnostics.krylov_flow import KrylovFlow
from kernelgrowth.diagnostics.scaled_operator import ScaledOperator, probed
from kernelgrowth.spectra.dense import scaled_symmetric
from kernelgrowth.spectra.operand import is_operator, operator_dtype
from kernelgrowth.spectra.symmetry import check_symmetric

__all__ = ["KernelRegression"]


class KernelRegression:
    """Regression ``f(x) = f_0(x) + k(x)ᵀ (K + μ I)⁻¹ (y - f_0)``, that of a network with a frozen kernel.

    Parameters
    ----------
    K : (n, n) array, NTKOperator, or linear operator
        Kernel of the training examples, float32 or float64, symmetric positive semi-definite up to rounding. An array
        is solved in float64 and copied, so that it may change afterwards. An operator is anything with ``.shape``,
        ``.dtype`` and ``K @ V`` for V of shape (n, m), such as SciPy's `LinearOperator`; where it is not factorised it
        must stay as it is as long as the regression is used.
    diag_reg : float
        Ridge μ >= 0, relative to the mean diagonal entry of K. An operator that is not factorised tells that by
        ``.trace()`` or ``.diagonal()``; for one that has neither, give `absolute`.
    absolute : bool
        Take `diag_reg` as μ itself.
    method : {"auto", "direct", "cg"}
        "direct" factorises K, which an operator is written out for; "cg" makes products with K, preconditioned
        conjugate gradients. "auto" factorises arrays, and operators of at most 4096 rows whose factorisation fits
        `memory_limit`: n³/3 multiplications (2e10 at 4096, about a second) and 40 n² bytes at most (640 MiB).
    rank : int, optional
        For "cg": eigenpairs of the low-rank (Nyström) approximation that preconditions, which costs about as many
        columns of products; 0 for no preconditioner. By default it is multiplied by four, from 32, as long as the
        iterations that its smallest eigenvalue still calls for cost more columns than the next approximation, up to
        512, n / 2, and what fits `memory_limit`.
    tol : float
        For "cg": wanted ``||(K + μ I) α - (y - f_0)|| / ||y - f_0||`` for each column of the targets, and accuracy of
        ``f(t)`` on the training examples in the same units.
    max_iterations : int
        For "cg": products with the targets' columns in `fit`, and dimension of each Krylov space in `predict_at`.
    seed : int
        For "cg": of the random vectors that probe K and make the preconditioner.
    memory_limit : int, optional
        Bytes that factorising an operator, making the preconditioner, or the Krylov spaces of `predict_at` may take;
        half of the available memory by default.

    Attributes
    ----------
    method : {"cholesky", "eigh", "cg"}
        How the system was solved. The second is the fall-back of "direct" for a singular K (duplicate examples, more
        examples than the kernel has features): eigenvalues at or below ``n * eps * λ_1`` are dropped, eps being that of
        the dtype of K (of float64 when μ > 0, since the ridge says how much of the spectrum to trust), and so are those
        within four times the most negative one of zero, which is rounding. The result is then the pseudo-inverse's.
        "cg" is conjugate gradients in the form that minimises the residual, and converges to the pseudo-inverse's
        result as well, of an inconsistent system too. It does not see single eigenvalues: it ends where what is left of
        the target has a curvature of at most ``16 eps ||K||``. Where eigenvalues fall through that of `eigh` without a
        gap, both results depend on the cut-off, and a ridge is the remedy.
    rank : int
        Number of eigenvalues kept; n for Cholesky; for "cg" that of the preconditioner.
    condition : float
        Largest over smallest eigenvalue kept, of K + μ I; for Cholesky, LAPACK's estimate of its condition number in
        the 1-norm; for "cg" an estimate, from below but for the preconditioner's errors, of which the largest is the
        preconditioner's or the iteration's and the smallest a Ritz value of the iteration. NaN where no eigenvalue is
        kept or no iteration was made.
    residual : float
        ``||(K + μ I) α - (y - f_0)|| / ||y - f_0||``, by the products that the operator makes: rounding, or the share
        of the target that K cannot express; 0 for a zero target.
    iterations : int
        Products with the targets' columns that "cg" made beyond its preconditioner; 0 for the others.

    Warns
    -----
    NotConvergedWarning
        If "cg" does not reach `tol` in `max_iterations`: in `fit`, with the regression itself as the attribute
        ``partial`` of the warning, in `predict_at` with the predictions and in `stopping_time` with the time. There is
        none where `residual` is larger because of the rounding of K's own dtype.

    Raises
    ------
    ValueError
        If K is not square, not symmetric or not finite, or `diag_reg` is negative; in `fit`, if K is clearly not
        positive semi-definite. Of an operator that is not factorised only what its products show is checked.
    MemoryLimitError
        If factorising an operator as told does not fit `memory_limit`; in `fit`, if a preconditioner of the given rank
        does not; in `predict_at` and `stopping_time`, if the Krylov spaces do not.

    Notes
    -----
    Memory of "direct": two float64 copies of K, four for the fall-back and for `predict_at`. Work: n³/3 multiplications
    for Cholesky, some thirty times that for the others. Memory of "cg": ``n (8 rank + 12 m)`` float64 values for m
    columns of targets, in `predict_at` n values a column and dimension. Work: about ``2 rank + iterations * m``
    columns of products at most.

    Atanasov, Bordelon and Pehlevan (arXiv 2111.00034) compare a trained network with this predictor for its initial and
    its final kernel; Frangella, Tropp and Udell (2023, arXiv 2110.02820) analyse the preconditioner.
    """

    method: str
    rank: int
    condition: float
    residual: float
    iterations: int

    def __init__(
        self,
        K: Any,
        *,
        diag_reg: float = 0.0,
        absolute: bool = False,
        method: str = "auto",
        rank: int | None = None,
        tol: float = 1e-8,
        max_iterations: int = 1000,
        seed: int = 0,
        memory_limit: int | None = None,
    ) -> None:
        check_choice("method", method, ("auto", "direct", "cg"))
        rank = None if rank is None else check_integer("rank", rank, minimum=0)
        self._tol = check_number("tol", tol, minimum=0.0, exclusive_minimum=True)
        max_iterations = check_integer("max_iterations", max_iterations, minimum=1)
        seed = check_integer("seed", seed, minimum=0)
        limit = resolve_memory_limit(memory_limit)
        diag_reg = check_number("diag_reg", diag_reg, minimum=0.0)
        if not isinstance(absolute, bool):
            raise TypeError(f"absolute must be True or False, got {absolute!r}")
        if is_factorised("K", K, method, limit) or not is_operator(K):
            kernel = stored_kernel("K", K)
            matrix, self._exponent = scaled_symmetric(kernel, check_symmetric("K", kernel))
            operator, precision = ScaledOperator("K", matrix, matrix.dtype), kernel.dtype
            mean = float(np.mean(np.diag(matrix)))
        else:
            operator = probed("K", K, seed)
            matrix, self._exponent, precision = None, operator.exponent, operator.dtype
            mean = 1.0 if absolute or diag_reg == 0 else _scaled(mean_diagonal("K", K), -self._exponent)
        ridge = _scaled(diag_reg, -self._exponent) if absolute else diag_reg * max(0.0, mean)
        eps = float(np.finfo(np.float64 if ridge > 0 else precision).eps)
        self._rows = operator.shape[0]
        self._solver: DirectSolver | IterativeSolver
        if matrix is not None and method != "cg":
            self._solver = DirectSolver(matrix, ridge, self._rows * eps)
        else:
            self._solver = IterativeSolver(
                operator,
                ridge=ridge,
                cutoff=ROUNDING_CUTOFF * eps,
                rank=rank,
                tol=self._tol,
                max_iterations=max_iterations,
                seed=seed,
                memory_limit=limit,
            )
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
        targets, self._per_row = as_targets("y", y, self._rows)
        self._outputs = targets.shape[1]
        self._flat = np.ndim(y) == 1
        self._has_offset = f0 is not None
        residuals = targets if f0 is None else targets - as_offset(f0, targets.shape)
        self._examples = len(residuals)
        self._residuals = residuals.reshape(-1, 1) if self._per_row else residuals

        found = self._solver.solve(self._residuals, self._examples)
        self._coefficients = found.coefficients
        self.method, self.rank, self.condition = found.method, found.rank, found.condition
        self.residual, self.iterations = found.residual, found.iterations
        if found.shortfall:
            message = f"KernelRegression.fit: {found.shortfall}; raise max_iterations, rank, tol or diag_reg"
            warnings.warn(NotConvergedWarning(message, partial=self), stacklevel=2)
        return self

    def predict(self, K_test_train: Any, f0: Any = None) -> Any:
        """Return ``f_0 + K_test_train α``.

        Parameters
        ----------
        K_test_train : (M, n) array, NTKOperator, or linear operator
            Kernel between test and training examples; (M * C, n) where K has a row for each output. An operator that
            has no ``.gram()``, or more than 4096² entries, is not written out: it makes one product with α.
        f0 : (M,) or (M, C) array, optional
            Predictions before training on the test examples; wanted exactly when `fit` had them.

        Returns
        -------
        (M,) or (M, C) array
            Like the targets of `fit`, in the dtype and kind of `K_test_train` (NumPy for an operator).

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
        settled = True
        if t is not None and train_loss is None:
            time = _scaled(math.inf if t == math.inf else check_number("t", t, minimum=0.0), self._exponent)
        elif train_loss is not None and t is None:
            time = flow.time_of_loss(check_number("train_loss", train_loss, minimum=0.0))
            settled = flow.settled
        else:
            raise ValueError(
                f"exactly one of t and train_loss must be given, got t={t!r} and train_loss={train_loss!r}"
            )
        predictions = self._apply(K_test_train, flow.coefficients(time), f0)
        if not (settled and flow.settled):
            self._warn_of_error(flow, "predict_at", predictions)
        return predictions

    def stopping_time(self, train_loss: float) -> float:
        """Return the time at which the flow of `predict_at` has this training loss; infinity for its final loss.

        Raises
        ------
        ValueError
            If the flow never has that loss.
        """
        loss = check_number("train_loss", train_loss, minimum=0.0)
        flow = self._flow_of_fit()
        time = _scaled(flow.time_of_loss(loss), -self._exponent)
        if not flow.settled:
            self._warn_of_error(flow, "stopping_time", time)
        return time

    def _flow_of_fit(self) -> KernelFlow | KrylovFlow:
        if self._residuals is None:
            raise RuntimeError("KernelRegression.predict_at needs fit first")
        return self._solver.flow(self._residuals, self._examples)

    def _warn_of_error(self, flow: KernelFlow | KrylovFlow, caller: str, partial: Any) -> None:
        message = (
            f"KernelRegression.{caller}: the flow is known to {flow.error:.1e} of y - f0, wanted {self._tol:.1e} or "
            "less, from Krylov spaces of max_iterations dimensions; raise that, tol or diag_reg"
        )
        warnings.warn(NotConvergedWarning(message, partial=partial), stacklevel=3)

    def _apply(self, K_test_train: Any, coefficients: FloatArray, f0: Any) -> Any:
        kernel = cross_kernel("K_test_train", K_test_train)
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
        if isinstance(kernel, np.ndarray):
            dtype = kernel.dtype
            predictions = np.ldexp(kernel.astype(np.float64), -self._exponent) @ coefficients
        else:
            operator = ScaledOperator("K_test_train", kernel, operator_dtype("K_test_train", kernel), self._exponent)
            dtype, predictions = operator.dtype, operator.exact(coefficients)
        predictions = predictions.reshape(-1, self._outputs)
        if f0 is not None:
            predictions = predictions + as_offset(f0, predictions.shape)
        result = (predictions[:, 0] if self._flat else predictions).astype(dtype)
        return like(result, K_test_train)


def _scaled(time: float, exponent: int) -> float:
    """Return ``time * 2**exponent``, infinite where that overflows."""
    with np.errstate(over="ignore", under="ignore"):
        return float(np.ldexp(time, exponent))
