"""Per-example gradients as rows in float64, whether they come as a matrix or as structured features."""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from kernelgrowth._backend.arrays import FloatArray, as_array, is_cupy, to_numpy
from kernelgrowth._backend.errors import BackendError
from kernelgrowth.gradients.features import Block, Embedding, GradientFeatures, OuterProduct
from kernelgrowth.gradients.identity import arrays_of
from kernelgrowth.kernels.diagonal import diagonal

__all__ = ["GradientRows", "gradient_rows"]

Float64Array = npt.NDArray[np.float64]

# Temporaries, in float64, of the gradients that are written out together.
_STEP_BYTES = 1 << 22


class GradientRows(Protocol):
    """Rows g of per-example gradients, (num_rows, num_parameters).

    Attributes
    ----------
    num_rows, num_parameters : int
    dtype : numpy.dtype
        float32 or float64, what the rows came in.
    template : array_like
        An array of the kind they came in, for results.
    step_bytes : int
        Temporaries that `write` takes beside its output.
    """

    num_rows: int
    num_parameters: int
    dtype: np.dtype[Any]
    template: Any
    step_bytes: int

    def squared_norms(self, memory_limit: int) -> Float64Array:
        """Return ||g||² of every row in float64; infinite where it leaves the range, NaN where a row is not finite."""
        ...

    def write(self, start: int, out: Float64Array) -> None:
        """Write as many rows as `out` has, from `start` on."""
        ...


def gradient_rows(name: str, rows: Any) -> GradientRows:
    """Return the rows of a matrix or of gradient features, checked by name.

    Raises
    ------
    TypeError
        If `rows` is neither a real floating array nor `GradientFeatures`.
    ValueError
        If a matrix is empty, has not two dimensions, or is not finite.
    BackendError
        If features hold CuPy arrays.
    """
    return _FeatureRows(name, rows) if isinstance(rows, GradientFeatures) else _MatrixRows(name, rows)


class _MatrixRows:
    def __init__(self, name: str, rows: Any) -> None:
        if not (isinstance(rows, list | tuple) or hasattr(rows, "__dlpack__") or hasattr(rows, "__array__")):
            raise TypeError(f"{name} must be a matrix of gradients or GradientFeatures, got {type(rows).__name__}")
        self._rows: FloatArray = to_numpy(as_array(name, rows, ndim=2))
        self.num_rows, self.num_parameters = (int(size) for size in self._rows.shape)
        if self.num_parameters < 1:
            raise ValueError(f"{name} must have at least one parameter, got shape {self._rows.shape}")
        self.dtype = self._rows.dtype
        self.template = rows
        self.step_bytes = 0

    def squared_norms(self, memory_limit: int) -> Float64Array:
        with np.errstate(over="ignore", under="ignore"):
            return np.asarray(np.einsum("ij,ij->i", self._rows, self._rows, dtype=np.float64, casting="safe"))

    def write(self, start: int, out: Float64Array) -> None:
        out[...] = self._rows[start : start + len(out)]


class _FeatureRows:
    def __init__(self, name: str, feats: GradientFeatures) -> None:
        if any(is_cupy(array) for array in arrays_of(feats)):
            raise BackendError(f"{name} holds CuPy arrays: their gradients are written out on the CPU only")
        self._feats = feats
        self.num_rows = feats.num_examples * feats.num_outputs
        self.num_parameters = feats.num_parameters
        self.dtype = feats.dtype
        self.template = next(iter(feats.blocks.values())).source
        row_bytes = max(_row_bytes(block) for block in feats.blocks.values())
        self._step = max(1, _STEP_BYTES // row_bytes)
        self.step_bytes = max(_STEP_BYTES, row_bytes)

    def squared_norms(self, memory_limit: int) -> Float64Array:
        return diagonal(self._feats, "full", {}, memory_limit)

    def write(self, start: int, out: Float64Array) -> None:
        for begin in range(0, len(out), self._step):
            part = out[begin : begin + self._step]
            examples, outputs = np.divmod(np.arange(start + begin, start + begin + len(part)), self._feats.num_outputs)
            offset = 0
            for block in self._feats.values():
                columns = part[:, offset : offset + block.num_parameters]
                _write_block(block, examples, outputs, columns)
                offset += block.num_parameters


def _row_bytes(block: Block) -> int:
    """Return what the temporaries of one row of this block take in float64."""
    if not isinstance(block, OuterProduct):
        return 16 * block.num_parameters
    t, d_in, d_out = block.num_positions, block.num_inputs, int(block.backprops.shape[3])
    if isinstance(block, Embedding):
        return 8 * t * (2 * d_out + 2)
    return 8 * (block.num_parameters + 2 * t * (d_in + 2 * d_out))


def _write_block(
    block: Block, examples: npt.NDArray[np.intp], outputs: npt.NDArray[np.intp], columns: Float64Array
) -> None:
    root = math.sqrt(block.scale)
    if not isinstance(block, OuterProduct):
        np.multiply(block.rows[examples, outputs], root, out=columns, dtype=np.float64)
        return
    d = block.backprops[examples, outputs].astype(np.float64) * root
    if isinstance(block, Embedding):
        columns[...] = 0.0
        table = columns.reshape(len(columns), block.num_embeddings, d.shape[2])
        np.add.at(table, (np.arange(len(d))[:, None], block.indices[examples]), d)
        return
    a = block.activations[examples].astype(np.float64)
    weight = d.transpose(0, 2, 1) @ a
    size = weight.shape[1] * weight.shape[2]
    columns[:, :size] = weight.reshape(len(weight), size)
    if block.bias:
        columns[:, size:] = d.sum(axis=1)
