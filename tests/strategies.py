"""Hypothesis strategies for gradient features, beside the same blocks for the reference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from kernelgrowth.gradients import GradientFeatures, OuterProduct, Rows

# Around the register tiles, strips and vector widths of every instruction set.
EDGES = (1, 2, 3, 7, 8, 9, 15, 16, 17, 23, 24, 25, 47, 48, 49, 95, 96, 97, 128, 130)
OUTPUTS = ("full", "trace", "mean_trace", "diagonal", "sum_logits")

dtypes = st.sampled_from([np.float32, np.float64])
modes = st.sampled_from(OUTPUTS)


def sizes(largest):
    return st.one_of(st.sampled_from([n for n in EDGES if n <= largest]), st.integers(1, largest))


@dataclass
class Case:
    """Features and the reference's blocks for each side; `sides[1]` is None for a symmetric kernel."""

    features: list
    blocks: list
    dtype: type

    @property
    def pair(self):
        return (self.features[0], self.features[1] if len(self.features) > 1 else None)

    @property
    def block_pair(self):
        return (self.blocks[0], self.blocks[-1])


def _strided(rng, shape, dtype, layout):
    """Random values in one of several memory layouts."""
    if layout == "contiguous":
        return rng.normal(size=shape).astype(dtype)
    if layout == "reversed":
        return rng.normal(size=shape).astype(dtype)[::-1]
    if layout == "every other":
        return rng.normal(size=(*shape[:-1], 2 * shape[-1])).astype(dtype)[..., ::2]
    array = np.asfortranarray(rng.normal(size=shape).astype(dtype))
    array.flags.writeable = False
    return array


layouts = st.sampled_from(["contiguous", "reversed", "every other", "fortran, read-only"])


@st.composite
def cases(draw, *, max_examples=130, max_outputs=4, max_length=200, max_positions=1, max_blocks=4, symmetric=None):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype = draw(dtypes)
    num_outputs = draw(st.integers(1, max_outputs))
    one_sided = draw(st.booleans()) if symmetric is None else symmetric
    counts = [draw(sizes(max_examples)) for _ in range(1 if one_sided else 2)]
    sides = [({}, {}) for _ in counts]
    for index in range(draw(st.integers(1, max_blocks))):
        name = f"layer{index + 1}"
        scale = draw(st.sampled_from([1.0, 0.5, 2.0, 0.3, 0.0]))
        layout = draw(layouts)
        if draw(st.integers(0, 3)) == 0:
            length = draw(sizes(max_length))
            for count, (features, blocks) in zip(counts, sides, strict=True):
                g = _strided(rng, (count, num_outputs, length), dtype, layout)
                features[name] = Rows(g, scale=scale)
                blocks[name] = {"G": g, "scale": scale}
            continue
        positions = draw(st.integers(1, max_positions))
        d_in, d_out, bias = draw(sizes(max_length)), draw(sizes(24)), draw(st.booleans())
        for count, (features, blocks) in zip(counts, sides, strict=True):
            a = _strided(rng, (count, positions, d_in), dtype, layout)
            d = _strided(rng, (count, num_outputs, positions, d_out), dtype, layout)
            features[name] = OuterProduct(a, d, bias=bias, scale=scale)
            blocks[name] = {"A": a, "D": d, "bias": bias, "scale": scale}
    return Case([GradientFeatures(f) for f, _ in sides], [b for _, b in sides], dtype)
