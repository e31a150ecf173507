"""Runs that are interrupted or killed leave a checkpoint from which they continue bit for bit."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernelgrowth import nets
from kernelgrowth.training import Callback, Run, TrainingState, checkpoints, optim, train

rng = np.random.default_rng(0)
X = rng.normal(size=(13, 5))
Y = X @ rng.normal(size=5)
NET = nets.MLP([5, 7, 1], "tanh", bias=True, sigma=0.8)


def assert_same_run(actual: Run, wanted: Run) -> None:
    assert (actual.step, actual.time, actual.status) == (wanted.step, wanted.time, wanted.status)
    np.testing.assert_array_equal(actual.losses, wanted.losses)
    for mine, theirs in ((actual.params, wanted.params), (actual.optimizer_state, wanted.optimizer_state)):
        assert list(mine) == list(theirs)
        for name, array in mine.items():
            np.testing.assert_array_equal(array, theirs[name])


def saved_step(path: Path) -> int:
    with np.load(path, allow_pickle=False) as archive:
        return len(archive["losses"])


@pytest.fixture
def python_handler() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


class Interrupts(Callback):
    """Send SIGINT at a step or at the end, and remember the steps seen, over resumed runs too."""

    def __init__(self, at: int, times: int = 1, end: bool = False) -> None:
        self.steps: list[int] = []
        self.at, self.times, self.end = at, times, end
        self.status = ""

    def on_step(self, state: TrainingState) -> None:
        if state.step == self.at and not self.end:
            for _ in range(self.times):
                signal.raise_signal(signal.SIGINT)
        self.steps.append(state.step)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": list(self.steps)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps = list(state["steps"])

    def on_end(self, state: TrainingState) -> None:
        self.status = state.status
        if self.end:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("python_handler")
def test_one_interrupt_finishes_the_step_and_saves(tmp_path: Path) -> None:
    path, callback = tmp_path / "run.ckpt", Interrupts(at=4)
    with pytest.raises(KeyboardInterrupt):
        train(NET, NET.init(), (X, Y), steps=9, checkpoint=path, callbacks=[callback])
    assert callback.status == "interrupted"
    assert callback.steps == [0, 1, 2, 3, 4]
    assert saved_step(path) == 5
    again = Interrupts(at=-1)
    run = train(NET, NET.init(), (X, Y), steps=9, checkpoint=path, callbacks=[again], resume=True)
    assert again.steps == list(range(10))
    assert_same_run(run, train(NET, NET.init(), (X, Y), steps=9))


@pytest.mark.usefixtures("python_handler")
def test_a_second_interrupt_stops_at_once_and_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    path, callback = tmp_path / "run.ckpt", Interrupts(at=4, times=2)
    with pytest.raises(KeyboardInterrupt):
        train(NET, NET.init(), (X, Y), steps=9, checkpoint=path, checkpoint_every=3, callbacks=[callback])
    assert callback.steps == [0, 1, 2, 3]
    assert callback.status == "interrupted"
    assert saved_step(path) == 3
    run = train(
        NET,
        NET.init(),
        (X, Y),
        steps=9,
        checkpoint=path,
        checkpoint_every=3,
        callbacks=[Interrupts(at=-1)],
        resume=True,
    )
    assert_same_run(run, train(NET, NET.init(), (X, Y), steps=9))


@pytest.mark.usefixtures("python_handler")
def test_an_interrupt_while_computing_stops_at_once_and_saves_that_step(tmp_path: Path) -> None:
    class Slow(nets.MLP):
        calls = 0

        def vjp(self, params: Mapping[str, Any], x: Any, *, check_finite: bool = True) -> Any:
            Slow.calls += 1
            if Slow.calls == 4:
                signal.raise_signal(signal.SIGINT)
            return super().vjp(params, x, check_finite=check_finite)

    net = Slow([5, 7, 1], "tanh", bias=True, sigma=0.8)
    path, callback = tmp_path / "run.ckpt", Interrupts(at=-1)
    with pytest.raises(KeyboardInterrupt):
        train(net, NET.init(), (X, Y), steps=9, checkpoint=path, callbacks=[callback])
    assert Slow.calls == 4
    assert callback.steps == [0, 1, 2]
    assert saved_step(path) == 3
    run = train(NET, NET.init(), (X, Y), steps=9, checkpoint=path, resume=True, callbacks=[Interrupts(at=-1)])
    assert_same_run(run, train(NET, NET.init(), (X, Y), steps=9))


@pytest.mark.usefixtures("python_handler")
@pytest.mark.parametrize("end", [False, True])
def test_an_interrupt_too_late_to_stop_training_is_still_raised(tmp_path: Path, end: bool) -> None:
    path, callback = tmp_path / "run.ckpt", Interrupts(at=9, end=end)
    with pytest.raises(KeyboardInterrupt):
        train(NET, NET.init(), (X, Y), steps=9, checkpoint=path, callbacks=[callback])
    assert callback.status == "completed"
    assert saved_step(path) == 9


@pytest.mark.usefixtures("python_handler")
def test_an_interrupt_that_cannot_be_saved_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class FillsDisk(Interrupts):
        def on_step(self, state: TrainingState) -> None:
            super().on_step(state)
            if state.step == self.at:
                monkeypatch.setattr(checkpoints, "atomic_save_arrays", _no_space)

    with pytest.raises(KeyboardInterrupt) as caught:
        train(NET, NET.init(), (X, Y), steps=9, checkpoint=tmp_path / "run.ckpt", callbacks=[FillsDisk(at=4)])
    assert "no checkpoint of step 5 was written" in caught.value.__notes__[0]


def _no_space(target: Path, arrays: Mapping[str, Any]) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_handler_of_the_users_own_is_left_alone() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        run = train(NET, NET.init(), (X, Y), steps=9, callbacks=[Interrupts(at=4)])
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [signal.SIGINT]
    assert run.status == "completed"


CHILD = """
import signal, sys
import numpy as np
from kernelgrowth import nets
from kernelgrowth.training import Callback, optim, train

