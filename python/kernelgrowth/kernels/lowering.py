"""From gradient blocks to what the Gram kernel takes: factor pairs where structure allows it, else expanded rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernelgrowth._backend.arrays import FloatArray, as_array, is_cupy
from kernelgrowth._backend.errors import BackendError, MemoryLimitError
from kernelgrowth._backend.memory import format_bytes
from kernelgrowth._backend.native import Factor, GramTerm
from kernelgrowth.gradients.features import Block, GradientFeatures, OuterProduct

__all__ = [
    "OUTPUTS",
    "ExpandedOuterProduct",
    "ExpandedRows",
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


# Gradients are written out in pieces of about so many entries an output, each a term of its own. Where the pieces end
# depends on the block's shape alone, so an entry of the kernel is the same sum however many of them fit the memory.
PIECE = 4096
# Long rows exist already and are only cut, into terms of so many entries, so that packing them takes less memory.
LONGEST_ROWS = 8 * PIECE


@dataclass(frozen=True)
class FusedTerm:
    """A block whose terms go into the fused Gram as they stand.

    `strategy` is "hadamard" for `(A Aᵀ + offset) ∘ (D Dᵀ)` and "rows" for one-factor terms, the pieces of long rows.
    """

    name: str
    strategy: str
    terms: tuple[GramTerm, ...]


@dataclass(frozen=True)
class Expansion(ABC):
    """A block whose gradients are written out piece by piece: positions or a preconditioner.

    Attributes
    ----------
    name : str
    sides : tuple
        What the gradients are made from: one entry for a symmetric Gram, two for a rectangular one.
    weights : tuple of ndarray
        Square roots of the preconditioner by parameter; empty without one.
    scale : float
    fold : bool
        Whether outputs are summed over (trace) instead of kept apart.
    """

    name: str
    sides: tuple[Any, ...]
    weights: tuple[FloatArray, ...]
    scale: float
    fold: bool

    @property
    @abstractmethod
    def shapes(self) -> list[tuple[int, int]]:
        """(N, C) of each side."""

    @property
    @abstractmethod
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of the features read."""

    @property
    @abstractmethod
    def flops(self) -> int:
        """Floating-point operations of writing the gradients out."""

    @property
    def transient_bytes(self) -> int:
        """Bytes that writing out a piece takes beside it, for a moment."""
        return 0

    @property
    @abstractmethod
    def pieces(self) -> list[tuple[int, slice, int]]:
        """(parameter, its rows or entries, length in entries an output) of each piece."""

    @abstractmethod
    def expand(self, side: Any, parameter: int, part: slice) -> FloatArray:
        """Write out one side's gradients of a part of a parameter, (N, C, length), contiguous."""

    def term(self, piece: tuple[int, slice, int]) -> GramTerm:
        """Return a piece as a one-factor term."""
        parameter, part, _ = piece
        rows = [self.expand(side, parameter, part) for side in self.sides]
        return GramTerm(Factor(*(_fold(g) if self.fold else g for g in rows)), scale=self.scale)


