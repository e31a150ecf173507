"""Carry a plan out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kernelgrowth._backend import native
from kernelgrowth._backend.arrays import FloatArray
from kernelgrowth.kernels.lowering import Expansion, FusedTerm, Problem
from kernelgrowth.kernels.plan import Plan

__all__ = ["check_range", "evaluate"]


def evaluate(problem: Problem, plan: Plan, out: FloatArray) -> None:
    """Write the kernel of `problem` to `out`, a matrix with contiguous rows: expansions, then the fused terms.

    Terms are added in one fixed order, so the bits do not depend on how the plan divides them among calls.
    """
    allowed = plan.memory_limit - plan.output_bytes - problem.copied_bytes
    written = False

    def add(terms: Sequence[native.GramTerm], workspace: int) -> None:
        nonlocal written
        native.gram(
            terms,
            out,
            symmetric=problem.symmetric,
            accumulate=written,
            workspace=workspace,
            threads=plan.threads,
        )
        written = True

    for block, how in zip(problem.blocks, plan.blocks, strict=True):
        if isinstance(block, Expansion):
            pieces = block.pieces
            for begin in range(0, len(pieces), how.together):
                terms = [block.term(piece) for piece in pieces[begin : begin + how.together]]
                expanded = sum(side.nbytes for term in terms for side in term.first if side is not None)
                add(terms, allowed - expanded)
                del terms  # or they would live on while the next ones are written out
    # Last, because the core keeps the workspace of a call for the next one: nothing but it is alive here.
    fused = [term for block in problem.blocks if isinstance(block, FusedTerm) for term in block.terms]
    for count in plan.fused_batches:
        add(fused[:count], allowed)
        fused = fused[count:]


def check_range(problem: Problem, out: FloatArray) -> None:
    """Refuse a kernel that left the range of its dtype; on the diagonal it is largest."""
    values = out.diagonal() if problem.symmetric else out
    with np.errstate(over="ignore", invalid="ignore"):
        total = values.sum(dtype=np.float64)
    if not np.isfinite(total) and not np.isfinite(values).all():
        raise ValueError(
            f"feats give a kernel that {problem.dtype} cannot hold (or hold values that are not finite): rescale them, "
            "or compute in float64"
        )
