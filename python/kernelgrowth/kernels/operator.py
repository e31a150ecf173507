"""The kernel as a linear operator."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

from kernelgrowth._backend import cuda, native
from kernelgrowth._backend.arrays import FloatArray, array_namespace, as_array, is_cupy
from kernelgrowth._backend.checks import check_choice, check_integer
from kernelgrowth._backend.errors import BackendError, MemoryLimitError
from kernelgrowth._backend.memory import resolve_memory_limit
from kernelgrowth.gradients.embeddings import beside_embeddings, without_embeddings
from kernelgrowth.gradients.features import GradientFeatures
from kernelgrowth.gradients.identity import arrays_of
from kernelgrowth.kernels.diagonal import diagonal
from kernelgrowth.kernels.evaluate import check_range, check_values, evaluate
from kernelgrowth.kernels.lowering import Problem, check_pair, check_preconditioner, device_of, lower
from kernelgrowth.kernels.plan import Plan, make_plan
from kernelgrowth.kernels.products import WAYS, ProductPlan, Products, stored_multiply, stored_product

__all__ = ["NTKOperator"]

_Method = TypeVar("_Method", bound=Callable[..., Any])

_MODES = ("full", "trace", "mean_trace", "sum_logits")


def _on_device(method: _Method) -> _Method:
    """Let a method allocate where its operator computes, and refuse in terms of the memory that it was given."""

    @functools.wraps(method)
    def on_device(self: NTKOperator, *args: Any, **options: Any) -> Any:
        with cuda.on(self.device), beside_embeddings(self._embeddings_bytes, self._limit + self._embeddings_bytes):
            return method(self, *args, **options)

    return cast(_Method, on_device)


class NTKOperator:
    """The empirical neural tangent kernel as a linear operator on vectors over (example, output) rows.

    Parameters
    ----------
    feats : GradientFeatures
        N1 examples, C outputs. Where they are CuPy arrays, so are vectors, preconditioners and results: all is computed
        on their GPU, on CuPy's current stream, and `memory_limit` is by default half of what that has left.
    feats2 : GradientFeatures, optional
        N2 examples for a rectangular operator.
    outputs : {"full", "trace", "mean_trace", "sum_logits"}
        "full" has the shape (N1·C, N2·C) with example-major rows; the others (N1, N2).
    preconditioner : mapping of str to ndarray, optional
        As in `empirical_ntk`.
    products : {"auto", "stored", "tiles", "factored"}
        How products with vectors are made. "stored" computes the kernel when it is first needed and keeps it; "tiles"
        computes tiles of it for every product and uses them at once; "factored" never forms it, `J₁ η (J₂ᵀ v)`, which
        is linear in N. "auto" takes the way that needs the fewest operations for 64 vectors, 16 a product, among those
        that fit `memory_limit`, and the stored kernel as soon as there is one; `product_plan` tells. The ways agree
        within the accuracy promise, not to the bit: name one for the same bits on machines of different memory.
    memory_limit : int, optional
        Bytes that the stored kernel and its computation, or a product, may take. Features are not counted, but inputs
        made for an `Embedding` are: `N T` numbers for each index that occurs.
    check_finite : bool
        Whether a kernel or a product that leaves the range of its dtype is a `ValueError`.

    Attributes
    ----------
    shape : tuple of int
    dtype : numpy.dtype
    device : cupy.cuda.Device or None
        The GPU where it computes; None on the CPU.
    semidefinite : bool
        Whether the operator is a Gram matrix by construction, so that it has no negative eigenvalue beyond rounding.

    Notes
    -----
    The result of a product has NumPy's common dtype of the operator and the vectors. By tiles or by factors, vectors
    are rounded to the operator's dtype first, each column scaled by a power of two where its size calls for it; their
    results have the same bits for any number of threads and any `memory_limit`, and by factors a column's do not
    depend on the other columns (not so on a GPU, where cuBLAS chooses how it adds by the shapes of what it multiplies).
    A product by factors takes `4 N T d_in d_out` operations a vector and block, by tiles those of the kernel. SciPy's
    `aslinearoperator` takes the operator of NumPy arrays as it is.
    """

    def __init__(
        self,
        feats: GradientFeatures,
        feats2: GradientFeatures | None = None,
        *,
        outputs: str = "full",
        preconditioner: Mapping[str, Any] | None = None,
        products: str = "auto",
        memory_limit: int | None = None,
        check_finite: bool = True,
    ) -> None:
        check_pair(feats, feats2)
        check_choice("outputs", outputs, _MODES)
        check_choice("products", products, ("auto", *WAYS))
        self.device: Any = device_of(feats, feats2)
        gpu = self.device
        self._precision = "" if gpu is None else cuda.resolve_precision(str(feats.dtype), gpu)
        self._limit = resolve_memory_limit(memory_limit, None if gpu is None else lambda: cuda.available_memory(gpu))
        with cuda.on(gpu):
            feats, feats2, preconditioner, used = without_embeddings(feats, feats2, preconditioner, self._limit)
            self._roots = check_preconditioner(feats, preconditioner)
        self._limit, self._embeddings_bytes = self._limit - used, used
        self._weights = {name: _arrays(preconditioner[name]) for name in feats} if preconditioner is not None else {}
        self._example = arrays_of(feats)[0]
        self._feats, self._feats2, self._outputs = feats, feats2, outputs
        self._preconditioner = preconditioner
        self._check_finite = check_finite
        self._way = products
        self._products = Products(
            feats,
            feats2,
            outputs,
            roots=self._roots,
            preconditioner=self._weights,
            memory_limit=self._limit,
            check_finite=check_finite,
            precision=self._precision,
        )
        self._gram: FloatArray | None = None
        self._cheapest: str | None = None
        self.shape: tuple[int, int] = self._products.shape
        self.dtype: np.dtype[Any] = feats.dtype
        self.semidefinite = feats2 is None

    def __repr__(self) -> str:
        about = f"shape={self.shape}, dtype={self.dtype}, outputs={self._outputs!r}"
        return f"NTKOperator({about}, blocks={list(self._feats)})"

    def plan(self) -> Plan:
        """Return how the stored kernel is computed and what it costs; printing it shows a table.

        Raises
        ------
        MemoryLimitError
            If the smallest plan does not fit `memory_limit`.
        """
        return self._planned()[1]

    @_on_device
    def _planned(self) -> tuple[Problem, Plan]:
        size = self.shape[0] * self.shape[1] * self.dtype.itemsize
        problem = lower(self._feats, self._feats2, self._outputs, self._roots, self._limit, precision=self._precision)
        threads = native.host_threads(self._example)
        return problem, make_plan(problem, output_bytes=size, memory_limit=self._limit, threads=threads)

    @_on_device
    def product_plan(self, num_vectors: int = 1) -> ProductPlan:
        """Return how a product with so many vectors is made and what it costs; printing it shows a table.

        Raises
        ------
        MemoryLimitError
            If the smallest plan does not fit `memory_limit`.
        """
        num_vectors = check_integer("num_vectors", num_vectors, minimum=1)
        way = self._chosen_way()
        if way != "stored":
            return self._products.plan(way, num_vectors, self.dtype)
        return stored_product(self.plan(), num_vectors, self.dtype, computed=self._gram is not None)

    @_on_device
    def gram(self) -> FloatArray:
        """Return the kernel as a matrix of this operator's shape, computed once; do not write to it."""
        if self._gram is None:
            problem, plan = self._planned()
            out: FloatArray = array_namespace(self._example).empty(self.shape, self.dtype)
            evaluate(problem, plan, out)
            if self._check_finite:
                check_range(problem, out)
            if self.device is None:
                out.flags.writeable = False
            self._gram = out
        return self._gram

    def __matmul__(self, v: Any) -> FloatArray:
        return self._multiply(v, transposed=False)

    def matvec(self, v: Any) -> FloatArray:
        """Return K v, for SciPy."""
        return self._multiply(v, transposed=False)

    def matmat(self, v: Any) -> FloatArray:
        """Return K V, for SciPy."""
        return self._multiply(v, transposed=False)

    def rmatvec(self, v: Any) -> FloatArray:
        """Return Kᵀ v, for SciPy."""
        return self._multiply(v, transposed=True)

    def rmatmat(self, v: Any) -> FloatArray:
        """Return Kᵀ V, for SciPy."""
        return self._multiply(v, transposed=True)

    @_on_device
    def diagonal(self) -> FloatArray:
        """Return the diagonal, shape (rows,), from squared gradient norms: without the kernel, linear in N.

        Raises
        ------
        ValueError
            If the operator is rectangular by construction, or if an entry leaves the range of its dtype.
        MemoryLimitError
            If the result and a few examples in float64 do not fit `memory_limit`.
        """
        exact = self._exact_diagonal("diagonal")
        with np.errstate(over="ignore"):
            result: FloatArray = exact.astype(self.dtype)
        if self._check_finite:
            check_values("kernel", result)
        return result

    @_on_device
    def trace(self) -> float:
        """Return the sum of the diagonal, in float64 and without the kernel; it raises what `diagonal` does."""
        total = self._exact_diagonal("trace").sum()
        if self._check_finite:
            check_values("trace", total)
        return float(total)

    @_on_device
    def frobenius_norm(self) -> float:
        """Return sqrt(Σ K_ij²), accumulated in float64: of the stored kernel, or of its tiles where it is not kept."""
        if self._gram is None and self._chosen_way() != "stored":
            return math.sqrt(self._products.squared_norm())
        return math.sqrt(native.kernel_statistics(self.gram()).squared_norm)

    def per_layer(self) -> dict[str, NTKOperator]:
        """Return one operator for each block; they sum to this one."""
        return {
            name: NTKOperator(
                GradientFeatures({name: self._feats[name]}),
                None if self._feats2 is None else GradientFeatures({name: self._feats2[name]}),
                outputs=self._outputs,
                preconditioner=None if self._preconditioner is None else {name: self._preconditioner[name]},
                products=self._way,
                memory_limit=self._limit,
                check_finite=self._check_finite,
            )
            for name in self._feats
        }

    def _chosen_way(self) -> str:
        """Return how products are made; "auto" is settled the first time."""
        if self._gram is not None and self._way == "auto":
            return "stored"
        if self._way != "auto":
            return self._way
        if self._cheapest is None:
            self._cheapest = self._cheapest_that_fits()
        return self._cheapest

    def _cheapest_that_fits(self) -> str:
        costs = self._products.costs()
        refusal = None
        for way in sorted(WAYS, key=lambda way: costs[way]):
            try:
                if way == "stored":
                    self.plan()
                else:
                    self._products.plan(way, 1, self.dtype)
            except MemoryLimitError as error:
                refusal = error if refusal is None or error.needed < refusal.needed else refusal
            else:
                return way
        raise refusal or AssertionError("there is no way to make a product")

    @_on_device
    def _multiply(self, v: Any, *, transposed: bool) -> FloatArray:
        vectors = as_array("v", v, ndim=(1, 2), finite=False)
        rows = self.shape[0 if transposed else 1]
        if vectors.shape[0] != rows:
            raise ValueError(f"v must have {rows} rows, got shape {vectors.shape}")
        if is_cupy(vectors) != is_cupy(self._example):
            kind, place = ("CuPy", "the CPU") if is_cupy(vectors) else ("NumPy", "a GPU")
            raise BackendError(f"v is a {kind} array, but the features are on {place}: move one of them")
        cuda.device_of(feats=[self._example], v=[vectors])
        way = self._chosen_way()
        if way == "stored":
            kernel = self.gram().T if transposed else self.gram()
            return stored_multiply(kernel, vectors, check_finite=self._check_finite)
        if vectors.size == 0:
            empty = (self.shape[1 if transposed else 0], 0)
            return array_namespace(vectors).zeros(empty, np.result_type(self.dtype, vectors.dtype))  # type: ignore[no-any-return]
        product = self._products.multiply(way, vectors.reshape(rows, -1), transposed=transposed)
        return product.reshape(-1) if vectors.ndim == 1 else product

    def _exact_diagonal(self, what: str) -> npt.NDArray[np.float64]:
        if self._feats2 is not None:
            raise ValueError(f"{what} is that of a symmetric kernel, but this operator was given feats2")
        return diagonal(self._feats, self._outputs, self._weights, self._limit)


def _arrays(given: Any) -> tuple[FloatArray, ...]:
    return tuple(
        as_array("preconditioner", array) for array in (given if isinstance(given, tuple | list) else (given,))
    )
