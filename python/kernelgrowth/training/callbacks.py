"""What a training run calls while it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kernelgrowth.training.state import TrainingState

__all__ = ["Callback"]


class Callback:
    """Base class whose methods do nothing; override those that are wanted.

    States are shared with the run: read them, keep references to their arrays (no update changes an array in place),
    but never write to them.
    """

    def on_start(self, state: TrainingState) -> None:
        """Run before the first step, of a fresh or of a resumed run."""

    def on_step(self, state: TrainingState) -> None:
        """Run at every step 0 … steps, when the loss at the current parameters is known, before they are updated."""

    def on_end(self, state: TrainingState) -> None:
        """Run once if `on_start` returned, however training ends: `state.status` says how."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint has to hold of this callback: arrays and JSON values by name.

        Called at the beginning of a step, before its `on_step`, which runs again when training resumes there.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` returned; called before `on_start` when training resumes from a checkpoint."""
