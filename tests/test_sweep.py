"""Sweeps: the same table whatever the number of processes, and whenever a process was killed."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from kernelgrowth import RunFolderError
from kernelgrowth.experiments.sweep import TABLE, run_sweep

SETTINGS = [{"x": x, "seed": seed} for x in range(10) for seed in range(6)]


def squared(x, seed):
    """A run: numbers, text and a list that follow from the settings."""
    values = np.random.default_rng([x, seed]).standard_normal(5)
    return {"square": x * x, "mean": values.mean(), "kind": "even" if x % 2 == 0 else "odd", "values": values}


def slow(x, seed):
    time.sleep(0.02)
    return squared(x, seed)


def failing(x, seed):
    if x == 3:
        raise ValueError("x must not be 3")
    return squared(x, seed)


def test_results_come_in_order_with_their_settings():
    rows = run_sweep(squared, SETTINGS, workers=1)
    assert [(row["x"], row["seed"]) for row in rows] == [(one["x"], one["seed"]) for one in SETTINGS]
    assert all(row["square"] == row["x"] ** 2 and len(row["values"]) == 5 for row in rows)


def test_the_table_is_tidy(tmp_path):
    counts = []
    rows = run_sweep(
        squared, SETTINGS, tmp_path, workers=2, on_progress=lambda done, total: counts.append((done, total))
    )
    assert counts == [(i, 60) for i in range(61)]
    assert rows == run_sweep(squared, SETTINGS, workers=1)
    with open(tmp_path / TABLE, newline="") as stream:
        table = list(csv.DictReader(stream))
    assert list(table[0]) == ["x", "seed", "square", "mean", "kind"]
    assert [float(line["mean"]) for line in table] == [row["mean"] for row in rows]
    # What is there is not made again.
    before = (tmp_path / "runs.jsonl").read_bytes()
    run_sweep(squared, [*SETTINGS[:5], {"x": 99, "seed": 0}], tmp_path, workers=1)
    assert (tmp_path / "runs.jsonl").read_bytes().startswith(before)
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 61


def test_a_killed_sweep_goes_on(tmp_path):
    whole = tmp_path / "whole"
    run_sweep(squared, SETTINGS, whole, workers=1)
    code = (
        "import test_sweep, sys; from kernelgrowth.experiments.sweep import run_sweep\n"
        "if __name__ == '__main__': run_sweep(test_sweep.slow, test_sweep.SETTINGS, sys.argv[1], workers=2)"
    )
    script = tmp_path / "sweep.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    killed = tmp_path / "killed"
    chance = random.Random(1)
    command = [sys.executable, str(script), str(killed)]
    for _ in range(3):
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        deadline = time.monotonic() + 60
        goal = len(lines(killed)) + chance.randint(1, 8)
        while len(lines(killed)) < goal and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        # As if the last line had been cut short.
        path = killed / "runs.jsonl"
        with open(path, "ab") as stream:
            stream.write(b'{"settings": {"x"')
    assert 0 < len(lines(killed)) - 1 < len(SETTINGS)
    subprocess.run(command, env=environment, check=True)
    assert (killed / TABLE).read_bytes() == (whole / TABLE).read_bytes()
    assert sorted(lines(killed)) == sorted(lines(whole))


def lines(folder):
    path = folder / "runs.jsonl"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_ends_it_and_nothing_finished_is_lost(tmp_path, workers):
    with pytest.raises(ValueError, match="x must not be 3"):
        run_sweep(failing, SETTINGS, tmp_path, workers=workers)
    kept = [json.loads(line)["settings"]["x"] for line in lines(tmp_path)]
    assert 3 not in kept
    assert len(kept) >= 18


def test_other_folders_are_refused(tmp_path):
    run_sweep(squared, SETTINGS[:1], tmp_path / "one", workers=1)
    with pytest.raises(RunFolderError, match="holds another sweep"):
        run_sweep(slow, SETTINGS[:1], tmp_path / "one", workers=1)
    with pytest.raises(RunFolderError, match="holds something else"):
        run_sweep(squared, SETTINGS[:1], tmp_path, workers=1)
    with pytest.raises(ValueError, match="two runs have the same"):
        run_sweep(squared, [SETTINGS[0], SETTINGS[0]], workers=1)
    with pytest.raises(ValueError, match="workers must be at least 1"):
        run_sweep(squared, SETTINGS, workers=0)
