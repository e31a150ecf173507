"""The tracker as a callback of Lightning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kernelgrowth.torch.tracker import NTKTracker

try:
    from lightning.pytorch.callbacks import Callback
except ImportError:
    try:
        from pytorch_lightning.callbacks import Callback
    except ImportError as error:
        raise ImportError("LightningCallback needs Lightning: pip install lightning") from error

__all__ = ["LightningCallback"]


class LightningCallback(Callback):  # type: ignore[misc]
    """Follow the kernel of a `LightningModule` in ``Trainer(callbacks=[...])``, before each optimizer step.

    Numbers go to the trainer's loggers, checkpoints hold what a resumed run needs. In distributed training the first
    process alone tracks.

    Parameters
    ----------
    x_probe, y_probe
        As in `NTKTracker`; moved to the module's device.
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
        super().__init__()
        self._probe = (x_probe, y_probe)
        self._follow_optimizer = follow_optimizer
        self._options = options
        self._state: Mapping[str, Any] | None = None
        self.tracker: NTKTracker | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to follow the module."""
        if not trainer.is_global_zero:
            return
        x, y = pl_module.transfer_batch_to_device(self._probe, pl_module.device, 0)
        optimizer = trainer.optimizers[0] if self._follow_optimizer else None

        def log(values: dict[str, float], step: int) -> None:
            for logger in trainer.loggers:
                logger.log_metrics(values, step)

        self.tracker = NTKTracker(pl_module, x, y, optimizer=optimizer, log=log, **self._options)
        if self._state is not None:
            self.tracker.load_state_dict(self._state)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Track the step if it is due; its gradients are there, its update is not made."""
        if self.tracker is not None:
            loss = trainer.callback_metrics.get("train_loss", trainer.callback_metrics.get("loss"))
            self.tracker.step(loss, step=trainer.global_step)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Track the trained module."""
        if self.tracker is not None:
            self.tracker.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """End the run with what was recorded."""
        if self.tracker is not None:
            self.tracker.__exit__(type(exception), exception, None)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {} if self.tracker is None else self.tracker.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take it back, for when the training starts."""
        self._state = state_dict or None