signal.signal(signal.SIGINT, signal.default_int_handler)

class Report(Callback):
    def on_step(self, state):
        print(state.step, flush=True)
    def on_end(self, state):
        print(state.status, flush=True)

with np.load(sys.argv[1]) as data:
    net = nets.MLP([5, 7, 1], "tanh", bias=True, sigma=0.8)
    train(net, net.init(1), (data["x"], data["y"]), optimizer=optim.Adam(1e-4), steps=10**9, batch_size=5,
          checkpoint=sys.argv[2], checkpoint_every=7, callbacks=[Report()], resume=True)
"""


@contextlib.contextmanager
def child_process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    np.savez(folder / "data.npz", x=X, y=Y)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", CHILD, str(folder / "data.npz"), str(folder / "run.ckpt")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        watchdog = threading.Timer(60, process.kill)
        watchdog.start()
        try:
            yield process
        finally:
            watchdog.cancel()
            process.kill()


def read_lines(process: subprocess.Popen[str], count: int) -> list[str]:
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(count)]
    assert all(lines), process.stderr and process.stderr.read()
    return lines


def assert_continues(path: Path, step: int) -> None:
    arguments: dict[str, Any] = {"optimizer": optim.Adam(1e-4), "steps": step + 10, "batch_size": 5}
    run = train(NET, NET.init(1), (X, Y), checkpoint=path, resume=True, **arguments)
    assert_same_run(run, train(NET, NET.init(1), (X, Y), **arguments))


def test_a_run_killed_again_and_again_continues_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    reached = 0
    for lines in np.random.default_rng().integers(1, 60, size=3):
        with child_process(tmp_path) as process:
            first = int(read_lines(process, int(lines))[0])
            process.kill()
        assert first == reached
        reached = saved_step(path)
        assert reached % 7 == 0
    assert_continues(path, reached)


def test_ctrl_c_leaves_a_checkpoint_of_the_step_it_came_in(tmp_path: Path) -> None:
    with child_process(tmp_path) as process:
        read_lines(process, 20)
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        assert process.stderr is not None
        # Not communicate(): it would miss what readline has buffered.
        rest, errors = process.stdout.read(), process.stderr.read()
        process.wait()
    *steps, status = rest.split()
    assert status == "interrupted"
    assert process.returncode == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")
    step = saved_step(tmp_path / "run.ckpt")
    assert step == (int(steps[-1]) if steps else 19) + 1
    assert_continues(tmp_path / "run.ckpt", step)
