"""The Zarr group of a run and its formats: exact, readable by Zarr itself, refusing what it does not understand."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import kernelgrowth as kg
from kernelgrowth._backend import files
from kernelgrowth._backend.errors import RunFolderError
from kernelgrowth.tracking import load_run, run_group
from kernelgrowth.tracking.background import Background
from kernelgrowth.tracking.columns import Series
from kernelgrowth.tracking.packing import pack_triangle
from kernelgrowth.tracking.run_group import RUN_FILES, RunGroup
from kernelgrowth.tracking.series import decode_lines, decode_record, encode_record
from kernelgrowth.tracking.store import MemoryStore

INFO = {"status": "running", "config": {"every": 10, "outputs": "full"}, "kernelgrowth": "0"}
FLOATS = st.floats(allow_nan=True, allow_infinity=True, allow_subnormal=True)
DATA = Path(__file__).parent / "data"


@pytest.fixture(autouse=True)
def short_tails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every few steps be moved to arrays of several chunks."""
    monkeypatch.setattr(run_group, "_ROWS", {True: 4, False: 3})


def records_strategy() -> st.SearchStrategy[list[dict[str, Any]]]:
    def build(steps: list[int], k: int, values: list[float]) -> list[dict[str, Any]]:
        pick = iter(values * (1 + len(steps) * (k + 2) // len(values)))
        return [
            {
                "step": step,
                "loss": next(pick),
                "eigenvalues": [next(pick) for _ in range(k)],
                "layers/../a b\n./norm": next(pick),
            }
            for step in sorted(steps)
        ]

    return st.builds(
        build,
        st.lists(st.integers(0, 10**7), min_size=1, max_size=11, unique=True),
        st.integers(0, 3),
        st.lists(FLOATS, min_size=1, max_size=12),
    )


def same_bits(a: float, b: float) -> bool:
    return (math.isnan(a) and math.isnan(b)) or np.float64(a).tobytes() == np.float64(b).tobytes()


def assert_same_record(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert list(a) == list(b)
    for name, value in a.items():
        left, right = (value, b[name]) if isinstance(value, list) else ([value], [b[name]])
        assert len(left) == len(right)
        assert all(same_bits(x, y) for x, y in zip(left, right, strict=True)), name


def assert_same_series(series: Series, records: list[dict[str, Any]]) -> None:
    assert len(series) == len(records)
    for row, record in enumerate(records):
        assert_same_record(series.record(row), record)


def started(path: str | Path, records: list[dict[str, Any]]) -> RunGroup:
    group = RunGroup(path)
    group.create(INFO)
    for record in records:
        group.append(record)
    group.sync()
    return group


def steps(count: int) -> list[dict[str, Any]]:
    return [{"step": 2 * i, "loss": i / 7, "eigenvalues": [i + 0.5, i / 3]} for i in range(count)]


# --- the line format ---


@given(records_strategy())
def test_a_record_comes_back_to_the_bit_from_strict_json(records: list[dict[str, Any]]) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    for record in records:
        line = encode_record(record)
        assert line.endswith("\n")
        assert line.count("\n") == 1
        json.loads(line, parse_constant=refuse)
        assert_same_record(decode_record(line), record)


@given(st.sampled_from([np.float32, np.float64]), st.floats(width=32))
def test_numpy_scalars_are_written_as_numbers(kind: Any, value: float) -> None:
    line = encode_record({"step": np.int64(3), "loss": kind(value)})
    assert_same_record(decode_record(line), {"step": 3, "loss": value})


@settings(max_examples=20)
@given(records_strategy())
def test_lines_cut_at_any_byte_are_the_records_whose_lines_are_complete(records: list[dict[str, Any]]) -> None:
    lines = [encode_record(record).encode() for record in records]
    content = b"".join(lines)
    ends = np.cumsum([len(line) for line in lines])
    for cut in range(len(content) + 1):
        read = decode_lines(content[:cut])
        complete = int(np.sum(ends <= cut))
        assert len(read) == complete
        for a, b in zip(read, records[:complete], strict=True):
            assert_same_record(a, b)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"step": 0}\n{"st\n', "line 2"),
        (b"[1]\n", "line 1: not a JSON object"),
        (b'{"loss": 1.0}\n', "no integer 'step'"),
        (b'{"step": 0.5}\n', "no integer 'step'"),
        (b'{"step": 0, "loss": "low"}\n', "'loss' is not a number"),
        (b'{"step": 0, "loss": true}\n', "'loss' is not a number"),
        (b'{"step": 0, "loss": 1}\n{"step": 1}\n', "line 2: its fields are not those of the rows before"),
        (b'{"step": 0, "e": [1, 2]}\n{"step": 1, "e": [1]}\n', "line 2: its fields are not those of the rows before"),
        (b'{"step": 0, "e": [1, 2]}\n{"step": 1, "e": 1}\n', "line 2: its fields are not those of the rows before"),
        (b'{"step": 3}\n{"step": 3}\n', "line 2: step 3 does not follow step 3"),
        (b"\xff\xfe\n", "line 1"),
    ],
)
def test_a_corrupt_tail_is_refused_by_file_and_line(tmp_path: Path, content: bytes, reason: str) -> None:
    started(tmp_path / "run", [])
    tail = tmp_path / "run" / "tail.jsonl"
    tail.write_bytes(tail.read_bytes() + content)
    with pytest.raises(RunFolderError, match=r"tail\.jsonl: is corrupt") as caught:
        load_run(tmp_path / "run")
    assert reason in str(caught.value)


# --- columns ---


@settings(max_examples=30)
@given(records_strategy(), st.data())
def test_a_snapshot_of_a_growing_series_does_not_change(records: list[dict[str, Any]], data: st.DataObject) -> None:
    series, snapshots = Series(), []
    for record in records:
        snapshots.append(series.snapshot())
        series.append(record)
        if data.draw(st.booleans()):
            # What is forgotten and written again must not show in earlier snapshots.
            series = series.first(len(series) - 1)
            series.append(dict(record))
    for count, snapshot in enumerate(snapshots):
        assert_same_series(snapshot, records[:count])
    assert [series.row_of(record["step"]) for record in records] == list(range(len(records)))
    assert series.row_of(10**8) is None


# --- the group ---


@settings(max_examples=25)
@given(records_strategy(), st.integers(0, 11))
def test_a_series_comes_back_to_the_bit_from_arrays_and_tail(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, Any]], seen: int
) -> None:
    path = tmp_path_factory.mktemp("run")
    group = started(path, records[:seen])
    assert_same_series(RunGroup(path).series(), records[:seen])
    for record in records[seen:]:
        group.append(record)
    group.sync()
    assert_same_series(RunGroup(path).series(), records)
    group.move_tail()
    assert_same_series(RunGroup(path).series(), records)
    assert (path / "tail.jsonl").read_text() == f'{{"rows": {len(records)}}}\n'


