"""What is measured at a tracked step: gradient features, kernels, their statistics and spectrum, one record."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kernelgrowth._backend.arrays import FloatArray, to_numpy
from kernelgrowth._backend.native import KernelStatistics, kernel_statistics
from kernelgrowth.diagnostics import eigenvector_alignment, kernel_target_alignment, subspace_overlap
from kernelgrowth.gradients import GradientFeatures
from kernelgrowth.kernels import NTKOperator
from kernelgrowth.spectra import eigsh
from kernelgrowth.tracking.packing import pack_triangle, packed_cosine
from kernelgrowth.tracking.targets import kernel_targets

__all__ = ["METRICS", "Measurement", "Reference", "check_metrics", "cross_kernel", "effective_rank_bound", "measure"]

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

_SPECTRAL = frozenset({"eigenvalues", "eigenvector_alignment", "effective_rank", "subspace_overlap"})
# Eigenvalues move by at most the residual, so the top of the spectrum is good to six digits of the largest.
_EIGEN_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Reference:
    """A tracked step that a later one is compared with: its packed kernel and its top eigenvectors (n, k)."""

    step: int
    kernel: FloatArray
    vectors: FloatArray | None = None


@dataclass(frozen=True)
class Measurement:
    """One measured step: the values to record by name, and the packed kernel and eigenvectors they came from."""

    values: dict[str, Any] = field(default_factory=dict)
    kernel: FloatArray = field(default_factory=lambda: np.empty(0))
    vectors: FloatArray | None = None


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
    previous: Reference | None,
    first: Reference | None,
) -> Measurement:
    """Measure the kernel of `features`.

    Parameters
    ----------
    features : GradientFeatures
        Gradients on the probe set, N examples and C outputs.
    targets : ndarray (N, C)
        Targets, float64.
    names : collection of str
        Members of `METRICS`; what none of them needs is not computed.
    top_k : int
        Eigenpairs wanted, cut to n.
    outputs : str
        How the outputs enter the kernel: "full", "trace", "mean_trace" or "sum_logits".
    previous, first : Reference or None
        The tracked step before and the first one; None at the first one itself.

    Returns
    -------
    Measurement
        Undefined values (an alignment with a zero kernel, a velocity at the first step) are NaN.
    """
    # A kernel on its way to infinity is recorded as far as it has numbers; the trainer says when the loss has none.
    operator = NTKOperator(features, outputs=outputs, check_finite=False)
    columns = kernel_targets(targets, outputs)
    if "layers" in names:
        kernel, layers = _kernel_of_layers(operator, columns)
    else:
        kernel, layers = to_numpy(operator.gram()), {}
    packed = pack_triangle(kernel)
    values, vectors = _values_of_kernel(kernel, targets, columns, names, top_k, previous)
    if "velocity" in names:
        values["velocity"] = math.nan if previous is None else 1.0 - packed_cosine(packed, previous.kernel)
    if "rotation" in names:
        values["rotation"] = 1.0 - packed_cosine(packed, packed if first is None else first.kernel)
    recorded = {name: values[name] for name in METRICS if name in names and name in values}
    return Measurement(recorded | layers, packed, vectors)


def cross_kernel(test_features: GradientFeatures, features: GradientFeatures, outputs: str) -> FloatArray:
    """Return K(x_test, x_probe) as a matrix with the rows and columns that `measure` gives the kernel."""
    return to_numpy(NTKOperator(test_features, features, outputs=outputs, check_finite=False).gram())


def _kernel_of_layers(operator: NTKOperator, columns: FloatArray) -> tuple[FloatArray, dict[str, Any]]:
    """Return the whole kernel as the sum over its layers, and each layer's norm and alignment."""
    total: FloatArray | None = None
    values: dict[str, Any] = {}
    layers = operator.per_layer()
    for name in list(layers):
        # Taken out of the dict, so that its kernel is freed before the next one is computed.
        kernel = to_numpy(layers.pop(name).gram())
        statistics = kernel_statistics(kernel, targets=columns)
        norm = _norm(kernel, statistics)
        values[f"layers/{name}/norm"] = norm
        values[f"layers/{name}/alignment"] = _alignment(kernel, statistics, norm, columns)
        if total is None:
            total = np.array(kernel)
        else:
            total += kernel
    assert total is not None
    return total, values


