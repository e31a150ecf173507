"""A run that is killed at any moment: readable afterwards, and resumed as if nothing had happened."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kernelgrowth._backend.files as files
from kernelgrowth import nets
from kernelgrowth._backend.errors import RunFolderError
from kernelgrowth.tracking import History, NTKTracker, load_run, run_group
from kernelgrowth.training import optim, train

RNG = np.random.default_rng(5)
X = RNG.standard_normal((10, 4))
Y = np.sign(X @ RNG.standard_normal(4))
X_TEST = RNG.standard_normal((3, 4))
NET = nets.MLP(widths=[4, 6, 1], activation="relu", bias=True)
PARAMS = NET.init(seed=2)
KERNEL_BYTES = 8 * 10 * 11 // 2
STEPS = 11


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written survives the end of the process without it; only a power cut would not spare the rest."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(autouse=True)
def short_tails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what the tail holds be moved to the arrays several times in a run."""
    monkeypatch.setattr(run_group, "_ROWS", {True: 2, False: 2})


def make_tracker(out: Path | None, **changes: Any) -> NTKTracker:
    # Room for three kernels only, so that they are dropped again and again.
    options: dict[str, Any] = {"every": 2, "top_k": 3, "x_test": X_TEST, "kernel_budget": 3 * KERNEL_BYTES}
    return NTKTracker(X, Y, out=out, **(options | changes))


def go(tracker: NTKTracker, checkpoint: Path | None, *, steps: int = STEPS, every: int = 3, **more: Any) -> Any:
    return train(
        NET,
        PARAMS,
        (X, Y),
        steps=steps,
        optimizer=optim.Momentum(lr=0.1),
        batch_size=7,
        callbacks=[tracker],
        checkpoint=checkpoint,
        checkpoint_every=every,
        resume=checkpoint is not None,
        **more,
    )


def uninterrupted(**changes: Any) -> History:
    tracker = make_tracker(None, **changes)
    go(tracker, None)
    return tracker.history


REFERENCE = uninterrupted()


def assert_same_run(got: History, expected: History = REFERENCE) -> None:
    assert got.status == expected.status == "completed"
    assert list(got) == list(expected)
    for name in expected:
        if name != "seconds":
            np.testing.assert_array_equal(got[name], expected[name], err_msg=name)
    assert got.kernel_steps == expected.kernel_steps
    for step in expected.kernel_steps:
        np.testing.assert_array_equal(got.kernel(step), expected.kernel(step))
    for step in (expected.steps[0], expected.steps[-1]):
        for read in (History.predictions, History.test_predictions, History.test_kernel):
            np.testing.assert_array_equal(read(got, step), read(expected, step))


def assert_is_beginning(got: History, expected: History = REFERENCE) -> None:
    """Check that what a killed run left is what an uninterrupted one had recorded by then."""
    count = len(got.steps)
    assert got.steps.tolist() == expected.steps[:count].tolist()
    for name in set(got) - {"seconds", "distance_to_final"}:
        np.testing.assert_array_equal(got[name], expected[name][:count], err_msg=name)
    if count:
        assert {got.steps[0], got.steps[-1]} <= set(got.kernel_steps)
        assert np.isfinite(got["distance_to_final"][[0, -1]]).all()
    assert set(got.kernel_steps) <= set(got.steps)
    for step in set(got.kernel_steps) & set(expected.kernel_steps):
        np.testing.assert_array_equal(got.kernel(step), expected.kernel(step))


class StopAt:
    """A callback that ends training at a step as an error or an interrupt would; before or after the tracker's turn."""

    def __init__(self, step: int, error: BaseException) -> None:
        self.step, self.error = step, error

    def on_start(self, state: Any) -> None: ...

    def on_step(self, state: Any) -> None:
        if state.step == self.step:
            raise self.error

    def on_end(self, state: Any) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None: ...


class Killed(BaseException):
    """Stands for the end of the process: from here on nothing reaches the disk."""


