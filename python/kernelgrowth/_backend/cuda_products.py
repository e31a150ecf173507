"""Products of one block's kernel with vectors on a GPU, as `native.matmul` makes them on the CPU.

Of the two factors of a gradient `Σ_t δ_nct a_ntᵀ`, the one that makes the smaller intermediate is *weighted*:
multiplied by the vectors first. A sweep over the right side sums the products of weighted factors with the others, the
*plain* ones, in one matrix product for each run of rows; a sweep over the left side multiplies the plain factors with
that sum, and takes the inner products of what they give with the other factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kernelgrowth._backend.arrays import array_namespace
from kernelgrowth._backend.errors import MemoryLimitError
from kernelgrowth._backend.memory import format_bytes

__all__ = ["matmul", "matmul_workspace"]

# Products that are added up in floats, by the bytes of a number: rounding of equal ones grows with them. cuBLAS adds in
# one order, so runs are shorter than the CPU core's, which adds up pieces of them.
_RUNS = {4: 512, 8: 4096}

# Rows (examples and positions) of a chunk, and columns of the vectors' weighted factors: enough of both to fill a GPU.
# Fewer rows where factors have to be copied, to be contiguous, and are long.
_ROWS, _COLUMNS, _COPIED_BYTES = 4096, 16384, 1 << 28

_POINTERS = 24  # bytes of addresses of a small matrix product, one of many


def matmul(
    left: Sequence[Any],
    right: Sequence[Any] | None,
    v: Any,
    out: Any,
    *,
    bias: bool,
    fold: bool,
    weights: Sequence[Any] = (),
    scale: float = 1.0,
    accumulate: bool = False,
    workspace: int = 0,
) -> None:
    """Queue what `native.matmul` writes on CuPy's current stream, for CuPy arrays of one GPU; nothing waits for it.

    Raises
    ------
    MemoryLimitError
        If `workspace` is less than `matmul_workspace` tells.
    """
    with out.device:
        product = _Product(left, right, bias=bias, fold=fold)
        group, examples = product.fitted(v.shape[1], workspace)
        v = v.reshape(len(product.right[0]), product.outputs, -1)
        out = out.reshape(len(product.left[0]), product.outputs, -1)
        if not accumulate:
            out.fill(0)
        for j in range(0, v.shape[2], group):
            some = slice(j, j + group)
            sums = product.sum_gradients(v[:, :, some], weights, examples[1])
            product.add_inner_products(sums, out[:, :, some], scale, examples[0])
            del sums  # before those of the next vectors are made


def matmul_workspace(
    left: Sequence[Any], right: Sequence[Any] | None, vectors: int, *, bias: bool, fold: bool
) -> tuple[int, int]:
    """Return the bytes of workspace below which `matmul` refuses, and above which more is not used."""
    return _Product(left, right, bias=bias, fold=fold).workspace(vectors)


class _Product:
    """Shapes of a product, and its two sweeps."""

    def __init__(self, left: Sequence[Any], right: Sequence[Any] | None, *, bias: bool, fold: bool) -> None:
        self.left, self.right = left, left if right is None else right
        self.bias, self.dtype = bias, left[0].dtype
        _, outputs, _, units = map(int, left[1].shape)
        self.units, self.inputs = units, int(left[0].shape[2]) + int(bias)
        # Outputs traced over make a longer backprop of one output.
        self.outputs, self.folded = (1, outputs) if fold else (outputs, 1)
        rows = self.folded * self.units
        self.weigh_activations = self.outputs == 1 and self.inputs < rows
        self.weighted, self.plain = (self.inputs, rows) if self.weigh_activations else (rows, self.inputs)
        self.run = _RUNS[self.dtype.itemsize]

    def workspace(self, vectors: int) -> tuple[int, int]:
        """Return the bytes of one vector and one example at a time, and of as many as help."""
        return self._bytes(1, 1), self._bytes(self._together(vectors), _ROWS)

    def fitted(self, vectors: int, workspace: int) -> tuple[int, list[int]]:
        """Return how many vectors are taken at a time, and of the left and the right side how many examples."""
        minimum, full = self.workspace(vectors)
        limit = min(workspace, full) if workspace else full
        if limit < minimum:
            raise MemoryLimitError(
                f"a product on a GPU needs a workspace of {format_bytes(minimum)}, allowed {format_bytes(limit)}",
                needed=minimum,
                limit=limit,
            )
        group = self._together(vectors)
        # Shorter chunks cost less than fewer vectors do, as long as they are whole runs.
        while group > 1 and self._bytes(group, self.run) > limit:
            group = (group + 1) // 2
        left = limit - self._sum_bytes(group)
        return group, [
            max(1, min(self._examples(a, d, _ROWS), left // self._example_bytes(a, d, group)))
            for a, d in (self.left, self.right)
        ]

    def _together(self, vectors: int) -> int:
        return min(vectors, max(1, _COLUMNS // self.weighted))

    def _examples(self, a: Any, d: Any, rows: int) -> int:
        """Return how many examples have so many rows at least, of those that there are and may be copied."""
        copied = self._copied(a, d) * int(self.dtype.itemsize)
        wanted = min(int(d.shape[0]), -(-rows // int(d.shape[2])))
        return min(wanted, max(1, _COPIED_BYTES // copied)) if copied else wanted

    def _bytes(self, vectors: int, rows: int) -> int:
        chunks = [self._examples(a, d, rows) * self._example_bytes(a, d, vectors) for a, d in (self.left, self.right)]
        return self._sum_bytes(vectors) + max(chunks)

    def _sum_bytes(self, vectors: int) -> int:
        """Bytes of the gradients' sum in double, and of a run's product or the sum's pieces."""
        return vectors * self.weighted * self.plain * (8 + int(self.dtype.itemsize))

    def _copied(self, a: Any, d: Any) -> int:
        """Return how many numbers of an example's factors are copied."""
        _, outputs, t, units = d.shape
        numbers = 0
        if self.bias or not a.flags.c_contiguous:
            numbers += t * (self.inputs + int(self.bias))
        if (outputs > 1 and t > 1) or not d.flags.c_contiguous:
            numbers += t * outputs * units
        return int(numbers)

    def _example_bytes(self, a: Any, d: Any, vectors: int) -> int:
        """Bytes that one example of a chunk takes at most, in either sweep."""
        _, outputs, t, units = d.shape
        # Weighted factors, or what the plain ones give, twice: with a run's part of it, or a copy that cuBLAS can read.
        numbers = self._copied(a, d) + 2 * t * vectors * self.weighted
        if self.plain > self.run:
            numbers += t * self.run
        if self.outputs > 1:
            numbers += t * outputs * units + (t + 1) * vectors * outputs
        return int(numbers * self.dtype.itemsize + 16 * vectors * self.outputs + _POINTERS * t)

    def sum_gradients(self, v: Any, weights: Sequence[Any], examples: int) -> list[Any]:
        """Return the gradients' sum with the vectors as weights, (vectors x weighted, plain), in runs of columns."""
        xp = array_namespace(v)
        total = xp.zeros((v.shape[2] * self.weighted, self.plain), dtype=np.float64)
        for n in _slices(len(v), examples):
            self._add_gradients(v[n], *self._factors(self.right, n), total)
        if weights:
            self._precondition(total, *weights)
        return [xp.ascontiguousarray(total[:, i], dtype=self.dtype) for i in _slices(self.plain, self.run)]

    def add_inner_products(self, sums: Sequence[Any], out: Any, scale: float, examples: int) -> None:
        """Add the inner products of every gradient with the sums to `out`, (examples, outputs, vectors)."""
        for n in _slices(len(out), examples):
            self._add_products(sums, *self._factors(self.left, n), out[n], scale)

    def _factors(self, side: Sequence[Any], n: slice) -> tuple[Any, Any]:
        """Return the weighted factors (n, T, C, weighted) of some examples and the plain ones (n T, plain)."""
        xp = array_namespace(side[0])
        a, d = side[0][n], side[1][n].transpose(0, 2, 1, 3)
        if self.bias:
            a = xp.concatenate([a, xp.ones((*a.shape[:2], 1), dtype=self.dtype)], axis=2)
        a = xp.ascontiguousarray(a)
        d = xp.ascontiguousarray(d).reshape(*a.shape[:2], self.outputs, -1)
        if self.weigh_activations:
            return a[:, :, None], d.reshape(-1, self.plain)
        return d, a.reshape(-1, self.plain)

    def _add_gradients(self, v: Any, factors: Any, plain: Any, total: Any) -> None:
        spread = v[:, :, :, None] if self.outputs == 1 else v.transpose(0, 2, 1)[:, None]
        weighted = spread * factors if self.outputs == 1 else spread @ factors
        weighted = weighted.reshape(len(plain), -1)
        for rows in _slices(len(plain), self.run):
            total += weighted[rows].T @ plain[rows]

    def _precondition(self, total: Any, weights: Any, bias_weights: Any = None) -> None:
        if self.weigh_activations:
            gradients = total.reshape(-1, self.inputs, self.folded, self.units).transpose(0, 2, 3, 1)
        else:
            gradients = total.reshape(-1, self.folded, self.units, self.inputs)
        of_inputs = gradients[..., : weights.shape[1]]
        of_inputs *= weights
        if bias_weights is not None:
            of_bias = gradients[..., -1]
            of_bias *= bias_weights

    def _add_products(self, sums: Sequence[Any], factors: Any, plain: Any, out: Any, scale: float) -> None:
        runs = _slices(self.plain, self.run)
        values = plain[:, runs[0]] @ sums[0].T
        for run, piece in zip(runs[1:], sums[1:], strict=True):
            values += plain[:, run] @ piece.T
        values = values.reshape(*factors.shape[:2], -1, self.weighted)
        if self.outputs == 1:
            values *= factors
            out += scale * values.sum(axis=(1, 3), dtype=np.float64)[:, None]
            return
        for run in _slices(self.weighted, self.run):
            products = values[..., run] @ factors[..., run].transpose(0, 1, 3, 2)
            out += scale * products.sum(axis=1, dtype=np.float64).transpose(0, 2, 1)


def _slices(length: int, step: int) -> list[slice]:
    return [slice(i, min(i + step, length)) for i in range(0, length, step)]
