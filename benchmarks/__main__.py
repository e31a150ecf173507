"""Print how fast kernelgrowth is on this machine: against its roofs, and against what a user would write otherwise.

KERNELGROWTH_ISA=avx2 (or another of `kernelgrowth info`) holds kernelgrowth to that instruction set, and measures the
ceiling with it. All contenders use the processors that this process may run on: `taskset -c 0` leaves one.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from benchmarks.environment import holding, start_again

# No crippled peers; what is imported below reads such variables.
if names := holding():
    start_again("benchmarks", without=names)

from benchmarks.case import OURS
from benchmarks.machine import machine
from benchmarks.measure import measure
from benchmarks.suite import CASES
from benchmarks.table import as_text

_QUICK = 3


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="run the cases whose name contains this")
    parser.add_argument("--list", action="store_true", help="print the names of the cases and stop")
    parser.add_argument("--quick", action="store_true", help=f"at most {_QUICK} repeats a contender")
    parser.add_argument("--out", type=Path, help="write the results to this JSON file")
    parser.add_argument("--roofline", type=Path, help="draw the results into this PNG file")
    arguments = parser.parse_args()

    cases = [case for case in CASES if arguments.only in case.name]
    if not cases:
        parser.error(f"--only {arguments.only!r} names no case; --list shows them")
    if arguments.list:
        print("\n".join(case.name for case in cases))
        return

    about = machine()
    print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    results = []
    for case in cases:
        results.append(measure(case, repeats=min(case.repeats, _QUICK) if arguments.quick else case.repeats))
        print(f"\n{as_text(results[-1])}", flush=True)
        if arguments.out:
            record = {"machine": about, "ours": OURS, "results": [asdict(result) for result in results]}
            arguments.out.write_text(json.dumps(record, indent=2) + "\n")
    if arguments.roofline:
        from benchmarks.roofline import draw

        draw(results, about, arguments.roofline)


if __name__ == "__main__":
    main()
