"""PyTorch modules to try, and the kernel of one from its expanded Jacobian."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.torch_zoo import CharTransformer, resnet18
from torch import nn

__all__ = [
    "Apply",
    "CharTransformer",
    "Classifier",
    "expanded_jacobian",
    "random_module",
    "reference_kernel",
    "resnet18",
    "worst_error",
]


class Apply(nn.Module):
    """Modules, and a function of them and the inputs."""

    def __init__(self, function: Callable[..., Any], *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self.parts, *args, **kwargs)


def expanded_jacobian(module: nn.Module, *args: Any) -> dict[str, Any]:
    """Return ∂f/∂θ (N, C, p) of each parameter that requires a gradient, by `torch.func.jacrev`."""
    params = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}

    def outputs(values: Any) -> Any:
        f = torch.func.functional_call(module, values, args)
        return f[:, None] if f.ndim == 1 else f

    jacobian = torch.func.jacrev(outputs)(params)
    return {name: j.detach().flatten(2) for name, j in jacobian.items()}


def reference_kernel(module: nn.Module, *args: Any) -> Any:
    """Return J Jᵀ (N·C, N·C), rows example-major, in float64."""
    rows = torch.cat(list(expanded_jacobian(module, *args).values()), dim=2).double().flatten(0, 1)
    return rows @ rows.T


def worst_error(kernel: Any, exact: Any) -> float:
    """Return the largest error of an entry, relative to sqrt(K_ii K_jj)."""
    if kernel.ndim == 4:
        n, m, c, e = kernel.shape
        kernel = kernel.permute(0, 2, 1, 3).reshape(n * c, m * e)
    scale = exact.diagonal().sqrt()
    return float(((kernel.double() - exact).abs() / (scale[:, None] * scale)).max())


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Any) -> Any:
        return x + self.inner(x)


class Twice(nn.Module):
    """One layer used twice."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Any) -> Any:
        return self.inner(torch.tanh(self.inner(x)))


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int, batch_first: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=batch_first)
        self.batch_first = batch_first

    def forward(self, x: Any) -> Any:
        x = x if self.batch_first else x.transpose(0, 1)
        y, _ = self.attention(x, x, x, need_weights=False)
        return y if self.batch_first else y.transpose(0, 1)


class Recurrent(nn.Module):
    def __init__(self, kind: Any, width: int, hidden: int, batch_first: bool, bidirectional: bool) -> None:
        super().__init__()
        self.recurrent = kind(width, hidden, batch_first=batch_first, bidirectional=bidirectional)
        self.batch_first = batch_first

    def forward(self, x: Any) -> Any:
        y, _ = self.recurrent(x if self.batch_first else x.transpose(0, 1))
        return y if self.batch_first else y.transpose(0, 1)


class Channels(nn.Module):
    """A layer for (N, channels, T), between layers for (N, T, channels)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Any) -> Any:
        return self.inner(x.transpose(1, 2)).transpose(1, 2)


class Gain(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.randn(width))
        self.shift = nn.Parameter(torch.randn(1, 1, width))

    def forward(self, x: Any) -> Any:
        return x * self.gain + self.shift


class Tied(nn.Module):
    """A matrix and its transpose."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(hidden, width) / width**0.5)

    def forward(self, x: Any) -> Any:
        return torch.tanh(x @ self.weight.T) @ self.weight * 0.5


