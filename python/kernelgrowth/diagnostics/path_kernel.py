"""The kernel integrated along training, and what a network predicts as a kernel machine with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kernelgrowth._backend.arrays import FloatArray, as_array, like, to_numpy
from kernelgrowth.diagnostics.kernel_input import as_offset
from kernelgrowth.diagnostics.kernel_series import KernelSeries, as_times

__all__ = ["path_kernel", "path_prediction"]


def path_kernel(times: Any, kernels: Any, loss_gradients: Any = None) -> Any:
    """Return the path kernel ``∫ K_t(x, x') dt``, or with `loss_gradients` ``∫ K_t(x, x_i) ∂L/∂f(x_i) dt``.

    Parameters
    ----------
    times : (T,) array
        When the kernels were recorded, ascending, T >= 2: the sum of the learning rate over the updates, as
        ``history["time"]``, with the tangent kernel; numbers of updates with an optimizer's kernel J diag(η_t) Jᵀ.
    kernels : sequence or iterable of T (m, n) arrays or NTKOperators, or (T, m, n) array
        K_t between the examples x and the training examples, or any others. An iterable is read once, one at a time.
    loss_gradients : (T, n) array, optional
        The training loss's derivatives by the outputs at the same times, one for each column of the kernels, as
        `Loss.value_and_gradient` returns them: a mean over examples has its 1 / N in there.

    Returns
    -------
    (m, n) array
        In the kernels' dtype and kind (NumPy for operators); with `loss_gradients` its row sums are what gradient
        flow has subtracted from the outputs at x, which `path_prediction` does.

    Raises
    ------
    TypeError, ValueError
        If the times do not ascend, or an argument has another length, shape or dtype or is not finite; the message
        names it.

    Notes
    -----
    By the trapezoidal rule, summed in float64: the error falls with the square of the time between kernels. Two
    kernels of memory. Domingos (arXiv 2012.00152), with the loss's derivatives in the kernel where he divides by it.
    """
    grid = as_times(times)
    columns: int | None = None
    weights: FloatArray = np.ones((len(grid), 1), dtype=np.float64)
    if loss_gradients is not None:
        weights = _gradients(loss_gradients, len(grid), ndim=2)
        columns = weights.shape[1]
    series = KernelSeries("kernels", kernels, len(grid), columns=columns)
    total: Any = 0.0
    for share, weight, kernel in zip(_shares(grid), weights, series, strict=True):
        total = total + kernel * (share * weight)
    return like(total.astype(series.dtype), series.first)


def path_prediction(times: Any, kernels: Any, loss_gradients: Any, f0: Any = None) -> Any:
    """Return ``f(x) = f_0(x) - ∫ Σ_i K_t(x, x_i) ∂L/∂f(x_i) dt``, a network's outputs from its path kernel.

    It uses the loss's derivatives that the network had; `PathRegression` finds those of the squared error by itself.

    Parameters
    ----------
    times, kernels
        As in `path_kernel`: K_t between m rows of test examples and all n rows of training examples.
    loss_gradients : (T, N) or (T, N, C) array
        The training loss's derivatives by the outputs at these times, as `Loss.value_and_gradient` returns them. The
        kernels have N C columns (example-major), or N that all outputs share.
    f0 : (M,) or (M, C) array, optional
        The outputs before training; 0 by default.

    Returns
    -------
    (M,) or (M, C) array
        The outputs at the last time, shaped like a time's `loss_gradients`; in the kernels' dtype and kind.

    Raises
    ------
    TypeError, ValueError
        As `path_kernel` does; also if `f0` does not fit.

    Notes
    -----
    As accurate as `path_kernel`. The derivatives should change little between two kernels, those of fast modes too:
    record often where the loss falls steeply.
    """
    grid = as_times(times)
    gradients = _gradients(loss_gradients, len(grid), ndim=(2, 3))
    flat = gradients.ndim == 2
    outputs = 1 if flat else gradients.shape[2]
    series = KernelSeries("kernels", kernels, len(grid))
    total: Any = 0.0
    for share, gradient, kernel in zip(_shares(grid), gradients, series, strict=True):
        if kernel.shape[1] not in (len(gradient), gradient.size):
            raise ValueError(
                f"loss_gradients must be (T, N) or (T, N, C) with N or N * C the columns of the kernels, got shape "
                f"{gradients.shape} for kernels of shape {kernel.shape}"
            )
        if kernel.shape[1] != len(gradient) and kernel.shape[0] % outputs:
            raise ValueError(f"kernels must have a multiple of {outputs} rows, got shape {kernel.shape}")
        columns = gradient.reshape(kernel.shape[1], -1)
        total = total - share * (kernel @ columns).reshape(-1, outputs)
    if f0 is not None:
        total = total + as_offset(f0, total.shape)
    return like((total[:, 0] if flat else total).astype(series.dtype), series.first)


def _gradients(given: Any, count: int, ndim: int | tuple[int, ...]) -> FloatArray:
    gradients = to_numpy(as_array("loss_gradients", given, ndim=ndim)).astype(np.float64)
    if len(gradients) != count or gradients.size == 0:
        raise ValueError(f"loss_gradients must hold one row for each of the {count} times, got shape {gradients.shape}")
    return gradients


def _shares(times: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the weights of the trapezoidal rule."""
    half = np.diff(times) / 2
    shares: npt.NDArray[np.float64] = np.append(half, 0.0) + np.append(0.0, half)
    return shares
