"""A probe set of tensors, and a module as the tracker sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kernelgrowth.gradients.torch import ModuleFeatures, gradient_features
from kernelgrowth.gradients.torch.module import Inputs, unwrapped
from kernelgrowth.torch.optimizers import preconditioner

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
        return [np.asarray(value.detach().cpu()) for value in (*self.inputs.args, *self.inputs.kwargs.values())]

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
    """The same, followed by the kernel of an optimizer's update."""

    def __init__(self, module: Any, options: Mapping[str, Any], optimizer: Any) -> None:
        super().__init__(module, options)
        self._optimizer = optimizer
        self.pending = True

    def preconditioner(self, feats: Any) -> dict[str, Any]:
        """Return η by block, of the update to be made or, after the last one, of that."""
        return preconditioner(self._optimizer, self.module, feats, pending=self.pending)


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


def probe_loss(loss: Callable[[Any, Any], Any] | None, labels: bool) -> Callable[[Any, Any], float]:
    """Return a loss of arrays, outputs (N, C) and targets, from one of tensors.

    Parameters
    ----------
    loss : callable, optional
        Of outputs and targets; by default the cross-entropy for class labels, else the mean squared error.
    labels : bool
        Whether targets are class labels, which arrive as one-hot rows where there are several outputs.
    """
    function = loss or (torch.nn.functional.cross_entropy if labels else torch.nn.functional.mse_loss)

    def of_arrays(predictions: Any, targets: Any) -> float:
        f, y = torch.from_dlpack(predictions), torch.as_tensor(np.asarray(_on_host(targets)))
        y = y.to(f.device)
        if labels and f.shape[1] > 1:
            y = y.argmax(1) if y.ndim == 2 and y.shape[1] > 1 else y.reshape(-1).long()
        elif f.numel() == y.numel():
            f, y = f.reshape(y.shape), y.to(f.dtype)
        with torch.no_grad():
            return float(function(f, y))

    return of_arrays


def _on_host(array: Any) -> Any:
    return array.get() if hasattr(array, "get") else array


Parameters = Sequence[str] | Callable[[str, Any], bool] | None
