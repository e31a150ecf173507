"""From gradient features and an outputs mode to the matrix to be computed, a sum of lowered blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernelgrowth._backend import cuda
from kernelgrowth._backend.arrays import FloatArray, array_namespace
from kernelgrowth._backend.errors import BackendError, MemoryLimitError
from kernelgrowth._backend.memory import format_bytes
from kernelgrowth.gradients.features import Block, GradientFeatures, OuterProduct
from kernelgrowth.gradients.identity import arrays_of
from kernelgrowth.gradients.parameters import parameter_arrays
from kernelgrowth.kernels.blocks import LoweredBlock, expanded, explicit_rows, hadamard, position_pairs
from kernelgrowth.kernels.strategy import Shape, choose

__all__ = [
    "OUTPUTS",
    "Problem",
    "check_on_cpu",
    "check_pair",
    "check_preconditioner",
    "device_of",
    "lower",
]

OUTPUTS = ("full", "trace", "mean_trace", "diagonal", "sum_logits")

Preconditioner = Mapping[str, tuple[FloatArray, ...]]


@dataclass(frozen=True)
class Problem:
    """A matrix to be computed, the sum of its blocks.

    Attributes
    ----------
    blocks : tuple of LoweredBlock
    kernels : int
        Matrices that are computed at once, one for each output ("diagonal"); else 1.
    shape : tuple of int
        Of a matrix.
    dtype : numpy.dtype
    symmetric : bool
    copied_bytes : int
        Features and weights copied for it.
    precision : str
        In which vectors are multiplied, a name of `empirical_ntk`; empty for that of their dtype.
    """

    blocks: tuple[LoweredBlock, ...]
    kernels: int
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    symmetric: bool
    copied_bytes: int
    precision: str = ""

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Of the array that is written: (kernels, rows, columns) where there are several."""
        return self.shape if self.kernels == 1 else (self.kernels, *self.shape)


def _sum_over_outputs(array: FloatArray) -> FloatArray:
    # One after another: the order in which NumPy's sum adds depends on the number of examples and on the layout.
    result = array[:, :1].copy()
    for c in range(1, array.shape[1]):
        result += array[:, c : c + 1]
    return result


def device_of(feats: GradientFeatures, feats2: GradientFeatures | None) -> Any:
    """Return the GPU on which the features live, None on the CPU; a mixture is refused by name."""
    return cuda.device_of(feats=arrays_of(feats), feats2=[] if feats2 is None else arrays_of(feats2))


def check_on_cpu(what: str, feats: GradientFeatures, feats2: GradientFeatures | None) -> None:
    """Refuse CuPy arrays where there is no kernel for them."""
    if device_of(feats, feats2) is not None:
        raise BackendError(f"{what} computes on the CPU, but feats holds CuPy arrays: move them with `.get()`")


def check_pair(feats: Any, feats2: Any) -> None:
    """Check that two probe sets hold the same blocks of the same parameters and may form a kernel."""
    for name, value in (("feats", feats), ("feats2", feats2)):
        if value is None and name == "feats2":
            continue
        if not isinstance(value, GradientFeatures):
            raise TypeError(f"{name} must be GradientFeatures, got {type(value).__name__}")
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
        return (type(block).__name__, block.num_inputs, block.backprops.shape[3], block.bias, block.scale)
    return ("rows", block.num_parameters, block.scale)


def check_preconditioner(feats: GradientFeatures, preconditioner: Any) -> dict[str, tuple[FloatArray, ...]]:
    """Return the square roots of a preconditioner's arrays by block, checked for names, shapes and signs."""
    if preconditioner is None:
        return {}
    roots = {}
    for name, arrays in parameter_arrays("preconditioner", feats, preconditioner).items():
        if any(array.min() < 0 for array in arrays):
            raise ValueError(f"preconditioner[{name!r}] must not be negative")
        roots[name] = tuple(array_namespace(array).sqrt(array) for array in arrays)
    return roots