def _values_of_kernel(
    kernel: FloatArray,
    targets: FloatArray,
    columns: FloatArray,
    names: Collection[str],
    top_k: int,
    previous: Reference | None,
) -> tuple[dict[str, Any], FloatArray | None]:
    """Return what one pass over the kernel and its spectrum tell, and the eigenvectors."""
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
    before = None if previous is None else previous.vectors
    # Not started from the vectors before: the search for left-out eigenvalues that must follow costs more passes than
    # that saves (16 against 9 at n = 1200, k = 20), and the values would depend on the steps tracked before.
    result = eigsh(kernel, min(top_k, len(kernel)), tol=_EIGEN_TOLERANCE)
    eigenvalues = to_numpy(result.eigenvalues).astype(np.float64)
    vectors = to_numpy(result.eigenvectors)
    values["eigenvalues"] = eigenvalues.tolist()
    values["eigenvector_alignment"] = eigenvector_alignment(vectors, targets).tolist()
    values["effective_rank"] = effective_rank_bound(eigenvalues, len(kernel), values["trace"], norm)
    values["subspace_overlap"] = math.nan if before is None else float(subspace_overlap(before, vectors))
    return values, vectors


def _no_spectrum(k: int, eigenvalue: float) -> dict[str, Any]:
    undefined = [math.nan] * k
    return {
        "eigenvalues": [eigenvalue] * k,
        "eigenvector_alignment": undefined,
        "effective_rank": math.nan,
        "subspace_overlap": math.nan,
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
    if squared_norm <= 1e-6 * statistics.squared_norm or weight <= 1e-12 * float(np.sum(targets**2)):
        return kernel_target_alignment(kernel, targets, centered=True)
    forms = statistics.quadratic_forms[-centered.shape[1] :]
    return _clipped(float(np.sum(forms)) / weight / math.sqrt(squared_norm))


def _clipped(cosine: float) -> float:
    return min(1.0, max(-1.0, cosine))


def effective_rank_bound(eigenvalues: FloatArray, n: int, trace: float, norm: float) -> float:
    """Entropy effective rank exp(−Σ p log p), p = λ / Σλ, of a positive semi-definite kernel known by its top.

    What the top eigenvalues leave of the trace and of ‖K‖_F² is spread over as many equal eigenvalues as carry both.
    These two fix the rest's entropy of order 2, which is never above its entropy, so the value is a lower bound. It is
    exact where all eigenvalues are given, and where the others are equal or zero.

    Parameters
    ----------
    eigenvalues : ndarray (k,)
        Top eigenvalues, descending; negative ones (rounding) count as zero.
    n : int
        Order of the kernel.
    trace, norm : float
        Its trace and Frobenius norm.

    Returns
    -------
    float
        Between 1 and n; NaN where the trace is not positive and finite.
    """
    if not (0.0 < trace < math.inf and 0.0 < norm < math.inf):
        return math.nan
    top = np.maximum(np.asarray(eigenvalues, dtype=np.float64), 0.0) / trace
    missing = n - len(top)
    rest = 1.0 - float(top.sum()) if missing else 0.0
    # Eigenvalues are known to the solver's tolerance only; a rest below it is none.
    rest = rest if rest > _EIGEN_TOLERANCE * float(top.max()) else 0.0
    total = float(top.sum()) + rest
    positive = top[top > 0.0] / total
    entropy = -float(np.sum(positive * np.log(positive)))
    if rest > 0.0:
        rest_squared = (norm / trace) ** 2 - float(np.sum(top**2))
        # None of the others exceeds the smallest one given, so there are at least this many.
        fewest = min(float(missing), max(1.0, rest / float(top[-1]) if top[-1] > 0.0 else 1.0))
        count = rest**2 / rest_squared if rest_squared > 0.0 else float(missing)
        count = min(float(missing), max(fewest, count))
        share = rest / total
        entropy += share * (math.log(count) - math.log(share))
    return math.exp(entropy)
