"""All cases, in the order of the table."""

from __future__ import annotations

from benchmarks import (
    convolution,
    end_to_end,
    end_to_end_cnn,
    gram,
    multi_output,
    products,
    spectra,
    stacks,
    statistics,
    tracking,
)

__all__ = ["CASES"]

CASES = (
    *gram.CASES,
    *multi_output.CASES,
    *stacks.CASES,
    *convolution.CASES,
    *products.CASES,
    *statistics.CASES,
    *spectra.CASES,
    *tracking.CASES,
    *end_to_end.CASES,
    *end_to_end_cnn.CASES,
)
