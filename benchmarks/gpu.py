"""`python -m benchmarks.gpu`: are kernels on this machine's GPU right, and how fast are they.

First a table of errors: random features of all kinds in all outputs modes and precisions, against float64 on the CPU,
in memory that held NaN before; then products, eigenpairs and a tracked run against the CPU's. Then speeds, in needed
operations (the upper triangle): against the same kernel as CuPy and PyTorch compose it at that precision, against
torch.func, and against what a product of two square matrices reaches at it and what copying memory does, all in one
run, timed by events on the stream; eigenpairs of a kernel that is not stored beside their products; a tracked step
beside the sweep over its examples; and a kernel in tiles of features in host memory. Needs CuPy, and PyTorch for its
part; takes a few minutes.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import gpu_experiments
from benchmarks.machine import machine
from kernelgrowth.gradients import GradientFeatures, OuterProduct, Rows
from kernelgrowth.kernels import OUTPUTS, empirical_ntk

__all__ = ["copy_bandwidth", "described", "errors", "main", "speeds"]

# Of an entry, relative to sqrt(K_ii K_jj): what docs/gpu.md states.
_PROMISED = {"float32": 1e-5, "tf32": 3e-3, "bf16": 2e-2, "float64": 1e-12}
_REPEATS = 7
# Name, examples, and inputs and units of each layer.
_PROBLEMS = (
    ("N = 16384, 4096-4096 twice", 16384, ((4096, 4096), (4096, 4096))),
    ("N = 16384, 128-128 twice", 16384, ((128, 128), (128, 128))),
    ("N = 1000, MLP 784-1024-1024-1", 1000, ((784, 1024), (1024, 1024), (1024, 1))),
)
_SQUARE = 8192


def _random_features(rng: np.random.Generator, n: int, c: int, dtype: Any) -> dict[str, Any]:
    shapes = {"a": (n, 70), "d": (n, c, 33), "b": (n, 9, 27), "e": (n, c, 9, 20), "g": (n, c, 130)}
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def _features(arrays: dict[str, Any], place: Callable[[Any], Any]) -> GradientFeatures:
    a, d, b, e, g = (place(arrays[name]) for name in "adbeg")
    return GradientFeatures(
        {
            "dense": OuterProduct(a, d, bias=True),
            "convolution": OuterProduct(b, e, bias=True),
            "norm": Rows(g, scale=0.5),
        }
    )


def errors(n: int = 150, poisoned: int = 2**26) -> Iterator[dict[str, Any]]:
    """Yield for each mode, precision and shape the largest error, relative to sqrt(K_ii K_jj).

    So many numbers of the memory that results are written to hold NaN before.
    """
    import cupy

    rng = np.random.default_rng(0)
    for outputs, precision, c, symmetric in itertools.product(OUTPUTS, _PROMISED, (1, 3), (True, False)):
        dtype = np.float64 if precision == "float64" else np.float32
        left, right = _random_features(rng, n, c, dtype), _random_features(rng, n + 37, c, dtype)

        def exact(
            one: dict[str, Any], two: dict[str, Any] | None = None, outputs: str = outputs
        ) -> np.ndarray[Any, Any]:
            sides = [None if side is None else _features(side, np.float64) for side in (one, two)]
            kernel: np.ndarray[Any, Any] = empirical_ntk(sides[0], sides[1], outputs=outputs)  # type: ignore[arg-type]
            return kernel

        poison = cupy.full(poisoned, cupy.nan)
        del poison
        other = None if symmetric else _features(right, cupy.asarray)
        kernel = empirical_ntk(_features(left, cupy.asarray), other, outputs=outputs, precision=precision).get()
        wanted = exact(left, None if symmetric else right)
        rows, columns = (_diagonal(exact(side)) for side in (left, left if symmetric else right))
        sizes = np.sqrt(_outer(rows, columns, kernel.ndim))
        error = float((np.abs(kernel - wanted) / sizes).max())
        ok = bool(error <= _PROMISED[precision]) and (not symmetric or bool((kernel == _mirrored(kernel)).all()))
        about = {"outputs": outputs, "precision": precision, "C": c, "symmetric": symmetric}
        yield {**about, "error": error, "promised": _PROMISED[precision], "ok": ok}


def errors_of_large_tiles(n: int = 3000) -> Iterator[dict[str, Any]]:
    """Yield the same of kernels whose tiles are many enough to be large."""
    import cupy

    arrays = _random_features(np.random.default_rng(1), n, 1, np.float32)
    wanted = empirical_ntk(_features({name: a.astype(np.float64) for name, a in arrays.items()}, np.asarray))
    sizes = np.sqrt(np.outer(np.diagonal(wanted), np.diagonal(wanted)))
    for precision in ("float32", "tf32", "bf16"):
        kernel = empirical_ntk(_features(arrays, cupy.asarray), precision=precision).get()
        error = float((np.abs(kernel - wanted) / sizes).max())
        ok = error <= _PROMISED[precision] and bool((kernel == kernel.T).all())
        about = {"outputs": f"N = {n}", "precision": precision, "C": 1, "symmetric": True}
        yield {**about, "error": error, "promised": _PROMISED[precision], "ok": ok}


def _diagonal(kernel: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """K_ii: (N,), (C, N) of the kernels of single outputs, or (N, C) of all of them."""
    if kernel.ndim == 4:
        return np.einsum("nncc->nc", kernel)
    return np.diagonal(kernel, axis1=-2, axis2=-1)


def _outer(rows: np.ndarray[Any, Any], columns: np.ndarray[Any, Any], dimensions: int) -> np.ndarray[Any, Any]:
    if dimensions == 4:
        return rows[:, None, :, None] * columns[None, :, None, :]
    return rows[..., :, None] * columns[..., None, :]


def _mirrored(kernel: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return kernel.transpose(1, 0, 3, 2) if kernel.ndim == 4 else kernel.swapaxes(-1, -2)


def _seconds(contenders: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Return each contender's median time on the stream, all timed in turn.

    The stream must not be CUDA's default one, whose number PyTorch takes for a wish for one of its own.
    """
    import cupy

    found: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run()
    for _, (name, run) in itertools.product(range(_REPEATS), contenders.items()):
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        cupy.cuda.Device().synchronize()
        begin.record()
        run()
        end.record()
        end.synchronize()
        found[name].append(cupy.cuda.get_elapsed_time(begin, end) * 1e-3)
    return {name: statistics.median(times) for name, times in found.items()}


