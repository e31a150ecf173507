"""Kernel gradient flow of a kernel that is known by its products, from Krylov spaces of the targets."""

from __future__ import annotations

import math

import numpy as np
import scipy.linalg

from kernelgrowth._backend.arrays import FloatArray
from kernelgrowth._backend.errors import MemoryLimitError
from kernelgrowth._backend.memory import format_bytes
from kernelgrowth.diagnostics.flow import kept_rates, time_where
from kernelgrowth.diagnostics.scaled_operator import ScaledOperator

__all__ = ["KrylovFlow"]

_FIRST_CAPACITY = 32


class KrylovFlow:
    """The flow ``df/dt = -K (f - y) / N`` (with weight decay μ / N) of `KernelFlow`, by the Lanczos iteration.

    After j products, the Krylov space of a right-hand side ``b = y - f_0`` has an orthonormal basis V in which K is a
    tridiagonal matrix T, and its coefficients are ``|b| V g(T) e_1``, ``g(λ) = (1 - exp(-(λ + μ) t / N)) / (λ + μ)``;
    the training loss is the Gauss quadrature that T is (Golub and Meurant, Matrices, Moments and Quadrature, 2010).
    The basis serves every time. It grows until what it leaves of the differential equation, ``β_j |e_jᵀ g(T) e_1|``,
    is small: that number increases with t and bounds the relative error of ``f(t)`` on the training examples, by
    Duhamel's formula.

    Parameters
    ----------
    operator : ScaledOperator
        K, (n, n).
    residuals : (n, m) float64 array
        ``y - f_0``.
    final : (n, m) float64 array
        The coefficients at t = ∞.
    final_loss : float
        The training loss there.
    final_error : float
        Error of the predictions there, in the units of `tol`.
    ridge, cutoff, examples
        As in `KernelFlow`.
    tol : float
        Error of the predictions on the training examples, relative to ``|y - f_0|`` of each column.
    max_iterations : int
        Vectors of a basis at most.
    memory_limit : int
        Bytes that the bases may take together.

    Attributes
    ----------
    error : float
        What bounds the relative error of the latest result, worst column.
    settled : bool
        Whether it is as small as was wanted, `tol` or less; only `max_iterations` keeps it from that.

    Notes
    -----
    Work: a product with at most m columns an iteration, and 8 n j² operations a column for a basis that is
    orthogonalised in full, without which its T would repeat eigenvalues. Memory: n (j + m) values a column.
    """

    def __init__(
        self,
        operator: ScaledOperator,
        residuals: FloatArray,
        *,
        final: FloatArray,
        final_loss: float,
        final_error: float,
        ridge: float,
        cutoff: float,
        examples: int,
        tol: float,
        max_iterations: int,
        memory_limit: int,
    ) -> None:
        self._operator, self._final = operator, final
        self._final_loss, self._final_error = final_loss, final_error
        self._ridge, self._examples, self._tol = ridge, examples, tol
        self._most, self._limit = min(max_iterations, len(residuals)), memory_limit
        self._columns = [_KrylovSpace(column, ridge, cutoff) for column in residuals.T]
        self.error, self.settled = 0.0, True

    def coefficients(self, t: float) -> FloatArray:
        """Return α at time t, (n, m); t may be infinite.

        Raises
        ------
        MemoryLimitError
            If the bases leave the memory limit.
        """
        if t == 0 or self._ended(t):
            self.error, self.settled = 0.0, True
            return np.zeros_like(self._final) if t == 0 else self._final
        time = t / self._examples
        self._settle(time, self._tol)
        return np.stack([column.coefficients(time) for column in self._columns], axis=1)

    def loss(self, t: float) -> float:
        """Return ``½⟨(f(t) - y)²⟩`` on the training examples; it raises what `coefficients` does."""
        return self._loss(t, self._tol)

    def time_of_loss(self, loss: float) -> float:
        """Return the time at which the training loss equals `loss`.

        Raises
        ------
        ValueError
            If `loss` is above the loss at t = 0 or below that at t = ∞ by more than the tolerance.
        MemoryLimitError
            If the bases leave the memory limit.
        """
        first, last = self.loss(0.0), self._final_loss
        # What is left of the target at t = ∞ is known to so much of |y - f_0|, and the loss is its square.
        known = max(self._tol, self._final_error)
        doubt = first * known * (2 * math.sqrt(last / first) + known) if first else 0.0
        if not last - doubt <= loss <= first * (1 + 1e-12):
            raise ValueError(f"train_loss must be between {last:.6g} (t = inf) and {first:.6g} (t = 0), got {loss:.6g}")
        self.error, self.settled = 0.0, True
        if loss >= first:
            return 0.0
        if loss <= last + doubt:
            return math.inf
        # A bound of √tol on the remaining residual is one of about tol on the loss, for quadrature errs in the second
        # order.
        tol = self._tol * min(1.0, math.sqrt(loss / first / self._tol))
        self._settle(1.0, tol)
        start = self._examples / max(column.largest for column in self._columns)
        return time_where(lambda t: self._loss(t, tol), loss, start=start)

    def _ended(self, t: float) -> bool:
        # What is left of the way to the end is at most exp(-μ t / N) of the beginning, whatever K.
        return math.exp(-self._ridge * (t / self._examples)) <= self._tol * 1e-3 or t == math.inf

    def _loss(self, t: float, tol: float) -> float:
        if self._ended(t):
            return self._final_loss
        time = t / self._examples
        if t > 0:
            self._settle(time, tol)
        return sum(column.squared_distance(time) for column in self._columns) / (2 * self._examples)

    def _settle(self, time: float, tol: float) -> None:
        """Enlarge the spaces until all of them give the flow at this time within `tol`."""
        while True:
            errors = [column.error(time) for column in self._columns]
            behind = [c for c, error in zip(self._columns, errors, strict=True) if error > tol and c.size < self._most]
            if not behind:
                self.error = max(errors)
                self.settled = self.error <= tol
                return
            # Looking costs the eigenvalues of T: a few products are made at a time.
            for _ in range(max(4, min(column.size for column in behind) // 8)):
                behind = [column for column in behind if column.size < self._most and not column.exhausted]
                if not behind:
                    break
                self._check_memory()
                images = self._operator.exact(np.stack([column.newest for column in behind], axis=1))
                dry = self._operator.eps * self._operator.norm
                for column, image in zip(behind, images.T, strict=True):
                    column.append(image, dry)

    def _check_memory(self) -> None:
        n = len(self._final)
        needed = 8 * n * sum(column.vectors for column in self._columns)
        if needed > self._limit:
            raise MemoryLimitError(
                f"kernel flow of {len(self._columns)} right-hand side(s) of {n} values needs Krylov bases of "
                f"{format_bytes(needed)} or more, but memory_limit is {format_bytes(self._limit)}: take a shorter "
                "time, a larger tol or a larger ridge",
                needed=needed,
                limit=self._limit,
            )


class _KrylovSpace:
    """An orthonormal basis of the Krylov space of one vector, and functions of K + μ I projected on it."""

    def __init__(self, start: FloatArray, ridge: float, cutoff: float) -> None:
        self._ridge, self._cutoff = ridge, cutoff
        exponent = int(np.frexp(np.abs(start).max())[1])
        start = np.ldexp(start, -exponent)
        length = float(np.linalg.norm(start))
        self._length = math.ldexp(length, exponent)
        self._diagonal: list[float] = []
        self._beside: list[float] = []
        self._basis = np.empty((len(start), min(_FIRST_CAPACITY, len(start)) + 1), order="F")
        self._basis[:, 0] = start / (length or 1.0)
        self.exhausted = length == 0.0
        self._solved: tuple[int, FloatArray, FloatArray] = (0, np.empty(0), np.empty((0, 0)))

    @property
    def size(self) -> int:
        return len(self._diagonal)

    @property
    def vectors(self) -> int:
        """Vectors in memory while the next one is taken, which the basis may have to move for."""
        return self.size + 1 if self.size + 1 < self._basis.shape[1] else 2 * (self.size + 1)

    @property
    def newest(self) -> FloatArray:
        return np.asarray(self._basis[:, self.size])

    @property
    def largest(self) -> float:
        """Largest eigenvalue of K + μ I on the space."""
        return float(self._eigen()[0].max(initial=0.0))

    def append(self, image: FloatArray, dry: float) -> None:
        """Take the image of the newest vector; what is left of it outside the space is the next, if more than `dry`."""
        known = self._basis[:, : self.size + 1]
        self._diagonal.append(float(known[:, -1] @ image))
        for _ in range(2):
            image = image - known @ (known.T @ image)
        left = float(np.linalg.norm(image))
        self.exhausted = left <= dry or self.size == len(image)
        self._beside.append(0.0 if self.exhausted else left)
        if self.exhausted:
            return
        if self.size == self._basis.shape[1]:
            larger = np.empty((len(image), min(2 * self.size, len(image)) + 1), order="F")
            larger[:, : self.size] = self._basis
            self._basis = larger
        self._basis[:, self.size] = image / left

    def coefficients(self, time: float) -> FloatArray:
        """Return ``g(K) b``, (n,), for the time t / N."""
        return np.asarray(self._basis[:, : self.size] @ (self._length * self._projected(time)))

    def error(self, time: float) -> float:
        """Return what the space leaves of the differential equation, relative to b."""
        if self.exhausted:
            return 0.0
        return self._beside[-1] * abs(float(self._projected(time)[-1])) if self.size else math.inf

    def squared_distance(self, time: float) -> float:
        """Return ``|f(t) - y|²``."""
        if not self.size:
            return self._length**2
        rates, rotation = self._eigen()
        kept = kept_rates(rates, self._cutoff)
        shares = np.where(kept, np.clip(1.0 - self._ridge / np.where(kept, rates, 1.0), 0.0, 1.0), 0.0)
        remaining = (1.0 - shares) + shares * np.exp(-np.where(kept, rates, 0.0) * time)
        return self._length**2 * float(np.sum((remaining * rotation[0]) ** 2))

    def _projected(self, time: float) -> FloatArray:
        """Return ``g(T) e_1``; directions that the cut-off drops stay at rest."""
        rates, rotation = self._eigen()
        kept = kept_rates(rates, self._cutoff) if self.size else np.zeros(0, bool)
        rates, rotation = rates[kept], rotation[:, kept]
        return np.asarray(rotation @ (-np.expm1(-rates * time) / rates * rotation[0]))

    def _eigen(self) -> tuple[FloatArray, FloatArray]:
        """Return eigenvalues of ``T + μ`` and eigenvectors of T."""
        if self._solved[0] != self.size:
            values, rotation = scipy.linalg.eigh_tridiagonal(
                np.array(self._diagonal), np.array(self._beside[:-1]), check_finite=False
            )
            self._solved = self.size, values + self._ridge, rotation
        return self._solved[1:]
