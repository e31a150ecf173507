"""Products K V without a stored K: which way is cheapest by count, what it takes, and carrying it out."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kernelgrowth._backend import native
from kernelgrowth._backend.arrays import FloatArray, array_namespace
from kernelgrowth._backend.errors import MemoryLimitError
from kernelgrowth._backend.memory import format_bytes
from kernelgrowth.gradients.features import GradientFeatures
from kernelgrowth.gradients.identity import arrays_of
from kernelgrowth.kernels.evaluate import check_values, is_finite
from kernelgrowth.kernels.factored import FactoredBlock, factor
from kernelgrowth.kernels.plan import Plan
from kernelgrowth.kernels.streamed import StreamedKernel, add_products

__all__ = [
    "WAYS",
    "ProductBlockPlan",
    "ProductPlan",
    "Products",
    "moderate",
    "scaled_back",
    "stored_multiply",
    "stored_product",
]

WAYS = ("stored", "tiles", "factored")

# "auto" counts the work of this many vectors, of which one product takes so many: about what `eigsh` asks for.
_VECTORS, _VECTORS_EACH = 64, 16

# Rows of a stored kernel that are cast at a time.
_SLAB_ROWS = 1024

# Numbers of this size may be multiplied by gradients and added up without thought of overflow.
_MODERATE = 2.0**20


@dataclass(frozen=True)
class ProductBlockPlan:
    """What one block costs: floating-point operations, and bytes of features read by one sweep over them."""

    name: str
    flops: int
    bytes: int


@dataclass(frozen=True)
class ProductPlan:
    """How products with a kernel are made and what one costs; `print(plan)` shows it as a table.

    Attributes
    ----------
    way : {"stored", "tiles", "factored"}
        "stored": the kernel is computed once and kept; "tiles": tiles of it are computed for every product and used at
        once; "factored": `J₁ η (J₂ᵀ v)`, linear in N.
    blocks : tuple of ProductBlockPlan
        For "stored" the cost of computing the kernel, which the first product bears; else that of every product.
    num_vectors : int
        Vectors in the product.
    shape : tuple of int
        Of the kernel.
    multiply_flops : int
        Operations of the products with the stored kernel, or with its tiles.
    output_bytes, workspace_bytes : int
        The product itself, and everything else at its peak; a kernel that is kept counts to it.
    memory_limit : int
        Bytes allowed.
    threads : int
        0 on a GPU.
    """

    way: str
    blocks: tuple[ProductBlockPlan, ...]
    num_vectors: int
    shape: tuple[int, int]
    multiply_flops: int
    output_bytes: int
    workspace_bytes: int
    memory_limit: int
    threads: int

    @property
    def flops(self) -> int:
        """Floating-point operations of all blocks and of the products with what they give."""
        return sum(block.flops for block in self.blocks) + self.multiply_flops

    def __str__(self) -> str:
        width = max(len("products"), *(len(block.name) for block in self.blocks))
        lines = [f"{'block':<{width}}  {'way':<8} {'Gflop':>10} {'features':>10}"]
        lines += [
            f"{b.name:<{width}}  {self.way:<8} {b.flops / 1e9:>10.3f} {format_bytes(b.bytes):>10}" for b in self.blocks
        ]
        if self.multiply_flops:
            lines.append(f"{'products':<{width}}  {'':<8} {self.multiply_flops / 1e9:>10.3f}")
        lines.append(f"{'total':<{width}}  {'':<8} {self.flops / 1e9:>10.3f}")
        rows, columns = self.shape
        lines.append(
            f"kernel {rows} x {columns} times {self.num_vectors} vector(s): {format_bytes(self.output_bytes)} output, "
            f"{format_bytes(self.workspace_bytes)} workspace of {format_bytes(self.memory_limit)} allowed, "
            + (f"{self.threads} thread(s)" if self.threads else "on a GPU")
        )
        return "\n".join(lines)


class Products:
    """Products with one kernel by tiles or by factors.

    Vectors are rounded to the dtype of the features once their columns are scaled by powers of two to moderate size;
    sums over tiles and over factors are made in float64; the result has NumPy's common dtype of both.
    """

    def __init__(
        self,
        feats: GradientFeatures,
        feats2: GradientFeatures | None,
        outputs: str,
        *,
        roots: Mapping[str, tuple[FloatArray, ...]],
        preconditioner: Mapping[str, tuple[FloatArray, ...]],
        memory_limit: int,
        check_finite: bool,
        precision: str = "",
    ) -> None:
        self._feats, self._feats2, self._outputs = feats, feats2, outputs
        self._preconditioner = preconditioner
        self._limit = memory_limit
        self._check_finite = check_finite
        self._groups: dict[Any, tuple[int, int]] = {}
        self._tiled = StreamedKernel(feats, feats2, outputs, roots, precision)
        self._example = arrays_of(feats)[0]
        self._namespace = array_namespace(self._example)
        each = feats.num_outputs if outputs == "full" else 1
        self.shape = (feats.num_examples * each, (feats if feats2 is None else feats2).num_examples * each)

    @functools.cached_property
    def _counted(self) -> list[FactoredBlock]:
        return factor(self._feats, self._feats2, self._outputs, self._preconditioner, copy=False)

    @functools.cached_property
    def _blocks(self) -> list[FactoredBlock]:
        return factor(self._feats, self._feats2, self._outputs, self._preconditioner, copy=True)

    def costs(self) -> dict[str, int]:
        """Return what the products that "auto" has in mind cost each way, in floating-point operations."""
        kernel = sum(plan.flops * count for plan, count in self._tiled.plans(sys.maxsize))
        multiply = 2 * _VECTORS * math.prod(self.shape)
        return {
            "stored": kernel + multiply,
            "factored": sum(block.flops(_VECTORS) for block in self._counted),
            "tiles": kernel * _VECTORS // _VECTORS_EACH + multiply,
        }

    def plan(self, way: str, num_vectors: int, dtype: np.dtype[Any]) -> ProductPlan:
        """Return what a product by tiles or by factors costs.

        Raises
        ------
        MemoryLimitError
            If the smallest plan does not fit.
        """
        threads = native.host_threads(self._example)
        output = max(self.shape) * num_vectors * dtype.itemsize
        if way == "factored":
            group, workspace = self._group(num_vectors, dtype, self.shape)
            held = sum(b.copied_bytes for b in self._counted) + group * self._vector_bytes(self.shape)
            full = max(block.workspace(group, threads)[1] for block in self._counted)
            costs = [(block.name, block.flops(num_vectors), block.nbytes) for block in self._counted]
            blocks, multiply, extra = _added_up(costs), 0, held + min(workspace, full)
        else:
            plans = self._tiled.plans(self._tile_limit(num_vectors, dtype, self.shape))
            costs = [(b.name, b.flops * count, b.bytes * count) for plan, count in plans for b in plan.blocks]
            blocks, multiply = _added_up(costs), 2 * num_vectors * math.prod(self.shape)
            extra = self._fixed_bytes(num_vectors, self.shape)
            extra += max(plan.output_bytes + plan.workspace_bytes for plan, _ in plans)
        return ProductPlan(way, blocks, num_vectors, self.shape, multiply, output, extra, self._limit, threads)

    def multiply(self, way: str, v: FloatArray, *, transposed: bool) -> FloatArray:
        """Return K V, or Kᵀ V, for V of shape (columns, k)."""
        dtype = np.result_type(self._feats.dtype, v.dtype)
        shape = self.shape[::-1] if transposed else self.shape
        if way == "factored":
            group, workspace = self._group(v.shape[1], dtype, shape)
            columns = (slice(j, j + group) for j in range(0, v.shape[1], group))
            parts: Iterator[FloatArray] = (
                self._factored(v[:, j], workspace, dtype, shape, transposed) for j in columns
            )
            if group >= v.shape[1]:
                result = next(parts)
            else:
                result = self._namespace.empty((shape[0], v.shape[1]), dtype)
                for j, part in enumerate(parts):
                    result[:, j * group : (j + 1) * group] = part
        else:
            limit = self._tile_limit(v.shape[1], dtype, shape)
            result = self._by_tiles(v, limit, dtype, shape, transposed)
        if self._check_finite and is_finite(v):
            check_values("product", result)
        return result

    def squared_norm(self) -> float:
        """Return Σ K_ij² over tiles, in float64."""
        total = 0.0
        for tile in self._tiled.tiles(self._limit, check_finite=self._check_finite):
            total += native.kernel_statistics(tile.values).squared_norm * (2 if tile.mirrored else 1)
        return total

    def _factored(
        self, v: FloatArray, workspace: int, dtype: np.dtype[Any], shape: tuple[int, int], transposed: bool
    ) -> FloatArray:
        vectors, exponents = moderate(v, self._feats.dtype)
        out = self._namespace.empty((shape[0], v.shape[1]), np.float64)
        threads = native.host_threads(self._example)
        for i, block in enumerate(self._blocks):
            side = block.transposed if transposed else block
            side.add_product(vectors, out, accumulate=i > 0, workspace=workspace, threads=threads)
        return scaled_back(out, exponents, dtype)

    def _by_tiles(
        self, v: FloatArray, limit: int, dtype: np.dtype[Any], shape: tuple[int, int], transposed: bool
    ) -> FloatArray:
        vectors, exponents = moderate(v, self._feats.dtype)
        out = self._namespace.zeros((shape[0], v.shape[1]), np.float64)
        # The product is checked to be finite, and so need not the tiles be.
        for tile in self._tiled.tiles(limit, check_finite=False):
            add_products(tile, vectors, out, transposed=transposed)
        return scaled_back(out, exponents, dtype)

    def _vector_bytes(self, shape: tuple[int, int]) -> int:
        """Bytes of a vector rounded to the features' dtype, and of its product in float64."""
        return shape[1] * self._feats.dtype.itemsize + shape[0] * 8

    def _fixed_bytes(self, vectors: int, shape: tuple[int, int]) -> int:
        """Bytes beside the product and the tiles: also of a tile's own product, and of its vectors side by side."""
        return vectors * (self._vector_bytes(shape) + sum(self._tiled.tile_shape()) * self._feats.dtype.itemsize)

    def _group(self, vectors: int, dtype: np.dtype[Any], shape: tuple[int, int]) -> tuple[int, int]:
        """Return how many vectors are taken at a time, and the workspace left for each block's product."""
        threads = native.host_threads(self._example)
        key = (vectors, dtype, shape, threads)
        if key not in self._groups:
            self._groups[key] = self._fitted_group(vectors, dtype, shape, threads)
        return self._groups[key]

    def _fitted_group(
        self, vectors: int, dtype: np.dtype[Any], shape: tuple[int, int], threads: int
    ) -> tuple[int, int]:
        each = self._vector_bytes(shape)
        fixed = shape[0] * vectors * dtype.itemsize + sum(block.copied_bytes for block in self._counted)

        def left(group: int) -> int:
            return self._limit - fixed - group * each

        group = vectors
        while group > 1 and left(group) < max(block.workspace(group, threads)[1] for block in self._counted):
            group = (group + 1) // 2
        minimum = max(block.workspace(group, threads)[0] for block in self._counted)
        if left(group) < minimum:
            needed = fixed + group * each + minimum
            raise MemoryLimitError(
                f"a factored product of a kernel of shape {shape} with {vectors} vector(s) in {self._feats.dtype} "
                f"needs at least {format_bytes(needed)} ({format_bytes(minimum)} of it workspace), but memory_limit "
                f"is {format_bytes(self._limit)}",
                needed=needed,
                limit=self._limit,
            )
        return group, left(group)

    def _tile_limit(self, vectors: int, dtype: np.dtype[Any], shape: tuple[int, int]) -> int:
        """Return what a tile and its computation may take, once the vectors and their products are counted."""
        fixed = shape[0] * vectors * dtype.itemsize + self._fixed_bytes(vectors, shape)
        try:
            self._tiled.plans(max(self._limit - fixed, 1))
        except MemoryLimitError as error:
            needed = fixed + error.needed
            raise MemoryLimitError(
                f"a product of a kernel of shape {shape} with {vectors} vector(s) by tiles needs at least "
                f"{format_bytes(needed)}, but memory_limit is {format_bytes(self._limit)}",
                needed=needed,
                limit=self._limit,
            ) from None
        return self._limit - fixed


