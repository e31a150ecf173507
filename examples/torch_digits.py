"""Follow the kernels of two PyTorch networks, dense and convolutional, trained on handwritten digits by a plain loop.

    python examples/torch_digits.py

Prints how the kernel turned and grew, whether it aligned silently, and how well kernel regression with the kernel of
the beginning and with that of the end predicts held-out digits, beside the network itself.
"""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import kernelgrowth as kg


def digits(classes=(3, 8), test=100):
    """Return images (N, 1, 8, 8) and targets -1 and 1, for training and for testing."""
    bunch = load_digits()
    chosen = np.isin(bunch.target, classes)
    x = torch.tensor(bunch.images[chosen], dtype=torch.float32)[:, None] / 16
    y = torch.tensor(np.where(bunch.target[chosen] == classes[0], -1, 1), dtype=torch.float32)[:, None]
    x = x - x.mean(0)
    return x[test:], y[test:], x[:test], y[:test]


def small_weights(module, factor=0.3):
    """Scale the initial weights down: rich training, in which the kernel changes much."""
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(factor)
    return module


def follow(name, module, steps, lr):
    x, y, x_test, y_test = digits()
    optimizer = torch.optim.SGD(module.parameters(), lr=lr, momentum=0.9)
    tracker = kg.torch.NTKTracker(module, x[:150], y[:150], every=steps // 40, top_k=5, x_test=x_test)
    for _ in range(steps):
        batch = torch.randint(0, len(x), (64,))
        loss = nn.functional.mse_loss(module(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        tracker.step(loss=loss)
        optimizer.step()
    tracker.close()

    history = tracker.history
    print(f"\n{name}")
    print("step   loss  |K|      alignment  rotation")
    for i in range(0, len(history.steps), 8):
        row = (history[key][i] for key in ("loss", "kernel_norm", "alignment", "rotation"))
        print("{:5d} {:6.3f}  {:7.3g}  {:9.3f}  {:8.3f}".format(history.steps[i], *row))
    print(kg.silent_alignment(history).summary())

    feats = {part: kg.torch.gradient_features(module, data) for part, data in (("train", x[:150]), ("test", x_test))}
    last = kg.KernelRegression(kg.empirical_ntk(feats["train"]).numpy(), diag_reg=1e-6).fit(y[:150].numpy())
    kernel = last.predict(kg.empirical_ntk(feats["test"], feats["train"]).numpy())
    with torch.no_grad():
        right = float((module(x_test).sign() == y_test).float().mean())
    by_kernel = np.mean(np.sign(kernel) == y_test.numpy())
    print(f"right on held-out digits: network {right:.0%}, final kernel {by_kernel:.0%}")
    return history


def main(steps=400):
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Flatten(), nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 1))
    follow("MLP 64-100-1", small_weights(dense), steps, lr=0.02)
    convolutional = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.GroupNorm(4, 32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 1),
    )
    follow("CNN 16, 32 / 2 with GroupNorm", convolutional, steps, lr=0.005)


if __name__ == "__main__":
    main()
