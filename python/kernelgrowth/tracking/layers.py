"""The kernels of a network's layers, one after another, on one set of examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

import numpy as np

from kernelgrowth._backend.arrays import FloatArray, is_cupy
from kernelgrowth.gradients import Embedding, GradientFeatures, OuterProduct, Rows
from kernelgrowth.kernels import NTKOperator

__all__ = ["LayerKernels"]


class LayerKernels:
    """Kernels layer by layer, on the same examples at every step.

    A layer that sees the inputs themselves has the activations x at every step. Their inner products x xᵀ (one more
    array of n² entries) are computed once, and its kernel is their entrywise product with that of the backprops.

    Parameters
    ----------
    x : array (N, ...), optional
        The examples, contiguous; without them nothing is remembered.
    outputs : str
        How the outputs enter the kernel, as for `NTKOperator`.
    """

    def __init__(self, x: Any | None, outputs: str) -> None:
        self._x = x
        self._outputs = outputs
        self._products: dict[bool, FloatArray] = {}

    def of(
        self, features: GradientFeatures, preconditioner: Mapping[str, Any] | None = None
    ) -> Iterator[tuple[str, FloatArray]]:
        """Yield each layer's name and its kernel (n, n), J J^T or J diag(η) J^T, which nobody else holds."""
        for name, block in features.items():
            if preconditioner is not None:
                yield name, self._gram(name, block, {name: preconditioner[name]})
            elif self._sees_inputs(block):
                yield name, self._of_inputs(name, block)
            else:
                yield name, self._gram(name, block)

    def _sees_inputs(self, block: Any) -> TypeGuard[OuterProduct]:
        """Whether a block's activations are x itself, and its kernel has a row an example."""
        if self._x is None or self._x.ndim != 2 or not isinstance(block, OuterProduct) or block.num_positions > 1:
            return False
        if isinstance(block, Embedding):  # whose activations would be made
            return False
        # By place: comparing the values would read both arrays.
        same = _place(self._x) == _place(block.activations[:, 0])
        return same and (block.num_outputs == 1 or self._outputs != "full")

    def _of_inputs(self, name: str, block: OuterProduct) -> FloatArray:
        kernel = self._gram(name, Rows(block.backprops[:, :, 0], scale=block.scale, check_finite=False))
        if block.bias not in self._products:
            products = self._gram(name, Rows(self._x, check_finite=False))
            self._products[block.bias] = products + products.dtype.type(block.bias)
        # A kernel on its way to infinity is recorded as far as it has numbers.
        with np.errstate(over="ignore", invalid="ignore"):
            kernel *= self._products[block.bias]
        return kernel

    def _gram(self, name: str, block: Any, preconditioner: Mapping[str, Any] | None = None) -> FloatArray:
        features = GradientFeatures({name: block})
        operator = NTKOperator(features, outputs=self._outputs, preconditioner=preconditioner, check_finite=False)
        kernel = operator.gram()
        # The operator that keeps it is gone, and another array of that size would cost half of a pass over it.
        if not is_cupy(kernel):
            kernel.flags.writeable = True
        return kernel


def _place(array: Any) -> tuple[Any, ...]:
    """Return where an array's entries lie in which memory, and what they are."""
    about = array.__cuda_array_interface__ if is_cupy(array) else array.__array_interface__
    return is_cupy(array), about["data"][0], about["shape"], about["typestr"], array.strides
