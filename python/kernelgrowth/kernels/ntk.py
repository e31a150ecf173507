"""The empirical neural tangent kernel as an array."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernelgrowth._backend import cuda, native
from kernelgrowth._backend.arrays import FloatArray, array_namespace, like
from kernelgrowth._backend.checks import check_choice
from kernelgrowth._backend.errors import BackendError
from kernelgrowth._backend.memory import resolve_memory_limit
from kernelgrowth.gradients.chunked import ChunkedFeatures
from kernelgrowth.gradients.embeddings import beside_embeddings, without_embeddings
from kernelgrowth.gradients.features import GradientFeatures
from kernelgrowth.gradients.identity import arrays_of
from kernelgrowth.kernels.evaluate import check_range, evaluate
from kernelgrowth.kernels.lowering import OUTPUTS, Problem, check_pair, check_preconditioner, device_of, lower
from kernelgrowth.kernels.outputs import check_out, has_rows, progress_file, result_shape
from kernelgrowth.kernels.plan import Plan, make_plan
from kernelgrowth.kernels.stacks import FeatureStack, stacked_kernels
from kernelgrowth.kernels.tiles import TiledKernel
from kernelgrowth.kernels.tiles_on_devices import check_devices

__all__ = ["OUTPUTS", "PRECISIONS", "empirical_ntk"]

PRECISIONS = ("float32", "float64", "tf32", "bf16")


def empirical_ntk(
    feats: GradientFeatures | ChunkedFeatures | FeatureStack,
    feats2: GradientFeatures | ChunkedFeatures | FeatureStack | None = None,
    *,
    outputs: str = "full",
    per_layer: bool = False,
    out: Any = None,
    memory_limit: int | None = None,
    preconditioner: Mapping[str, Any] | None = None,
    num_threads: int | None = None,
    precision: str | None = None,
    resume: bool = False,
    progress: str | os.PathLike[str] | None = None,
    devices: int | Sequence[int] | None = None,
) -> Any:
    """Return the empirical neural tangent kernel, `K = Σ_b scale_b J_b J_bᵀ`, exactly.

    Parameters
    ----------
    feats : GradientFeatures, ChunkedFeatures or FeatureStack
        N1 examples, C outputs. Arrays may be `numpy.memmap`s, which are read a part at a time; CuPy arrays are
        multiplied on their GPU, on CuPy's current stream.
    feats2 : as `feats`, optional
        N2 examples for a rectangular kernel; None means symmetric, and then the result is symmetric to the bit.
    outputs : {"full", "trace", "mean_trace", "diagonal", "sum_logits"}
        Shape of the result: "full" (N1, N2, C, C); "trace", the sum over c of K_cc, (N1, N2); "mean_trace", that
        divided by C; "diagonal" (C, N1, N2); "sum_logits", the kernel of Σ_c f_c, (N1, N2).
        With C = 1 it is (N1, N2) in every mode.
    per_layer : bool
        Return a dict from block name to that block's kernel instead of their sum; not of `ChunkedFeatures`.
    out : array_like, optional
        Written and returned instead of a new array: of the result's shape and dtype, writable, sharing no memory with
        the features. Any array with `shape`, `dtype` and assignment to slices (a `numpy.memmap`, Zarr, h5py): such an
        array gets the kernel in square tiles, of as many examples as fit into `memory_limit` and in multiples of
        `out.shards` or `out.chunks` where it has them, each as soon as it is finished, and where it is no NumPy array
        by a thread of its own, which does nothing else. Not together with `per_layer`.
    memory_limit : int, optional
        Bytes the call may take, its result included, `out` not; half of the available memory by default, on a GPU of
        its own. What `out` takes for itself to store a tile is not counted.
    preconditioner : mapping of str to ndarray, optional
        Non-negative diagonal η by block, of the parameter's shape ((d_out, d_in), or a tuple of that and (d_out,) for
        a layer with bias, (num_embeddings, d) for an `Embedding`, or (p,)): the kernel is then `J diag(η) Jᵀ`.
    num_threads : int, optional
        The bits of the result do not depend on it.
    precision : {"float32", "float64", "tf32", "bf16"}, optional
        The features' dtype by default. "bf16" rounds float32 features (or gradients written out from them) to bfloat16
        before they are multiplied; sums stay float32. About 1e-2 of `sqrt(K_ii K_jj)`, up to twice as fast, on
        processors with AVX512_BF16 and on GPUs only. "tf32" rounds them to the 10 bits that tensor cores read of a
        float, about 1e-3 of it, on GPUs only.
    resume : bool
        Leave out the tiles that are finished according to `progress`, if that file exists. The result has the bits of
        an uninterrupted call on the same machine. Finished tiles that `out` no longer holds are computed again, with
        a `RuntimeWarning`.
    progress : path-like, optional
        A small file that lists the finished tiles; a tile is listed after it was written and, where `out` has a
        method `flush`, flushed. By default `<filename>.progress` beside a `numpy.memmap`, and none for other arrays.
        It is left when the kernel is complete, and overwritten with `resume=False`.
    devices : int or sequence of int, optional
        Numbers of GPUs, of one kind, that compute the kernel of features on the host tile by tile; the result, or
        `out`, stays on the host, and `memory_limit` is the host's: it counts the tiles begun, four for each GPU, and
        page-locked buffers of up to 64 MiB for each. On a GPU half of the memory that is left is used. The bits do not
        depend on how many GPUs there are. Needs CuPy; not together with `per_layer`.

    Returns
    -------
    ndarray, or dict of str to ndarray
        Of the features' dtype and array library; of a `FeatureStack` one kernel after another, (S, ...), each with the
        bits of a call of its own. The "full" result is a view of the (N1·C, N2·C) matrix with
        example-major rows that `NTKOperator.gram` returns. Or `out`.

    Raises
    ------
    TypeError, ValueError
        If an argument is unusable; the message names it. Also if the kernel leaves the range of its dtype, if
        `progress` belongs to other features, parameters or settings, or if `ChunkedFeatures` do not repeat themselves.
    MemoryLimitError
        If the smallest plan does not fit `memory_limit`, or with `resume` the tiles of the interrupted call do not;
        nothing has been computed then.
    RunFolderError
        If another process holds the progress file.
    BackendError
        If the processor, the instruction set in use or the GPU cannot do what `precision` asks for; if features are
        CuPy arrays or `devices` are given and the build has no CUDA, or CUDA fails; if there are not the `devices`
        named, they differ in compute capability, or CuPy is not installed.

    Notes
    -----
    A dense layer costs `N²(d_in + C² d_out)` flops in the symmetric case instead of the `N² C² d_in d_out` of expanded
    gradients. Within 1e-5 (float32) or 1e-12 (float64) of `sqrt(K_ii K_jj)`. Tiles change no bit of it.

    With `devices` and m rows of tiles, features are copied to GPUs about m / 2 times (m for a rectangular kernel).
    """
    check_choice("outputs", outputs, OUTPUTS)
    if isinstance(feats, FeatureStack):
        unusable = {"per_layer": per_layer, "out": out is not None, "resume": resume, "progress": progress is not None}
        for name in (name for name, given in (unusable | {"devices": devices is not None}).items() if given):
            raise ValueError(f"{name} cannot be given with a FeatureStack, whose kernels are new arrays in memory")
        return stacked_kernels(
            feats,
            feats2,
            outputs=outputs,
            preconditioner=preconditioner,
            memory_limit=resolve_memory_limit(memory_limit),
            threads=native.num_threads(num_threads),
            precision=_check_precision(precision, feats.features.dtype, None),
        )
    if isinstance(feats2, FeatureStack):
        raise TypeError("feats2 is a FeatureStack but feats is not")
    chunked = [name for name, side in (("feats", feats), ("feats2", feats2)) if isinstance(side, ChunkedFeatures)]
    if not isinstance(feats, ChunkedFeatures) and not isinstance(feats2, ChunkedFeatures):
        check_pair(feats, feats2)
    for name, side in (("feats", feats), ("feats2", feats2)):
        if chunked and not isinstance(side, ChunkedFeatures | GradientFeatures | None):
            raise TypeError(f"{name} must be GradientFeatures or ChunkedFeatures, got {type(side).__name__}")
    if per_layer and chunked:
        raise ValueError(f"per_layer=True wants GradientFeatures, but {chunked[0]} are ChunkedFeatures")
    if per_layer and out is not None:
        raise ValueError("out cannot be given with per_layer=True, which returns one kernel for each block")
    if per_layer and devices is not None:
        raise ValueError(
            "devices cannot be given with per_layer=True: ask for the kernel of each block's features alone"
        )
    if out is None and (resume or progress is not None):
        raise ValueError("resume and progress need out, an array that outlives the call")
    gpus = [] if devices is None else _gpus_for(devices, feats, feats2)
    file = None
    shape = result_shape(feats, feats2, outputs)
    if out is not None:
        check_out(out, shape, feats, feats2)
        file = progress_file(out, progress, resume)
    device = None if chunked else device_of(feats, feats2)  # type: ignore[arg-type]
    if device is not None and out is not None:
        raise BackendError("out cannot be given with features on a GPU, whose kernel is a new array there")
    limit = resolve_memory_limit(memory_limit, None if device is None else lambda: cuda.available_memory(device))
    threads = native.num_threads(num_threads)
    multiplied = _check_precision(precision, feats.dtype, gpus[0] if gpus else device)
    if (
        gpus
        or isinstance(feats, ChunkedFeatures)
        or isinstance(feats2, ChunkedFeatures)
        or file is not None
        or not (out is None or has_rows(out))
    ):
        used = 0
        if gpus and not chunked:
            feats, feats2, preconditioner, used = without_embeddings(feats, feats2, preconditioner, limit)  # type: ignore[arg-type]
        with beside_embeddings(used, limit):
            tiled = TiledKernel(
                feats,
                feats2,
                outputs,
                preconditioner,
                shape,
                memory_limit=limit - used,
                threads=threads,
                precision=multiplied,
                gpus=gpus,
            )
            target = tiled.allocate() if out is None else out
            tiled.fill(target, progress=file, resume=resume)
            return tiled.like_features(target) if out is None else out
    with cuda.on(device):
        feats, feats2, preconditioner, used = without_embeddings(feats, feats2, preconditioner, limit)
    roots = check_preconditioner(feats, preconditioner)
    pairs = [_select(feats, feats2, name) for name in feats] if per_layer else [(feats, feats2)]
    with beside_embeddings(used, limit):
        jobs = _prepare(pairs, outputs, roots, out, limit - used, threads, multiplied)
    if per_layer:
        return {name: like(job.compute(), feats[name].source) for name, job in zip(feats, jobs, strict=True)}
    result = jobs[0].compute()
    return out if out is not None else like(result, next(iter(feats.blocks.values())).source)


def _gpus_for(
    devices: Any, feats: GradientFeatures | ChunkedFeatures, feats2: GradientFeatures | ChunkedFeatures | None
) -> list[Any]:
    for name, side in (("feats", feats), ("feats2", feats2)):
        if isinstance(side, GradientFeatures) and device_of(side, None) is not None:
            raise ValueError(f"devices are for features on the host, but {name} holds CuPy arrays, on a GPU already")
    return check_devices(devices)


def _check_precision(precision: str | None, dtype: np.dtype[Any], device: Any) -> str:
    """Return how vectors are multiplied; empty for the CPU's way with their dtype."""
    if precision is not None:
        check_choice("precision", precision, PRECISIONS)
        wanted = "float32" if precision in ("tf32", "bf16") else precision
        if wanted != dtype:
            text = f"precision={precision!r} wants {wanted} features, got {dtype}: convert them explicitly"
            raise ValueError(text)
    if device is not None:
        return cuda.resolve_precision(precision or str(dtype), device)
    if precision == "bf16" and not native.has_bf16():
        raise BackendError("precision='bf16' needs a processor with AVX512_BF16 and the avx512 instruction set in use")
    if precision == "tf32":
        raise BackendError("precision='tf32' needs features on a GPU, as CuPy arrays, or devices to compute on")
    return "bf16" if precision == "bf16" else ""


