"""What was measured on what."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

from kernelgrowth._backend import native

__all__ = ["machine"]


def machine() -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return {
        "cpu": _cpu(),
        "threads": native.num_threads(),
        "isa": native.info()["isa"],
        "python": platform.python_version(),
        **_versions(),
        "commit": commit,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _versions() -> dict[str, str]:
    """Return the installed packages' versions; kernelgrowth may also run from the checkout, whose commit tells."""
    versions = {}
    for name in ("numpy", "scipy", "jax", "torch", "kernelgrowth"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()
