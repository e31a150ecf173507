"""All gradients ∂f/∂θ of a probe set, kept in the structured form in which networks produce them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from kernelgrowth._backend.arrays import FloatArray, array_namespace, as_array, as_indices
from kernelgrowth._backend.checks import check_integer, check_number

__all__ = ["Block", "Embedding", "GradientFeatures", "OuterProduct", "Rows"]


class OuterProduct:
    """A weight's gradients as sums of outer products, `∂f_c(x_n)/∂W = sqrt(scale) Σ_t δ_nct a_ntᵀ`.

    Parameters
    ----------
    activations : array_like, shape (N, d_in) or (N, T, d_in)
        The layer's inputs, at T positions (convolution, sequence, or several uses of one weight).
    backprops : array_like, shape (N, d_out), (N, C, d_out), (N, T, d_out) or (N, C, T, d_out)
        Derivatives of the C outputs with respect to the layer's pre-activations. T is read from `activations`;
        with T > 1 a three-dimensional array is (N, T, d_out), with T = 1 it is (N, C, d_out).
    bias : bool
        Whether the layer also has a bias, whose gradient is `sqrt(scale) Σ_t δ_nct`.
    scale : float
        Weight of the block in the kernel, at least 0: a learning rate, or a squared parameter multiplier.
    check_finite : bool
        Whether non-finite values are refused.

    Attributes
    ----------
    activations : ndarray, shape (N, T, d_in)
    backprops : ndarray, shape (N, C, T, d_out)
    bias, scale
        As given.

    Raises
    ------
    TypeError
        If an array is not float32 or float64, or the two differ in dtype or array library; or if `bias` is no bool.
    ValueError
        If shapes disagree, a dimension is empty, a value is not finite, or `scale` is negative.
    """

    def __init__(
        self, activations: Any, backprops: Any, *, bias: bool = False, scale: float = 1.0, check_finite: bool = True
    ) -> None:
        self.source = activations
        a = as_array("activations", activations, ndim=(2, 3), finite=check_finite)
        d = as_array("backprops", backprops, ndim=(2, 3, 4), dtype=a.dtype, finite=check_finite)
        array_namespace(a, d)
        self.activations: FloatArray = a[:, None, :] if a.ndim == 2 else a
        self.backprops: FloatArray = _with_outputs_and_positions(d, self.activations)
        if not isinstance(bias, bool | np.bool_):
            raise TypeError(f"bias must be True or False, got {type(bias).__name__}")
        self.bias = bool(bias)
        self.scale = _check_scale(scale, a.dtype)
        for name, array in (("activations", self.activations), ("backprops", self.backprops)):
            if 0 in array.shape:
                raise ValueError(f"{name} must not be empty, got shape {array.shape}")

    @property
    def num_examples(self) -> int:
        """N."""
        return int(self.backprops.shape[0])

    @property
    def num_outputs(self) -> int:
        """C."""
        return int(self.backprops.shape[1])

    @property
    def num_positions(self) -> int:
        """T."""
        return int(self.backprops.shape[2])

    @property
    def num_inputs(self) -> int:
        """d_in."""
        return int(self.activations.shape[2])

    @property
    def num_parameters(self) -> int:
        """Entries of the weight, and of the bias where there is one."""
        return int(self.backprops.shape[3]) * (self.num_inputs + int(self.bias))

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64."""
        return np.dtype(self.backprops.dtype)

    def examples(self, start: int, stop: int) -> OuterProduct:
        """Return the gradients of examples `start` to `stop`, as views."""
        part = copy.copy(self)
        part.activations, part.backprops = self.activations[start:stop], self.backprops[start:stop]
        return part

    def __repr__(self) -> str:
        n, t, d_in = self.activations.shape
        return (
            f"OuterProduct(N={n}, C={self.num_outputs}, T={t}, d_in={d_in}, d_out={self.backprops.shape[3]}, "
            f"bias={self.bias}, scale={self.scale:g}, {self.dtype})"
        )


def _with_outputs_and_positions(d: FloatArray, activations: npt.NDArray[Any]) -> FloatArray:
    n, t, _ = activations.shape
    if d.shape[0] != n:
        raise ValueError(f"backprops must have the {n} examples of activations, got shape {d.shape}")
    if d.ndim == 4:
        if d.shape[2] != t:
            raise ValueError(f"backprops must be (N, C, T, d_out) with the T = {t} of activations, got shape {d.shape}")
        return d
    if t == 1:
        return d[:, None, None, :] if d.ndim == 2 else d[:, :, None, :]
    if d.ndim == 2:
        raise ValueError(
            f"backprops of shape {d.shape} lack positions: activations have T = {t}, so (N, T, d_out) or "
            "(N, C, T, d_out) is wanted"
        )
    if d.shape[1] != t:
        raise ValueError(
            f"backprops of shape {d.shape} are neither (N, T, d_out) with the T = {t} of activations nor "
            "(N, C, T, d_out): which outputs and positions they hold cannot be told"
        )
    return d[:, None, :, :]


