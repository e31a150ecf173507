"""The probe set and its subsamples, on which a network is measured step after step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kernelgrowth._backend.arrays import FloatArray, array_namespace
from kernelgrowth.gradients import GradientFeatures, from_net
from kernelgrowth.tracking.comparison import Reference
from kernelgrowth.tracking.layers import LayerKernels
from kernelgrowth.tracking.metrics import measure
from kernelgrowth.tracking.sampling import Subsamples, mean_error
from kernelgrowth.tracking.settings import Probe, Settings
from kernelgrowth.tracking.targets import holds_labels, target_matrix

__all__ = ["LossFunction", "ProbeMeter", "Reading"]

LossFunction = Callable[[Any, Any], float]

_LOSS_GROUPS = 8


class Reading(NamedTuple):
    """What was measured at one step.

    Attributes
    ----------
    values : dict
        By name, as they are recorded; the loss first.
    reference : Reference
        What to remember of it.
    features : GradientFeatures
    preconditioner : mapping or None
        η of the kernel J diag(η) Jᵀ that was measured.
    """

    values: dict[str, Any]
    reference: Reference
    features: GradientFeatures
    preconditioner: Mapping[str, Any] | None


class ProbeMeter:
    """Measures networks on a probe set, and remembers what the next measurement is compared with.

    Parameters
    ----------
    probe : Probe
    settings : Settings
    order : integer array (N,), optional
        The order in which subsamples are drawn; without it all steps are measured on the whole probe set.

    Attributes
    ----------
    references : list of Reference
        The two newest measurements, ascending: a checkpoint may be taken before or after the newest one's step is over.
    """

    def __init__(self, probe: Probe, settings: Settings, order: npt.NDArray[np.int64] | None) -> None:
        self._probe = probe
        self._settings = settings
        self._subsamples = Subsamples(len(probe.x), order)
        self._parts: dict[int, tuple[Probe, LayerKernels]] = {}
        # The first measurement, and what it would have been on the examples of the last one.
        self._first: Reference | None = None
        self._first_there: Reference | None = None
        self.references: list[Reference] = []

    def start_from(self, references: list[Reference], first: Reference | None) -> None:
        """Go on from earlier measurements."""
        self.references, self._first, self._first_there = references, first, first

    def measure(self, net: Any, params: Any, step: int, size: int, loss_function: LossFunction) -> Reading:
        """Measure `net` on `size` examples, all or a subsample."""
        probe, layers = self._part(size)
        # What is not finite is recorded as such.
        features = from_net(net, params, probe.x, check_finite=False)
        preconditioner = net.preconditioner(features) if hasattr(net, "preconditioner") else None
        targets = target_matrix(probe.y, features.num_outputs)
        losses = self._losses(features, targets, probe.y, loss_function)
        values, now = measure(
            features,
            targets,
            names=self._settings.metrics,
            top_k=self._settings.top_k,
            outputs=self._settings.outputs,
            step=step,
            previous=self.references[-1] if self.references else None,
            first=self._first_on(size),
            layers=layers,
            subsamples=self._subsamples,
            preconditioner=preconditioner,
        )
        return Reading(losses | values, now, features, preconditioner)

    def remember(self, now: Reference) -> None:
        """Compare the next measurement with this one."""
        metrics = self._settings.metrics
        if not self.references and "rotation" in metrics:
            self._first = self._first_there = Reference(now.step, now.size, now.kernel)
        # What no metric compares with is not kept, here and in checkpoints; the vectors of an earlier kernel on fewer
        # examples need the kernel.
        restricted = self._subsamples.order is not None and "subspace_overlap" in metrics
        kernel = now.kernel if "velocity" in metrics or restricted else now.kernel[:0].copy()
        self.references = [*self.references[-1:], replace(now, kernel=kernel)]

    def _part(self, size: int) -> tuple[Probe, LayerKernels]:
        if size not in self._parts:
            whole = size == len(self._probe.x)
            # One subsample at a time: the next one is smaller, or the last step's whole probe set.
            self._parts = {at: part for at, part in self._parts.items() if at == len(self._probe.x)}
            probe = self._probe if whole else self._probe.part(self._subsamples.examples(size))
            self._parts[size] = (
                probe,
                LayerKernels(probe.x if hasattr(probe.x, "ndim") else None, self._settings.outputs),
            )
        return self._parts[size]

    def _losses(
        self, features: GradientFeatures, targets: FloatArray, y: Any, loss_function: LossFunction
    ) -> dict[str, Any]:
        predictions = features.predictions
        if holds_labels(y, features.num_outputs):
            # One-hot rows are what every loss takes for C > 1 outputs.
            y = array_namespace(predictions).asarray(targets, dtype=features.dtype)
        values: dict[str, Any] = {"loss": float(loss_function(predictions, y))}
        if self._subsamples.order is not None:
            size = len(targets)
            values |= {"num_examples": size, "loss_error": 0.0}
            if size < len(self._probe.x):
                assert predictions is not None
                length = size // _LOSS_GROUPS
                groups = [slice(start, start + length) for start in range(0, length * _LOSS_GROUPS, length)]
                losses = [float(loss_function(predictions[group], y[group])) for group in groups]
                values["loss_error"] = mean_error(losses, size, len(self._probe.x))
        return values

    def _first_on(self, size: int) -> Reference | None:
        if self._first is None or self._first_there is None:
            return None
        if self._first_there.size != size:
            self._first_there = self._first.on(size, self._subsamples, self._settings.top_k)
        return self._first_there
