"""The examples that a tile of a kernel needs: views of features in memory, or chunks that are produced and let go."""

from __future__ import annotations

from collections.abc import Callable

from kernelgrowth.gradients.chunked import ChunkedFeatures
from kernelgrowth.gradients.embeddings import knowing_indices
from kernelgrowth.gradients.features import GradientFeatures
from kernelgrowth.gradients.identity import checksum

__all__ = ["Examples", "Source"]

Source = GradientFeatures | ChunkedFeatures


class Examples:
    """Examples of two probe sets (or twice the same one), of which at most one chunk for each is held."""

    def __init__(self, rows: Source, columns: Source) -> None:
        first = _whole(rows)
        self._sources = (first, first if columns is rows else _whole(columns))
        self._held: dict[tuple[int, int], tuple[ChunkedFeatures, GradientFeatures]] = {}

    @property
    def held_bytes(self) -> int:
        """Bytes of the chunks that may be held at a time."""
        chunked = [(k, s) for k, s in enumerate(self._sources) if isinstance(s, ChunkedFeatures)]
        needed = {(id(s), k % s.num_chunks): s.chunk_bytes for k, s in chunked}
        return sum(needed.values())

    def head(self, side: int) -> GradientFeatures:
        """Return the first examples of a side: its first chunk, or all that are in memory."""
        source = self._sources[side]
        return source if isinstance(source, GradientFeatures) else self._chunk(source, 0)

    def at_hand(self) -> GradientFeatures:
        """Return examples that need not be produced, or else the first ones."""
        return next((feats for _, feats in self._held.values()), None) or self.head(0)

    def pair(
        self, rows: tuple[int, int], columns: tuple[int, int], let_go: Callable[[], None]
    ) -> tuple[GradientFeatures, GradientFeatures]:
        """Return a range of each side's examples, each within one chunk; what else was held is let go first.

        Before a chunk is produced, `let_go` must see to it that nobody uses others any more.
        """
        wanted = list(zip(self._sources, (rows, columns), strict=True))
        keys = {(id(s), begin // s.chunk_size) for s, (begin, _) in wanted if isinstance(s, ChunkedFeatures)}
        if not keys <= self._held.keys():
            let_go()
        for key in self._held.keys() - keys:
            del self._held[key]
        first, second = (self._part(source, *part) for source, part in wanted)
        return first, second

    def fingerprint(self, side: int) -> int:
        """Return a checksum of the first and last chunk, or of all features in memory."""
        source = self._sources[side]
        if isinstance(source, ChunkedFeatures):
            if not source.is_known(source.num_chunks - 1):
                self._held.clear()
            return source.checksum(0) ^ (source.checksum(source.num_chunks - 1) << 32)
        return checksum(source)

    def _part(self, source: Source, begin: int, end: int) -> GradientFeatures:
        if isinstance(source, GradientFeatures):
            return source.examples(begin, end)
        index = begin // source.chunk_size
        start, _ = source.bounds(index)
        return self._chunk(source, index).examples(begin - start, end - start)

    def _chunk(self, source: ChunkedFeatures, index: int) -> GradientFeatures:
        key = (id(source), index)
        if key not in self._held:
            chunk = source.chunk(index)
            for (_, other), (owner, held) in self._held.items():
                owner.check_unchanged(other, held, chunk)
            self._held[key] = (source, knowing_indices(chunk))
        return self._held[key][1]


def _whole(source: Source) -> Source:
    return knowing_indices(source) if isinstance(source, GradientFeatures) else source
