"""Follow the kernel of a small character-level transformer that learns to continue Python's own source code.

    python examples/torch_transformer.py

The kernel followed is that of Adam's update, J diag(η) Jᵀ, of the logits of the characters that are most frequent.
"""

import argparse
import inspect

import numpy as np
import torch
from torch import nn

import kernelgrowth as kg


class CharTransformer(nn.Module):
    def __init__(self, vocabulary, width=48, heads=4, layers=2, length=32):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, ids):
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        h = self.encoder(self.embedding(ids) + self.positions[: ids.shape[1]], mask=mask, is_causal=True)
        return self.head(h)  # (N, T, vocabulary)


def main(steps=300, length=32, outputs=4):
    torch.manual_seed(0)
    text = inspect.getsource(argparse)
    characters = sorted(set(text))
    ids = torch.tensor([characters.index(c) for c in text])
    frequent = torch.bincount(ids).argsort(descending=True)[:outputs]

    model = CharTransformer(len(characters), length=length)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    starts = torch.randint(0, len(ids) - length, (64,))
    probe = torch.stack([ids[s : s + length] for s in starts])
    following = ids[starts + length]
    tracker = kg.torch.NTKTracker(
        model,
        probe,
        nn.functional.one_hot(following, len(characters))[:, frequent].float(),
        every=50,
        outputs="trace",
        optimizer=optimizer,
        output=lambda logits: logits[:, -1][:, frequent],
    )
    print("step  train loss  |K_η|     alignment  rotation  eigenvalues")
    for step in range(steps):
        starts = torch.randint(0, len(ids) - length - 1, (32,))
        batch = torch.stack([ids[s : s + length + 1] for s in starts])
        loss = nn.functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        if tracker.step(loss=loss):
            now = tracker.history.newest()
            top = " ".join(f"{value:.3g}" for value in now["eigenvalues"][:3])
            print(
                f"{step:4d}  {now['train_loss']:10.3f}  {now['kernel_norm']:8.3g}  {now['alignment']:9.3f}"
                f"  {now['rotation']:8.3f}  {top}"
            )
        optimizer.step()
    tracker.close()
    share = np.sum(tracker.history["seconds"][1:]) / np.sum(np.diff(tracker.history["step"]))
    print(f"{share * 1000:.1f} ms of tracking for each update")


if __name__ == "__main__":
    main()