def _result_bytes(feats: GradientFeatures, feats2: GradientFeatures | None, outputs: str) -> int:
    return int(np.prod(result_shape(feats, feats2, outputs), dtype=object)) * feats.dtype.itemsize


def _select(
    feats: GradientFeatures, feats2: GradientFeatures | None, name: str
) -> tuple[GradientFeatures, GradientFeatures | None]:
    return (
        GradientFeatures({name: feats[name]}),
        None if feats2 is None else GradientFeatures({name: feats2[name]}),
    )


@dataclass(frozen=True)
class _Job:
    """A kernel ready to be computed: planned, and known to fit."""

    problem: Problem
    plan: Plan
    shape: tuple[int, ...]
    out: FloatArray | None
    namespace: Any  # of the arrays

    def compute(self) -> FloatArray:
        target = self.out
        if target is None:
            target = self.namespace.empty(self.problem.out_shape, self.problem.dtype)
        evaluate(self.problem, self.plan, target)
        check_range(self.problem, target)
        if len(self.shape) == 4:
            n1, n2, c, _ = self.shape
            target = target.reshape(n1, c, n2, c).transpose(0, 2, 1, 3)
        return target


def _prepare(
    pairs: Sequence[tuple[GradientFeatures, GradientFeatures | None]],
    outputs: str,
    roots: Mapping[str, tuple[FloatArray, ...]],
    out: FloatArray | None,
    limit: int,
    threads: int,
    precision: str,
) -> list[_Job]:
    """Plan all kernels of a call, each beside the results of all the others."""
    lowered = [lower(*pair, outputs, roots, limit, precision=precision) for pair in pairs]
    held = sum(root.nbytes for arrays in roots.values() for root in arrays)
    held += sum(problem.copied_bytes for problem in lowered)
    if out is None:
        held += sum(_result_bytes(*pair, outputs) for pair in pairs)
    return [
        _Job(
            problem,
            make_plan(problem, output_bytes=held - problem.copied_bytes, memory_limit=limit, threads=threads),
            result_shape(*pair, outputs),
            out,
            array_namespace(arrays_of(pair[0])[0]),
        )
        for problem, pair in zip(lowered, pairs, strict=True)
    ]
