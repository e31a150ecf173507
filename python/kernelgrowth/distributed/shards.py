"""A part of the probe set on the worker that holds it, and what little the client learns of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kernelgrowth._backend.arrays import FloatArray, array_namespace, to_numpy
from kernelgrowth._backend.native import core_is_serial
from kernelgrowth.gradients.features import Block, Embedding, GradientFeatures, OuterProduct
from kernelgrowth.gradients.identity import array_checksum, arrays_of, layout

__all__ = [
    "Lent",
    "Settings",
    "Shard",
    "ShardFacts",
    "describe",
    "first_example",
    "lend",
    "on_threads",
    "prepared",
    "produce",
]


@dataclass(frozen=True)
class Shard:
    """The features of one part of the probe set, with a checksum that tells whether they were produced alike."""

    features: GradientFeatures
    checksum: int

    @property
    def nbytes(self) -> int:
        """Bytes of the features."""
        return sum(array.nbytes for array in arrays_of(self.features))

    def __sizeof__(self) -> int:
        # By this Dask decides where tasks run and when memory is short; it cannot look into features.
        return self.nbytes


class Lent(Shard):
    """A shard on its way to another worker: until then the same memory, which Dask must not count twice."""

    def __sizeof__(self) -> int:
        return 0


@dataclass(frozen=True)
class ShardFacts:
    """What the client knows of a shard: `occurring` are the indices looked up in each embedding, in order."""

    num_examples: int
    layout: list[list[Any]]
    nbytes: int
    checksum: int
    occurring: Mapping[str, npt.NDArray[np.int64]]


@dataclass(frozen=True)
class Settings:
    """What all tasks of an operator or a kernel have in common.

    Attributes
    ----------
    outputs : str
        As in `NTKOperator`.
    weights : mapping of str to tuple of ndarray
        The preconditioner by block, on the host; empty without one.
    occurring : mapping of str to ndarray
        By embedding, the indices that occur in any shard.
    num_threads : int
        Threads that a task takes.
    """

    outputs: str
    weights: Mapping[str, tuple[FloatArray, ...]]
    occurring: Mapping[str, npt.NDArray[np.int64]]
    num_threads: int

    def __sizeof__(self) -> int:
        known = sum(indices.nbytes for indices in self.occurring.values())
        return known + sum(array.nbytes for arrays in self.weights.values() for array in arrays)


@contextmanager
def on_threads(num_threads: int) -> Iterator[None]:
    """Let what does not ask for a number of threads take one where a task has one."""
    token = core_is_serial.set(num_threads == 1)
    try:
        yield
    finally:
        core_is_serial.reset(token)


def produce(make: Callable[[Any], GradientFeatures], part: Any, num_threads: int) -> Shard:
    """Return `make(part)` as a shard.

    Raises
    ------
    TypeError
        If it is anything but `GradientFeatures`.
    """
    with on_threads(num_threads):
        feats = make(part)
    if not isinstance(feats, GradientFeatures):
        raise TypeError(f"make must return GradientFeatures, got {type(feats).__name__}")
    value = 0
    for array in arrays_of(feats):
        value = array_checksum(to_numpy(array), value)
    return Shard(GradientFeatures({name: _lean(block) for name, block in feats.items()}), value)


def lend(shard: Shard) -> Lent:
    """Return a shard that is sent in its stead, and forgotten where it was used."""
    return Lent(shard.features, shard.checksum)


def describe(shard: Shard) -> ShardFacts:
    """Return what the client has to know."""
    feats = shard.features
    occurring: dict[str, Any] = {
        name: to_numpy(array_namespace(block.indices).unique(block.indices))
        for name, block in feats.items()
        if isinstance(block, Embedding)
    }
    return ShardFacts(feats.num_examples, layout(feats), shard.nbytes, shard.checksum, occurring)


def first_example(shard: Shard) -> GradientFeatures:
    """Return the features of the first example on the host, by which the client knows shapes and dtypes."""
    blocks: dict[str, Block] = {}
    for name, block in shard.features.examples(0, 1).items():
        part = copy.copy(block)
        for attribute in ("activations", "backprops", "indices", "rows"):
            # A view would send all of the array that it is a part of.
            if attribute in vars(part):
                setattr(part, attribute, to_numpy(getattr(part, attribute)).copy())
        blocks[name] = _lean(part)
    return GradientFeatures(blocks)


def prepared(shard: Shard, settings: Settings, checksum: int) -> GradientFeatures:
    """Return a shard's features, which know the indices that occur elsewhere.

    Raises
    ------
    ValueError
        If they are not those that the client was told of: made again, after a worker died, with other numbers.
    """
    if shard.checksum != checksum:
        raise ValueError(
            "make returned other numbers than before when a lost shard was made again: the same part must always give "
            "the same gradients to the bit (does a loader shuffle, is there dropout, random augmentation or a "
            "non-deterministic operation, or are the workers' processors of different kinds?)"
        )
    if not settings.occurring:
        return shard.features
    blocks: dict[str, Block] = dict(shard.features.blocks)
    for name, known in settings.occurring.items():
        block = copy.copy(shard.features[name])
        assert isinstance(block, Embedding)
        block.occurring = array_namespace(block.indices).asarray(known)
        blocks[name] = block
    return GradientFeatures(blocks)


def _lean(block: Block) -> Block:
    """Return a block that holds no second copy of its arrays, which would be sent along with it."""
    lean = copy.copy(block)
    if isinstance(lean, Embedding):
        lean.source = lean.backprops
    else:
        lean.source = lean.activations if isinstance(lean, OuterProduct) else lean.rows
    return lean
