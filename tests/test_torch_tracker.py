"""The kernel of a PyTorch module, followed through a training loop of one's own."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402

import kernelgrowth as kg  # noqa: E402
from kernelgrowth.torch import NTKTracker, empirical_ntk, gradient_features, preconditioner  # noqa: E402
from kernelgrowth.torch.probe import ProbeInputs  # noqa: E402
from kernelgrowth.tracking.settings import Probe  # noqa: E402
from torch_cases import CharTransformer, reference_kernel, worst_error  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]


def task(n: int = 40, outputs: int = 3) -> tuple[Any, Any]:
    torch.manual_seed(5)
    x = torch.randn(n, 6)
    return x, torch.randint(0, outputs, (n,)) if outputs > 1 else torch.randn(n, 1)


def network(outputs: int = 3, *, noisy: bool = False) -> Any:
    torch.manual_seed(1)
    middle = [nn.BatchNorm1d(8), nn.Dropout(0.2)] if noisy else []
    return nn.Sequential(nn.Linear(6, 8), *middle, nn.Tanh(), nn.Linear(8, outputs))


def train(
    module: Any,
    optimizer: Any,
    tracker: Any,
    steps: range | int,
    *,
    loss: Any = nn.functional.cross_entropy,
    outputs: int = 3,
) -> None:
    x, y = task(outputs=outputs)
    for step in range(steps) if isinstance(steps, int) else steps:
        batch = torch.arange(8 * step, 8 * step + 8) % len(x)
        value = loss(module(x[batch]), y[batch])
        optimizer.zero_grad()
        value.backward()
        if tracker is not None:
            tracker.step(loss=value)
        optimizer.step()


class TestSeries:
    def test_are_those_of_the_kernel(self):
        module, (x, y) = network(), task()
        tracker = NTKTracker(module, x[:10], y[:10], every=4, top_k=3)
        train(module, torch.optim.SGD(module.parameters(), lr=0.1), tracker, 10)
        tracker.close()
        history = tracker.history
        assert history["step"].tolist() == [0, 4, 8, 10]
        assert history.status == "completed"
        exact = reference_kernel(module.double(), x[:10].double()).numpy()
        np.testing.assert_allclose(history.kernel(10), exact, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(history["trace"][-1], np.trace(exact), rtol=1e-5)
        np.testing.assert_allclose(history["eigenvalues"][-1], np.linalg.eigvalsh(exact)[::-1][:3], rtol=1e-4)
        targets = np.eye(3)[y[:10]]
        np.testing.assert_allclose(
            history["alignment"][-1], kg.kernel_target_alignment(exact, targets.reshape(-1)), rtol=1e-4
        )
        with torch.no_grad():
            loss = float(nn.functional.cross_entropy(module(x[:10].double()), y[:10]))
        np.testing.assert_allclose(history["loss"][-1], loss, rtol=1e-5)
        assert np.isfinite(history["train_loss"][:-1]).all()
        assert np.isnan(history["train_loss"][-1])
        assert {"layers/0/norm", "layers/2/alignment"} <= set(history)

    def test_of_regression_and_held_out_inputs(self, tmp_path):
        module, (x, y) = network(1), task(outputs=1)
        with NTKTracker(module, x[:10], y[:10, 0], every=5, x_test=x[10:14], out=tmp_path / "run") as tracker:
            train(
                module,
                torch.optim.SGD(module.parameters(), lr=0.1),
                tracker,
                10,
                loss=nn.functional.mse_loss,
                outputs=1,
            )
        history = kg.load_run(tmp_path / "run")
        assert history.status == "completed"
        both = reference_kernel(module.double(), torch.cat([x[10:14], x[:10]]).double())
        last = history.test_kernel(int(history.steps[-1]))
        np.testing.assert_allclose(last, both[:4, 4:], rtol=1e-3, atol=1e-4)
        with torch.no_grad():
            error = ((module(x[:10].double())[:, 0] - y[:10, 0]) ** 2).mean()
        np.testing.assert_allclose(history["loss"][-1], error, rtol=1e-5)

    def test_of_token_ids_and_of_keywords(self):
        module = CharTransformer(7, 4, 1, 1, 5).eval()
        ids = torch.randint(0, 7, (6, 5))
        for x in (ids, {"ids": ids}, (ids,)):
            tracker = NTKTracker(module, x, ids[:, 0], top_k=2)
            assert tracker.step()
            exact = reference_kernel(module, ids)
            assert worst_error(torch.as_tensor(tracker.history.kernel(0)), exact) < 1e-4

    def test_with_a_loss_of_ones_own(self):
        module, (x, y) = network(), task()
        seen = []

        def loss(f: Any, targets: Any) -> Any:
            seen.append((tuple(f.shape), targets.dtype))
            return f.sum()

        tracker = NTKTracker(module, x[:10], y[:10], loss=loss)
        tracker.step()
        assert seen == [((10, 3), torch.int64)]
        np.testing.assert_allclose(tracker.history["loss"], float(module(x[:10]).sum().detach()), rtol=1e-5)

    @pytest.mark.parametrize("shape", [(10,), (10, 1), (10, 3)])
    def test_with_a_loss_of_integer_targets(self, shape):
        module, (x, _) = network(), task()
        given = torch.randint(0, 3 if shape[-1] != 3 else 2, shape)
        seen = []
        tracker = NTKTracker(module, x[:10], given, loss=lambda f, y: (seen.append(y), f.sum())[1])
        tracker.step()
        (targets,) = seen
        if shape[-1] == 3:
            # Rows of several classes are no class labels: they come whole, as losses of floats want them.
            assert torch.equal(targets, given.float())
        else:
            assert torch.equal(targets, given.reshape(-1))

    def test_of_inputs_that_numpy_has_no_type_for(self):
        class Rounded(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(6, 1)

            def forward(self, x: Any) -> Any:
                return self.linear(x.float())

        x, _ = task()
        half = x[:10].bfloat16()
        tracker = NTKTracker(Rounded(), half, x[:10, 0])
        tracker.step()
        np.testing.assert_allclose(tracker.history.kernel(0), half.double() @ half.double().T + 1, rtol=1e-5)

    @pytest.mark.parametrize("outputs", ["trace", "mean_trace", "sum_logits"])
    def test_of_other_kernels(self, outputs):
        module, (x, y) = network(), task()
        tracker = NTKTracker(module, x[:10], y[:10], outputs=outputs)
        tracker.step()
        exact = empirical_ntk(module, x[:10], outputs=outputs)
        np.testing.assert_allclose(tracker.history.kernel(0), exact, rtol=1e-4, atol=1e-5)

    def test_within_a_bound_on_its_cost(self):
        module, (x, y) = network(), task()
        tracker = NTKTracker(module, x, y, every=1, max_overhead=0.2)
        train(module, torch.optim.SGD(module.parameters(), lr=0.1), tracker, 30)
        tracker.close()
        steps = tracker.history["step"].tolist()
        assert steps[0] == 0
        assert steps[-1] == 30
        assert len(steps) < 31


class TestTrainingIsNotDisturbed:
    @pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
    def test_by_a_tracker(self, optimizer):
        ends = []
        for followed in (False, True):
            module, (x, y) = network(noisy=True), task()
            rule = optimizer(module.parameters(), lr=0.01)
            tracker = NTKTracker(module, x[:10], y[:10], every=3, optimizer=rule) if followed else None
            torch.manual_seed(3)
            train(module, rule, tracker, 12)
            assert all(part.training for part in module.modules())
            ends.append({name: value.clone() for name, value in module.state_dict().items()})
        assert all(torch.equal(a, b) for a, b in zip(ends[0].values(), ends[1].values(), strict=True))

    def test_parts_in_modes_of_their_own(self):
        module, (x, y) = network(noisy=True), task()
        module[1].eval()
        NTKTracker(module, x[:10], y[:10]).step()
        assert [part.training for part in module] == [True, False, True, True, True]


class TestResuming:
    @pytest.mark.parametrize("folder", [False, True])
    @pytest.mark.parametrize("cut", [4, 7])
    def test_gives_the_same_series(self, tmp_path, folder, cut):
        def start(name: str) -> tuple[Any, Any, Any]:
            module, (x, y) = network(), task()
            rule = torch.optim.Adam(module.parameters(), lr=0.01)
            out = tmp_path / name if folder else None
            return module, rule, NTKTracker(module, x[:10], y[:10], every=2, top_k=2, out=out, optimizer=rule)

        module, rule, tracker = start("whole")
        train(module, rule, tracker, 11)
        tracker.close()
        whole = tracker.history

        module, rule, tracker = start("parts")
        train(module, rule, tracker, cut)
        saved = io.BytesIO()
        torch.save({"module": module.state_dict(), "rule": rule.state_dict(), "tracker": tracker.state_dict()}, saved)
        train(module, rule, tracker, range(cut, cut + 2))
        if folder:
            # The process is gone, and with it the lock.
            tracker._tracker._running.store.release()
        module, rule, tracker = start("parts")
        saved.seek(0)
        state = torch.load(saved, weights_only=True)
        module.load_state_dict(state["module"])
        rule.load_state_dict(state["rule"])
        tracker.load_state_dict(state["tracker"])
        train(module, rule, tracker, range(cut, 11))
        tracker.close()
        assert tracker.history["step"].tolist() == whole["step"].tolist()
        for name in whole:
            if name != "seconds":
                np.testing.assert_array_equal(tracker.history[name], whole[name], err_msg=name)

    def test_with_another_optimizer_is_refused(self, tmp_path):
        module, (x, y) = network(), task()
        tracker = NTKTracker(module, x[:10], y[:10], every=1, out=tmp_path / "run")
        train(module, torch.optim.SGD(module.parameters(), lr=0.1), tracker, 2)
        state = tracker.state_dict()
        tracker.close()
        rule = torch.optim.Adam(module.parameters())
        resumed = NTKTracker(module, x[:10], y[:10], every=1, out=tmp_path / "run", optimizer=rule)
        resumed.load_state_dict(state)
        with pytest.raises(kg.RunFolderError, match="preconditioner was None and is now 'Adam'"):
            train(module, rule, resumed, 1)

    def test_after_being_killed_again_and_again(self, tmp_path):
        path = os.pathsep.join(entry for entry in sys.path if entry)

        def run(name: str, lines: int | None) -> None:
            command = [sys.executable, "-c", LOOP, str(tmp_path / name)]
            with subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | {"PYTHONPATH": path},
            ) as process:
                assert process.stdout is not None
                if lines is None:
                    _, errors = process.communicate(timeout=120)
                    assert process.returncode == 0, errors
                else:
                    assert all(process.stdout.readline() for _ in range(lines))
                    process.kill()

        run("whole", None)
        whole = kg.load_run(tmp_path / "whole" / "run")
        for lines in np.random.default_rng().integers(1, 15, size=2):
            run("parts", int(lines))
            begun = kg.load_run(tmp_path / "parts" / "run")
            assert begun.status == "running"
            np.testing.assert_array_equal(begun["alignment"], whole["alignment"][: len(begun.steps)])
        run("parts", None)
        resumed = kg.load_run(tmp_path / "parts" / "run")
        assert resumed.status == whole.status == "completed"
        assert len(whole.steps) == 126
        for name in set(whole) - {"seconds"}:
            np.testing.assert_array_equal(resumed[name], whole[name], err_msg=name)


LOOP = """
import os, sys
from pathlib import Path
import torch
import test_torch_tracker as here

