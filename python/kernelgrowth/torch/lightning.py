"""The tracker as a callback of Lightning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from kernelgrowth.torch.probe import FollowedWithOptimizer
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

    Numbers go to the trainer's loggers, checkpoints hold what a resumed run needs; ``train_loss`` is what
    `training_step` returned, for the last batch where gradients are accumulated. In distributed training the first
    process alone tracks.

    Parameters
    ----------
    x_probe, y_probe
        As in `NTKTracker`; moved to the module's device.
    follow_optimizer : bool
        Whether the kernel followed is that of the optimizer's update; of the first one, if there are several. Gradients
        are then clipped as the trainer will clip them: a `configure_gradient_clipping` of your own is called once more
        at tracked steps, on copies.
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
        self._loss: _Loss | None = None
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
        if optimizer is not None:
            assert isinstance(self.tracker.followed, FollowedWithOptimizer)
            self.tracker.followed.gradients_of_update = lambda: _clipped(trainer, pl_module, optimizer)
        if self._state is not None:
            self.tracker.load_state_dict(self._state)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        """Remember the loss, for the case that the step is tracked."""
        self._loss = _Loss(loss.detach(), trainer, pl_module)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Track the step if it is due; its gradients are there, its update is not made."""
        if self.tracker is None or (self._follow_optimizer and optimizer is not trainer.optimizers[0]):
            return
        self.tracker.step(self._loss, step=trainer.global_step)

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


class _Loss:
    """What `training_step` returned, from what is differentiated in its place; computed when it is read."""

    def __init__(self, differentiated: Any, trainer: Any, pl_module: Any) -> None:
        self._differentiated = differentiated
        self._batches = trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1
        self._scaler = getattr(trainer.precision_plugin, "scaler", None)

    def __float__(self) -> float:
        scale = 1.0 if self._scaler is None else float(self._scaler.get_scale())
        return float(self._differentiated) * self._batches / scale


@contextmanager
def _clipped(trainer: Any, pl_module: Any, optimizer: Any) -> Iterator[None]:
    """Let the optimizer see gradients as the update will: Lightning clips them after its callbacks were called."""
    if not pl_module.automatic_optimization:
        yield
        return
    held = [(p, p.grad) for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    for p, gradient in held:
        p.grad = gradient.clone()
    try:
        pl_module.configure_gradient_clipping(
            optimizer,
            gradient_clip_val=trainer.gradient_clip_val,
            gradient_clip_algorithm=trainer.gradient_clip_algorithm,
        )
        yield
    finally:
        for p, gradient in held:
            p.grad = gradient
