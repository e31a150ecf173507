"""What is made of kernels on a GPU: are products and eigenpairs right there, and what do they take.

`python -m benchmarks.gpu` runs these after the kernels themselves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks.peers import torch_jacobian_contraction
from kernelgrowth._backend.arrays import to_numpy
from kernelgrowth.gradients import GradientFeatures, OuterProduct, from_net
from kernelgrowth.kernels import NTKOperator, empirical_ntk
from kernelgrowth.nets import MLP
from kernelgrowth.spectra import EigenTracker, eigsh
from kernelgrowth.tracking import NTKTracker

__all__ = ["agreements", "end_to_end", "solver", "streamed", "tracked_step"]

_WIDTHS = (784, 1024, 1024, 1)
_REPEATS = 7
# Of examples that are swept at a time while features are made.
_CHUNK = 4096


def _synchronized(run: Callable[[], Any]) -> float:
    """Return the seconds from an idle GPU to an idle GPU."""
    import cupy

    device = cupy.cuda.Device()
    device.synchronize()
    start = time.perf_counter()
    run()
    device.synchronize()
    return time.perf_counter() - start


def _median_seconds(run: Callable[[], Any], repeats: int = _REPEATS) -> float:
    run()
    return float(np.median([_synchronized(run) for _ in range(repeats)]))


def _inputs(n: int, width: int, dtype: Any = np.float32) -> Any:
    """Inputs with the variances 1/i that images have about."""
    scale = np.arange(1, width + 1, dtype=dtype) ** -0.5
    return np.random.default_rng(0).standard_normal((n, width)).astype(dtype) * scale


def _features(widths: Sequence[int], n: int, device: str) -> GradientFeatures:
    """Return the factors of an untrained MLP, filled in some examples at a time."""
    import cupy

    xp = cupy if device == "cuda" else np
    net = MLP(widths=widths)
    params, x = net.init(seed=0, dtype="float32", device=device), _inputs(n, widths[0])
    parts: dict[str, list[tuple[Any, Any]]] = {}
    for start in range(0, n, _CHUNK):
        part = from_net(net, params, xp.asarray(x[start : start + _CHUNK]))
        for name, block in part.items():
            assert isinstance(block, OuterProduct)
            parts.setdefault(name, []).append((block.activations, block.backprops))
    return GradientFeatures(
        {name: OuterProduct(*(xp.concatenate(side) for side in zip(*p, strict=True))) for name, p in parts.items()}
    )


def agreements(widths: Sequence[int] = (30, 60, 50, 1), n: int = 700, k: int = 8) -> Iterator[dict[str, Any]]:
    """Yield how far products, diagonals and eigenpairs on the GPU are from the CPU's, relative to the largest."""
    import cupy

    both = {device: _features(widths, n, device) for device in ("cpu", "cuda")}
    block = np.random.default_rng(3).standard_normal((n, 5)).astype(np.float32)

    def compared(what: str, promised: float, run: Callable[[GradientFeatures, Any], Any]) -> dict[str, Any]:
        wanted = np.asarray(run(both["cpu"], np.asarray))
        found = to_numpy(run(both["cuda"], cupy.asarray))
        error = float(np.abs(found - wanted).max() / np.abs(wanted).max())
        return {"what": what, "error": error, "promised": promised, "ok": error <= promised}

    for way in ("stored", "tiles", "factored"):

        def product(feats: GradientFeatures, place: Any, way: str = way) -> Any:
            return NTKOperator(feats, products=way) @ place(block)

        yield compared(f"product, {way}", 1e-5, product)

        def values(feats: GradientFeatures, place: Any, way: str = way) -> Any:
            return eigsh(NTKOperator(feats, products=way), k, tol=1e-5).eigenvalues

        yield compared(f"eigenvalues, {way}", 1e-5, values)
    yield compared("diagonal", 1e-5, lambda feats, place: NTKOperator(feats).diagonal())
    yield compared("tracked pairs", 1e-3, lambda feats, place: EigenTracker(k).update(NTKOperator(feats)).eigenvalues)

    def series(feats: GradientFeatures, place: Any) -> Any:
        net = MLP(widths=widths)
        device = "cpu" if place is np.asarray else "cuda"
        x = _inputs(200, widths[0])
        tracker = NTKTracker(place(x), place(np.sign(x[:, 0])), every=1, top_k=4)
        for step in range(3):
            tracker.update(net, net.init(seed=step, dtype="float32", device=device), step=step)
        names = ("kernel_norm", "alignment", "rotation", "effective_rank")
        return np.concatenate([np.asarray(tracker.history[name]) for name in names])

    yield compared("tracked series", 1e-4, series)


