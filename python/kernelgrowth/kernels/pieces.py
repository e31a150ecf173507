"""Pieces of a kernel, planned and computed as parts of the whole; on the CPU one after another."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from kernelgrowth._backend.arrays import FloatArray
from kernelgrowth.gradients.embeddings import beside_embeddings, resolved
from kernelgrowth.gradients.features import GradientFeatures
from kernelgrowth.kernels.evaluate import check_range, evaluate
from kernelgrowth.kernels.lowering import Preconditioner, Problem, lower
from kernelgrowth.kernels.plan import Plan, make_plan

__all__ = ["PieceRunner", "Pieces", "PiecesOnCpu", "Range"]

Range = tuple[int, int]


@dataclass(frozen=True)
class Pieces:
    """What all pieces of a kernel have in common.

    Attributes
    ----------
    outputs, threads
        As in `empirical_ntk`.
    roots : mapping of str to tuple of ndarray
        Square roots of the preconditioner, on the host.
    examples : tuple of int
        Of the whole kernel's sides.
    precision : str
        Of `Problem`.
    """

    outputs: str
    roots: Preconditioner
    examples: tuple[int, int]
    precision: str
    threads: int

    def plan(
        self,
        feats: GradientFeatures,
        feats2: GradientFeatures | None,
        roots: Preconditioner,
        *,
        held: int,
        limit: int,
    ) -> tuple[Problem, Plan]:
        """Plan a piece within `limit` bytes of which `held` are taken; `roots` lie where the features do."""
        sides, roots, used = resolved((feats, feats2), roots, limit)
        left = limit - used
        with beside_embeddings(used, limit):
            problem = lower(*sides, self.outputs, roots, left, examples=self.examples, precision=self.precision)
            return problem, make_plan(problem, output_bytes=held, memory_limit=left, threads=self.threads)


class PieceRunner(Protocol):
    """Where pieces are computed.

    Attributes
    ----------
    workers : int
        How many pieces are computed at once.
    tiles : int
        How many tiles may be begun and not yet written.
    """

    workers: int
    tiles: int

    def check(self, feats: GradientFeatures, feats2: GradientFeatures | None, held: int) -> None:
        """Refuse pieces of this size unless they fit, beside `held` bytes of the host's; called before `running`."""

    def running(self) -> AbstractContextManager[object]:
        """Return a context in which pieces can be begun; what was begun has ended when it is left."""

    def begin(
        self, rows: Range, feats: GradientFeatures, feats2: GradientFeatures | None, target: FloatArray, held: int
    ) -> Callable[[], object]:
        """Begin to compute a piece into `target` (kernels, rows, columns); return what waits for it, or raises.

        `rows` are the examples of the left side, which tell whether it was seen before.
        """

    def settle(self) -> None:
        """Wait until no features of pieces that were begun are needed any more."""


class PiecesOnCpu:
    """Pieces computed on the CPU when they are begun, within `limit` bytes."""

    workers = tiles = 1

    def __init__(self, pieces: Pieces, limit: int) -> None:
        self._pieces, self._limit = pieces, limit

    def check(self, feats: GradientFeatures, feats2: GradientFeatures | None, held: int) -> None:
        """See `PieceRunner`."""
        self._pieces.plan(feats, feats2, self._pieces.roots, held=held, limit=self._limit)

    def running(self) -> AbstractContextManager[object]:
        """See `PieceRunner`."""
        return nullcontext()

    def begin(
        self, rows: Range, feats: GradientFeatures, feats2: GradientFeatures | None, target: FloatArray, held: int
    ) -> Callable[[], object]:
        """See `PieceRunner`."""
        problem, plan = self._pieces.plan(feats, feats2, self._pieces.roots, held=held, limit=self._limit)
        matrix = target if problem.kernels > 1 else target[0]
        evaluate(problem, plan, matrix)
        check_range(problem, matrix)
        return lambda: None

    def settle(self) -> None:
        """See `PieceRunner`."""
