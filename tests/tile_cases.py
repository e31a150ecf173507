"""What tests of kernels in tiles have in common: features, arrays to write to, and tiles small enough to be many."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kernelgrowth import ChunkedFeatures, GradientFeatures, OuterProduct, Rows
from kernelgrowth.kernels import tiles


class Store:
    """The least that an array on disk offers; counts how often each entry is written, and fails at a given write."""

    def __init__(self, shape, dtype, *, chunks=None, fails_at=None, error=None):
        self.shape, self.dtype = shape, np.dtype(dtype)
        if chunks is not None:
            self.chunks = chunks
        self.data = np.full(shape, np.nan, dtype)
        self.written = np.zeros(shape, int)
        self.writes, self.fails_at, self.error = 0, fails_at, error

    def __setitem__(self, index, value):
        assert isinstance(index, tuple)
        assert len(index) == len(self.shape)
        assert all(isinstance(part, slice) for part in index)
        assert value.flags.c_contiguous
        if self.fails_at == self.writes:
            self.fails_at = None
            raise self.error
        self.writes += 1
        for axis, part in enumerate(index):
            start, stop, step = part.indices(self.shape[axis])
            assert step == 1
            if hasattr(self, "chunks"):
                assert start % self.chunks[axis] == 0
                assert stop % self.chunks[axis] == 0 or stop == self.shape[axis]
        self.data[index] = value
        self.written[index] += 1

    def __getitem__(self, index):
        return self.data[index]


class LargestTile:
    """Tiles of so many bytes at most, so that few examples make many tiles."""

    def __init__(self, count):
        self.count = count

    def __enter__(self):
        self.before, tiles.LARGEST_TILE = tiles.LARGEST_TILE, self.count

    def __exit__(self, *_):
        tiles.LARGEST_TILE = self.before


def random_features(seed=0, *, n=40, c=2, dtype=np.float32):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.normal(size=shape).astype(dtype)

    return GradientFeatures(
        {
            "dense": OuterProduct(draw(n, 9), draw(n, c, 5), bias=True),
            "conv": OuterProduct(draw(n, 3, 4), draw(n, c, 3, 6), scale=0.5),
            "norm": Rows(draw(n, c, 7)),
        }
    )


def random_preconditioner(features, seed=1):
    rng = np.random.default_rng(seed)
    result = {}
    for name, block in features.items():
        if isinstance(block, Rows):
            result[name] = rng.uniform(size=block.num_parameters).astype(features.dtype)
        else:
            d_out, d_in = block.backprops.shape[3], block.activations.shape[2]
            eta = [rng.uniform(size=(d_out, d_in)).astype(features.dtype)]
            result[name] = tuple(eta + [rng.uniform(size=d_out).astype(features.dtype)] * block.bias)
    return result


def chunked(features, chunk_size):
    return ChunkedFeatures(features.num_examples, features.examples, chunk_size=chunk_size)


def tile_count(path):
    return sum(line.startswith('{"tile"') for line in Path(path).read_text().splitlines())
