"""What a kernel will cost, decided before any work: per block the strategy, flops and bytes; what the memory allows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from kernelgrowth._backend import native
from kernelgrowth._backend.errors import MemoryLimitError
from kernelgrowth._backend.memory import format_bytes
from kernelgrowth._backend.native import GramTerm, OuterProductRows
from kernelgrowth.kernels.lowering import LoweredBlock, Problem

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
        out in pieces while they are packed, and Grams of those.
    flops : int
        Floating-point operations needed (a symmetric Gram counts its upper triangle).
    bytes : int
        Bytes of features read.
    terms : int
        Parts in which it is added to the kernel.
    """

    name: str
    strategy: str
    flops: int
    bytes: int
    terms: int


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
    passes : tuple of int
        Numbers of the blocks' terms, in their order, that go into each pass over the output.
    memory_limit : int
        Bytes allowed.
    threads : int
    """

    blocks: tuple[BlockPlan, ...]
    shape: tuple[int, int]
    output_bytes: int
    workspace_bytes: int
    passes: tuple[int, ...]
    memory_limit: int
    threads: int

    @property
    def flops(self) -> int:
        """Floating-point operations of all blocks."""
        return sum(block.flops for block in self.blocks)

    def __str__(self) -> str:
        width = max(len("block"), *(len(block.name) for block in self.blocks))
        lines = [f"{'block':<{width}}  {'strategy':<9} {'Gflop':>10} {'features':>10} {'terms':>6}"]
        lines += [
            f"{b.name:<{width}}  {b.strategy:<9} {b.flops / 1e9:>10.3f} {format_bytes(b.bytes):>10} {b.terms:>6}"
            for b in self.blocks
        ]
        rows, columns = self.shape
        lines.append(f"{'total':<{width}}  {'':<9} {self.flops / 1e9:>10.3f}")
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
    minimum = max(_workspace(problem, [term], threads)[0] for term in terms)
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
        workspace = max(workspace, min(allowed, _workspace(problem, terms[end - count : end], threads)[1]))
    return Plan(
        tuple(_block_plan(problem, block) for block in problem.blocks),
        problem.shape,
        output_bytes,
        workspace + problem.copied_bytes,
        tuple(passes),
        memory_limit,
        threads,
    )


def _workspace(problem: Problem, terms: Sequence[GramTerm], threads: int) -> tuple[int, int]:
    return native.gram_workspace(terms, problem.shape, symmetric=problem.symmetric, threads=threads)


def _written_out(term: GramTerm) -> bool:
    return isinstance(term.first.left, OuterProductRows)


def _passes(problem: Problem, terms: Sequence[GramTerm], allowed: int, threads: int) -> list[int]:
    """Return how many terms go into each pass, in their order: as many as fit, expanded ones apart from others."""

    def fits(part: Sequence[GramTerm]) -> bool:
        minimum, full = _workspace(problem, part, threads)
        # With less than all the workspace that helps, vectors would be written out several times.
        return full <= min(allowed, EXPANDED_BYTES) if _written_out(part[0]) else minimum <= allowed

    counts: list[int] = []
    begin = 0
    while begin < len(terms):
        end = begin + 1
        while end < len(terms) and _written_out(terms[end]) == _written_out(terms[begin]):
            end += 1
        while end - begin > 1 and not fits(terms[begin:end]):
            end = begin + (end - begin + 1) // 2
        counts.append(end - begin)
        begin = end
    return counts


def _block_plan(problem: Problem, block: LoweredBlock) -> BlockPlan:
    def pairs(rows: int, columns: int) -> int:
        return rows * (rows + 1) // 2 if problem.symmetric else rows * columns

    flops = 0
    for factor in (factor for term in block.terms for factor in term[:2]):
        if factor is None:
            continue
        left = factor.left
        right = left if factor.right is None else factor.right
        flops += 2 * pairs(left.shape[0] * left.shape[1], right.shape[0] * right.shape[1]) * left.shape[2]
        flops += sum(side.flops for side in factor if isinstance(side, OuterProductRows))
    return BlockPlan(block.name, block.strategy, flops, block.nbytes, len(block.terms))
