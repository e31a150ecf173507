"""The two halves of a product by factors on one part of the probe set: the sum `Jᵀ v`, and the images `J g` of a sum.

Of the two factors of a gradient `Σ_t δ_nct a_ntᵀ` the one that makes the smaller intermediate is *weighted*, multiplied
by the vectors, and the other *plain*. Which one it is, and so how a sum is laid out, shapes alone decide: the sums of
different parts can be added up entry by entry.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernelgrowth._backend import native
from kernelgrowth._backend.arrays import FloatArray, array_namespace, is_cupy, to_numpy
from kernelgrowth.distributed.shards import Settings
from kernelgrowth.gradients.embeddings import without_embeddings
from kernelgrowth.gradients.features import Block, Embedding, GradientFeatures, OuterProduct
from kernelgrowth.gradients.identity import arrays_of
from kernelgrowth.kernels.factored import FactoredBlock, factor

__all__ = ["SumLayout", "images", "precondition", "sum_gradients"]

# Rows (examples and positions) whose products are added up in floats, the sums of which are added up in double; cuBLAS
# adds in one order, so its rounding grows faster. Bytes of a weighted factor, or of what a plain one gives.
_ROWS, _ROWS_ON_GPU, _BYTES = 4096, 512, 1 << 25

# Entries of inner products that are added up in floats.
_RUN = 512


@dataclass(frozen=True)
class _Shape:
    """One block's sum for one vector: (weighted, plain), with the bias as one more input.

    `copies` sums stand side by side where the block is several outer products, one for each output.
    """

    name: str
    inputs: int
    units: int
    folded: int
    bias: bool
    weigh_activations: bool
    copies: int

    @property
    def weighted(self) -> int:
        return self.inputs if self.weigh_activations else self.folded * self.units

    @property
    def plain(self) -> int:
        return self.folded * self.units if self.weigh_activations else self.inputs

    @property
    def size(self) -> int:
        return self.copies * self.inputs * self.folded * self.units


class SumLayout:
    """Where each block's part of a sum of gradients is found: one after another, each (copies, k, weighted, plain).

    Parameters
    ----------
    feats : GradientFeatures
        One example at least.
    settings : Settings
    """

    def __init__(self, feats: GradientFeatures, settings: Settings) -> None:
        self.dtype = feats.dtype
        c = feats.num_outputs
        full = c == 1 or settings.outputs == "full"
        self.rows_each = c if full else 1
        fold = not full and settings.outputs != "sum_logits"
        self.blocks = [_shape(name, block, c, fold, self.rows_each, settings) for name, block in feats.items()]
        self.numbers = sum(block.size for block in self.blocks)

    def parts(self, flat: FloatArray) -> Iterator[tuple[_Shape, FloatArray]]:
        """Yield each block's view of a sum, (copies, k, weighted, plain)."""
        begin, count = 0, flat.size // self.numbers
        for block in self.blocks:
            end = begin + block.size * count
            yield block, flat[begin:end].reshape(block.copies, count, block.weighted, block.plain)
            begin = end

    def workspace(self, feats: GradientFeatures, num_examples: int) -> int:
        """Bytes that a half takes at most beside the sum: copied, weighted and multiplied factors, sums in double."""
        number, most = self.dtype.itemsize, 0
        for block in self.blocks:
            rows = min(_rows(feats, block), num_examples * _positions(feats, block.name))
            copied = rows * (block.inputs + block.folded * block.units * self.rows_each) * number
            weighted, wide = max(_BYTES, rows * block.weighted * number), max(_BYTES, block.size * number)
            most = max(most, 2 * copied + 2 * weighted + 4 * wide)
        return most

    def flops_each(self, feats: GradientFeatures) -> int:
        """Operations of both halves for one example and vector."""
        count = 0
        for block in self.blocks:
            # Rows of several outputs are as many examples, or where they are traced over as many sums.
            rows = _positions(feats, block.name)
            if not isinstance(feats[block.name], OuterProduct) and block.copies == 1:
                rows = feats.num_outputs
            count += rows * (4 * block.size + 4 * block.weighted * self.rows_each * block.copies)
        return count


