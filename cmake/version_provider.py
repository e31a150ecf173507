"""Version of the package: from git tags through setuptools-scm where that is installed, else a plain fallback."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["dynamic_metadata", "get_requires_for_dynamic_metadata"]

FALLBACK = "0.1.0"


def dynamic_metadata(field: str, settings: Mapping[str, Any] | None = None) -> str:
    if field != "version" or settings:
        raise ValueError("version_provider gives the version and takes no settings")
    root = Path(__file__).resolve().parent.parent
    package_info = root / "PKG-INFO"
    if package_info.exists():
        for line in package_info.read_text(encoding="utf-8").splitlines():
            if line.startswith("Version:"):
                return line.removeprefix("Version:").strip()
    try:
        from setuptools_scm import get_version
    except ImportError:
        return FALLBACK
    return get_version(str(root), fallback_version=FALLBACK, version_scheme="guess-next-dev")


def get_requires_for_dynamic_metadata(settings: Mapping[str, Any] | None = None) -> list[str]:
    return ["setuptools-scm>=8"]