def _added_up(costs: Iterable[tuple[str, int, int]]) -> tuple[ProductBlockPlan, ...]:
    totals: dict[str, tuple[int, int]] = {}
    for name, flops, count in costs:
        before = totals.get(name, (0, 0))
        totals[name] = (before[0] + flops, before[1] + count)
    return tuple(ProductBlockPlan(name, *total) for name, total in totals.items())


def moderate(v: FloatArray, dtype: np.dtype[Any]) -> tuple[FloatArray, npt.NDArray[Any] | None]:
    """Return V in `dtype`, columns scaled by powers of two where their size calls for it, and the exponents.

    A power of two changes no digit, so a column's bits do not depend on whether it is scaled.
    """
    xp = array_namespace(v)
    with np.errstate(invalid="ignore"):
        largest = xp.maximum(v.max(axis=0), -v.min(axis=0)).astype(np.float64)
    # Zero columns and such with values that are not finite stay as they are.
    odd = (largest > _MODERATE) | ((largest < 1 / _MODERATE) & (largest > 0))
    if not odd.any():
        return v.astype(dtype, copy=False), None
    exponents = xp.frexp(largest)[1] * (odd & xp.isfinite(largest))
    return xp.ldexp(v, -exponents).astype(dtype), exponents


def scaled_back(
    product: npt.NDArray[np.float64], exponents: npt.NDArray[Any] | None, dtype: np.dtype[Any]
) -> FloatArray:
    """Return in `dtype` the product with what `moderate` returned, for the vectors that it was given."""
    with np.errstate(over="ignore", invalid="ignore"):
        if exponents is not None:
            array_namespace(product).ldexp(product, exponents, out=product)
        return product.astype(dtype, copy=False)


