"""Measuring on a random part of the probe set: which examples, and what they say of all of them.

The m examples of a subsample are drawn without replacement from N. A sum over pairs of examples is estimated from the
pairs in the subsample by weighting each i ≠ j with N (N − 1) / (m (m − 1)) and each i = j with N / m, which has the
right expectation whatever the kernel. Standard errors follow from the projection of such sums on single examples
(Hoeffding 1948): to first order they are sums over examples, of which the spread is seen in the subsample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kernelgrowth._backend.arrays import FloatArray
from kernelgrowth._backend.native import gemm
from kernelgrowth.tracking.packing import matrix_size, packed_cosine

__all__ = ["KernelEstimate", "Subsamples", "estimate_kernel", "mean_error"]


class Subsamples:
    """Nested random subsamples of N examples: that of m < N examples is the first m of one fixed order.

    A kernel on all examples has its rows in the order of the probe set, one on a subsample in this order.

    Parameters
    ----------
    num_examples : int
        N.
    order : integer array (N,), optional
        All examples in the order in which they are drawn; without it there are no subsamples.
    """

    def __init__(self, num_examples: int, order: npt.NDArray[np.int64] | None) -> None:
        self.num_examples = num_examples
        self.order = order

    @staticmethod
    def draw(num_examples: int) -> npt.NDArray[np.int64]:
        """Return an order; runs store theirs, since NumPy may draw another one in another version."""
        return np.random.default_rng(0).permutation(num_examples)

    def examples(self, size: int) -> npt.NDArray[np.int64]:
        """Return the places in the probe set (size,) of the examples that the rows of a kernel are about."""
        if size == self.num_examples or self.order is None:
            return np.arange(self.num_examples)
        return self.order[:size]

    def restrict(self, kernel: FloatArray, size: int, fewer: int) -> FloatArray:
        """Return the part of a kernel on `size` examples that is about the subsample of `fewer`."""
        rows_each = len(kernel) // size
        examples = self.examples(fewer) if size == self.num_examples else np.arange(fewer)
        rows = (examples[:, None] * rows_each + np.arange(rows_each)).reshape(-1)
        return np.ascontiguousarray(kernel[np.ix_(rows, rows)])

    def cosine(self, a: FloatArray, b: FloatArray, size: int) -> float:
        """Return the cosine of two packed kernels on `size` examples, estimated for all of them."""
        if self.order is None:
            return packed_cosine(a, b)
        rows_each = matrix_size(len(a)) // size
        return packed_cosine(a, b, rows_each=rows_each, pair_weight=self._pair_weight(size))

    def _pair_weight(self, size: int) -> float:
        """Return the weight of a pair of different examples over that of an example with itself."""
        return (self.num_examples - 1) / (size - 1) if size > 1 else 1.0


@dataclass(frozen=True)
class KernelEstimate:
    """Estimates of a kernel on N examples from m of them, each with its standard error; NaN where undefined."""

    norm: float
    norm_error: float
    trace: float
    trace_error: float
    alignment: float
    alignment_error: float


def estimate_kernel(
    kernel: FloatArray, targets: FloatArray, columns: FloatArray, num_examples: int, *, centered: bool = False
) -> KernelEstimate:
    """Estimate Frobenius norm, trace and target alignment on `num_examples` examples.

    Parameters
    ----------
    kernel : ndarray (n, n)
        Symmetric, n a multiple of the m examples.
    targets : ndarray (m, C)
        Their targets.
    columns : ndarray (n, k)
        The same over the kernel's rows, as `kernel_targets` gives them.
    num_examples : int
        N.
    centered : bool
        Estimate those of HKH, H = I − 11ᵀ/n, instead; the targets are centred already.

    Returns
    -------
    KernelEstimate
        The variance is that of sampling without replacement, (1 − m/N) times that of independent examples.
    """
    m = len(targets)
    exponent = _exponent(kernel)
    if exponent is None:
        return _degenerate(kernel)
    # A power of two, so that squares neither overflow nor vanish.
    k = np.ldexp(kernel.astype(np.float64), -exponent)
    if centered:
        means = k.mean(axis=0)
        k -= means
        k -= means[:, None] - means.mean()
    same = _own_blocks(k, m)
    own_columns = columns.reshape(m, -1, columns.shape[1])
    products = gemm(k, columns).reshape(own_columns.shape)
    squares = _Pairs(
        _by_example(np.einsum("ij,ij->i", k, k), m), np.einsum("icd,icd->i", same, same), num_examples=num_examples
    )
    forms = _Pairs(
        np.einsum("ick,ick->i", own_columns, products),
        np.einsum("ick,icd,idk->i", own_columns, same, own_columns, optimize=False),
        num_examples=num_examples,
    )
    diagonal = np.einsum("icc->i", same) * (num_examples / m)
    weights = np.einsum("ick,ick->i", own_columns, own_columns) * (num_examples / m)

    error = math.sqrt(m * (1.0 - m / num_examples))
    scale = math.ldexp(1.0, exponent)
    norm = math.sqrt(max(squares.total, 0.0))
    norm_influence = squares.influence / (2.0 * norm) if norm > 0.0 else np.full(m, np.nan)
    alignment, influence = math.nan, np.full(m, np.nan)
    weight = float(weights.sum())
    if norm > 0.0 and weight > 0.0:
        alignment = forms.total / (weight * norm)
        influence = forms.influence / (weight * norm) - alignment * (weights / weight + norm_influence / norm)
    return KernelEstimate(
        norm=scale * norm,
        norm_error=scale * error * _spread(norm_influence),
        trace=scale * float(diagonal.sum()),
        trace_error=scale * error * _spread(diagonal),
        alignment=float(np.clip(alignment, -1.0, 1.0)),
        alignment_error=error * _spread(influence),
    )


def mean_error(values: npt.ArrayLike, size: int, num_examples: int) -> float:
    """Return the standard error of a mean over `size` of `num_examples` examples, from its values on equal groups."""
    means = np.asarray(values, dtype=np.float64)
    return _spread(means) * math.sqrt((1.0 - size / num_examples) / len(means))


class _Pairs:
    """A sum over pairs of examples, estimated: its value, and what each example contributes to its error."""

    def __init__(self, all_pairs: FloatArray, same: FloatArray, *, num_examples: int) -> None:
        m, n = len(same), num_examples
        once = same * (n / m)
        # Every pair has two members, so an example is felt in its row and in its column.
        different = (all_pairs - same) * (n * (n - 1) / (m * max(m - 1, 1)))
        self.total = float(different.sum() + once.sum())
        self.influence = 2.0 * different + once


def _own_blocks(k: FloatArray, m: int) -> FloatArray:
    """Return the entries (m, c, c) of each example with itself."""
    c = len(k) // m
    own = np.arange(m)
    blocks: FloatArray = k.reshape(m, c, m, c)[own, :, own, :]
    return blocks


def _by_example(rows: FloatArray, m: int) -> FloatArray:
    sums: FloatArray = rows.reshape(m, -1).sum(axis=1)
    return sums


def _exponent(kernel: FloatArray) -> int | None:
    largest = float(np.abs(kernel).max())
    return math.frexp(largest)[1] if 0.0 < largest < math.inf else None


def _degenerate(kernel: FloatArray) -> KernelEstimate:
    """Return what can be said of a kernel that is zero or not finite."""
    value = 0.0 if not kernel.any() else math.nan
    return KernelEstimate(value, value, value, value, math.nan, math.nan)


def _spread(values: FloatArray) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
