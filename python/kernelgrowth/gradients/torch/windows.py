"""The windows that a convolution sees, in any number of dimensions."""

from __future__ import annotations

import math
from typing import Any

import torch

__all__ = ["windows"]


def windows(x: Any, kernel: tuple[int, ...], convolution: Any, *, limit: tuple[int, ...]) -> Any:
    """Return (B, positions, kernel size · channels), what each position reads, channels running fastest.

    Parameters
    ----------
    x : Tensor (B, channels, ...)
    kernel : tuple of int
    convolution : Node
        Whose strides, padding and dilation are taken.
    limit : tuple of int
        Positions in each dimension.

    Notes
    -----
    With channels last a window's row is copied as one piece: a tenth of the time of the order that weights have.
    """
    d = len(kernel)
    stride, padding, dilation = (
        _each(getattr(convolution, f"_saved_{name}"), d) for name in ("stride", "padding", "dilation")
    )
    padded = torch.nn.functional.pad(x.movedim(1, -1), (0, 0, *(p for size in padding[::-1] for p in (size, size))))
    padded = padded.contiguous()
    steps = padded.stride()[1:-1]
    view = padded.as_strided(
        (len(x), *limit, *kernel, x.shape[1]),
        (
            padded.stride(0),
            *(s * step for s, step in zip(stride, steps, strict=True)),
            *(s * step for s, step in zip(dilation, steps, strict=True)),
            1,
        ),
    )
    return view.reshape(len(x), math.prod(limit), math.prod(kernel) * x.shape[1])


def _each(values: Any, dimensions: int) -> tuple[int, ...]:
    numbers = tuple(int(value) for value in values)
    return numbers * dimensions if len(numbers) == 1 else numbers
