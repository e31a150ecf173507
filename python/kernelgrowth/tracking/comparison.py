"""Comparing the kernel of a tracked step with that of an earlier one, on the examples that both have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kernelgrowth._backend.arrays import FloatArray
from kernelgrowth._backend.native import gemm
from kernelgrowth.tracking.packing import pack_triangle, unpack_triangle
from kernelgrowth.tracking.sampling import Subsamples
from kernelgrowth.tracking.spectrum import top_eigenpairs

__all__ = ["Reference", "distance", "in_common", "overlap"]


@dataclass(frozen=True)
class Reference:
    """A tracked step that a later one is compared with.

    Attributes
    ----------
    step : int
    size : int
        Examples it was measured on.
    kernel : ndarray
        Packed; empty where nothing is compared with it.
    vectors : ndarray (n, k) or None
        Top eigenvectors.
    solver : mapping
        What the eigensolver left for the next kernel.
    """

    step: int
    size: int
    kernel: FloatArray
    vectors: FloatArray | None = None
    solver: Mapping[str, Any] = field(default_factory=dict)

    def on(self, size: int, subsamples: Subsamples, top_k: int = 1) -> Reference:
        """Return what would have been measured on a subsample of so many examples, no more than there are."""
        if size == self.size:
            return self
        kernel = subsamples.restrict(unpack_triangle(self.kernel), self.size, size)
        known = self.vectors is not None and kernel.any()
        vectors = top_eigenpairs(kernel, top_k, {}).vectors if known else None
        return Reference(self.step, size, pack_triangle(kernel), vectors)


def in_common(a: Reference, b: Reference, subsamples: Subsamples, top_k: int = 1) -> tuple[Reference, Reference]:
    """Return both on the examples that both are on."""
    size = min(a.size, b.size)
    return a.on(size, subsamples, top_k), b.on(size, subsamples, top_k)


def distance(a: Reference, b: Reference, subsamples: Subsamples) -> float:
    """Return 1 − cosine of two kernels on the same examples, estimated for the whole probe set on a subsample."""
    return 1.0 - subsamples.cosine(a.kernel, b.kernel, a.size)


def overlap(a: Reference, b: Reference) -> float:
    """Return the mean squared cosine between the spaces of top eigenvectors; NaN where there are none."""
    if a.vectors is None or b.vectors is None:
        return math.nan
    # `subspace_overlap` of columns that are orthonormal already.
    cosines = gemm(a.vectors.T.astype(np.float64), b.vectors.astype(np.float64))
    return min(1.0, float(np.sum(cosines**2)) / len(cosines))