def _peers(layers: list[tuple[Any, Any]], precision: str) -> dict[str, Callable[[], Any]]:
    """Return what CuPy and PyTorch make of the kernel, and of a product of two squares, at a precision."""
    peers: dict[str, Callable[[], Any]] = {}
    if precision in ("float32", "float64"):
        peers["cupy, composed"] = lambda: sum((a @ a.T) * (d @ d.T) for a, d in layers)
    if importlib.util.find_spec("torch"):
        peers |= _torch_peers(layers, precision)
    return peers


def _torch_peers(layers: list[tuple[Any, Any]], precision: str) -> dict[str, Callable[[], Any]]:
    import cupy
    import torch

    dtype = {"bf16": torch.bfloat16, "float64": torch.float64}.get(precision, torch.float32)
    factors = [(torch.from_dlpack(a).to(dtype), torch.from_dlpack(d).to(dtype)) for a, d in layers]
    square = torch.randn(_SQUARE, _SQUARE, device="cuda", dtype=dtype)

    def on_stream(work: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
            with torch.cuda.stream(torch.cuda.ExternalStream(cupy.cuda.get_current_stream().ptr)):
                return work()

        return run

    return {
        "torch, composed": on_stream(lambda: sum((a @ a.T).mul_(d @ d.T) for a, d in factors)),
        "torch, square product": on_stream(lambda: square @ square),
    }


def copy_bandwidth() -> float:
    """Return how fast the GPU copies its memory, in bytes read and written a second."""
    import cupy

    source = cupy.zeros(2**28, dtype=cupy.float32)
    target = cupy.empty_like(source)
    return 2 * source.nbytes / _seconds({"copy": lambda: cupy.copyto(target, source)})["copy"]


def error_of_rows(kernel: Any, layers: list[tuple[Any, Any]], count: int = 64) -> float:
    """Return the largest error, relative to sqrt(K_ii K_jj), of a kernel's first and last rows, NaN if one is."""
    factors = [(a.astype("float64"), d.astype("float64")) for a, d in layers]
    diagonal = sum((a * a).sum(1) * (d * d).sum(1) for a, d in factors)
    found = []
    for part in (slice(0, count), slice(-count, None)):
        wanted = sum((a[part] @ a.T) * (d[part] @ d.T) for a, d in factors)
        sizes = (diagonal[part][:, None] * diagonal[None, :]) ** 0.5
        found.append(float((abs(kernel[part] - wanted) / sizes).max()))
    return float(np.max(found))


def speeds() -> Iterator[dict[str, Any]]:
    """Yield for each problem and precision the times, and the rate in needed operations."""
    import cupy

    for (name, n, layers), precision in itertools.product(_PROBLEMS, _PROMISED):
        dtype = cupy.float64 if precision == "float64" else cupy.float32
        random = cupy.random.default_rng(1)
        arrays = [tuple(random.standard_normal((n, width), dtype=dtype) for width in layer) for layer in layers]
        feats = GradientFeatures(
            {f"layer{i}": OuterProduct(a, d, check_finite=False) for i, (a, d) in enumerate(arrays)}
        )
        flops = sum(n * (n + 1) * (width + 1) for layer in layers for width in layer)
        contenders = {
            "kernelgrowth": lambda feats=feats, precision=precision: empirical_ntk(feats, precision=precision),
            **_peers(arrays, precision),
        }
        seconds = _seconds(contenders)
        composed = [taken for peer, taken in seconds.items() if peer.endswith("composed")]
        square = seconds.get("torch, square product")
        error = error_of_rows(empirical_ntk(feats, precision=precision), arrays)
        yield {
            "name": name,
            "precision": precision,
            "error": error,
            "ok": error <= _PROMISED[precision],
            "flops": flops,
            "seconds": seconds,
            "rate": flops / seconds["kernelgrowth"],
            "ceiling": 2 * _SQUARE**3 / square if square else None,
            "times": min(composed) / seconds["kernelgrowth"] if composed else None,
        }


def _device() -> dict[str, Any]:
    import cupy

    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    return {
        **machine(),
        "gpu": properties["name"].decode(),
        "driver": cupy.cuda.runtime.driverGetVersion(),
        "runtime": cupy.cuda.runtime.runtimeGetVersion(),
        "cupy": cupy.__version__,
    }


_EXPERIMENTS: tuple[Callable[[], dict[str, Any]], ...] = (
    gpu_experiments.end_to_end,
    gpu_experiments.tracked_step,
    gpu_experiments.solver,
    gpu_experiments.streamed,
)


def _verdict(result: dict[str, Any]) -> str:
    return f"{result['error']:.1e}  {'ok' if result['ok'] else 'WRONG'}"


def _speed(result: dict[str, Any]) -> str:
    line = f"{result['name']:<34} {result['precision']:<8} {result['seconds']['kernelgrowth'] * 1e3:9.3f} ms "
    line += f"{result['rate'] / 1e12:7.1f} TFLOP/s"
    if result["ceiling"]:
        line += f", {result['rate'] / result['ceiling']:4.0%} of a square product's"
    line += f", {result['times']:5.2f} times as fast as composed" if result["times"] else ""
    return f"{line}, error {_verdict(result)}"


def described(result: dict[str, Any]) -> str:
    """What was measured, each time in milliseconds."""
    parts = []
    for name, value in result.items():
        if name == "seconds" and isinstance(value, dict):
            parts += [f"{who} {seconds * 1e3:.2f} ms" for who, seconds in value.items()]
        elif name in ("seconds", "products", "sweep"):
            parts.append(f"{name} {value * 1e3:.2f} ms")
        elif name == "rate":
            parts.append(f"{value / 1e12:.1f} TFLOP/s")
        elif name != "name":
            parts.append(f"{name} {value:.2g}")
    return f"{result['name']}: {', '.join(parts)}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, help="write the results to this JSON file")
    parser.add_argument("--errors", action="store_true", help="the tables of errors alone")
    parser.add_argument("--quick", action="store_true", help="few and small cases, for compute-sanitizer")
    arguments = parser.parse_args()
    import cupy

    with cupy.cuda.Stream(non_blocking=True):
        _run(arguments)


def _run(arguments: argparse.Namespace) -> None:
    about = _device()
    print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    record: dict[str, Any] = {"machine": about, "errors": [], "agreements": [], "speeds": [], "experiments": []}

    def keep(kind: str, result: dict[str, Any], line: str) -> None:
        record[kind].append(result)
        print(line, flush=True)
        if arguments.out:
            arguments.out.write_text(json.dumps(record, indent=2) + "\n")

    small = errors(40 if arguments.quick else 150)
    for result in itertools.chain(small, () if arguments.quick else errors_of_large_tiles()):
        place = f"{result['outputs']}, C = {result['C']}, {'symmetric' if result['symmetric'] else 'rectangular'}"
        keep("errors", result, f"{place:<40} {result['precision']:<8} {_verdict(result)}")
    for result in gpu_experiments.agreements(n=300 if arguments.quick else 700):
        keep("agreements", result, f"{result['what']:<40} {'float32':<8} {_verdict(result)}")
    if not (arguments.errors or arguments.quick):
        record["copy_bandwidth"] = copy_bandwidth()
        print(f"memory is copied at {record['copy_bandwidth'] / 1e12:.2f} TB/s", flush=True)
        for result in speeds():
            keep("speeds", result, _speed(result))
        for experiment in _EXPERIMENTS:
            result = experiment()
            keep("experiments", result, described(result))
    if not all(
        result.get("ok", True) for results in record.values() if isinstance(results, list) for result in results
    ):
        raise SystemExit("some results are wrong")


if __name__ == "__main__":
    main()
