"""`StreamingTopK`: the top of a kernel's spectrum from gradients that are seen once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kernelgrowth._backend.arrays import like
from kernelgrowth._backend.checks import check_integer
from kernelgrowth._backend.errors import MemoryLimitError
from kernelgrowth._backend.memory import format_bytes, resolve_memory_limit
from kernelgrowth.spectra.frequent_directions import FrequentDirections, Leading
from kernelgrowth.spectra.gradient_rows import GradientRows, gradient_rows

__all__ = ["StreamingResult", "StreamingTopK"]

# Rows beyond 2 k in a default sketch: they let a small k see past its own eigenvalues.
_EXTRA_ROWS = 10
# Gradients that `transform` writes out together.
_STEP_BYTES = 1 << 22


@dataclass(frozen=True, eq=False)
class StreamingResult:
    """Top eigenpairs of ``K = G Gᵀ`` from one pass over the rows of G (n, p), and what is certain about them.

    Attributes
    ----------
    eigenvalues : (k,) array
        Descending, float64 (squares of float32 rows leave the range of float32). Each is the middle of the interval
        that holds the eigenvalue of K: half its width is the least error that can be promised. K has the eigenvalues of
        GᵀG; those beyond the n-th are 0.
    directions : (p, k) array
        The top right singular vectors of the sketch, orthonormal columns in the dtype of the rows: directions in the
        space of parameters, eigenvectors of GᵀG. Where the stream has fewer than k of them above rounding, random
        directions complete the set.
    value_bound : float
        ``|λ_i(K) - eigenvalues[i]| <= value_bound`` for every i: ``shrinkage / 2 + rounding``.
    subspace_bound : float
        Bound on the sine of the largest angle between the span of `directions` and that of the k leading eigenvectors
        of GᵀG. 1.0 says that nothing is known, as where the gap after the k-th eigenvalue is no wider than twice
        `value_bound`.
    shrinkage : float
        Δ of the sketch B: ``0 <= GᵀG - BᵀB <= Δ I``, up to `rounding` on either side.
    rounding : float
        Bound on the effect of rounding on BᵀB.
    trace : float
        ``tr K = Σ ||g||²``, exact up to float64 rounding.
    rows_seen, num_parameters : int
        n and p.
    projections : (n, k) array or None
        With ``keep_projections``: each row's inner products with `directions`, as the sketch retained the row, in the
        dtype of the rows. A row is retained as what was left of it by the projections onto the sketch's directions
        after every shrinkage since it came; rows since the last shrinkage are whole.
    projection_errors : (n,) array or None
        float64: bound on the Euclidean distance of each row of `projections` from ``g @ directions``.
    eigenvectors : (n, k) array or None
        With ``keep_projections``: approximate eigenvectors of K, the columns of `projections` scaled to length one
        (zero where nothing rose above rounding). They are orthogonal only as far as nothing was lost.
    """

    eigenvalues: Any
    directions: Any
    value_bound: float
    subspace_bound: float
    shrinkage: float
    rounding: float
    trace: float
    rows_seen: int
    num_parameters: int
    projections: Any = None
    projection_errors: Any = None
    eigenvectors: Any = None


class StreamingTopK:
    """Follow the top of the spectrum of ``K = G Gᵀ`` while the rows of G, per-example gradients, arrive once.

    Parameters
    ----------
    k : int
        Number of eigenpairs, at most p.
    sketch_size : int, optional
        Rows ℓ >= k that the sketch is shrunk to, ``2 k + 10`` unless given. The larger, the tighter the bounds:
        ``Δ <= (λ_{j+1} + λ_{j+2} + …) / (ℓ - j)`` for every j < ℓ (Ghashami et al. 2016), and 0 up to 2 ℓ rows.
    keep_projections : bool
        Whether every row's projection on the final directions is kept. This memory grows with the rows: ℓ + 1 numbers
        a row, up to three times that while it is enlarged. It takes ``4 ℓ`` operations for each row kept and new row.
    memory_limit : int, optional
        Bytes for the sketch, its temporaries, the result and kept projections; half of what is available unless given.
        The rows handed over are not counted.

    Notes
    -----
    The sketch (Frequent Directions, `kernelgrowth.spectra.frequent_directions`) is kept in float64 whatever the rows
    are, in ``16 ℓ p`` bytes; a row takes about ``8 ℓ p`` operations. Rows may have any size whose
    square float64 can hold.
    The result depends on the rows and their order, not on the chunks they came in.

    Examples
    --------
    >>> top = StreamingTopK(10)
    >>> for index in range(chunked.num_chunks):
    ...     top.partial_fit(chunked.chunk(index))
    >>> top.result().eigenvalues
    """

    def __init__(
        self, k: int, *, sketch_size: int | None = None, keep_projections: bool = False, memory_limit: int | None = None
    ) -> None:
        self.k = check_integer("k", k, minimum=1)
        self.sketch_size = 2 * self.k + _EXTRA_ROWS
        if sketch_size is not None:
            self.sketch_size = check_integer("sketch_size", sketch_size, minimum=1)
            if self.sketch_size < self.k:
                raise ValueError(f"sketch_size must be at least k = {self.k}, got {self.sketch_size}")
        if not isinstance(keep_projections, bool | np.bool_):
            raise TypeError(f"keep_projections must be True or False, got {type(keep_projections).__name__}")
        if memory_limit is not None:
            check_integer("memory_limit", memory_limit, minimum=1)
        self._keep = bool(keep_projections)
        self._given_limit = memory_limit
        self._limit = 0
        self._sketch: FrequentDirections | None = None
        self._template: Any = None
        self._dtype: np.dtype[Any] = np.dtype(np.float64)
        self._num_parameters = 0
        self._trace = 0.0
        self._rows_seen = 0
        self._interrupted = False
        self._result: StreamingResult | None = None
        self._directions: npt.NDArray[Any] = np.zeros((0, self.k))

    @property
    def rows_seen(self) -> int:
        """Rows taken in so far, n."""
        return self._rows_seen

    def __repr__(self) -> str:
        about = f"k={self.k}, sketch_size={self.sketch_size}"
        return f"StreamingTopK({about}, rows_seen={self._rows_seen}, num_parameters={self._num_parameters})"

    def partial_fit(self, rows: Any) -> StreamingTopK:
        """Take in rows of G; they are not needed afterwards.

        Parameters
        ----------
        rows : (m, p) array or GradientFeatures
            One gradient a row, float32 or float64 (NumPy, or through DLPack), or the features of N examples and C
            outputs: N·C rows, example-major, of which a few at a time are written out in float64, block after block, a
            weight by rows and then its bias, times ``sqrt(scale)``. p and the dtype are the same in every call.

        Returns
        -------
        StreamingTopK
            Itself.

        Raises
        ------
        TypeError
            If `rows` is neither, or of another dtype than before.
        ValueError
            If p is not what it was before, or less than k, or if a value is not finite or a squared norm leaves the
            range of float64.
        BackendError
            If features hold CuPy arrays.
        MemoryLimitError
            If the sketch, or the projections to be kept, do not fit `memory_limit`.
        RuntimeError
            If an earlier call was interrupted while it took rows in: how many of them are in the sketch is not known.

        Notes
        -----
        Everything is checked before any row is taken in: after an exception named here the stream is what it was.
        """
        self._check_whole()
        source = gradient_rows("rows", rows)
        self._check_like_before(source)
        limit = self._limit if self._sketch is not None else resolve_memory_limit(self._given_limit)
        total = self._trace + self._checked_trace(source, limit)
        if not total <= float(np.finfo(np.float64).max) / 4:
            raise ValueError(f"rows must be finite with squared norms that float64 can add up, got a sum of {total:g}")
        if self._sketch is None:
            self._start(source, limit)
        self._interrupted = True
        self._absorb(source)
        self._trace, self._rows_seen, self._result = total, self._rows_seen + source.num_rows, None
        self._interrupted = False
        return self

    def result(self) -> StreamingResult:
        """Return the eigenpairs of the rows so far; more rows may follow.

        Raises
        ------
        ValueError
            If there was no row yet.
        RuntimeError
            As in `partial_fit`.
        """
        self._check_whole()
        if self._sketch is None or not self._rows_seen:
            raise ValueError("rows must have been given to partial_fit before there is a result, got none")
        if self._result is None:
            self._result = self._computed(self._sketch)
        return self._result

    def transform(self, rows: Any) -> Any:
        """Return the inner products of rows with the directions found so far, ``rows @ result().directions``.

        Parameters
        ----------
        rows : (m, p) array or GradientFeatures
            As in `partial_fit`, of either dtype.

        Returns
        -------
        (m, k) array
            Computed in float64, of the kind and dtype of `rows`.

        Raises
        ------
        TypeError, ValueError, BackendError
            As in `partial_fit`; and if there was no row yet.
        """
        self.result()
        source = gradient_rows("rows", rows)
        self._check_parameters(source)
        directions = self._directions.astype(np.float64, copy=False)
        step = max(1, min(source.num_rows, _STEP_BYTES // (8 * self._num_parameters)))
        part = np.empty((step, self._num_parameters))
        out = np.empty((source.num_rows, self.k), source.dtype)
        for start in range(0, source.num_rows, step):
            used = part[: min(step, source.num_rows - start)]
            source.write(start, used)
            out[start : start + step] = used @ directions
        return like(out, source.template)

    def _check_whole(self) -> None:
        if self._interrupted:
            raise RuntimeError("partial_fit was interrupted while it took rows in: begin the stream anew")

    def _check_like_before(self, source: GradientRows) -> None:
        if self._sketch is None:
            if source.num_parameters < self.k:
                raise ValueError(f"rows must have at least k = {self.k} parameters, got {source.num_parameters}")
            return
        self._check_parameters(source)
        if source.dtype != self._dtype:
            raise TypeError(
                f"rows must be {self._dtype} like those before, got {source.dtype}: convert them explicitly"
            )

    def _check_parameters(self, source: GradientRows) -> None:
        if source.num_parameters != self._num_parameters:
            raise ValueError(
                f"rows must have {self._num_parameters} parameters like those before, got {source.num_parameters}"
            )

    def _checked_trace(self, source: GradientRows, limit: int) -> float:
        """Return Σ ||g||² of the new rows, once it is certain that they fit."""
        p, n = source.num_parameters, self._rows_seen + source.num_rows
        results = self.k * (p + (n if self._keep else 0)) * (8 + 2 * source.dtype.itemsize)
        kept = FrequentDirections.projection_bytes(self.sketch_size, n) if self._keep else 0
        needed = FrequentDirections.bytes(self.sketch_size, p) + results + kept + source.step_bytes
        norms = 16 * source.num_rows
        try:
            if needed + norms > limit:
                raise MemoryLimitError("", needed=norms, limit=limit)
            with np.errstate(over="ignore", invalid="ignore"):
                return float(source.squared_norms(limit - needed).sum())
        except MemoryLimitError as error:
            needed += error.needed
            raise MemoryLimitError(
                f"a sketch of {self.sketch_size} rows with {p} parameters needs {format_bytes(needed)}"
                f"{f' with the projections of {n} rows' if self._keep else ''}, but memory_limit is "
                f"{format_bytes(limit)}",
                needed=needed,
                limit=limit,
            ) from None

    def _start(self, source: GradientRows, limit: int) -> None:
        self._sketch = FrequentDirections(self.sketch_size, source.num_parameters, keep_projections=self._keep)
        self._num_parameters, self._dtype, self._limit = source.num_parameters, source.dtype, limit
        # An empty array of the same kind: the rows themselves are not to be kept alive.
        self._template = like(np.zeros(0, source.dtype), source.template)

    def _absorb(self, source: GradientRows) -> None:
        assert self._sketch is not None
        done = 0
        while done < source.num_rows:
            room = self._sketch.room()[: source.num_rows - done]
            source.write(done, room)
            self._sketch.advance(len(room))
            done += len(room)

    def _computed(self, sketch: FrequentDirections) -> StreamingResult:
        leading = sketch.leading(self.k)
        self._directions = leading.directions.astype(self._dtype, copy=False).T
        projections: dict[str, Any] = {}
        if self._keep:
            values, lost = sketch.projections(self.k)
            lost += math.sqrt(leading.rounding)
            lost += float(np.finfo(self._dtype).eps) * np.linalg.norm(values, axis=1)
            projections = {
                "projections": like(values.astype(self._dtype), self._template),
                "projection_errors": like(lost, self._template),
                "eigenvectors": like(_unit_columns(values).astype(self._dtype), self._template),
            }
        return StreamingResult(
            eigenvalues=like((leading.lower + leading.upper)[:-1] / 2, self._template),
            directions=like(self._directions, self._template),
            value_bound=like((leading.upper - leading.lower)[:-1] / 2 + leading.rounding, self._template),
            subspace_bound=_subspace_bound(leading, self._dtype),
            shrinkage=leading.shrinkage,
            rounding=leading.rounding,
            trace=self._trace,
            rows_seen=self._rows_seen,
            num_parameters=self._num_parameters,
            **projections,
        )


def _unit_columns(columns: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    largest = np.abs(columns).max(axis=0, initial=0.0)
    scaled = columns / np.where(largest > 0, largest, 1.0)
    norms = np.linalg.norm(scaled, axis=0)
    return np.asarray(scaled / np.where(norms > 0, norms, 1.0))


def _subspace_bound(leading: Leading, dtype: np.dtype[Any]) -> float:
    """Bound the sine of the largest angle between the directions and the k leading eigenvectors of ``H = GᵀG``.

    The directions V are eigenvectors of Ĥ, and ``E = H - Ĥ`` lies between 0 and Δ, up to rounding. By the sin Θ theorem
    for a half-line (Davis and Kahan 1970), the sine is at most ``||E V||`` over the distance of λ_k(Ĥ) from λ_{k+1}(H).
    Since E is semi-definite, ``||E V||² <= ||E|| ||Vᵀ E V||``, and the second factor is small where the compensation is
    good. Or else both are shifted by Δ/2, which leaves ``||E - Δ/2|| <= Δ/2``. The better of both is returned.
    """
    k, p = leading.directions.shape
    rounded = math.sqrt(k) * float(np.finfo(dtype).eps)
    if k == p:
        return rounded
    if leading.found < k:
        return 1.0
    rounding = 2.0 * leading.rounding
    error, within = leading.shrinkage + rounding, leading.unsettled + rounding
    last = float(leading.lower[k - 1])
    following = min(float(leading.upper[k]) + rounding, float(leading.lower[k]) + error)
    bounds = [
        moved / (last - following + shift)
        for moved, shift in ((math.sqrt(error * within), 0.0), (error / 2, error / 2))
        if moved < last - following + shift
    ]
    return min(1.0, *(bound + rounded for bound in bounds)) if bounds else 1.0
