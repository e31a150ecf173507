"""A look at whether features are what autograd says: inner products of single gradients, one example at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from kernelgrowth._backend.arrays import to_numpy
from kernelgrowth.gradients.features import Block, Embedding, Rows
from kernelgrowth.gradients.torch.module import Forward, Inputs

__all__ = ["verify_features"]

_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-7}


def verify_features(feats: Any, forward: Forward, inputs: Inputs, tracked: Mapping[str, Any]) -> None:
    """Compare the inner products of two gradients, block by block, with autograd's.

    Raises
    ------
    ValueError
        If they differ, naming the parameters.
    """
    n, c = feats.num_examples, feats.num_outputs
    # The same pair each time, drawn from the number of examples: a check that fails fails again.
    generator = torch.Generator().manual_seed(n * c)
    examples, outputs = (torch.randint(count, (2,), generator=generator).tolist() for count in (n, c))
    chosen = list(zip(examples, outputs, strict=True))
    groups = _groups(feats.parameters)
    names = {name for members, _ in groups for name in members}
    used = {name: tensor for name, tensor in tracked.items() if name in names}
    exact = [_gradient(forward, inputs, used, *pair) for pair in chosen]
    compared = []
    for members, blocks in groups:
        right = _products(exact, members)
        found = np.sum([_inner_products(feats[block], chosen) for block in blocks], axis=0)
        compared.append((members, right, found))
    first, second = (sum(right[i] for _, right, _ in compared) for i in (0, 1))
    scales = np.maximum([first, second, math.sqrt(first * second)], np.finfo(np.float64).tiny)
    for members, right, found in compared:
        error = float(np.max(np.abs(right - found) / scales))
        if error > _TOLERANCE[next(iter(used.values())).dtype]:
            raise ValueError(
                f"the gradients of {', '.join(members)} at the examples {chosen[0][0]} and {chosen[1][0]} are not "
                f"those that autograd gives for these examples alone, by {error:.2g} of the kernel: the module treats "
                "an example differently in a batch, or is not understood; verify='never' keeps this from being seen"
            )


def _groups(parameters: Mapping[str, list[str]]) -> list[tuple[list[str], list[str]]]:
    """Return the parameters that share blocks, with these blocks; a matrix may be divided among several."""
    groups: dict[str, tuple[list[str], list[str]]] = {}
    for block, names in parameters.items():
        members, blocks = groups.setdefault(names[0], ([], []))
        members += [name for name in names if name not in members]
        blocks.append(block)
    return list(groups.values())


def _gradient(forward: Forward, inputs: Inputs, parameters: Mapping[str, Any], example: int, output: int) -> Any:
    prediction = forward(inputs.select(slice(example, example + 1)))[0, output]
    gradients = torch.autograd.grad(prediction, list(parameters.values()), allow_unused=True)
    return {
        name: np.zeros(parameters[name].numel()) if g is None else _dense(g).double().cpu().flatten().numpy()
        for name, g in zip(parameters, gradients, strict=True)
    }


def _dense(gradient: Any) -> Any:
    """Return a gradient as an ordinary tensor; those of sparse embeddings are not."""
    return gradient.detach().to_dense() if gradient.is_sparse else gradient.detach()


def _products(gradients: Any, parameters: list[str]) -> Any:
    first, second = (np.concatenate([gradient[name] for name in parameters]) for gradient in gradients)
    return np.array([first @ first, second @ second, first @ second])


def _inner_products(block: Block, chosen: list[tuple[int, int]]) -> Any:
    def product(one: tuple[int, int], other: tuple[int, int]) -> float:
        (n, c), (m, e) = one, other
        if isinstance(block, Rows):
            return float(_double(block.rows[n, c]) @ _double(block.rows[m, e]))
        backprops = _double(block.backprops[n, c]) @ _double(block.backprops[m, e]).T
        if isinstance(block, Embedding):
            inputs = to_numpy(block.indices[n])[:, None] == to_numpy(block.indices[m])[None, :]
        else:
            inputs = _double(block.activations[n]) @ _double(block.activations[m]).T + float(block.bias)
        return float(np.sum(inputs * backprops))

    first, second = chosen
    return np.array([product(first, first), product(second, second), product(first, second)])


def _double(array: Any) -> Any:
    return to_numpy(array).astype(np.float64)
