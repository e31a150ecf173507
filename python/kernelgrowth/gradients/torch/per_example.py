"""Gradients of parameters that are used in a way not understood otherwise: example by example, exactly."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch

from kernelgrowth.gradients.torch.module import Forward, Inputs

__all__ = ["fill_per_example"]

_CHUNK_BYTES = 2**26


def fill_per_example(
    forward: Forward, inputs: Inputs, targets: Mapping[str, Any], parameters: Mapping[str, Any]
) -> None:
    """Write the gradients (n, C, size) of each named parameter into `targets`.

    Notes
    -----
    By `torch.func` in chunks of examples where the module can be vectorised, else by one backward sweep for every
    example and output.
    """
    outputs = next(iter(targets.values())).shape[1]
    size = sum(target.shape[2] * target.element_size() for target in targets.values()) * outputs
    step = max(1, _CHUNK_BYTES // size)
    vectorised = True
    for begin in range(0, inputs.num_examples, step):
        part = inputs.select(slice(begin, begin + step))
        rows = {name: target[begin : begin + step] for name, target in targets.items()}
        if vectorised:
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
                    _vectorised(forward, part, rows, parameters)
                continue
            # What vmap cannot do it says in errors of many kinds; one that is the module's own is raised again below.
            except (RuntimeError, ValueError, TypeError):
                vectorised = False
        _one_by_one(forward, part, rows, parameters)


def _vectorised(forward: Forward, inputs: Inputs, rows: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    names = list(rows)

    def outputs(values: dict[str, Any], args: list[Any], kwargs: dict[str, Any]) -> Any:
        one = object.__new__(Inputs)
        one.args, one.kwargs, one.num_examples = [a[None] for a in args], {k: v[None] for k, v in kwargs.items()}, 1

        def function(*args: Any, **kwargs: Any) -> Any:
            return torch.func.functional_call(forward.module, values, args, kwargs, tie_weights=True)

        return forward.call(function, one)[0]

    values = {name: parameters[name].detach() for name in names}
    jacobian = torch.func.vmap(torch.func.jacrev(outputs), in_dims=(None, 0, 0))
    for name, gradients in jacobian(values, inputs.args, inputs.kwargs).items():
        rows[name].copy_(gradients.detach().flatten(2))


def _one_by_one(forward: Forward, inputs: Inputs, rows: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    tensors = [parameters[name] for name in rows]
    for n in range(inputs.num_examples):
        predictions = forward(inputs.select(slice(n, n + 1)))[0]
        for c, prediction in enumerate(predictions):
            gradients = torch.autograd.grad(
                prediction, tensors, retain_graph=c + 1 < len(predictions), allow_unused=True
            )
            for row, gradient in zip(rows.values(), gradients, strict=True):
                if gradient is None:
                    row[n, c] = 0
                else:
                    row[n, c] = (gradient.to_dense() if gradient.is_sparse else gradient).detach().flatten()
