"""What a benchmark is: contenders that do the same work, a check of their answers, and what the work needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["OURS", "TOLERANCE", "Case", "Workload"]

OURS = "kernelgrowth"
# Of a kernel's entries, relative to sqrt(K_ii K_jj): what the library promises, and all contenders are held to.
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}


@dataclass(frozen=True)
class Workload:
    """One piece of work in memory.

    `contenders` are by name, None where the library they need is not installed, or is known not to reach the tolerance.
    `error` measures an answer against float64 on a sample. `flops` and `bytes` are the fewest that the work needs,
    whoever does it: what each contender's speed is counted in; bytes are those of the inputs read and the results
    written once. `parts` names contenders that do a part of the work only, to show what the rest adds: they are
    nobody's peers. `once` names those that take many seconds and are timed a single time.
    """

    contenders: Mapping[str, Callable[[], Any] | None]
    error: Callable[[Any], float]
    tolerance: float
    flops: int
    bytes: int
    parts: tuple[str, ...] = ()
    once: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """A workload to be built: `build(**sizes)`, or `build(**sizes | tiny)` where only its workings are of interest."""

    name: str
    build: Callable[..., Workload]
    sizes: Mapping[str, Any]
    tiny: Mapping[str, Any]
    dtype: str = "float32"
    repeats: int = 9

    def workload(self, *, tiny: bool = False) -> Workload:
        return self.build(dtype=self.dtype, **{**self.sizes, **(self.tiny if tiny else {})})
