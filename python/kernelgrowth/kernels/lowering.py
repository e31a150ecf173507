"""From gradient blocks to what the Gram kernel takes: factor pairs where structure allows it, else expanded rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernelgrowth._backend.arrays import FloatArray, as_array, is_cupy
from kernelgrowth._backend.errors import BackendError
from kernelgrowth._backend.native import Factor, GramTerm
from kernelgrowth.gradients.features import Block, GradientFeatures, OuterProduct

__all__ = [
    "OUTPUTS",
    "Expansion",
    "FusedTerm",
    "LoweredBlock",
    "Problem",
    "check_pair",
    "check_preconditioner",
    "lower",
]

OUTPUTS = ("full", "trace", "mean_trace", "diagonal", "sum_logits")

Preconditioner = Mapping[str, tuple[FloatArray, ...]]


@dataclass(frozen=True)
class FusedTerm:
    """A block that is one term of the fused Gram as it stands.

    `strategy` is "hadamard" for `(A Aᵀ + offset) ∘ (D Dᵀ)` and "rows" for a one-factor term.
    """

    name: str
    strategy: str
    term: GramTerm


@dataclass(frozen=True)
class Expansion:
    """A block whose gradients are written out, some rows of its weight at a time: positions or a preconditioner.

    Attributes
    ----------
    sides : tuple of (activations (N, T, d_in), backprops (N, C, T, d_out))
        One side for a symmetric Gram, two for a rectangular one.
    weights : tuple of ndarray
        Square roots of the preconditioner for the weight and, with a bias, for the bias; empty without one.
    fold : bool
        Whether outputs are summed over (trace) instead of kept apart.
    """

    name: str
    sides: tuple[tuple[FloatArray, FloatArray], ...]
    weights: tuple[FloatArray, ...]
    bias: bool
    scale: float
    fold: bool

    @property
    def d_in(self) -> int:
        """Inputs of the weight."""
        return int(self.sides[0][0].shape[2])

    @property
    def d_out(self) -> int:
        """Outputs of the weight: its rows."""
        return int(self.sides[0][1].shape[3])

    @property
    def bytes_per_weight_row(self) -> int:
        """Bytes of one expanded weight row on all sides, as computed and as packed."""
        return sum(2 * d.shape[0] * d.shape[1] * self.d_in * d.itemsize for _, d in self.sides)

    @property
    def bias_bytes(self) -> int:
        """Bytes of the bias' gradients on all sides, as computed and as packed."""
        return sum(2 * d.shape[0] * d.shape[1] * self.d_out * d.itemsize for _, d in self.sides) if self.bias else 0

    def terms(self, weight_rows: int) -> Iterator[GramTerm]:
        """Yield one-factor terms of at most `weight_rows` expanded weight rows each, then the bias'."""
        for begin in range(0, self.d_out, weight_rows):
            chunk = slice(begin, min(begin + weight_rows, self.d_out))
            yield GramTerm(self._factor([self._expand(a, d, chunk) for a, d in self.sides]), scale=self.scale)
        if self.bias:
            summed = [d.sum(axis=2) for _, d in self.sides]
            if self.weights:
                summed = [g * self.weights[1] for g in summed]
            yield GramTerm(self._factor(summed), scale=self.scale)

    def _expand(self, a: FloatArray, d: FloatArray, chunk: slice) -> FloatArray:
        n, c = d.shape[:2]
        # (N, C, rows, T) @ (N, 1, T, d_in): a batched product of BLAS.
        gradients: FloatArray = np.matmul(d[..., chunk].transpose(0, 1, 3, 2), a[:, None])
        if self.weights:
            gradients *= self.weights[0][chunk]
        return gradients.reshape(n, c, -1)

    def _factor(self, rows: list[FloatArray]) -> Factor:
        return Factor(*(_fold(g) if self.fold else g for g in rows))


LoweredBlock = FusedTerm | Expansion


@dataclass(frozen=True)
class Problem:
    """One matrix to be computed: the sum of its blocks."""

    blocks: tuple[LoweredBlock, ...]
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    symmetric: bool


def _fold(rows: FloatArray) -> FloatArray:
    """Concatenate the outputs' vectors: Σ_c <g_nc, g_mc> is one inner product of that longer vector."""
    return rows.reshape(rows.shape[0], 1, -1)


def check_pair(feats: Any, feats2: Any) -> None:
    """Check that two probe sets hold the same blocks of the same parameters and may form a kernel."""
    for name, value in (("feats", feats), ("feats2", feats2)):
        if value is None and name == "feats2":
            continue
        if not isinstance(value, GradientFeatures):
            raise TypeError(f"{name} must be GradientFeatures, got {type(value).__name__}")
        if any(is_cupy(b.activations if isinstance(b, OuterProduct) else b.rows) for b in value.blocks.values()):
            raise BackendError(f"{name} holds CuPy arrays: their kernels need CUDA kernels, which this build lacks")
    if feats2 is None:
        return
    if list(feats) != list(feats2):
        raise ValueError(f"feats2 must have the blocks of feats, {list(feats)}, got {list(feats2)}")
    if feats.num_outputs != feats2.num_outputs:
        raise ValueError(f"feats2 must have the C = {feats.num_outputs} outputs of feats, got {feats2.num_outputs}")
    if feats.dtype != feats2.dtype:
        raise TypeError(f"feats2 is {feats2.dtype} but feats is {feats.dtype}: convert one of them explicitly")
    for name, block in feats.items():
        if _signature(block) != _signature(feats2[name]):
            raise ValueError(f"feats2[{name!r}] is {feats2[name]!r}, another parameter than feats[{name!r}], {block!r}")


