"""Kernels of PyTorch modules, and following them, against torch.func, nngeometry and JAX for the same numbers.

    python -m benchmarks.torch_models            the table, some ten minutes
    python -m benchmarks.torch_models --quick    small sizes, to see that it works

All get the same module, inputs and threads, and have run once on a few examples before they are timed; answers are
compared. torch.func's Jacobians are contracted in two ways that stay within the memory that this library is given: in
chunks of examples, as its tutorial has it, and one output and group of parameters at a time, which needs no Jacobian
twice. neural-tangents' way is the contraction of Jacobians in JAX under jit; it does not import with current JAX.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import statistics
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.environment import holding, start_again

if names := holding():
    start_again("benchmarks.torch_models", without=names)

import torch
from torch import nn

from benchmarks.machine import machine
from benchmarks.torch_zoo import CharTransformer, cnn, mlp, resnet18
from kernelgrowth.torch import NTKTracker, empirical_ntk

__all__ = ["by_chunks_of_examples", "by_groups_of_parameters", "in_jax", "main", "tracking"]

_GIB = 2**30
_MEMORY = int(3.2 * _GIB)
_WARM_UP = 8

Kernel = Callable[[Any], Any]


def ours(module: nn.Module) -> Kernel:
    return lambda x: empirical_ntk(module, x, outputs="mean_trace", memory_limit=_MEMORY)


def by_chunks_of_examples(module: nn.Module, memory: int = _MEMORY) -> Kernel:
    """Return the mean over outputs of the kernels, from Jacobians of two chunks of examples at a time."""
    params = {name: p.detach() for name, p in module.named_parameters()}

    def one(values: Any, example: Any) -> Any:
        return torch.func.functional_call(module, values, (example[None],))[0]

    def jacobian(x: Any) -> list[Any]:
        return [j.flatten(2) for j in torch.func.vmap(torch.func.jacrev(one), (None, 0))(params, x).values()]

    def kernel(x: Any) -> Any:
        outputs = module(x[:1]).shape[1]
        # Two Jacobians, and what vmap holds of one while it is made.
        step = max(1, memory // (3 * 4 * outputs * sum(p.numel() for p in params.values())))
        result = torch.empty(len(x), len(x))
        for i in range(0, len(x), step):
            rows = jacobian(x[i : i + step])
            for k in range(i, len(x), step):
                columns = rows if k == i else jacobian(x[k : k + step])
                tile = sum(torch.einsum("naf,maf->nm", a, b) for a, b in zip(rows, columns, strict=True)) / outputs
                result[i : i + step, k : k + step] = tile
                result[k : k + step, i : i + step] = tile.T
        return result

    return kernel


def by_groups_of_parameters(module: nn.Module, memory: int = _MEMORY * 2 // 3) -> Kernel:
    """Return the same from Jacobians of all examples, by some parameters and one output at a time."""
    params = {name: p.detach() for name, p in module.named_parameters()}

    def kernel(x: Any) -> Any:
        outputs = module(x[:1]).shape[1]
        result = torch.zeros(len(x), len(x))
        for group in _groups(params, memory // len(x)):
            for c in range(outputs):

                def one(values: Any, example: Any, c: int = c) -> Any:
                    return torch.func.functional_call(module, {**params, **values}, (example[None],))[0, c]

                step = max(1, 2**29 // (4 * sum(p.numel() for p in group.values())))
                rows = {name: p.new_empty((len(x), p.numel())) for name, p in group.items()}
                for begin in range(0, len(x), step):
                    gradients = torch.func.vmap(torch.func.grad(one), (None, 0))(group, x[begin : begin + step])
                    for name, g in gradients.items():
                        rows[name][begin : begin + step] = g.flatten(1)
                for j in rows.values():
                    result.addmm_(j, j.T)
        return result / outputs

    return kernel


def _groups(params: Mapping[str, Any], numbers: int) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = [{}]
    left = numbers // 4
    for name, p in params.items():
        if p.numel() > left and groups[-1]:
            groups.append({})
            left = numbers // 4
        groups[-1][name] = p
        left -= p.numel()
    return groups


def in_jax(module: nn.Module) -> Kernel | None:
    """Return the contraction of Jacobians of a network of dense layers in JAX, under jit."""
    if not importlib.util.find_spec("jax") or not all(isinstance(m, nn.Linear | nn.ReLU) for m in module):
        return None
    import jax
    import jax.numpy as jnp

    weights = [jnp.asarray(m.weight.detach().numpy()) for m in module if isinstance(m, nn.Linear)]

    def outputs(weights: Any, x: Any) -> Any:
        for w in weights[:-1]:
            x = jax.nn.relu(x @ w.T)
        return x @ weights[-1].T

    @jax.jit
    def kernel(weights: Any, x: Any) -> Any:
        jacobians = jax.jacrev(outputs)(weights, x)
        return sum(jnp.einsum("naij,maij->nm", j, j) for j in jacobians) / weights[-1].shape[0]

    return lambda x: torch.from_dlpack(kernel(weights, jnp.asarray(x.numpy())).block_until_ready())


def with_nngeometry(module: nn.Module) -> Kernel | None:
    """Return nngeometry's Gram matrix, of a module with one output."""
    if not importlib.util.find_spec("nngeometry"):
        return None
    from nngeometry.gram import GramMatrix
    from torch.utils.data import DataLoader, TensorDataset

    def kernel(x: Any) -> Any:
        loader = DataLoader(TensorDataset(x.clone(), torch.zeros(len(x))), batch_size=len(x))
        gram = GramMatrix(module, loader, function=lambda *batch: module(batch[0]))
        return gram.to_torch().reshape(len(x), len(x)).detach()

    return kernel


