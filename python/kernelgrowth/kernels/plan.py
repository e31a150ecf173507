"""What a kernel will cost, decided before any work: per block the strategy, flops, bytes and time; what fits memory."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernelgrowth._backend import native
from kernelgrowth._backend.calibration import calibration
from kernelgrowth._backend.errors import MemoryLimitError
from kernelgrowth._backend.memory import format_bytes
from kernelgrowth._backend.native import GramTerm, OuterProductRows
from kernelgrowth.kernels.cost import Cost, count_cost, pass_seconds
from kernelgrowth.kernels.lowering import Problem

__all__ = ["BlockPlan", "Plan", "make_plan"]


# Terms whose vectors are written out go into one pass while they fit this many bytes of packed vectors: about what the
# caches hold, so that they are used while they are there, and long enough that a pass over the output weighs nothing.
EXPANDED_BYTES = 16 * 2**20


@dataclass(frozen=True)
class BlockPlan:
    """How one block is computed.

    Attributes
    ----------
    name : str
    strategy : str
        "hadamard": the entrywise product of two Grams; "rows": one Gram of explicit rows; "expand": gradients written
        out in pieces while they are packed, and Grams of those; "pairs": two Grams over all pairs of positions.
    terms : int
        Parts in which it is added to the kernel.
    cost : Cost
        What is counted, from which `seconds` is predicted.
    """

    name: str
    strategy: str
    terms: int
    cost: Cost

    @property
    def flops(self) -> int:
        """Floating-point operations needed (a symmetric Gram counts its upper triangle)."""
        return self.cost.flops

    @property
    def bytes(self) -> int:
        """Bytes of features read."""
        return self.cost.feature_bytes


@dataclass(frozen=True)
class Plan:
    """The cost of a kernel and the choices that fit it into memory; `print(plan)` shows it as a table.

    Attributes
    ----------
    blocks : tuple of BlockPlan
    shape : tuple of int
        Of the matrix computed.
    dtype : numpy.dtype
    output_bytes, workspace_bytes : int
        The matrix itself (0 if the caller gave it), and everything else at its peak.
    passes : tuple of int
        Numbers of the blocks' terms, in their order, that go into each pass over the output.
    memory_limit : int
        Bytes allowed.
    threads : int
    """

    blocks: tuple[BlockPlan, ...]
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    output_bytes: int
    workspace_bytes: int
    passes: tuple[int, ...]
    memory_limit: int
    threads: int

    @property
    def flops(self) -> int:
        """Floating-point operations of all blocks."""
        return sum(block.flops for block in self.blocks)

    @property
    def seconds(self) -> float:
        """Predicted time of computing the matrix.

        The first prediction of a machine measures its rates for about half a second and remembers them in the
        user's cache folder.
        """
        rates = calibration(self.dtype.name, self.threads)
        return sum(self.block_seconds) + pass_seconds(self.shape, self.dtype.itemsize, len(self.passes), rates)

    @property
    def block_seconds(self) -> tuple[float, ...]:
        """Predicted time of each block; what is left of `seconds` goes into the output and the calls."""
        rates = calibration(self.dtype.name, self.threads)
        return tuple(block.cost.seconds(rates) for block in self.blocks)

    def __str__(self) -> str:
        width = max(len("block"), *(len(block.name) for block in self.blocks))
        lines = [f"{'block':<{width}}  {'strategy':<9} {'Gflop':>10} {'features':>10} {'terms':>6} {'ms':>10}"]
        lines += [
            f"{b.name:<{width}}  {b.strategy:<9} {b.flops / 1e9:>10.3f} {format_bytes(b.bytes):>10} {b.terms:>6} "
            f"{seconds * 1e3:>10.3f}"
            for b, seconds in zip(self.blocks, self.block_seconds, strict=True)
        ]
        rows, columns = self.shape
        lines.append(f"{'total':<{width}}  {'':<9} {self.flops / 1e9:>10.3f} {'':>17} {self.seconds * 1e3:>10.3f}")
        lines.append(
            f"kernel {rows} x {columns}: {format_bytes(self.output_bytes)} output in {len(self.passes)} pass(es), "
            f"{format_bytes(self.workspace_bytes)} workspace of {format_bytes(self.memory_limit)} allowed, "
            f"{self.threads} thread(s)"
        )
        return "\n".join(lines)


def make_plan(problem: Problem, *, output_bytes: int, memory_limit: int, threads: int) -> Plan:
    """Fit a problem into `memory_limit` bytes.

    Raises
    ------
    MemoryLimitError
        If the smallest plan does not fit; nothing has been computed then.
    """
    fixed = output_bytes + problem.copied_bytes
    terms = [term for block in problem.blocks for term in block.terms]
    minimum = max(_workspace(problem, list(same), threads).one_term for _, same in itertools.groupby(terms, _kind))
    if fixed + minimum > memory_limit:
        needed = fixed + minimum
        raise MemoryLimitError(
            f"a kernel of shape {problem.shape} in {problem.dtype} needs at least {format_bytes(needed)} "
            f"({format_bytes(output_bytes)} output, {format_bytes(problem.copied_bytes)} copied features and weights, "
            f"{format_bytes(minimum)} workspace), but memory_limit is {format_bytes(memory_limit)}",
            needed=needed,
            limit=memory_limit,
        )
    allowed = memory_limit - fixed
    passes = _passes(problem, terms, allowed, threads)
    workspace = 0
    for count, end in zip(passes, itertools.accumulate(passes), strict=True):
        workspace = max(workspace, min(allowed, _workspace(problem, terms[end - count : end], threads).full))
    return Plan(
        tuple(
            BlockPlan(block.name, block.strategy, len(block.terms), count_cost(block, symmetric=problem.symmetric))
            for block in problem.blocks
        ),
        problem.shape,
        problem.dtype,
        output_bytes,
        workspace + problem.copied_bytes,
        tuple(passes),
        memory_limit,
        threads,
    )


def _workspace(problem: Problem, terms: Sequence[GramTerm], threads: int) -> native.GramWorkspace:
    return native.gram_workspace(terms, problem.shape, symmetric=problem.symmetric, threads=threads)


def _kind(term: GramTerm) -> tuple[int, ...] | bool:
    """Return what terms of one pass have in common: whether they are written out, or their positions."""
    left, right = term.first
    if isinstance(left, OuterProductRows):
        return True
    return tuple(side.shape[2] for side in (left, right) if side is not None and len(side.shape) == 4)


def _passes(problem: Problem, terms: Sequence[GramTerm], allowed: int, threads: int) -> list[int]:
    """Return how many terms go into each pass, in their order: as many as fit, each kind apart from others."""

    def fits(part: Sequence[GramTerm]) -> bool:
        minimum, full, _ = _workspace(problem, part, threads)
        # With less than all the workspace that helps, vectors would be written out several times.
        return full <= min(allowed, EXPANDED_BYTES) if _kind(part[0]) is True else minimum <= allowed

    counts: list[int] = []
    begin = 0
    while begin < len(terms):
        end = begin + 1
        while end < len(terms) and _kind(terms[end]) == _kind(terms[begin]):
            end += 1
        while end - begin > 1 and not fits(terms[begin:end]):
            end = begin + (end - begin + 1) // 2
        counts.append(end - begin)
        begin = end
    return counts
