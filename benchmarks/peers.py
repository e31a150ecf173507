"""JAX, PyTorch and the BLAS as contenders; a contender is None where the library it needs is not installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

from kernelgrowth._backend import native

__all__ = ["jitted", "torch_jacobian_contraction", "with_blas_threads"]


def jitted(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any] | None:
    """Return `function` compiled by JAX, on arguments that are already its own, waited for."""
    if not importlib.util.find_spec("jax"):
        return None
    import jax

    jax.config.update("jax_enable_x64", True)  # float64 arguments would silently be float32
    jax.config.update("jax_default_matmul_precision", "highest")
    compiled = jax.jit(function)
    arrays = jax.tree.map(jax.numpy.asarray, arguments)
    return lambda: jax.block_until_ready(compiled(*arrays))


def torch_jacobian_contraction(
    forward: Callable[[Any, Any, Any], Any], params: Mapping[str, Any], x: Any, *, chunk: int | None = None
) -> Callable[[], Any] | None:
    """Return the NTK as PyTorch's tutorial writes it: the Jacobian of every example, then its inner products.

    `forward(torch, params, x)` maps a batch to the outputs (N, 1). `chunk` examples are differentiated at a time. The
    tutorial takes the Jacobian of either side; here both sides are one and the Jacobian is taken once. CuPy arrays are
    differentiated on their GPU, and the kernel stays there, a tensor that nobody has waited for.
    """
    if not importlib.util.find_spec("torch"):
        return None
    import torch

    torch.set_num_threads(native.num_threads())
    tensors = {name: torch.from_dlpack(array) for name, array in params.items()}
    inputs = torch.from_dlpack(x)

    def one_output(parameters: Any, example: Any) -> Any:
        return forward(torch, parameters, example[None])[0]

    jacobian = torch.func.vmap(torch.func.jacrev(one_output), (None, 0), chunk_size=chunk)

    def kernel() -> Any:
        with torch.no_grad():
            rows = [j.flatten(2)[:, 0] for j in jacobian(tensors, inputs).values()]
            total = torch.stack([j @ j.T for j in rows]).sum(0)
            return total if total.is_cuda else total.numpy()

    return kernel


def with_blas_threads(count: int, run: Callable[..., Any]) -> Callable[..., Any] | None:
    """Return `run` with so many threads for NumPy's and SciPy's BLAS; None where threadpoolctl is not installed."""
    if not importlib.util.find_spec("threadpoolctl"):
        return None
    import threadpoolctl

    # Finding the libraries takes longer than some of what is run.
    libraries = threadpoolctl.ThreadpoolController()

    def limited(*arguments: Any) -> Any:
        with libraries.limit(limits=count, user_api="blas"):
            return run(*arguments)

    return limited
