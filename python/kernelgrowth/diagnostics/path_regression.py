"""Regression with a kernel that changes along training."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.linalg

from kernelgrowth._backend.arrays import FloatArray, like
from kernelgrowth.diagnostics.conjugate_gradients import INDEFINITE
from kernelgrowth.diagnostics.kernel_input import as_offset, as_targets
from kernelgrowth.diagnostics.kernel_series import KernelSeries, as_times

__all__ = ["PathRegression"]

Float64Array = npt.NDArray[np.float64]


class PathRegression:
    """Gradient flow ``df/dt = -K_t (f - y) / N`` along recorded kernels, that of a network whose kernel changes.

    It is what `KernelRegression` is for one frozen kernel: where the network agrees with this prediction and not with
    that of K_0 or K_∞, the kernel's whole history decided what it learnt.

    Parameters
    ----------
    times : (T,) array
        When the kernels were recorded, ascending, T >= 2: the sum of the learning rate over the updates, as
        ``history["time"]``, with the tangent kernel; numbers of updates with an optimizer's kernel J diag(η_t) Jᵀ.
    kernels : sequence or iterable of T (n, n) arrays or NTKOperators, or (T, n, n) array
        K_t of the training examples, symmetric positive semi-definite up to rounding. `fit` reads them once, one at a
        time, so that a generator over a run's stored kernels will do.

    Attributes
    ----------
    train_path : float64 array (T, N) or (T, N, C)
        Outputs on the training examples at `times`, from `fit` on.
    losses : float64 array (T,)
        ``½⟨(f - y)²⟩`` there, a mean over the N examples; beside the network's own losses they show how well the
        recorded kernels explain its training.

    Raises
    ------
    TypeError, ValueError
        If the times do not ascend, or a kernel is missing, is of another shape or dtype than the first, not symmetric
        or not finite; in `fit`, if one is clearly not positive semi-definite. The message names the argument.

    Notes
    -----
    Between two times the kernel is taken as the mean of both, which is solved exactly, so that fast modes may decay
    within one of these steps, and a kernel that does not change gives `KernelRegression.predict_at` to rounding. The
    error falls with the square of the time between kernels. It is gradient flow; gradient descent with steps η
    departs from it by what is of the order of η. `fit` makes T - 1 eigendecompositions (about 10 n³ operations each)
    and holds five float64 matrices of the size of K, and (T - 1) n C numbers for the prediction.

    This is eq. 2 of Atanasov, Bordelon and Pehlevan (arXiv 2111.00034), its integrating factor multiplied up step by
    step, as kernels of different times do not commute.

    Examples
    --------
    With the kernels of a run that was tracked at every step of interest, and `crosses` the kernels between test and
    training examples at the same steps, which are the caller's to record (a run keeps the first and the last)::

        steps = history.kernel_steps
        times = history["time"][np.searchsorted(history.steps, steps)]
        model = PathRegression(times, (history.kernel(step) for step in steps))
        model.fit(history.targets, f0=history.predictions(steps[0]))
        model.predict(crosses, f0=history.test_predictions(steps[0]))
    """

    train_path: Float64Array
    losses: Float64Array

    def __init__(self, times: Any, kernels: Any) -> None:
        self._times = as_times(times)
        self._kernels = KernelSeries("kernels", kernels, len(self._times), symmetric=True)
        self._coefficients: list[Float64Array] = []
        self._outputs = 0
        self._per_row, self._flat, self._has_offset = False, False, False

    def fit(self, y: Any, f0: Any = None) -> PathRegression:
        """Follow the flow towards targets and return self.

        Parameters
        ----------
        y : (N,) or (N, C) array
            Training targets; the kernels have N * C rows (example-major) or N rows shared by all outputs.
        f0 : array of the shape of y, optional
            Outputs on the training examples at the first time; given here, they must be given to `predict` too.

        Raises
        ------
        ValueError
            If a shape does not fit or a value is not finite.
        """
        self._coefficients = []
        kernels = iter(self._kernels)
        before = next(kernels)
        targets, self._per_row = as_targets("y", y, len(before))
        self._flat, self._outputs, self._has_offset = np.ndim(y) == 1, targets.shape[1], f0 is not None
        start = np.zeros_like(targets) if f0 is None else as_offset(f0, targets.shape)
        remaining: Any = (targets - start).reshape(len(before), -1)
        coefficients, path = [], [start]
        for i, kernel in enumerate(kernels, start=1):
            span = float(self._times[i] - self._times[i - 1]) / len(targets)
            name = f"the mean of kernels[{i - 1}] and kernels[{i}]"
            step, remaining = _advance(0.5 * before + 0.5 * kernel, remaining, span, name)
            coefficients.append(step)
            path.append(targets - remaining.reshape(targets.shape))
            before = kernel
        self._coefficients = coefficients
        outputs: Float64Array = np.stack(path).astype(np.float64, copy=False)
        self.losses = np.sum((outputs - targets) ** 2, axis=(1, 2)) / (2 * len(targets))
        self.train_path = outputs[:, :, 0] if self._flat else outputs
        return self

    def predict(self, cross_kernels: Any, f0: Any = None) -> Any:
        """Return the outputs on test examples at the last time.

        Parameters
        ----------
        cross_kernels : sequence or iterable of T (M, n) arrays or NTKOperators, or (T, M, n) array
            Kernels between test and training examples at the same times; (M * C, n) where the kernels have a row for
            each output. They are read one at a time.
        f0 : (M,) or (M, C) array, optional
            Outputs on the test examples at the first time; wanted exactly when `fit` had them.

        Returns
        -------
        (M,) or (M, C) array
            Like the targets of `fit`, in the dtype and kind of the first cross kernel (NumPy for an operator).

        Raises
        ------
        RuntimeError
            Before `fit`.
        TypeError, ValueError
            If there is not one kernel for each time, or a shape or dtype does not fit; or if `f0` was given to `fit`
            and not here or the other way round.
        """
        series, steps = self._predictions(cross_kernels, f0)
        (last,) = deque(steps, maxlen=1)
        return like(last.astype(series.dtype), series.first)

    def predict_path(self, cross_kernels: Any, f0: Any = None) -> Any:
        """Return the outputs on test examples at every time, shape (T, M) or (T, M, C); the rest is as in `predict`."""
        series, steps = self._predictions(cross_kernels, f0)
        path = np.stack(list(steps))
        return like(path.astype(series.dtype), series.first)

    def _predictions(self, cross_kernels: Any, f0: Any) -> tuple[KernelSeries, Iterator[FloatArray]]:
        if not self._coefficients:
            raise RuntimeError("PathRegression.predict needs fit first")
        if (f0 is not None) != self._has_offset:
            where = "fit but not to the prediction" if self._has_offset else "the prediction but not to fit"
            raise ValueError(f"f0 must be given both to fit and to the prediction, or to neither: it came to {where}")
        columns = len(self._coefficients[0])
        series = KernelSeries("cross_kernels", cross_kernels, len(self._times), columns=columns)
        return series, self._steps(series, f0)

    def _steps(self, series: KernelSeries, f0: Any) -> Iterator[FloatArray]:
        group = self._outputs if self._per_row else 1
        kernels = iter(series)
        before = next(kernels)
        if len(before) % group:
            raise ValueError(f"cross_kernels must have a multiple of {group} rows, got shape {before.shape}")
        shape = (len(before) // group, self._outputs)
        total = np.zeros(shape) if f0 is None else as_offset(f0, shape)
        yield total[:, 0] if self._flat else total
        for coefficients, kernel in zip(self._coefficients, kernels, strict=True):
            total = total + ((0.5 * before + 0.5 * kernel) @ coefficients).reshape(shape)
            before = kernel
            yield total[:, 0] if self._flat else total


def _advance(
    kernel: Float64Array, remaining: Float64Array, span: float, name: str
) -> tuple[Float64Array, Float64Array]:
    """Return α with ``f(t + h) - f(t) = k α`` and y - f(t + h), for a kernel frozen over a time of h = N `span`."""
    rates, vectors = scipy.linalg.eigh(kernel, driver="evd", check_finite=False)
    if rates[0] < -INDEFINITE * float(np.abs(rates).max()):
        raise ValueError(
            f"kernels must be positive semi-definite up to rounding, but {name} has the eigenvalue {rates[0]:.3g} "
            f"beside {rates[-1]:.3g}"
        )
    decay = np.maximum(rates, 0.0) * span
    components = vectors.T @ remaining
    # (1 - exp(-z)) / z, whose limit at 0 is 1.
    shares = np.divide(-np.expm1(-decay), decay, out=np.ones_like(decay), where=decay > 0)
    return vectors @ ((span * shares)[:, None] * components), vectors @ (np.exp(-decay)[:, None] * components)
