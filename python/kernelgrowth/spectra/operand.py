"""What an eigensolver is given: a stored matrix or an operator, checked, and what is known of it beforehand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernelgrowth._backend.arrays import FloatArray, array_namespace, as_array, gpu_of, like, place
from kernelgrowth.spectra.symmetry import check_square, seen_symmetric

__all__ = ["Operand", "as_operand", "is_operator", "operator_dtype", "random_block"]


@dataclass(frozen=True)
class Operand:
    """A symmetric operator with n rows.

    Attributes
    ----------
    n : int
    dtype : numpy.dtype
        float32 or float64, what it computes in.
    product : ndarray or callable
        The matrix, or a function that returns A V for contiguous V (n, b) in `dtype`.
    matrix : ndarray or None
        The matrix where it is stored.
    gpu : cupy.cuda.Device or None
        Where it computes, and its vectors lie; None for the host.
    template : object
        What results are to be like.
    largest : float
        Largest absolute entry; NaN where it is not stored.
    squared_norm, trace : float
        ``||A||_F²`` and the trace, exact up to rounding in float64; NaN where they are not known.
    semidefinite : bool
        Whether it is known to have no negative eigenvalue.
    wide : bool
        Whether a product with more vectors costs little more: reading or computing the matrix is most of it.
    """

    n: int
    dtype: np.dtype[Any]
    product: FloatArray | Callable[[FloatArray], FloatArray]
    matrix: FloatArray | None
    gpu: Any
    template: Any
    largest: float
    squared_norm: float
    trace: float
    semidefinite: bool
    wide: bool

    @property
    def pass_flops(self) -> float:
        """Operations of a product with one vector; infinite where they are not known."""
        return math.inf if self.matrix is None else 2.0 * self.n**2

    def result(self, array: Any) -> Any:
        """Return an array as the caller gets it: where the operator computes, and of the library that it came from."""
        return like(place(array, self.gpu), self.template)


def is_operator(given: Any) -> bool:
    """Whether something is known by its products alone: it has a shape and ``@``, and is no array."""
    return not hasattr(given, "__dlpack__") and hasattr(given, "shape") and hasattr(given, "__matmul__")


def operator_dtype(name: str, operator: Any) -> np.dtype[Any]:
    """Return the dtype that an operator computes in: float32, or float64 where it names none or counts in integers.

    Raises
    ------
    TypeError
        If it computes in anything else.
    """
    given = getattr(operator, "dtype", None)
    dtype = np.dtype(np.float64 if given is None else given)
    if dtype.kind in "iub":
        return np.dtype(np.float64)
    if dtype not in (np.float32, np.float64):
        raise TypeError(f"{name} must compute in float32 or float64, got dtype {dtype}")
    return dtype


def as_operand(name: str, A: Any, *, dense_rows: int = 0) -> Operand:
    """Check a matrix or an operator.

    Parameters
    ----------
    name : str
        The argument's name, for messages.
    A : array, NTKOperator or linear operator
        An NTKOperator that multiplies by its stored kernel counts as that.
    dense_rows : int
        Up to this many rows, an operator with ``.gram()`` counts as its matrix.

    Raises
    ------
    ValueError
        If it is not square, or stored and not finite or not symmetric.
    TypeError
        If it is neither a real floating array nor an operator.
    """
    if not is_operator(A):
        matrix = as_array(name, A, ndim=2, finite=False)
        check_square(name, matrix.shape)
        return _stored(name, matrix, A, semidefinite=False)
    n = check_square(name, tuple(A.shape))
    semidefinite = bool(getattr(A, "semidefinite", False))
    way = A.product_plan().way if hasattr(A, "product_plan") else ""
    if hasattr(A, "gram") and (n <= dense_rows or way == "stored"):
        matrix = as_array(f"{name}.gram()", A.gram(), ndim=2, finite=False)
        return _stored(f"{name}.gram()", matrix, matrix, semidefinite=semidefinite)
    dtype = operator_dtype(name, A)
    return Operand(
        n=n,
        dtype=dtype,
        product=_product(name, A, dtype),
        matrix=None,
        gpu=gpu_of(A),
        template=None,
        largest=math.nan,
        squared_norm=math.nan,
        trace=float(A.trace()) if semidefinite else math.nan,
        semidefinite=semidefinite,
        wide=way == "tiles",
    )


def _stored(name: str, matrix: FloatArray, template: Any, *, semidefinite: bool) -> Operand:
    seen = seen_symmetric(name, matrix)
    # Outside, squares have lost digits to underflow, or overflowed.
    known = 1e-270 < seen.squared_norm < 1e270 or seen.largest == 0.0
    return Operand(
        n=len(matrix),
        dtype=matrix.dtype,
        product=matrix,
        matrix=matrix,
        gpu=gpu_of(matrix),
        template=template,
        largest=seen.largest,
        squared_norm=seen.squared_norm if known else math.nan,
        trace=seen.trace,
        semidefinite=semidefinite,
        wide=True,
    )


def _product(name: str, operator: Any, dtype: np.dtype[Any]) -> Callable[[FloatArray], FloatArray]:
    on_gpu = gpu_of(operator) is not None

    def product(block: FloatArray) -> FloatArray:
        result = operator @ block
        result = result if on_gpu else np.asarray(result)
        if result.shape != block.shape:
            raise ValueError(f"{name} @ V must have shape {block.shape} for V of that shape, got {result.shape}")
        if result.dtype.kind not in "fiub":
            raise TypeError(f"{name} @ V must be real numbers, got dtype {result.dtype}")
        with np.errstate(over="ignore"):
            contiguous: FloatArray = array_namespace(result).ascontiguousarray(result, dtype)
        return contiguous

    return product


def random_block(rng: np.random.Generator, operand: Operand, columns: int) -> FloatArray:
    """Return normally distributed vectors (n, columns) in the operand's dtype, where it computes."""
    drawn = rng.standard_normal((operand.n, columns), dtype=operand.dtype.type)
    placed: FloatArray = place(drawn, operand.gpu)
    return placed
