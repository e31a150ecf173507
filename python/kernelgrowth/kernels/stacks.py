"""Many kernels of one shape in one call: of seeds, checkpoints or layers, each too small to keep a processor busy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kernelgrowth._backend import native
from kernelgrowth._backend.arrays import array_namespace, like
from kernelgrowth._backend.errors import BackendError, MemoryLimitError
from kernelgrowth.gradients.embeddings import beside_embeddings, without_embeddings
from kernelgrowth.gradients.features import Block, Embedding, GradientFeatures, OuterProduct, Rows
from kernelgrowth.gradients.identity import arrays_of, layout
from kernelgrowth.kernels.evaluate import check_values
from kernelgrowth.kernels.lowering import Problem, check_pair, check_preconditioner, lower
from kernelgrowth.kernels.outputs import result_shape
from kernelgrowth.kernels.plan import Plan, make_plan

__all__ = ["FeatureStack", "stack", "stacked_kernels"]


class FeatureStack:
    """Gradient features of several kernels, one after another in memory; made by `stack`.

    Attributes
    ----------
    features : GradientFeatures
        Of all S·N examples.
    num_kernels : int
        S.
    """

    def __init__(self, features: GradientFeatures, num_kernels: int) -> None:
        self.features = features
        self.num_kernels = num_kernels

    @property
    def num_examples(self) -> int:
        """N, of each kernel."""
        return self.features.num_examples // self.num_kernels

    def __len__(self) -> int:
        return self.num_kernels

    def __getitem__(self, index: int) -> GradientFeatures:
        if not -self.num_kernels <= index < self.num_kernels:
            raise IndexError(f"there are {self.num_kernels} features, got index {index}")
        first = index % self.num_kernels * self.num_examples
        return self.features.examples(first, first + self.num_examples)

    def __iter__(self) -> Iterator[GradientFeatures]:
        return (self[index] for index in range(self.num_kernels))

    def __repr__(self) -> str:
        return f"FeatureStack(S={self.num_kernels}, {self[0]!r})"


def stack(features: Sequence[GradientFeatures]) -> FeatureStack:
    """Put features of one shape together, for kernels that are computed in one call.

    Parameters
    ----------
    features : sequence of GradientFeatures
        At least one; all with the same blocks, shapes and dtype, on the host.

    Returns
    -------
    FeatureStack
        Holds copies: `empirical_ntk` of it returns one kernel for each, with the bits of single calls (embeddings'
        last bits aside, since indices that occur in any of them count for all).

    Raises
    ------
    TypeError, ValueError
        If there is none, or one differs from the first; the message names it.
    BackendError
        If features are CuPy arrays.
    """
    features = list(features)
    if not features:
        raise ValueError("features must hold at least one, got none")
    for i, feats in enumerate(features):
        if not isinstance(feats, GradientFeatures):
            raise TypeError(f"features[{i}] must be GradientFeatures, got {type(feats).__name__}")
        if feats.num_examples != features[0].num_examples or layout(feats) != layout(features[0]):
            raise ValueError(f"features[{i}] must have the blocks and shapes of features[0], got {feats!r}")
        if array_namespace(*arrays_of(feats)) is not np:
            raise BackendError(f"features[{i}] hold CuPy arrays: kernels are stacked on the CPU only")
    blocks: dict[str, Block] = {}
    for name, first in features[0].items():
        parts = [feats[name] for feats in features]
        blocks[name] = _joined(first, parts)
    return FeatureStack(GradientFeatures(blocks), len(features))


def _joined(first: Block, parts: Sequence[Any]) -> Block:
    def together(name: str) -> Any:
        return np.concatenate([getattr(part, name) for part in parts])

    if isinstance(first, Embedding):
        joined: Block = Embedding(
            together("indices"),
            together("backprops"),
            num_embeddings=first.num_embeddings,
            scale=first.scale,
            check_finite=False,
        )
    elif isinstance(first, OuterProduct):
        joined = OuterProduct(
            together("activations"), together("backprops"), bias=first.bias, scale=first.scale, check_finite=False
        )
    else:
        joined = Rows(together("rows"), scale=first.scale, check_finite=False)
    joined.source = first.source
    return joined


def stacked_kernels(
    feats: FeatureStack,
    feats2: Any,
    *,
    outputs: str,
    preconditioner: Mapping[str, Any] | None,
    memory_limit: int,
    threads: int,
    precision: str,
) -> Any:
    """Return the kernel of each of the features in a stack; see `empirical_ntk`.

    Raises
    ------
    TypeError, ValueError
        If `feats2` is no stack of as many features of the same parameters, or a kernel leaves its dtype's range.
    MemoryLimitError
        If copies, kernels and the smallest workspace do not fit.
    """
    if feats2 is not None and not isinstance(feats2, FeatureStack):
        raise TypeError(f"feats2 must be a FeatureStack like feats, got {type(feats2).__name__}")
    if feats2 is not None and len(feats2) != len(feats):
        raise ValueError(f"feats2 must hold {len(feats)} features like feats, got {len(feats2)}")
    check_pair(feats.features, None if feats2 is None else feats2.features)
    left, right, preconditioner, used = without_embeddings(
        feats.features, None if feats2 is None else feats2.features, preconditioner, memory_limit
    )
    limit = memory_limit - used
    roots = check_preconditioner(left, preconditioner)
    examples = (feats.num_examples, (feats if feats2 is None else feats2).num_examples)
    options: dict[str, Any] = {"examples": examples, "precision": precision}
    # What is chosen for one of them is used for all, so that each has the bits of a call of its own.
    whole = lower(left, right, outputs, roots, limit, **options)
    ends = [None if side is None else side.examples(0, n) for side, n in zip((left, right), examples, strict=True)]
    assert ends[0] is not None
    one = lower(ends[0], ends[1], outputs, roots, limit, **options)
    shape = (len(feats), *result_shape(ends[0], ends[1], outputs))
    held = len(feats) * math.prod(one.out_shape) * one.dtype.itemsize + whole.copied_bytes - one.copied_bytes
    with beside_embeddings(used, memory_limit):
        threads, plan = _planned(one, len(feats), held, limit, threads)
    kernels = np.empty((len(feats), *one.out_shape), one.dtype)
    terms = [term for block in whole.blocks for term in block.terms]
    done = 0
    for count in plan.passes:
        native.gram(
            terms[done : done + count],
            kernels,
            symmetric=whole.symmetric,
            accumulate=done > 0,
            workspace=limit - held,
            threads=threads,
            precision=precision,
            stacked=True,
        )
        done += count
    check_values("kernel", kernels.diagonal(axis1=-2, axis2=-1) if whole.symmetric else kernels)
    if len(shape) == 5:
        _, n1, n2, c, _ = shape
        kernels = kernels.reshape(len(feats), n1, c, n2, c).transpose(0, 1, 3, 2, 4)
    return like(kernels, next(iter(feats.features.blocks.values())).source)


def _planned(one: Problem, count: int, held: int, limit: int, threads: int) -> tuple[int, Plan]:
    """Return how many threads compute kernels, one each where there are enough, and what each computes at once."""
    if count >= 2 * threads > 2:
        share = (limit - held) // threads + one.copied_bytes
        try:
            return threads, make_plan(one, output_bytes=0, memory_limit=share, threads=1)
        except MemoryLimitError:
            threads = 1
    return threads, make_plan(one, output_bytes=held, memory_limit=limit, threads=threads)
