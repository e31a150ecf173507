"""Gradient features of JAX functions: Flax, Equinox, Haiku, or plain ones."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kernelgrowth._backend.checks import check_choice, check_integer
from kernelgrowth._backend.errors import MemoryLimitError
from kernelgrowth._backend.memory import format_bytes, resolve_memory_limit
from kernelgrowth.gradients.features import GradientFeatures, Rows

__all__ = ["gradient_features"]

OUTPUTS = ("full", "trace", "mean_trace", "diagonal", "sum_logits")
_CHUNK_BYTES = 2**28
# Sums over a batch are ordered otherwise than over one example.
_TOLERANCE = {np.dtype(np.float32): 1e-3, np.dtype(np.float64): 1e-8}


def gradient_features(
    apply_fn: Callable[[Any, Any], Any],
    params: Any,
    x: Any,
    *,
    outputs: str = "full",
    batch_size: int | None = None,
    output: Callable[[Any], Any] | None = None,
    memory_limit: int | None = None,
    check_finite: bool = True,
) -> GradientFeatures:
    """Return the gradients of every output of `apply_fn(params, x)` with respect to every parameter.

    Each example's Jacobian is computed under `jit`, for chunks of examples and of parameters, so that features are
    explicit rows: N·C·P numbers. Tied or reused parameters are exact.

    Parameters
    ----------
    apply_fn : callable
        ``apply_fn(params, x)`` returns the outputs (N,) or (N, C) of N examples, each of which depends on its own
        example alone; ``model.apply`` in Flax. Give the same function at every call, and it is compiled once.
    params : pytree of array
        Floating leaves, all float32 or all float64, are differentiated by; integer leaves and None are held constant.
    x : array (N, ...), or pytree of arrays
        Examples along the first axis of each leaf; integers too.
    outputs : {"full", "trace", "mean_trace", "diagonal", "sum_logits"}
        "sum_logits" takes the gradient of Σ_c f_c alone, as if the function had one output; for all others all C are
        taken.
    batch_size : int, optional
        Examples in a chunk; by default as many as keep its Jacobian below 256 MiB.
    output : callable, optional
        From what `apply_fn` returns to outputs (N,) or (N, C).
    memory_limit : int, optional
        Bytes that the features may take; half of the available memory by default.
    check_finite : bool
        Whether gradients that are not finite are refused.

    Returns
    -------
    GradientFeatures
        One `Rows` block a leaf, named by its path ("params/Dense_0/kernel"), entries in C order; `predictions` are
        filled in. Kernels of them come back as JAX arrays.

    Raises
    ------
    TypeError, ValueError
        If an argument is unusable, by name; a leaf is of another dtype, by path; outputs depend on other examples of
        the batch (batch normalisation in training mode, ...); or a gradient is not finite.
    MemoryLimitError
        If the features do not fit `memory_limit`; nothing has been differentiated then.

    Notes
    -----
    Products are made at the highest precision, unless ``jax_default_matmul_precision`` or the function says otherwise.

    One forward sweep, and for each chunk of parameters a forward and C backward sweeps. A function of another library
    may be closed over what cannot be differentiated: ``eqx.partition(model, eqx.is_inexact_array)`` gives Equinox's
    `params`, ``nnx.split(model)`` Flax NNX's.

    Examples
    --------
    >>> feats = kernelgrowth.jax.gradient_features(model.apply, params, images)
    >>> kernel = kernelgrowth.empirical_ntk(feats, outputs="mean_trace")
    """
    check_choice("outputs", outputs, OUTPUTS)
    for name, function in (("apply_fn", apply_fn), ("output", output)):
        if not callable(function) and not (name == "output" and function is None):
            raise TypeError(f"{name} must be callable, got {type(function).__name__}")
    if batch_size is not None:
        batch_size = check_integer("batch_size", batch_size, minimum=1)
    leaves = _Leaves.of(params)
    x = jax.tree_util.tree_map(jnp.asarray, x)
    n = _num_examples(x)
    sweep = _compiled(apply_fn, output, outputs == "sum_logits")
    predictions = sweep.outputs(params, x)
    if predictions.dtype != leaves.dtype:
        raise TypeError(
            f"apply_fn returns {predictions.dtype} but params are {leaves.dtype}: convert x, or params, so that all "
            "are of one dtype"
        )
    _check_examples(sweep, params, x, predictions)
    c = predictions.shape[1]
    itemsize = leaves.dtype.itemsize
    _check_memory(n, c * itemsize * leaves.num_parameters, resolve_memory_limit(memory_limit))
    on_cpu = next(iter(predictions.devices())).platform == "cpu"
    blocks = {}
    for group in leaves.groups(_CHUNK_BYTES // (c * itemsize)):
        size = c * itemsize * sum(leaves.values[place].size for place in group)
        step = batch_size or max(1, _CHUNK_BYTES // size)
        rows = _Collected(n, on_cpu)
        for begin in range(0, n, step):
            part = _examples(x, begin, begin + step)
            chosen, others = leaves.divided(group)
            rows.add(begin, sweep.jacobian(chosen, others, (leaves.structure, group), part))
        for place, array in zip(group, rows.finished(), strict=True):
            try:
                block = Rows(array, check_finite=check_finite)
            except ValueError as error:
                raise ValueError(f"the gradient of {leaves.names[place]!r}: {error}") from error
            # A template for results; the rows may be NumPy's.
            block.source = predictions
            blocks[leaves.names[place]] = block
    return GradientFeatures(blocks, predictions=predictions)


class _Leaves(NamedTuple):
    """Parameters as a list; `differentiated` are the places of those that count."""

    values: list[Any]
    names: list[str]
    structure: Any
    differentiated: list[int]
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, params: Any) -> _Leaves:
        found, structure = jax.tree_util.tree_flatten_with_path(params)
        values, names = [leaf for _, leaf in found], [_name(path) for path, _ in found]
        places: list[int] = []
        for place, leaf in enumerate(values):
            if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
                raise TypeError(f"params[{names[place]!r}] must be an array, got {type(leaf).__name__}")
            if any(jnp.issubdtype(leaf.dtype, kind) for kind in (jnp.integer, jnp.bool_, jax.dtypes.extended)):
                continue
            if leaf.dtype not in (np.float32, np.float64):
                raise TypeError(
                    f"params[{names[place]!r}] is {leaf.dtype}: gradients are taken in float32 or float64, so "
                    "convert it"
                )
            if places and leaf.dtype != values[places[0]].dtype:
                raise TypeError(
                    f"params[{names[place]!r}] is {leaf.dtype} but params[{names[places[0]]!r}] is "
                    f"{values[places[0]].dtype}: convert one of them"
                )
            if leaf.size:
                places.append(place)
        if not places:
            raise ValueError("params must hold at least one floating array, got none")
        return cls(values, names, structure, places, np.dtype(values[places[0]].dtype))

    @property
    def num_parameters(self) -> int:
        return sum(int(self.values[place].size) for place in self.differentiated)

    def groups(self, limit: int) -> list[tuple[int, ...]]:
        """Return the places of leaves of at most `limit` numbers together, or of one leaf."""
        groups: list[tuple[int, ...]] = []
        left = 0
        for place in self.differentiated:
            size = int(self.values[place].size)
            if not groups or size > left:
                groups.append(())
                left = limit
            groups[-1] += (place,)
            left -= size
        return groups

    def divided(self, group: tuple[int, ...]) -> tuple[list[Any], list[Any]]:
        return [self.values[i] for i in group], [leaf for i, leaf in enumerate(self.values) if i not in group]


def _name(path: Any) -> str:
    parts = [str(next(getattr(key, a) for a in ("key", "name", "idx") if hasattr(key, a))) for key in path]
    return "/".join(parts) or "params"


def _num_examples(x: Any) -> int:
    shapes = [leaf.shape for leaf in jax.tree_util.tree_leaves(x)]
    if not shapes or any(not shape or shape[0] == 0 for shape in shapes) or len({shape[0] for shape in shapes}) > 1:
        raise ValueError(f"x must hold arrays of the same N examples, at least one, got shapes {shapes}")
    return int(shapes[0][0])


def _examples(x: Any, begin: int, end: int) -> Any:
    return jax.tree_util.tree_map(lambda leaf: leaf[begin:end], x)


class _Sweep(NamedTuple):
    outputs: Callable[[Any, Any], Any]
    jacobian: Callable[..., list[Any]]


def _compiled(apply_fn: Any, output: Any, total: bool) -> _Sweep:
    try:
        return _remembered(apply_fn, output, total)
    except TypeError:  # it has no hash
        return _make(apply_fn, output, total)


def _make(apply_fn: Any, output: Any, total: bool) -> _Sweep:
    def outputs(params: Any, x: Any) -> Any:
        # On a GPU JAX would round the factors of float32 products to TF32, and its gradients with them.
        with jax.default_matmul_precision(jax.config.jax_default_matmul_precision or "highest"):
            result = apply_fn(params, x)
            if output is not None:
                result = output(result)
        n = jax.tree_util.tree_leaves(x)[0].shape[0]
        shape = getattr(result, "shape", None)
        if shape is None or len(shape) not in (1, 2) or shape[0] != n:
            found = type(result).__name__ if shape is None else f"shape {shape}"
            raise ValueError(
                f"apply_fn must return (N,) or (N, C) with N = {n}, got {found}: say by output=lambda result: ... "
                "which outputs are meant"
            )
        result = result[:, None] if len(shape) == 1 else result
        return result.sum(1, keepdims=True) if total else result

    @functools.partial(jax.jit, static_argnums=2)
    def jacobian(chosen: list[Any], others: list[Any], structure: Any, x: Any) -> list[Any]:
        tree, group = structure

        def one(chosen: list[Any], example: Any) -> Any:
            rest, mine = iter(others), iter(chosen)
            leaves = [next(mine) if i in group else next(rest) for i in range(len(chosen) + len(others))]
            batch = jax.tree_util.tree_map(lambda a: a[None], example)
            return outputs(jax.tree_util.tree_unflatten(tree, leaves), batch)[0]

        found = jax.vmap(lambda example: jax.jacrev(one)(chosen, example))(x)
        return [array.reshape(*array.shape[:2], -1) for array in found]

    return _Sweep(jax.jit(outputs), jacobian)


_remembered: Callable[[Hashable, Hashable, bool], _Sweep] = functools.lru_cache(maxsize=32)(_make)


def _check_examples(sweep: _Sweep, params: Any, x: Any, predictions: Any) -> None:
    n = len(predictions)
    for i in {0, n // 2, n - 1}:
        alone = sweep.outputs(params, _examples(x, i, i + 1))
        error, scale = float(jnp.abs(alone[0] - predictions[i]).max()), float(jnp.abs(predictions).max())
        if error > _TOLERANCE[np.dtype(predictions.dtype)] * scale:
            raise ValueError(
                f"apply_fn gives example {i} other outputs alone than among the others, by {error:.3g}: what it "
                "computes depends on the batch (batch normalisation in training mode?), so its examples have no kernel"
            )


def _check_memory(n: int, example_bytes: int, limit: int) -> None:
    if n * example_bytes > limit:
        raise MemoryLimitError(
            f"the gradients of {n} examples take {format_bytes(n * example_bytes)}, but memory_limit is "
            f"{format_bytes(limit)}, which holds {limit // example_bytes}: take fewer, outputs='sum_logits', or "
            "ChunkedFeatures",
            needed=n * example_bytes,
            limit=limit,
        )


class _Collected:
    """Chunks of rows put together: in place on the CPU, where another copy would take as much memory again."""

    def __init__(self, n: int, on_cpu: bool) -> None:
        self._n, self._on_cpu = n, on_cpu
        self._arrays: list[Any] = []
        self._chunks: list[list[Any]] = []

    def add(self, begin: int, chunk: list[Any]) -> None:
        if not self._on_cpu:
            self._chunks.append(chunk)
            return
        parts = [np.from_dlpack(array) for array in chunk]
        if not self._arrays:
            self._arrays = [np.empty((self._n, *part.shape[1:]), part.dtype) for part in parts]
        for array, part in zip(self._arrays, parts, strict=True):
            array[begin : begin + len(part)] = part

    def finished(self) -> list[Any]:
        return self._arrays or [jnp.concatenate(arrays) for arrays in zip(*self._chunks, strict=True)]
