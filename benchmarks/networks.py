"""Kernels whose spectra are looked at: of networks trained on digits, and of untrained ones on random inputs."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from kernelgrowth.datasets import digits
from kernelgrowth.gradients import GradientFeatures, from_net
from kernelgrowth.kernels import empirical_ntk
from kernelgrowth.nets import MLP
from kernelgrowth.training import Callback, optim, train

__all__ = ["digits_kernels", "random_features", "random_kernel"]

_HIDDEN, _RATE = 100, 0.2
# So small that a network learns features: the kernel grows and turns.
_SIGMA = {True: 0.03, False: 0.1}


def random_features(widths: Sequence[int], n: int, dtype: str) -> GradientFeatures:
    """Return the gradients of an untrained MLP on normally distributed inputs.

    The spectrum of its kernel has one large eigenvalue and a flat bulk, the worst that a solver may meet.
    """
    net = MLP(widths=widths)
    x = np.random.default_rng(0).standard_normal((n, widths[0]), dtype=np.dtype(dtype).type)
    return from_net(net, net.init(seed=0, dtype=dtype), x)


def random_kernel(widths: Sequence[int], n: int, dtype: str) -> Any:
    return empirical_ntk(random_features(widths, n, dtype))


class _Kernels(Callback):
    def __init__(self, every: int) -> None:
        self.every = every
        self.found: list[Any] = []

    def on_step(self, state: Any) -> None:
        if state.step % self.every == 0:
            self.found.append(empirical_ntk(from_net(state.net, state.params, state.x)))


@functools.cache
def digits_kernels(*, whiten: bool, n: int, steps: int, every: int, dtype: str) -> tuple[Any, ...]:
    """Return kernels along the training of a small MLP that tells scikit-learn's digits 0 to 4 from 5 to 9."""
    data = digits(None, n_train=n, n_test=0, whiten=whiten, targets="index", dtype=dtype)
    targets = np.where(data.y < 5, -1, 1).astype(dtype)
    net = MLP(widths=(data.x.shape[1], _HIDDEN, 1), sigma=_SIGMA[whiten])
    kernels = _Kernels(every)
    optimizer = optim.GD(lr=_RATE)
    train(net, net.init(seed=0, dtype=dtype), (data.x, targets), optimizer=optimizer, steps=steps, callbacks=[kernels])
    return tuple(kernels.found)
