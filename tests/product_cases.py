"""What products with a kernel are tried with, and what they have to be."""

from __future__ import annotations

import numpy as np

import reference
from kernelgrowth.gradients import Embedding, OuterProduct

PROMISE = {np.float32: 1e-5, np.float64: 1e-12}


def preconditioner(case, seed):
    rng = np.random.default_rng(seed)
    eta = {}
    for name, block in case.features[0].items():
        if isinstance(block, Embedding):
            eta[name] = rng.random((block.num_embeddings, block.backprops.shape[3])).astype(case.dtype)
        elif isinstance(block, OuterProduct):
            d_in, d_out = block.num_inputs, block.backprops.shape[3]
            weight = rng.random((d_out, d_in)).astype(case.dtype)
            eta[name] = (weight, rng.random(d_out).astype(case.dtype)) if block.bias else weight
        else:
            eta[name] = rng.random(block.num_parameters).astype(case.dtype)
    return eta


def exact(case, outputs, eta):
    """The kernel in float64, and the yardstick of its entries."""
    roots = {
        name: tuple(np.sqrt(np.float64(x)) for x in (e if isinstance(e, tuple) else (e,))) for name, e in eta.items()
    }
    j1, j2 = (reference.jacobian(blocks, roots) for blocks in case.block_pair)
    kernel = reference.as_matrix(reference.ntk(j1, j2, outputs))
    return kernel, reference.as_matrix(reference.entry_scale(j1, j2, outputs))


def vectors(rng, rows, count, dtype, layout):
    if layout == "one":
        return rng.normal(size=rows).astype(dtype)
    if layout == "fortran":
        return np.asfortranarray(rng.normal(size=(rows, count)).astype(dtype))
    if layout == "strided":
        return rng.normal(size=(2 * rows, 3 * count)).astype(dtype)[::-2, 1::3]
    return rng.normal(size=(rows, count)).astype(dtype)
