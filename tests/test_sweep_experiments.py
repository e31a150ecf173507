"""Sweeps of experiments: what a file means, and the same table whatever happens to the processes."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from distributed import LocalCluster
from hypothesis import given
from hypothesis import strategies as st

import kernelgrowth as kg
from kernelgrowth._backend.tasks import work_through
from kernelgrowth.cli import main
from kernelgrowth.experiments import ConfigError, SweepConfig, parse_sweep, sweep_experiments

BASE = """
[data]
name = "gaussian_teacher"
n_train = 24
n_test = 8
dim = 6

[net]
hidden = [10]
activation = "linear"
sigma = 0.1

[training]
lr = 0.1
steps = {steps}
checkpoint_every = 20

[tracking]
every = 5
top_k = 3

[output]
report = false
"""
GRID = """
[sweep]
retries = {retries}

[sweep.grid]
"net.sigma" = [0.1, 0.5]
training.seed = [0, 1]
"""


def sweep_of(steps: int = 60, retries: int = 0, base: str = BASE, grid: str = GRID) -> SweepConfig:
    return parse_sweep(base.format(steps=steps) + grid.format(retries=retries))


def results(folder: Path) -> dict[str, Any]:
    """Return the table and the recorded numbers of a sweep, without times."""
    runs = kg.load_runs(folder / "*")
    numbers = {
        Path(path).name: {name: history[name].tolist() for name in ("kernel_norm", "alignment", "loss", "step")}
        for path, history in runs.items()
    }
    return {"table": (folder / "table.csv").read_text(), "numbers": numbers}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("whole") / "sweep"
    sweep_experiments(sweep_of(), folder, workers=1)
    return results(folder)


# --- what a file means ---


def test_a_grid_is_a_product_and_a_list_multiplies_it() -> None:
    runs = sweep_of(grid=GRID + '\n[[sweep.runs]]\n[[sweep.runs]]\nnet.hidden = [4, 4]\n"training.lr" = 0.05\n').runs
    assert [run.name for run in runs] == [
        "sigma=0.1_seed=0",
        "sigma=0.1_seed=1",
        "sigma=0.5_seed=0",
        "sigma=0.5_seed=1",
        "hidden=4-4_lr=0.05_sigma=0.1_seed=0",
        "hidden=4-4_lr=0.05_sigma=0.1_seed=1",
        "hidden=4-4_lr=0.05_sigma=0.5_seed=0",
        "hidden=4-4_lr=0.05_sigma=0.5_seed=1",
    ]
    last = runs[-1].config
    assert (last.net.hidden, last.net.sigma, last.training.lr, last.training.seed) == ((4, 4), 0.5, 0.05, 1)
    assert runs[0].config.net.hidden == (10,)


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=6, unique=True), st.sets(st.integers(0, 99), min_size=1))
def test_names_are_distinct_and_fit_a_file_system(sigmas: list[float], seeds: set[int]) -> None:
    tables = {
        "data": {"name": "gaussian_teacher", "n_train": 8, "dim": 3},
        "training": {"lr": 0.1, "steps": 5},
        "sweep": {"grid": {"net.sigma": sigmas, "training.seed": sorted(seeds)}},
    }
    runs = SweepConfig.from_dict(tables).runs
    assert [(run.config.net.sigma, run.config.training.seed) for run in runs] == [
        (sigma, seed) for sigma in sigmas for seed in sorted(seeds)
    ]
    names = {run.name for run in runs}
    assert len(names) == len(runs)
    assert all(len(name) < 200 and not set(name) & set("/\\ :*?\0") and name.strip(".") for name in names)


@pytest.mark.parametrize(
    ("grid", "line", "message"),
    [
        ('[sweep.grid]\n"net.sigma" = [0.1, -1.0]', 25, r"net.sigma must be .* -1.* \(in run sigma=-1\)"),
        ("[sweep.grid]\nnet.sigmo = [0.1]", 25, "net.sigmo is no key of"),
        ("[sweep.grid]\nnet.sigma = 0.1", 25, "sweep.grid.net.sigma must be a list"),
        ("[sweep.grid]\nnet.sigma = []", 25, "sweep.grid.net.sigma must be a list"),
        ("[sweep.grid]\nnet.sigma = [0.1, 0.1]", 23, "two runs that are the same"),
        ("[sweep.grid]\nsigma = [0.1, 0.2]", 25, "sigma must name a section and a key"),
        ("[sweep]\nretrys = 3", 25, "sweep.retrys is no key"),
        ("[sweep]\nthreads = 0\n[sweep.grid]\nnet.sigma = [0.1]", 25, "sweep.threads must be an integer of at least 1"),
        ("[sweep]\nthreads = 1", 24, "the table .sweep.grid. or ..sweep.runs.. is missing"),
        ("[sweep]\nruns = 3", 25, "sweep.runs must be tables"),
        ("[[sweep.runs]]\nnet.sigma = 1.0\n[sweep.grid]\nnet.sigma = [2.0]", 25, "net.sigma is both in"),
    ],
)
def test_a_mistake_is_told_by_key_and_line(grid: str, line: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_sweep(BASE.format(steps=60) + grid, "file.toml")
    assert caught.value.source == "file.toml"
    assert caught.value.line is None or abs(caught.value.line - line) <= 3


def test_a_run_of_a_sweep_file_names_the_other_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sweep.toml").write_text(BASE.format(steps=60) + GRID.format(retries=0))
    assert main(["run", str(tmp_path / "sweep.toml")]) == 2
    assert "use `kernelgrowth sweep`" in capsys.readouterr().err


# --- processes ---


def test_the_number_of_workers_changes_nothing(tmp_path: Path, whole: dict[str, Any]) -> None:
    seen = []
    sweep_experiments(sweep_of(), tmp_path / "sweep", workers=2, on_progress=lambda at: seen.append(at.done))
    assert results(tmp_path / "sweep") == whole
    assert seen == [0, 1, 2, 3, 4]
    with open(tmp_path / "sweep" / "table.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["run"] for row in rows] == [run.name for run in sweep_of().runs]
    assert {row["status"] for row in rows} == {"completed"}
    page = (tmp_path / "sweep" / "report.html").read_text()
    assert all(run.name in page for run in sweep_of().runs)
    assert (tmp_path / "sweep" / "sweep.png").stat().st_size > 1000


def test_a_worker_killed_in_the_middle_changes_nothing(tmp_path: Path) -> None:
    sweep = sweep_of(steps=1000)
    sweep_experiments(sweep, tmp_path / "whole", workers=2)
    killed = []

    def kill(at: Any) -> None:
        # The other run of the first two is in its middle when one of them ends.
        if at.done == 1 and not killed:
            victims = [child for child in psutil.Process().children(recursive=True) if "spawn" in str(child.cmdline())]
            for victim in victims:
                if "resource_tracker" not in str(victim.cmdline()):
                    victim.kill()
                    killed.append(victim.pid)

    sweep_experiments(sweep, tmp_path / "sweep", workers=2, on_progress=kill)
    assert killed
    assert results(tmp_path / "sweep") == results(tmp_path / "whole")


def test_a_failed_run_stops_no_other_and_is_made_later(tmp_path: Path, whole: dict[str, Any]) -> None:
    folder, sweep = tmp_path / "sweep", sweep_of(retries=1)
    folder.mkdir()
    (folder / "sweep.txt").write_text("")
    (folder / "sigma=0.1_seed=1").write_text("in the way")
    result = sweep_experiments(sweep, folder, workers=2)
    assert list(result.failed) == ["sigma=0.1_seed=1"]
    explained = (folder / "sigma=0.1_seed=1.error.txt").read_text()
    assert "Traceback" in explained
    assert "is a file, not a folder" in explained
    assert explained.endswith("Tried 2 times.\n")
    assert [row["status"] for row in result.rows] == ["completed", "failed", "completed", "completed"]
    (folder / "sigma=0.1_seed=1").unlink()
    result = sweep_experiments(sweep, folder, workers=1)
    assert not result.failed
    assert not list(folder.glob("*.error.txt"))
    assert results(folder) == whole


def test_a_diverged_run_is_a_result(tmp_path: Path) -> None:
    sweep = sweep_of(grid="[sweep.grid]\ntraining.lr = [0.1, 1e9]\n")
    result = sweep_experiments(sweep, tmp_path / "sweep", workers=1)
    assert not result.failed
    assert [row["status"] for row in result.rows] == ["completed", "diverged"]
    before = (tmp_path / "sweep" / "table.csv").read_text()
    sweep_experiments(sweep, tmp_path / "sweep", workers=1)
    assert (tmp_path / "sweep" / "table.csv").read_text() == before


def test_a_cluster_that_is_there_is_used_with_its_resources(tmp_path: Path, whole: dict[str, Any]) -> None:
    grid = GRID.replace("retries = {retries}", "gpus = 1")
    cluster = LocalCluster(
        n_workers=1, threads_per_worker=2, processes=True, dashboard_address=None, resources={"GPU": 1}, silence_logs=40
    )
    with cluster:
        sweep_experiments(sweep_of(grid=grid), tmp_path / "sweep", scheduler=cluster.scheduler_address)
    assert results(tmp_path / "sweep") == whole


def fails_at_first(folder: str, name: str) -> str:
    path = Path(folder) / name
    count = len(path.read_text()) if path.exists() else 0
    path.write_text("x" * (count + 1))
    if count < 2:
        raise LookupError(f"{name} is not there yet")
    return name


def test_what_fails_at_first_is_tried_again(tmp_path: Path) -> None:
    from kernelgrowth._backend.cluster import started

    jobs = {name: (str(tmp_path), name) for name in "abc"}
    with started(1) as client:
        once = dict(work_through(client, fails_at_first, jobs, retries=1, back_off=0.01))
        assert {type(outcome.error) for outcome in once.values()} == {LookupError}
        assert all("is not there yet" in outcome.traceback for outcome in once.values())
        again = dict(work_through(client, fails_at_first, jobs, retries=1, back_off=0.01, at_once=1))
        assert {name: outcome.result for name, outcome in again.items()} == {name: name for name in "abc"}


COMMAND = "import sys; from kernelgrowth.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_sweep_goes_on(tmp_path: Path, whole: dict[str, Any], how: signal.Signals) -> None:
    config, folder = tmp_path / "sweep.toml", tmp_path / "sweep"
    config.write_text(BASE.format(steps=60) + GRID.format(retries=0))
    command = [sys.executable, "-c", COMMAND, "sweep", str(config), "--out", str(folder), "--workers", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        deadline = time.monotonic() + 60
        while not list(folder.glob("*/zarr.json")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        children = psutil.Process(process.pid).children(recursive=True)
        if how == signal.SIGINT:
            # As from a terminal, where all processes get it.
            os.killpg(process.pid, how)
        else:
            process.kill()
        _, errors = process.communicate(timeout=60)
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert errors.splitlines()[-1].endswith(f"finished runs are in {folder}: the same command goes on from there")
    assert main([*command[3:], "--quiet"]) == 0
    assert results(folder) == whole


# --- refusals ---


def test_what_cannot_be_is_refused_before_anything_runs(tmp_path: Path, whole: dict[str, Any]) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(kg.RunFolderError, match="holds something else"):
        sweep_experiments(sweep_of(), tmp_path)
    with pytest.raises(ValueError, match="workers and scheduler exclude each other"):
        sweep_experiments(sweep_of(), tmp_path / "new", workers=1, scheduler="tcp://127.0.0.1:1")
    with pytest.raises(ValueError, match="workers must be at least 1"):
        sweep_experiments(sweep_of(), tmp_path / "new", workers=0)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]
    grid = "[sweep.grid]\ntraining.seed = [0]\n"
    sweep_experiments(sweep_of(steps=20, grid=grid), tmp_path / "new", workers=1)
    with pytest.raises(kg.RunFolderError, match=r"seed=0: holds a run of another configuration, training.steps differ"):
        sweep_experiments(sweep_of(steps=30, grid=grid), tmp_path / "new", workers=1)
    # More runs beside those that are there are welcome.
    result = sweep_experiments(sweep_of(steps=20, grid=grid.replace("[0]", "[0, 5]")), tmp_path / "new", workers=1)
    assert len(result.rows) == 2


def test_a_scheduler_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernelgrowth._backend.cluster._SECONDS_TO_CONNECT", 0.2)
    with pytest.raises(kg.BackendError, match=r"scheduler tcp://127\.0\.0\.1:9 does not answer"):
        sweep_experiments(sweep_of(), tmp_path / "new", scheduler="tcp://127.0.0.1:9")