@dataclass(frozen=True)
class ExpandedOuterProduct(Expansion):
    """Gradients of a weight (parameter 0, in rows) and its bias (1); sides are (A (N, T, d_in), D (N, C, T, d_out))."""

    bias: bool

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(N, C) of each side."""
        return [d.shape[:2] for _, d in self.sides]

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64."""
        dtype: np.dtype[Any] = self.sides[0][0].dtype
        return dtype

    @property
    def nbytes(self) -> int:
        """Bytes of activations and backprops."""
        return sum(a.nbytes + d.nbytes for a, d in self.sides)

    @property
    def flops(self) -> int:
        """Of the outer products' sums, and the bias' sums over positions."""
        return sum(d.size * (2 * a.shape[2] + int(self.bias)) for a, d in self.sides)

    @property
    def transient_bytes(self) -> int:
        """Bytes of the contiguous copies that products are made from."""
        rows = max(part.stop - part.start for _, part, _ in self.pieces)
        counts = [d.nbytes // d.shape[3] * rows + (0 if a.flags.c_contiguous else a.nbytes) for a, d in self.sides]
        return int(max(counts))

    @property
    def pieces(self) -> list[tuple[int, slice, int]]:
        """Some rows of the weight each, then some entries of the bias."""
        a, d = self.sides[0]
        positions, d_in, d_out = a.shape[1], a.shape[2], d.shape[3]
        # What a piece is made from should not be larger than the piece.
        rows = _slices(d_out, max(1, PIECE // max(d_in, positions)))
        parts = [(0, part, (part.stop - part.start) * d_in) for part in rows]
        if self.bias:
            parts += [(1, part, part.stop - part.start) for part in _slices(d_out, max(1, PIECE // positions))]
        return parts

    def expand(self, side: Any, parameter: int, part: slice) -> FloatArray:
        """Write out `Σ_t δ_t a_tᵀ` of some rows of the weight, or `Σ_t δ_t`."""
        a, d = side
        n, c = d.shape[:2]
        # Contiguous first: products of views in different layouts may round differently.
        backprops = np.ascontiguousarray(d[..., part].transpose(0, 1, 3, 2))
        if parameter == 0:
            gradients: FloatArray = np.matmul(backprops, np.ascontiguousarray(a)[:, None])
        else:
            gradients = backprops.sum(axis=3)
        if self.weights:
            gradients *= self.weights[parameter][part]
        return gradients.reshape(n, c, -1)


@dataclass(frozen=True)
class ExpandedRows(Expansion):
    """Rows times the square root of their preconditioner; sides are (N, C, p)."""

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(N, C) of each side."""
        return [g.shape[:2] for g in self.sides]

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64."""
        dtype: np.dtype[Any] = self.sides[0].dtype
        return dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the rows."""
        return sum(g.nbytes for g in self.sides)

    @property
    def flops(self) -> int:
        """One product an entry."""
        return sum(g.size for g in self.sides)

    @property
    def pieces(self) -> list[tuple[int, slice, int]]:
        """Some columns each."""
        return [(0, part, part.stop - part.start) for part in _slices(self.sides[0].shape[2], PIECE)]

    def expand(self, side: Any, parameter: int, part: slice) -> FloatArray:
        """Weight some columns."""
        return np.ascontiguousarray(side[..., part] * self.weights[parameter][part])


LoweredBlock = FusedTerm | Expansion


@dataclass(frozen=True)
class Problem:
    """One matrix to be computed, the sum of its blocks; `copied_bytes` are features that had to be copied for it."""

    blocks: tuple[LoweredBlock, ...]
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    symmetric: bool
    copied_bytes: int


def _slices(length: int, step: int) -> list[slice]:
    return [slice(begin, min(begin + step, length)) for begin in range(0, length, step)]


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
    feats: GradientFeatures,
    feats2: GradientFeatures | None,
    outputs: str,
    roots: Preconditioner,
    memory_limit: int,
) -> list[Problem]:
    """Return the matrices that `outputs` asks for: one for each output in the "diagonal" mode, else a single one.

    Raises
    ------
    MemoryLimitError
        If `memory_limit` does not even hold the copies of features that the mode needs; none has been made then.
    """
    if feats.num_outputs == 1:
        outputs = "full"
    copied = _copied_bytes(feats, feats2, outputs)
    if copied > memory_limit:
        raise MemoryLimitError(
            f"outputs={outputs!r} needs {format_bytes(copied)} of copied features, but memory_limit is "
            f"{format_bytes(memory_limit)}",
            needed=copied,
            limit=memory_limit,
        )
    if outputs == "diagonal":
        choices = [slice(c, c + 1) for c in range(feats.num_outputs)]
        return [_problem(feats, feats2, roots, select=choice) for choice in choices]
    fold = outputs in ("trace", "mean_trace")
    scale = 1.0 / feats.num_outputs if outputs == "mean_trace" else 1.0
    total = outputs == "sum_logits"
    return [_problem(feats, feats2, roots, fold=fold, total=total, scale=scale, copied_bytes=copied)]


def _copied_bytes(feats: GradientFeatures, feats2: GradientFeatures | None, outputs: str) -> int:
    count = 0
    for side in (feats,) if feats2 is None else (feats, feats2):
        for block in side.values():
            array = block.backprops if isinstance(block, OuterProduct) else block.rows
            one_position = not isinstance(block, OuterProduct) or block.num_positions == 1
            if outputs == "sum_logits":
                count += array.nbytes // array.shape[1]
            elif outputs in ("trace", "mean_trace") and one_position:
                # Outputs side by side in memory are one longer vector as they stand.
                adjacent = array.strides[-1] * array.shape[-1] == array.strides[1]
                count += 0 if adjacent else array.nbytes
    return count


def _problem(
    feats: GradientFeatures,
    feats2: GradientFeatures | None,
    roots: Preconditioner,
    *,
    select: slice | None = None,
    total: bool = False,
    fold: bool = False,
    scale: float = 1.0,
    copied_bytes: int = 0,
) -> Problem:
    def outputs_of(array: FloatArray) -> FloatArray:
        if select is not None:
            return array[:, select]
        return array.sum(axis=1, keepdims=True) if total else array

    both = (feats,) if feats2 is None else (feats, feats2)
    blocks: list[LoweredBlock] = []
    for name in feats:
        sides = [side[name] for side in both]
        first = sides[0]
        weights = roots.get(name, ())
        block_scale = first.scale * scale
        if not isinstance(first, OuterProduct):
            rows = tuple(outputs_of(side.rows) for side in sides if not isinstance(side, OuterProduct))
            if weights:
                blocks.append(ExpandedRows(name, rows, tuple(weights), block_scale, fold))
            else:
                blocks.append(_fused_rows(name, rows, block_scale, fold))
            continue
        pairs = tuple((s.activations, outputs_of(s.backprops)) for s in sides if isinstance(s, OuterProduct))
        if weights or any(a.shape[1] > 1 for a, _ in pairs):
            blocks.append(ExpandedOuterProduct(name, pairs, tuple(weights), block_scale, fold, first.bias))
            continue
        activations = Factor(*(a[:, :1] for a, _ in pairs))
        backprops = Factor(*(_fold(d[:, :, 0]) if fold else d[:, :, 0] for _, d in pairs))
        term = GramTerm(activations, backprops, offset=float(first.bias), scale=block_scale)
        blocks.append(FusedTerm(name, "hadamard", (term,)))

    kept = 1 if fold or total or select is not None else feats.num_outputs
    columns = (feats if feats2 is None else feats2).num_examples
    shape = (feats.num_examples * kept, columns * kept)
    return Problem(tuple(blocks), shape, feats.dtype, feats2 is None, copied_bytes)


def _fused_rows(name: str, rows: tuple[FloatArray, ...], scale: float, fold: bool) -> FusedTerm:
    folded = [_fold(g) if fold else g for g in rows]
    parts = _slices(folded[0].shape[2], LONGEST_ROWS)
    terms = tuple(GramTerm(Factor(*(g[..., part] for g in folded)), scale=scale) for part in parts)
    return FusedTerm(name, "rows", terms)
