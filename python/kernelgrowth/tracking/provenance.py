"""Where a run was made and of what: versions, machine, and the commit of the code that ran."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from typing import Any

__all__ = ["package_version", "provenance"]

_PACKAGES = ("kernelgrowth", "numpy", "scipy", "torch", "jax", "cupy")
_SECONDS = 5.0


def package_version(name: str) -> str:
    """Return the version of an installed package, "unknown" if it is not installed as one."""
    # Imported when used: it takes longer than all else that tracking imports from the standard library.
    import importlib.metadata

    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


@functools.cache
def _versions() -> dict[str, str]:
    found = {name: package_version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **{name: v for name, v in found.items() if v != "unknown"}}


@functools.cache
def _commit(folder: str) -> str | None:
    """Return the commit checked out in a folder, "+" after it where files differ from it; None outside a repository."""
    command = ["git", "-C", folder, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None if answer.returncode == 0 else None


def provenance() -> dict[str, Any]:
    """Return ``versions``, ``machine`` and, in a repository, the ``commit`` of the folder that the process works in."""
    machine = {
        "host": platform.node(),
        "system": f"{platform.system()} {platform.release()}",
        "processor": platform.machine(),
        "cpus": os.cpu_count(),
    }
    about: dict[str, Any] = {"versions": _versions(), "machine": machine}
    try:
        commit = _commit(os.getcwd())
    except FileNotFoundError:
        commit = None
    return about if commit is None else about | {"commit": commit}
