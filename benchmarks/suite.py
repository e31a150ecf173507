"""All cases, in the order of the table."""

from __future__ import annotations

from benchmarks import convolution, end_to_end, gram, multi_output, products, statistics

__all__ = ["CASES"]

CASES = (
    *gram.CASES,
    *multi_output.CASES,
    *convolution.CASES,
    *products.CASES,
    *statistics.CASES,
    *end_to_end.CASES,
)
