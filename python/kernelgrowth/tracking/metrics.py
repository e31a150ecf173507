"""What is measured at a tracked step: gradient features, kernels, their statistics and spectrum, one record."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from kernelgrowth._backend.arrays import FloatArray, to_numpy
from kernelgrowth._backend.native import KernelStatistics, kernel_statistics
from kernelgrowth.diagnostics import eigenvector_alignment, kernel_target_alignment
from kernelgrowth.gradients import GradientFeatures
from kernelgrowth.kernels import NTKOperator
from kernelgrowth.tracking.comparison import Reference, distance, in_common, overlap
from kernelgrowth.tracking.layers import LayerKernels
from kernelgrowth.tracking.packing import pack_triangle
from kernelgrowth.tracking.sampling import Subsamples, estimate_kernel
from kernelgrowth.tracking.spectrum import Eigenpairs, effective_rank_bound, top_eigenpairs
from kernelgrowth.tracking.targets import kernel_targets

__all__ = ["ESTIMATED", "METRICS", "Measurement", "check_metrics", "cross_kernel", "measure"]

METRICS = (
    "kernel_norm",
    "trace",
    "alignment",
    "alignment_centered",
    "eigenvalues",
    "eigenvector_alignment",
    "effective_rank",
    "velocity",
    "rotation",
    "subspace_overlap",
    "layers",
)
"""What `metrics` may name; step, time, loss, train_loss and seconds are always recorded."""

ESTIMATED = ("kernel_norm", "trace", "alignment", "alignment_centered")
"""Those that a subsample gives with a standard error, ``<name>_error``."""

# Of their squares, what is left of constant targets once their mean is gone.
_ROUNDING = 1e-12
_SPECTRAL = frozenset({"eigenvalues", "eigenvector_alignment", "effective_rank", "subspace_overlap"})


class Measurement(NamedTuple):
    """One measured step: the values to record by name, and what later steps are compared with."""

    values: dict[str, Any]
    reference: Reference


def check_metrics(metrics: Any) -> tuple[str, ...]:
    """Return the metrics to record in their fixed order; "default" is all of them."""
    if isinstance(metrics, str):
        if metrics != "default":
            raise ValueError(f"metrics must be 'default' or a sequence of names, got {metrics!r}")
        return METRICS
    if not hasattr(metrics, "__iter__"):
        raise TypeError(f"metrics must be 'default' or a sequence of names, got {metrics!r}")
    names = list(metrics)
    for name in names:
        if name not in METRICS:
            raise ValueError(f"metrics must be among {', '.join(METRICS)}, got {name!r}")
    return tuple(name for name in METRICS if name in names)


def measure(
    features: GradientFeatures,
    targets: FloatArray,
    *,
    names: Collection[str],
    top_k: int,
    outputs: str,
    step: int = 0,
    previous: Reference | None = None,
    first: Reference | None = None,
    layers: LayerKernels | None = None,
    subsamples: Subsamples | None = None,
    preconditioner: Mapping[str, Any] | None = None,
) -> Measurement:
    """Measure the kernel of `features`, where they live; what later steps are compared with lies on the host.

    Parameters
    ----------
    features : GradientFeatures
        Gradients on the probe set or a subsample of it, m examples and C outputs.
    targets : ndarray (m, C)
        Their targets, float64.
    names : collection of str
        Members of `METRICS`; what none of them needs is not computed.
    top_k : int
        Eigenpairs wanted, cut to n.
    outputs : str
        How the outputs enter the kernel: "full", "trace", "mean_trace" or "sum_logits".
    step : int
        That of the reference returned.
    previous, first : Reference, optional
        The tracked step before and the first one; None at the first one itself.
    layers : LayerKernels, optional
        What is remembered of these examples.
    subsamples : Subsamples, optional
        Of the probe set, which `features` are on all of unless given.
    preconditioner : mapping, optional
        η by block: the kernel measured is then J diag(η) Jᵀ.

    Returns
    -------
    Measurement
        Undefined values (an alignment with a zero kernel, a velocity at the first step) are NaN. Where there are
        subsamples, standard errors are among the values.
    """
    subsamples = Subsamples(len(targets), None) if subsamples is None else subsamples
    size, columns = len(targets), kernel_targets(targets, outputs)
    # A kernel on its way to infinity is recorded as far as it has numbers; the trainer says when the loss has none.
    if "layers" in names:
        layers = LayerKernels(None, outputs) if layers is None else layers
        kernel, by_layer = _sum_of_layers(layers.of(features, preconditioner), targets, columns, subsamples)
    else:
        operator = NTKOperator(features, outputs=outputs, preconditioner=preconditioner, check_finite=False)
        kernel, by_layer = operator.gram(), {}
    values, pairs = _values_of_kernel(kernel, targets, columns, names, top_k, previous)
    if subsamples.order is not None:
        values |= _estimates(values, to_numpy(kernel), targets, columns, subsamples.num_examples)
    vectors = pairs.vectors if pairs is not None and "subspace_overlap" in names else None
    now = Reference(step, size, pack_triangle(to_numpy(kernel)), vectors, {} if pairs is None else pairs.solver)
    values |= _changes(now, previous, now if first is None else first, names, subsamples, top_k)
    wanted = [*METRICS, *(f"{name}_error" for name in ESTIMATED)]
    recorded = {name: values[name] for name in wanted if name.removesuffix("_error") in names and name in values}
    return Measurement(recorded | by_layer, now)


def cross_kernel(
    test_features: GradientFeatures,
    features: GradientFeatures,
    outputs: str,
    preconditioner: Mapping[str, Any] | None = None,
) -> FloatArray:
    """Return K(x_test, x_probe) as a matrix with the rows and columns that `measure` gives the kernel."""
    operator = NTKOperator(test_features, features, outputs=outputs, preconditioner=preconditioner, check_finite=False)
    return to_numpy(operator.gram())


def _sum_of_layers(
    layers: Iterable[tuple[str, FloatArray]], targets: FloatArray, columns: FloatArray, subsamples: Subsamples
) -> tuple[FloatArray, dict[str, Any]]:
    """Return the whole kernel as the sum over its layers, and each layer's norm and alignment."""
    total: FloatArray | None = None
    values: dict[str, Any] = {}
    for name, kernel in layers:
        if len(targets) < subsamples.num_examples:
            estimate = estimate_kernel(to_numpy(kernel), targets, columns, subsamples.num_examples)
            norm, alignment = estimate.norm, estimate.alignment
        else:
            statistics = kernel_statistics(kernel, targets=columns)
            norm = _norm(kernel, statistics)
            alignment = _alignment(kernel, statistics, norm, columns)
        values[f"layers/{name}/norm"], values[f"layers/{name}/alignment"] = norm, alignment
        if total is None:
            total = kernel
        else:
            with np.errstate(over="ignore", invalid="ignore"):
                total += kernel
    assert total is not None
    return total, values


