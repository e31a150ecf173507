"""What a tracked step is logged as, and how loggers take it.

``wandb.log`` and ``mlflow.log_metrics`` take ``(dict, step)`` as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from kernelgrowth.tracking import History

__all__ = ["scalars", "tensorboard"]

_NOT_LOGGED = frozenset({"step"})


def scalars(history: History, prefix: str = "ntk/") -> dict[str, float]:
    """Return the numbers of the newest tracked step by name: ``ntk/alignment``, ``ntk/eigenvalues/0``, ...

    Values that are undefined (NaN) are left out.
    """
    record = history.newest()
    values: dict[str, float] = {}
    for name, value in record.items():
        if name in _NOT_LOGGED:
            continue
        if isinstance(value, list):
            values |= {f"{prefix}{name}/{i}": float(entry) for i, entry in enumerate(value)}
        else:
            values[f"{prefix}{name}"] = float(value)
    return {name: value for name, value in values.items() if math.isfinite(value)}


def tensorboard(writer: Any) -> Callable[[dict[str, float], int], None]:
    """Return a `log` for a ``torch.utils.tensorboard.SummaryWriter``."""

    def log(values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return log
