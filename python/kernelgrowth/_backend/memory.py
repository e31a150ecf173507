"""How much memory a call may take."""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from kernelgrowth._backend.checks import check_integer

__all__ = ["available_memory", "format_bytes", "resolve_memory_limit"]


def available_memory() -> int:
    """Bytes that this process can still take: free physical memory, or what its control group leaves."""
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
                break
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (group / "memory.max").read_text().strip(), (group / "memory.current").read_text().strip()
        if limit != "max":
            available = min(available, max(0, int(limit) - int(used)))
    except (OSError, ValueError):
        pass
    return available


@functools.lru_cache(maxsize=1)
def _available_memory_lately(moment: int) -> int:
    return available_memory()


def resolve_memory_limit(memory_limit: int | None, available: Callable[[], int] | None = None) -> int:
    """Return `memory_limit` in bytes, or half of what is available, on another device if asked, when it is None."""
    if memory_limit is None and available is not None:
        return available() // 2
    if memory_limit is None:
        # The system is asked a few times a second at most: asking takes longer than a small kernel.
        return _available_memory_lately(int(time.monotonic() * 4)) // 2
    return min(check_integer("memory_limit", memory_limit, minimum=1), sys.maxsize)


def format_bytes(count: float) -> str:
    """Return a byte count in the largest binary unit that keeps it at least 1, as in '1.5 GiB'."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
