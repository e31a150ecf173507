"""Frequent Directions: a matrix with a few rows that stands for one with any number of them.

After Ghashami, Liberty, Phillips and Woodruff, "Frequent Directions: simple and deterministic matrix sketching", SIAM
J. Comput. 45 (2016). It differs from the paper's algorithm in three ways: the buffer has room for as many new rows as
the sketch has, so that a shrinkage is due only once for so many rows (their section 3.2); what is shrunk is found from
the small Gram matrix of the buffer rather than from an SVD of it, since rows are as long as a network has parameters;
and what was subtracted is counted, not only from above: a shrinkage takes exactly δ from every direction that it keeps,
and what of this is certain to lie in the directions kept now is carried along as a small matrix. Adding it back
("compensation", Desai, Ghashami and Phillips 2016) then gives lower bounds, not only better estimates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.linalg

__all__ = ["FrequentDirections", "Leading"]

Float64Array = npt.NDArray[np.float64]

# Parameters taken together: the buffer's rows of so many stay in the second-level cache.
_PIECE = 4096
# Rows whose kept projections are rotated together.
_SLAB = 4096
_UNIT_ROUNDOFF = 2.0**-53
# Sketch rows whose squared norm is below this part of the buffer's are compensated for no more: their directions are
# known too badly.
_SHORTEST = 1e-9
# Rounds of Cholesky orthonormalisation: the second makes good for the rounding of the first, the third for the worst
# of the random rows that complete a set.
_ROUNDS = 3


@dataclass(frozen=True, eq=False)
class Leading:
    """What is known of ``H = GᵀG``: it lies between Ĥ and ``AᵀA + Δ I``, A the buffer, up to `rounding` on either side.

    Attributes
    ----------
    lower, upper : (k + 1,) array
        The largest eigenvalues of Ĥ and of ``AᵀA + Δ I``, descending.
    directions : (k, p) array
        Orthonormal rows: the leading eigenvectors of Ĥ, as many as `found` say; random ones complete the set.
    found : int
        Directions whose values are above rounding.
    shrinkage : float
        Δ.
    unsettled : float
        Largest eigenvalue of ``AᵀA + Δ I - Ĥ`` restricted to the `directions` found.
    rounding : float
    """

    lower: Float64Array
    upper: Float64Array
    directions: Float64Array
    found: int
    shrinkage: float
    unsettled: float
    rounding: float


@dataclass(frozen=True, eq=False)
class _Spectrum:
    """``AAᵀ = Σ λ_i u_i u_iᵀ * 4**exponent``, λ descending, up to `rounding` in these units; `norms` are A's rows'."""

    values: Float64Array
    vectors: Float64Array
    norms: Float64Array
    exponent: int
    rounding: float


@dataclass(frozen=True, eq=False)
class _Inner:
    """Eigenpairs of a small matrix, values descending, up to `rounding`."""

    values: Float64Array
    vectors: Float64Array
    rounding: float


class FrequentDirections:
    """A sketch B of the rows G seen so far, with ``-ρ I <= GᵀG - BᵀB <= (Δ + ρ) I``.

    Parameters
    ----------
    size : int
        Rows that a shrinkage leaves at most, ℓ.
    num_parameters : int
        Length p of a row.
    keep_projections : bool
        Whether the projections of every row are kept, up to ℓ numbers a row.

    Attributes
    ----------
    shrinkage : float
        Δ, the sum of what shrinkages subtracted from the kept eigenvalues.
    rounding : float
        ρ, a bound on what the rounding of all shrinkages did to BᵀB and to the compensation.

    Notes
    -----
    A shrinkage takes the ``n <= 2 ℓ`` rows A of the buffer, writes ``AᵀA = Σ λ_i v_i v_iᵀ``, and keeps
    ``Σ_{i <= ℓ} (λ_i - δ) v_i v_iᵀ`` with ``δ = λ_{ℓ+1}``: every direction loses between 0 and δ. Its rounding is
    bounded by ``c u tr(AᵀA)``: with inner products summed in pieces of w, c is w + p/w for the Gram matrix, and 10 n
    and 2 n^1.5 for its eigenvectors and for the rows made of them. Directions not above that are dropped.

    The compensation C, in the directions Q of the sketch, satisfies ``GᵀG >= BᵀB + Q C Qᵀ`` in the order of symmetric
    matrices. After a shrinkage ``Q C Qᵀ + Σ min(λ_i, δ) v_i v_iᵀ`` may be added; of that, the largest part that lives
    in the kept directions alone is its Schur complement (the shorted operator, Anderson and Trapp 1975).
    """

    def __init__(self, size: int, num_parameters: int, *, keep_projections: bool) -> None:
        self._size = size
        self._rows: Float64Array = np.empty((2 * size, num_parameters))
        self._used = 0
        self._sketched = 0
        self._compensation: Float64Array = np.zeros((0, 0))
        self._kept = _KeptProjections(size) if keep_projections else None
        self.shrinkage = 0.0
        self.rounding = 0.0

    @staticmethod
    def bytes(size: int, num_parameters: int) -> int:
        """Return what a sketch of this size takes, its temporaries included."""
        n = 2 * size
        return 8 * (n * num_parameters + 3 * n * min(num_parameters, _PIECE) + 8 * n * n)

    @staticmethod
    def projection_bytes(size: int, rows: int) -> int:
        """Return what the kept projections of so many rows take, with the room they grow into."""
        return 8 * (3 * rows * (size + 1) + 4 * size * min(rows, _SLAB))

    def room(self) -> Float64Array:
        """Return the unused rows of the buffer, at least one; where there are none, it is shrunk first."""
        if self._used == len(self._rows):
            self._shrink()
        return self._rows[self._used :]

    def advance(self, count: int) -> None:
        """Count so many rows of `room` as used."""
        self._used += count

    def leading(self, k: int) -> Leading:
        """Return the k leading directions of the rows so far, and bounds on their values, nothing shrunk for it."""
        spectrum = self._spectrum()
        inner = self._inner(spectrum)
        found = min(k, len(inner.values))
        leading, square = inner.vectors[:, :found], 2 * spectrum.exponent
        # AᵀA is diagonal in these coordinates, and Ĥ in the leading directions.
        above = leading.T @ (spectrum.values[: len(leading), None] * leading) - np.diag(inner.values[:found])
        most = math.ldexp(float(np.linalg.eigvalsh(above)[-1]), square) if found else 0.0
        return Leading(
            lower=np.ldexp(_padded(inner.values, k + 1), square),
            upper=np.ldexp(_padded(spectrum.values, k + 1), square) + self.shrinkage,
            directions=self._written_out(spectrum, leading, k),
            found=found,
            shrinkage=self.shrinkage,
            unsettled=min(max(0.0, self.shrinkage + most), self.shrinkage),
            rounding=self.rounding + math.ldexp(spectrum.rounding + inner.rounding, square),
        )

    def projections(self, k: int) -> tuple[Float64Array, Float64Array]:
        """Return the projections of every row on the k leading directions, (rows, k), and a bound on what each lost.

        Directions that are not above rounding have projections 0. Rounding is not in the bound.
        """
        assert self._kept is not None
        spectrum = self._spectrum()
        leading = self._inner(spectrum).vectors[:, :k]
        old, new = (part[:, : len(leading)] @ leading for part in _rotation(spectrum, self._sketched))
        coordinates, lost = self._kept.rotated(old, new)
        result = np.zeros((len(coordinates), k))
        result[:, : coordinates.shape[1]] = coordinates
        return result, lost

    def _inner(self, spectrum: _Spectrum) -> _Inner:
        """Return the eigenpairs of Ĥ, in the coordinates of the buffer's right singular vectors above rounding."""
        resolved = int(np.count_nonzero(spectrum.values > spectrum.rounding))
        lifted, rounding = self._lifted(spectrum)
        matrix = _shorted(np.diag(spectrum.values) + lifted, resolved, spectrum.rounding)
        values, vectors = scipy.linalg.eigh(matrix, check_finite=False) if resolved else (np.empty(0), matrix)
        return _Inner(values[::-1], vectors[:, ::-1], 2.0 * spectrum.rounding + rounding)

    def _lifted(self, spectrum: _Spectrum) -> tuple[Float64Array, float]:
        """Return the compensation in the coordinates of the buffer's right singular vectors, and its rounding."""
        squares = np.square(spectrum.norms)
        known = int(np.count_nonzero(squares[: self._sketched] > _SHORTEST * squares.sum()))
        if not known:
            return np.zeros((len(squares), len(squares))), 0.0
        compensation = np.ldexp(self._compensation, -2 * spectrum.exponent)
        compensation = _shorted(compensation, known, spectrum.rounding)
        rotation = _rotation(spectrum, self._sketched)[0][:known]
        # Eigenvectors are known up to rounding relative to the longest row, and are divided by the shortest here.
        relative = 10 * len(squares) * _UNIT_ROUNDOFF * math.sqrt(float(squares.sum() / squares[:known].min()))
        rounding = spectrum.rounding + 2.0 * relative * float(np.linalg.norm(compensation, 2))
        return rotation.T @ compensation @ rotation, rounding

    def _written_out(self, spectrum: _Spectrum, leading: Float64Array, k: int) -> Float64Array:
        """Return `k` orthonormal rows, the first given by coordinates in the buffer's right singular vectors."""
        directions = np.zeros((k, self._rows.shape[1]))
        resolved, found = leading.shape
        weights = (spectrum.vectors[:, :resolved] / np.sqrt(spectrum.values[:resolved])) @ leading
        factor = math.ldexp(1.0, -spectrum.exponent)
        for piece in _pieces(directions.shape[1]):
            directions[:found, piece] = weights.T @ (self._rows[: self._used, piece] * factor)
        _orthonormalise(directions, found)
        return directions

    def _spectrum(self) -> _Spectrum:
        rows = self._rows[: self._used]
        n, p = rows.shape
        largest = max(float(rows.max()), -float(rows.min())) if n else 0.0
        # A power of two keeps every bit, and squares of rows near 1e-200 above zero.
        exponent = max(math.frexp(largest)[1], -1000)
        gram = _gram(rows, math.ldexp(1.0, -exponent))
        trace = float(np.trace(gram))
        values, vectors = scipy.linalg.eigh(gram, driver="evd", check_finite=False) if n else (np.empty(0), gram)
        constant = min(p, _PIECE) + p / _PIECE + 10 * n + 2 * n**1.5
        return _Spectrum(
            values=np.maximum(values[::-1], 0.0),
            vectors=vectors[:, ::-1],
            norms=np.sqrt(np.diag(gram)),
            exponent=exponent,
            rounding=constant * _UNIT_ROUNDOFF * trace,
        )

    def _shrink(self) -> None:
        spectrum = self._spectrum()
        values, size = spectrum.values, self._size
        delta = float(values[size]) if values[size] > spectrum.rounding else 0.0
        count = int(np.count_nonzero(values[:size] > delta + spectrum.rounding))
        if self._kept is not None:
            self._kept.replace(*_rotation(spectrum, self._sketched), count)
        weights = (spectrum.vectors[:, :count] * np.sqrt(1.0 - delta / values[:count])).T
        for piece in _pieces(self._rows.shape[1]):
            self._rows[:count, piece] = weights @ self._rows[:, piece]
        added, rounding = self._lifted(spectrum)
        added[np.diag_indices_from(added)] += np.minimum(values, delta)
        self._compensation = np.ldexp(_shorted(added, count, spectrum.rounding), 2 * spectrum.exponent)
        self._used = self._sketched = count
        self.shrinkage += math.ldexp(delta, 2 * spectrum.exponent)
        # Once for what was computed, once for the directions dropped because they did not rise above it, and once for
        # the Schur complement.
        self.rounding += math.ldexp(3.0 * spectrum.rounding + rounding, 2 * spectrum.exponent)


