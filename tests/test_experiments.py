"""Experiments on data small enough to finish at once: their folder, their numbers, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import math
import runpy
from pathlib import Path

import numpy as np
import pytest

import kernelgrowth as kg
from kernelgrowth.experiments import (
    ConfigError,
    ExperimentConfig,
    FolderTakenError,
    parse_config,
    report_run,
    run_experiment,
    stored_config,
)
from kernelgrowth.experiments.facts import linearly_explained
from kernelgrowth.experiments.summary import kernel_predictions, predictor_error

KEYS = (
    "silent_alignment_score",
    "weighted_score",
    "verdict",
    "t_align",
    "t_grow",
    "t_loss",
    "alignment_final",
    "alignment_max_theory",
    "predictor_error_final",
    "predictor_error_final_matched",
    "predictor_error_initial",
    "growth",
    "seconds_total",
    "seconds_tracking",
)
FILES = {
    "experiment.toml",
    "experiment.json",
    "zarr.json",
    "tail.jsonl",
    "series",
    "kernels",
    "probe",
    "first",
    "last",
    "checkpoint.npz",
    "predictions.npz",
    "summary.json",
    "dynamics.png",
    "predictions.png",
    "spectrum.png",
    "report.html",
}


def teacher_config(report: bool = False, **changes: dict[str, object]) -> ExperimentConfig:
    tables: dict[str, dict[str, object]] = {
        "data": {"name": "gaussian_teacher", "n_train": 40, "n_test": 20, "dim": 8, "seed": 3},
        "net": {"hidden": [20], "activation": "linear", "sigma": 0.1},
        "training": {"lr": 0.1, "steps": 150, "checkpoint_every": 50},
        "tracking": {"every": 5, "top_k": 4},
        "output": {"report": report},
    }
    for section, values in changes.items():
        tables[section] |= values
    return ExperimentConfig.from_dict(tables)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished experiment with its report; tests leave the folder as it is."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return run_experiment(teacher_config(report=True), folder)


def test_the_folder_holds_everything(finished):
    assert {path.name for path in finished.folder.iterdir()} == FILES
    assert finished.report == finished.folder / "report.html"
    assert stored_config(finished.folder) == teacher_config(report=True)


def test_the_summary_is_strict_json_with_all_keys(finished):
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    summary = json.loads((finished.folder / "summary.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert set(KEYS) <= set(summary)
    for key, value in finished.summary.items():
        expected = None if isinstance(value, float) and not math.isfinite(value) else value
        assert summary[key] == expected
    assert summary["status"] == "completed"
    assert summary["seconds_total"] >= summary["seconds_tracking"] > 0


def test_a_linear_network_on_whitened_data_meets_the_theory(finished):
    summary = finished.summary
    assert summary["alignment_max_theory"] == pytest.approx(2 / math.sqrt(4 + 8 - 1))
    assert summary["alignment_final"] == pytest.approx(summary["alignment_max_theory"], rel=0.05)
    assert summary["loss_ratio"] < 1e-3


def test_predictions_are_kernel_regression_written_out(finished):
    history, loaded = finished.history, np.load(finished.folder / "predictions.npz")
    first, last = int(history.steps[0]), int(history.steps[-1])
    y = history.y_probe
    f0, f0_test = history.predictions(first)[:, 0], history.test_predictions(first)[:, 0]
    for name, step in (("initial", first), ("final", last)):
        # A linear network's kernel has the rank of the inputs, so the inverse is the pseudo-inverse.
        inverse = np.linalg.pinv(history.kernel(step), rcond=1e-10, hermitian=True)
        expected = f0_test + history.test_kernel(step) @ inverse @ (y - f0)
        np.testing.assert_allclose(loaded[name][:, 0], expected, atol=1e-6)
        network = history.test_predictions(last)[:, 0]
        error = np.sqrt(np.mean((expected - network) ** 2) / np.mean(network**2))
        assert finished.summary[f"predictor_error_{name}"] == pytest.approx(error, rel=1e-4, abs=1e-6)


def test_the_matched_flow_has_the_networks_training_loss(finished):
    history = finished.history
    first, last = int(history.steps[0]), int(history.steps[-1])
    values, vectors = np.linalg.eigh(history.kernel(last))
    residual = history.y_probe - history.predictions(first)[:, 0]
    reached = history["train_loss"][-1]

    def state(t: float) -> tuple[float, np.ndarray]:
        left = vectors @ (np.exp(-values * t / len(values)) * (vectors.T @ residual))
        alpha = vectors @ (-np.expm1(-values * t / len(values)) / values * (vectors.T @ residual))
        return 0.5 * float(np.mean(left**2)), history.test_predictions(first)[:, 0] + history.test_kernel(last) @ alpha

    values = np.maximum(values, 1e-9 * values[-1])
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if state(middle)[0] > reached else (low, middle)
    np.testing.assert_allclose(finished.predictions.final_matched[:, 0], state(low)[1], atol=1e-4)


def test_a_report_from_the_folder_alone_is_the_same(finished, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    (folder / "kernels").mkdir()
    for path in finished.folder.rglob("*"):
        if path.is_file() and path.suffix not in (".png", ".html"):
            copy = folder / path.relative_to(finished.folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    again = report_run(folder)
    assert (folder / "summary.json").read_text() == (finished.folder / "summary.json").read_text()
    for name in ("report.html", "dynamics.png", "predictions.png", "spectrum.png"):
        assert (folder / name).read_bytes() == (finished.folder / name).read_bytes()
    assert again.summary.keys() == finished.summary.keys()


def test_a_folder_of_the_tracker_alone_has_a_report_too(tmp_path):
    data = kg.datasets.gaussian_teacher(30, 5, n_test=10, seed=1)
    net = kg.nets.MLP([5, 10, 1], activation="tanh", sigma=0.5)
    tracker = kg.NTKTracker(data.x, data.y, every=10, top_k=3, x_test=data.x_test, out=tmp_path / "run")
    kg.train(net, net.init(), data, optimizer=kg.optim.GD(0.05), steps=50, callbacks=[tracker])
    result = report_run(tmp_path / "run")
    assert result.summary["title"] == "run"
    assert math.isfinite(result.summary["predictor_error_final"])
    assert math.isnan(result.summary["alignment_max_theory"])
    assert math.isnan(result.summary["seconds_total"])


def test_progress_reaches_the_end(tmp_path):
    seen = []
    run_experiment(teacher_config(), tmp_path / "run", on_progress=seen.append)
    assert seen[0].step == 0
    assert (seen[-1].step, seen[-1].steps) == (150, 150)
    assert seen[-1].time == pytest.approx(15.0)
    assert all(math.isfinite(value) for value in dataclasses.astuple(seen[-1]))


class Stop(Exception):
    pass


def stop_at(step: int):
    def on_progress(progress):
        if progress.step >= step:
            raise Stop

    return on_progress


def test_a_stopped_run_resumes_to_the_same_series(tmp_path, monkeypatch):
    monkeypatch.setattr("kernelgrowth.experiments.run._SECONDS_BETWEEN_CALLS", 0.0)
    whole = run_experiment(teacher_config(), tmp_path / "whole")
    with pytest.raises(Stop):
        run_experiment(teacher_config(), tmp_path / "stopped", on_progress=stop_at(77))
    stored = stored_config(tmp_path / "stopped")
    resumed = run_experiment(stored, tmp_path / "stopped", resume=True)
    for name, values in whole.history.to_dict().items():
        if name != "seconds":
            np.testing.assert_array_equal(resumed.history[name], values, err_msg=name)
    np.testing.assert_array_equal(resumed.predictions.final, whole.predictions.final)


def test_a_killed_run_has_a_summary_without_predictions(tmp_path, monkeypatch):
    monkeypatch.setattr("kernelgrowth.experiments.run._SECONDS_BETWEEN_CALLS", 0.0)
    with pytest.raises(Stop):
        run_experiment(teacher_config(), tmp_path / "run", on_progress=stop_at(77))
    # A killed process writes no last predictions.
    (tmp_path / "run" / "last" / "zarr.json").unlink(missing_ok=True)
    result = report_run(tmp_path / "run")
    assert result.summary["steps"] == 75
    assert result.predictions is None
    assert math.isnan(result.summary["predictor_error_final"])
    assert not (tmp_path / "run" / "predictions.png").exists()


def test_resuming_another_configuration_names_the_keys(tmp_path):
    run_experiment(teacher_config(), tmp_path / "run")
    other = teacher_config(training={"lr": 0.2}, net={"sigma": 0.3})
    with pytest.raises(kg.RunFolderError, match=r"net\.sigma, training\.lr differ"):
        run_experiment(other, tmp_path / "run", resume=True)


def test_a_taken_folder_is_left_alone_unless_overwritten(tmp_path):
    first = run_experiment(teacher_config(), tmp_path / "run")
    before = {path: path.read_bytes() for path in first.folder.rglob("*") if path.is_file()}
    other = teacher_config(training={"seed": 5})
    with pytest.raises(FolderTakenError, match="holds another run"):
        run_experiment(other, first.folder)
    assert {path: path.read_bytes() for path in first.folder.rglob("*") if path.is_file()} == before
    run_experiment(other, first.folder, overwrite=True)
    assert stored_config(first.folder) == other


def test_overwriting_spares_a_folder_with_other_files(tmp_path):
    first = run_experiment(teacher_config(), tmp_path / "run")
    (first.folder / "thesis.tex").write_text("years of work")
    with pytest.raises(kg.RunFolderError, match=r"thesis\.tex"):
        run_experiment(teacher_config(), first.folder, overwrite=True)
    assert len(kg.load_run(first.folder).steps) == len(first.history.steps)


def test_overwriting_follows_no_link_and_spares_whatever_is_not_a_runs(tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "00000001.npy").write_text("keep")
    folder = run_experiment(teacher_config(), tmp_path / "run").folder
    before = {path.name for path in folder.iterdir()}
    for name in ("kernels/sub/notes.txt", "results/zarr.json"):
        path = folder / name
        path.parent.mkdir()
        path.write_text("mine")
        with pytest.raises(kg.RunFolderError, match=f"not overwritten, it also holds {name}"):
            run_experiment(teacher_config(), folder, overwrite=True)
        path.unlink()
        path.parent.rmdir()
    (folder / "results").mkdir()
    with pytest.raises(kg.RunFolderError, match="not overwritten, it also holds results"):
        run_experiment(teacher_config(), folder, overwrite=True)
    (folder / "results").rmdir()
    assert {path.name for path in folder.iterdir()} == before
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "kernels").symlink_to(precious)
    with pytest.raises(kg.RunFolderError, match="not overwritten"):
        run_experiment(teacher_config(), linked, overwrite=True)
    no_run = tmp_path / "no run"
    no_run.mkdir()
    (no_run / "report.html").write_text("mine")
    with pytest.raises(kg.RunFolderError, match=r"it also holds report\.html"):
        run_experiment(teacher_config(), no_run, overwrite=True)
    assert (precious / "00000001.npy").read_text() == "keep"
    assert (no_run / "report.html").read_text() == "mine"


def test_a_configuration_of_ones_own_is_not_replaced(tmp_path):
    own = "# mine\n" + teacher_config(training={"steps": 7}).to_toml()
    (tmp_path / "experiment.toml").write_text(own)
    with pytest.raises(kg.RunFolderError, match=r"experiment\.toml: describes another experiment"):
        run_experiment(teacher_config(), tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(kg.RunFolderError):
        run_experiment(teacher_config(), tmp_path)
    assert (tmp_path / "experiment.toml").read_text() == own


def test_a_network_that_starts_at_zero_is_reported_as_undetermined(tmp_path):
    result = run_experiment(teacher_config(net={"sigma": 1e-200}), tmp_path / "run")
    assert result.summary["verdict"] == "undetermined"
    assert "raise the initial scale" in result.summary["verdict_sentence"]


def test_nothing_is_written_when_the_configuration_does_not_fit_the_data(tmp_path):
    wrong = {
        "net.widths": teacher_config(),
        "training.batch_size": teacher_config(training={"batch_size": 41}),
        "training.layer_lr.layer3": teacher_config(training={"layer_lr": {"layer3": 0.5}}),
        "tracking.n_probe": teacher_config(tracking={"n_probe": 41}),
        "data": teacher_config(data={"spectrum": [1.0, 2.0]}),
        "output.folder": teacher_config(),
    }
    net = dataclasses.replace(wrong["net.widths"].net, hidden=None, widths=(9, 20, 1))
    wrong["net.widths"] = dataclasses.replace(wrong["net.widths"], net=net)
    for key, config in wrong.items():
        out = None if key == "output.folder" else tmp_path / "run"
        with pytest.raises(ConfigError) as caught:
            run_experiment(config, out)
        assert caught.value.key == key
    assert not (tmp_path / "run").exists()


def test_missing_files_of_a_data_set_are_named(tmp_path):
    text = f'[data]\nname = "mnist"\nroot = "{tmp_path}/nowhere"\n[training]\nlr = 0.1\nsteps = 1\n'
    with pytest.raises(ConfigError, match="nowhere"):
        run_experiment(parse_config(text), tmp_path / "run")


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_path_that_cannot_be_a_folder(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(kg.RunFolderError, match="file"):
        run_experiment(teacher_config(), tmp_path / name)


def test_resume_and_overwrite_exclude_each_other(tmp_path):
    with pytest.raises(ValueError, match="exclude each other"):
        run_experiment(teacher_config(), tmp_path / "run", resume=True, overwrite=True)


def test_divergence_keeps_what_was_recorded(tmp_path):
    with pytest.raises(kg.DivergedError):
        run_experiment(teacher_config(training={"lr": 50.0}), tmp_path / "run")
    assert kg.load_run(tmp_path / "run").status == "diverged"


@pytest.mark.parametrize("outputs", ["full", "trace"])
def test_several_outputs(tmp_path, outputs):
    changes = {"data": {"outputs": 3}, "net": {"activation": "relu"}, "training": {"steps": 400}}
    config = teacher_config(**changes, tracking={"outputs": outputs, "every": 50})
    result = run_experiment(config, tmp_path / "run")
    assert result.predictions.network.shape == result.predictions.final.shape == (20, 3)
    assert result.summary["predictor_error_final"] < result.summary["predictor_error_initial"]
    assert math.isnan(result.summary["alignment_max_theory"])


def test_a_kernel_of_summed_logits_predicts_nothing(tmp_path):
    config = teacher_config(data={"outputs": 3}, tracking={"outputs": "sum_logits", "every": 50})
    assert run_experiment(config, tmp_path / "run").predictions is None


def test_a_probe_that_is_not_the_training_set_predicts_nothing(tmp_path):
    result = run_experiment(teacher_config(tracking={"n_probe": 10}), tmp_path / "run")
    assert result.predictions is None
    assert kernel_predictions(result.history) is not None
    assert result.history.kernel(0).shape == (10, 10)


@pytest.mark.parametrize(
    ("loss", "optimizer"),
    [
        ("logistic", {"optimizer": "momentum", "beta": 0.5}),
        ("cross_entropy", {"optimizer": "adam", "beta1": 0.8}),
        ("cross_entropy", {"optimizer": "rmsprop", "alpha": 0.9, "eps": 1e-6}),
    ],
)
def test_classification_losses_on_digits(tmp_path, loss, optimizer):
    config = ExperimentConfig.from_dict(
        {
            "data": {"name": "digits", "n_train": 30, "n_test": 10, "whitening": 0.5},
            "net": {"hidden": [10], "sigma": 0.5},
            "training": {"loss": loss, "lr": 0.02, "steps": 30, "batch_size": 10, "dtype": "float32", **optimizer},
            "output": {"report": False},
        }
    )
    result = run_experiment(config, tmp_path / "run")
    assert result.summary["loss_ratio"] < 1
    assert math.isfinite(result.summary["predictor_error_final"])
    assert math.isnan(result.summary["predictor_error_final_matched"])
    assert "γ = 0.5" in result.summary["title"]


def test_the_theory_is_silent_where_it_was_not_derived(tmp_path):
    for changes in (
        {"data": {"whitening": False}},
        {"net": {"bias": True}},
        {"net": {"hidden": []}},
        {"training": {"optimizer": "adam", "lr": 0.01}},
        {"training": {"batch_size": 10}},
        {"training": {"layer_lr": {"layer1": 0.0}}},
    ):
        config = teacher_config(**{"training": {}, **changes})
        short = dataclasses.replace(config, training=dataclasses.replace(config.training, steps=5))
        result = run_experiment(short, tmp_path / "run", overwrite=True)
        assert math.isnan(result.summary["alignment_max_theory"]), changes


def test_layer_rates_enter_the_theory(tmp_path):
    config = teacher_config(training={"layer_lr": {"layer1": 4.0}, "lr": 0.05, "steps": 300})
    summary = run_experiment(config, tmp_path / "run").summary
    assert summary["alignment_max_theory"] == pytest.approx(5 / math.sqrt(25 + 7))
    assert summary["alignment_final"] == pytest.approx(summary["alignment_max_theory"], rel=0.05)


def test_linearly_explained_is_the_share_of_a_projection():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 4)) @ rng.normal(size=(4, 6))
    assert linearly_explained(x, x @ rng.normal(size=6)) == pytest.approx(1.0)
    y = rng.normal(size=30)
    fitted = x @ np.linalg.lstsq(x, y, rcond=1e-10)[0]
    assert linearly_explained(x, y) == pytest.approx(fitted @ fitted / (y @ y))
    assert math.isnan(linearly_explained(x, np.zeros(30)))


def test_predictor_error_is_relative_and_undefined_for_a_zero_network():
    assert predictor_error([1.1, -0.9], [1.0, -1.0]) == pytest.approx(0.1)
    assert math.isnan(predictor_error([1.0], [0.0]))


def test_own_network_example_runs(capsys):
    path = Path(__file__).parent.parent / "examples" / "own_network.py"
    runpy.run_path(str(path))["main"](steps=200)
    assert "alignment" in capsys.readouterr().out
