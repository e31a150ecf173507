"""Whether a kernel aligned before the loss moved: the silent-alignment score and verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernelgrowth._backend.arrays import FloatArray, as_array, to_numpy

__all__ = ["SilentAlignment", "silent_alignment"]

_SERIES = ("time", "loss", "alignment", "kernel_norm", "distance_to_final")

_LAZY_ROTATION = 0.02
_SILENT_SCORE = 0.7
_SILENT_WEIGHTED_SCORE = 0.8
_SILENT_GROWTH = 10.0
_LOSS_FALL = 0.1
_NORM_SHARE = 0.1
_ALIGNMENT_SHARE = 0.9
# Alignments closer than this are equal to what float32 kernels resolve, and their "90 % of the way" is noise.
_ALIGNMENT_RESOLUTION = 1e-6
# With the kernel at the ends alone, both scores would measure the straight line drawn between them.
_FEWEST_KERNELS = 3


@dataclass(frozen=True)
class SilentAlignment:
    """When a kernel turned, when it grew and when the loss fell; NaN where a quantity is undefined.

    Attributes
    ----------
    score : float
        ``S = 1 - d(t_loss) / R``: the share of the kernel's rotation that was over when the loss had fallen by 10 %.
        At most 1; negative where the kernel turned away from its final direction first.
    weighted_score : float
        ``1 - ∫ d (-dL) / (ΔL R)``: the share that was over, averaged over the fall of the loss.
    verdict : {"silent", "concurrent", "lazy", "undetermined"}
        *lazy*: the kernel hardly turned (R < 0.02; the scores are NaN). *silent*: score >= 0.7, weighted score >= 0.8
        and growth >= 10. *concurrent*: it turned, but not like that. *undetermined*: the network did not learn (the
        loss never fell by 10 %, or ended no lower than it began), or fewer than three kernels were kept.
    t_align : float
        First time at which the alignment had gone 90 % of the way from its first to its last value.
    t_grow : float
        First time at which the kernel norm had reached 10 % of its last value.
    t_loss : float
        First time at which the loss had fallen by 10 % of its first value.
    rotation : float
        ``R = d(0)``, the cosine distance between the first and the final kernel.
    growth : float
        Last over first kernel norm.
    """

    score: float
    weighted_score: float
    verdict: str
    t_align: float
    t_grow: float
    t_loss: float
    rotation: float
    growth: float

    def summary(self) -> str:
        """Return one sentence that says what happened, for a terminal."""
        growth = f"growth ×{self.growth:.0f}" if 100 <= self.growth < 1e6 else f"growth ×{self.growth:.3g}"
        turned = f"rotation {self.rotation:.2g}, {growth}"
        scores = f"score {self.score:.2f}, weighted {self.weighted_score:.2f}, {growth}"
        if self.verdict == "silent":
            return (
                f"Silent alignment: the kernel had made {100 * self.score:.0f} % of its rotation when the loss had "
                f"fallen by 10 %, at t = {self.t_loss:.3g} ({scores})."
            )
        if self.verdict == "concurrent":
            early = self.score >= _SILENT_SCORE and self.weighted_score >= _SILENT_WEIGHTED_SCORE
            why = "it turned early but did not grow tenfold" if early else "it was still turning while the loss fell"
            return f"Concurrent: the kernel did not align silently, {why} ({scores})."
        if self.verdict == "lazy":
            return f"Lazy: the kernel hardly turned while the loss fell ({turned})."
        if math.isnan(self.rotation):
            return "Undetermined: the kernel was zero at the start or the end: raise the initial scale."
        if math.isnan(self.t_loss):
            return f"Undetermined: the loss never fell by 10 %, so the network did not learn ({turned})."
        return f"Undetermined: the loss ended no lower than it began, or fewer than three kernels were kept ({turned})."


def silent_alignment(history: Mapping[str, Any]) -> SilentAlignment:
    """Return whether and when the kernel aligned silently, from series recorded through training.

    Parameters
    ----------
    history : mapping
        One-dimensional series of one length T >= 1, one entry for each tracked step: ``"time"`` (not decreasing),
        ``"loss"``, ``"alignment"`` (NaN where undefined), ``"kernel_norm"``, and ``"distance_to_final"``,
        ``d = 1 - cos(K_t, K_∞)`` with NaN where the kernel was not kept; it must be known at the first step.

    Returns
    -------
    SilentAlignment

    Raises
    ------
    ValueError
        If a series is missing, has another shape or an entry that is not finite, the times decrease, a norm is
        negative, or the distance at the first step is not known.

    Notes
    -----
    The thresholds were checked on pairs of digits, whitened and not, that had not been used to choose them. Everything
    is interpolated linearly in time between tracked steps, and integrated by the trapezoidal rule in the loss over
    those whose kernel was kept: track often enough that several of them come before the loss moves. The times are
    those of a first crossing. ``t_loss`` is NaN if the loss never falls by 10 % or starts at 0 or below; ``t_align`` if
    the alignment ends within 1e-6 of where it began, or is undefined at an end; ``t_grow`` if the norm starts at 10 %
    of its last value or above; ``growth`` if it starts at zero.
    """
    series = _read(history)
    time, loss, norm, distance = series["time"], series["loss"], series["kernel_norm"], series["distance_to_final"]
    rotation = float(distance[0])
    growth = float(norm[-1] / norm[0]) if norm[0] > 0 else math.nan
    t_loss = _first_crossing(time, -loss, -(1.0 - _LOSS_FALL) * float(loss[0])) if loss[0] > 0 else math.nan

    kept = np.isfinite(distance)
    fall = float(loss[kept][0] - loss[kept][-1]) if kept.any() else 0.0
    learned = math.isfinite(t_loss) and fall > 0
    score = weighted = math.nan
    if not (learned and kept[0]):
        verdict = "undetermined"
    elif rotation < _LAZY_ROTATION:
        verdict = "lazy"
    elif np.count_nonzero(kept) < _FEWEST_KERNELS:
        verdict = "undetermined"
    else:
        score = 1.0 - float(np.interp(t_loss, time[kept], distance[kept])) / rotation
        falls, middles = -np.diff(loss[kept]), (distance[kept][1:] + distance[kept][:-1]) / 2
        weighted = 1.0 - float(middles @ falls) / (fall * rotation)
        silent = score >= _SILENT_SCORE and weighted >= _SILENT_WEIGHTED_SCORE and growth >= _SILENT_GROWTH
        verdict = "silent" if silent else "concurrent"
    return SilentAlignment(
        score=score,
        weighted_score=weighted,
        verdict=verdict,
        t_align=_alignment_time(time, series["alignment"]),
        t_grow=_first_crossing(time, norm, _NORM_SHARE * float(norm[-1])),
        t_loss=t_loss,
        rotation=rotation,
        growth=growth,
    )


def _read(history: Mapping[str, Any]) -> dict[str, FloatArray]:
    series: dict[str, FloatArray] = {}
    for name in _SERIES:
        try:
            values = history[name]
        except KeyError:
            raise ValueError(f"history must have the series {', '.join(_SERIES)}, got none named {name!r}") from None
        gaps = name in ("alignment", "distance_to_final")
        array = to_numpy(as_array(f"history[{name!r}]", values, ndim=1, finite=not gaps)).astype(np.float64)
        if len(array) != len(series.get("time", array)) or not len(array):
            raise ValueError(
                f"history[{name!r}] must have one entry for each tracked step, at least one, "
                f"got {len(array)} beside {len(series.get('time', array))} times"
            )
        if np.isinf(array).any():
            raise ValueError(f"history[{name!r}] must be finite or NaN, got an infinite value")
        series[name] = array
    if (np.diff(series["time"]) < 0).any():
        raise ValueError("history['time'] must not decrease: the steps must come in the order of training")
    if (series["kernel_norm"] < 0).any():
        raise ValueError(f"history['kernel_norm'] must not be negative, got {series['kernel_norm'].min():g}")
    norm = series["kernel_norm"]
    if math.isnan(series["distance_to_final"][0]) and norm[0] > 0 and norm[-1] > 0:
        raise ValueError("history['distance_to_final'] must be known at the first step, got NaN (no kernel, or zero)")
    return series


def _first_crossing(time: FloatArray, values: FloatArray, level: float) -> float:
    """Return when `values`, starting below `level`, first reach it, interpolated; NaN if they do not."""
    above = np.flatnonzero(values >= level)
    if not len(above) or above[0] == 0:
        return math.nan
    i = int(above[0])
    share = (level - values[i - 1]) / (values[i] - values[i - 1])
    return float(time[i - 1] + share * (time[i] - time[i - 1]))


def _alignment_time(time: FloatArray, alignment: FloatArray) -> float:
    change = alignment[-1] - alignment[0]
    if not abs(change) > _ALIGNMENT_RESOLUTION:
        return math.nan
    known = np.isfinite(alignment)
    return _first_crossing(time[known], (alignment[known] - alignment[0]) / change, _ALIGNMENT_SHARE)