def _estimates(
    values: dict[str, Any], kernel: FloatArray, targets: FloatArray, columns: FloatArray, num_examples: int
) -> dict[str, Any]:
    """Return what the values of a subsample's kernel say of that on the whole probe set, and standard errors."""
    if len(targets) == num_examples:
        return {f"{name}_error": 0.0 for name in ESTIMATED}
    plain = estimate_kernel(kernel, targets, columns, num_examples)
    deviations = targets - targets.mean(axis=0)
    if np.sum(deviations**2) <= _ROUNDING * np.sum(targets**2):
        deviations[:] = 0.0
    centered = estimate_kernel(kernel, deviations, deviations.reshape(columns.shape), num_examples, centered=True)
    estimates: dict[str, Any] = {
        "kernel_norm": plain.norm,
        "kernel_norm_error": plain.norm_error,
        "trace": plain.trace,
        "trace_error": plain.trace_error,
        "alignment": plain.alignment,
        "alignment_error": plain.alignment_error,
        "alignment_centered": centered.alignment,
        "alignment_centered_error": centered.alignment_error,
    }
    if "eigenvalues" in values:
        estimates["eigenvalues"] = [value * num_examples / len(targets) for value in values["eigenvalues"]]
    return estimates


def _changes(
    now: Reference,
    previous: Reference | None,
    first: Reference,
    names: Collection[str],
    subsamples: Subsamples,
    top_k: int,
) -> dict[str, float]:
    """Return how the kernel differs from the earlier ones, on the examples that both are on."""
    values = {"velocity": math.nan, "subspace_overlap": math.nan}
    if previous is not None and not {"velocity", "subspace_overlap"}.isdisjoint(names):
        pair = in_common(now, previous, subsamples, top_k)
        values["subspace_overlap"] = overlap(*pair)
        if "velocity" in names:
            values["velocity"] = distance(*pair, subsamples)
    if "rotation" in names:
        values["rotation"] = distance(*in_common(now, first, subsamples, top_k), subsamples)
    return values


