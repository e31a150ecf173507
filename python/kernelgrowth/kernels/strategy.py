"""Which of two ways a weight with positions is computed, by counting the work of both.

Work is counted in multiply-adds of float32 at the machine's ceiling. What is no multiply-add counts as the number of
them that takes as long: fitted on a Zen 4 with AVX-512 to 1200 random shapes (`benchmarks/strategies.py`), of which it
picks the faster way in 96 %. Only shapes are counted, so that the choice, on which an entry's rounding depends, is the
same for any memory and number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Shape", "choose"]

# Beyond it, a tile's products of all position pairs leave the cache.
_MOST_POSITIONS = 256


@dataclass(frozen=True)
class Shape:
    """A weight's gradients on the two sides of a Gram.

    Attributes
    ----------
    examples, positions : tuple of int
        On the left and on the right.
    outputs : int
        Outputs that are told apart.
    folded : int
        Outputs whose gradients follow one another in one row, as for a trace.
    columns, rows : int
        d_in (with a bias' column) and d_out.
    itemsize : int
    """

    examples: tuple[int, int]
    positions: tuple[int, int]
    outputs: int
    folded: int
    columns: int
    rows: int
    itemsize: int

    # Both ways are counted for a rectangular kernel. A symmetric one takes half of each, so that the choice is the same
    # for a kernel of a probe set with itself, given twice or not.

    @property
    def _vectors(self) -> int:
        """Backprops that are packed."""
        return sum(n * t for n, t in zip(self.examples, self.positions, strict=True)) * self.outputs * self.folded

    def expansion_work(self) -> float:
        """Return the work of writing the gradients out and of their Gram."""
        n, m = (count * self.outputs for count in self.examples)
        lanes = 64 // self.itemsize
        padded = -(-self.columns // lanes) * lanes * -(-self.rows // 8) * 8
        # Of the tiles on the diagonal, a part is computed in vain.
        gram = 1.13 * (n * m + 24 * (n + m)) * self.columns * self.rows * self.folded
        return self.itemsize / 4 * (gram + 1.5 * self._vectors * padded + 42 * n * m)

    def position_pairs_work(self) -> float:
        """Return the work of the sum over all pairs of positions."""
        size = self.itemsize / 4
        (n, m), (t, u) = self.examples, self.positions
        products = 1.13 * size * n * m * t * u * (self.columns + self.outputs**2 * self.rows * self.folded)
        sums = n * m * self.outputs**2 * (t * u * (20 + 15 * size) + 85 * (t + u) + 985)
        packing = 14 * size * self._vectors * (self.columns / (self.outputs * self.folded) + self.rows)
        return products + sums + packing


def choose(shape: Shape) -> str:
    """Return "pairs" or "expand", whichever counts less work."""
    if max(shape.positions) > _MOST_POSITIONS:
        return "expand"
    return "pairs" if shape.position_pairs_work() < shape.expansion_work() else "expand"
