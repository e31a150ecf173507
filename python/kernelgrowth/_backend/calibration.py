"""How fast this machine computes kernels, measured once in under a second and remembered in the user's cache folder."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from kernelgrowth._backend import native
from kernelgrowth._backend.files import atomic_write_text

__all__ = ["Calibration", "cache_file", "calibration", "measure"]


@dataclass(frozen=True)
class Calibration:
    """Rates of one dtype on a number of threads.

    Attributes
    ----------
    multiply_add_peak : float
        Operations a second of multiply-adds in registers: the machine's ceiling.
    copy_bandwidth : float
        Bytes read and written a second by large copies.
    gram_efficiency, expansion_efficiency : float
        Shares of the ceiling that a Gram and writing out of gradients reach.
    output_bandwidth : float
        Bytes of output a second that the shortest sums leave behind, in memory not touched before.
    call_seconds : float
        Seconds that the smallest Gram takes.
    """

    multiply_add_peak: float
    copy_bandwidth: float
    gram_efficiency: float
    expansion_efficiency: float
    output_bandwidth: float
    call_seconds: float


@functools.cache
def calibration(dtype: str, threads: int) -> Calibration:
    """Return the rates for "float32" or "float64", from the cache folder or else measured (and then remembered there).

    A cache that cannot be read or written is no error.
    """
    path, key = cache_file(), _key(dtype, threads)
    known = _read(path)
    found = _parse(known.get(key))
    if found is not None:
        return found
    measured = measure(dtype, threads)
    _write(path, {**known, key: asdict(measured)})
    return measured


def cache_file() -> Path:
    """Return where rates are remembered: `kernelgrowth/calibration.json` in `$XDG_CACHE_HOME` or `~/.cache`."""
    folder = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(folder) / "kernelgrowth" / "calibration.json"


# Larger than what an allocator keeps for the next call.
FRESH_OUTPUT_BYTES = 48 * 2**20


def measure(dtype: str, threads: int) -> Calibration:
    """Measure the rates, in about half a second."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(dtype)

    def seconds(side: native.FactorSide) -> float:
        rows = side.shape[0] * side.shape[1]
        terms = [native.GramTerm(native.Factor(side))]
        out = np.empty((rows, rows), dtype)
        return _fastest(lambda: native.gram(terms, out, symmetric=True, threads=threads))

    peak = native.multiply_add_peak(dtype, threads=threads, quick=True)
    bandwidth = native.copy_bandwidth(threads=threads)
    call = seconds(normal(1, 1, 1))

    n, length = 480, 1024
    rows = normal(n, 1, length)
    gram = seconds(rows) - call - 2 * rows.nbytes / bandwidth

    positions, d_in, d_out, n_expanded = 128, 96, 64, 96
    few, many = (
        seconds(native.OuterProductRows(normal(n_expanded, t, d_in), normal(n_expanded, 1, t, d_out)))
        for t in (1, positions)
    )
    writing = max(many - few, many / 10)
    operations = 2 * n_expanded * d_in * d_out * (positions - 1)

    columns = int((FRESH_OUTPUT_BYTES / np.dtype(dtype).itemsize) ** 0.5)
    terms = [native.GramTerm(native.Factor(normal(columns, 1, 1)))]
    first_touch = _fastest(
        lambda: native.gram(terms, np.empty((columns, columns), dtype), symmetric=True, threads=threads), 0.15
    )
    return Calibration(
        multiply_add_peak=peak,
        copy_bandwidth=bandwidth,
        gram_efficiency=gram_operations(n, n, length, symmetric=True) / (gram * peak),
        expansion_efficiency=operations / (writing * peak),
        output_bandwidth=columns**2 * np.dtype(dtype).itemsize / first_touch,
        call_seconds=call,
    )


def gram_operations(rows: int, columns: int, length: int, *, symmetric: bool) -> float:
    """Return the operations that the Gram carries out, with what it computes below the diagonal and throws away."""
    pairs = rows * (rows + 48) / 2 if symmetric else rows * columns
    return 2.0 * pairs * length


def _fastest(call: Callable[[], None], duration: float = 0.05) -> float:
    """Return the shortest time of a call, over calls for `duration` seconds."""
    best, end = float("inf"), time.perf_counter() + duration
    while True:
        start = time.perf_counter()
        call()
        now = time.perf_counter()
        best = min(best, now - start)
        if now > end:
            return best


def _key(dtype: str, threads: int) -> str:
    try:
        version = importlib.metadata.version("kernelgrowth")
    except importlib.metadata.PackageNotFoundError:
        version = "(not installed)"
    return " | ".join([_processor(), native.active_isa(), dtype, f"{threads} thread(s)", f"kernelgrowth {version}"])


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _read(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _parse(entry: Any) -> Calibration | None:
    names = [field.name for field in fields(Calibration)]
    if not isinstance(entry, dict) or sorted(entry) != sorted(names):
        return None
    valid = all(isinstance(value, float) and np.isfinite(value) and value >= 0 for value in entry.values())
    return Calibration(**entry) if valid and entry["multiply_add_peak"] > 0 else None


def _write(path: Path, known: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(path, json.dumps(known, indent=2, sort_keys=True) + "\n")
    except OSError:
        pass
