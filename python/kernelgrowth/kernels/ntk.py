"""The empirical neural tangent kernel as an array."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernelgrowth._backend import native
from kernelgrowth._backend.arrays import FloatArray, like
from kernelgrowth._backend.checks import check_choice
from kernelgrowth._backend.memory import resolve_memory_limit
from kernelgrowth.gradients.features import Block, GradientFeatures, OuterProduct
from kernelgrowth.kernels.evaluate import check_range, evaluate
from kernelgrowth.kernels.lowering import OUTPUTS, Problem, check_pair, check_preconditioner, lower
from kernelgrowth.kernels.plan import Plan, make_plan

__all__ = ["OUTPUTS", "empirical_ntk"]


def empirical_ntk(
    feats: GradientFeatures,
    feats2: GradientFeatures | None = None,
    *,
    outputs: str = "full",
    per_layer: bool = False,
    out: Any = None,
    memory_limit: int | None = None,
    preconditioner: Mapping[str, Any] | None = None,
    num_threads: int | None = None,
) -> Any:
    """Return the empirical neural tangent kernel, `K = Σ_b scale_b J_b J_bᵀ`, exactly.

    Parameters
    ----------
    feats : GradientFeatures
        N1 examples, C outputs.
    feats2 : GradientFeatures, optional
        N2 examples for a rectangular kernel; None means symmetric, and then the result is symmetric to the bit.
    outputs : {"full", "trace", "mean_trace", "diagonal", "sum_logits"}
        Shape of the result: "full" (N1, N2, C, C); "trace", the sum over c of K_cc, (N1, N2); "mean_trace", that
        divided by C; "diagonal" (C, N1, N2); "sum_logits", the kernel of Σ_c f_c, (N1, N2).
        With C = 1 it is (N1, N2) in every mode.
    per_layer : bool
        Return a dict from block name to that block's kernel instead of their sum.
    out : ndarray, optional
        Written and returned instead of a new array: of the result's shape and dtype, writable, sharing no memory with
        the features. Not together with `per_layer`.
    memory_limit : int, optional
        Bytes the call may take, its result included; half of the available memory by default.
    preconditioner : mapping of str to ndarray, optional
        Non-negative diagonal η by block, of the parameter's shape ((d_out, d_in), or a tuple of that and (d_out,) for
        a layer with bias, or (p,)): the kernel is then `J diag(η) Jᵀ`.
    num_threads : int, optional
        The bits of the result do not depend on it.

    Returns
    -------
    ndarray, or dict of str to ndarray
        Of the features' dtype and array library. The "full" result is a view of the (N1·C, N2·C) matrix with
        example-major rows that `NTKOperator.gram` returns.

    Raises
    ------
    TypeError, ValueError
        If an argument is unusable; the message names it. Also if the kernel leaves the range of its dtype.
    MemoryLimitError
        If the smallest plan does not fit `memory_limit`; nothing has been computed then.

    Notes
    -----
    A dense layer costs `N²(d_in + C² d_out)` flops in the symmetric case instead of the `N² C² d_in d_out` of expanded
    gradients. Within 1e-5 (float32) or 1e-12 (float64) of `sqrt(K_ii K_jj)`.
    """
    check_pair(feats, feats2)
    check_choice("outputs", outputs, OUTPUTS)
    roots = check_preconditioner(feats, preconditioner)
    limit = resolve_memory_limit(memory_limit)
    threads = native.num_threads(num_threads)
    if not per_layer:
        if out is not None:
            _check_out(out, feats, feats2, outputs)
        (job,) = _prepare([(feats, feats2)], outputs, roots, out, limit, threads)
        result = job.compute()
        return result if out is not None else like(result, _source(next(iter(feats.blocks.values()))))
    if out is not None:
        raise ValueError("out cannot be given with per_layer=True, which returns one kernel for each block")
    jobs = _prepare([_select(feats, feats2, name) for name in feats], outputs, roots, None, limit, threads)
    return {name: like(job.compute(), _source(feats[name])) for name, job in zip(feats, jobs, strict=True)}


def result_shape(feats: GradientFeatures, feats2: GradientFeatures | None, outputs: str) -> tuple[int, ...]:
    """Return the shape of `empirical_ntk`'s result."""
    n1, n2 = feats.num_examples, (feats if feats2 is None else feats2).num_examples
    c = feats.num_outputs
    if c == 1 or outputs in ("trace", "mean_trace", "sum_logits"):
        return (n1, n2)
    return (c, n1, n2) if outputs == "diagonal" else (n1, n2, c, c)