def _sequence_layers(rng: random.Random, width: int, length: int) -> list[Callable[[], nn.Module]]:
    kernel = rng.choice([k for k in (1, 2, 3) if k <= length])
    groups = rng.choice([g for g in (1, 2) if width % g == 0])
    hidden = rng.randint(1, 9)
    return [
        lambda: nn.Linear(width, width, bias=rng.random() < 0.7),
        lambda: Residual(nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))),
        lambda: Twice(nn.Linear(width, width)),
        lambda: SelfAttention(width, groups, rng.random() < 0.5),
        lambda: Recurrent(
            rng.choice([nn.RNN, nn.LSTM, nn.GRU]), width, width // groups, rng.random() < 0.5, bidirectional=groups == 2
        ),
        lambda: nn.LayerNorm(rng.choice([(width,), (length, width)])),
        lambda: nn.RMSNorm(width),
        lambda: Channels(nn.GroupNorm(groups, width)),
        lambda: Channels(nn.BatchNorm1d(width)),
        lambda: Channels(
            nn.Conv1d(
                width,
                width,
                kernel,
                padding="same",
                dilation=rng.choice([1, 2]) if 2 * (kernel - 1) < length else 1,
                groups=groups,
                padding_mode=rng.choice(["zeros", "circular"]) if kernel > 1 and length > 2 else "zeros",
            )
        ),
        lambda: Channels(nn.ConvTranspose1d(width, width, 3, padding=1, groups=groups)),
        lambda: Gain(width),
        lambda: Tied(width, hidden),
        nn.PReLU,
    ]


def _image_layers(rng: random.Random, width: int) -> list[Callable[[], nn.Module]]:
    groups = rng.choice([g for g in (1, 2, width) if width % g == 0])
    return [
        lambda: nn.Conv2d(width, width, rng.choice([(1, 2), 3]), padding="same", groups=groups),
        lambda: nn.Conv2d(width, width, 2, stride=2, padding=1, bias=False),
        lambda: nn.Conv2d(width, width, 3, padding=1, padding_mode="reflect"),
        lambda: nn.ConvTranspose2d(
            width, width, 3, stride=2, padding=1, output_padding=rng.choice([0, 1]), groups=groups
        ),
        lambda: Residual(nn.Conv2d(width, width, 3, padding=2, dilation=2)),
        lambda: Twice(nn.Conv2d(width, width, 3, padding=1)),
        lambda: nn.GroupNorm(groups, width),
        lambda: nn.InstanceNorm2d(width, affine=True),
        lambda: nn.BatchNorm2d(width),
        lambda: nn.PReLU(width),
    ]


def random_module(seed: int) -> tuple[nn.Module, Any]:
    """Return a module of layers drawn at random, in eval mode and float64, and examples for it."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    n, outputs = rng.randint(1, 6), rng.randint(1, 4)
    kind = rng.choice(["sequence", "sequence", "images", "tokens"])
    width = rng.choice([2, 4, 6])
    layers: list[nn.Module] = []
    if kind == "images":
        x = torch.randn(n, 3, rng.randint(4, 6), rng.randint(4, 7), dtype=torch.float64)
        layers.append(nn.Conv2d(3, width, 3, padding=1))
        choices = _image_layers(rng, width)
    else:
        length = rng.randint(1, 20)
        if kind == "tokens":
            x = torch.randint(0, 7, (n, length))
            layers.append(nn.Embedding(7, width, padding_idx=rng.choice([None, 2])))
        else:
            x = torch.randn(n, length, 5, dtype=torch.float64)
            layers.append(nn.Linear(5, width))
        choices = _sequence_layers(rng, width, length)
    for _ in range(rng.randint(1, 4)):
        layers += [rng.choice([nn.Tanh, nn.SiLU])(), rng.choice(choices)()]
    module = Apply(_head, nn.Sequential(*layers), nn.Linear(width, outputs))
    if rng.random() < 0.3:
        module.parts[0][0].requires_grad_(False)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.running_mean.uniform_(-1, 1)
            part.running_var.uniform_(0.5, 2)
    return module.double().eval(), x


def _head(parts: Any, x: Any) -> Any:
    y = torch.tanh(parts[0](x))
    pooled = y.mean((2, 3)) if y.ndim == 4 else y.mean(1)
    return parts[1](pooled)


class Classifier(nn.Module):
    """An LSTM and a linear layer on its last state."""

    def __init__(self, width: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, hidden, num_layers=2, batch_first=True)
        self.head = nn.Linear(hidden, outputs)

    def forward(self, x: Any) -> Any:
        return self.head(self.lstm(x)[0][:, -1])
