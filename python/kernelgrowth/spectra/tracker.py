"""`EigenTracker`: the top eigenpairs of a kernel that changes, each solved from the one before."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kernelgrowth._backend.arrays import FloatArray, array_namespace, as_array, place, to_numpy
from kernelgrowth._backend.checks import check_integer, check_number
from kernelgrowth._backend.eigen import block_krylov
from kernelgrowth._backend.errors import NotConvergedWarning
from kernelgrowth.spectra.missed import draw_probes
from kernelgrowth.spectra.operand import Operand, as_operand, random_block
from kernelgrowth.spectra.result import EigenResult
from kernelgrowth.spectra.solve import is_dense, krylov_result, raise_interruption, solve_dense
from kernelgrowth.spectra.symmetry import symmetry_tolerance

__all__ = ["EigenTracker", "TrackedEigenResult"]

# Up to this many rows LAPACK is about as fast as an iteration to a moderate tolerance.
_DENSE_ROWS, _DENSE_BLOCKS = 64, 3
# Vectors followed beside the k, which keep a flat top of the spectrum together, and fresh random ones: what turned into
# view since is found through them.
_MOST_FOLLOWED, _FRESH = 20, 8
# Two eigenvectors continue each other where their squared cosine is above this: at most one can.
_CONTINUES = 0.5


@dataclass(frozen=True, eq=False)
class TrackedEigenResult(EigenResult):
    """Top eigenpairs of a kernel beside those of the update before.

    With ``K_k = V Λ Vᵀ`` the part of a kernel that its top eigenpairs make up:

    Attributes
    ----------
    growth : float
        ``||K_k||_F`` over that of the update before; NaN at the first one, or where that was zero.
    rotation : float
        ``1 - <K_k, K_k before> / (||K_k||_F ||K_k before||_F)``: 0 where the kernel has only grown, 1 where nothing is
        left of its directions. NaN at the first update, and where a kernel is zero.
    tracks : (k,) integer array
        Which series each pair continues: two pairs of successive updates have the same number where the squared cosine
        of their vectors is above a half, whatever places in the order of eigenvalues they hold. A pair that continues
        none has a new number. Vectors that continue one have its sign.
    """

    growth: float
    rotation: float
    tracks: npt.NDArray[np.int64]


class EigenTracker:
    """Follow the top eigenpairs of a kernel through training, starting from those of the update before.

    The first block of each solve is the vectors of the update before, those that follow them in the spectrum, and a few
    fresh random ones. A kernel that has only grown is done after one product with that block; one that has turned takes
    as many as it needs. What enters the top from outside is found through the random vectors, and ``missed_bound`` says
    what may still be left out.

    Parameters
    ----------
    k : int
        Eigenpairs, at least 1; as many as the kernel has rows where that is less.
    tol : float
        Residuals are at most ``tol * λ_1``, and errors of eigenvalues about ``(tol λ_1)² / gap``.
    max_passes : int
        Products after which an update stops, with a `NotConvergedWarning`.
    seed : int
        Of the random vectors. The same updates with the same seed give the same bits.

    Notes
    -----
    Stored kernels of up to 64 rows, or three times the vectors of a block, are solved by LAPACK. Cost of an update
    otherwise: ``passes`` products with at most ``2 k + 8`` vectors.
    """

    def __init__(self, k: int, *, tol: float = 1e-3, max_passes: int = 100, seed: int = 0) -> None:
        self.k = check_integer("k", k, minimum=1)
        self.tol = check_number("tol", tol, minimum=0.0)
        self._max_passes = check_integer("max_passes", max_passes, minimum=1)
        self._seed = check_integer("seed", seed, minimum=0)
        self._updates = 0
        self._vectors: FloatArray | None = None
        self._block: FloatArray | None = None
        self._values: npt.NDArray[np.float64] = np.empty(0)
        self._tracks: npt.NDArray[np.int64] = np.empty(0, np.int64)
        self._next_track = 0

    def update(self, K: Any) -> TrackedEigenResult:
        """Return the top eigenpairs of the kernel as it is now.

        Parameters
        ----------
        K : (n, n) array, NTKOperator, or linear operator
            As `eigsh` takes it; n and the dtype are those of the update before.

        Warns
        -----
        NotConvergedWarning
            If `max_passes` ended the iteration; the result is its attribute ``partial``, and the tracker has moved on.

        Raises
        ------
        ValueError
            If K is not square, symmetric and finite, or of another size or dtype than before. The tracker stays as it
            was then.
        SolveInterrupted
            On Ctrl-C, with the result so far; the tracker stays as it was.
        """
        operand = as_operand("K", K)
        self._check_same_kind(operand)
        k = min(self.k, operand.n)
        if is_dense(operand, k, _DENSE_ROWS, _DENSE_BLOCKS):
            solved = solve_dense(operand, k, self.tol)
            block = as_array("eigenvectors", solved.eigenvectors)
        else:
            solved, block = self._iterate(operand, k)
        result = self._matched(solved, operand)
        self._block = block.copy()
        if not bool(result.converged.all()):
            message = f"EigenTracker after {result.passes} passes: residuals above the tolerance; raise max_passes"
            warnings.warn(NotConvergedWarning(f"{message} or tol", partial=result), stacklevel=2)
        return result

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs to continue with the same bits: arrays and numbers."""
        if self._vectors is None:
            return {}
        return {
            "vectors": to_numpy(self._vectors),
            "block": to_numpy(self._block),
            "values": self._values,
            "tracks": self._tracks,
            "next_track": self._next_track,
            "updates": self._updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` of a tracker with the same arguments returned."""
        if not state:
            self._vectors, self._block, self._updates, self._next_track = None, None, 0, 0
            return
        self._vectors, self._block = np.asarray(state["vectors"]), np.asarray(state["block"])
        self._values = np.asarray(state["values"], np.float64)
        self._tracks = np.asarray(state["tracks"], np.int64)
        self._next_track, self._updates = int(state["next_track"]), int(state["updates"])

    def _check_same_kind(self, operand: Operand) -> None:
        if self._vectors is None:
            return
        if len(self._vectors) != operand.n:
            raise ValueError(
                f"K must have the {len(self._vectors)} rows of the update before, got {operand.n}: "
                "use another EigenTracker for another probe set"
            )
        if self._vectors.dtype != operand.dtype:
            raise ValueError(f"K must be {self._vectors.dtype} like the update before, got {operand.dtype}")

    def _iterate(self, operand: Operand, k: int) -> tuple[EigenResult, FloatArray]:
        """Return the solution, and the vectors that the next one starts from."""
        rng = np.random.default_rng([self._seed, self._updates])
        width = min(operand.n, k + min(k, _MOST_FOLLOWED) + _FRESH)
        known = place(np.empty((operand.n, 0), operand.dtype) if self._block is None else self._block, operand.gpu)
        known = known[:, : max(k, width - _FRESH)]
        fresh = random_block(rng, operand, width - known.shape[1])
        start = array_namespace(fresh).concatenate([known, fresh], axis=1)
        pairs = block_krylov(
            operand.product,
            start,
            probes=draw_probes(operand, rng),
            wanted=max(k, width - _FRESH),
            required=k,
            width=width,
            tol=self.tol,
            max_passes=self._max_passes,
            symmetry_tolerance=symmetry_tolerance(operand.dtype),
            pass_flops=operand.pass_flops * width,
            seed=self._seed,
        )
        result = krylov_result(pairs.leading(k), operand, self.tol)
        raise_interruption(pairs, result)
        return result, pairs.vectors

    def _matched(self, solved: EigenResult, operand: Operand) -> TrackedEigenResult:
        """Return a result with signs and tracks that continue those before, and move on to it."""
        values = to_numpy(as_array("eigenvalues", solved.eigenvalues)).astype(np.float64)
        vectors = as_array("eigenvectors", solved.eigenvectors)
        k = len(values)
        tracks = np.full(k, -1, np.int64)
        growth = rotation = math.nan
        if self._vectors is not None:
            before = place(self._vectors, operand.gpu)
            cosines = to_numpy(before.astype(np.float64).T @ vectors.astype(np.float64))
            growth, rotation = _growth_and_rotation(self._values, values, cosines)
            nearest = np.abs(cosines).argmax(axis=0)
            closest = cosines[nearest, np.arange(k)]
            continued = closest**2 > _CONTINUES
            tracks[continued] = self._tracks[nearest[continued]]
            vectors = vectors * place(np.where(continued & (closest < 0), -1, 1).astype(operand.dtype), operand.gpu)
        new = tracks < 0
        tracks[new] = self._next_track + np.arange(np.count_nonzero(new))
        self._next_track += int(np.count_nonzero(new))
        # The caller may write to what is returned.
        self._vectors, self._values, self._tracks = vectors.copy(), values, tracks.copy()
        self._updates += 1
        return TrackedEigenResult(
            eigenvalues=solved.eigenvalues,
            eigenvectors=operand.result(vectors),
            residuals=solved.residuals,
            converged=solved.converged,
            passes=solved.passes,
            missed_bound=solved.missed_bound,
            growth=growth,
            rotation=rotation,
            tracks=tracks,
        )


def _growth_and_rotation(before: FloatArray, now: FloatArray, cosines: FloatArray) -> tuple[float, float]:
    """Return the ratio of norms of the kernels that these pairs make up, and 1 - their cosine."""
    largest_before, largest_now = float(np.abs(before).max()), float(np.abs(now).max())
    if largest_before == 0.0:
        return math.nan, math.nan
    ratio = largest_now / largest_before
    if largest_now == 0.0:
        return 0.0, math.nan
    # Of order one, so that squares of tiny kernels do not vanish.
    old, new = before / largest_before, now / largest_now
    norms = float(np.linalg.norm(old)), float(np.linalg.norm(new))
    cosine = float(old @ cosines**2 @ new) / (norms[0] * norms[1])
    return ratio * norms[1] / norms[0], 1.0 - min(1.0, max(-1.0, cosine))
