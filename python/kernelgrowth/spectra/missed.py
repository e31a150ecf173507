"""A bound on the eigenvalues that an eigensolver may have left out.

Let V be the vectors returned, S = VᵀAV, and R = AV - VS their residuals. In the basis of V and its complement A is
``[[S, Rᵀ], [R, A']]`` with A' = A projected on the complement, so by Weyl's inequality its eigenvalues are those of S
and those of A', up to ``||R||``; what was left out belongs to A' and is at most ``λ_max(A') + ||R||``.

The solver's basis Q holds V and has seen more. The complement of V is the rest of Q, where the largest Ritz value is θ,
and the complement of Q, where A is A'' with ``||A''|| <= f``; the two are coupled by the rest of the images,
``c = ||AQ - Q QᵀAQ||``. A symmetric matrix of two by two blocks is at most the matrix of the blocks' norms, so
``λ_max(A') <= (θ + f)/2 + sqrt(((θ - f)/2)² + c²)``.

f is the smallest of what is known:

- ``||A''||_F`` where ``||A||_F`` is: ``||A||_F² = ||QᵀAQ||_F² + 2 ||AQ - Q QᵀAQ||_F² + ||A''||_F²``.
- ``tr A'' = tr A - tr QᵀAQ`` where the trace is, and A is positive semi-definite.
- From r normally distributed probes g that were drawn apart from everything else: A'' is then fixed, each
  ``A''g`` is at least ``||A''||`` times a standard normal number, so ``Σ ||A''g||² >= ||A''||² χ²_r``, and with
  probability 0.99 ``||A''||² <= Σ ||A''g||² / q``, q the 0.01-quantile of χ²_r.

The first two are certain. Differences of nearly equal sums have lost the digits that products rounded away, which is
added: in float32 f is not below about 0.006 ``||A||_F`` by the first, 3e-5 of the trace by the second.
"""

from __future__ import annotations

import math

import numpy as np

from kernelgrowth._backend.arrays import FloatArray
from kernelgrowth._backend.eigen import KrylovPairs
from kernelgrowth.spectra.operand import Operand, random_block
from kernelgrowth.spectra.probed import norm_from_probes

__all__ = ["draw_probes", "missed_bound"]

_PROBES = 8
# Rounding of sums over products, relative to the whole, in units of the dtype's eps. Products sum runs of 256 in the
# dtype, and equal terms round in one direction: λ_1 of constant matrices was up to 77 eps off, so that the bound needed
# 180 eps to hold, against 3 for random matrices.
_ROUNDING = 256.0


def missed_bound(pairs: KrylovPairs, operand: Operand) -> float:
    """Return an upper bound, at probability 0.99 or better, on any eigenvalue that `pairs` leave out, not scaled.

    It is -inf where nothing is left out, and inf where nothing is known of the operator outside the basis.
    """
    n, k = pairs.vectors.shape
    if k == n:
        return -math.inf
    rounding = _ROUNDING * float(np.finfo(operand.dtype).eps)
    largest, coupling = pairs.next_value, 0.0
    if not pairs.exhausted:
        outside = _outside(pairs, operand, rounding)
        if not math.isfinite(outside):
            return math.inf
        coupling = pairs.rest_norm
        if not math.isfinite(largest):
            largest = outside
        largest = (largest + outside) / 2 + math.hypot((largest - outside) / 2, coupling)
    bound = largest + float(np.linalg.norm(pairs.residuals)) + rounding * pairs.scale
    return _scaled(bound, pairs.exponent)


def _outside(pairs: KrylovPairs, operand: Operand, rounding: float) -> float:
    """Return a bound on the norm of the scaled operator outside the basis."""
    bounds = [math.inf]
    if not math.isnan(operand.squared_norm):
        whole = _scaled(operand.squared_norm, -2 * pairs.exponent)
        rest = whole - pairs.projected_squares - 2 * pairs.rest_squares
        bounds.append(math.sqrt(max(0.0, rest) + rounding * whole))
    if operand.semidefinite and not math.isnan(operand.trace):
        trace = _scaled(operand.trace, -pairs.exponent)
        bounds.append(max(0.0, trace - pairs.projected_trace) + rounding * trace)
    if not math.isnan(pairs.probe_squares):
        bounds.append(norm_from_probes(pairs.probe_squares, _PROBES))
    return min(bounds)


def _scaled(value: float, exponent: int) -> float:
    with np.errstate(over="ignore", under="ignore"):
        return float(np.ldexp(value, exponent))


def draw_probes(operand: Operand, rng: np.random.Generator) -> FloatArray | None:
    """Return normally distributed vectors where they are needed: where ``||A||_F`` is not known."""
    return random_block(rng, operand, _PROBES) if math.isnan(operand.squared_norm) else None
