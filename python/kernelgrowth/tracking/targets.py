"""The targets of the probe set as vectors that a kernel can be aligned with."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernelgrowth._backend.arrays import FloatArray, as_array, is_cupy, to_numpy

__all__ = ["check_probe_targets", "holds_labels", "kernel_targets", "target_matrix"]


def check_probe_targets(y_probe: Any, num_examples: int) -> Any:
    """Return `y_probe` as an array (N,) or (N, C), checked by name; integers stay integers: they may be labels."""
    checked = as_array("y_probe", y_probe, ndim=(1, 2))
    if len(checked) != num_examples:
        raise ValueError(f"y_probe must have {num_examples} examples like x_probe, got shape {checked.shape}")
    if 0 in checked.shape:
        raise ValueError(f"y_probe must have at least one target per example, got shape {checked.shape}")
    if isinstance(y_probe, np.ndarray) or is_cupy(y_probe):
        return y_probe
    if is_cupy(checked):
        return checked
    return np.from_dlpack(y_probe) if hasattr(y_probe, "__dlpack__") else np.asarray(y_probe)


def target_matrix(y_probe: Any, num_outputs: int) -> FloatArray:
    """Return the targets as a float64 matrix (N, C); class labels of a network with C > 1 outputs become one-hot rows.

    Raises
    ------
    ValueError
        If `y_probe` has neither C columns nor, for C > 1, integer labels from 0 to C − 1.
    """
    values = to_numpy(as_array("y_probe", y_probe, ndim=(1, 2))).astype(np.float64)
    if holds_labels(values, num_outputs):
        return _one_hot(values.reshape(-1), num_outputs)
    matrix = values.reshape(len(values), -1)
    if matrix.shape[1] != num_outputs:
        raise ValueError(f"y_probe must have {num_outputs} column(s), one per output, got shape {values.shape}")
    return matrix


def holds_labels(y_probe: Any, num_outputs: int) -> bool:
    """Whether targets of this shape are class labels, one number for C > 1 outputs."""
    return num_outputs > 1 and (y_probe.ndim == 1 or y_probe.shape[1] == 1)


def kernel_targets(matrix: FloatArray, outputs: str) -> FloatArray:
    """Return targets (N, C) over the rows of the kernel that `outputs` makes, as columns (n, m).

    The kernel over all outputs has one target vector, of rows ``n*C + c`` like the kernel's; a kernel over examples has
    one for each output.
    """
    return matrix.reshape(-1, 1) if outputs == "full" else matrix


def _one_hot(labels: FloatArray, num_outputs: int) -> FloatArray:
    bad = (labels != np.floor(labels)) | (labels < 0) | (labels >= num_outputs)
    if bad.any():
        raise ValueError(
            f"y_probe must have {num_outputs} columns, or integer labels from 0 to {num_outputs - 1}, "
            f"got {labels[bad][0]:g} at index {int(np.argmax(bad))}"
        )
    return np.eye(num_outputs)[labels.astype(np.intp)]
