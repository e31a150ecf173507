"""Gradient features that need not be in memory: produced chunk by chunk, whenever a chunk is needed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kernelgrowth._backend.arrays import is_cupy
from kernelgrowth._backend.checks import check_integer
from kernelgrowth._backend.errors import BackendError
from kernelgrowth.gradients.features import GradientFeatures
from kernelgrowth.gradients.identity import arrays_of, checksum, layout
from kernelgrowth.gradients.network import HasGradientFactors, from_net

__all__ = ["ChunkedFeatures"]


class ChunkedFeatures:
    """All gradients ∂f/∂θ of a probe set too large for memory, produced in chunks of examples.

    Parameters
    ----------
    num_examples : int
        N.
    produce : callable
        `produce(start, stop)` returns the `GradientFeatures` of the examples `start` to `stop`, always the same ones
        with the same numbers: called again for a chunk it must repeat itself to the bit, also in another process when
        a kernel is resumed there. `start` is a multiple of `chunk_size`, and only the last chunk is shorter.
    chunk_size : int
        Examples in a chunk. At most two chunks are held at a time.

    Attributes
    ----------
    num_examples, chunk_size, num_chunks : int
    num_outputs, num_parameters : int
    dtype : numpy.dtype
    chunk_bytes : int
        Bytes of the first chunk, which is the largest.
    layout : list
        What every chunk must be like: the name, kind, shapes, bias, scale and dtype of each block.

    Raises
    ------
    TypeError
        If `produce` is no callable, or returns anything but `GradientFeatures`.
    ValueError
        If a chunk has other blocks, outputs or shapes than the first one, or another number of examples than asked
        for; or if a chunk produced again has other numbers than before: a loader that shuffles, dropout, random
        augmentation, or parameters that changed would else give a matrix that is no kernel.
    BackendError
        If chunks are CuPy arrays.

    Notes
    -----
    The first chunk is produced at once, to learn what the others must be like. A symmetric kernel then takes about
    M²/2 productions for M chunks, a rectangular one M1·M2: the larger the chunks, the fewer. Memory that `produce`
    itself takes is not counted by any `memory_limit`. Each chunk is remembered as a CRC-32 of its numbers.

    Examples
    --------
    >>> feats = ChunkedFeatures(len(x), lambda start, stop: gradients_of(model, x[start:stop]), chunk_size=1000)
    >>> empirical_ntk(feats, outputs="trace", out=np.lib.format.open_memmap("K.npy", "w+", np.float32, (N, N)))
    """

    def __init__(self, num_examples: int, produce: Callable[[int, int], GradientFeatures], *, chunk_size: int) -> None:
        self.num_examples = check_integer("num_examples", num_examples, minimum=1)
        self.chunk_size = min(check_integer("chunk_size", chunk_size, minimum=1), self.num_examples)
        if not callable(produce):
            raise TypeError(f"produce must be callable with (start, stop), got {type(produce).__name__}")
        self._produce = produce
        self._checksums: dict[int, int] = {}
        first = self._produced(0)
        self.layout = layout(first)
        self.num_outputs = first.num_outputs
        self.num_parameters = first.num_parameters
        self.dtype = first.dtype
        self.chunk_bytes = sum(array.nbytes for array in arrays_of(first))
        self._checksums[0] = checksum(first)

    @classmethod
    def from_net(
        cls, net: HasGradientFactors, params: Mapping[str, Any], x: Any, *, chunk_size: int
    ) -> ChunkedFeatures:
        """Return the gradients of `net` at the examples `x`, computed anew for each chunk.

        Parameters
        ----------
        net : object with `gradient_factors(params, x)`
            Any network of `kernelgrowth.nets`.
        params : mapping of str to array
            Its parameters; not to be changed while the features are in use.
        x : array_like, shape (N, ...)
            Examples, of the parameters' dtype; may be a `numpy.memmap`.
        chunk_size : int
            Examples in a chunk.

        Notes
        -----
        A forward pass of another number of examples may round differently, so these numbers are those of
        `from_net(net, params, x)` up to rounding.
        """
        if not hasattr(x, "shape"):
            x = np.asarray(x)
        return cls(len(x), lambda start, stop: from_net(net, params, x[start:stop]), chunk_size=chunk_size)

    @property
    def num_chunks(self) -> int:
        """Chunks that the examples are divided into."""
        return -(-self.num_examples // self.chunk_size)

    def bounds(self, index: int) -> tuple[int, int]:
        """Return the first example of a chunk and the first after it."""
        return index * self.chunk_size, min((index + 1) * self.chunk_size, self.num_examples)

    def chunk(self, index: int) -> GradientFeatures:
        """Produce a chunk, checked against the first one and against what it was before."""
        start, stop = self.bounds(index)
        feats = self._produced(index)
        if (found := layout(feats)) != self.layout:
            unlike = next(pair for pair in itertools.zip_longest(found, self.layout) if pair[0] != pair[1])
            raise ValueError(f"produce({start}, {stop}) returned the block {unlike[0]}, the first chunk {unlike[1]}")
        value = checksum(feats)
        if self._checksums.setdefault(index, value) != value:
            raise ValueError(
                f"produce({start}, {stop}) returned other numbers than before: the same examples must always give the "
                "same gradients to the bit (does a loader shuffle, is there dropout, random augmentation or a "
                "non-deterministic operation, or did the parameters change?)"
            )
        return feats

    def is_known(self, index: int) -> bool:
        """Whether a chunk was produced before."""
        return index in self._checksums

    def checksum(self, index: int) -> int:
        """Return the checksum of a chunk, which is produced if it never was."""
        if index not in self._checksums:
            self.chunk(index)
        return self._checksums[index]

    def check_unchanged(self, index: int, held: GradientFeatures, newer: GradientFeatures) -> None:
        """Refuse if producing the chunk `newer` overwrote the chunk `held`, as a reused buffer would."""
        mine, others = arrays_of(held), arrays_of(newer)
        if any(np.may_share_memory(a, b) for a in mine for b in others) and checksum(held) != self._checksums[index]:
            start, stop = self.bounds(index)
            raise ValueError(
                f"produce overwrote the features of examples {start} to {stop} while they were in use: "
                "every chunk must be returned in memory of its own"
            )

    def _produced(self, index: int) -> GradientFeatures:
        start, stop = self.bounds(index)
        feats = self._produce(start, stop)
        if not isinstance(feats, GradientFeatures):
            raise TypeError(f"produce({start}, {stop}) must return GradientFeatures, got {type(feats).__name__}")
        if feats.num_examples != stop - start:
            raise ValueError(
                f"produce({start}, {stop}) must return the features of {stop - start} examples, "
                f"got N = {feats.num_examples}"
            )
        if any(is_cupy(array) for array in arrays_of(feats)):
            raise BackendError("produce returned CuPy arrays: their kernels need CUDA kernels, which this build lacks")
        return feats

    def __repr__(self) -> str:
        return (
            f"ChunkedFeatures(N={self.num_examples}, C={self.num_outputs}, P={self.num_parameters}, "
            f"chunk_size={self.chunk_size}, {self.dtype}): {[block[0] for block in self.layout]}"
        )