folder = Path(sys.argv[1])
folder.mkdir(exist_ok=True)
module, (x, y) = here.network(), here.task()
rule = torch.optim.Adam(module.parameters(), lr=0.01)
tracker = here.NTKTracker(module, x[:10], y[:10], every=2, top_k=2, out=folder / "run", optimizer=rule)
done, checkpoint = 0, folder / "checkpoint.pt"
if checkpoint.exists():
    state = torch.load(checkpoint, weights_only=True)
    done = state["done"]
    for part, name in ((module, "module"), (rule, "rule"), (tracker, "tracker")):
        part.load_state_dict(state[name])
for step in range(done, 250):
    here.train(module, rule, tracker, range(step, step + 1))
    if step % 3 == 0:
        parts = {"module": module.state_dict(), "rule": rule.state_dict(), "tracker": tracker.state_dict()}
        torch.save({"done": step + 1} | parts, folder / "new.pt")
        os.replace(folder / "new.pt", checkpoint)
        print(step, flush=True)
tracker.close()
"""


class TestLogging:
    def test_numbers_by_name_after_they_are_recorded(self):
        module, (x, y) = network(), task()
        logged: dict[int, dict[str, float]] = {}
        tracker = NTKTracker(module, x[:10], y[:10], every=4, top_k=2, log=lambda d, step: logged.update({step: d}))
        train(module, torch.optim.SGD(module.parameters(), lr=0.1), tracker, 6)
        tracker.close()
        assert list(logged) == [0, 4, 6]
        assert logged[4]["ntk/eigenvalues/0"] == tracker.history["eigenvalues"][1, 0]
        assert logged[4]["ntk/layers/0/norm"] == tracker.history["layers/0/norm"][1]
        assert "ntk/velocity" in logged[4]
        assert "ntk/velocity" not in logged[0]

    def test_that_fails_loses_nothing(self):
        module, (x, y) = network(), task()

        def log(values: dict[str, float], step: int) -> None:
            raise OSError("the network is down")

        tracker = NTKTracker(module, x[:10], y[:10], log=log)
        with pytest.raises(OSError, match="the network is down"):
            tracker.step()
        assert tracker.history["step"].tolist() == [0]

    def test_that_fails_stops_neither_the_series_nor_its_end(self, tmp_path):
        module, (x, y) = network(), task()

        def log(values: dict[str, float], step: int) -> None:
            raise OSError("the network is down")

        tracker = NTKTracker(module, x[:10], y[:10], every=1, log=log, out=tmp_path / "run")
        for _ in range(2):
            with pytest.raises(OSError, match="the network is down"):
                tracker.step()
        with pytest.raises(OSError, match="the network is down"):
            tracker.close()
        history = kg.load_run(tmp_path / "run")
        assert history["step"].tolist() == [0, 1, 2]
        assert history.status == "completed"


class TestOptimizers:
    def test_the_kernel_followed_is_that_of_the_update(self):
        module, (x, y) = network(), task()
        rule = torch.optim.RMSprop(module.parameters(), lr=0.01)
        tracker = NTKTracker(module, x[:10], y[:10], every=2, optimizer=rule, x_test=x[10:12])
        train(module, rule, tracker, 3)
        value = nn.functional.cross_entropy(module(x), y)
        rule.zero_grad()
        value.backward()
        tracker.step(step=4)
        feats = gradient_features(module, x[:10])
        expected = kg.empirical_ntk(feats, preconditioner=preconditioner(rule, module, feats))
        n, c = feats.num_examples, feats.num_outputs
        np.testing.assert_allclose(
            tracker.history.kernel(4), expected.permute(0, 2, 1, 3).reshape(n * c, n * c), rtol=1e-4, atol=1e-6
        )

    def test_before_there_are_gradients(self):
        module, (x, y) = network(), task()
        tracker = NTKTracker(module, x[:10], y[:10], optimizer=torch.optim.Adam(module.parameters()))
        with pytest.raises(ValueError, match=r"after loss\.backward\(\) and before optimizer\.step\(\)"):
            tracker.step()

    def test_of_another_module_is_refused(self):
        module, (x, y) = network(), task()
        other = network()
        rule = torch.optim.Adam(other.parameters())
        other(x).sum().backward()
        tracker = NTKTracker(module, x[:10], y[:10], optimizer=rule)
        with pytest.raises(ValueError, match="optimizer updates no parameter of module"):
            tracker.step()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"optimizer": torch.optim.Adagrad([nn.Parameter(torch.ones(1))])}, TypeError, "optimizer must be one of SGD"),
        ({"log": 3}, TypeError, "log must be callable"),
        ({"loss": 3}, TypeError, "loss must be callable"),
        ({"every": 0}, ValueError, "every"),
        ({"x_probe": np.ones((3, 6))}, TypeError, "x_probe must be a tensor"),
        ({"y_probe": torch.zeros(3)}, ValueError, "y_probe must have 10 examples"),
        ({"x_test": torch.zeros(0, 6)}, ValueError, r"x_test\[0\] must hold at least one example"),
    ],
)
def test_refusals(options, error, message):
    x, y = task()
    arguments = {"x_probe": x[:10], "y_probe": y[:10]} | options
    with pytest.raises(error, match=message):
        NTKTracker(network(), **arguments)


def test_steps_must_rise():
    x, y = task()
    tracker = NTKTracker(network(), x[:10], y[:10])
    tracker.step(step=5)
    with pytest.raises(ValueError, match="step must be larger than 5"):
        tracker.step(step=5)


def test_no_step_after_the_end():
    x, y = task()
    tracker = NTKTracker(network(), x[:10], y[:10])
    tracker.step()
    tracker.close()
    tracker.close()
    assert tracker.history["step"].tolist() == [0, 1]
    with pytest.raises(RuntimeError, match="this NTKTracker is closed"):
        tracker.step()


@pytest.mark.parametrize(("updates", "steps"), [(0, [0]), (1, [0, 1])])
def test_an_interrupted_run_ends_with_the_last_update_made(tmp_path, updates, steps):
    module, (x, y) = network(), task()
    rule = torch.optim.Adam(module.parameters())

    def interrupted() -> None:
        with NTKTracker(module, x[:10], y[:10], optimizer=rule, out=tmp_path / "run") as tracker:
            train(module, rule, tracker, updates)
            if not updates:
                module(x).sum().backward()
                tracker.step()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    history = kg.load_run(tmp_path / "run")
    assert history.status == "interrupted"
    assert history["step"].tolist() == steps


def test_an_end_that_cannot_be_measured(tmp_path):
    module, (x, y) = network(), task()
    tracker = NTKTracker(module, x[:10], y[:10], out=tmp_path / "run")
    tracker.step()
    module[0] = nn.Linear(5, 8)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        tracker.close()
    assert kg.load_run(tmp_path / "run").status == "failed"


def test_a_folder_of_another_run_is_left_alone(tmp_path):
    x, y = task()
    with NTKTracker(network(), x[:10], y[:10], out=tmp_path / "run") as tracker:
        tracker.step()

    def begin() -> None:
        with NTKTracker(network(), x[:10], y[:10], out=tmp_path / "run") as tracker:
            tracker.step()

    with pytest.raises(kg.RunFolderError, match="holds another run"):
        begin()
    assert kg.load_run(tmp_path / "run").status == "completed"


def test_parts_of_a_probe_set():
    x, y = task()
    inputs = ProbeInputs({"ids": y, "values": x}, "x_probe")
    whole = Probe.checked(inputs, y, None)
    part = whole.part(np.array([3, 1]))
    assert len(part.x) == 2
    assert torch.equal(part.x.inputs.kwargs["ids"], y[[3, 1]])
    assert torch.equal(part.x.inputs.kwargs["values"], x[[3, 1]])
    others = ({"ids": y, "values": x + 1}, {"ids": y.int(), "values": x}, (y, x[:, :5]))
    prints = {Probe.checked(ProbeInputs(other, "x_probe"), y, None).fingerprint() for other in others}
    assert len(prints | {whole.fingerprint()}) == 4


def test_a_run_that_fails_keeps_what_was_recorded(tmp_path):
    x, y = task()

    def fail() -> None:
        with NTKTracker(network(), x[:10], y[:10], out=tmp_path / "run") as tracker:
            tracker.step()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    history = kg.load_run(tmp_path / "run")
    assert history.status == "failed"
    assert history["step"].tolist() == [0]