def _values_of_kernel(
    kernel: FloatArray,
    targets: FloatArray,
    columns: FloatArray,
    names: Collection[str],
    top_k: int,
    previous: Reference | None,
) -> tuple[dict[str, Any], Eigenpairs | None]:
    """Return what one pass over the kernel and its spectrum tell, and the eigenpairs."""
    centered = kernel_targets(targets - targets.mean(axis=0), "full" if len(kernel) != len(targets) else "trace")
    statistics = kernel_statistics(kernel, targets=np.concatenate([columns, centered], axis=1))
    norm = _norm(kernel, statistics)
    values: dict[str, Any] = {
        "kernel_norm": norm,
        "trace": float(statistics.trace),
        "alignment": _alignment(kernel, statistics, norm, columns),
    }
    if "alignment_centered" in names:
        values["alignment_centered"] = _centered_alignment(kernel, statistics, targets, centered)
    if not _SPECTRAL.intersection(names):
        return values, None
    if not 0.0 < norm < math.inf:
        return values | _no_spectrum(min(top_k, len(kernel)), 0.0 if norm == 0.0 else math.nan), None
    solver = previous.solver if previous is not None and previous.size == len(targets) else {}
    pairs = top_eigenpairs(kernel, top_k, solver)
    values["eigenvalues"] = pairs.values.tolist()
    values["eigenvector_alignment"] = eigenvector_alignment(pairs.vectors, targets).tolist()
    values["effective_rank"] = effective_rank_bound(pairs.values, len(kernel), values["trace"], norm)
    return values, pairs


def _no_spectrum(k: int, eigenvalue: float) -> dict[str, Any]:
    undefined = [math.nan] * k
    return {
        "eigenvalues": [eigenvalue] * k,
        "eigenvector_alignment": undefined,
        "effective_rank": math.nan,
    }


def _norm(kernel: FloatArray, statistics: KernelStatistics) -> float:
    if _well_scaled(statistics):
        return math.sqrt(statistics.squared_norm)
    largest = float(np.abs(kernel).max())
    if not 0.0 < largest < math.inf:
        return largest
    return largest * float(np.linalg.norm(kernel.astype(np.float64) / largest))


def _well_scaled(statistics: KernelStatistics) -> bool:
    # Outside, squares have lost digits to underflow, or overflowed.
    return 1e-270 < statistics.squared_norm < 1e270


def _alignment(kernel: FloatArray, statistics: KernelStatistics, norm: float, columns: FloatArray) -> float:
    """Return `kernel_target_alignment` from the quadratic forms of the first targets in `statistics`."""
    if not 0.0 < norm < math.inf:
        return math.nan
    weight = float(np.sum(columns**2))
    if not (_well_scaled(statistics) and weight > 0.0):
        return kernel_target_alignment(kernel, columns)
    return _clipped(float(np.sum(statistics.quadratic_forms[: columns.shape[1]])) / weight / norm)


def _centered_alignment(
    kernel: FloatArray, statistics: KernelStatistics, targets: FloatArray, centered: FloatArray
) -> float:
    """Return the same for HKH, H = I − 11ᵀ/n, whose norm follows from the sums of K's rows, and centred targets."""
    if not (_well_scaled(statistics) and math.isfinite(statistics.squared_norm)):
        return kernel_target_alignment(kernel, targets, centered=True) if np.isfinite(kernel).all() else math.nan
    rows = statistics.row_sums
    n = len(rows)
    squared_norm = statistics.squared_norm - 2.0 / n * float(rows @ rows) + (float(rows.sum()) / n) ** 2
    weight = float(np.sum(centered**2))
    # Where centring leaves little, the difference of sums has too few digits left; that path centres entry by entry.
    if squared_norm <= 1e-6 * statistics.squared_norm or weight <= _ROUNDING * float(np.sum(targets**2)):
        return kernel_target_alignment(kernel, targets, centered=True)
    forms = statistics.quadratic_forms[-centered.shape[1] :]
    return _clipped(float(np.sum(forms)) / weight / math.sqrt(squared_norm))


def _clipped(cosine: float) -> float:
    return min(1.0, max(-1.0, cosine))
