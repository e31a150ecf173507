"""Many runs as one table."""

from __future__ import annotations

import json

import numpy as np
import pytest

import kernelgrowth as kg
from kernelgrowth.cli import main


def record(folder, *, width=6, top_k=3, sigma=0.5, steps=4, **settings):
    net = kg.nets.MLP(widths=(4, width, 1), sigma=sigma)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((12, 4)), rng.standard_normal(12)
    tracker = kg.NTKTracker(x, y, every=2, top_k=top_k, out=folder, **settings)
    kg.train(net, net.init(seed=1), (x, y), optimizer=kg.optim.GD(lr=0.05), steps=steps, callbacks=[tracker])
    return folder


@pytest.fixture
def sweep(tmp_path):
    record(tmp_path / "sweep" / "b", sigma=0.1)
    record(tmp_path / "sweep" / "a", top_k=2, steps=6)
    record(tmp_path / "sweep" / "deep" / "c", metrics=["kernel_norm"])
    (tmp_path / "sweep" / "notes").mkdir()
    (tmp_path / "sweep" / "notes.txt").write_text("no run")
    return tmp_path / "sweep"


def test_a_row_is_a_tracked_step_of_a_run(sweep):
    runs = kg.load_runs(f"{sweep}/**")
    assert list(runs) == [str(sweep / name) for name in ("a", "b", "deep/c")]
    table = runs.table()
    assert {len(column) for column in table.values()} == {sum(len(history.steps) for history in runs.values())}
    for path, history in runs.items():
        mine = table["run"] == path
        assert table["step"].dtype == np.int64
        assert table["step"][mine].tolist() == history.steps.tolist()
        assert set(table["status"][mine]) == {"completed"}
        for name in ("kernel_norm", "time", "loss"):
            np.testing.assert_array_equal(table[name][mine], history[name])
    assert sorted(set(table["config.network.sigma"])) == [0.1, 0.5]


def test_series_of_several_numbers_have_a_column_for_each(sweep):
    runs = kg.load_runs([sweep / "a", sweep / "b"])
    table = runs.table(["eigenvalues"])
    assert [name for name in table if "eigenvalues" in name] == [f"eigenvalues[{k}]" for k in range(3)]
    for path, k in ((sweep / "a", 2), (sweep / "b", 3)):
        mine = table["run"] == str(path)
        found = np.stack([table[f"eigenvalues[{i}]"][mine] for i in range(k)], axis=1)
        np.testing.assert_array_equal(found, runs[str(path)]["eigenvalues"])
    assert np.isnan(table["eigenvalues[2]"][table["run"] == str(sweep / "a")]).all()


def test_what_a_run_lacks_is_nan_and_what_all_lack_is_an_error(sweep):
    runs = kg.load_runs(f"{sweep}/**")
    table = runs.table(["alignment", "distance_to_final"])
    lacking = table["run"] == str(sweep / "deep" / "c")
    assert np.isnan(table["alignment"][lacking]).all()
    assert np.isfinite(table["alignment"][~lacking]).all()
    assert table["distance_to_final"][-1] == 0
    assert "kernel_norm" not in table
    with pytest.raises(KeyError, match="beauty: no run recorded it"):
        runs.table(["beauty"])


def test_pandas(sweep):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    runs = kg.load_runs(sweep / "*")
    frame = runs.to_pandas(["kernel_norm"])
    assert isinstance(frame, pandas.DataFrame)
    assert frame.groupby("run").size().to_dict() == {path: len(history.steps) for path, history in runs.items()}


def test_runs_that_are_being_written(tmp_path):
    begun = record(tmp_path / "begun")
    meta = json.loads((begun / "zarr.json").read_text())
    meta["attributes"]["rows"] = 2
    (begun / "zarr.json").write_text(json.dumps(meta))
    (begun / "tail.jsonl").write_text('{"rows": 2}\n{"step": 4, "los')
    new = record(tmp_path / "new")
    meta["attributes"]["rows"] = 0
    (new / "zarr.json").write_text(json.dumps(meta))
    (new / "tail.jsonl").unlink()
    table = kg.load_runs(tmp_path / "*").table()
    assert table["run"].tolist() == [str(begun)] * 2
    assert kg.load_runs(new).table()["run"].tolist() == []


def test_runs_at_urls():
    base = f"memory://sweep-{np.random.default_rng().integers(10**9)}"
    for name in ("a", "b"):
        record(f"{base}/{name}")
    runs = kg.load_runs(f"{base}/*")
    assert [path.rpartition("/")[2] for path in runs] == ["a", "b"]
    assert kg.load_runs(f"{base}/b").table()["step"].tolist() == [0, 2, 4]


def test_folders_are_refused_by_name(tmp_path):
    with pytest.raises(kg.RunFolderError, match="nothing: no recorded run there"):
        kg.load_runs(tmp_path / "nothing")
    folder = record(tmp_path / "later")
    meta = json.loads((folder / "zarr.json").read_text())
    meta["attributes"]["format_version"] = 99
    (folder / "zarr.json").write_text(json.dumps(meta))
    with pytest.raises(kg.RunFolderError, match="later.*version 99"):
        kg.load_runs(tmp_path / "*")


class TestWatch:
    """The live view; where nobody looks it is printed once."""

    def test_of_several_runs(self, sweep, capsys):
        assert main(["watch", str(sweep)]) == 0
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert lines[0][:3] == ["run", "status", "step"]
        assert [line[:3] for line in lines[1:]] == [
            ["a", "completed", "6"],
            ["b", "completed", "4"],
            ["deep/c", "completed", "4"],
        ]

    def test_of_one_run(self, sweep, capsys):
        assert main(["watch", str(sweep / "b")]) == 0
        assert len(capsys.readouterr().out.splitlines()) == 2

    def test_of_a_folder_that_would_be_a_pattern(self, tmp_path, capsys):
        record(tmp_path / "sigma[0.5]" / "seed=*")
        assert main(["watch", str(tmp_path / "sigma[0.5]")]) == 0
        assert "seed=*" in capsys.readouterr().out

    def test_of_no_run(self, tmp_path, capsys):
        assert main(["watch", str(tmp_path)]) == 2
        assert "no recorded run there" in capsys.readouterr().err
