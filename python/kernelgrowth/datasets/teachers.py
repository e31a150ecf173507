"""Gaussian inputs with any covariance spectrum, labelled by a teacher."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from kernelgrowth._backend.arrays import FloatArray, as_array
from kernelgrowth._backend.checks import check_choice, check_integer, check_number
from kernelgrowth.datasets.classification import float_type, whitening_exponent
from kernelgrowth.datasets.dataset import Dataset
from kernelgrowth.datasets.whitening import Whitening

__all__ = ["gaussian_teacher"]

TEACHERS = ("linear", "relu", "mlp")


def gaussian_teacher(
    n_train: int = 100,
    dim: int = 30,
    *,
    n_test: int = 0,
    spectrum: Any = None,
    power_law: float | None = None,
    teacher: str = "linear",
    s: Any = 1.0,
    outputs: int = 1,
    beta: Any = None,
    B: Any = None,
    teacher_width: int = 100,
    noise: float = 0.0,
    whiten: bool | float = False,
    seed: int = 0,
    dtype: npt.DTypeLike = np.float64,
) -> Dataset:
    """Draw inputs ``x ~ N(0, diag(spectrum))`` and label them by a linear, a ReLU or a random two-layer teacher.

    The teacher labels the inputs as they are returned (after whitening, where asked for).

    Parameters
    ----------
    n_train, dim : int
        Numbers of training examples N and of features D.
    n_test : int
        Number of test examples.
    spectrum : array_like (D,), optional
        Eigenvalues of the covariance, none negative, at least one positive, used as they are. All 1 by default.
    power_law : float, optional
        In place of `spectrum`: eigenvalues proportional to ``k^(-power_law)``, k = 1..D, with mean 1.
    teacher : {"linear", "relu", "mlp"}
        "linear": ``y = B x``. "relu": ``y = max(B x, 0)``. "mlp": a random two-layer ReLU network
        ``y = s sqrt(2/H) A max(W x, 0)`` with rows of W uniform on the unit sphere and A standard normal, so that
        ``E[y^2] = s^2`` on inputs of unit covariance.
    s : float or array_like
        Strength, > 0. With several outputs of a linear or ReLU teacher: the singular values of B, one for all modes or
        one each for at most min(outputs, D) modes.
    outputs : int
        Number of outputs C; ``y`` has shape (N,) for one and (N, C) for more.
    beta : array_like (D,), optional
        Direction of a teacher with one output, scaled to length 1. Uniform on the sphere by default.
    B : array_like (C, D), optional
        The whole teacher matrix, in place of `s`, `outputs` and `beta`. By default ``s beta^T``, or random orthonormal
        singular vectors with the singular values `s`.
    teacher_width : int
        Number of hidden units H of the "mlp" teacher.
    noise : float
        Standard deviation of Gaussian noise on the training targets. Test targets have none.
    whiten : bool or float
        True whitens the training inputs exactly; a float in [0, 1] is the gamma of `partial_whiten`. The test inputs
        get the same map. With N < D it keeps only the span of the training inputs.
    seed : int
        Training examples, test examples, teacher and noise are drawn from streams of their own: a change of `n_test`
        leaves the others as they are.
    dtype : float32 or float64
        Of inputs and targets. The arithmetic before is float64.

    Returns
    -------
    Dataset
        `info` holds ``teacher``, ``spectrum`` (D,), ``noise``, ``seed``, ``gamma`` (None if not whitened),
        ``whitening`` (the fitted `Whitening` or None); for a linear or ReLU teacher ``B`` (C, D), ``s`` (its singular
        values, or the strength for one output) and, for one output, ``beta`` (D,); for "mlp" ``s``, ``hidden_weights``
        (H, D) and ``output_weights`` (C, H), with which ``y = output_weights @ max(hidden_weights @ x, 0)``.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or out of range, or arguments contradict each other.
    """
    n_train = check_integer("n_train", n_train, minimum=1)
    dim = check_integer("dim", dim, minimum=1)
    n_test = check_integer("n_test", n_test, minimum=0)
    eigenvalues = _eigenvalues(spectrum, power_law, dim)
    check_choice("teacher", teacher, TEACHERS)
    outputs = check_integer("outputs", outputs, minimum=1)
    teacher_width = check_integer("teacher_width", teacher_width, minimum=1)
    noise = check_number("noise", noise, minimum=0.0)
    gamma = whitening_exponent(whiten)
    seed = check_integer("seed", seed, minimum=0)
    kind = float_type(dtype)
    train_rng, test_rng, teacher_rng, noise_rng = (np.random.default_rng([seed, stream]) for stream in range(4))

    if teacher == "mlp":
        if beta is not None or B is not None:
            raise ValueError("beta and B belong to a linear or ReLU teacher, not to 'mlp'")
        info = _mlp(check_number("s", s, minimum=0.0, exclusive_minimum=True), outputs, dim, teacher_width, teacher_rng)
    else:
        info = _matrix(s, outputs, beta, B, dim, teacher_rng)
    x = train_rng.standard_normal((n_train, dim)) * np.sqrt(eigenvalues)
    x_test = test_rng.standard_normal((n_test, dim)) * np.sqrt(eigenvalues) if n_test else None
    whitening = None
    if gamma is not None:
        whitening = Whitening.fit(x, gamma)
        x = whitening.transform(x)
        x_test = None if x_test is None else whitening.transform(x_test)
    y = _label(teacher, info, x)
    y = y + noise * noise_rng.standard_normal(y.shape)
    return Dataset(
        x.astype(kind),
        y.astype(kind),
        None if x_test is None else x_test.astype(kind),
        None if x_test is None else _label(teacher, info, x_test).astype(kind),
        name=f"Gaussian, {teacher} teacher",
        info={
            "teacher": teacher,
            "spectrum": eigenvalues,
            "noise": noise,
            "seed": seed,
            "gamma": gamma,
            "whitening": whitening,
            **info,
        },
    )


def _eigenvalues(spectrum: Any, power_law: float | None, dim: int) -> FloatArray:
    if power_law is not None:
        if spectrum is not None:
            raise ValueError("spectrum and power_law exclude each other: give one of them")
        exponent = check_number("power_law", power_law, minimum=0.0)
        values = np.arange(1.0, dim + 1.0) ** -exponent
        return np.asarray(values * (dim / values.sum()))
    if spectrum is None:
        return np.ones(dim)
    values = np.array(as_array("spectrum", spectrum, ndim=1), dtype=np.float64)
    if values.shape[0] != dim:
        raise ValueError(f"spectrum must have one eigenvalue for each of the {dim} features, got shape {values.shape}")
    if values.min() < 0.0 or values.max() == 0.0:
        raise ValueError("spectrum must have no negative eigenvalue and at least one positive one")
    return values


def _matrix(s: Any, outputs: int, beta: Any, B: Any, dim: int, rng: np.random.Generator) -> dict[str, Any]:
    """Return B, and how it was made, for a teacher that is a function of ``B x``."""
    if B is not None:
        if beta is not None:
            raise ValueError("beta and B exclude each other: give one of them")
        matrix = np.array(as_array("B", B, ndim=2), dtype=np.float64)
        if matrix.shape[0] == 0 or matrix.shape[1] != dim or not matrix.any():
            raise ValueError(f"B must be a non-zero matrix of shape (C, {dim}), got shape {matrix.shape}")
        strengths = np.linalg.svd(matrix, compute_uv=False)
    elif outputs == 1:
        strengths = np.array([check_number("s", s, minimum=0.0, exclusive_minimum=True)])
        matrix = strengths[0] * _direction(beta, dim, rng)[None]
    else:
        if beta is not None:
            raise ValueError(f"beta belongs to a teacher with one output, outputs is {outputs}: give B")
        strengths = _strengths(s, min(outputs, dim))
        left = np.linalg.qr(rng.standard_normal((outputs, len(strengths))))[0]
        right = np.linalg.qr(rng.standard_normal((dim, len(strengths))))[0]
        matrix = (left * strengths) @ right.T
    if len(matrix) > 1:
        return {"B": matrix, "s": strengths}
    strength = float(strengths[0])
    return {"B": matrix, "s": strength, "beta": matrix[0] / strength}


def _direction(beta: Any, dim: int, rng: np.random.Generator) -> FloatArray:
    if beta is None:
        direction = rng.standard_normal(dim)
    else:
        direction = np.array(as_array("beta", beta, ndim=1), dtype=np.float64)
        if direction.shape[0] != dim or not direction.any():
            raise ValueError(f"beta must be a non-zero vector of {dim} entries, got shape {direction.shape}")
    return np.asarray(direction / np.linalg.norm(direction))


def _strengths(s: Any, modes: int) -> FloatArray:
    values = np.array(as_array("s", s, ndim=(0, 1)), dtype=np.float64)
    if values.ndim == 0:
        values = np.full(modes, float(values))
    if not 1 <= len(values) <= modes or values.min() <= 0.0:
        raise ValueError(f"s must be positive, one number or 1 to {modes} singular values, got {s!r}")
    return np.sort(values)[::-1]


def _mlp(s: float, outputs: int, dim: int, width: int, rng: np.random.Generator) -> dict[str, Any]:
    hidden = rng.standard_normal((width, dim))
    hidden /= np.linalg.norm(hidden, axis=1, keepdims=True)
    return {
        "s": s,
        "hidden_weights": hidden,
        "output_weights": s * math.sqrt(2.0 / width) * rng.standard_normal((outputs, width)),
    }


def _label(teacher: str, info: dict[str, Any], x: FloatArray) -> FloatArray:
    if teacher == "mlp":
        y = np.maximum(x @ info["hidden_weights"].T, 0.0) @ info["output_weights"].T
    else:
        y = x @ info["B"].T
        if teacher == "relu":
            y = np.maximum(y, 0.0)
    return np.asarray(y[:, 0] if y.shape[1] == 1 else y)