def test_zarr_reads_what_was_recorded(tmp_path: Path) -> None:
    kernel = np.arange(9.0).reshape(3, 3)
    kernel = kernel + kernel.T
    group = started(tmp_path / "a" / "run", steps(6))
    group.save_kernel(10, pack_triangle(kernel))
    group.save_arrays("first", {"step": np.int64(0), "predictions": np.ones((3, 1), np.float32)})
    group.move_tail()
    group.sync()
    read = zarr.open_group(tmp_path / "a" / "run", mode="r")
    assert (read.attrs["format"], read.attrs["format_version"]) == ("kernelgrowth run", 2)
    assert read.attrs["run"] == INFO
    np.testing.assert_array_equal(read["series/step"][:], [0, 2, 4, 6, 8, 10])
    np.testing.assert_array_equal(read["series/eigenvalues"][:], [[i + 0.5, i / 3] for i in range(6)])
    assert read["series/eigenvalues"].metadata.dimension_names == ("row", "index")
    np.testing.assert_array_equal(read["kernels/3"][5], kernel[np.triu_indices(3)])
    np.testing.assert_array_equal(read["first/predictions"][:], np.ones((3, 1)))
    assert read["first/predictions"].dtype == np.float32
    history = load_run(tmp_path / "a" / "run")
    np.testing.assert_array_equal(history.kernel(10), kernel)
    assert history.kernel_steps == [10]
    np.testing.assert_array_equal(history["distance_to_final"], [math.nan] * 5 + [0.0])
    files = [path.relative_to(tmp_path / "a" / "run").as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert all(RUN_FILES.fullmatch(file) and not file.endswith(".tmp") for file in files)


def test_a_run_without_a_tracked_step_is_an_empty_history(tmp_path: Path) -> None:
    started(tmp_path, [])
    for missing in ("tail.jsonl", "kernels/zarr.json"):
        history = load_run(tmp_path)
        assert len(history) == 0
        assert history.to_dict() == {}
        assert history.kernel_steps == []
        assert history.steps.shape == (0,)
        assert history["distance_to_final"].shape == (0,)
        with pytest.raises(KeyError, match="no step is recorded yet"):
            history["loss"]
        with pytest.raises(KeyError, match="no targets"):
            _ = history.y_probe
        (tmp_path / missing).unlink()
    assert len(load_run(tmp_path)) == 0


@settings(max_examples=15)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=9, unique=True), st.integers(0, 41), st.booleans())
def test_truncation_forgets_exactly_what_came_later(
    tmp_path_factory: pytest.TempPathFactory, at_steps: list[int], at: int, torn: bool
) -> None:
    path = tmp_path_factory.mktemp("run")
    records = [{"step": step, "loss": step / 7} for step in sorted(at_steps)]
    stores: list[Any] = [started(path, []), MemoryStore()]
    for store in stores:
        for record in records:
            store.save_kernel(record["step"], np.full(3, float(record["step"])))
            store.append(record)
        store.save_arrays("first", {"step": np.int64(min(at_steps)), "x": np.ones(2)})
        store.save_arrays("last", {"step": np.int64(max(at_steps)), "x": np.ones(2)})
        store.sync()
    if torn:
        with open(path / "tail.jsonl", "ab") as stream:
            stream.write(b'{"step": 99, "lo')
        (path / "kernels" / "2" / ".c.99.0.123.tmp").write_bytes(b"half")
        (path / ".zarr.json.123.tmp").write_bytes(b"half")
        (path / ".other.npz.123.tmp").write_bytes(b"of somebody else")
        stores[0] = RunGroup(path)
    for store in stores:
        store.truncate(at)
        kept = [step for step in sorted(at_steps) if step < at]
        assert store.series().steps.tolist() == kept
        assert store.kernel_steps() == kept
        assert bool(store.load_arrays("first")) == (min(at_steps) < at)
        assert bool(store.load_arrays("last")) == (max(at_steps) < at)
        for step in (50, 60):
            store.save_kernel(step, np.full(3, float(step)))
            store.append({"step": step, "loss": 0.0})
        assert store.series().steps.tolist() == [*kept, 50, 60]
        store.move_tail()
        assert store.series()["loss"].tolist() == [*(step / 7 for step in kept), 0.0, 0.0]
        for step in [*kept, 50, 60]:
            np.testing.assert_array_equal(store.load_kernel(step), np.full(3, float(step)))
    if torn:
        assert [entry.name for entry in path.rglob("*.tmp")] == [".other.npz.123.tmp"]


