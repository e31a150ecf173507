"""Carry a plan out."""

from __future__ import annotations

from kernelgrowth._backend import native
from kernelgrowth._backend.arrays import FloatArray
from kernelgrowth.kernels.lowering import Expansion, FusedTerm, Problem
from kernelgrowth.kernels.plan import Plan

__all__ = ["evaluate"]


def evaluate(problem: Problem, plan: Plan, out: FloatArray) -> None:
    """Write the kernel of `problem` to `out`, a matrix with contiguous rows: fused terms at once, then expansions."""
    fused = [block.term for block in problem.blocks if isinstance(block, FusedTerm)]
    written = False
    if fused:
        native.gram(fused, out, symmetric=problem.symmetric, workspace=plan.workspace_bytes, threads=plan.threads)
        written = True
    for block, how in zip(problem.blocks, plan.blocks, strict=True):
        if isinstance(block, Expansion):
            for term in block.terms(how.weight_rows):
                native.gram([term], out, symmetric=problem.symmetric, accumulate=written, threads=plan.threads)
                written = True
