"""Training in memory that figures look at: what a function sees of the weights, or the kernel's series."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kernelgrowth._backend.arrays import place
from kernelgrowth._backend.cuda import first_gpu
from kernelgrowth.datasets import Dataset
from kernelgrowth.nets import MLP
from kernelgrowth.tracking import History, NTKTracker
from kernelgrowth.training import Callback, Optimizer, TrainingState, optim, train

__all__ = ["crossing", "early_steps", "followed", "kernel_history"]

FloatArray = npt.NDArray[np.float64]


class _Looks(Callback):
    def __init__(self, look: Callable[[TrainingState], Sequence[float]], every: int) -> None:
        self._look, self._every = look, every
        self.seen: list[Sequence[float]] = []

    def on_step(self, state: TrainingState) -> None:
        if state.step % self._every == 0 or state.is_last:
            self.seen.append(self._look(state))


def followed(
    net: MLP,
    dataset: Dataset,
    look: Callable[[TrainingState], Sequence[float]],
    *,
    steps: int,
    every: int,
    lr: float,
    seed: int,
) -> FloatArray:
    """Return what `look` sees of full-batch gradient descent every so many steps, (T, numbers)."""
    looks = _Looks(look, every)
    train(net, net.init(seed), (dataset.x, dataset.y), optimizer=optim.GD(lr), steps=steps, callbacks=[looks])
    return np.array(looks.seen, dtype=np.float64)


def kernel_history(
    net: Any,
    dataset: Dataset,
    *,
    steps: int,
    every: int | Sequence[int],
    seed: int,
    optimizer: Optimizer,
    loss: str = "mse",
    outputs: str = "full",
    metrics: Sequence[str] = ("kernel_norm", "alignment", "rotation", "trace"),
    on_gpu: bool = False,
) -> History:
    """Return the kernel's series on the training set, with kernels and predictions on the examples held out.

    With `on_gpu` the network is trained and followed on a GPU where this machine has one.
    """
    gpu = first_gpu() if on_gpu else None
    x, y = place(dataset.x, gpu), place(dataset.y, gpu)
    x_test = None if dataset.x_test is None else place(dataset.x_test, gpu)
    tracker = NTKTracker(x, y, every=every, top_k=1, metrics=metrics, x_test=x_test, outputs=outputs)
    train(
        net,
        net.init(seed, dataset.x.dtype, device="cpu" if gpu is None else "cuda"),
        (x, y),
        loss=loss,
        optimizer=optimizer,
        steps=steps,
        callbacks=[tracker],
    )
    return tracker.history


def early_steps(steps: int) -> list[int]:
    """Return steps to track: dense while a kernel aligns, sparse when it only grows."""
    return sorted({0, steps, *range(0, 50, 2), *np.geomspace(50, steps, 80).astype(int).tolist()})


def crossing(time: FloatArray, values: FloatArray, level: float) -> float:
    """Return when a series first comes to a level, interpolated; NaN if it does not."""
    above = values >= level if values[0] < level else values <= level
    if not above.any() or above[0]:
        return float(time[0]) if above[0] else math.nan
    i = int(above.argmax())
    share = (level - values[i - 1]) / (values[i] - values[i - 1])
    return float(time[i - 1] + share * (time[i] - time[i - 1]))