def _shape(name: str, block: Block, c: int, fold: bool, rows_each: int, settings: Settings) -> _Shape:
    if not isinstance(block, OuterProduct):
        return _Shape(name, block.num_parameters, 1, 1, False, False, c if fold else 1)
    known = settings.occurring[name] if isinstance(block, Embedding) else None
    inputs = int(block.num_inputs if known is None else len(known)) + int(block.bias)
    units, folded = int(block.backprops.shape[3]), c if fold else 1
    weigh_activations = rows_each == 1 and inputs < folded * units
    return _Shape(name, inputs, units, folded, bool(block.bias), weigh_activations, 1)


def sum_gradients(feats: GradientFeatures, v: FloatArray, settings: Settings) -> FloatArray:
    """Return `Jᵀ V`, each block's gradients summed with the vectors as weights.

    Parameters
    ----------
    feats : GradientFeatures
        n examples, which know the indices that occur in the whole probe set.
    v : ndarray, shape (n·C or n, k)
        In the dtype of the features, on the host.
    settings : Settings

    Returns
    -------
    ndarray, shape (k · numbers,)
        On the host, as `SumLayout` lays it out. Sums are made in float64 and rounded once.
    """
    plan = SumLayout(feats, settings)
    total = np.empty(v.shape[1] * plan.numbers, plan.dtype)
    xp = array_namespace(arrays_of(feats)[0])
    for shape, target in plan.parts(total):
        steps = _steps(feats, shape)
        for j in _slices(v.shape[1], _together(feats, shape)):
            wide: Any = xp.zeros((shape.copies, (j.stop - j.start) * shape.weighted, shape.plain), np.float64)
            for n in steps:
                weights = v[n.start * plan.rows_each : n.stop * plan.rows_each, j]
                for copy, block in enumerate(_factored(feats, shape.name, n, settings)):
                    weighted, plain = _factors(block, shape)
                    spread = _spread(weights, weighted)
                    wide[copy] += _multiply(spread.reshape(len(plain), -1).T, plain, settings.num_threads)
            with np.errstate(over="ignore"):
                target[:, j] = to_numpy(wide.reshape(shape.copies, -1, shape.weighted, shape.plain))
    return total


def precondition(total: FloatArray, feats: GradientFeatures, settings: Settings) -> FloatArray:
    """Return a sum of gradients times the preconditioner; `feats` is one example at least."""
    plan = SumLayout(feats, settings)
    result = total.copy()
    for shape, gradients in plan.parts(result):
        weights = settings.weights[shape.name]
        if shape.name in settings.occurring:
            weights = (np.ascontiguousarray(weights[0][settings.occurring[shape.name]].T),)
        matrix = weights[0].reshape(shape.units, -1)
        if shape.bias:
            matrix = np.concatenate([matrix, weights[1][:, None]], axis=1)
        rows = np.tile(matrix, (shape.folded, 1))
        with np.errstate(over="ignore", invalid="ignore"):
            np.multiply(gradients, rows.T if shape.weigh_activations else rows, out=gradients)
    return result


def images(feats: GradientFeatures, total: FloatArray, settings: Settings) -> FloatArray:
    """Return `J G` for a sum of gradients G, shape (n·C or n, k), in the dtype of the features and on the host.

    Inner products of up to 512 numbers are made in that dtype and added up in float64.
    """
    plan = SumLayout(feats, settings)
    k = total.size // plan.numbers
    out = np.zeros((feats.num_examples, plan.rows_each, k), np.float64)
    xp = array_namespace(arrays_of(feats)[0])
    for shape, part in plan.parts(total):
        steps = _steps(feats, shape)
        for j in _slices(k, _together(feats, shape)):
            for copy, sums in enumerate(part[:, j]):
                placed = xp.asarray(sums.reshape(-1, shape.plain))
                for n in steps:
                    block = _factored(feats, shape.name, n, settings)[copy]
                    weighted, plain = _factors(block, shape)
                    values = _multiply(plain, placed.T, settings.num_threads)
                    values = values.reshape(*weighted.shape[:2], -1, shape.weighted)
                    with np.errstate(over="ignore", invalid="ignore"):
                        target = out[n, :, j]
                        target += block.scale * to_numpy(_inner_products(values, weighted)).reshape(target.shape)
    with np.errstate(over="ignore"):
        return out.reshape(-1, k).astype(plan.dtype)