def _signature(block: Block) -> tuple[Any, ...]:
    if isinstance(block, OuterProduct):
        return ("outer", block.activations.shape[2], block.backprops.shape[3], block.bias, block.scale)
    return ("rows", block.num_parameters, block.scale)


def check_preconditioner(feats: GradientFeatures, preconditioner: Any) -> dict[str, tuple[FloatArray, ...]]:
    """Return the square roots of a preconditioner's arrays by block, checked for names, shapes and signs."""
    if preconditioner is None:
        return {}
    if not isinstance(preconditioner, Mapping):
        raise TypeError(f"preconditioner must map block names to arrays, got {type(preconditioner).__name__}")
    unknown = [name for name in preconditioner if name not in feats]
    missing = [name for name in feats if name not in preconditioner]
    if unknown or missing:
        raise ValueError(f"preconditioner must have the blocks {list(feats)}; unknown {unknown}, missing {missing}")
    roots = {}
    for name, block in feats.items():
        given = preconditioner[name]
        arrays = given if isinstance(given, tuple | list) else (given,)
        shapes: list[tuple[int, ...]]
        if isinstance(block, OuterProduct):
            d_out = block.backprops.shape[3]
            shapes = [(d_out, block.activations.shape[2])] + ([(d_out,)] if block.bias else [])
        else:
            shapes = [(block.num_parameters,)]
        label = f"preconditioner[{name!r}]"
        checked = [as_array(label, array, dtype=feats.dtype) for array in arrays]
        if [array.shape for array in checked] != shapes:
            wanted = " and ".join(str(shape) for shape in shapes)
            raise ValueError(f"{label} must have shape {wanted}, got {[array.shape for array in checked]}")
        if any(array.min() < 0 for array in checked):
            raise ValueError(f"{label} must not be negative")
        roots[name] = tuple(np.sqrt(array) for array in checked)
    return roots


def lower(
    feats: GradientFeatures, feats2: GradientFeatures | None, outputs: str, roots: Preconditioner
) -> list[Problem]:
    """Return the matrices that `outputs` asks for: one for each output in the "diagonal" mode, else a single one."""
    if outputs == "diagonal":
        choices = [slice(c, c + 1) for c in range(feats.num_outputs)]
        return [_problem(feats, feats2, roots, select=choice) for choice in choices]
    fold = outputs in ("trace", "mean_trace")
    scale = 1.0 / feats.num_outputs if outputs == "mean_trace" else 1.0
    return [_problem(feats, feats2, roots, fold=fold, total=outputs == "sum_logits", scale=scale)]


def _problem(
    feats: GradientFeatures,
    feats2: GradientFeatures | None,
    roots: Preconditioner,
    *,
    select: slice | None = None,
    total: bool = False,
    fold: bool = False,
    scale: float = 1.0,
) -> Problem:
    def outputs_of(array: FloatArray) -> FloatArray:
        if select is not None:
            return array[:, select]
        return array.sum(axis=1, keepdims=True) if total and array.shape[1] > 1 else array

    both = (feats,) if feats2 is None else (feats, feats2)
    blocks: list[LoweredBlock] = []
    for name in feats:
        sides = [side[name] for side in both]
        first = sides[0]
        weights = roots.get(name, ())
        block_scale = first.scale * scale
        if not isinstance(first, OuterProduct):
            rows = [outputs_of(side.rows) for side in sides if not isinstance(side, OuterProduct)]
            if weights:
                rows = [g * weights[0] for g in rows]
            factor = Factor(*(_fold(g) if fold else g for g in rows))
            blocks.append(FusedTerm(name, "rows", GramTerm(factor, scale=block_scale)))
            continue
        pairs = [(s.activations, outputs_of(s.backprops)) for s in sides if isinstance(s, OuterProduct)]
        if weights or any(a.shape[1] > 1 for a, _ in pairs):
            blocks.append(Expansion(name, tuple(pairs), tuple(weights), first.bias, block_scale, fold))
            continue
        activations = Factor(*(a[:, :1] for a, _ in pairs))
        backprops = Factor(*(_fold(d[:, :, 0]) if fold else d[:, :, 0] for _, d in pairs))
        term = GramTerm(activations, backprops, offset=float(first.bias), scale=block_scale)
        blocks.append(FusedTerm(name, "hadamard", term))

    kept = 1 if fold or total or select is not None else feats.num_outputs
    columns = (feats if feats2 is None else feats2).num_examples
    return Problem(tuple(blocks), (feats.num_examples * kept, columns * kept), feats.dtype, feats2 is None)
