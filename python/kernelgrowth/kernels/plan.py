"""What a kernel will cost, decided before any work: per block the strategy, flops and bytes; what the memory allows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kernelgrowth._backend import native
from kernelgrowth._backend.errors import MemoryLimitError
from kernelgrowth._backend.memory import format_bytes
from kernelgrowth.kernels.lowering import Expansion, FusedTerm, LoweredBlock, Problem

__all__ = ["BlockPlan", "Plan", "make_plan"]


@dataclass(frozen=True)
class BlockPlan:
    """How one block is computed.

    Attributes
    ----------
    name : str
    strategy : str
        "hadamard": the entrywise product of two Grams; "rows": one Gram of explicit rows; "expand": rows written out
        in chunks of the weight, then Grams of those.
    flops : int
        Floating-point operations needed (a symmetric Gram counts its upper triangle).
    bytes : int
        Bytes of features read.
    pieces : int
        Parts in which its gradients are written out; 0 where they are not.
    together : int
        Pieces that are held, and handed to one pass over the output, at a time.
    """

    name: str
    strategy: str
    flops: int
    bytes: int
    pieces: int = 0
    together: int = 0

    @property
    def passes(self) -> int:
        """Passes over the output; 0 for a block fused with others."""
        return -(-self.pieces // self.together) if self.pieces else 0


@dataclass(frozen=True)
class Plan:
    """The cost of a kernel and the choices that fit it into memory; `print(plan)` shows it as a table.

    Attributes
    ----------
    blocks : tuple of BlockPlan
    shape : tuple of int
        Of the matrix computed.
    output_bytes, workspace_bytes : int
        The matrix itself (0 if the caller gave it), and everything else at its peak.
    fused_batches : tuple of int
        Numbers of fused terms that go into the passes over the output; one pass where memory allows it.
    memory_limit : int
        Bytes allowed.
    threads : int
    """

    blocks: tuple[BlockPlan, ...]
    shape: tuple[int, int]
    output_bytes: int
    workspace_bytes: int
    fused_batches: tuple[int, ...]
    memory_limit: int
    threads: int

    @property
    def flops(self) -> int:
        """Floating-point operations of all blocks."""
        return sum(block.flops for block in self.blocks)

    def __str__(self) -> str:
        width = max(len("block"), *(len(block.name) for block in self.blocks))
        lines = [f"{'block':<{width}}  {'strategy':<9} {'Gflop':>10} {'features':>10} {'passes':>6}"]
        lines += [
            f"{b.name:<{width}}  {b.strategy:<9} {b.flops / 1e9:>10.3f} {format_bytes(b.bytes):>10} "
            f"{b.passes if b.passes else 'fused':>6}"
            for b in self.blocks
        ]
        rows, columns = self.shape
        lines.append(f"{'total':<{width}}  {'':<9} {self.flops / 1e9:>10.3f}")
        lines.append(
            f"kernel {rows} x {columns}: {format_bytes(self.output_bytes)} output, "
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
    fused = [term for b in problem.blocks if isinstance(b, FusedTerm) for term in b.terms]
    expansions = [b for b in problem.blocks if isinstance(b, Expansion)]
    fixed = output_bytes + problem.copied_bytes
    minimum = max(
        [_workspace(problem, [term], threads)[0] for term in fused]
        + [e.transient_bytes + _piece_bytes(e) + _workspace(problem, [_longest(e)], threads)[0] for e in expansions]
    )
    if fixed + minimum > memory_limit:
        needed = fixed + minimum
        raise MemoryLimitError(
            f"a kernel of shape {problem.shape} in {problem.dtype} needs at least {format_bytes(needed)} "
            f"({format_bytes(output_bytes)} output, {format_bytes(problem.copied_bytes)} copied features, "
            f"{format_bytes(minimum)} workspace), but memory_limit is {format_bytes(memory_limit)}",
            needed=needed,
            limit=memory_limit,
        )
    allowed = memory_limit - fixed
    batches = _batches(problem, fused, allowed, threads)
    workspace = 0
    for count, end in zip(batches, itertools.accumulate(batches), strict=True):
        workspace = max(workspace, min(allowed, _workspace(problem, fused[end - count : end], threads)[1]))
    plans = []
    for block in problem.blocks:
        pieces = together = 0
        if isinstance(block, Expansion):
            pieces = len(block.pieces)
            one, two = (_workspace(problem, [_longest(block)] * count, threads)[1] for count in (1, 2))
            each = _piece_bytes(block) + two - one  # written out and packed; what else `one` holds is scratch
            rest = 2 * one - two + block.transient_bytes
            together = max(1, min(pieces, (allowed - rest) // each))
            workspace = max(workspace, min(allowed, rest + together * each))
        plans.append(_block_plan(problem, block, pieces, together))
    return Plan(
        tuple(plans),
        problem.shape,
        output_bytes,
        workspace + problem.copied_bytes,
        tuple(batches),
        memory_limit,
        threads,
    )


def _workspace(problem: Problem, terms: Sequence[native.GramTerm], threads: int) -> tuple[int, int]:
    return native.gram_workspace(terms, problem.shape, symmetric=problem.symmetric, threads=threads)


def _piece_bytes(block: Expansion) -> int:
    """Return the bytes of the longest piece written out on all sides."""
    longest = max(length for _, _, length in block.pieces)
    return sum(n * c * longest for n, c in block.shapes) * block.dtype.itemsize


def _longest(block: Expansion) -> native.GramTerm:
    """Return a term of the longest piece's shape that takes no memory."""
    longest = max(length for _, _, length in block.pieces)
    shapes = [(n, 1, c * longest) if block.fold else (n, c, longest) for n, c in block.shapes]
    return native.GramTerm(native.Factor(*(np.broadcast_to(np.zeros((), block.dtype), shape) for shape in shapes)))


def _batches(problem: Problem, fused: Sequence[native.GramTerm], allowed: int, threads: int) -> list[int]:
    """Return how many terms go into each call, in their order: all of them if the workspace allows it."""
    counts: list[int] = []
    begin = 0
    while begin < len(fused):
        end = len(fused)
        while end - begin > 1 and _workspace(problem, fused[begin:end], threads)[0] > allowed:
            end = begin + (end - begin + 1) // 2
        counts.append(end - begin)
        begin = end
    return counts


def _block_plan(problem: Problem, block: LoweredBlock, pieces: int, together: int) -> BlockPlan:
    def pairs(rows: int, columns: int) -> int:
        return rows * (rows + 1) // 2 if problem.symmetric else rows * columns

    if isinstance(block, FusedTerm):
        flops = count = 0
        for factor in (factor for term in block.terms for factor in term[:2]):
            if factor is None:
                continue
            left = factor.left
            right = left if factor.right is None else factor.right
            flops += 2 * pairs(left.shape[0] * left.shape[1], right.shape[0] * right.shape[1]) * left.shape[2]
            count += left.nbytes + (0 if factor.right is None else factor.right.nbytes)
        return BlockPlan(block.name, block.strategy, flops, count)
    length = sum(length for _, _, length in block.pieces)
    outputs = block.shapes[0][1]
    flops = 2 * pairs(*problem.shape) * length * (outputs if block.fold else 1)
    return BlockPlan(block.name, "expand", flops + block.flops, block.nbytes, pieces, together)
