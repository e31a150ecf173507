"""What a block of the kernel costs: counted operations and bytes, and the time they take on a calibrated machine."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kernelgrowth._backend.calibration import Calibration, gram_operations
from kernelgrowth._backend.native import OuterProductRows
from kernelgrowth.kernels.blocks import LoweredBlock
from kernelgrowth.kernels.strategy import Shape

__all__ = ["Cost", "count_cost", "pass_seconds"]

# Seconds for the checks of a call and its plan.
PREPARATION = 1e-4


@dataclass(frozen=True)
class Cost:
    """Counts of a block.

    Attributes
    ----------
    flops : int
        Floating-point operations needed; a symmetric Gram counts its upper triangle.
    feature_bytes : int
        Bytes of the features.
    gram_operations : float
        Operations of the Gram as it is carried out.
    expansion_operations : float
        Operations of writing gradients out.
    pair_operations : float
        Work of sums over pairs of positions, in operations at the machine's ceiling.
    moved_bytes : int
        Bytes read, some of them several times, and written to pack the factors.
    """

    flops: int
    feature_bytes: int
    gram_operations: float
    expansion_operations: float
    pair_operations: float
    moved_bytes: int

    def seconds(self, rates: Calibration) -> float:
        """Return the predicted time."""
        return (
            self.gram_operations / (rates.gram_efficiency * rates.multiply_add_peak)
            + self.expansion_operations / (rates.expansion_efficiency * rates.multiply_add_peak)
            + self.pair_operations / rates.multiply_add_peak
            + self.moved_bytes / rates.copy_bandwidth
        )


def count_cost(block: LoweredBlock, *, symmetric: bool, kernels: int = 1) -> Cost:
    """Count what a block needs; of `kernels` of single outputs, those share the factors that have one output."""
    if block.strategy == "pairs":
        return _pairs_cost(block, symmetric=symmetric, apart=kernels > 1)
    flops = moved = 0
    operations = expansion = 0.0
    for factor in (factor for term in block.terms for factor in term[:2] if factor is not None):
        sides = [side for side in factor if side is not None]
        left, right = sides[0].shape, sides[-1].shape
        times = left[1] if kernels > 1 else 1
        rows, columns, length = left[0] * left[1] // times, right[0] * right[1] // times, left[2]
        pairs = rows * (rows + 1) // 2 if symmetric else rows * columns
        flops += 2 * times * pairs * length
        operations += times * gram_operations(rows, columns, length, symmetric=symmetric)
        for side in sides:
            packed = side.shape[0] * side.shape[1] * length * block.itemsize
            if isinstance(side, OuterProductRows):
                flops += side.flops
                expansion += side.flops
                moved += side.activations.nbytes + side.backprops.nbytes + packed
            else:
                moved += 2 * packed
    return Cost(flops, block.nbytes, operations, expansion, 0.0, moved)


def _pairs_cost(block: LoweredBlock, *, symmetric: bool, apart: bool) -> Cost:
    (term,) = block.terms
    activations, backprops = (
        [side.shape for side in factor or () if side is not None] for factor in (term.first, term.second)
    )
    (n, outputs, t, rows), (m, _, u, _) = backprops[0], backprops[-1]
    columns = activations[0][3] + int(term.offset)
    kept, folded = (1, outputs) if apart else (outputs, 1)
    shape = Shape((n, m), (t, u), kept, folded, columns, rows, block.itemsize)
    pairs = n * (n + 1) // 2 if symmetric else n * m
    # Two products, and three operations to combine and add them.
    flops = pairs * t * u * (2 * activations[0][3] + kept**2 * folded * (2 * rows + 3))
    operations = 2 * shape.position_pairs_work() / (block.itemsize / 4) / (2 if symmetric else 1)
    return Cost(flops, block.nbytes, 0.0, 0.0, operations, 0)


def pass_seconds(shape: tuple[int, ...], itemsize: int, passes: int, rates: Calibration) -> float:
    """Return the predicted time of the passes over the output: written by the first, read and written by the others."""
    size = math.prod(shape) * itemsize
    again = 2 * size / rates.copy_bandwidth + rates.call_seconds
    return PREPARATION + size / rates.output_bandwidth + (passes - 1) * again