class _KeptProjections:
    """The coordinates of every row seen, in the directions of the sketch, carried through its rotations.

    A row's coordinates in the directions that a shrinkage drops are lost for it. Their norms are added up: a projection
    on any later direction differs from that of the row itself by no more than this sum.
    """

    def __init__(self, size: int) -> None:
        self._coordinates: Float64Array = np.zeros((0, size))
        self._lost: Float64Array = np.zeros(0)
        self._count = 0

    def rotated(self, old: Float64Array, new: Float64Array) -> tuple[Float64Array, Float64Array]:
        """Return all coordinates rotated, with those of new rows after them, and what was lost up to now."""
        result = np.empty((self._count + len(new), new.shape[1]))
        result[: self._count] = self._coordinates[: self._count, : len(old)] @ old
        result[self._count :] = new
        return result, np.concatenate([self._lost[: self._count], np.zeros(len(new))])

    def replace(self, old: Float64Array, new: Float64Array, kept: int) -> None:
        """Rotate all coordinates, take in those of new rows, and keep the first `kept` directions."""
        self._grow(len(new))
        for start in range(0, self._count, _SLAB):
            slab = slice(start, min(start + _SLAB, self._count))
            rotated = self._coordinates[slab, : len(old)] @ old
            self._coordinates[slab, :kept] = rotated[:, :kept]
            self._lost[slab] += np.linalg.norm(rotated[:, kept:], axis=1)
        arrived = slice(self._count, self._count + len(new))
        self._coordinates[arrived, :kept] = new[:, :kept]
        self._lost[arrived] = np.linalg.norm(new[:, kept:], axis=1)
        self._count += len(new)

    def _grow(self, rows: int) -> None:
        needed = self._count + rows
        if needed > len(self._lost):
            capacity = max(needed, 2 * len(self._lost))
            for name in ("_coordinates", "_lost"):
                held = getattr(self, name)
                larger = np.zeros((capacity, *held.shape[1:]))
                larger[: self._count] = held[: self._count]
                setattr(self, name, larger)


