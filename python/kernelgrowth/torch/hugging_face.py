"""The tracker as a callback of Hugging Face's Trainer."""

from __future__ import annotations

from typing import Any

try:
    import transformers
except ImportError as error:
    raise ImportError("TrainerCallback needs Transformers: pip install transformers accelerate") from error

from kernelgrowth.torch.tracker import NTKTracker

__all__ = ["TrainerCallback"]


class TrainerCallback(transformers.TrainerCallback):  # type: ignore[misc]
    """Follow the kernel of a model in ``Trainer(callbacks=[...])``, before each optimizer step.

    Numbers go into the trainer's log history and to whatever else it reports to. In distributed training the first
    process alone tracks.

    Parameters
    ----------
    x_probe, y_probe
        As in `NTKTracker`; a mapping of tensors for a model of keywords (``input_ids``, ``attention_mask``).
    follow_optimizer : bool
        Whether the kernel followed is that of the optimizer's update.
    **options
        Of `NTKTracker`, but `module`, `optimizer` and `log`.

    Attributes
    ----------
    tracker : NTKTracker or None
        From the start of the training on.
    """

    def __init__(self, x_probe: Any, y_probe: Any, *, follow_optimizer: bool = False, **options: Any) -> None:
        self._probe = (x_probe, y_probe)
        self._follow_optimizer = follow_optimizer
        self._options = options
        self._numbers: dict[str, float] = {}
        self.tracker: NTKTracker | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **trainer: Any) -> None:
        """Begin to follow the model."""
        if not state.is_world_process_zero:
            return

        def log(values: dict[str, float], step: int) -> None:
            # The trainer collects what it logs at the end of a step.
            self._numbers = values
            control.should_log = True

        x, y = (_moved(part, args.device) for part in self._probe)
        optimizer = trainer["optimizer"] if self._follow_optimizer else None
        self.tracker = NTKTracker(trainer["model"], x, y, optimizer=optimizer, log=log, **self._options)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **trainer: Any) -> None:
        """Track the step if it is due; its gradients are there, its update is not made."""
        if self.tracker is not None:
            self.tracker.step(step=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **trainer: Any) -> None:
        """Add the kernel's numbers to what is logged."""
        if logs is not None and self._numbers:
            logs.update(self._numbers)
            if state.log_history:
                state.log_history[-1].update(self._numbers)
            self._numbers = {}

    def on_train_end(self, args: Any, state: Any, control: Any, **trainer: Any) -> None:
        """Track the trained model."""
        if self.tracker is not None:
            self.tracker.close()


def _moved(part: Any, device: Any) -> Any:
    if isinstance(part, dict):
        return {name: tensor.to(device) for name, tensor in part.items()}
    return tuple(tensor.to(device) for tensor in part) if isinstance(part, tuple | list) else part.to(device)
