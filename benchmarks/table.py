"""Results as text."""

from __future__ import annotations

from benchmarks.case import OURS
from benchmarks.measure import Result

__all__ = ["as_text"]


def as_text(result: Result) -> str:
    """Return a result as a few lines: what the work needs, the roofs, and a line for each contender.

    "of roof" is the speed relative to what the multiply-add ceiling and the copy bandwidth allow; work that only reads
    may exceed the latter.
    """
    bound = "ceiling" if result.roof == result.ceiling else "bandwidth"
    needed = f"{result.flops / 1e9:.3g} GFLOP and {result.bytes / 1e6:.3g} MB needed"
    roofs = f"ceiling {result.ceiling / 1e9:.0f} GFLOP/s, copies {result.bandwidth / 1e9:.1f} GB/s"
    columns = f"{'median ms':>10} {'min':>9} {'max':>9} {'GFLOP/s':>8} {'GB/s':>6} {'of roof':>8} {'times ours':>10}"
    lines = [
        f"{result.name}: {needed}, {result.intensity:.3g} flops/byte",
        f"  {roofs}: the roof is the {bound}, {result.roof / 1e9:.3g} GFLOP/s",
        f"  {'':<36} {columns} {'error':>8}",
    ]
    for name, timing in result.timings.items():
        rate = result.rate(name)
        lines.append(
            f"  {name:<36} {timing.median * 1e3:>10.2f} {timing.fastest * 1e3:>9.2f} {timing.slowest * 1e3:>9.2f} "
            f"{rate / 1e9:>8.3g} {result.bytes / timing.median / 1e9:>6.1f} {rate / result.roof:>8.0%} "
            f"{timing.median / result.timings[OURS].median:>10.2f} {result.errors[name]:>8.0e}"
        )
    lines += [f"  {name:<36} skipped: not installed, or never within tolerance" for name in result.skipped]
    return "\n".join(lines)