def _rotation(spectrum: _Spectrum, sketched: int) -> tuple[Float64Array, Float64Array]:
    """Return what coordinates in the sketch's directions become in A's, and the coordinates of A's other rows.

    With ``A = Σ σ_i u_i v_iᵀ``, row r of A has the coordinates ``σ_i u_ri``; a row of the sketch is a direction times
    its norm.
    """
    coordinates = spectrum.vectors * np.sqrt(spectrum.values)
    old = coordinates[:sketched] / spectrum.norms[:sketched, None]
    new = np.ldexp(coordinates[sketched:], spectrum.exponent)
    return old, new


def _padded(values: Float64Array, length: int) -> Float64Array:
    """Return the first `length` values, and zeros where there are fewer."""
    return np.concatenate([values[:length], np.zeros(max(0, length - len(values)))])


def _shorted(matrix: Float64Array, kept: int, shift: float) -> Float64Array:
    """Return the largest matrix on the first `kept` coordinates below ``matrix + shift I``, `matrix` semi-definite."""
    if kept == 0:
        return np.zeros((0, 0))
    corner, side, rest = matrix[:kept, :kept], matrix[kept:, :kept], matrix[kept:, kept:]
    if not len(rest):
        return corner
    factor = scipy.linalg.cho_factor(rest + shift * np.eye(len(rest)), check_finite=False)
    result = corner - side.T @ scipy.linalg.cho_solve(factor, side, check_finite=False)
    return np.asarray(result + result.T) / 2


def _pieces(length: int) -> Iterator[slice]:
    return (slice(start, start + _PIECE) for start in range(0, length, _PIECE))


def _gram(rows: Float64Array, factor: float) -> Float64Array:
    total: Any = np.zeros((len(rows), len(rows)))
    for piece in _pieces(rows.shape[1]):
        part = rows[:, piece] * factor
        total += part @ part.T
    return np.asarray(total)


def _orthonormalise(rows: Float64Array, found: int) -> None:
    """Make `rows` orthonormal in place, the span of the first few kept; those from `found` on are chosen at random.

    The inverse of the Gram matrix' Cholesky factor does it, in pieces of columns and so without a second copy.
    """
    rows[found:] = np.random.default_rng(0).standard_normal((len(rows) - found, rows.shape[1]))
    for _ in range(_ROUNDS):
        rows /= np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, None]
        factor = scipy.linalg.cholesky(_gram(rows, 1.0), lower=True, check_finite=False)
        for piece in _pieces(rows.shape[1]):
            rows[:, piece] = scipy.linalg.solve_triangular(factor, rows[:, piece], lower=True, check_finite=False)