def test_kernels_of_several_sizes_and_dtypes(tmp_path: Path) -> None:
    group = started(tmp_path, [])
    kernels = [np.ones(6), np.ones(3, np.float64), np.full(6, 2.0), np.full(1, 3.0)]
    for i, kernel in enumerate(kernels):
        group.save_kernel(i, kernel)
        group.append({"step": i, "loss": 0.0})
    group.drop_kernel(2)
    group.drop_kernel(2)
    assert group.kernel_steps() == [0, 1, 3]
    group.sync()
    history = RunGroup(tmp_path)
    history.series()
    assert history.kernel_steps() == [0, 1, 3]
    for i in (0, 1, 3):
        np.testing.assert_array_equal(history.load_kernel(i), kernels[i])
    for i in (2, 4):
        with pytest.raises(KeyError):
            history.load_kernel(i)


def test_a_folder_of_something_else_is_refused_and_a_companion_is_not(tmp_path: Path) -> None:
    group = RunGroup(tmp_path)
    assert not group.holds_run()
    for name in ("checkpoint.npz", "config.toml", "slurm-3.log", ".gitignore", ".zarr.json.77.tmp"):
        (tmp_path / name).write_text("")
    assert not group.holds_run()
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunFolderError, match=r"thesis\.tex.*choose a new or empty folder"):
        group.holds_run()
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    with pytest.raises(RunFolderError, match="is a file, not a folder"):
        RunGroup(tmp_path / "thesis.tex").holds_run()
    with pytest.raises(RunFolderError, match=r"cannot create: (Not a directory|File exists)"):
        RunGroup(tmp_path / "thesis.tex" / "run").create(INFO)


