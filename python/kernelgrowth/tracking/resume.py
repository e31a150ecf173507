"""How a run starts: in a new place, or where a checkpoint left one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kernelgrowth._backend.errors import RunFolderError
from kernelgrowth.tracking.comparison import Reference
from kernelgrowth.tracking.run_group import RunGroup
from kernelgrowth.tracking.settings import check_same_run
from kernelgrowth.tracking.store import MemoryStore, RunStore

__all__ = ["TrackerState", "open_store"]


@dataclass
class TrackerState:
    """What a tracker has to know of the steps before, beside what its store keeps.

    Attributes
    ----------
    steps : list of int
        All tracked steps.
    references : list of Reference
        The newest one or two of them, ascending.
    overhead : dict
        What tracking has cost, as `Overhead` tells it.
    training_seconds : float
        What training has taken.
    memory : dict or None
        Everything recorded, if the run is in memory.
    """

    steps: list[int] = field(default_factory=list)
    references: list[Reference] = field(default_factory=list)
    overhead: dict[str, Any] = field(default_factory=dict)
    training_seconds: float = 0.0
    memory: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the state as a flat dict of arrays and JSON values."""
        state: dict[str, Any] = {
            "steps": self.steps,
            "overhead": self.overhead,
            "training_seconds": self.training_seconds,
        }
        for reference in self.references:
            state |= {f"reference/{reference.step}/{name}": value for name, value in _parts(reference).items()}
        if self.memory is not None:
            state |= {f"memory/{key}": value for key, value in self.memory.items()}
        return state

    @classmethod
    def from_dict(cls, state: Mapping[str, Any], step: int) -> TrackerState:
        """Return the state that `to_dict` made, without what it holds of `step` and later ones."""
        parts: dict[int, dict[str, Any]] = {}
        memory: dict[str, Any] = {}
        for key, value in state.items():
            kind, _, name = key.partition("/")
            if kind == "reference":
                at, _, part = name.partition("/")
                parts.setdefault(int(at), {})[part] = value
            elif kind == "memory":
                memory[name] = value
        return cls(
            steps=[int(at) for at in state["steps"] if int(at) < step],
            references=[_reference(at, parts[at]) for at in sorted(parts) if at < step],
            overhead=dict(state["overhead"]),
            training_seconds=float(state["training_seconds"]),
            memory=memory or None,
        )


def _parts(reference: Reference) -> dict[str, Any]:
    parts = {"size": reference.size, "kernel": reference.kernel}
    if reference.vectors is not None:
        parts["vectors"] = reference.vectors
    return parts | {f"solver/{name}": value for name, value in reference.solver.items()}


def _reference(step: int, parts: Mapping[str, Any]) -> Reference:
    solver = {name.removeprefix("solver/"): value for name, value in parts.items() if name.startswith("solver/")}
    vectors = np.asarray(parts["vectors"]) if "vectors" in parts else None
    return Reference(step, int(parts["size"]), np.asarray(parts["kernel"]), vectors, solver)


def open_store(
    out: str | os.PathLike[str] | None, info: dict[str, Any], restored: TrackerState | None, step: int, *, resume: bool
) -> RunStore:
    """Return the place to record to, holding what `restored` continues and nothing else; all of it is before `step`.

    Raises
    ------
    RunFolderError
        If the folder holds another run or none; nothing in it has been touched then.
    ValueError
        If the checkpoint's run is in a folder and `out` is None.
    """
    steps = [] if restored is None else restored.steps
    if out is None:
        return _open_memory(info, restored, steps, step)
    group = RunGroup(out)
    if not group.holds_run():
        if steps:
            raise RunFolderError(f"{out}: holds no run, but the checkpoint continues one of {len(steps)} tracked steps")
        group.create(info)
        return group
    recorded = group.read_info()
    if not resume:
        raise RunFolderError(
            f"{out}: holds another run ({len(group.series())} tracked steps, {recorded['status']}): "
            f"choose another folder, remove this one, or resume"
        )
    group.claim()
    check_same_run(recorded, info, out)
    kept = [at for at in group.series().steps.tolist() if at < step]
    if kept != steps:
        raise RunFolderError(
            f"{out}: holds a run with {len(kept)} tracked steps before step {step}, but the checkpoint continues one "
            f"with {len(steps)}"
        )
    if restored is None and recorded["status"] == "completed":
        raise RunFolderError(f"{out}: holds a completed run, and there is no checkpoint to resume it from")
    if restored is not None:
        _restore_newest_kernel(group, restored)
    group.truncate(step)
    group.write_info(recorded | info)
    return group


def _restore_newest_kernel(group: RunGroup, restored: TrackerState) -> None:
    """Store the newest step's kernel again, which steps that are about to be forgotten may have made superfluous."""
    for reference in restored.references[-1:]:
        newest = restored.steps[-1:] == [reference.step]
        if newest and reference.kernel.size and reference.step not in group.kernel_steps():
            group.save_kernel(reference.step, reference.kernel)


def _open_memory(info: dict[str, Any], restored: TrackerState | None, steps: list[int], step: int) -> MemoryStore:
    store = MemoryStore()
    if steps and restored is not None:
        if restored.memory is None:
            raise ValueError(f"out must be the run folder of the checkpoint's {len(steps)} tracked steps, got None")
        store.load_state_dict(restored.memory)
        store.truncate(step)
    store.write_info(store.read_info() | info)
    return store
