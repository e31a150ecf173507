"""Kernels of PyTorch modules whose gradient features need not fit into memory at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kernelgrowth._backend.memory import resolve_memory_limit
from kernelgrowth.gradients.torch import gradient_features, parameter_groups
from kernelgrowth.kernels import empirical_ntk as ntk_of_features

__all__ = ["empirical_ntk"]


def empirical_ntk(
    module: Any,
    x: Any,
    x2: Any = None,
    *,
    outputs: str = "full",
    batch_size: int | None = None,
    parameters: Sequence[str] | Callable[[str, Any], bool] | None = None,
    output: Callable[[Any], Any] | None = None,
    memory_limit: int | None = None,
    num_threads: int | None = None,
    verify: str = "sample",
) -> Any:
    """Return the empirical neural tangent kernel of `module`, holding the features of some parameters at a time.

    Parameters
    ----------
    module : torch.nn.Module
    x : Tensor (N1, ...), tuple of Tensor, or mapping of str to Tensor
        Examples, as in `gradient_features`.
    x2 : as `x`, optional
        N2 examples for a rectangular kernel; None means symmetric.
    outputs : {"full", "trace", "mean_trace", "diagonal", "sum_logits"}
        Shape of the result, as in `kernelgrowth.empirical_ntk`.
    batch_size, parameters, output, verify
        As in `gradient_features`.
    memory_limit : int, optional
        Bytes that features, kernel and its computation may take, beside what the module takes for a sweep over
        `batch_size` examples; half of the available memory by default.
    num_threads : int, optional
        Of the kernel's computation; the bits of the result do not depend on it.

    Returns
    -------
    Tensor
        On the module's device, of its dtype.

    Raises
    ------
    TypeError, ValueError, MemoryLimitError
        As `gradient_features` and `kernelgrowth.empirical_ntk` do; the last if a single parameter's features do not
        fit.

    Notes
    -----
    A forward pass and C backward sweeps for each group of parameters whose features fit; groups are taken from the
    outputs on, so that most sweeps are short. Where everything fits it is one group.
    """
    limit = resolve_memory_limit(memory_limit)
    options: dict[str, Any] = {"outputs": outputs, "parameters": parameters, "output": output}
    share = limit * 2 // 3 // (1 if x2 is None else 2)
    groups = parameter_groups(module, x, **options, memory=share)
    total = None
    for group in groups:
        if len(groups) > 1:
            options["parameters"] = group
        sweep = {**options, "batch_size": batch_size, "memory_limit": limit, "verify": verify}
        feats = gradient_features(module, x, **sweep)
        feats2 = None if x2 is None else gradient_features(module, x2, **sweep)
        part = ntk_of_features(feats, feats2, outputs=outputs, memory_limit=limit // 3, num_threads=num_threads)
        total = part if total is None else total.add_(part)
        del feats, feats2
    return total
