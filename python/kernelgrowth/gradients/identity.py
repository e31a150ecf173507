"""What tells gradient features apart: which blocks they have, and a checksum of their numbers."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from kernelgrowth._backend.arrays import FloatArray
from kernelgrowth.gradients.features import Embedding, GradientFeatures, OuterProduct

__all__ = ["array_checksum", "arrays_of", "checksum", "layout"]


def arrays_of(feats: GradientFeatures) -> list[FloatArray]:
    """Return all arrays of all blocks, in order."""
    arrays: list[FloatArray] = []
    for block in feats.values():
        if isinstance(block, Embedding):
            arrays += [block.backprops, block.indices]  # type: ignore[list-item]
        else:
            arrays += [block.activations, block.backprops] if isinstance(block, OuterProduct) else [block.rows]
    return arrays


def layout(feats: GradientFeatures) -> list[list[Any]]:
    """Return for each block everything but N and the numbers, as JSON takes it; its name comes first."""
    described: list[list[Any]] = []
    for name, block in feats.items():
        if isinstance(block, OuterProduct):
            shape = [*block.backprops.shape[1:], block.num_inputs]
            described.append([name, type(block).__name__, *shape, block.bias, block.scale, str(block.dtype)])
        else:
            described.append([name, "Rows", *block.rows.shape[1:], block.scale, str(block.dtype)])
    return described


def checksum(feats: GradientFeatures, start: int = 0) -> int:
    """Return a CRC-32 of all numbers in the order of the examples, continued from `start`; memory layout is nothing."""
    for array in arrays_of(feats):
        start = array_checksum(array, start)
    return start


def array_checksum(array: FloatArray, start: int = 0) -> int:
    """Return a CRC-32 of an array's entries in C order, copying no more than one example at a time."""
    if array.flags.c_contiguous:
        return zlib.crc32(array.data, start)
    for part in array:
        start = zlib.crc32(np.ascontiguousarray(part).data, start)
    return start
