"""The command line: exit statuses, one line for an error, and nothing lost on Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

import kernelgrowth as kg
from kernelgrowth.cli import build_app, main

QUICK = """
[data]
name = "gaussian_teacher"
n_train = 30
n_test = 10
dim = 5

[net]
hidden = [10]
sigma = 0.1

[training]
lr = 0.1
steps = {steps}
checkpoint_every = 50

[tracking]
every = {every}
top_k = 3
"""
# SIGINT may be ignored in a test run in the background; the child takes it as a terminal's child would.
COMMAND = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "from kernelgrowth.cli import main; sys.exit(main())"
)


@pytest.fixture
def quick(tmp_path):
    path = tmp_path / "quick.toml"
    path.write_text(QUICK.format(steps=100, every=10))
    return path


@pytest.fixture
def failing(capsys):
    """Run the command in this process, and return the one line on stderr of its failure."""

    def run(*arguments: object, status: int = 2) -> str:
        assert main([str(argument) for argument in arguments]) == status
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        assert captured.err.startswith("kernelgrowth: ")
        return captured.err

    return run


def in_subprocess(*arguments: object, code: str = COMMAND) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_run_writes_the_report_and_says_the_verdict(quick, tmp_path):
    result = CliRunner().invoke(build_app(), ["run", str(quick), "--out", str(tmp_path / "run")])
    assert result.exit_code == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    assert result.output.splitlines() == [summary["verdict_sentence"], f"Report: {tmp_path / 'run' / 'report.html'}"]


def test_run_takes_its_folder_from_the_configuration_or_its_name(quick, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["run", "quick.toml"]) == 0
    assert Path("runs/quick/report.html").exists()
    quick.write_text(quick.read_text() + '[output]\nfolder = "elsewhere"\nreport = false\n')
    assert main(["run", "quick.toml"]) == 0
    assert Path("elsewhere/summary.json").exists()
    assert not Path("elsewhere/report.html").exists()
    assert "Results: elsewhere" in capsys.readouterr().out


def test_a_taken_folder_is_refused_and_can_be_overwritten(quick, tmp_path, failing, capsys):
    arguments = ["run", quick, "--out", tmp_path / "run"]
    assert main([str(a) for a in arguments]) == 0
    capsys.readouterr()
    said = failing(*arguments)
    assert "holds another run" in said
    assert "--out" in said
    assert "--overwrite" in said
    assert main([str(a) for a in [*arguments, "--overwrite"]]) == 0
    assert main([str(a) for a in [*arguments, "--resume"]]) == 0
    assert "holds another run" in failing_after(capsys, failing, "demo", "--out", tmp_path / "run")


def failing_after(capsys, failing, *arguments):
    capsys.readouterr()
    return failing(*arguments)


def test_report_again(quick, tmp_path, capsys):
    assert main(["run", str(quick), "--out", str(tmp_path / "run")]) == 0
    first = capsys.readouterr().out
    (tmp_path / "run" / "report.html").unlink()
    assert main(["report", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out == first
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("lr = 0.1", "lr = -1", "quick.toml:13: training.lr must be greater than 0, got -1"),
        ("lr = 0.1", "lrr = 1", 'quick.toml:13: training.lrr is no key of [training]; did you mean "training.lr"?'),
        ("sigma = 0.1", "sigma = ", "quick.toml:10: is not valid TOML: Invalid value"),
        ("hidden = [10]", "widths = [4, 1]", "net.widths must have 5 as its first entry"),
        ("lr = 0.1", "lr = 1e6", "lower the learning rate"),
    ],
)
def test_a_bad_configuration_is_one_line(quick, tmp_path, failing, old, new, said):
    quick.write_text(quick.read_text().replace(old, new))
    assert said in failing("run", quick, "--out", tmp_path / "run")


def test_bad_arguments_are_one_line(quick, tmp_path, failing):
    (tmp_path / "file").write_text("")
    assert "missing.toml: cannot be read" in failing("run", tmp_path / "missing.toml")
    assert "CONFIG.toml is missing" in failing("run")
    assert "holds no experiment" in failing("run", "--resume", "--out", tmp_path / "nothing")
    assert "exclude each other" in failing("run", quick, "--resume", "--overwrite")
    assert "no such folder" in failing("report", tmp_path / "nothing")
    assert "is a file" in failing("report", tmp_path / "file")
    assert "is a file" in failing("run", quick, "--out", tmp_path / "file")
    assert "cannot write" in failing("run", quick, "--out", tmp_path / "file" / "below")
    assert "--sed" in failing("demo", "--sed", "3")
    assert "--seed" in failing("demo", "--seed", "-1")
    assert "--seed" in failing("demo", "--seed", "x")
    assert "figurine" in failing("figurine")


@pytest.mark.parametrize(
    "error",
    [
        kg.MemoryLimitError("a kernel needs 2 GiB", needed=2**31, limit=1),
        MemoryError("unable to allocate"),
        kg.RunFolderError("tail.jsonl: cannot write: No space left on device"),
        kg.BackendError("no CUDA device"),
        FileNotFoundError(2, "No such file", "x"),
    ],
)
def test_errors_of_the_machine_are_one_line(quick, tmp_path, failing, monkeypatch, error):
    def full(*arguments, **options):
        raise error

    monkeypatch.setattr("kernelgrowth.experiments.run_experiment", full)
    assert str(error) in failing("run", quick, "--out", tmp_path / "run")


def test_an_error_of_its_own_is_one_line_with_status_1(quick, tmp_path, failing, monkeypatch):
    def broken(*arguments, **options):
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr("kernelgrowth.experiments.run_experiment", broken)
    said = failing("run", quick, "--out", tmp_path / "run", status=1)
    assert "ZeroDivisionError: division by zero" in said
    assert "--debug" in said


@pytest.mark.parametrize("place", [0, 1, 3])
def test_debug_shows_the_traceback_wherever_it_stands(tmp_path, place):
    arguments = ["run", str(tmp_path / "missing.toml"), "--quiet"]
    arguments.insert(place, "--debug")
    with pytest.raises(ValueError, match="cannot be read"):
        main(arguments)


def test_version_and_help(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("kernelgrowth ")
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    for command in ("demo", "run", "report", "info"):
        assert command in said


def test_info_says_what_is_there(capsys):
    assert main(["info"]) == 0
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    native = kg._backend.native.info()
    assert native["isa"] in rows["ISA"]
    assert rows["threads"] == str(native["threads"])
    assert {"kernelgrowth", "python", "numpy", "scipy", "CUDA", "GPU", "torch", "jax", "matplotlib"} <= set(rows)


def test_the_whole_demo(tmp_path):
    finished = in_subprocess("demo", "--out", tmp_path / "demo", "--seed", 1)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith("Silent alignment: ")
    assert finished.stderr == ""
    for name in ("report.html", "dynamics.png", "predictions.png", "spectrum.png", "summary.json"):
        assert (tmp_path / "demo" / name).stat().st_size > 500
    assert kg.load_run(tmp_path / "demo").status == "completed"


def interrupt(folder: Path, *arguments: object) -> tuple[int, str]:
    """Run a command, press Ctrl-C once it has recorded something, and return exit status and stderr."""
    command = [sys.executable, "-c", COMMAND, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        series, deadline = folder / "tail.jsonl", time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if series.exists() and series.read_bytes().count(b"\n") >= 6:
                break
            os.sched_yield()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    return process.returncode, errors


def test_ctrl_c_loses_nothing_and_resume_finishes(tmp_path):
    config, whole, folder = tmp_path / "long.toml", tmp_path / "whole", tmp_path / "run"
    config.write_text(QUICK.format(steps=8000, every=100))
    status, errors = interrupt(folder, "run", config, "--out", folder)
    assert status == 130
    assert errors.count("\n") == 1
    assert f"run --resume --out {folder}" in errors
    interrupted = kg.load_run(folder)
    assert interrupted.status == "interrupted"
    assert 5 <= len(interrupted.steps) < 81

    assert main(["report", str(folder)]) == 0
    assert main(["run", "--resume", "--out", str(folder), "--quiet"]) == 0
    assert main(["run", str(config), "--out", str(whole), "--quiet"]) == 0
    resumed, expected = kg.load_run(folder), kg.load_run(whole)
    assert resumed.status == "completed"
    assert list(resumed.steps) == list(expected.steps)
    assert list(resumed["loss"]) == list(expected["loss"])
    assert list(resumed["alignment"]) == list(expected["alignment"])


def test_ctrl_c_before_anything_is_recorded(quick, tmp_path, failing, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("kernelgrowth.experiments.run_experiment", interrupted)
    assert "interrupted" in failing("run", quick, "--out", tmp_path / "run", status=130)


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_the_command_says_how_to_get_it(missing):
    code = f"import sys; sys.modules[{missing!r}] = None; from kernelgrowth.cli import main; sys.exit(main())"
    finished = in_subprocess("info", code=code)
    assert finished.returncode == 2
    assert finished.stderr.count("\n") == 1
    assert missing in finished.stderr
    assert 'pip install "kernelgrowth[run]"' in finished.stderr


@pytest.mark.parametrize(("module", "word"), [("matplotlib", "Matplotlib"), ("jinja2", "Jinja")])
def test_without_what_the_report_needs_the_run_is_kept(quick, tmp_path, module, word):
    code = f"import sys; sys.modules[{module!r}] = None; from kernelgrowth.cli import main; sys.exit(main())"
    finished = in_subprocess("run", quick, "--out", tmp_path / "run", code=code)
    assert finished.returncode == 2
    assert finished.stderr.count("\n") == 1
    assert word in finished.stderr
    assert (tmp_path / "run" / "summary.json").exists()


def test_importing_the_command_imports_nothing_heavy():
    code = (
        "import sys, kernelgrowth.cli;"
        "print([m for m in ('numpy', 'scipy', 'typer', 'rich', 'matplotlib', 'sklearn', 'jinja2') if m in sys.modules])"
    )
    assert in_subprocess(code=code).stdout.strip() == "[]"


def test_progress_is_drawn_on_a_terminal_only(monkeypatch, capsys):
    from kernelgrowth.cli import _display
    from kernelgrowth.experiments import Progress

    with _display(False) as show:
        assert show is None
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "150")
    with _display(False) as show:
        show(Progress(step=30, steps=100, time=3.0, loss=0.25, kernel_norm=12.5, alignment=0.125))
        show(Progress(step=100, steps=100, time=10.0, loss=0.01, kernel_norm=50.0, alignment=0.5))
    said = capsys.readouterr().err
    for part in ("100/100", "1.00e-02", "5.00e+01", "0.500"):
        assert part in said
    with _display(True) as show:
        assert show is None
