"""`python -m benchmarks`: print the table, write it as JSON with the machine, the versions and the commit."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

# A BLAS held to another processor's kernels would be a crippled peer; it reads these when NumPy is first imported.
if any(name.startswith("OPENBLAS_") for name in os.environ):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS_")}
    os.execve(sys.executable, [sys.executable, "-m", "benchmarks", *sys.argv[1:]], clean)

import numpy as np
import scipy

import kernelgrowth as kg
from benchmarks import gram
from kernelgrowth._backend import native


def machine() -> dict[str, Any]:
    cpu = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        cpu = lines[0].split(":", 1)[1].strip() if lines else cpu
    here = Path(__file__).parent
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "cpu": cpu,
        "threads": native.num_threads(),
        "isa": native.info()["isa"],
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "kernelgrowth": kg.__version__,
        "commit": commit,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--out", type=Path, help="write the results to this JSON file")
    parser.add_argument("--only", default="", help="run the cases whose name contains this")
    arguments = parser.parse_args()

    about = machine()
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    results = []
    for case in gram.CASES:
        if arguments.only not in case.name:
            continue
        timings, flops = gram.run(case)
        # Measured beside the contenders, since a shared machine's speed changes by the minute.
        ceiling = max(native.multiply_add_peak(case.dtype) for _ in range(3))
        print(
            f"\n{case.name}, N = {case.num_examples}, {case.dtype}: {flops / 1e9:.2f} GFLOP needed, "
            f"ceiling {ceiling / 1e9:.0f} GFLOP/s"
        )
        print(f"  {'':<28} {'median ms':>10} {'min':>9} {'max':>9} {'GFLOP/s':>8} {'ceiling':>8} {'times ours':>10}")
        for name, timing in timings.items():
            rate = flops / timing.median
            print(
                f"  {name:<28} {timing.median * 1e3:>10.2f} {timing.fastest * 1e3:>9.2f} {timing.slowest * 1e3:>9.2f} "
                f"{rate / 1e9:>8.0f} {rate / ceiling:>8.0%} {timing.median / timings[gram.OURS].median:>10.2f}"
            )
        results.append(
            {
                "case": asdict(case),
                "flops": flops,
                "ceiling_flops_per_second": ceiling,
                "seconds": {name: asdict(timing) for name, timing in timings.items()},
            }
        )
    if not results:
        parser.error(f"--only {arguments.only!r} names no case")
    if arguments.out:
        arguments.out.write_text(json.dumps({"machine": about, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
