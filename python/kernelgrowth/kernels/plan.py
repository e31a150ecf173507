"""What a kernel will cost, decided before any work: per block the strategy, flops, bytes and time; what fits memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kernelgrowth._backend import native
from kernelgrowth._backend.arrays import is_cupy
from kernelgrowth._backend.calibration import Calibration, calibration
from kernelgrowth._backend.errors import BackendError, MemoryLimitError
from kernelgrowth._backend.memory import format_bytes
from kernelgrowth._backend.native import GramTerm, OuterProductRows
from kernelgrowth.kernels.blocks import LoweredBlock
from kernelgrowth.kernels.cost import Cost, count_cost, pass_seconds
from kernelgrowth.kernels.lowering import Problem

__all__ = ["BlockPlan", "Plan", "make_plan"]


# Terms whose vectors are written out go into one pass while they fit this many bytes of packed vectors: about what the
# caches hold, so that they are used while they are there, and long enough that a pass over the output weighs nothing.
EXPANDED_BYTES = 16 * 2**20

# Rows that exist already go into one pass while they fit what the core keeps of touched memory from call to call, or so
# many terms: fresh pages cost more than another pass over the output, unless few terms share it.
ROWS_BYTES = 64 * 2**20
ROWS_TERMS = 16


@dataclass(frozen=True)
class BlockPlan:
    """How one block is computed, and what that costs."""

    _block: LoweredBlock = field(repr=False)
    _symmetric: bool
    _kernels: int

    @property
    def name(self) -> str:
        """Of the block."""
        return self._block.name

    @property
    def strategy(self) -> str:
        """How it is computed.

        "hadamard": the entrywise product of two Grams; "rows": one Gram of explicit rows; "expand": gradients written
        out in pieces while they are packed, and Grams of those; "pairs": two Grams over all pairs of positions.
        """
        return self._block.strategy

    @property
    def terms(self) -> int:
        """Parts in which it is added to the kernel."""
        return len(self._block.terms)

    @property
    def cost(self) -> Cost:
        """What is counted, from which times are predicted."""
        return count_cost(self._block, symmetric=self._symmetric, kernels=self._kernels)

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
        Of the matrix computed, or (C, rows, columns) of the matrices of C outputs.
    dtype : numpy.dtype
    output_bytes, workspace_bytes : int
        The matrix itself (0 if the caller gave it), and everything else at its peak.
    passes : tuple of int
        Numbers of the blocks' terms, in their order, that go into each pass over the output.
    memory_limit : int
        Bytes allowed.
    threads : int
        0 on a GPU.
    """

    blocks: tuple[BlockPlan, ...]
    shape: tuple[int, ...]
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

        Raises
        ------
        BackendError
            On a GPU, whose rates are not measured.
        """
        rates = self._rates()
        return sum(self.block_seconds) + pass_seconds(self.shape, self.dtype.itemsize, len(self.passes), rates)

    @property
    def block_seconds(self) -> tuple[float, ...]:
        """Predicted time of each block; what is left of `seconds` goes into the output and the calls."""
        rates = self._rates()
        return tuple(block.cost.seconds(rates) for block in self.blocks)

    def _rates(self) -> Calibration:
        if not self.threads:
            raise BackendError("times are predicted on the CPU only: rates of GPUs are not measured")
        return calibration(self.dtype.name, self.threads)

    def __str__(self) -> str:
        width = max(len("block"), *(len(block.name) for block in self.blocks))
        seconds = [*self.block_seconds, self.seconds] if self.threads else []
        ms = [f"{each * 1e3:>11.3f}" for each in seconds] or [""] * (len(self.blocks) + 1)
        heading = f"{'ms':>11}" if self.threads else ""
        lines = [f"{'block':<{width}}  {'strategy':<9} {'Gflop':>10} {'features':>10} {'terms':>6}{heading}"]
        lines += [
            f"{b.name:<{width}}  {b.strategy:<9} {b.flops / 1e9:>10.3f} {format_bytes(b.bytes):>10} {b.terms:>6}{time}"
            for b, time in zip(self.blocks, ms[:-1], strict=True)
        ]
        lines.append(f"{'total':<{width}}  {'':<9} {self.flops / 1e9:>10.3f} {'':>17}{ms[-1]}".rstrip())
        size = " x ".join(map(str, self.shape))
        lines.append(
            f"kernel {size}: {format_bytes(self.output_bytes)} output in {len(self.passes)} pass(es), "
            f"{format_bytes(self.workspace_bytes)} workspace of {format_bytes(self.memory_limit)} allowed, "
            + (f"{self.threads} thread(s)" if self.threads else "on a GPU")
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
    groups = [list(same) for _, same in itertools.groupby(terms, _kind)]
    needs = [_workspace(problem, group, threads) for group in groups]
    minimum = max(need.one_term for need in needs)
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
    passes, workspace = [], 0
    for group, need in zip(groups, needs, strict=True):
        for count, full in _passes(problem, group, need, allowed, threads):
            passes.append(count)
            workspace = max(workspace, min(allowed, full))
    return Plan(
        tuple(BlockPlan(block, problem.symmetric, problem.kernels) for block in problem.blocks),
        problem.out_shape,
        problem.dtype,
        output_bytes,
        workspace + problem.copied_bytes,
        tuple(passes),
        memory_limit,
        threads,
    )


def _workspace(problem: Problem, terms: Sequence[GramTerm], threads: int) -> native.GramWorkspace:
    return native.gram_workspace(
        terms, problem.out_shape, symmetric=problem.symmetric, threads=threads, precision=problem.precision
    )


def _kind(term: GramTerm) -> tuple[int, ...] | bool:
    """Return what terms of one pass have in common: whether they are written out, or their positions."""
    left, right = term.first
    if isinstance(left, OuterProductRows):
        return True
    return tuple(side.shape[2] for side in (left, right) if side is not None and len(side.shape) == 4)


def _passes(
    problem: Problem, terms: Sequence[GramTerm], need: native.GramWorkspace, allowed: int, threads: int
) -> Iterator[tuple[int, int]]:
    """Yield how many terms of one kind go into each pass, in their order, as many as fit, and the workspace it uses."""
    left = terms[0].first.left
    # A GPU's caches are no place for them: its Gram divides terms itself.
    written_out = isinstance(left, OuterProductRows) and not is_cupy(left.activations)

    rows = all(term.second is None for term in terms) and not written_out and not is_cupy(left)
    most = max(ROWS_BYTES, ROWS_TERMS * need.one_term) if rows else allowed

    def fits(need: native.GramWorkspace) -> bool:
        if rows:
            return need.minimum <= allowed and need.full <= most
        # With less than all the workspace that helps, vectors would be written out several times.
        return need.full <= min(allowed, EXPANDED_BYTES) if written_out else need.minimum <= allowed

    begin = 0
    while begin < len(terms):
        end = len(terms)
        part = need if begin == 0 else _workspace(problem, terms[begin:end], threads)
        while end - begin > 1 and not fits(part):
            end = begin + (end - begin + 1) // 2
            part = _workspace(problem, terms[begin:end], threads)
        yield end - begin, part.full
        begin = end