def _check_scale(scale: Any, dtype: np.dtype[Any]) -> float:
    number = check_number("scale", scale, minimum=0.0)
    limits = np.finfo(dtype)
    if number > float(limits.max) or 0.0 < number < float(limits.smallest_subnormal):
        raise ValueError(f"scale must be a number that {dtype} can hold, got {number:g}")
    return number


class Embedding(OuterProduct):
    """The gradients of an embedding, `∂f_c(x_n)/∂W[v] = sqrt(scale) Σ_{t: indices_nt = v} δ_nct`.

    It is the `OuterProduct` of inputs that are 1 at the index and 0 elsewhere, whose weight is W transposed. They are
    never formed: a kernel is computed from the indices that occur. A preconditioner has W's shape, (V, d).

    Parameters
    ----------
    indices : array_like of int, shape (N,) or (N, T)
        The row that is looked up at each of T positions.
    backprops : array_like, shape (N, d), (N, C, d), (N, T, d) or (N, C, T, d)
        Derivatives of the C outputs with respect to what was looked up, d numbers, as in `OuterProduct`.
    num_embeddings : int
        V, the rows of the table.
    scale : float
        Weight of the block in the kernel, at least 0.
    check_finite : bool
        Whether non-finite values are refused.

    Attributes
    ----------
    indices : ndarray of int64, shape (N, T)
    backprops : ndarray, shape (N, C, T, d)
    num_embeddings, scale
        As given.

    Raises
    ------
    TypeError
        If `indices` are no integers, `backprops` not float32 or float64, or they belong to different array libraries.
    ValueError
        If an index is not in [0, V), shapes disagree, a dimension is empty, or a value is not finite.

    Notes
    -----
    A kernel takes `N T U` numbers more while it is computed, an operator as long as it lives, for U different indices
    in the probe set (in both, where there are two); in tiles, those of a tile's examples. Of features in chunks the
    indices of two chunks count: its last bits depend on where chunks end, though not on tiles or memory.
    """

    # In order, those in the whole that this is a part of; None where it is no part.
    occurring: npt.NDArray[np.int64] | None = None

    def __init__(
        self,
        indices: Any,
        backprops: Any,
        *,
        num_embeddings: int,
        scale: float = 1.0,
        check_finite: bool = True,
    ) -> None:
        self.num_embeddings = check_integer("num_embeddings", num_embeddings, minimum=1)
        found = as_indices("indices", indices, self.num_embeddings, ndim=(1, 2))
        self.indices = found[:, None] if found.ndim == 1 else found
        self.source = backprops
        d = as_array("backprops", backprops, ndim=(2, 3, 4), finite=check_finite)
        array_namespace(found, d)
        for name, array in (("indices", found), ("backprops", d)):
            if 0 in array.shape:
                raise ValueError(f"{name} must not be empty, got shape {array.shape}")
        self.backprops = _with_outputs_and_positions(d, self.indices[:, :, None])
        self.bias = False
        self.scale = _check_scale(scale, d.dtype)

    @property
    def activations(self) -> FloatArray:  # type: ignore[override]
        """What it is the outer product with, (N, T, V): made when asked for, and large."""
        known = array_namespace(self.indices).arange(self.num_embeddings)
        return (self.indices[:, :, None] == known).astype(self.dtype)  # type: ignore[no-any-return]

    @property
    def num_inputs(self) -> int:
        """V."""
        return self.num_embeddings

    def examples(self, start: int, stop: int) -> Embedding:
        """Return the gradients of examples `start` to `stop`, as views."""
        part = copy.copy(self)
        part.indices, part.backprops = self.indices[start:stop], self.backprops[start:stop]
        return part

    def __repr__(self) -> str:
        n, t = self.indices.shape
        return (
            f"Embedding(N={n}, C={self.num_outputs}, T={t}, num_embeddings={self.num_embeddings}, "
            f"d={self.backprops.shape[3]}, scale={self.scale:g}, {self.dtype})"
        )