def stored_product(plan: Plan, num_vectors: int, dtype: np.dtype[Any], *, computed: bool) -> ProductPlan:
    """Return the plan of a product with the kernel that `plan` computes, or has `computed` already."""
    *_, rows, columns = plan.shape
    return ProductPlan(
        "stored",
        tuple(ProductBlockPlan(b.name, 0 if computed else b.flops, 0 if computed else b.bytes) for b in plan.blocks),
        num_vectors,
        (rows, columns),
        2 * num_vectors * rows * columns,
        rows * num_vectors * dtype.itemsize,
        plan.output_bytes + (0 if computed else plan.workspace_bytes),
        plan.memory_limit,
        plan.threads,
    )


def stored_multiply(kernel: FloatArray, v: FloatArray, *, check_finite: bool) -> FloatArray:
    """Return `kernel @ v` as NumPy or CuPy does; where that would cast all of the kernel first, some rows at a time."""
    step = kernel.shape[0] if np.result_type(kernel.dtype, v.dtype) == kernel.dtype else _SLAB_ROWS
    with np.errstate(over="ignore", invalid="ignore"):
        slabs = [kernel[i : i + step] @ v for i in range(0, kernel.shape[0], step)]
    product: FloatArray = slabs[0] if len(slabs) == 1 else array_namespace(v).concatenate(slabs)
    if check_finite and is_finite(v):
        check_values("product", product)
    return product
