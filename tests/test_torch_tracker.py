"""The kernel of a PyTorch module, followed through a training loop of one's own."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402

import kernelgrowth as kg  # noqa: E402
from kernelgrowth.torch import NTKTracker, empirical_ntk, gradient_features, preconditioner  # noqa: E402
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
        last = np.load(tmp_path / "run" / "last.npz")
        np.testing.assert_allclose(last["test_kernel"], both[:4, 4:], rtol=1e-3, atol=1e-4)
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


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
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