def test_a_zarr_group_of_something_else_is_refused(tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "weather", attributes={"format": "rain"})
    with pytest.raises(RunFolderError, match=r"zarr\.json.*choose a new or empty folder"):
        RunGroup(tmp_path / "weather").holds_run()
    with pytest.raises(RunFolderError, match="does not describe a run"):
        load_run(tmp_path / "weather")


def test_one_process_at_a_time_writes_a_folder(tmp_path: Path) -> None:
    code = "import sys; from kernelgrowth.tracking.run_group import RunGroup; RunGroup(sys.argv[1]).claim()"
    command = [sys.executable, "-c", code, str(tmp_path)]
    here = RunGroup(tmp_path)
    here.claim()
    other = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "another process is recording here" in other.stderr
    here.release()
    assert subprocess.run(command, timeout=60).returncode == 0


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(RunFolderError, match=r"new: cannot create: Permission denied"):
        RunGroup(tmp_path / "new").create(INFO)


def meta(**attributes: Any) -> str:
    return json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no recorded run"),
        ("", "is corrupt"),
        ("{", "is corrupt"),
        ("[]", "does not describe a run"),
        (meta(format="something"), "does not describe a run"),
        (
            meta(format="kernelgrowth run", format_version=9, run={"kernelgrowth": "7.0"}),
            "version 9 by kernelgrowth 7.0",
        ),
        (meta(format="kernelgrowth run", format_version=2, run={}), "'config' or 'status' is missing"),
    ],
)
def test_load_run_names_the_file_and_the_reason(tmp_path: Path, content: str | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "zarr.json").write_text(content)
    with pytest.raises(RunFolderError, match=r"zarr\.json") as caught:
        load_run(tmp_path)
    assert reason in str(caught.value)


def test_load_run_of_no_folder(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="nowhere: no such folder"):
        load_run(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="is a file, not a folder"):
        load_run(tmp_path / "file")


@pytest.mark.parametrize("content", [b"", b"\x02\x01", b"junk" * 40])
def test_a_corrupt_kernel_is_named_when_it_is_read(tmp_path: Path, content: bytes) -> None:
    group = started(tmp_path, [{"step": 0, "loss": 1.0}])
    group.save_kernel(0, np.ones(3))
    group.sync()
    (tmp_path / "kernels" / "2" / "c.0.0").write_bytes(content)
    with pytest.raises(RunFolderError, match=r"kernels/2: is corrupt"):
        load_run(tmp_path).kernel(0)


def test_a_missing_chunk_is_corrupt_and_not_made_up(tmp_path: Path) -> None:
    started(tmp_path, steps(9)).move_tail()
    (tmp_path / "series" / "loss" / "c.1").unlink()
    with pytest.raises(RunFolderError, match=r"series/loss: is corrupt: chunk c\.1 is missing"):
        load_run(tmp_path)
    group = started(tmp_path / "other", steps(1))
    group.save_arrays("first", {"step": np.int64(0), "predictions": np.ones(3)})
    (tmp_path / "other" / "first" / "predictions" / "c.0").unlink()
    with pytest.raises(RunFolderError, match=r"first/predictions: is corrupt"):
        load_run(tmp_path / "other").predictions(0)


def test_every_cut_of_an_array_file_is_corrupt_not_wrong(tmp_path: Path) -> None:
    group = started(tmp_path, [{"step": 0, "loss": 1.0}])
    group.save_kernel(0, np.arange(3.0))
    group.save_arrays("first", {"step": np.int64(0), "predictions": np.arange(3.0)})
    group.move_tail()
    group.sync()
    cases = (
        (tmp_path / "kernels" / "2" / "c.0.0", lambda: group.load_kernel(0)),
        (tmp_path / "first" / "predictions" / "c.0", lambda: group.load_arrays("first")),
        (tmp_path / "first" / "predictions" / "zarr.json", lambda: group.load_arrays("first")),
        (tmp_path / "series" / "loss" / "c.0", group.series),
        (tmp_path / "first" / "zarr.json", lambda: group.load_arrays("first")),
        (tmp_path / "zarr.json", group.series),
    )
    for path, read in cases:
        content = path.read_bytes()
        for cut in range(len(content) - (path.name == "zarr.json")):
            path.write_bytes(content[:cut])
            with pytest.raises(RunFolderError, match="is corrupt"):
                read()
        path.write_bytes(content)
        read()


