"""Gradient features: structured per-example gradients, and who makes them."""

from kernelgrowth.gradients.chunked import ChunkedFeatures
from kernelgrowth.gradients.features import Block, Embedding, GradientFeatures, OuterProduct, Rows
from kernelgrowth.gradients.network import HasGradientFactors, HasGradientFeatures, from_net
from kernelgrowth.gradients.tangents import jvp

__all__ = [
    "Block",
    "ChunkedFeatures",
    "Embedding",
    "GradientFeatures",
    "HasGradientFactors",
    "HasGradientFeatures",
    "OuterProduct",
    "Rows",
    "from_net",
    "jvp",
]
