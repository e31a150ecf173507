"""Checkpoints: resumed runs equal uninterrupted ones bit for bit, wherever and however they were stopped."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernelgrowth import nets
from kernelgrowth._backend.errors import DivergedError, RunFolderError
from kernelgrowth.training import Callback, Run, TrainingState, checkpoints, optim, train

rng = np.random.default_rng(0)
X = rng.normal(size=(13, 5))
Y = X @ rng.normal(size=5)
NET = nets.MLP([5, 7, 1], "tanh", bias=True, sigma=0.8)
OPTIMIZERS = [optim.GD(0.05), optim.Momentum(0.02, nesterov=True), optim.Adam(0.02), optim.RMSprop(0.01)]


class Smoother(Callback):
    """A callback with a state: a running mean of the parameters, a count, and the steps it saw."""

    def __init__(self) -> None:
        self.mean: Any = np.zeros((7, 5))
        self.steps: list[int] = []
        self.label = "none"
        self.resumed = False

    def on_start(self, state: TrainingState) -> None:
        self.resumed = state.resume

    def on_step(self, state: TrainingState) -> None:
        self.mean = 0.9 * self.mean + 0.1 * state.params["layer1.weight"]
        self.steps.append(state.step)
        self.label = f"step {state.step}"

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "steps": list(self.steps), "label": self.label, "count": np.int64(len(self.steps))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        assert int(state["count"]) == len(state["steps"])
        self.mean, self.steps, self.label = state["mean"], list(state["steps"]), state["label"]


class CopyCheckpoints(Callback):
    """Keep the checkpoint that the file holds at each step."""

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint

    def copy(self, step: int) -> Path:
        return self.checkpoint.with_suffix(f".{step}")

    def on_step(self, state: TrainingState) -> None:
        shutil.copy(self.checkpoint, self.copy(state.step))


def assert_same_run(actual: Run, wanted: Run) -> None:
    assert (actual.step, actual.time, actual.status) == (wanted.step, wanted.time, wanted.status)
    np.testing.assert_array_equal(actual.losses, wanted.losses)
    for mine, theirs in ((actual.params, wanted.params), (actual.optimizer_state, wanted.optimizer_state)):
        assert list(mine) == list(theirs)
        for name in mine:
            assert mine[name].dtype == theirs[name].dtype
            np.testing.assert_array_equal(mine[name], theirs[name])


def saved_step(path: Path) -> int:
    with np.load(path, allow_pickle=False) as archive:
        return len(archive["losses"])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("batch_size", [None, 5])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_resuming_from_every_step_continues_bit_for_bit(
    tmp_path: Path, optimizer: optim.Optimizer, batch_size: int | None, dtype: Any
) -> None:
    steps = 8
    arguments: dict[str, Any] = {
        "optimizer": optimizer, "steps": steps, "batch_size": batch_size, "seed": 2, "layer_lr": {"layer2": 0.5},
    }  # fmt: skip
    params, data = NET.init(1, dtype), (X.astype(dtype), Y.astype(dtype))
    plain = train(NET, params, data, **arguments)
    path, smoother = tmp_path / "new folder" / "run.ckpt", Smoother()
    copies = CopyCheckpoints(path)
    wanted = train(NET, params, data, callbacks=[smoother, copies], checkpoint=path, checkpoint_every=1, **arguments)
    assert_same_run(wanted, plain)
    for step in range(steps + 1):
        again, resumed_path = Smoother(), tmp_path / f"resumed.{step}"
        shutil.copy(copies.copy(step), resumed_path)
        assert saved_step(resumed_path) == step
        run = train(
            NET, params, data, callbacks=[again], checkpoint=resumed_path, checkpoint_every=3, resume=True, **arguments
        )
        assert_same_run(run, wanted)
        assert again.resumed
        assert again.steps == smoother.steps == list(range(steps + 1))
        assert again.label == smoother.label
        np.testing.assert_array_equal(again.mean, smoother.mean)
        assert saved_step(resumed_path) == steps


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_resuming_larger_nets_continues_bit_for_bit(tmp_path: Path, dtype: Any) -> None:
    """Widths past the blocking of matrix products, where the bits could depend on how an array lies in memory."""
    draws = np.random.default_rng(1)
    x = draws.normal(size=(97, 51)).astype(dtype)
    y = draws.integers(0, 3, size=97)
    net = nets.MLP([51, 103, 65, 3], "erf", "mup", bias="hidden")
    params, path = net.init(0, dtype), tmp_path / "run.ckpt"
    arguments: dict[str, Any] = {"loss": "cross_entropy", "optimizer": optim.Adam(1e-3), "batch_size": 33}
    wanted = train(net, params, (x, y), steps=10, **arguments)
    for steps in (3, 4, 10):
        run = train(net, params, (x, y), steps=steps, checkpoint=path, resume=True, **arguments)
        np.testing.assert_array_equal(run.losses, wanted.losses[: steps + 1])
    assert_same_run(run, wanted)


def test_resume_without_a_checkpoint_starts_from_the_beginning(tmp_path: Path) -> None:
    smoother = Smoother()
    path = tmp_path / "run.ckpt"
    run = train(NET, NET.init(), (X, Y), steps=5, checkpoint=path, resume=True, callbacks=[smoother])
    assert smoother.steps == [0, 1, 2, 3, 4, 5]
    assert_same_run(run, train(NET, NET.init(), (X, Y), steps=5))
    assert saved_step(path) == 5


def test_seconds_add_up_over_resumed_runs(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    first = train(NET, NET.init(), (X, Y), steps=5, checkpoint=path)
    second = train(NET, NET.init(), (X, Y), steps=6, checkpoint=path, resume=True)
    assert second.seconds > 0
    assert first.seconds > 0


def test_an_existing_checkpoint_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    train(NET, NET.init(), (X, Y), steps=3, checkpoint=path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"run\.ckpt exists already: pass resume=True"):
        train(NET, NET.init(), (X, Y), steps=3, checkpoint=path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"net": nets.MLP([5, 7, 1], "erf", bias=True, sigma=0.8)}, "net (there"),
        ({"params": NET.init(8)}, "params"),
        ({"data": (X + 1e-12, Y)}, "data"),
        ({"data": (X, -Y)}, "data"),
        ({"data": (X[:-1], Y[:-1])}, "data"),
        (
            {"optimizer": optim.GD(0.06)},
            "optimizer (there {'name': 'gd', 'lr': 0.05}, here {'name': 'gd', 'lr': 0.06})",
        ),
        ({"optimizer": optim.Adam(0.05)}, "optimizer (there"),
        ({"layer_lr": {"layer1": 2.0}}, "layer_lr (there"),
        ({"batch_size": 6}, "batch_size (there 5, here 6)"),
        ({"batch_size": None}, "batch_size (there 5, here None)"),
        ({"seed": 1}, "seed (there 0, here 1)"),
        ({"loss": "logistic", "data": (X, np.sign(Y))}, "data, loss (there 'mse', here 'logistic')"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_by_name(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    arguments = {"net": NET, "params": NET.init(), "data": (X, Y), "optimizer": optim.GD(0.05), "batch_size": 5}
    path = tmp_path / "run.ckpt"

    def start(**given: Any) -> Run:
        return train(given.pop("net"), given.pop("params"), given.pop("data"), steps=4, checkpoint=path, **given)

    start(**arguments)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="belongs to another run, it differs in") as caught:
        start(**{**arguments, **change}, resume=True)
    assert f"differs in: {named}" in str(caught.value)
    assert path.read_bytes() == before
    start(**{**arguments, "layer_lr": {"layer1": 1.0, "layer2": 1.0}}, resume=True)


def test_the_order_of_the_parameters_does_not_matter(tmp_path: Path) -> None:
    path, params = tmp_path / "run.ckpt", NET.init()
    train(NET, params, (X, Y), steps=3, checkpoint=path)
    backwards = {name: params[name] for name in reversed(params)}
    run = train(NET, backwards, (X, Y), steps=6, checkpoint=path, resume=True)
    np.testing.assert_array_equal(run.losses, train(NET, params, (X, Y), steps=6).losses)


def test_fewer_steps_than_done_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    train(NET, NET.init(), (X, Y), steps=4, checkpoint=path)
    with pytest.raises(ValueError, match="steps must be at least the 4 done"):
        train(NET, NET.init(), (X, Y), steps=3, checkpoint=path, resume=True)


def test_a_callback_whose_state_is_saved_must_be_there(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    train(NET, NET.init(), (X, Y), steps=2, checkpoint=path, callbacks=[Smoother()])
    with pytest.raises(ValueError, match="callbacks must include Smoother"):
        train(NET, NET.init(), (X, Y), steps=4, checkpoint=path, resume=True)
    late = Smoother()
    train(NET, NET.init(), (X, Y), steps=4, checkpoint=path, resume=True, callbacks=[Callback(), Smoother(), late])
    assert late.steps == [2, 3, 4]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({1, 2}, "state_dict of callback Odd-1: 'value' must be an array or a JSON value"),
        (np.array([None, "a"]), "state_dict of callback Odd-1: 'value' must be a numeric or string array"),
    ],
)
def test_a_callback_state_that_cannot_be_saved_is_named(tmp_path: Path, value: Any, message: str) -> None:
    class Odd(Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"value": value}

    with pytest.raises(TypeError, match=message):
        train(NET, NET.init(), (X, Y), steps=2, checkpoint=tmp_path / "run.ckpt", callbacks=[Odd()])
    assert list(tmp_path.iterdir()) == []


class Hostile:
    def __reduce__(self) -> Any:
        return (os.mkdir, ("pickle-was-run",))


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _text(path: Path) -> None:
    path.write_text("not a checkpoint")


def _single_array(path: Path) -> None:
    with path.open("wb") as stream:
        np.save(stream, np.zeros(3))


def _other_archive(path: Path) -> None:
    with path.open("wb") as stream:
        np.savez(stream, losses=np.zeros(3))


def _pickle(path: Path) -> None:
    with path.open("wb") as stream:
        np.savez(stream, header=np.array([Hostile()], dtype=object))


def _other_version(path: Path) -> None:
    with path.open("wb") as stream:
        header = b'{"format": "kernelgrowth checkpoint", "format_version": 99}'
        np.savez(stream, header=np.frombuffer(header, dtype=np.uint8))


@pytest.mark.parametrize("damage", [_truncated, _empty, _text, _single_array, _other_archive, _pickle, _other_version])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, damage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run.ckpt"
    train(NET, NET.init(), (X, Y), steps=2, checkpoint=path)
    damage(path)
    before = path.read_bytes()
    wanted = "has format .* version 99, wanted" if damage is _other_version else r"run\.ckpt cannot be read"
    with pytest.raises(RunFolderError, match=wanted):
        train(NET, NET.init(), (X, Y), steps=2, checkpoint=path, resume=True)
    assert path.read_bytes() == before
    assert not (tmp_path / "pickle-was-run").exists()


def test_a_folder_in_the_way_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="cannot be read"):
        train(NET, NET.init(), (X, Y), steps=2, checkpoint=tmp_path, resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"run\.ckpt cannot be written"):
        train(NET, NET.init(), (X, Y), steps=2, checkpoint=tmp_path / "file" / "run.ckpt")


def test_a_full_disk_ends_the_run_and_keeps_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.ckpt"
    save = checkpoints.atomic_save_arrays

    def fails_late(target: Path, arrays: Mapping[str, Any]) -> None:
        if len(arrays["losses"]) >= 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(target, arrays)

    monkeypatch.setattr(checkpoints, "atomic_save_arrays", fails_late)
    smoother = Smoother()
    with pytest.raises(RunFolderError, match=r"run\.ckpt cannot be written: .*No space left"):
        train(NET, NET.init(), (X, Y), steps=9, checkpoint=path, checkpoint_every=2, callbacks=[smoother])
    assert smoother.steps == [0, 1, 2, 3, 4, 5]
    assert saved_step(path) == 4


def test_divergence_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    net = nets.MLP([5, 7, 1], "relu")
    arguments: dict[str, Any] = {"optimizer": optim.GD(50.0), "steps": 500, "checkpoint": path, "checkpoint_every": 2}
    with pytest.raises(DivergedError) as first:
        train(net, net.init(), (X, Y), **arguments)
    assert saved_step(path) == (first.value.run.step // 2) * 2
    with pytest.raises(DivergedError) as second:
        train(net, net.init(), (X, Y), resume=True, **arguments)
    assert_same_run(second.value.run, first.value.run)
