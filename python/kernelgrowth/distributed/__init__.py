"""Kernels of probe sets larger than one machine: features divided among the workers of a Dask cluster."""

from kernelgrowth.distributed.features import ShardedFeatures
from kernelgrowth.distributed.operator import PassCost, ShardedOperator
from kernelgrowth.distributed.tiles import empirical_ntk

__all__ = ["PassCost", "ShardedFeatures", "ShardedOperator", "empirical_ntk"]
