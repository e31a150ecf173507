"""A module as it is to be differentiated: what is refused, how it is called, and that it is left as it was found."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

__all__ = ["Forward", "Inputs", "check_module", "tracked_parameters", "unwrapped"]


class Inputs:
    """What a module is called with for N examples: a tensor, a tuple of them, or a mapping of keywords.

    Raises
    ------
    TypeError
        If `x` is something else.
    ValueError
        If it holds no tensor, no example, or tensors differ in their number of examples.
    """

    def __init__(self, x: Any, name: str = "x") -> None:
        self.args: list[Any] = []
        self.kwargs: dict[str, Any] = {}
        if isinstance(x, torch.Tensor):
            self.args = [x]
        elif isinstance(x, tuple | list):
            self.args = list(x)
        elif isinstance(x, Mapping):
            self.kwargs = dict(x)
        else:
            raise TypeError(
                f"{name} must be a tensor (N, ...), a tuple of them or a mapping of keyword arguments, "
                f"got {type(x).__name__}"
            )
        named = {f"{name}[{key!r}]": value for key, value in [*enumerate(self.args), *self.kwargs.items()]}
        for label, value in named.items():
            if not isinstance(value, torch.Tensor):
                raise TypeError(f"{label} must be a tensor, got {type(value).__name__}")
            if value.ndim == 0 or len(value) == 0:
                raise ValueError(f"{label} must hold at least one example, got shape {tuple(value.shape)}")
        counts = {len(value) for value in named.values()}
        if len(counts) != 1:
            shapes = {label: tuple(value.shape) for label, value in named.items()}
            raise ValueError(f"{name} must hold tensors of the same N examples, got shapes {shapes}")
        self.num_examples = counts.pop()
        # Autograd saves no tensors that were made in inference mode, but copies of them.
        with torch.inference_mode(False):
            self.args = [value.clone() if value.is_inference() else value for value in self.args]
            self.kwargs = {k: value.clone() if value.is_inference() else value for k, value in self.kwargs.items()}

    @property
    def signature(self) -> tuple[Any, ...]:
        """Names, shapes without the examples, and dtypes."""
        named = [*enumerate(self.args), *self.kwargs.items()]
        return tuple((name, tuple(value.shape[1:]), value.dtype) for name, value in named)

    def select(self, index: Any) -> Inputs:
        """Return some examples, by a slice or a tensor of their numbers."""
        part = object.__new__(Inputs)
        part.args = [value[index] for value in self.args]
        part.kwargs = {key: value[index] for key, value in self.kwargs.items()}
        part.num_examples = len((part.args + list(part.kwargs.values()))[0])
        return part

    def cycled(self, count: int) -> Inputs:
        """Return the first `count` examples, from the beginning again where there are fewer."""
        return self.select(torch.arange(count) % self.num_examples)


def unwrapped(module: Any) -> Any:
    """Return the module that compilation or data parallelism was put around."""
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    parallel = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
    while True:
        if isinstance(module, parallel):
            module = module.module
        elif hasattr(module, "_orig_mod") and isinstance(module._orig_mod, torch.nn.Module):
            module = module._orig_mod
        else:
            return module


@contextlib.contextmanager
def _without_tf32(backend: Any) -> Iterator[None]:
    """Compute float32 in float32: PyTorch lets cuDNN's convolutions round to TF32 unless it is told otherwise."""
    try:
        allowed = backend.allow_tf32
    except RuntimeError:  # convolutions and recurrences were told different things by PyTorch's other switch
        yield
        return
    backend.allow_tf32 = False
    try:
        yield
    finally:
        backend.allow_tf32 = allowed