class Peak:
    """The most memory that the process takes while something runs, beyond what it had taken before."""

    def __enter__(self) -> Peak:
        gc.collect()
        self._before = self.bytes = _resident()
        self._running = True
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._running = False
        self._thread.join()
        self.bytes -= self._before

    def _watch(self) -> None:
        while self._running:
            self.bytes = max(self.bytes, _resident())
            time.sleep(0.002)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def compare(name: str, x: Any, contenders: Mapping[str, Kernel | None], repeats: int) -> dict[str, Any]:
    """Return seconds and peak memory of all, interleaved, after their results were compared."""
    kernels = {label: kernel for label, kernel in contenders.items() if kernel is not None}
    seconds: dict[str, list[float]] = {label: [] for label in kernels}
    peaks = dict.fromkeys(kernels, 0)
    results = {}
    for kernel in kernels.values():
        kernel(x[:_WARM_UP])
    for _ in range(repeats):
        for label, kernel in kernels.items():
            with Peak() as peak:
                begin = time.perf_counter()
                results[label] = kernel(x)
                seconds[label].append(time.perf_counter() - begin)
            peaks[label] = max(peaks[label], peak.bytes)
    exact = results["kernelgrowth"].double()
    scale = exact.diagonal().sqrt()
    rows = {}
    for label in kernels:
        error = float(((results[label] - exact).abs() / (scale[:, None] * scale)).max())
        if error > 1e-3:
            raise AssertionError(f"{name}, {label}: results differ by {error:.1e}")
        rows[label] = {
            "seconds": statistics.median(seconds[label]),
            "ratio": statistics.median(seconds[label]) / statistics.median(seconds["kernelgrowth"]),
            "peak_GiB": peaks[label] / _GIB,
            "difference": error,
        }
        row = rows[label]
        print(
            f"  {label:<36} {row['seconds']:8.2f} s {row['ratio']:6.2f} {row['peak_GiB']:6.2f} GiB  {error:.0e}",
            flush=True,
        )
    return {"case": name, "contenders": rows}