def end_to_end(widths: Sequence[int] = _WIDTHS, n: int = 1000) -> dict[str, Any]:
    """Return the times from weights and inputs to a kernel, of this library and of torch.func on the same GPU."""
    import cupy

    net = MLP(widths=widths)
    params, x = net.init(seed=0, dtype="float32", device="cuda"), cupy.asarray(_inputs(n, widths[0]))
    ours = {"kernelgrowth": _median_seconds(lambda: empirical_ntk(from_net(net, params, x)))}
    kernel = empirical_ntk(from_net(net, params, x)).get()
    weights = list(params)

    def forward(torch: Any, p: Any, inputs: Any) -> Any:
        for name in weights[:-1]:
            inputs = torch.relu(inputs @ p[name].T)
        return inputs @ p[weights[-1]].T

    contender = torch_jacobian_contraction(forward, params, x)
    result: dict[str, Any] = {"name": f"N = {n}, MLP {'-'.join(map(str, widths))}, from its weights", "seconds": ours}
    if contender is not None:
        theirs = cupy.from_dlpack(contender()).get()
        result["error"] = float(np.abs(theirs - kernel).max() / np.abs(kernel).max())
        result["ok"] = result["error"] <= 1e-5
        ours["torch.func, Jacobian contraction"] = _median_seconds(contender, 3)
    return result


def solver(widths: Sequence[int] = _WIDTHS, n: int = 50_000, k: int = 20) -> dict[str, Any]:
    """Return what `eigsh` takes without a stored kernel, beside the same number of its products alone."""
    import cupy

    operator = NTKOperator(_features(widths, n, "cuda"), products="factored")
    eigsh(operator, k, tol=1e-3, max_passes=1000)
    results: list[Any] = []
    seconds = _synchronized(lambda: results.append(eigsh(operator, k, tol=1e-3)))
    block = cupy.asarray(np.random.default_rng(1).standard_normal((n, k + 8), dtype=np.float32))
    product = _median_seconds(lambda: operator @ block, 3)
    found = results[0]
    return {
        "name": f"eigsh, N = {n}, k = {k}, tol 1e-3, by factors",
        "seconds": seconds,
        "passes": found.passes,
        "products": found.passes * product,
        "residual": float(found.residuals.max()) / float(found.eigenvalues[0]),
        "rate": operator.product_plan(k + 8).flops / product,
    }


def tracked_step(widths: Sequence[int] = _WIDTHS, n: int = 1000, k: int = 20) -> dict[str, Any]:
    """Return what a tracked step takes after others, with all default series, and a sweep over its probe set."""
    import cupy

    net = MLP(widths=widths)
    x = _inputs(n, widths[0])
    params = net.init(seed=0, dtype="float32", device="cuda")
    steps = [{name: p * (1 + 1e-3 * i) for name, p in params.items()} for i in range(4)]
    inputs, targets = cupy.asarray(x), cupy.asarray(np.sign(x[:, 0]))
    tracker = NTKTracker(inputs, targets, every=1, top_k=k, kernel_budget=8 * n * n * 4)
    count = iter(range(10**6))

    def step() -> None:
        i = next(count)
        tracker.update(net, steps[i % len(steps)], step=i)

    for _ in range(3):
        step()
    return {
        "name": f"tracked step, N = {n}, k = {k}, MLP {'-'.join(map(str, widths))}",
        "seconds": _median_seconds(step),
        "sweep": _median_seconds(lambda: from_net(net, params, inputs, check_finite=False)),
    }


def streamed(n: int = 40_000, width: int = 1024, devices: int | Sequence[int] = 0) -> dict[str, Any]:
    """Return what a kernel of features in host memory takes in tiles, and one in the GPU's memory, of as many."""
    import cupy

    rng = np.random.default_rng(2)
    a, d = (rng.standard_normal((n, width), dtype=np.float32) for _ in range(2))
    host = GradientFeatures({"layer": OuterProduct(a, d, check_finite=False)})
    out = np.full((n, n), np.nan, np.float32)  # a first write to fresh memory would cost more than the kernel
    seconds = _synchronized(lambda: empirical_ntk(host, out=out, devices=devices))
    # Some rows against the kernel of a part, in the GPU's memory.
    part = min(n, 2000)
    small = GradientFeatures({"layer": OuterProduct(cupy.asarray(a[:part]), cupy.asarray(d[:part]))})
    wanted = empirical_ntk(small).get()
    error = float(np.abs(out[:part, :part] - wanted).max() / np.abs(wanted).max())
    return {
        "name": f"N = {n}, {width}-{width}, features and kernel in host memory",
        "seconds": seconds,
        "rate": n * (n + 1) * (2 * width + 1) / seconds,
        "error": error,
        "ok": error <= 1e-5,
    }