class Rows:
    """Explicit gradient rows of any parameter, `∂f_c(x_n)/∂θ = sqrt(scale) G_nc`.

    Parameters
    ----------
    rows : array_like, shape (N, p) or (N, C, p)
        One gradient for each example (and output).
    scale : float
        Weight of the block in the kernel, at least 0.
    check_finite : bool
        Whether non-finite values are refused.

    Attributes
    ----------
    rows : ndarray, shape (N, C, p)
    scale : float

    Raises
    ------
    TypeError
        If the array is not float32 or float64.
    ValueError
        If a dimension is empty, a value is not finite, or `scale` is negative.
    """

    def __init__(self, rows: Any, *, scale: float = 1.0, check_finite: bool = True) -> None:
        self.source = rows
        g = as_array("rows", rows, ndim=(2, 3), finite=check_finite)
        if 0 in g.shape:
            raise ValueError(f"rows must not be empty, got shape {g.shape}")
        self.rows: FloatArray = g[:, None, :] if g.ndim == 2 else g
        self.scale = _check_scale(scale, g.dtype)

    @property
    def num_examples(self) -> int:
        """N."""
        return int(self.rows.shape[0])

    @property
    def num_outputs(self) -> int:
        """C."""
        return int(self.rows.shape[1])

    @property
    def num_parameters(self) -> int:
        """Entries of the parameter, p."""
        return int(self.rows.shape[2])

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64."""
        return np.dtype(self.rows.dtype)

    def examples(self, start: int, stop: int) -> Rows:
        """Return the gradients of examples `start` to `stop`, as a view."""
        part = copy.copy(self)
        part.rows = self.rows[start:stop]
        return part

    def __repr__(self) -> str:
        n, c, p = self.rows.shape
        return f"Rows(N={n}, C={c}, p={p}, scale={self.scale:g}, {self.dtype})"


Block = OuterProduct | Rows


class GradientFeatures(Mapping[str, Block]):
    """A named list of gradient blocks for one probe set: all of ∂f/∂θ, never expanded unless a plan says so.

    Parameters
    ----------
    blocks : mapping of str to OuterProduct, Embedding or Rows
        At least one, all for the same N examples and C outputs, of one dtype and array library.
    predictions : array_like, shape (N, C), optional
        The outputs f(x) at which the gradients were taken, carried along.

    Raises
    ------
    TypeError
        If a block is of another kind, or dtypes or array libraries are mixed.
    ValueError
        If there is no block, or blocks differ in N or C; the message names the block.
    """

    def __init__(self, blocks: Mapping[str, Block], *, predictions: Any = None) -> None:
        if not isinstance(blocks, Mapping):
            raise TypeError(f"blocks must map names to OuterProduct or Rows, got {type(blocks).__name__}")
        if not blocks:
            raise ValueError("blocks must hold at least one block, got none")
        first_name, first = next(iter(blocks.items()))
        for name, block in blocks.items():
            if not isinstance(block, OuterProduct | Rows):
                raise TypeError(
                    f"blocks[{name!r}] must be an OuterProduct, Embedding or Rows, got {type(block).__name__}"
                )
            if block.dtype != first.dtype:
                raise TypeError(
                    f"blocks[{name!r}] is {block.dtype} but blocks[{first_name!r}] is {first.dtype}: "
                    "convert one of them explicitly"
                )
            if (block.num_examples, block.num_outputs) != (first.num_examples, first.num_outputs):
                raise ValueError(
                    f"blocks[{name!r}] has N = {block.num_examples}, C = {block.num_outputs} but "
                    f"blocks[{first_name!r}] has N = {first.num_examples}, C = {first.num_outputs}"
                )
        array_namespace(*(b.rows if isinstance(b, Rows) else b.backprops for b in blocks.values()))
        self.blocks: dict[str, Block] = dict(blocks)
        self.predictions: FloatArray | None = None
        if predictions is not None:
            self.predictions = as_array("predictions", predictions, ndim=2, dtype=first.dtype, finite=False)
            if self.predictions.shape != (first.num_examples, first.num_outputs):
                raise ValueError(
                    f"predictions must have shape {(first.num_examples, first.num_outputs)}, "
                    f"got {self.predictions.shape}"
                )

    @property
    def num_examples(self) -> int:
        """N, the examples of the probe set."""
        return next(iter(self.blocks.values())).num_examples

    @property
    def num_outputs(self) -> int:
        """C, the network's outputs."""
        return next(iter(self.blocks.values())).num_outputs

    @property
    def num_parameters(self) -> int:
        """P, over all blocks."""
        return sum(block.num_parameters for block in self.blocks.values())

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64, the same in every block."""
        return next(iter(self.blocks.values())).dtype

    def examples(self, start: int, stop: int) -> GradientFeatures:
        """Return the gradients of examples `start` to `stop`, as views: nothing is copied, nothing checked again."""
        part = GradientFeatures({name: block.examples(start, stop) for name, block in self.blocks.items()})
        part.predictions = None if self.predictions is None else self.predictions[start:stop]
        return part

    def __getitem__(self, name: str) -> Block:
        return self.blocks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.blocks)

    def __len__(self) -> int:
        return len(self.blocks)

    def __repr__(self) -> str:
        lines = [f"GradientFeatures(N={self.num_examples}, C={self.num_outputs}, P={self.num_parameters}):"]
        return "\n".join(lines + [f"  {name}: {block!r}" for name, block in self.blocks.items()])
