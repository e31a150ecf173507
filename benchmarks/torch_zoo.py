"""PyTorch modules that are benchmarked, and tested."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn
from torch.nn import functional

__all__ = ["BasicBlock", "CharTransformer", "cnn", "mlp", "resnet18"]


class BasicBlock(nn.Module):
    """Two convolutions with batch normalisation and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Any) -> Any:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += self.shortcut(x)
        return self.relu(y)


def resnet18(outputs: int, width: int = 64) -> nn.Module:
    """Return ResNet-18 for 32 × 32 images, in eval mode."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    inputs = width
    for stage, stride in enumerate((1, 2, 2, 2)):
        for depth in range(2):
            layers.append(BasicBlock(inputs, width << stage, stride if depth == 0 else 1))
            inputs = width << stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, outputs)).eval()


class CharTransformer(nn.Module):
    """A causal transformer over characters: logits of the first `outputs` characters at the last position.

    The output layer is tied to the embedding; `outputs` is the whole vocabulary by default.
    """

    def __init__(
        self, vocabulary: int, width: int, heads: int, layers: int, length: int, outputs: int | None = None
    ) -> None:
        super().__init__()
        self.outputs = outputs
        self.embedding = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(0.1 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, ids: Any) -> Any:
        length = ids.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, dtype=self.positions.dtype)
        h = self.encoder(self.embedding(ids) + self.positions[:length], mask=mask, is_causal=True)
        return functional.linear(self.norm(h[:, -1]), self.embedding.weight[: self.outputs])


def mlp(*widths: int) -> nn.Module:
    """Return a ReLU network of dense layers without biases."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs, bias=False), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def cnn(outputs: int) -> nn.Module:
    """Return a convolutional network for 3 x 32 x 32 images: 32, 64 / 2, 64 / 2, average pool, dense."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, 1, 1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, 2, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, outputs),
    )
