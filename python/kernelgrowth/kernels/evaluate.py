"""Carry a plan out."""

from __future__ import annotations

import numpy as np

from kernelgrowth._backend import native
from kernelgrowth._backend.arrays import FloatArray
from kernelgrowth.kernels.lowering import Problem
from kernelgrowth.kernels.plan import Plan

__all__ = ["check_range", "check_values", "evaluate", "is_finite"]


def evaluate(problem: Problem, plan: Plan, out: FloatArray) -> None:
    """Write the kernel of `problem` to `out`, of its `out_shape` and with contiguous rows.

    Terms are added in one fixed order, so the bits do not depend on how the plan divides them among passes.
    """
    terms = [term for block in problem.blocks for term in block.terms]
    done = 0
    for count in plan.passes:
        native.gram(
            terms[done : done + count],
            out,
            symmetric=problem.symmetric,
            accumulate=done > 0,
            workspace=plan.memory_limit - plan.output_bytes - problem.copied_bytes,
            threads=plan.threads,
            precision=problem.precision,
        )
        done += count


def check_range(problem: Problem, out: FloatArray) -> None:
    """Refuse a kernel that left the range of its dtype; on the diagonal it is largest."""
    check_values("kernel", out.diagonal(axis1=-2, axis2=-1) if problem.symmetric else out)


def check_values(what: str, values: FloatArray) -> None:
    """Refuse what is computed from features unless all values are finite."""
    if not is_finite(values):
        raise ValueError(
            f"feats give a {what} that {values.dtype} cannot hold (or hold values that are not finite): rescale them, "
            "or compute in float64"
        )


def is_finite(array: FloatArray) -> bool:
    """Whether all values are; nothing is allocated if their sum is."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(array.sum(dtype=np.float64)) or np.isfinite(array).all())
