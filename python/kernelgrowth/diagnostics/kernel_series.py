"""Kernels recorded along training: read one after another, so that only one need be in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import numpy as np
import numpy.typing as npt

from kernelgrowth._backend.arrays import FloatArray, as_array, to_numpy
from kernelgrowth.diagnostics.kernel_input import as_kernel
from kernelgrowth.spectra.symmetry import check_symmetric

__all__ = ["KernelSeries", "as_times"]


def as_times(times: Any) -> npt.NDArray[np.float64]:
    """Return the times (T,), T >= 2, of recorded kernels, checked to ascend."""
    array: npt.NDArray[np.float64] = to_numpy(as_array("times", times, ndim=1)).astype(np.float64)
    if len(array) < 2:
        raise ValueError(f"times must hold at least two times, got {len(array)}")
    falls = np.flatnonzero(np.diff(array) <= 0)
    if len(falls):
        i = int(falls[0])
        raise ValueError(f"times must ascend, got {array[i]:g} and then {array[i + 1]:g} at index {i + 1}")
    return array


class KernelSeries:
    """One kernel for each time, of one shape and dtype; iterating checks each as it comes and yields it in float64.

    Parameters
    ----------
    name : str
        The argument's name, for messages.
    kernels : iterable of (m, n) array or operator with ``.gram()``, or array (T, m, n)
        A sequence's length and shapes are checked here, before any work; what else it is when they come.
    count : int
        T.
    columns : int, optional
        n.
    symmetric : bool
        Whether they have to be square and symmetric.

    Attributes
    ----------
    first : array_like
        The first kernel as it was given, once iteration has begun; results become arrays of its kind.
    dtype : numpy.dtype
        Of the kernels, from then on.
    """

    first: Any
    dtype: np.dtype[Any]

    def __init__(
        self, name: str, kernels: Any, count: int, *, columns: int | None = None, symmetric: bool = False
    ) -> None:
        if not isinstance(kernels, Iterable) or isinstance(kernels, Mapping | str):
            raise TypeError(f"{name} must be a sequence of kernels, got {type(kernels).__name__}")
        self._name, self._kernels, self._count = name, kernels, count
        self._columns, self._symmetric = columns, symmetric
        if isinstance(kernels, Sized) and len(kernels) != count:
            raise self._wrong_count(str(len(kernels)))
        if isinstance(kernels, Sequence):
            shapes = [tuple(kernel.shape) for kernel in kernels if hasattr(kernel, "shape")]
            for i, shape in enumerate(shapes):
                self._check_shape(i, shape, shapes[0])

    def __iter__(self) -> Iterator[npt.NDArray[np.float64]]:
        seen = 0
        shape: tuple[int, ...] = ()
        for kernel in self._kernels:
            if seen == self._count:
                raise self._wrong_count("more")
            name = f"{self._name}[{seen}]"
            matrix = as_kernel(name, kernel, square=self._symmetric)
            if seen == 0:
                self.first, self.dtype, shape = kernel, matrix.dtype, matrix.shape
            self._check_shape(seen, matrix.shape, shape)
            self._check_values(name, matrix)
            yield matrix.astype(np.float64, copy=False)
            seen += 1
        if seen < self._count:
            raise self._wrong_count(str(seen))

    def _check_shape(self, i: int, shape: tuple[int, ...], first: tuple[int, ...]) -> None:
        if shape != first:
            raise ValueError(f"{self._name}[{i}] must have the shape {first} of {self._name}[0], got {shape}")
        if self._columns is not None and shape[-1] != self._columns:
            raise ValueError(f"{self._name}[{i}] must have {self._columns} columns, got shape {shape}")

    def _check_values(self, name: str, matrix: FloatArray) -> None:
        if matrix.dtype != self.dtype:
            raise TypeError(f"{name} is {matrix.dtype} but {self._name}[0] is {self.dtype}: convert one explicitly")
        if self._symmetric:
            check_symmetric(name, matrix)

    def _wrong_count(self, found: str) -> ValueError:
        return ValueError(f"{self._name} must hold one kernel for each of the {self._count} times, got {found}")