def tracking(module: nn.Module, n: int, batch: int, every: int, steps: int) -> dict[str, float]:
    """Return what following a CNN with one output costs, as a fraction of the training in between."""
    torch.manual_seed(0)
    x, y = torch.randn(n, 3, 32, 32), torch.randn(n, 1)
    data = torch.randn(batch, 3, 32, 32), torch.randn(batch, 1)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    tracker = NTKTracker(module, x, y, every=every)
    begin = time.perf_counter()
    for _ in range(steps + 1):
        loss = nn.functional.mse_loss(module(data[0]), data[1])
        optimizer.zero_grad()
        loss.backward()
        tracker.step(loss=loss)
        optimizer.step()
    whole = time.perf_counter() - begin
    spent = tracker.history["seconds"]
    # The first step also finds out what the module is like.
    fraction = float(spent[1:].sum()) / (whole - float(spent.sum()))
    print(f"  {fraction:.1%} of training: {spent[1:].mean():.3f} s a tracked step, {every} updates apart", flush=True)
    return {"fraction": fraction, "seconds_a_tracked_step": float(spent[1:].mean()), "seconds": whole}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.torch_models", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    quick = arguments.quick
    warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
    torch.manual_seed(0)
    n = 16 if quick else 256
    dense = mlp(784, 64, 1) if quick else mlp(784, 1024, 1024, 1)
    images, text = torch.randn(n, 3, 32, 32), torch.randint(0, 65, (n, 32))
    transformers = {c: CharTransformer(65, 128, 4, 1 if quick else 4, 32, c).eval() for c in (1, 10)}
    convolutional = cnn(1)
    resnet = resnet18(10, 8 if quick else 64)

    def torch_func(module: nn.Module) -> dict[str, Kernel | None]:
        return {
            "torch.func, chunks of examples": by_chunks_of_examples(module),
            "torch.func, groups of parameters": by_groups_of_parameters(module),
        }

    cases: dict[str, tuple[Any, dict[str, Kernel | None], int]] = {
        f"MLP 784-1024-1024-1, N = {n}": (
            torch.randn(n, 784),
            {
                "kernelgrowth": ours(dense),
                "nngeometry": with_nngeometry(dense),
                "JAX, Jacobian contraction, jit": in_jax(dense),
                **torch_func(dense),
            },
            5,
        ),
        f"CNN 32, 64 / 2, 64 / 2, 1 output, N = {n}": (
            images,
            {
                "kernelgrowth": ours(convolutional),
                "nngeometry": with_nngeometry(convolutional),
                **torch_func(convolutional),
            },
            5,
        ),
        **{
            f"transformer 4 x 128, 32 tokens, {c} output(s), N = {n}": (
                text,
                {"kernelgrowth": ours(transformers[c]), **torch_func(transformers[c])},
                5 if c == 1 else 3,
            )
            for c in (1, 10)
        },
        # In chunks of examples each Jacobian would be computed some eighty times.
        f"ResNet-18, 10 outputs, N = {n}": (
            images,
            {
                "kernelgrowth": ours(resnet),
                "torch.func, groups of parameters": by_groups_of_parameters(resnet, _MEMORY // 4),
            },
            1,
        ),
    }
    about = machine() | {"torch": torch.__version__, "torch_threads": torch.get_num_threads()}
    print(", ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    results: list[dict[str, Any]] = []
    name = "following a CNN, N = 500, every 50 updates of 128"
    if arguments.only in name:
        print(name, flush=True)
        size = (16, 8, 2, 6) if quick else (500, 128, 50, 200)
        results.append({"case": name} | tracking(cnn(1), *size))
    for name, (x, contenders, repeats) in cases.items():
        if arguments.only in name:
            print(name, flush=True)
            results.append(compare(name, x, contenders, 1 if quick else repeats))
    if arguments.out:
        arguments.out.write_text(json.dumps({"machine": about, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
