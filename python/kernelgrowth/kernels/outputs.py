"""What a kernel may be written to, and where the file that follows the writing lies."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from kernelgrowth._backend.arrays import FloatArray, is_cupy
from kernelgrowth.gradients.features import GradientFeatures
from kernelgrowth.gradients.identity import arrays_of
from kernelgrowth.kernels.examples import Source

__all__ = ["check_out", "has_rows", "progress_file", "result_shape"]


def result_shape(feats: Source, feats2: Source | None, outputs: str) -> tuple[int, ...]:
    """Return the shape of `empirical_ntk`'s result."""
    n1, n2 = feats.num_examples, (feats if feats2 is None else feats2).num_examples
    c = feats.num_outputs
    if c == 1 or outputs in ("trace", "mean_trace", "sum_logits"):
        return (n1, n2)
    return (c, n1, n2) if outputs == "diagonal" else (n1, n2, c, c)


def has_rows(out: Any) -> bool:
    """Whether a kernel can be computed in place: an array in memory whose rows are contiguous, seen as a matrix."""
    plain = isinstance(out, np.ndarray) and not isinstance(out, np.memmap)
    return plain and out.ndim < 4 and out.strides[-1] == out.itemsize


def check_out(out: Any, shape: tuple[int, ...], feats: Source, feats2: Source | None) -> None:
    """Refuse what cannot hold a kernel of `shape` in the features' dtype, or is not apart from the features."""
    wanted = ("shape", "dtype", "__setitem__")
    if is_cupy(out) or not all(hasattr(out, name) for name in wanted):
        raise TypeError(
            f"out must be a NumPy array or one with shape, dtype and assignment to slices, got {type(out).__name__}"
        )
    if tuple(out.shape) != shape:
        raise ValueError(f"out must have shape {shape}, got {tuple(out.shape)}")
    if str(out.dtype) != str(feats.dtype) and out.dtype != feats.dtype:
        raise TypeError(f"out must be {feats.dtype} like the features, got {out.dtype}")
    if not isinstance(out, np.ndarray):
        return
    if not out.flags.writeable:
        raise ValueError("out is read-only")
    if isinstance(out, np.memmap) and out.mode == "c":
        raise ValueError("out is a copy-on-write memmap (mode 'c'): nothing would reach its file")
    if _overlaps_itself(out):
        raise ValueError(f"out overlaps itself in memory: strides {out.strides} for shape {shape}")
    sides = [side for side in (feats, feats2) if isinstance(side, GradientFeatures)]
    if any(_overlap(out, array) for side in sides for array in arrays_of(side)):
        raise ValueError("out overlaps the features in memory")
    if any(_same_file(out, array) for side in sides for array in arrays_of(side)):
        raise ValueError("out and the features are mappings of one file")


def progress_file(out: Any, progress: Any, resume: bool) -> str | None:
    """Return the path of the file that lists the finished tiles; None if none is to be kept."""
    if progress is not None:
        if not isinstance(progress, str | os.PathLike):
            raise TypeError(f"progress must be a path, got {type(progress).__name__}")
        return os.fspath(progress)
    if isinstance(out, np.memmap) and out.filename is not None:
        return f"{os.fspath(out.filename)}.progress"
    if resume:
        raise ValueError(
            f"resume=True with a {type(out).__name__} as out needs progress, the path of the file that lists the "
            "finished tiles"
        )
    return None


def _overlaps_itself(array: FloatArray) -> bool:
    """Whether two entries may share bytes: sorted by stride, each dimension must step over all inner ones."""
    span = array.itemsize
    for stride, length in sorted((abs(s), n) for s, n in zip(array.strides, array.shape, strict=True) if n > 1):
        if stride < span:
            return True
        span = stride * (length - 1) + span
    return False


def _overlap(a: FloatArray, b: FloatArray) -> bool:
    # Exact for interleaved views too; both are plain strided blocks, which the search decides at once.
    return not is_cupy(b) and bool(np.may_share_memory(a, b) and np.shares_memory(a, b))


def _same_file(a: FloatArray, b: FloatArray) -> bool:
    """Whether two arrays are different mappings of one file, whose overlap no address tells."""
    names = [array.filename for array in (a, b) if isinstance(array, np.memmap) and array.filename is not None]
    if len(names) < 2 or getattr(a, "_mmap", None) is getattr(b, "_mmap", None):
        return False
    return all(os.path.exists(name) for name in names) and os.path.samefile(*names)
