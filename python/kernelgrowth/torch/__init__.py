"""PyTorch modules: their gradient features and kernels, followed through a training loop of one's own.

`LightningCallback` and `TrainerCallback` need Lightning and Transformers, which are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError("kernelgrowth.torch needs PyTorch: install kernelgrowth[torch]") from error

from kernelgrowth.gradients.torch import ModuleFeatures, gradient_features
from kernelgrowth.torch import loggers
from kernelgrowth.torch.kernel import empirical_ntk
from kernelgrowth.torch.optimizers import learning_rates, preconditioner
from kernelgrowth.torch.tracker import NTKTracker

if TYPE_CHECKING:
    from kernelgrowth.torch.hugging_face import TrainerCallback as TrainerCallback
    from kernelgrowth.torch.lightning import LightningCallback as LightningCallback

_HOME_OF = {"LightningCallback": "lightning", "TrainerCallback": "hugging_face"}

__all__ = [
    "LightningCallback",
    "ModuleFeatures",
    "NTKTracker",
    "TrainerCallback",
    "empirical_ntk",
    "gradient_features",
    "learning_rates",
    "loggers",
    "preconditioner",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'kernelgrowth.torch' has no attribute {name!r}")
    return getattr(importlib.import_module(f"kernelgrowth.torch.{_HOME_OF[name]}"), name)