# --- earlier versions ---


def fixture_numbers(version: int) -> dict[str, Any]:
    numbers: dict[str, Any] = json.loads((DATA / f"run-version-{version}.json").read_text())
    return numbers


@pytest.mark.parametrize("version", [1, 2])
def test_runs_of_every_version_are_read(version: int) -> None:
    expected = fixture_numbers(version)
    history = load_run(DATA / f"run-version-{version}")
    assert history.status == "completed"
    assert history.steps.tolist() == expected["steps"]
    assert history.kernel_steps == expected["kernel_steps"]
    assert list(history) == list(expected["series"])
    for name, values in expected["series"].items():
        wanted = np.array([math.nan if value is None else value for value in values])
        np.testing.assert_array_equal(history[name].ravel(), wanted)
    last = expected["steps"][-1]
    np.testing.assert_array_equal(history.kernel(last), expected["kernel"])
    np.testing.assert_array_equal(history.test_kernel(last), expected["test_kernel"])
    np.testing.assert_array_equal(history.predictions(0), expected["predictions"])
    np.testing.assert_array_equal(history.y_probe, expected["y_probe"])
    assert len(kg.load_runs(DATA / f"run-version-{version}")) == 1


def test_a_run_of_an_earlier_version_is_not_continued() -> None:
    group = RunGroup(DATA / "run-version-1")
    assert group.holds_run()
    with pytest.raises(RunFolderError, match="format version 1, which is read but not continued"):
        group.read_info()


# --- other places ---


def remote() -> str:
    return f"memory://runs-{os.urandom(6).hex()}/run"


@settings(max_examples=15)
@given(records_strategy(), st.integers(0, 10**7))
def test_a_url_is_a_place_like_a_folder(records: list[dict[str, Any]], at: int) -> None:
    url = remote()
    with pytest.raises(RunFolderError, match="no such folder"):
        load_run(url)
    assert not RunGroup(url).holds_run()
    group = started(url, [])
    for record in records:
        group.save_kernel(record["step"], np.full(3, float(record["step"])))
        group.append(record)
    group.save_arrays("last", {"step": np.int64(records[-1]["step"]), "x": np.arange(4.0)})
    group.sync()
    again = RunGroup(url)
    assert again.holds_run()
    assert_same_series(again.series(), records)
    assert again.kernel_steps() == [record["step"] for record in records]
    again.truncate(at)
    kept = [record for record in records if record["step"] < at]
    again.append({**records[0], "step": 10**8})
    again.sync()
    assert_same_series(RunGroup(url).series(), [*kept, {**records[0], "step": 10**8}])
    assert RunGroup(url).load_arrays("last").keys() == ({"step", "x"} if kept == records else set())


def test_a_url_that_no_library_knows_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="nowhere://x: cannot read"):
        RunGroup("nowhere://x").holds_run()


# --- a reader beside a writer ---


def test_a_reader_sees_a_beginning_of_the_run_at_every_moment(tmp_path: Path) -> None:
    group, records, done = started(tmp_path, steps(1)), steps(300), threading.Event()
    problems: list[str] = []

    def read() -> None:
        newest = 0
        while not done.is_set():
            series = RunGroup(tmp_path).series()
            count = len(series)
            if count < newest or series["loss"].tolist() != [record["loss"] for record in records[:count]]:
                problems.append(f"{count} rows after {newest}")
            newest = count

    thread = threading.Thread(target=read)
    thread.start()
    try:
        for record in records[1:]:
            group.append(record)
        group.sync()
    finally:
        done.set()
        thread.join()
    assert not problems


# --- a full disk ---