class Machine:
    """Counts what is done to files, and at one of these deeds lets the process die, before it or half-way through."""

    def __init__(self, patch: pytest.MonkeyPatch, dies_at: int, half: bool) -> None:
        self.deeds = 0
        self.dies_at = dies_at
        self.half = half
        deeds = ((os, "write"), (os, "replace"), (os, "truncate"), (os, "fsync"), (Path, "unlink"), (Path, "mkdir"))
        for owner, name in deeds:
            patch.setattr(owner, name, self._watched(name, getattr(owner, name)))
        patch.setattr(files, "open", self._open, raising=False)

    def _count(self) -> bool:
        """Count a deed; whether it is to be done by half."""
        self.deeds += 1
        if self.dies_at < 0 or self.deeds < self.dies_at:
            return False
        if self.deeds == self.dies_at and self.half:
            return True
        raise Killed

    def _watched(self, name: str, function: Any) -> Any:
        def deed(*args: Any, **kwargs: Any) -> Any:
            if self._count():
                if name == "write":
                    function(args[0], args[1][: len(args[1]) // 2])
                elif name in ("replace", "truncate", "unlink", "mkdir"):
                    function(*args, **kwargs)
                raise Killed
            return function(*args, **kwargs)

        return deed

    def _open(self, path: Any, mode: str) -> Any:
        if self._count():
            with open(path, mode):
                raise Killed
        return open(path, mode)


def until_death(tracker: NTKTracker, checkpoint: Path) -> None:
    """Train until the machine's process dies, its writing thread included, or to the end."""
    try:
        go(tracker, checkpoint)
    finally:
        if tracker._recorder is not None:
            with contextlib.suppress(BaseException):
                tracker._recorder.store.sync()


def die_and_resume(folder: Path, dies_at: int, half: bool) -> int:
    """Run with a death at one deed, check what is left, resume to the end; returns the deeds of the first process."""
    out, checkpoint = folder / "run", folder / "run" / "checkpoint.npz"
    with pytest.MonkeyPatch.context() as patch:
        machine = Machine(patch, dies_at, half)
        try:
            until_death(make_tracker(out), checkpoint)
        except Killed:
            assert dies_at > 0
    deeds = machine.deeds
    print(f"died at {dies_at} of {deeds}, half: {half}")
    if (out / "zarr.json").exists():
        assert_is_beginning(load_run(out))
    go(make_tracker(out), checkpoint)
    assert_same_run(load_run(out))
    assert not list(out.rglob("*.tmp"))
    assert len(list((out / "kernels" / "10").glob("c.*"))) == len(REFERENCE.kernel_steps)
    return deeds


def test_a_death_at_any_deed_on_files_is_survived(tmp_path: Path) -> None:
    deeds = die_and_resume(tmp_path / "none", -1, half=False)
    assert deeds > 60
    # A different choice every time; all of them take minutes.
    for dies_at in np.random.default_rng().permutation(deeds)[:60]:
        half = bool(dies_at % 3)
        die_and_resume(tmp_path / f"{dies_at}", 1 + int(dies_at), half)


@settings(deadline=None, max_examples=15)
@given(st.lists(st.tuples(st.integers(1, 300), st.booleans()), min_size=2, max_size=4))
def test_several_deaths_are_survived(tmp_path_factory: pytest.TempPathFactory, deaths: list[tuple[int, bool]]) -> None:
    out = tmp_path_factory.mktemp("killed") / "run"
    for dies_at, half in deaths:
        with pytest.MonkeyPatch.context() as patch:
            Machine(patch, dies_at, half)
            with contextlib.suppress(Killed):
                until_death(make_tracker(out), out / "checkpoint.npz")
    go(make_tracker(out), out / "checkpoint.npz")
    assert_same_run(load_run(out))


class Disk:
    """Knows what of each file has reached the disk; a power cut leaves that, and chance beginnings of the rest."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._safe: dict[int, int] = {}
        patch.setattr(os, "fsync", self._fsync)

    def _fsync(self, descriptor: int) -> None:
        about = os.fstat(descriptor)
        self._safe[about.st_ino] = about.st_size

    def lose_power(self, folder: Path, rng: np.random.Generator) -> None:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                about = path.stat()
                safe = min(self._safe.get(about.st_ino, 0), about.st_size)
                os.truncate(path, rng.integers(safe, about.st_size, endpoint=True))


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 300), st.booleans(), st.integers(0, 2**32))
def test_a_power_cut_at_any_deed_is_survived(
    tmp_path_factory: pytest.TempPathFactory, dies_at: int, half: bool, seed: int
) -> None:
    out = tmp_path_factory.mktemp("dark") / "run"
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch)
        Machine(patch, dies_at, half)
        with contextlib.suppress(Killed):
            until_death(make_tracker(out), out / "checkpoint.npz")
    if out.exists():
        disk.lose_power(out, np.random.default_rng(seed))
    if (out / "zarr.json").exists():
        history = load_run(out)
        assert history.steps.tolist() == REFERENCE.steps[: len(history.steps)].tolist()
    go(make_tracker(out), out / "checkpoint.npz")
    assert_same_run(load_run(out))


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_kill_and_resume as here
out = Path(sys.argv[2])
tracker = here.make_tracker(out, every=3)
print("started", flush=True)
here.go(tracker, out / "checkpoint.npz", steps=400, every=7)
"""


def test_sigkill_at_random_moments(tmp_path: Path) -> None:
    whole = make_tracker(None, every=3)
    go(whole, None, steps=400)
    expected, out = whole.history, tmp_path / "run"
    rng = np.random.default_rng()
    kills = 0
    for delay in [0.0, *rng.uniform(0.0, 0.4, size=3), None]:
        command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(out)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            started = process.stdout.readline()
            try:
                _, errors = process.communicate(timeout=delay)
            except subprocess.TimeoutExpired:
                process.kill()
                _, errors = process.communicate()
                kills += 1
            else:
                assert process.returncode == 0, started + errors
        if (out / "zarr.json").exists():
            assert_is_beginning(load_run(out), expected)
    assert_same_run(load_run(out), expected)
    assert kills


@pytest.mark.parametrize("on_disk", [True, False])
@pytest.mark.parametrize("every", [1, 2, 5, 100])
def test_a_run_resumed_from_any_checkpoint_ends_the_same(tmp_path: Path, on_disk: bool, every: int) -> None:
    for stop in range(STEPS + 1):
        out = tmp_path / f"{stop}" if on_disk else None
        checkpoint = tmp_path / f"{stop}.npz"
        for order in ("before", "after"):
            # The step at which training fails may or may not have been tracked already.
            stopper, tracker = StopAt(stop, RuntimeError("stopped")), make_tracker(out)
            callbacks = [stopper, tracker] if order == "before" else [tracker, stopper]
            with pytest.raises(RuntimeError, match="stopped"):
                train(
                    NET,
                    PARAMS,
                    (X, Y),
                    steps=STEPS,
                    optimizer=optim.Momentum(lr=0.1),
                    batch_size=7,
                    callbacks=callbacks,
                    checkpoint=checkpoint,
                    checkpoint_every=every,
                    resume=True,
                )
            assert tracker.history.status == "failed"
            assert_is_beginning(tracker.history)
        tracker = make_tracker(out)
        go(tracker, checkpoint, every=every)
        assert_same_run(tracker.history)
        if out is not None:
            assert_same_run(load_run(out))


@pytest.mark.parametrize("on_disk", [True, False])
@pytest.mark.parametrize("metrics", [["alignment"], ["velocity", "eigenvalues"], ["rotation", "layers"], []])
def test_resuming_needs_only_the_metrics_asked_for(tmp_path: Path, on_disk: bool, metrics: list[str]) -> None:
    expected = uninterrupted(metrics=metrics)
    for step in (0, 4, 5, STEPS):
        out = tmp_path / f"{step}" if on_disk else None
        checkpoint = tmp_path / f"{step}.npz"
        with pytest.raises(RuntimeError, match="stopped"):
            go_with(make_tracker(out, metrics=metrics), checkpoint, StopAt(step, RuntimeError("stopped")))
        tracker = make_tracker(out, metrics=metrics)
        go(tracker, checkpoint)
        assert_same_run(tracker.history, expected)


def go_with(tracker: NTKTracker, checkpoint: Path, stopper: StopAt, **more: Any) -> Any:
    return train(
        NET,
        PARAMS,
        (X, Y),
        steps=STEPS,
        optimizer=optim.Momentum(lr=0.1),
        batch_size=7,
        callbacks=[tracker, stopper],
        checkpoint=checkpoint,
        checkpoint_every=3,
        **more,
    )


class InterruptedState:
    """A trainer's state when Ctrl-C was taken at the beginning of a step."""

    def __init__(self, step: int, params: Any, status: str = "running") -> None:
        self.net, self.params, self.step, self.status = NET, params, step, status
        self.time, self.loss, self.seconds, self.resume, self.is_last = 0.1 * step, 0.5, 1.0, False, False
        self.loss_function = lambda f, y: 0.25


@pytest.mark.parametrize("on_disk", [True, False])
def test_ctrl_c_keeps_the_kernel_that_was_reached_and_resuming_forgets_it(tmp_path: Path, on_disk: bool) -> None:
    out = tmp_path / "run" if on_disk else None
    tracker = make_tracker(out)
    tracker.on_start(InterruptedState(0, PARAMS))
    for step in range(4):
        tracker.on_step(InterruptedState(step, PARAMS))
    saved = tracker.state_dict()
    tracker.on_end(InterruptedState(4, PARAMS, "interrupted"))
    history = tracker.history
    assert history.status == "interrupted"
    assert history.steps.tolist() == [0, 2, 4]
    assert np.isnan(history["train_loss"]).tolist() == [False, False, True]
    assert history.test_kernel(4).shape == (3, 10)
    resumed = make_tracker(out)
    resumed.load_state_dict(saved)
    state = InterruptedState(4, PARAMS)
    state.resume = True
    resumed.on_start(state)
    assert resumed.history.steps.tolist() == [0, 2]
    assert resumed.history.status == "running"
    with pytest.raises(KeyError):
        resumed.history.test_kernel(4)
    resumed.on_step(state)
    assert resumed.history["train_loss"].tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_checkpoint_taken_within_a_step_resumes_at_that_step_too(tmp_path: Path, on_disk: bool) -> None:
    params = [{name: value * (1 + step) for name, value in PARAMS.items()} for step in range(7)]
    whole = make_tracker(None)
    whole.on_start(InterruptedState(0, params[0]))
    for step in range(7):
        whole.on_step(InterruptedState(step, params[step]))
    for taken, at in ((4, 4), (4, 5), (5, 5), (5, 6)):
        out = tmp_path / f"{taken}-{at}" if on_disk else None
        first, second = make_tracker(out), make_tracker(out)
        first.on_start(InterruptedState(0, params[0]))
        for step in range(taken + 1):
            first.on_step(InterruptedState(step, params[step]))
        second.load_state_dict(first.state_dict())
        state = InterruptedState(at, params[at])
        state.resume = True
        second.on_start(state)
        for step in range(at, 7):
            second.on_step(InterruptedState(step, params[step]))
        for name in set(whole.history) - {"seconds"}:
            np.testing.assert_array_equal(second.history[name], whole.history[name], err_msg=name)


def test_an_interrupt_within_a_step_records_no_doubtful_step(tmp_path: Path) -> None:
    tracker = make_tracker(tmp_path)
    tracker.on_start(InterruptedState(0, PARAMS))
    tracker.on_step(InterruptedState(0, PARAMS))
    tracker.on_step(InterruptedState(1, PARAMS))
    tracker.on_end(InterruptedState(1, PARAMS, "interrupted"))
    history = load_run(tmp_path)
    assert history.steps.tolist() == [0]
    assert history.test_kernel(0).shape == (3, 10)
    assert history.status == "interrupted"


def test_an_interrupt_between_a_line_and_its_noting_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = make_tracker(tmp_path / "run")
    write = os.write

    def interrupt(descriptor: int, data: bytes) -> int:
        written = write(descriptor, data)
        if b'"step": 4' in data:
            raise KeyboardInterrupt
        return written

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", interrupt)
        with pytest.raises(KeyboardInterrupt):
            go(tracker, tmp_path / "checkpoint.npz")
    recorded = load_run(tmp_path / "run").steps.tolist()
    assert recorded == tracker.history.steps.tolist()
    assert recorded[:3] == [0, 2, 4]
    resumed = make_tracker(tmp_path / "run")
    go(resumed, tmp_path / "checkpoint.npz")
    assert_same_run(load_run(tmp_path / "run"))


def test_a_longer_training_continues_a_completed_one(tmp_path: Path) -> None:
    out, checkpoint = tmp_path / "run", tmp_path / "run" / "checkpoint.npz"
    go(make_tracker(out), checkpoint, steps=7)
    assert load_run(out).steps.tolist() == [0, 2, 4, 6, 7]
    go(make_tracker(out), checkpoint)
    assert_same_run(load_run(out))


def test_what_a_checkpoint_relies_on_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    tracker = make_tracker(tmp_path)
    tracker.on_start(InterruptedState(0, PARAMS))
    tracker.on_step(InterruptedState(0, PARAMS))
    assert not any(name.endswith("tail.jsonl") for name in synced)
    tracker.state_dict()
    assert synced[-1] == str(tmp_path / "tail.jsonl")
    assert str(tmp_path / "kernels" / "10" / "c.0.0") in synced


def test_checkpoints_stay_small_with_a_run_folder(tmp_path: Path) -> None:
    out = tmp_path / "run"
    go(make_tracker(out, every=1, kernel_budget=2**20), tmp_path / "with.npz", every=STEPS)
    go(make_tracker(None, every=1, kernel_budget=2**20), tmp_path / "without.npz", every=STEPS)
    with np.load(tmp_path / "with.npz") as on_disk, np.load(tmp_path / "without.npz") as in_memory:
        names = [name for name in on_disk.files if name.startswith("callbacks/")]
        assert sum(name.endswith("/kernel") for name in names) <= 2
        assert sum("/memory/kernel/" in name for name in in_memory.files) == STEPS
    go(make_tracker(tmp_path / "lean", every=1, metrics=["alignment", "rotation"]), tmp_path / "lean.npz", every=STEPS)
    with np.load(tmp_path / "lean.npz") as lean:
        sizes = {name: lean[name].size for name in lean.files if name.startswith("callbacks/")}
        assert sum(sizes.values()) == 0


# --- what is refused when resuming ---


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stopped_run(tmp_path: Path) -> tuple[Path, Path]:
    out, checkpoint = tmp_path / "run", tmp_path / "checkpoint.npz"
    with pytest.raises(RuntimeError, match="stopped"):
        go_with(make_tracker(out), checkpoint, StopAt(7, RuntimeError("stopped")))
    return out, checkpoint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"every": 3}, "every was 2 and is now 3"),
        ({"top_k": 4}, "top_k was 3 and is now 4"),
        ({"metrics": ["trace"]}, "metrics was"),
        ({"kernel_budget": 1}, "kernel_budget was"),
        ({"x_test": X_TEST + 1}, "x_probe, y_probe or x_test have changed"),
        ({"x_test": None}, "x_probe, y_probe or x_test have changed"),
    ],
)
def test_a_resumed_run_has_to_be_the_same_run(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    out, checkpoint = stopped_run(tmp_path)
    before = contents(out)
    with pytest.raises(RunFolderError, match=message):
        go(make_tracker(out, **change), checkpoint)
    assert contents(out) == before
    go(make_tracker(out, max_overhead=1e9), checkpoint)
    assert_same_run(load_run(out))


def with_rows(meta: dict[str, Any], rows: int) -> dict[str, Any]:
    return meta | {"attributes": meta["attributes"] | {"rows": rows}}


def test_a_checkpoint_and_a_folder_have_to_belong_together(tmp_path: Path) -> None:
    out, checkpoint = stopped_run(tmp_path)
    with pytest.raises(RunFolderError, match="elsewhere: holds no run, but the checkpoint continues one of 3"):
        go(make_tracker(tmp_path / "elsewhere"), checkpoint)
    with pytest.raises(ValueError, match="out must be the run folder of the checkpoint's 3 tracked steps"):
        go(make_tracker(None), checkpoint)
    group = (out / "zarr.json").read_text()
    tail = (out / "tail.jsonl").read_text()
    (out / "zarr.json").write_text(json.dumps(with_rows(json.loads(group), 1)))
    (out / "tail.jsonl").write_text('{"rows": 1}\n')
    with pytest.raises(RunFolderError, match="1 tracked steps before step 6, but the checkpoint continues one with 3"):
        go(make_tracker(out), checkpoint)
    (out / "zarr.json").write_text(group)
    (out / "tail.jsonl").write_text(tail)
    (out / "kernels" / "10" / "c.0.0").rename(tmp_path / "moved")
    with pytest.raises(RunFolderError, match="kernel of its first tracked step, 0, is missing"):
        go(make_tracker(out), checkpoint)
    (tmp_path / "moved").rename(out / "kernels" / "10" / "c.0.0")
    go(make_tracker(out), checkpoint)
    assert_same_run(load_run(out))


def test_a_completed_run_is_not_started_over_for_want_of_a_checkpoint(tmp_path: Path) -> None:
    out, checkpoint = tmp_path / "run", tmp_path / "checkpoint.npz"
    go(make_tracker(out), checkpoint)
    checkpoint.unlink()
    before = contents(out)
    with pytest.raises(RunFolderError, match="holds a completed run, and there is no checkpoint"):
        go(make_tracker(out), checkpoint)
    assert contents(out) == before


def test_a_disk_that_is_full_when_resuming_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, checkpoint = stopped_run(tmp_path)

    def no_space(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "open", no_space, raising=False)
        with pytest.raises(RunFolderError, match=r"cannot write: No space left on device"):
            go(make_tracker(out), checkpoint)
    assert_is_beginning(load_run(out))
    go(make_tracker(out), checkpoint)
    assert_same_run(load_run(out))
