"""Empirical neural tangent kernels, exactly and at hardware speed, followed through training.

Everything public is reached from here (`import kernelgrowth as kg`); a name is imported when it is first used, so that
importing the package costs next to nothing beyond NumPy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kernelgrowth import datasets as datasets
    from kernelgrowth import diagnostics as diagnostics
    from kernelgrowth import distributed as distributed
    from kernelgrowth import experiments as experiments
    from kernelgrowth import gradients as gradients
    from kernelgrowth import jax as jax
    from kernelgrowth import kernels as kernels
    from kernelgrowth import nets as nets
    from kernelgrowth import report as report
    from kernelgrowth import spectra as spectra
    from kernelgrowth import theory as theory
    from kernelgrowth import torch as torch
    from kernelgrowth import tracking as tracking
    from kernelgrowth import training as training
    from kernelgrowth._backend.errors import BackendError as BackendError
    from kernelgrowth._backend.errors import DivergedError as DivergedError
    from kernelgrowth._backend.errors import MemoryLimitError as MemoryLimitError
    from kernelgrowth._backend.errors import NotConvergedError as NotConvergedError
    from kernelgrowth._backend.errors import NotConvergedWarning as NotConvergedWarning
    from kernelgrowth._backend.errors import RunFolderError as RunFolderError
    from kernelgrowth._backend.errors import SolveInterrupted as SolveInterrupted
    from kernelgrowth.diagnostics import KernelRegression as KernelRegression
    from kernelgrowth.diagnostics import effective_rank as effective_rank
    from kernelgrowth.diagnostics import eigenvector_alignment as eigenvector_alignment
    from kernelgrowth.diagnostics import kernel_alignment as kernel_alignment
    from kernelgrowth.diagnostics import kernel_distance as kernel_distance
    from kernelgrowth.diagnostics import kernel_target_alignment as kernel_target_alignment
    from kernelgrowth.diagnostics import silent_alignment as silent_alignment
    from kernelgrowth.diagnostics import subspace_overlap as subspace_overlap
    from kernelgrowth.gradients import ChunkedFeatures as ChunkedFeatures
    from kernelgrowth.gradients import Embedding as Embedding
    from kernelgrowth.gradients import GradientFeatures as GradientFeatures
    from kernelgrowth.gradients import OuterProduct as OuterProduct
    from kernelgrowth.gradients import Rows as Rows
    from kernelgrowth.kernels import NTKOperator as NTKOperator
    from kernelgrowth.kernels import empirical_ntk as empirical_ntk
    from kernelgrowth.kernels import stack as stack
    from kernelgrowth.spectra import EigenTracker as EigenTracker
    from kernelgrowth.spectra import StreamingTopK as StreamingTopK
    from kernelgrowth.spectra import eigsh as eigsh
    from kernelgrowth.spectra import nystrom as nystrom
    from kernelgrowth.tracking import History as History
    from kernelgrowth.tracking import NTKTracker as NTKTracker
    from kernelgrowth.tracking import Runs as Runs
    from kernelgrowth.tracking import load_run as load_run
    from kernelgrowth.tracking import load_runs as load_runs
    from kernelgrowth.training import Callback as Callback
    from kernelgrowth.training import optim as optim
    from kernelgrowth.training import train as train

    __version__: str

_ROOMS = (
    "datasets",
    "diagnostics",
    "distributed",
    "experiments",
    "gradients",
    "jax",
    "kernels",
    "nets",
    "report",
    "spectra",
    "theory",
    "torch",
    "tracking",
    "training",
)

_HOMES = {
    "_backend.errors": (
        "BackendError",
        "DivergedError",
        "MemoryLimitError",
        "NotConvergedError",
        "NotConvergedWarning",
        "RunFolderError",
        "SolveInterrupted",
    ),
    "diagnostics": (
        "KernelRegression",
        "effective_rank",
        "eigenvector_alignment",
        "kernel_alignment",
        "kernel_distance",
        "kernel_target_alignment",
        "silent_alignment",
        "subspace_overlap",
    ),
    "gradients": ("ChunkedFeatures", "Embedding", "GradientFeatures", "OuterProduct", "Rows"),
    "kernels": ("NTKOperator", "empirical_ntk", "stack"),
    "spectra": ("EigenTracker", "StreamingTopK", "eigsh", "nystrom"),
    "tracking": ("History", "NTKTracker", "Runs", "load_run", "load_runs"),
    "training": ("Callback", "optim", "train"),
}

_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [*_ROOMS, *_HOME_OF]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    value: Any
    if name in _ROOMS:
        value = importlib.import_module(f"kernelgrowth.{name}")
    elif name in _HOME_OF:
        value = getattr(importlib.import_module(f"kernelgrowth.{_HOME_OF[name]}"), name)
    elif name == "__version__":
        value = importlib.import_module("importlib.metadata").version("kernelgrowth")
    else:
        raise AttributeError(f"module 'kernelgrowth' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