def no_space(*args: Any, **kwargs: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("act", "name"),
    [
        (lambda group: (group.save_kernel(7, np.ones(3)), group.sync()), r"kernels/2/c\.1\.0"),
        (lambda group: group.save_arrays("last", {"step": np.int64(7)}), r"last/zarr\.json"),
        (lambda group: group.save_arrays("last", {"step": np.int64(7), "x": np.ones(2)}), r"last/x/c\.0"),
        (lambda group: group.write_info(INFO), r"run/zarr\.json"),
        (lambda group: group.move_tail(), r"series/step/c\.0"),
    ],
)
def test_a_full_disk_is_named_by_file_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: Any, name: str
) -> None:
    group = started(tmp_path / "run", [])
    group.save_kernel(0, np.ones(3))
    group.append({"step": 0, "loss": 1.0})
    group.sync()
    with monkeypatch.context() as patch:
        patch.setattr(files, "open", no_space, raising=False)
        with pytest.raises(RunFolderError, match=f"{name}: cannot write: No space left on device"):
            act(group)
    for history in (load_run(tmp_path / "run"), group):
        assert history.kernel_steps == [0] if history is not group else group.kernel_steps() == [0]
    assert load_run(tmp_path / "run")["loss"].tolist() == [1.0]
    group.save_kernel(1, np.ones(3))
    group.append({"step": 1, "loss": 0.5})
    group.move_tail()
    history = load_run(tmp_path / "run")
    assert history["loss"].tolist() == [1.0, 0.5]
    assert history.kernel_steps == [0, 1]


@pytest.mark.parametrize("taken", [0, 1, 10])
def test_a_line_that_a_full_disk_takes_in_part_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    group = started(tmp_path, [{"step": 0, "loss": 1.0}])
    write = os.write
    calls = []

    def short(descriptor: int, data: bytes) -> int:
        calls.append(len(data))
        return no_space() if len(calls) > 1 or not taken else write(descriptor, data[:taken])

    before = (tmp_path / "tail.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", short)
        group.append({"step": 1, "loss": 0.5})
        with pytest.raises(RunFolderError, match=r"tail\.jsonl: cannot write: No space left"):
            group.sync()
    assert (tmp_path / "tail.jsonl").read_bytes() == before
    assert group.series().steps.tolist() == [0]
    group.append({"step": 2, "loss": 0.25})
    group.sync()
    assert load_run(tmp_path)["step"].tolist() == [0, 2]


def test_a_line_written_in_pieces_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = started(tmp_path, [])
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:3]))
    group.append({"step": 1, "loss": 0.5})
    assert group.series().record(0) == {"step": 1, "loss": 0.5}


def test_what_comes_after_a_failed_deed_is_left_undone_and_told_once() -> None:
    background, done = Background(), []
    gate = threading.Event()

    def fail() -> None:
        gate.wait()
        raise KeyboardInterrupt

    background.do(done.append, 1)
    background.do(fail)
    background.do(done.append, 2)
    gate.set()
    with pytest.raises(KeyboardInterrupt):
        background.wait()
    background.do(done.append, 3)
    background.wait()
    background.close()
    background.do(done.append, 4)
    background.close()
    assert done == [1, 3, 4]


def test_metadata_is_kept_with_the_run(tmp_path: Path) -> None:
    x, y = np.eye(3), np.ones(3)
    net = kg.nets.MLP(widths=(3, 2, 1))
    tracker = kg.NTKTracker(x, y, out=tmp_path, metadata={"seed": 3, "data": {"name": "eye"}})
    tracker.update(net, net.init(seed=0), step=0)
    tracker.close()
    info = load_run(tmp_path).info
    assert info["metadata"] == {"seed": 3, "data": {"name": "eye"}}
    assert info["versions"]["numpy"] == np.__version__
    assert info["machine"]["cpus"] == os.cpu_count()
    table = kg.load_runs(tmp_path).table(["loss"])
    assert (table["seed"].tolist(), table["data.name"].tolist()) == ([3], ["eye"])
    for bad in ({"x": object()}, {"x": math.nan}, [1]):
        with pytest.raises(TypeError, match="metadata must"):
            kg.NTKTracker(x, y, metadata=bad)


def test_without_zarr_a_place_to_record_to_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(ImportError, match=r'recorded runs need zarr.*pip install "kernelgrowth\[run\]"'):
        kg.NTKTracker(np.eye(2), np.ones(2), out=tmp_path)
    assert kg.NTKTracker(np.eye(2), np.ones(2)).history.steps.size == 0
    with contextlib.suppress(FileNotFoundError):
        assert not list(tmp_path.iterdir())