def _result_bytes(feats: GradientFeatures, feats2: GradientFeatures | None, outputs: str) -> int:
    return int(np.prod(result_shape(feats, feats2, outputs), dtype=object)) * feats.dtype.itemsize


def _select(
    feats: GradientFeatures, feats2: GradientFeatures | None, name: str
) -> tuple[GradientFeatures, GradientFeatures | None]:
    return (
        GradientFeatures({name: feats[name]}),
        None if feats2 is None else GradientFeatures({name: feats2[name]}),
    )


def _source(block: Block) -> Any:
    """Return the array as the user gave it, which tells the library that results go back to."""
    return block.source


def _arrays(feats: GradientFeatures) -> list[FloatArray]:
    arrays: list[FloatArray] = []
    for block in feats.blocks.values():
        arrays += [block.activations, block.backprops] if isinstance(block, OuterProduct) else [block.rows]
    return arrays


def _check_out(out: Any, feats: GradientFeatures, feats2: GradientFeatures | None, outputs: str) -> None:
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out must be a NumPy array, got {type(out).__name__}")
    shape = result_shape(feats, feats2, outputs)
    if out.shape != shape:
        raise ValueError(f"out must have shape {shape}, got {out.shape}")
    if out.dtype != feats.dtype:
        raise TypeError(f"out must be {feats.dtype} like the features, got {out.dtype}")
    if not out.flags.writeable:
        raise ValueError("out is read-only")
    if _overlaps_itself(out):
        raise ValueError(f"out overlaps itself in memory: strides {out.strides} for shape {shape}")
    inputs = _arrays(feats) + ([] if feats2 is None else _arrays(feats2))
    if any(_overlap(out, array) for array in inputs):
        raise ValueError("out overlaps the features in memory")


def _overlaps_itself(array: FloatArray) -> bool:
    """Whether two entries may share bytes: sorted by stride, each dimension must step over all inner ones."""
    span = array.itemsize
    for stride, length in sorted((abs(s), n) for s, n in zip(array.strides, array.shape, strict=True) if n > 1):
        if stride < span:
            return True
        span = stride * (length - 1) + span
    return False


def _overlap(a: FloatArray, b: FloatArray) -> bool:
    # Exact for interleaved views too; both are plain strided blocks, which the search decides at once.
    return bool(np.may_share_memory(a, b) and np.shares_memory(a, b))


@dataclass(frozen=True)
class _Job:
    """A kernel ready to be computed: planned, and known to fit."""

    problems: list[Problem]
    plans: list[Plan]
    shape: tuple[int, ...]
    out: FloatArray | None
    in_place: bool

    def compute(self) -> FloatArray:
        stacked = len(self.problems) > 1
        first = self.problems[0]
        if self.out is not None and self.in_place:
            target = self.out
        else:
            target = np.empty((len(self.problems), *first.shape) if stacked else first.shape, first.dtype)
        for i, (problem, plan) in enumerate(zip(self.problems, self.plans, strict=True)):
            matrix = target[i] if stacked else target
            evaluate(problem, plan, matrix)
            check_range(problem, matrix)
        if len(self.shape) == 4:
            n1, n2, c, _ = self.shape
            target = target.reshape(n1, c, n2, c).transpose(0, 2, 1, 3)
        if self.out is None or self.in_place:
            return target
        self.out[...] = target
        return self.out


def _prepare(
    pairs: Sequence[tuple[GradientFeatures, GradientFeatures | None]],
    outputs: str,
    roots: Mapping[str, tuple[FloatArray, ...]],
    out: FloatArray | None,
    limit: int,
    threads: int,
) -> list[_Job]:
    """Plan all kernels of a call, each beside the results of all the others."""
    lowered = [lower(*pair, outputs, roots, limit) for pair in pairs]
    shapes = [result_shape(*pair, outputs) for pair in pairs]
    # A given `out` is written in place where its rows are contiguous; the "full" layout never is, seen as a matrix.
    in_place = out is not None and out.ndim < 4 and out.strides[-1] == out.itemsize
    results = 0 if in_place else sum(_result_bytes(*pair, outputs) for pair in pairs)
    copied = sum(problem.copied_bytes for problems in lowered for problem in problems)
    jobs = []
    for problems, shape in zip(lowered, shapes, strict=True):
        plans = [
            make_plan(p, output_bytes=results + copied - p.copied_bytes, memory_limit=limit, threads=threads)
            for p in problems
        ]
        jobs.append(_Job(problems, plans, shape, out, in_place))
    return jobs