def check_module(module: Any) -> None:
    """Refuse a module whose outputs are random or depend on the other examples of a batch, by the part that does it.

    Raises
    ------
    ValueError
        Naming the part and the way out.
    """
    for name, part in module.named_modules():
        label = f"module{'.' if name else ''}{name}"
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
            if part.training:
                raise ValueError(
                    f"{label} is {type(part).__name__} in training mode, where an example's output depends on its "
                    "batch: call module.eval(), or put GroupNorm in its place"
                )
            if part.running_mean is None:
                raise ValueError(
                    f"{label} is {type(part).__name__} without running statistics, where an example's output depends "
                    "on its batch: set track_running_stats=True, or put GroupNorm in its place"
                )
        if getattr(part, "max_norm", None) is not None:
            raise ValueError(
                f"{label} is {type(part).__name__} with max_norm, which changes its weights when it is called: "
                "set max_norm=None"
            )
        rate = _dropout_rate(part)
        if part.training and rate > 0.0:
            raise ValueError(
                f"{label} is {type(part).__name__} with dropout {rate:g} in training mode, whose outputs are random: "
                "call module.eval()"
            )


def _dropout_rate(part: Any) -> float:
    if isinstance(part, torch.nn.modules.dropout._DropoutNd):
        return float(part.p)
    if isinstance(part, torch.nn.RNNBase | torch.nn.MultiheadAttention):
        return float(part.dropout)
    return 0.0


def tracked_parameters(module: Any, parameters: Sequence[str] | Callable[[str, Any], bool] | None) -> dict[str, Any]:
    """Return the parameters to be differentiated by, by name, each once however many names it has.

    Raises
    ------
    TypeError, ValueError
        If a name is unknown or frozen, nothing is left, or a parameter is not float32 or float64 like the others.
    """
    everything = dict(module.named_parameters(remove_duplicate=False))
    wanted = _selection(everything, parameters)
    tracked: dict[str, Any] = {}
    seen = set()
    for name, tensor in everything.items():
        if name in wanted and id(tensor) not in seen:
            seen.add(id(tensor))
            tracked[name] = tensor
    if not tracked:
        raise ValueError("module has no parameter that requires a gradient")
    first_name, first = next(iter(tracked.items()))
    for name, tensor in tracked.items():
        if tensor.is_meta:
            raise ValueError(f"parameter {name!r} is on the meta device: it holds no numbers")
        if tensor.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"parameter {name!r} is {tensor.dtype}: gradients are taken in float32 or float64, so convert the "
                "module, or a copy of it, with .float()"
            )
        for what in ("dtype", "device"):
            if getattr(tensor, what) != getattr(first, what):
                raise TypeError(
                    f"parameter {name!r} has {what} {getattr(tensor, what)} but {first_name!r} "
                    f"{getattr(first, what)}: all must be alike"
                )
    return tracked


def _selection(everything: Mapping[str, Any], parameters: Any) -> set[str]:
    if parameters is None:
        return {name for name, tensor in everything.items() if tensor.requires_grad}
    if callable(parameters):
        return {name for name, tensor in everything.items() if tensor.requires_grad and parameters(name, tensor)}
    if isinstance(parameters, str):
        parameters = [parameters]
    wanted: set[str] = set()
    for given in parameters:
        found = {name for name in everything if name == given or name.startswith(f"{given}.")}
        if not found:
            raise ValueError(f"parameters: the module has no parameter or part {given!r}")
        frozen = [name for name in found if not everything[name].requires_grad]
        if given in frozen:
            raise ValueError(f"parameters: {given!r} is frozen (requires_grad is False)")
        wanted |= found - set(frozen)
    return wanted


