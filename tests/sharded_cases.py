"""What tests of distributed kernels have in common; the workers import it too."""

from __future__ import annotations

import itertools
import os
import signal

import numpy as np

from kernelgrowth.gradients import Embedding, GradientFeatures, OuterProduct, Rows


def whole(*, n=60, c=2, dtype=np.float32, seed=0):
    """Features of every kind."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.normal(size=shape).astype(dtype)

    return GradientFeatures(
        {
            "table": Embedding(rng.integers(0, 11, (n, 3)), draw(n, c, 3, 4), num_embeddings=11),
            "dense": OuterProduct(draw(n, 9), draw(n, c, 5), bias=True),
            "conv": OuterProduct(draw(n, 3, 4), draw(n, c, 3, 6), scale=0.5),
            "norm": Rows(draw(n, c, 7)),
        }
    )


def preconditioner(features, seed=3):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.uniform(size=shape).astype(features.dtype)

    return {"table": draw(11, 4), "dense": (draw(5, 9), draw(5)), "conv": draw(6, 4), "norm": draw(7)}


def part_of_whole(part, **options):
    return whole(**options).examples(*part)


def wide(part, *, n=900, width=160, dtype=np.float32):
    """Examples of a decaying spectrum, with many parameters."""
    rng = np.random.default_rng(1)
    decay = (np.arange(1, width + 1) ** -1.0).astype(dtype)
    a = rng.normal(size=(n, width)).astype(dtype) * decay
    d = rng.normal(size=(n, width)).astype(dtype) * decay
    return GradientFeatures({"a": OuterProduct(a, d), "b": OuterProduct(a[:, ::-1], d[:, ::-1], bias=True)}).examples(
        *part
    )


def parts(n, count):
    edges = [n * i // count for i in range(count + 1)]
    return list(itertools.pairwise(edges))


def failing(part):
    if part == "bad":
        raise OSError("the file is not there")
    return part_of_whole((0, 5))


def of_another_shape(part):
    return GradientFeatures({"a": Rows(np.ones((3, part)))})


def no_features(part):
    return part


def heavy(part):
    return GradientFeatures({"a": Rows(np.ones((10, 600_000)))})


def deadly(part):
    os.kill(os.getpid(), signal.SIGKILL)
