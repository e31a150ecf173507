"""From parameters and images to the kernel of a convolutional network, forward and backward sweeps included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.case import OURS, Case, Workload
from benchmarks.convolution import expand
from benchmarks.end_to_end import SWEPT_TOLERANCE
from benchmarks.factors import Layer, kernel_error
from benchmarks.peers import jitted, torch_jacobian_contraction
from kernelgrowth.gradients import from_net
from kernelgrowth.kernels import NTKOperator, empirical_ntk
from kernelgrowth.nets import CNN, Conv, Dense, Flatten

__all__ = ["CASES", "cnn"]


def factors_by_hand(weights: Sequence[Any], strides: Sequence[int], images: Any) -> list[Layer]:
    """Sweep 3 x 3 convolutions with ReLU and a dense layer forward and backward: im2col, products, col2im."""
    *kernels, dense = weights
    h, inputs, slopes = images, [], []
    for kernel, stride in zip(kernels, strides, strict=True):
        padded = np.pad(h, ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::stride, ::stride]
        n, channels, height, width = windows.shape[:4]
        inputs.append(windows.transpose(0, 2, 3, 1, 4, 5).reshape(n, height * width, channels * 9))
        z = inputs[-1] @ kernel.reshape(len(kernel), -1).T
        slopes.append(z > 0)
        h = (z * slopes[-1]).swapaxes(1, 2).reshape(n, -1, height, width)
    flat = h.reshape(n, 1, -1)
    deltas = [np.ones((n, 1, 1, 1), images.dtype)]
    back = np.broadcast_to(dense.reshape(1, *h.shape[1:]), h.shape)
    for index in reversed(range(len(kernels))):
        n, channels, height, width = back.shape
        delta = back.reshape(n, channels, -1).swapaxes(1, 2) * slopes[index]
        deltas.append(delta[:, None])
        if index:
            kernel, stride = kernels[index], strides[index]
            columns = (delta @ kernel.reshape(channels, -1)).reshape(n, height, width, -1, 3, 3)
            padded = np.zeros((n, kernel.shape[1], height * stride + 2, width * stride + 2), images.dtype)
            for i in range(3):
                for j in range(3):
                    part = padded[:, :, i : i + height * stride : stride, j : j + width * stride : stride]
                    part += columns[..., i, j].transpose(0, 3, 1, 2)
            back = padded[:, :, 1:-1, 1:-1]
    return list(zip([*inputs, flat], deltas[::-1], strict=True))


def _torch_forward(torch: Any, strides: Sequence[int], params: Mapping[str, Any], x: Any) -> Any:
    *kernels, dense = params.values()
    for kernel, stride in zip(kernels, strides, strict=True):
        x = torch.relu(torch.nn.functional.conv2d(x, kernel, stride=stride, padding=1))
    return x.flatten(1) @ dense.T


def _jax_jacobian_contraction(strides: Sequence[int], weights: Sequence[Any], images: Any) -> Any:
    import jax

    def output(weights: Sequence[Any], image: Any) -> Any:
        *kernels, dense = weights
        h = image[None]
        for kernel, stride in zip(kernels, strides, strict=True):
            h = jax.nn.relu(jax.lax.conv_general_dilated(h, kernel, (stride, stride), [(1, 1), (1, 1)]))
        return (h.reshape(1, -1) @ dense.T)[0, 0]

    jacobian = jax.vmap(jax.grad(output), (None, 0))(weights, images)
    rows = [j.reshape(len(images), -1) for j in jacobian]
    return sum(j @ j.T for j in rows)


def cnn(size: int, channels: Sequence[int], strides: Sequence[int], n: int, chunk: int, dtype: str) -> Workload:
    convolutions = [Conv(c, stride=s) for c, s in zip(channels, strides, strict=True)]
    net = CNN((3, size, size), [*convolutions, Flatten(), Dense(1)])
    params = net.init(seed=0, dtype=dtype)
    weights = list(params.values())
    images = np.random.default_rng(3).standard_normal((n, 3, size, size), dtype=np.dtype(dtype).type)
    exact = factors_by_hand([w.astype(np.float64) for w in weights], strides, images.astype(np.float64))
    products = [a.shape[1] * w.size for (a, _), w in zip(exact, weights, strict=True)]
    return Workload(
        {
            OURS: lambda: empirical_ntk(from_net(net, params, images)),
            "NumPy, sweeps by hand, expanded": lambda: expand(factors_by_hand(weights, strides, images)),
            "JAX, Jacobian contraction, jit": jitted(
                lambda w, x: _jax_jacobian_contraction(strides, w, x), weights, images
            ),
            "torch.func, Jacobian contraction": torch_jacobian_contraction(
                lambda torch, p, x: _torch_forward(torch, strides, p, x), params, images, chunk=chunk
            ),
        },
        kernel_error(exact),
        SWEPT_TOLERANCE[dtype],
        # Forward through every weight, backward through all but the first, and the kernel.
        flops=2 * n * (sum(products) + sum(products[1:])) + NTKOperator(from_net(net, params, images)).plan().flops,
        bytes=images.nbytes + sum(w.nbytes for w in weights) + n * n * images.itemsize,
    )


CASES = (
    Case(
        "end to end, CNN 32-64-64 on 32 x 32, N = 512",
        cnn,
        {"size": 32, "channels": (32, 64, 64), "strides": (1, 2, 2), "n": 512, "chunk": 64},
        {"size": 8, "channels": (4, 5, 3), "n": 9, "chunk": 4},
        repeats=5,
    ),
)
