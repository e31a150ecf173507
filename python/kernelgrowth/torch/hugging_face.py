"""The tracker as a callback of Hugging Face's Trainer."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

try:
    import transformers
except ImportError as error:
    raise ImportError("TrainerCallback needs Transformers: pip install transformers accelerate") from error

from kernelgrowth.torch.tracker import NTKTracker

__all__ = ["TrainerCallback"]

_STATE_FILE = "kernelgrowth.pt"


class TrainerCallback(transformers.TrainerCallback):  # type: ignore[misc]
    """Follow the kernel of a model through the training of a ``transformers.Trainer``, before each optimizer step.

    Numbers go into the trainer's log history, at the steps that they belong to. ``Trainer(callbacks=[...])`` calls
    TensorBoard, Weights & Biases and other ``report_to`` first and tells a callback nothing of them: `add_to` the
    trainer instead, and they have the numbers too. Checkpoints get a file ``kernelgrowth.pt``, from which a resumed
    training continues the series. In distributed training the first process alone tracks.

    Parameters
    ----------
    x_probe, y_probe
        As in `NTKTracker`; a mapping of tensors for a model of keywords (``input_ids``, ``attention_mask``). They are
        moved to the model's device.
    follow_optimizer : bool
        Whether the kernel followed is that of the optimizer's update.
    **options
        Of `NTKTracker`, but `module`, `optimizer` and `log`. The trainer tells nobody the loss of a step, so
        ``train_loss`` is NaN.

    Attributes
    ----------
    tracker : NTKTracker or None
        From the start of the training on.
    """

    def __init__(self, x_probe: Any, y_probe: Any, *, follow_optimizer: bool = False, **options: Any) -> None:
        self._probe = (x_probe, y_probe)
        self._follow_optimizer = follow_optimizer
        self._options = options
        self._trainer: Any = None
        self.tracker: NTKTracker | None = None

    def add_to(self, trainer: Any) -> None:
        """Become a callback of `trainer`, and report to whatever it reports to."""
        trainer.add_callback(self)
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Begin to follow the model, or go on where the checkpoint was taken."""
        if not state.is_world_process_zero:
            return

        def log(values: dict[str, float], step: int) -> None:
            entry = values if state.epoch is None else {**values, "epoch": state.epoch}
            state.log_history.append({**entry, "step": step})
            if self._trainer is not None:
                # Not by the trainer's log, which subclasses have count and clear what they collect.
                wanted = control.should_log
                self._trainer.callback_handler.on_log(args, state, control, dict(entry))
                control.should_log = wanted

        x, y = (_moved(part, args.device) for part in self._probe)
        optimizer = parts["optimizer"] if self._follow_optimizer else None
        self.tracker = NTKTracker(parts["model"], x, y, optimizer=optimizer, log=log, **self._options)
        if state.global_step > 0:
            path = _resumed_from(args, state) / _STATE_FILE
            if path.is_file():
                self.tracker.load_state_dict(torch.load(path, weights_only=True))
            else:
                warnings.warn(f"{path} is missing: the series begins with step {state.global_step}", stacklevel=2)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Track the step if it is due; its gradients are there, its update is not made."""
        if self.tracker is not None:
            self.tracker.step(step=state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Add to the checkpoint what a resumed training needs."""
        folder = _checkpoint(args, state)
        if self.tracker is not None and folder.is_dir():
            torch.save(self.tracker.state_dict(), folder / _STATE_FILE)
        self._close_if_over(state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Track the trained model, if this was the last epoch."""
        self._close_if_over(state, control)

    def on_train_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """End the run."""
        if self.tracker is not None:
            replaced = args.load_best_model_at_end and state.best_model_checkpoint is not None
            self.tracker.close(track=not replaced)

    def _close_if_over(self, state: Any, control: Any) -> None:
        # At the end of the training the best model may have taken the place of the trained one, and reporters be gone.
        if self.tracker is not None and (control.should_training_stop or state.global_step >= state.max_steps):
            self.tracker.close()


def _checkpoint(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def _resumed_from(args: Any, state: Any) -> Path:
    # The trainer says it only where the arguments did.
    given = args.resume_from_checkpoint
    return Path(given) if isinstance(given, str) and Path(given).is_dir() else _checkpoint(args, state)


def _moved(part: Any, device: Any) -> Any:
    if isinstance(part, Mapping):
        return {name: tensor.to(device) for name, tensor in part.items()}
    return tuple(tensor.to(device) for tensor in part) if isinstance(part, tuple | list) else part.to(device)
