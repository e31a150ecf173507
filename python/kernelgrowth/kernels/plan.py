"""What a kernel will cost, decided before any work: per block the strategy, flops and bytes; what the memory allows."""

from __future__ import annotations

from dataclasses import dataclass

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
    chunks : int
        Passes over the output: 0 for a block fused with the others into one.
    weight_rows : int
        Rows of the weight expanded at a time; 0 where nothing is expanded.
    """

    name: str
    strategy: str
    flops: int
    bytes: int
    chunks: int = 0
    weight_rows: int = 0


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
    memory_limit : int
        Bytes allowed.
    threads : int
    """

    blocks: tuple[BlockPlan, ...]
    shape: tuple[int, int]
    output_bytes: int
    workspace_bytes: int
    memory_limit: int
    threads: int

    @property
    def flops(self) -> int:
        """Floating-point operations of all blocks."""
        return sum(block.flops for block in self.blocks)

    def __str__(self) -> str:
        width = max(len("block"), *(len(block.name) for block in self.blocks))
        lines = [f"{'block':<{width}}  {'strategy':<9} {'Gflop':>10} {'features':>10} {'chunks':>6}"]
        lines += [
            f"{b.name:<{width}}  {b.strategy:<9} {b.flops / 1e9:>10.3f} {format_bytes(b.bytes):>10} "
            f"{b.chunks if b.chunks else 'fused':>6}"
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
    fused = [b.term for b in problem.blocks if isinstance(b, FusedTerm)]
    minimum = full = 0
    if fused:
        minimum, full = native.gram_workspace(fused, problem.shape, symmetric=problem.symmetric, threads=threads)
    # Scratch of a one-factor Gram, whose packing is counted with its rows.
    scratch = 0
    expansions = [b for b in problem.blocks if isinstance(b, Expansion)]
    if expansions:
        scratch = _scratch_bytes(problem, threads)
        minimum = max(minimum, *(e.bytes_per_weight_row + scratch for e in expansions))
        minimum = max(minimum, *(e.bias_bytes + scratch for e in expansions))
    allowed = memory_limit - output_bytes
    if minimum > allowed:
        needed = output_bytes + minimum
        raise MemoryLimitError(
            f"a kernel of shape {problem.shape} in {problem.dtype} needs at least {format_bytes(needed)} "
            f"({format_bytes(output_bytes)} output and {format_bytes(minimum)} workspace), but memory_limit is "
            f"{format_bytes(memory_limit)}",
            needed=needed,
            limit=memory_limit,
        )
    workspace = min(full, allowed)
    plans = []
    for block in problem.blocks:
        weight_rows = chunks = 0
        if isinstance(block, Expansion):
            weight_rows = max(1, min(block.d_out, (allowed - scratch) // block.bytes_per_weight_row))
            chunks = -(-block.d_out // weight_rows) + int(block.bias)
            workspace = max(workspace, scratch + weight_rows * block.bytes_per_weight_row)
        plans.append(_block_plan(problem, block, chunks, weight_rows))
    return Plan(tuple(plans), problem.shape, output_bytes, workspace, memory_limit, threads)


def _scratch_bytes(problem: Problem, threads: int) -> int:
    # The Gram's own scratch does not depend on the factors' length: ask for it with vectors of length one.
    expansion = next(b for b in problem.blocks if isinstance(b, Expansion))
    sides = [d[:, :, 0, :1] for _, d in expansion.sides]
    if expansion.fold:
        sides = [d[:, :1] for d in sides]
    term = native.GramTerm(native.Factor(*sides))
    return native.gram_workspace([term], problem.shape, symmetric=problem.symmetric, threads=threads)[1]


def _block_plan(problem: Problem, block: LoweredBlock, chunks: int, weight_rows: int) -> BlockPlan:
    def pairs(rows: int, columns: int) -> int:
        return rows * (rows + 1) // 2 if problem.symmetric else rows * columns

    if isinstance(block, FusedTerm):
        flops = count = 0
        for factor in (block.term.first, block.term.second):
            if factor is None:
                continue
            left = factor.left
            right = left if factor.right is None else factor.right
            flops += 2 * pairs(left.shape[0] * left.shape[1], right.shape[0] * right.shape[1]) * left.shape[2]
            count += left.nbytes + (0 if factor.right is None else factor.right.nbytes)
        return BlockPlan(block.name, block.strategy, flops, count)
    length = block.d_out * (block.d_in + int(block.bias)) * (block.sides[0][1].shape[1] if block.fold else 1)
    flops = 2 * pairs(*problem.shape) * length
    for _, d in block.sides:
        flops += 2 * d.shape[0] * d.shape[1] * d.shape[2] * block.d_in * block.d_out
        flops += d.size if block.bias else 0
    count = sum(a.nbytes + d.nbytes for a, d in block.sides)
    return BlockPlan(block.name, "expand", flops, count, chunks, weight_rows)
