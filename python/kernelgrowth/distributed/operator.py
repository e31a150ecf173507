"""The kernel of sharded features as a linear operator."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kernelgrowth._backend import native
from kernelgrowth._backend.arrays import FloatArray, array_namespace, as_array, is_cupy, to_numpy
from kernelgrowth._backend.checks import check_choice, check_integer
from kernelgrowth._backend.errors import BackendError, MemoryLimitError
from kernelgrowth._backend.memory import format_bytes, resolve_memory_limit
from kernelgrowth.distributed.cluster import Shared
from kernelgrowth.distributed.features import ShardedFeatures
from kernelgrowth.distributed.halves import SumLayout
from kernelgrowth.distributed.pairs import Pair, all_pairs, pair_memory, run_pairs
from kernelgrowth.distributed.shards import Settings, Shard, on_threads, prepared
from kernelgrowth.distributed.sweeps import Sweeps, moved_sums
from kernelgrowth.gradients.embeddings import without_embeddings
from kernelgrowth.gradients.identity import arrays_of
from kernelgrowth.kernels.diagonal import diagonal
from kernelgrowth.kernels.evaluate import check_values, is_finite
from kernelgrowth.kernels.lowering import check_on_cpu, check_preconditioner
from kernelgrowth.kernels.products import moderate, scaled_back
from kernelgrowth.kernels.streamed import StreamedKernel

__all__ = ["PassCost", "ShardedOperator"]

_MODES = ("full", "trace", "mean_trace", "sum_logits")


@dataclass(frozen=True)
class PassCost:
    """What one product takes: operations of all workers, and bytes that move.

    Attributes
    ----------
    flops : int
        `4 N T d_in d_out` a block and vector, and as much less as the elementwise work is of it.
    factor_bytes : int
        Of one sum of gradients, M: P numbers a vector (C times as many where outputs are traced over).
    reduced_bytes, broadcast_bytes : int
        Moved between workers on the way up and down: (S - 1) M each for one shard on each of S workers.
    vector_bytes : int
        From the client to the workers and back, by way of the scheduler: 2 N C k numbers.
    """

    flops: int
    factor_bytes: int
    reduced_bytes: int
    broadcast_bytes: int
    vector_bytes: int

    @property
    def between_workers(self) -> int:
        """Bytes that move between workers."""
        return self.reduced_bytes + self.broadcast_bytes


class ShardedOperator:
    """The empirical neural tangent kernel of a probe set whose features are on many machines, as a linear operator.

    Takes the place of an `NTKOperator` in `eigsh`, `EigenTracker`, `nystrom`, `KernelRegression(method="cg")` and
    SciPy. Vectors and results are NumPy arrays of the client's.

    Parameters
    ----------
    feats : ShardedFeatures
        N examples, C outputs.
    outputs : {"full", "trace", "mean_trace", "sum_logits"}
        As in `NTKOperator`.
    preconditioner : mapping of str to ndarray, optional
        As in `empirical_ntk`; it is sent to every worker once.
    memory_limit : int, optional
        Bytes that a product may take on a worker beside its shards; by default what they leave of 60 % of its limit.
        Vectors of a product for which it does not suffice are multiplied one group after another.
    check_finite : bool
        Whether a product that leaves the range of its dtype is a `ValueError`.

    Attributes
    ----------
    shape : tuple of int
    dtype : numpy.dtype
    device : None
    semidefinite : bool
        True.

    Raises
    ------
    TypeError, ValueError
        If an argument is unusable; the message names it.
    MemoryLimitError
        From a product of which not even one vector fits.

    Notes
    -----
    A product is two sweeps. Every worker sums up its gradients with the vectors as weights, `g_s = J_sᵀ v_s`; the sums
    are added up from worker to worker along a binary tree, times the preconditioner; the total goes back from worker to
    worker, and every worker takes its gradients' inner products with it, `(K v)_s = J_s g`. `pass_cost` counts it.

    A sum over the examples of a shard is made in float64 and rounded to the features' dtype, in which it moves; that
    adds the rounding of a tree of S numbers to what `NTKOperator` promises. The bits of a product do not depend on the
    number of workers, nor on which of them died, as long as `memory_limit` divides the vectors alike; on GPUs, cuBLAS
    makes no such promise.

    If a worker dies, its shards are made again on others and what was lost of the product is computed again. Ctrl-C
    cancels what is under way.
    """

    def __init__(
        self,
        feats: ShardedFeatures,
        *,
        outputs: str = "full",
        preconditioner: Mapping[str, Any] | None = None,
        memory_limit: int | None = None,
        check_finite: bool = True,
    ) -> None:
        if not isinstance(feats, ShardedFeatures):
            raise TypeError(f"feats must be ShardedFeatures, got {type(feats).__name__}")
        check_choice("outputs", outputs, _MODES)
        self._limit = None if memory_limit is None else resolve_memory_limit(memory_limit)
        self._feats, self._outputs, self._check_finite = feats, outputs, check_finite
        settings = feats.settings(outputs, preconditioner)
        self._preconditioned = bool(settings.weights)
        self._layout = SumLayout(feats.head, settings)
        self._checksums = [facts.checksum for facts in feats.facts]
        self._settings = Shared(feats.cluster, settings)
        self._sweeps = Sweeps(feats.cluster, feats.shards, self._checksums, self._settings)
        rows = feats.num_examples * self._layout.rows_each
        self.shape = (rows, rows)
        self.dtype: np.dtype[Any] = feats.dtype
        self.device = None
        self.semidefinite = True

    def __repr__(self) -> str:
        about = f"shape={self.shape}, dtype={self.dtype}, outputs={self._outputs!r}"
        return f"ShardedOperator({about}, {self._feats.num_shards} shards)"

    def pass_cost(self, num_vectors: int = 1) -> PassCost:
        """Return what a product with so many vectors takes, with the shards where they are now."""
        k = check_integer("num_vectors", num_vectors, minimum=1)
        factor_bytes = k * self._layout.numbers * self.dtype.itemsize
        reduced, broadcast = moved_sums(self._feats.placement())
        return PassCost(
            flops=k * self._feats.num_examples * self._layout.flops_each(self._feats.head),
            factor_bytes=factor_bytes,
            reduced_bytes=reduced * factor_bytes,
            broadcast_bytes=broadcast * factor_bytes,
            vector_bytes=2 * self.shape[0] * k * self.dtype.itemsize,
        )

    def __matmul__(self, v: Any) -> FloatArray:
        return self._multiply(v)

    def matvec(self, v: Any) -> FloatArray:
        """Return K v, for SciPy."""
        return self._multiply(v)

    def matmat(self, v: Any) -> FloatArray:
        """Return K V, for SciPy."""
        return self._multiply(v)

    def rmatvec(self, v: Any) -> FloatArray:
        """Return Kᵀ v, which is K v, for SciPy."""
        return self._multiply(v)

    def rmatmat(self, v: Any) -> FloatArray:
        """Return Kᵀ V, which is K V, for SciPy."""
        return self._multiply(v)

    def diagonal(self) -> FloatArray:
        """Return the diagonal, shape (rows,), from squared gradient norms.

        Raises
        ------
        ValueError
            If an entry leaves the range of its dtype.
        """
        with np.errstate(over="ignore"):
            result: FloatArray = self._exact_diagonal().astype(self.dtype)
        if self._check_finite:
            check_values("kernel", result)
        return result

    def trace(self) -> float:
        """Return the sum of the diagonal, in float64; it raises what `diagonal` does."""
        total = self._exact_diagonal().sum()
        if self._check_finite:
            check_values("trace", total)
        return float(total)

    def frobenius_norm(self) -> float:
        """Return sqrt(Σ K_ij²), accumulated in float64: every tile is computed once, every pair of shards meets."""
        limit = pair_memory(self._feats) if self._limit is None else self._limit
        pairs = all_pairs(self._feats.num_shards)
        found = dict(run_pairs(self._feats, pairs, _squared_norm, self._settings, limit, self._check_finite))
        # In a fixed order, not in that in which they came.
        return math.sqrt(sum(found[pair] * (1 if pair[0] == pair[1] else 2) for pair in pairs))

    def _multiply(self, v: Any) -> FloatArray:
        vectors = as_array("v", v, ndim=(1, 2), finite=False)
        if vectors.shape[0] != self.shape[0]:
            raise ValueError(f"v must have {self.shape[0]} rows, got shape {vectors.shape}")
        if is_cupy(vectors):
            raise BackendError(
                "v is a CuPy array, but vectors of a ShardedOperator are sent from the host: use v.get()"
            )
        dtype = np.result_type(self.dtype, vectors.dtype)
        columns = vectors.reshape(len(vectors), -1)
        result = np.empty(columns.shape, dtype)
        if columns.size > 0:
            group = self._group(columns.shape[1])
            for j in range(0, columns.shape[1], group):
                result[:, j : j + group] = self._product(columns[:, j : j + group], dtype)
        if self._check_finite and is_finite(vectors):
            check_values("product", result)
        return result.reshape(vectors.shape)

    def _product(self, v: FloatArray, dtype: np.dtype[Any]) -> FloatArray:
        scaled, exponents = moderate(v, self.dtype)
        each = self._layout.rows_each
        pieces = [np.ascontiguousarray(scaled[begin * each : end * each]) for begin, end in self._feats.bounds]
        head = self._feats.head if self._preconditioned else None
        parts = self._feats.attempt(lambda placement: self._sweeps.product(pieces, placement, head))
        return scaled_back(np.concatenate(parts).astype(np.float64), exponents, dtype)

    def _group(self, vectors: int) -> int:
        """Return how many vectors are multiplied together: all of them, or as many as fit the workers' memory.

        Always the same number, whatever became of the workers since.
        """
        room = self._feats.room if self._limit is None else self._limit
        if room is None:
            return vectors
        # Sums of subtrees that wait for others, or two of them, the whole, and a copy of what arrives.
        sums = 4 + (self._feats.num_shards - 1).bit_length()
        number = self.dtype.itemsize
        rows = max(self._feats.counts) * self._layout.rows_each
        each = sums * self._layout.numbers * number + rows * (2 * number + 8)
        fixed = self._layout.workspace(self._feats.head, max(self._feats.counts))
        group = vectors
        while group > 1 and fixed + group * each > room:
            group = (group + 1) // 2
        if fixed + group * each > room:
            needed = fixed + group * each
            raise MemoryLimitError(
                f"a product with one vector needs {format_bytes(needed)} on a worker beside its shards "
                f"({sums} sums of {format_bytes(self._layout.numbers * number)} of gradients at a time), but there are "
                f"{format_bytes(max(room, 0))}",
                needed=needed,
                limit=max(room, 0),
            )
        return group

    def _exact_diagonal(self) -> npt.NDArray[np.float64]:
        cluster = self._feats.cluster

        def work(placement: list[str]) -> npt.NDArray[np.float64]:
            tasks: list[Any] = []
            settings = self._settings.among(placement)
            with cluster.cancelling(tasks):
                for shard, checksum, home in zip(self._feats.shards, self._checksums, placement, strict=True):
                    tasks.append(cluster.submit(_diagonal, shard, checksum, settings, self._limit, worker=home))
                return np.concatenate(cluster.results(tasks, placement))

        return self._feats.attempt(work)


def _diagonal(shard: Shard, checksum: int, settings: Settings, limit: int | None) -> npt.NDArray[np.float64]:
    feats = prepared(shard, settings, checksum)
    xp = array_namespace(arrays_of(feats)[0])
    weights = {name: tuple(map(xp.asarray, arrays)) for name, arrays in settings.weights.items()}
    with on_threads(settings.num_threads):
        found: Any = diagonal(feats, settings.outputs, weights, resolve_memory_limit(limit))
    return to_numpy(found)  # type: ignore[return-value]


def _squared_norm(
    rows: Shard,
    columns: Shard | None,
    pair: Pair,
    checksums: Pair,
    settings: Settings,
    limit: int | None,
    check_finite: bool,
) -> float:
    """Return Σ K_ij² of the kernel of two shards."""
    first = prepared(rows, settings, checksums[0])
    second = None if columns is None else prepared(columns, settings, checksums[1])
    check_on_cpu("a norm of sharded features", first, second)
    allowed = resolve_memory_limit(limit)
    weights: Any = settings.weights or None
    with on_threads(settings.num_threads):
        feats, feats2, weights, used = without_embeddings(first, second, weights, allowed)
        streamed = StreamedKernel(feats, feats2, settings.outputs, check_preconditioner(feats, weights))
        total = 0.0
        for tile in streamed.tiles(allowed - used, check_finite=check_finite):
            total += native.kernel_statistics(tile.values).squared_norm * (2 if tile.mirrored else 1)
    return total
