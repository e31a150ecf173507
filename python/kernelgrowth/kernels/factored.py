"""Products with the kernel that never form it: J₁ η (J₂ᵀ v), block by block, linear in the number of examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from kernelgrowth._backend import native
from kernelgrowth._backend.arrays import FloatArray, array_namespace
from kernelgrowth.gradients.features import Block, GradientFeatures, OuterProduct

__all__ = ["FactoredBlock", "factor"]


@dataclass(frozen=True)
class FactoredBlock:
    """One block of the kernel, or one output of it, as sums of outer products on each side.

    Attributes
    ----------
    name : str
    left : tuple of ndarray
        Activations (N1, T, d_in) and backprops (N1, C, T, d_out) of the rows.
    right : tuple of ndarray or None
        Of the columns; None where they are the rows.
    bias, fold : bool
        As `native.matmul` takes them.
    weights : tuple of ndarray
        The preconditioner by parameter, contiguous; empty without one.
    scale : float
    copied_bytes : int
        Of features that had to be copied for it.
    """

    name: str
    left: native.Sides
    right: native.Sides | None
    bias: bool
    fold: bool
    weights: tuple[FloatArray, ...]
    scale: float
    copied_bytes: int

    @property
    def transposed(self) -> FactoredBlock:
        """The block of the transposed kernel."""
        return self if self.right is None else replace(self, left=self.right, right=self.left)

    def flops(self, vectors: int) -> int:
        """Floating-point operations of a product with so many vectors."""
        count = 0
        for a, d in (self.left, self.right or self.left):
            units = d.shape[3] * (d.shape[1] if self.fold else 1)
            count += a.shape[0] * a.shape[1] * 2 * (a.shape[2] + int(self.bias)) * units + 2 * d.size
        return count * vectors

    @property
    def nbytes(self) -> int:
        """Bytes of the features read, each once."""
        sides = (self.left,) if self.right is None else (self.left, self.right)
        return sum(a.nbytes + d.nbytes for a, d in sides)

    def workspace(self, vectors: int, threads: int) -> tuple[int, int]:
        """Bytes without which a product cannot be made, and beyond which more do not help."""
        return native.matmul_workspace(self.left, self.right, vectors, bias=self.bias, fold=self.fold, threads=threads)

    def add_product(
        self, v: FloatArray, out: npt.NDArray[np.float64], *, accumulate: bool, workspace: int, threads: int
    ) -> None:
        """Write or add the block's product with `v` to `out`."""
        native.matmul(
            self.left,
            self.right,
            v,
            out,
            bias=self.bias,
            fold=self.fold,
            weights=self.weights,
            scale=self.scale,
            accumulate=accumulate,
            workspace=workspace,
            threads=threads,
        )


def factor(
    feats: GradientFeatures,
    feats2: GradientFeatures | None,
    outputs: str,
    preconditioner: Mapping[str, tuple[FloatArray, ...]],
    *,
    copy: bool,
) -> list[FactoredBlock]:
    """Return the kernel's blocks as factored products take them, in a fixed order.

    Parameters
    ----------
    copy : bool
        Whether to make the copies that some need (outputs summed up; rows whose examples and outputs are no one
        dimension of memory). Without them the blocks serve for counting only.
    """
    c = feats.num_outputs
    scale = 1.0 / c if outputs == "mean_trace" else 1.0
    mode = "full" if c == 1 else "trace" if outputs == "mean_trace" else outputs
    blocks = []
    for name, block in feats.items():
        sides = [block] if feats2 is None else [block, feats2[name]]
        fold = mode == "trace" and isinstance(block, OuterProduct)
        parts = [_sides(side, mode, copy) for side in sides]
        for pairs in zip(*parts, strict=True):
            blocks.append(
                FactoredBlock(
                    name,
                    pairs[0][:2],
                    pairs[1][:2] if len(pairs) > 1 else None,
                    isinstance(block, OuterProduct) and block.bias,
                    fold,
                    _weights(block, preconditioner.get(name, ())),
                    block.scale * scale,
                    sum(copied for _, _, copied in pairs),
                )
            )
    return blocks


def _weights(block: Block, arrays: tuple[FloatArray, ...]) -> tuple[FloatArray, ...]:
    contiguous = tuple(array_namespace(array).ascontiguousarray(array) for array in arrays)
    return contiguous if isinstance(block, OuterProduct) else tuple(array[None] for array in contiguous)


def _sides(block: Block, mode: str, copy: bool) -> list[tuple[FloatArray, FloatArray, int]]:
    """Return activations, backprops and copied bytes: one triple, or with traced rows one for each output."""
    xp = array_namespace(block.activations if isinstance(block, OuterProduct) else block.rows)
    if isinstance(block, OuterProduct):
        a, d = block.activations, block.backprops
        if mode != "sum_logits":
            return [(a, d, 0)]
        shape = (d.shape[0], 1, *d.shape[2:])
        total: Any = d.sum(axis=1, keepdims=True) if copy else xp.broadcast_to(xp.zeros((), d.dtype), shape)
        return [(a, total, total.size * d.itemsize)]
    g = block.rows
    n, c, p = g.shape

    def ones(*shape: int) -> FloatArray:
        return xp.broadcast_to(xp.ones((), g.dtype), shape)  # type: ignore[no-any-return]

    # Rows are outer products with a backprop of 1. The sum over outputs is one over positions.
    if mode == "sum_logits":
        return [(g, ones(n, 1, c, 1), 0)]
    if mode == "trace":
        return [(g[:, e : e + 1], ones(n, 1, 1, 1), 0) for e in range(c)]
    if c == 1 or n == 1 or g.strides[0] == c * g.strides[1]:
        stride = g.strides[0] if c == 1 else g.strides[1]
        flat = xp.lib.stride_tricks.as_strided(g, (n * c, 1, p), (stride, 0, g.strides[2]))
        return [(flat, ones(n * c, 1, 1, 1), 0)]
    flat = xp.ascontiguousarray(g).reshape(n * c, 1, p) if copy else ones(n * c, 1, p)
    return [(flat, ones(n * c, 1, 1, 1), flat.size * g.itemsize)]
