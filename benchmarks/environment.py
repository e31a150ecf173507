"""Variables that would make a contender slower than it is, and starting again without them."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from typing import NoReturn

__all__ = ["holding", "start_again"]

_PREFIXES = ("OPENBLAS_", "OMP_", "MKL_", "KERNELGROWTH_NUM_THREADS")


def holding() -> list[str]:
    """Return variables that hold a BLAS to another processor's kernels, or somebody to fewer threads than the others.

    They are read when a library is first imported, so this module imports none.
    """
    return [name for name in os.environ if name.startswith(_PREFIXES)]


def start_again(module: str, *, without: Collection[str]) -> NoReturn:
    """Replace this process by ``python -m module`` with the same arguments and without some variables."""
    clean = {name: value for name, value in os.environ.items() if name not in without}
    os.execve(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], clean)