class Forward:
    """Calls a module eagerly, and looks whether calling changes it.

    Parameters
    ----------
    module : torch.nn.Module
        Unwrapped.
    output : callable, optional
        From what the module returns to (N,) or (N, C).
    total : bool
        Whether the sum over outputs is wanted, (N, 1).
    """

    def __init__(self, module: Any, output: Callable[[Any], Any] | None, *, total: bool) -> None:
        self.module = module
        self._output = output
        self.total = total
        self.plain_recurrence = False
        """Whether recurrent layers are computed step by step, not by one operation of a library."""
        self._compiled = any(
            getattr(part, "_compiled_call_impl", None) is not None or hasattr(part, "_orig_mod")
            for part in module.modules()
        )

    def __call__(self, inputs: Inputs) -> Any:
        """Return predictions (N, C)."""
        return self.call(self.module, inputs)

    def call(self, function: Callable[..., Any], inputs: Inputs) -> Any:
        """Return predictions (N, C) of `function`, the module or what stands for it."""
        if self._compiled:
            function = torch.compiler.disable(function)
        with self._recurrence():
            result = function(*inputs.args, **inputs.kwargs)
        return self._predictions(result, inputs.num_examples)

    @contextlib.contextmanager
    def left_as_found(self) -> Iterator[None]:
        """Differentiate in the parameters' precision; put buffers and random numbers back, and refuse if they changed.

        Raises
        ------
        ValueError
            Then.
        """
        devices = sorted({t.device.index for t in self.module.parameters() if t.device.type == "cuda"})
        buffers = dict(self.module.named_buffers())
        kept = {name: buffer.detach().clone() for name, buffer in buffers.items()}
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices=devices))
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            # Backward sweeps would take the caller's precision too.
            for kind in ("cpu", "cuda"):
                stack.enter_context(torch.autocast(kind, enabled=False))
            for backend in (torch.backends.cudnn, torch.backends.cuda.matmul):
                stack.enter_context(_without_tf32(backend))
            before = [torch.get_rng_state(), *(torch.cuda.get_rng_state(index) for index in devices)]
            try:
                yield
            finally:
                drawn = any(
                    not torch.equal(a, b)
                    for a, b in zip(
                        before,
                        [torch.get_rng_state(), *(torch.cuda.get_rng_state(index) for index in devices)],
                        strict=True,
                    )
                )
                changed = [name for name, buffer in buffers.items() if not _same(buffer, kept[name])]
                with torch.no_grad():
                    for name in changed:
                        buffers[name].copy_(kept[name])
        if changed:
            raise ValueError(
                f"calling the module changes its buffer {changed[0]!r}, so its outputs depend on earlier calls: call "
                "module.eval() first"
            )
        if drawn:
            raise ValueError(
                "calling the module draws random numbers, so its outputs are not a function of the examples: call "
                "module.eval(), or switch the noise off"
            )

    @contextlib.contextmanager
    def _recurrence(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            if self.plain_recurrence:
                for library in (torch.backends.mkldnn, torch.backends.cudnn):
                    stack.enter_context(_switched_off(library))
            yield

    def _predictions(self, result: Any, num_examples: int) -> Any:
        if self._output is not None:
            result = self._output(result)
        elif not isinstance(result, torch.Tensor) and isinstance(getattr(result, "logits", None), torch.Tensor):
            result = result.logits
        if not isinstance(result, torch.Tensor):
            raise TypeError(
                f"module must return a tensor (N,) or (N, C), got {type(result).__name__}: "
                "say by output=lambda result: ... which part of it is meant"
            )
        if result.ndim not in (1, 2) or len(result) != num_examples:
            raise ValueError(
                f"module must return (N,) or (N, C) with N = {num_examples}, got shape {tuple(result.shape)}: say by "
                "output=lambda result: ... which outputs are meant, such as result[:, -1] or result.flatten(1)"
            )
        if not result.requires_grad:
            raise ValueError("module's outputs do not depend on any parameter that requires a gradient")
        predictions = result[:, None] if result.ndim == 1 else result
        return predictions.sum(1, keepdim=True) if self.total else predictions


def _same(a: Any, b: Any) -> bool:
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())


@contextlib.contextmanager
def _switched_off(library: Any) -> Iterator[None]:
    before = library.enabled
    library.enabled = False
    try:
        yield
    finally:
        library.enabled = before
