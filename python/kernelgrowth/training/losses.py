"""Training losses: value and gradient with respect to the network's outputs, means over the examples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np

from kernelgrowth._backend.arrays import array_namespace, as_array
from kernelgrowth._backend.checks import check_choice

__all__ = ["LOSSES", "CrossEntropy", "Logistic", "Loss", "MeanSquaredError", "get_loss"]


class Loss(ABC):
    """A mean over N examples of a function of their C outputs and targets.

    Values are computed in float64 whatever the dtype of the outputs, and stay finite for outputs of any finite size
    wherever the loss itself does; gradients come back in the outputs' dtype.
    """

    name: ClassVar[str]

    @abstractmethod
    def prepare_targets(self, y: Any, *, num_outputs: int, dtype: Any) -> Any:
        """Return checked targets as an array (N, C) of `dtype`; targets already prepared come back unchanged."""

    def __call__(self, f: Any, y: Any) -> float:
        """Return the loss.

        Parameters
        ----------
        f : array (N, C)
            Outputs, float32 or float64. Non-finite ones give a non-finite loss.
        y : array
            Targets as the loss takes them, N of them.

        Raises
        ------
        TypeError, ValueError
            If `f` or `y` is not of the wanted shape or dtype, or a label is not one of the loss's labels.
        """
        return self.value_and_gradient(f, y)[0]

    def value_and_gradient(self, f: Any, y: Any) -> tuple[float, Any]:
        """Return the loss as for a call, and its gradient with respect to `f`, an array like `f`."""
        f = as_array("f", f, ndim=2, finite=False)
        y = self.prepare_targets(y, num_outputs=f.shape[1], dtype=f.dtype)
        array_namespace(f, y)
        if len(f) == 0 or len(f) != len(y):
            raise ValueError(f"f and y must hold the same number (at least 1) of examples, got {len(f)} and {len(y)}")
        return self.evaluate(f, y)

    def evaluate(self, f: Any, targets: Any) -> tuple[float, Any]:
        """Return value and gradient without any check; `targets` come from `prepare_targets`."""
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            value, gradient = self._evaluate(f.astype(np.float64), targets.astype(np.float64))
            return float(value) / len(f), (gradient / len(f)).astype(f.dtype)

    @abstractmethod
    def _evaluate(self, f: Any, targets: Any) -> tuple[Any, Any]:
        """Return the sum over examples and its gradient, both from float64 arrays (N, C)."""


class MeanSquaredError(Loss):
    """½ Σ_c (f_c − y_c)², targets (N,) for one output or (N, C), of the outputs' dtype or integers."""

    name = "mse"

    def prepare_targets(self, y: Any, *, num_outputs: int, dtype: Any) -> Any:
        """Return `y` as (N, C); see the base class."""
        return _as_columns(_numbers(y, dtype), num_outputs)

    def _evaluate(self, f: Any, targets: Any) -> tuple[Any, Any]:
        residual = f - targets
        return 0.5 * (residual * residual).sum(), residual


class Logistic(Loss):
    """log(1 + exp(−y f)) of one output, labels −1 and +1, or 0 and 1 of which 0 is read as −1; shape (N,) or (N, 1)."""

    name = "logistic"

    def prepare_targets(self, y: Any, *, num_outputs: int, dtype: Any) -> Any:
        """Return `y` as (N, 1) with entries −1 and +1; see the base class."""
        if num_outputs != 1:
            raise ValueError(f"loss 'logistic' needs a net with one output, got {num_outputs}: take 'cross_entropy'")
        y = _as_columns(as_array("y", y), 1)
        if bool(((y == 1) | (y == -1)).all()):
            return y.astype(dtype, copy=False)
        if bool(((y == 0) | (y == 1)).all()):
            return (2 * y - 1).astype(dtype)
        raise ValueError(f"y must hold the labels -1 and +1, or 0 and 1, for loss 'logistic', got {_some_values(y)}")

    def _evaluate(self, f: Any, targets: Any) -> tuple[Any, Any]:
        xp = array_namespace(f)
        margins = targets * f
        return xp.logaddexp(0, -margins).sum(), -targets * xp.exp(-xp.logaddexp(0, margins))


class CrossEntropy(Loss):
    """−log softmax(f)_y of at least two outputs, integer labels 0 … C−1 of shape (N,) or one-hot rows (N, C)."""

    name = "cross_entropy"

    def prepare_targets(self, y: Any, *, num_outputs: int, dtype: Any) -> Any:
        """Return `y` as one-hot rows (N, C); see the base class."""
        if num_outputs < 2:
            raise ValueError("loss 'cross_entropy' needs a net with at least two outputs, got 1: take 'logistic'")
        y = as_array("y", y, ndim=(1, 2))
        xp = array_namespace(y)
        if y.ndim == 1:
            labels = y.astype(np.int64)
            if not bool(((labels == y) & (labels >= 0) & (labels < num_outputs)).all()):
                raise ValueError(f"y must hold integer labels from 0 to {num_outputs - 1}, got {_some_values(y)}")
            return xp.eye(num_outputs, dtype=dtype)[labels]
        if y.shape[1] != num_outputs:
            raise ValueError(f"y must be labels (N,) or one-hot rows (N, {num_outputs}), got shape {y.shape}")
        if not bool(((y == 0) | (y == 1)).all() and (y.sum(axis=1) == 1).all()):
            raise ValueError("y must be one-hot when it has two dimensions: a single 1 in each row, zeros elsewhere")
        return y.astype(dtype, copy=False)

    def _evaluate(self, f: Any, targets: Any) -> tuple[Any, Any]:
        xp = array_namespace(f)
        shifted = f - f.max(axis=1, keepdims=True)
        exponentials = xp.exp(shifted)
        sums = exponentials.sum(axis=1, keepdims=True)
        # A shifted output of the wrong class can be -inf, and 0·(-inf) is NaN: pick the label's entry instead.
        chosen = xp.where(targets == 1, shifted, 0).sum(axis=1, keepdims=True)
        return (xp.log(sums) - chosen).sum(), exponentials / sums - targets


LOSSES: dict[str, Loss] = {loss.name: loss for loss in (MeanSquaredError(), Logistic(), CrossEntropy())}
"""Every loss by name."""


def get_loss(name: str) -> Loss:
    """Return the loss of that name; an unknown one is a `ValueError` that lists those there are."""
    return LOSSES[check_choice("loss", name, LOSSES)]


def _numbers(y: Any, dtype: Any) -> Any:
    # Integers and plain Python numbers have no floating dtype of their own to keep.
    untyped = not hasattr(y, "dtype") or getattr(y.dtype, "kind", "f") in "iub"
    array = as_array("y", y)
    return array.astype(dtype, copy=False) if untyped else as_array("y", array, dtype=dtype)


def _as_columns(y: Any, num_outputs: int) -> Any:
    if y.ndim == 1 and num_outputs == 1:
        return y[:, None]
    if y.ndim != 2 or y.shape[1] != num_outputs:
        wanted = "(N,) or (N, 1)" if num_outputs == 1 else f"(N, {num_outputs})"
        raise ValueError(f"y must have shape {wanted} for a net with {num_outputs} output(s), got {y.shape}")
    return y


def _some_values(y: Any) -> str:
    values = array_namespace(y).unique(y)
    shown = ", ".join(f"{float(value):g}" for value in values[:5])
    return f"{shown}, ..." if len(values) > 5 else shown
