"""What the numbers of a summary are called, how they are written, and what they mean."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["QUANTITIES", "Quantity", "describe"]


class Quantity(NamedTuple):
    """One row of the table of key numbers; `symbol` is HTML."""

    key: str
    symbol: str
    format: str
    meaning: str


QUANTITIES = (
    Quantity(
        "silent_alignment_score",
        "S",
        ".3f",
        "Share of the kernel's turn that was over when the loss had fallen by 10 %. Silent alignment needs 0.7.",
    ),
    Quantity(
        "weighted_score",
        "S<sub>w</sub>",
        ".3f",
        "The same, averaged over the whole fall of the loss. Silent alignment needs 0.8.",
    ),
    Quantity(
        "growth",
        "‖K<sub>∞</sub>‖ / ‖K<sub>0</sub>‖",
        ".4g",
        "How many times larger the kernel became. Silent alignment needs 10.",
    ),
    Quantity(
        "rotation",
        "R",
        ".3f",
        "How far the kernel turned in all: 1 − cos(K<sub>0</sub>, K<sub>∞</sub>). Below 0.02 training was lazy.",
    ),
    Quantity("t_align", "t<sub>align</sub>", ".3g", "Time at which the alignment had gone 90 % of its way."),
    Quantity("t_loss", "t<sub>loss</sub>", ".3g", "Time at which the loss had fallen by 10 %."),
    Quantity("t_grow", "t<sub>grow</sub>", ".3g", "Time at which the kernel norm had reached 10 % of its final value."),
    Quantity(
        "alignment_final",
        "A(K<sub>∞</sub>)",
        ".3f",
        "Alignment of the final kernel with the targets, yᵀKy / (|y|² ‖K‖<sub>F</sub>).",
    ),
    Quantity(
        "alignment_max_theory",
        "A<sub>∞</sub>",
        ".3f",
        "What theory gives a linear network of this depth on these whitened inputs; for other activations a guide.",
    ),
    Quantity(
        "predictor_error_final_matched",
        "error of K<sub>∞</sub>, matched",
        ".1%",
        "Distance from the network of kernel regression with the final kernel, stopped at the network's training loss.",
    ),
    Quantity(
        "predictor_error_final",
        "error of K<sub>∞</sub>",
        ".1%",
        "The same for kernel regression run to its end.",
    ),
    Quantity("predictor_error_initial", "error of K<sub>0</sub>", ".1%", "The same with the initial kernel."),
    Quantity("loss_ratio", "loss, last / first", ".2g", "How far the loss fell on the examples that were followed."),
    Quantity("seconds_total", "total time", ".1f", "In all, of which training and tracking are parts."),
    Quantity("seconds_tracking", "tracking time", ".1f", "Spent on following the kernel."),
)


def describe(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the rows of the table for the quantities that `summary` has, undefined ones as a dash."""
    rows = []
    for quantity in QUANTITIES:
        if quantity.key not in summary:
            continue
        value = summary[quantity.key]
        defined = isinstance(value, (int, float)) and math.isfinite(value)
        text = format(value, quantity.format).replace("%", "\u00a0%") if defined else "–"
        if defined and quantity.key.startswith("seconds"):
            text += "\u00a0s"
        rows.append({"key": quantity.key, "symbol": quantity.symbol, "value": text, "meaning": quantity.meaning})
    return rows
