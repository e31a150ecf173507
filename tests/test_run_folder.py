"""The run folder and its formats: exact, readable with plain tools, refusing what it does not understand."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kernelgrowth._backend.errors import RunFolderError
from kernelgrowth.tracking import load_run, run_folder
from kernelgrowth.tracking.packing import (
    matrix_size,
    pack_triangle,
    packed_cosine,
    packed_products,
    packed_size,
    unpack_triangle,
)
from kernelgrowth.tracking.run_folder import RunFolder
from kernelgrowth.tracking.schedule import check_every, is_due, kernel_capacity, kernel_stride, retained
from kernelgrowth.tracking.series import decode_lines, decode_record, encode_record
from kernelgrowth.tracking.store import MemoryStore

INFO = {"status": "running", "config": {"every": 10, "outputs": "full"}, "kernelgrowth": "0"}
FLOATS = st.floats(allow_nan=True, allow_infinity=True, allow_subnormal=True)


def records_strategy() -> st.SearchStrategy[list[dict[str, Any]]]:
    def build(steps: list[int], k: int, values: list[float]) -> list[dict[str, Any]]:
        pick = iter(values * (1 + len(steps) * (k + 2) // len(values)))
        return [
            {
                "step": step,
                "loss": next(pick),
                "eigenvalues": [next(pick) for _ in range(k)],
                "layers/a b\n/norm": next(pick),
            }
            for step in sorted(steps)
        ]

    return st.builds(
        build,
        st.lists(st.integers(0, 10**7), min_size=1, max_size=6, unique=True),
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


def started(path: Path, records: list[dict[str, Any]]) -> RunFolder:
    folder = RunFolder(path)
    folder.create(INFO)
    for record in records:
        folder.append(record)
    return folder


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
def test_a_series_cut_at_any_byte_is_the_records_whose_lines_are_complete(records: list[dict[str, Any]]) -> None:
    lines = [encode_record(record).encode() for record in records]
    content = b"".join(lines)
    ends = np.cumsum([len(line) for line in lines])
    for cut in range(len(content) + 1):
        read, read_ends = decode_lines(content[:cut])
        complete = int(np.sum(ends <= cut))
        assert len(read) == complete
        assert read_ends == list(ends[:complete])
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
        (b'{"step": 0, "loss": 1}\n{"step": 1}\n', "line 2: its fields are not those of line 1"),
        (b'{"step": 0, "e": [1, 2]}\n{"step": 1, "e": [1]}\n', "line 2: its fields are not those of line 1"),
        (b'{"step": 3}\n{"step": 3}\n', "line 2: step 3 does not follow step 3"),
        (b"\xff\xfe\n", "line 1"),
    ],
)
def test_a_corrupt_series_is_refused_by_file_and_line(tmp_path: Path, content: bytes, reason: str) -> None:
    started(tmp_path / "run", [])
    (tmp_path / "run" / "series.jsonl").write_bytes(content)
    with pytest.raises(RunFolderError, match=r"series\.jsonl: is corrupt") as caught:
        load_run(tmp_path / "run")
    assert reason in str(caught.value)


# --- kernels as triangles ---


@settings(max_examples=30)
@given(st.integers(1, 70), st.sampled_from([np.float32, np.float64]), st.integers(0, 2**32 - 1))
def test_a_symmetric_matrix_survives_packing_to_the_bit(n: int, dtype: Any, seed: int) -> None:
    kernel = np.random.default_rng(seed).standard_normal((n, n)).astype(dtype)
    kernel = np.triu(kernel) + np.triu(kernel, 1).T
    packed = pack_triangle(kernel)
    assert packed.dtype == dtype
    assert matrix_size(len(packed)) == n
    assert len(packed) == packed_size(n)
    np.testing.assert_array_equal(packed, kernel[np.triu_indices(n)])
    np.testing.assert_array_equal(unpack_triangle(packed), kernel)


@settings(max_examples=30)
@given(st.integers(1, 70), st.sampled_from([np.float32, np.float64]), st.integers(0, 2**32 - 1))
def test_products_of_triangles_are_those_of_the_matrices(n: int, dtype: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = (m + m.T for m in rng.standard_normal((2, n, n)).astype(dtype))
    left, right = a.astype(np.float64), b.astype(np.float64)
    got = packed_products(pack_triangle(a), pack_triangle(b))
    tolerance = 1e-13 * (1 + np.sum(left**2) + np.sum(right**2))
    np.testing.assert_allclose(got, [np.sum(left * right), np.sum(left**2), np.sum(right**2)], rtol=0, atol=tolerance)
    cosine = np.sum(left * right) / np.linalg.norm(left) / np.linalg.norm(right)
    assert packed_cosine(pack_triangle(a), pack_triangle(b)) == pytest.approx(cosine, abs=1e-12)


@settings(max_examples=30)
@given(
    hnp.arrays(np.float64, st.integers(1, 12).map(packed_size), elements=st.floats(-1, 1, width=32)),
    st.sampled_from([0, -600, -1000, 600, 1000]),
)
def test_the_cosine_of_a_kernel_with_itself_is_exactly_one_at_any_scale(packed: np.ndarray, exponent: int) -> None:
    scaled = np.ldexp(packed, exponent)
    if scaled.any():
        assert packed_cosine(scaled, scaled) == 1.0
        assert packed_cosine(scaled, -scaled) == -1.0
    else:
        assert math.isnan(packed_cosine(scaled, scaled))


def test_a_cosine_with_a_kernel_that_is_not_finite_is_undefined() -> None:
    for bad in (math.nan, math.inf):
        assert math.isnan(packed_cosine(np.array([1.0, bad, 1.0]), np.ones(3)))
        assert math.isnan(packed_cosine(np.ones(3), np.array([1.0, bad, 1.0])))


@pytest.mark.parametrize("length", [2, 4, 5, 7, 4951])
def test_a_length_that_is_no_triangle_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"got {length}"):
        matrix_size(length)


# --- what is due, what is kept ---


@given(st.integers(1, 50), st.integers(0, 500))
def test_a_period_names_its_multiples(every: int, step: int) -> None:
    assert is_due(check_every(every), step) == (step % every == 0)


@given(st.sets(st.integers(0, 60)), st.integers(0, 60))
def test_a_sequence_names_its_members(steps: set[int], step: int) -> None:
    for form in (sorted(steps), np.array(sorted(steps), dtype=np.int64), tuple(sorted(steps))):
        assert is_due(check_every(form), step) == (step in steps)


def kept_one_by_one(total: int, capacity: int, restarts: list[int]) -> set[int]:
    """Keep and drop as a tracker does, going back to an earlier count (dropping what came later) at every restart."""
    stored: set[int] = set()
    pending = list(restarts)
    count = 0
    while count < total:
        stored.add(count)
        count += 1
        stored = {index for index in stored if retained(index, count, capacity)}
        assert len(stored) <= capacity
        assert {0, count - 1} <= stored
        if pending and count > pending[0]:
            count = pending.pop(0)
            stored = {index for index in stored if index < count}
    return stored


@given(st.integers(1, 200), st.integers(2, 12), st.lists(st.integers(0, 199), max_size=4))
def test_the_kept_kernels_do_not_depend_on_interruptions(total: int, capacity: int, restarts: list[int]) -> None:
    straight = kept_one_by_one(total, capacity, [])
    assert kept_one_by_one(total, capacity, [r for r in restarts if r < total]) == straight
    assert straight == {index for index in range(total) if retained(index, total, capacity)}
    stride = kernel_stride(total, capacity)
    assert straight == {*range(0, total, stride), total - 1}
    assert stride == 1 or len(range(0, total, stride // 2)) + 1 > capacity // 2


@given(st.integers(0, 10**6), st.integers(1, 100), st.sampled_from([4, 8]))
def test_the_capacity_fits_the_budget_but_for_two_kernels(budget: int, n: int, itemsize: int) -> None:
    capacity = kernel_capacity(budget, n, itemsize)
    assert capacity == 2 or capacity * packed_size(n) * itemsize <= budget


# --- the folder ---


def test_files_are_readable_with_plain_tools(tmp_path: Path) -> None:
    kernel = np.arange(9.0).reshape(3, 3)
    kernel = kernel + kernel.T
    folder = started(tmp_path / "a" / "run", [{"step": 0, "loss": math.nan}, {"step": 5, "loss": 0.1}])
    folder.save_kernel(5, pack_triangle(kernel))
    folder.save_arrays("first", {"step": np.int64(0), "predictions": np.ones((3, 1))})
    root = tmp_path / "a" / "run"
    lines = [json.loads(line) for line in (root / "series.jsonl").read_text().splitlines()]
    assert lines == [{"step": 0, "loss": None}, {"step": 5, "loss": 0.1}]
    np.testing.assert_array_equal(np.load(root / "kernels" / "00000005.npy"), kernel[np.triu_indices(3)])
    np.testing.assert_array_equal(np.load(root / "first.npz")["predictions"], np.ones((3, 1)))
    info = json.loads((root / "run.json").read_text())
    assert (info["format"], info["format_version"], info["status"]) == ("kernelgrowth run", 1, "running")
    history = load_run(root)
    np.testing.assert_array_equal(history.kernel(5), kernel)
    assert history.kernel_steps == [5]
    np.testing.assert_array_equal(history["distance_to_final"], [math.nan, 0.0])
    assert not any(path.suffix == ".tmp" for path in root.rglob("*"))


def test_a_run_without_a_tracked_step_is_an_empty_history(tmp_path: Path) -> None:
    started(tmp_path, [])
    for missing in ("series.jsonl", "kernels"):
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
        path = tmp_path / missing
        path.unlink() if path.is_file() else path.rmdir()
    assert len(load_run(tmp_path)) == 0


@settings(max_examples=10)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=5, unique=True), st.integers(0, 41), st.booleans())
def test_truncation_forgets_exactly_what_came_later(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], at: int, torn: bool
) -> None:
    path = tmp_path_factory.mktemp("run")
    records = [{"step": step, "loss": step / 7} for step in sorted(steps)]
    stores: list[Any] = [started(path, records), MemoryStore()]
    for record in records:
        stores[1].append(record)
    if torn:
        with open(path / "series.jsonl", "ab") as stream:
            stream.write(b'{"step": 99, "lo')
        (path / "kernels" / ".00000099.npy.123.tmp").write_bytes(b"half")
        (path / ".run.json.123.tmp").write_bytes(b"half")
        (path / ".other.npz.123.tmp").write_bytes(b"of somebody else")
    for store in stores:
        for step in steps:
            store.save_kernel(step, np.ones(3))
        store.save_arrays("first", {"step": np.int64(min(steps))})
        store.save_arrays("last", {"step": np.int64(max(steps))})
        store.truncate(at)
        kept = [step for step in sorted(steps) if step < at]
        assert [record["step"] for record in store.records()] == kept
        assert store.kernel_steps() == kept
        assert bool(store.load_arrays("first")) == (min(steps) < at)
        assert bool(store.load_arrays("last")) == (max(steps) < at)
        store.append({"step": 50, "loss": 0.0})
        assert [record["step"] for record in store.records()] == [*kept, 50]
    if torn:
        assert [entry.name for entry in path.rglob("*.tmp")] == [".other.npz.123.tmp"]


def test_a_folder_of_something_else_is_refused_and_a_companion_is_not(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert not folder.holds_run()
    for name in ("checkpoint.npz", "config.toml", "slurm-3.log", ".gitignore", ".run.json.77.tmp"):
        (tmp_path / name).write_text("")
    assert not folder.holds_run()
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunFolderError, match=r"thesis\.tex.*choose a new or empty folder"):
        folder.holds_run()
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    with pytest.raises(RunFolderError, match="is a file, not a folder"):
        RunFolder(tmp_path / "thesis.tex").holds_run()
    with pytest.raises(RunFolderError, match=r"cannot create: Not a directory"):
        RunFolder(tmp_path / "thesis.tex" / "run").create(INFO)


def test_one_process_at_a_time_writes_a_folder(tmp_path: Path) -> None:
    code = "import sys; from kernelgrowth.tracking.run_folder import RunFolder; RunFolder(sys.argv[1]).claim()"
    command = [sys.executable, "-c", code, str(tmp_path)]
    here = RunFolder(tmp_path)
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
        RunFolder(tmp_path / "new").create(INFO)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no recorded run"),
        ("", "is corrupt"),
        ("{", "is corrupt"),
        ("[]", "does not describe a run"),
        ('{"format": "something"}', "does not describe a run"),
        ('{"format": "kernelgrowth run", "format_version": 9, "kernelgrowth": "7.0"}', "version 9 by kernelgrowth 7.0"),
        ('{"format": "kernelgrowth run", "format_version": 1}', "'config' or 'status' is missing"),
    ],
)
def test_load_run_names_the_file_and_the_reason(tmp_path: Path, content: str | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(RunFolderError, match=r"run\.json") as caught:
        load_run(tmp_path)
    assert reason in str(caught.value)


def test_load_run_of_no_folder(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="nowhere: no such folder"):
        load_run(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="is a file, not a folder"):
        load_run(tmp_path / "file")


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"junk" * 40])
def test_a_corrupt_kernel_is_named_when_it_is_read(tmp_path: Path, content: bytes) -> None:
    folder = started(tmp_path, [{"step": 0, "loss": 1.0}])
    (tmp_path / "kernels" / "00000000.npy").write_bytes(content)
    history = load_run(tmp_path)
    with pytest.raises(RunFolderError, match=r"00000000\.npy: is corrupt"):
        history.kernel(0)
    np.save(tmp_path / "kernels" / "00000000.npy", np.ones((2, 2)))
    with pytest.raises(RunFolderError, match="holds no packed kernel but float64 of shape"):
        folder.load_kernel(0)
    with pytest.raises(KeyError):
        folder.load_kernel(1)


def test_every_cut_of_an_array_file_is_corrupt_not_wrong(tmp_path: Path) -> None:
    folder = started(tmp_path, [{"step": 0, "loss": 1.0}])
    folder.save_kernel(0, np.arange(3.0))
    folder.save_arrays("first", {"step": np.int64(0)})
    for path, read in (
        (tmp_path / "kernels" / "00000000.npy", lambda: folder.load_kernel(0)),
        (tmp_path / "first.npz", lambda: folder.load_arrays("first")),
    ):
        content = path.read_bytes()
        for cut in range(len(content)):
            path.write_bytes(content[:cut])
            with pytest.raises(RunFolderError, match=f"{path.name}: is corrupt"):
                read()
    np.save(tmp_path / "first.npy", np.ones(2))
    os.replace(tmp_path / "first.npy", tmp_path / "first.npz")
    with pytest.raises(RunFolderError, match="is corrupt"):
        folder.load_arrays("first")


# --- a full disk ---


def no_space(*args: Any, **kwargs: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("function", "act", "name"),
    [
        ("atomic_save_array", lambda f: f.save_kernel(7, np.ones(3)), r"00000007\.npy"),
        ("atomic_save_arrays", lambda f: f.save_arrays("last", {"step": 7}), r"last\.npz"),
        ("atomic_write_text", lambda f: f.write_info(INFO), r"run\.json"),
    ],
)
def test_a_full_disk_is_named_by_file_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, act: Any, name: str
) -> None:
    folder = started(tmp_path, [{"step": 0, "loss": 1.0}])
    folder.save_kernel(0, np.ones(3))
    monkeypatch.setattr(run_folder, function, no_space)
    with pytest.raises(RunFolderError, match=f"{name}: cannot write: No space left on device"):
        act(folder)
    history = load_run(tmp_path)
    assert history["loss"].tolist() == [1.0]
    assert history.kernel_steps == [0]


@pytest.mark.parametrize("taken", [0, 1, 10])
def test_a_line_that_a_full_disk_takes_in_part_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    folder = started(tmp_path, [{"step": 0, "loss": 1.0}])
    write = os.write
    calls = []

    def short(descriptor: int, data: bytes) -> int:
        calls.append(len(data))
        return no_space() if len(calls) > 1 or not taken else write(descriptor, data[:taken])

    before = (tmp_path / "series.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", short)
        with pytest.raises(RunFolderError, match=r"series\.jsonl: cannot write: No space left"):
            folder.append({"step": 1, "loss": 0.5})
    assert (tmp_path / "series.jsonl").read_bytes() == before
    folder.append({"step": 2, "loss": 0.25})
    assert load_run(tmp_path)["step"].tolist() == [0, 2]


def test_a_line_written_in_pieces_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = started(tmp_path, [])
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:3]))
    folder.append({"step": 1, "loss": 0.5})
    assert folder.records() == [{"step": 1, "loss": 0.5}]