def lower(
    feats: GradientFeatures,
    feats2: GradientFeatures | None,
    outputs: str,
    roots: Preconditioner,
    memory_limit: int,
    *,
    examples: tuple[int, int] | None = None,
    precision: str = "",
) -> Problem:
    """Return the matrix that `outputs` asks for, or in the "diagonal" mode the matrices.

    `examples` are those of the whole kernel's sides where `feats` and `feats2` are parts of them: what is chosen for
    the whole is used for each part, so that its entries do not depend on how it was divided.

    Raises
    ------
    MemoryLimitError
        If `memory_limit` does not even hold the copies of features that the mode needs; none has been made then.
    """
    if feats.num_outputs == 1:
        outputs = "full"
    fold = outputs in ("trace", "mean_trace")
    kept = feats.num_outputs if outputs == "full" else 1
    strategies = _strategies(feats, feats2, roots, examples, kept, fold)
    copied = _copied_bytes(feats, feats2, outputs, roots, strategies)
    if copied > memory_limit:
        raise MemoryLimitError(
            f"outputs={outputs!r} needs {format_bytes(copied)} of copied features and weights, but memory_limit is "
            f"{format_bytes(memory_limit)}",
            needed=copied,
            limit=memory_limit,
        )
    scale = 1.0 / feats.num_outputs if outputs == "mean_trace" else 1.0
    blocks = _blocks(feats, feats2, roots, strategies, fold=fold, total=outputs == "sum_logits", scale=scale)
    columns = (feats if feats2 is None else feats2).num_examples
    return Problem(
        blocks,
        kernels=feats.num_outputs if outputs == "diagonal" else 1,
        shape=(feats.num_examples * kept, columns * kept),
        dtype=feats.dtype,
        symmetric=feats2 is None,
        copied_bytes=copied,
        precision=precision,
    )


def _copied_bytes(
    feats: GradientFeatures,
    feats2: GradientFeatures | None,
    outputs: str,
    roots: Preconditioner,
    strategies: Mapping[str, str],
) -> int:
    # Each piece has its weights side by side, in the "trace" once for every output that it folds.
    copies = feats.num_outputs if outputs in ("trace", "mean_trace") else 1
    count = copies * sum(array.nbytes for name in feats for array in roots.get(name, ()))
    for side in (feats,) if feats2 is None else (feats, feats2):
        for name, block in side.items():
            array = block.backprops if isinstance(block, OuterProduct) else block.rows
            if outputs == "sum_logits":
                count += array.nbytes // array.shape[1]
            elif outputs in ("trace", "mean_trace") and strategies[name] != "expand":
                # Outputs side by side in memory are one longer vector as they stand.
                adjacent = array.strides[-1] * array.shape[-1] == array.strides[1] and strategies[name] != "pairs"
                count += 0 if adjacent else array.nbytes
    return count


def _strategies(
    feats: GradientFeatures,
    feats2: GradientFeatures | None,
    roots: Preconditioner,
    examples: tuple[int, int] | None,
    kept: int,
    fold: bool,
) -> dict[str, str]:
    """Return how each block is computed; `kept` outputs are told apart, all are folded into one row with `fold`."""
    others = feats if feats2 is None else feats2
    chosen = {}
    for name, left in feats.items():
        right = others[name]
        if not isinstance(left, OuterProduct) or not isinstance(right, OuterProduct):
            chosen[name] = "rows"
        elif roots.get(name):
            chosen[name] = "expand"
        elif left.num_positions == right.num_positions == 1:
            chosen[name] = "hadamard"
        else:
            shape = Shape(
                examples=examples or (left.num_examples, right.num_examples),
                positions=(left.num_positions, right.num_positions),
                outputs=kept,
                folded=left.num_outputs if fold else 1,
                columns=left.activations.shape[2] + int(left.bias),
                rows=left.backprops.shape[3],
                itemsize=left.dtype.itemsize,
            )
            chosen[name] = choose(shape)
    return chosen


def _blocks(
    feats: GradientFeatures,
    feats2: GradientFeatures | None,
    roots: Preconditioner,
    strategies: Mapping[str, str],
    *,
    total: bool,
    fold: bool,
    scale: float,
) -> tuple[LoweredBlock, ...]:
    def outputs_of(array: FloatArray) -> FloatArray:
        return _sum_over_outputs(array) if total else array

    both = (feats,) if feats2 is None else (feats, feats2)
    blocks: list[LoweredBlock] = []
    for name in feats:
        sides = [side[name] for side in both]
        first = sides[0]
        weights = tuple(roots.get(name, ()))
        block_scale = first.scale * scale
        if not isinstance(first, OuterProduct):
            rows = tuple(outputs_of(side.rows) for side in sides if not isinstance(side, OuterProduct))
            blocks.append(explicit_rows(name, rows, weights, block_scale, fold))
            continue
        pairs = tuple((s.activations, outputs_of(s.backprops)) for s in sides if isinstance(s, OuterProduct))
        if strategies[name] == "expand":
            blocks.append(expanded(name, pairs, weights, block_scale, fold, first.bias))
        elif strategies[name] == "pairs":
            blocks.append(position_pairs(name, pairs, block_scale, fold, first.bias))
        else:
            blocks.append(hadamard(name, pairs, block_scale, fold, first.bias))
    return tuple(blocks)
