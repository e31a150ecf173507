"""A probe set of tensors, and a module as the tracker sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kernelgrowth._backend.arrays import to_numpy
from kernelgrowth.gradients.torch import ModuleFeatures, gradient_features
from kernelgrowth.gradients.torch.module import Inputs, unwrapped
from kernelgrowth.torch.optimizers import learning_rates, preconditioner, unwrapped_optimizer

__all__ = ["FollowedModule", "FollowedWithOptimizer", "ProbeInputs", "probe_loss"]


class ProbeInputs:
    """Examples as a module takes them: a tensor, a tuple of tensors, or a mapping of keywords."""

    def __init__(self, x: Any, name: str) -> None:
        self.inputs = x if isinstance(x, Inputs) else Inputs(x, name)

    def __len__(self) -> int:
        return self.inputs.num_examples

    def __getitem__(self, examples: Any) -> ProbeInputs:
        return ProbeInputs(self.inputs.select(torch.as_tensor(examples)), "x_probe")

    def arrays(self) -> list[npt.NDArray[Any]]:
        """Return the values, for a fingerprint."""
        return [_on_host(value) for value in (*self.inputs.args, *self.inputs.kwargs.values())]

    def as_given(self) -> Any:
        """Return what `gradient_features` takes."""
        if self.inputs.kwargs:
            return self.inputs.kwargs
        return tuple(self.inputs.args) if len(self.inputs.args) > 1 else self.inputs.args[0]


class FollowedModule:
    """A module that makes its gradient features, in evaluation mode, and is left as it was."""

    def __init__(self, module: Any, options: Mapping[str, Any]) -> None:
        self.module = unwrapped(module)
        self._options = dict(options)

    def gradient_features(self, params: Any, x: ProbeInputs, *, check_finite: bool) -> ModuleFeatures:
        """Return the features at the examples `x`; the parameters are the module's."""
        with evaluating(self.module):
            return gradient_features(self.module, x.as_given(), check_finite=check_finite, **self._options)


class FollowedWithOptimizer(FollowedModule):
    """The same, followed by the kernel of an optimizer's update.

    Attributes
    ----------
    preconditioned_by : str
        The optimizer's class.
    gradients_of_update : callable
        Returns a context in which the parameters' gradients are those that the update will be made of.
    """

    def __init__(self, module: Any, options: Mapping[str, Any], optimizer: Any) -> None:
        super().__init__(module, options)
        self._optimizer = unwrapped_optimizer(optimizer)
        self._pending = True
        self.preconditioned_by = type(self._optimizer).__name__
        self.gradients_of_update: Callable[[], AbstractContextManager[Any]] = nullcontext

    def preconditioner(self, feats: Any) -> dict[str, Any]:
        """Return η by block, of the update to be made or, after the last one, of that."""
        with self.gradients_of_update() if self._pending else nullcontext():
            return preconditioner(self._optimizer, self.module, feats, pending=self._pending)

    def turn_to_last_update(self) -> bool:
        """Mean the last update from now on; return whether one was made."""
        self._pending = False
        try:
            return bool(learning_rates(self._optimizer, pending=False))
        except ValueError:
            return False


@contextmanager
def evaluating(module: Any) -> Iterator[None]:
    """Put every part of a module into evaluation mode, and each back into its own mode."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def probe_loss(loss: Callable[[Any, Any], Any] | None, y_probe: Any) -> Callable[[Any, Any], float]:
    """Return a loss of arrays, outputs (N, C) and targets, from one of tensors.

    Parameters
    ----------
    loss : callable, optional
        Of outputs and targets, which are class labels (N,), or else of the outputs' dtype; by default the cross-entropy
        for class labels and the mean squared error for all others.
    y_probe : Tensor (N,) or (N, C)
        The targets as they were given. Integers (N,) or (N, 1) are class labels if there are several outputs.
    """
    labels = not y_probe.is_floating_point() and (y_probe.ndim == 1 or y_probe.shape[1] == 1)

    def of_arrays(predictions: Any, targets: Any) -> float:
        f = torch.from_dlpack(predictions)
        y = torch.tensor(to_numpy(targets), device=f.device)
        if labels and f.shape[1] > 1:
            # They come as one-hot rows, which is what losses of arrays take.
            function, y = loss or torch.nn.functional.cross_entropy, y.argmax(1)
        else:
            function, y = loss or torch.nn.functional.mse_loss, y.to(f.dtype)
            f = f.reshape(y.shape) if f.numel() == y.numel() else f
        with torch.no_grad():
            return float(function(f, y))

    return of_arrays


def _on_host(tensor: Any) -> npt.NDArray[Any]:
    tensor = tensor.detach().cpu()
    # NumPy has no bfloat16; the bits tell as much.
    return np.asarray(tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor)


Parameters = Sequence[str] | Callable[[str, Any], bool] | None
