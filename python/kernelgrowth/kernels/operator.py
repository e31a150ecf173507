"""The kernel as a linear operator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kernelgrowth._backend import native
from kernelgrowth._backend.arrays import FloatArray, as_array
from kernelgrowth._backend.checks import check_choice
from kernelgrowth._backend.memory import resolve_memory_limit
from kernelgrowth.gradients.features import GradientFeatures
from kernelgrowth.kernels.diagonal import block_diagonal
from kernelgrowth.kernels.evaluate import check_range, evaluate
from kernelgrowth.kernels.lowering import check_pair, check_preconditioner, lower
from kernelgrowth.kernels.plan import Plan, make_plan

__all__ = ["NTKOperator"]

_MODES = ("full", "trace", "mean_trace", "sum_logits")


class NTKOperator:
    """The empirical neural tangent kernel as a linear operator on vectors over (example, output) rows.

    Parameters
    ----------
    feats : GradientFeatures
        N1 examples, C outputs.
    feats2 : GradientFeatures, optional
        N2 examples for a rectangular operator.
    outputs : {"full", "trace", "mean_trace", "sum_logits"}
        "full" has the shape (N1·C, N2·C) with example-major rows; the others (N1, N2).
    preconditioner : mapping of str to ndarray, optional
        As in `empirical_ntk`.
    memory_limit : int, optional
        Bytes that the stored kernel and its computation may take.
    check_finite : bool
        Whether a kernel that leaves the range of its dtype is a `ValueError`.

    Attributes
    ----------
    shape : tuple of int
    dtype : numpy.dtype

    Notes
    -----
    Products go through the stored kernel, which is computed when it is first needed and kept. SciPy's
    `aslinearoperator` takes the operator as it is.
    """

    def __init__(
        self,
        feats: GradientFeatures,
        feats2: GradientFeatures | None = None,
        *,
        outputs: str = "full",
        preconditioner: Mapping[str, Any] | None = None,
        memory_limit: int | None = None,
        check_finite: bool = True,
    ) -> None:
        check_pair(feats, feats2)
        check_choice("outputs", outputs, _MODES)
        self._roots = check_preconditioner(feats, preconditioner)
        self._limit = resolve_memory_limit(memory_limit)
        self._feats, self._feats2, self._outputs = feats, feats2, outputs
        self._preconditioner = preconditioner
        self._check_finite = check_finite
        (self._problem,) = lower(feats, feats2, outputs, self._roots, self._limit)
        self._gram: FloatArray | None = None
        self.shape: tuple[int, int] = self._problem.shape
        self.dtype: np.dtype[Any] = feats.dtype

    def __repr__(self) -> str:
        about = f"shape={self.shape}, dtype={self.dtype}, outputs={self._outputs!r}"
        return f"NTKOperator({about}, blocks={list(self._feats)})"

    def plan(self) -> Plan:
        """Return how the stored kernel is computed and what it costs; printing it shows a table.

        Raises
        ------
        MemoryLimitError
            If the smallest plan does not fit `memory_limit`.
        """
        size = self.shape[0] * self.shape[1] * self.dtype.itemsize
        return make_plan(self._problem, output_bytes=size, memory_limit=self._limit, threads=native.num_threads())

    def gram(self) -> FloatArray:
        """Return the kernel as a matrix of this operator's shape, computed once; do not write to it."""
        if self._gram is None:
            plan = self.plan()
            out: FloatArray = np.empty(self.shape, self.dtype)
            evaluate(self._problem, plan, out)
            if self._check_finite:
                check_range(self._problem, out)
            out.flags.writeable = False
            self._gram = out
        return self._gram

    def __matmul__(self, v: Any) -> FloatArray:
        vectors = as_array("v", v, ndim=(1, 2), finite=False)
        if vectors.shape[0] != self.shape[1]:
            raise ValueError(f"v must have {self.shape[1]} rows, got shape {vectors.shape}")
        product: FloatArray = self.gram() @ vectors
        return product

    def matvec(self, v: Any) -> FloatArray:
        """Return K v, for SciPy."""
        return self.__matmul__(v)

    def matmat(self, v: Any) -> FloatArray:
        """Return K V, for SciPy."""
        return self.__matmul__(v)

    def rmatvec(self, v: Any) -> FloatArray:
        """Return Kᵀ v, for SciPy."""
        vectors = as_array("v", v, ndim=(1, 2), finite=False)
        if vectors.shape[0] != self.shape[0]:
            raise ValueError(f"v must have {self.shape[0]} rows, got shape {vectors.shape}")
        product: FloatArray = self.gram().T @ vectors
        return product

    def diagonal(self) -> FloatArray:
        """Return the diagonal, shape (rows,), from squared gradient norms: without the kernel, linear in N.

        Raises
        ------
        ValueError
            If the operator is rectangular by construction.
        """
        self._require_symmetric("diagonal")
        total = sum(block_diagonal(block) for block in self._problem.blocks)
        return np.asarray(total, dtype=self.dtype)

    def trace(self) -> float:
        """Return the sum of the diagonal, accumulated in float64; without the kernel."""
        self._require_symmetric("trace")
        return float(sum(block_diagonal(block).sum() for block in self._problem.blocks))

    def frobenius_norm(self) -> float:
        """Return sqrt(Σ K_ij²) of the stored kernel, accumulated in float64."""
        return float(np.sqrt(native.kernel_statistics(self.gram()).squared_norm))

    def per_layer(self) -> dict[str, NTKOperator]:
        """Return one operator for each block; they sum to this one."""
        return {
            name: NTKOperator(
                GradientFeatures({name: self._feats[name]}),
                None if self._feats2 is None else GradientFeatures({name: self._feats2[name]}),
                outputs=self._outputs,
                preconditioner=None if self._preconditioner is None else {name: self._preconditioner[name]},
                memory_limit=self._limit,
                check_finite=self._check_finite,
            )
            for name in self._feats
        }

    def _require_symmetric(self, what: str) -> None:
        if self._feats2 is not None:
            raise ValueError(f"{what} is that of a symmetric kernel, but this operator was given feats2")