def _factored(feats: GradientFeatures, name: str, n: slice, settings: Settings) -> list[FactoredBlock]:
    """Return one block of some examples as outer products with the activations that occur."""
    part = GradientFeatures({name: feats[name].examples(n.start, n.stop)})
    part, _, _, _ = without_embeddings(part, None, None, np.iinfo(np.int64).max)
    return factor(part, None, settings.outputs, {}, copy=True)


def _factors(block: FactoredBlock, shape: _Shape) -> tuple[Any, Any]:
    """Return the weighted factors (n, T, C, weighted) and the plain ones (n T, plain)."""
    a, d = block.left
    xp = array_namespace(a)
    d = xp.ascontiguousarray(d.transpose(0, 2, 1, 3))
    if shape.bias:
        a = xp.concatenate([a, xp.ones((*a.shape[:2], 1), dtype=a.dtype)], axis=2)
    d = d.reshape(*a.shape[:2], -1, shape.folded * shape.units)
    if shape.weigh_activations:
        return a[:, :, None], d.reshape(-1, shape.plain)
    return d, a.reshape(-1, shape.plain)


def _spread(v: FloatArray, weighted: Any) -> Any:
    """Return Σ_c v_ncj times the weighted factors, (n, T, k, weighted)."""
    xp = array_namespace(weighted)
    n, _, c, _ = weighted.shape
    vectors = xp.asarray(v).reshape(n, c, -1)
    if c == 1:
        return vectors.transpose(0, 2, 1)[:, None] * weighted
    return vectors.transpose(0, 2, 1)[:, None] @ weighted


def _inner_products(values: Any, weighted: Any) -> Any:
    """Return Σ_t of the inner products of (n, T, k, weighted) and (n, T, C, weighted), (n, C, k) in float64."""
    if weighted.shape[2] == 1:
        values *= weighted
        return values.sum(axis=-1).sum(axis=1, dtype=np.float64)[:, None]
    total: Any = 0.0
    for run in _slices(values.shape[3], _RUN):
        products = weighted[..., run] @ values[..., run].transpose(0, 1, 3, 2)
        total = total + products.sum(axis=1, dtype=np.float64)
    return total


def _multiply(a: Any, b: Any, threads: int) -> Any:
    # An entry's bits are the same whatever the other rows, columns and threads; cuBLAS promises no such thing.
    return a @ b if is_cupy(a) else native.gemm(a, b, threads=threads)


def _rows(feats: GradientFeatures, shape: _Shape) -> int:
    """Return how many examples and positions are taken at a time, by shapes alone."""
    rows = _ROWS_ON_GPU if is_cupy(arrays_of(feats)[0]) else _ROWS
    if isinstance(feats[shape.name], Embedding):  # its inputs are made for them
        rows = min(rows, _BYTES // (shape.inputs * feats.dtype.itemsize))
    return max(1, rows)


def _positions(feats: GradientFeatures, name: str) -> int:
    block = feats[name]
    return block.num_positions if isinstance(block, OuterProduct) else 1


def _steps(feats: GradientFeatures, shape: _Shape) -> list[slice]:
    return _slices(feats.num_examples, max(1, _rows(feats, shape) // _positions(feats, shape.name)))


def _together(feats: GradientFeatures, shape: _Shape) -> int:
    """Return how many vectors are taken at a time."""
    rows = min(_rows(feats, shape), feats.num_examples * _positions(feats, shape.name))
    entries = max(rows * shape.weighted, shape.size)
    return max(1, _BYTES // (entries * feats.dtype.itemsize))


def _slices(length: int, step: int) -> list[slice]:
    return [slice(i, min(i + step, length)) for i in range(0, length, step)]
