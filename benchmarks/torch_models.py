"""Kernels of PyTorch modules against what torch.func and other libraries take for the same numbers.

    python -m benchmarks.torch_models            the table, some minutes
    python -m benchmarks.torch_models --quick    small sizes, to see that it works

Contenders get the same module, inputs and threads. torch.func's Jacobian is contracted one output and one group of
parameters at a time, so that it stays within the memory that this library is given; neural-tangents' way is the same
contraction without groups where it fits, so it is not listed apart (it does not import with current JAX).
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.environment import holding, start_again

if names := holding():
    start_again("benchmarks.torch_models", without=names)

import torch
from torch import nn

from benchmarks.machine import machine
from benchmarks.torch_zoo import CharTransformer, resnet18
from kernelgrowth.torch.kernel import empirical_ntk

__all__ = ["contraction", "main"]

_GIB = 2**30


def contraction(module: nn.Module, x: Any, memory: int) -> Any:
    """Return the mean over outputs of the kernels (N, N), from Jacobians expanded for groups of parameters."""
    params = {name: p.detach() for name, p in module.named_parameters()}
    groups: list[dict[str, Any]] = [{}]
    left = memory
    for name, p in params.items():
        size = p.numel() * p.element_size() * len(x)
        if size > left and groups[-1]:
            groups.append({})
            left = memory
        groups[-1][name] = p
        left -= size
    outputs = module(x[:1]).shape[1]
    kernel = x.new_zeros((len(x), len(x)), dtype=next(iter(params.values())).dtype)
    for group in groups:
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
                kernel.addmm_(j, j.T)
            del rows, gradients
    return kernel / outputs


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


def measured(function: Callable[[], Any], repeats: int) -> tuple[Any, float, int]:
    """Return the result, the median of the seconds, and the peak of memory."""
    seconds = []
    with Peak() as peak:
        for _ in range(repeats):
            begin = time.perf_counter()
            result = function()
            seconds.append(time.perf_counter() - begin)
    return result, statistics.median(seconds), peak.bytes


def compare(name: str, module: nn.Module, x: Any, memory: int, repeats: int) -> dict[str, Any]:
    """Return seconds and peak memory of both ways, after their results were compared."""
    torch.manual_seed(0)
    ours, our_seconds, our_peak = measured(
        lambda: empirical_ntk(module, x, outputs="mean_trace", memory_limit=memory), repeats
    )
    theirs, their_seconds, their_peak = measured(lambda: contraction(module, x, memory * 2 // 3), 1)
    scale = theirs.diagonal().sqrt()
    error = float(((ours - theirs).abs() / (scale[:, None] * scale)).max())
    if error > 1e-3:
        raise AssertionError(f"{name}: results differ by {error:.1e}")
    return {
        "case": name,
        "ours_seconds": our_seconds,
        "ours_peak_GiB": our_peak / _GIB,
        "torch_func_seconds": their_seconds,
        "torch_func_peak_GiB": their_peak / _GIB,
        "ratio": their_seconds / our_seconds,
        "difference": error,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.torch_models", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    n = 8 if arguments.quick else 256
    text = torch.randint(0, 65, (n, 32))
    cases = {
        f"ResNet-18, 10 outputs, N = {n}": (
            resnet18(10, 8 if arguments.quick else 64),
            torch.randn(n, 3, 32, 32),
            3.2,
            1,
        ),
        f"transformer 4 x 128, 32 tokens, 1 output, N = {n}": (
            CharTransformer(65, 128, 4, 4, 32, 1).eval(),
            text,
            3.2,
            3,
        ),
        f"transformer 4 x 128, 32 tokens, 10 outputs, N = {n}": (
            CharTransformer(65, 128, 4, 4, 32, 10).eval(),
            text,
            3.2,
            3,
        ),
    }
    about = machine() | {"torch": torch.__version__, "torch_threads": torch.get_num_threads()}
    print(", ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    results = []
    for name, (module, x, memory, repeats) in cases.items():
        if arguments.only not in name:
            continue
        results.append(compare(name, module, x, int(memory * _GIB), repeats))
        r = results[-1]
        print(
            f"{name}: {r['ours_seconds']:.2f} s, {r['ours_peak_GiB']:.2f} GiB; "
            f"torch.func {r['torch_func_seconds']:.2f} s, {r['torch_func_peak_GiB']:.2f} GiB; "
            f"ratio {r['ratio']:.1f}, difference {r['difference']:.0e}",
            flush=True,
        )
    if arguments.out:
        arguments.out.write_text(json.dumps({"machine": about, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
