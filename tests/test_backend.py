"""The boundary: arrays, scalars, files, memory, and the compiled modules' runtime."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelgrowth import BackendError, MemoryLimitError
from kernelgrowth._backend import files, memory, native
from kernelgrowth._backend.arrays import array_namespace, as_array, float_dtype, like, to_numpy
from kernelgrowth._backend.checks import check_choice, check_integer, check_number


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


class TestScalars:
    @given(st.integers(3, 9))
    def test_integers_within_bounds(self, value):
        assert check_integer("k", value, minimum=3, maximum=9) == value
        assert check_integer("k", np.int64(value)) == value

    @pytest.mark.parametrize("value", [2, 10])
    def test_integers_out_of_bounds(self, value):
        with pytest.raises(ValueError, match=rf"k must be at (least 3|most 9), got {value}"):
            check_integer("k", value, minimum=3, maximum=9)

    @pytest.mark.parametrize("value", [True, 2.0, "2", None])
    def test_what_is_no_integer(self, value):
        with pytest.raises(TypeError, match="k must be an integer"):
            check_integer("k", value)

    @pytest.mark.parametrize("value", [True, "2", None, 1j])
    def test_what_is_no_number(self, value):
        with pytest.raises(TypeError, match="lr must be a number"):
            check_number("lr", value)

    def test_numbers(self):
        assert check_number("lr", 1, minimum=1, maximum=1) == 1.0
        for value, bounds, text in [
            (np.nan, {}, "finite"),
            (np.inf, {}, "finite"),
            (0, {"minimum": 0, "exclusive_minimum": True}, "greater than 0"),
            (-1, {"minimum": 0}, "at least 0"),
            (2, {"maximum": 1}, "at most 1"),
            (1, {"maximum": 1, "exclusive_maximum": True}, "less than 1"),
        ]:
            with pytest.raises(ValueError, match=f"lr must be {text}"):
                check_number("lr", value, **bounds)

    def test_choices(self):
        assert check_choice("kind", "b", ("a", "b")) == "b"
        for value in ("c", None, 3):
            with pytest.raises(ValueError, match="kind must be one of 'a', 'b', got"):
                check_choice("kind", value, ("a", "b"))


class TestArrays:
    def test_views_are_not_copied(self):
        array = np.ones((4, 6), np.float32)[::-2]
        assert as_array("x", array) is array

    def test_dlpack_is_taken_without_a_copy(self):
        class Exporter:
            requires_grad = True

            def __init__(self, array):
                self.array = array

            def detach(self):
                return Exporter(self.array)

            def __dlpack__(self, **options):
                return self.array.__dlpack__(**options)

            def __dlpack_device__(self):
                return self.array.__dlpack_device__()

        array = np.ones((2, 3))
        assert np.shares_memory(as_array("x", Exporter(array)), array)

    def test_what_dlpack_cannot_give_is_refused_by_name(self):
        class OnADevice:
            def __dlpack__(self, **options):
                raise BufferError("not on the CPU")

            def __dlpack_device__(self):
                return (4, 0)

        with pytest.raises(BackendError, match="x: no NumPy view of this OnADevice through DLPack"):
            as_array("x", OnADevice())

    def test_what_lives_on_a_gpu_needs_cupy(self, monkeypatch):
        class OnAGpu:
            def __dlpack__(self, **options):
                raise AssertionError("not asked for")

            def __dlpack_device__(self):
                return (2, 0)

        monkeypatch.setitem(sys.modules, "cupy", None)
        with pytest.raises(BackendError, match=r"x is on a GPU, which needs CuPy: install kernelgrowth\[cuda13\]"):
            as_array("x", OnAGpu())

    def test_mixed_dtypes_are_refused_by_name(self):
        assert float_dtype(a=np.ones(1), b=np.ones(2)) == np.float64
        with pytest.raises(TypeError, match="b is float32 but a is float64"):
            float_dtype(a=np.ones(1), b=np.ones(1, np.float32))

    def test_namespace(self):
        assert array_namespace(np.ones(1), None) is np

        class Foreign:
            __module__ = "cupy"

        with pytest.raises(TypeError, match="all be NumPy or all be CuPy"):
            array_namespace(np.ones(1), Foreign())

    def test_results_go_back_through_the_library_they_came_from(self):
        result = np.ones(3)
        assert like(result, np.ones(1)) is result
        assert like(result, [1.0]) is result
        assert to_numpy(result) is result

    def test_masked_arrays_are_refused(self):
        with pytest.raises(TypeError, match="x must not be a masked array"):
            as_array("x", np.ma.masked_array([1.0, np.nan], mask=[False, True]))

    def test_fields_of_records_are_taken(self):
        records = np.zeros(4, dtype=[("tag", "u1"), ("value", "f8")])
        records["value"] = [1, 2, 3, 4]
        np.testing.assert_array_equal(as_array("x", records["value"]), [1, 2, 3, 4])


class TestErrors:
    def test_memory_limit_errors_travel_between_processes(self):
        error = pickle.loads(pickle.dumps(MemoryLimitError("too large", needed=5, limit=3)))
        assert (str(error), error.needed, error.limit) == ("too large", 5, 3)


class TestFiles:
    def test_replace_all_or_nothing(self, tmp_path):
        path = tmp_path / "a.txt"
        files.atomic_write_text(path, "first")

        def interrupted():
            with files.atomic_writer(path) as stream:
                stream.write(b"sec")
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert path.read_text() == "first"
        assert list(tmp_path.iterdir()) == [path]

    def test_arrays_come_back(self, tmp_path):
        arrays = {"a": np.arange(3), "weird name/with slash": np.ones((2, 2), np.float32)}
        files.atomic_save_arrays(tmp_path / "x.npz", arrays)
        with np.load(tmp_path / "x.npz") as loaded:
            assert {name: loaded[name].tolist() for name in loaded} == {k: v.tolist() for k, v in arrays.items()}
        files.atomic_save_array(tmp_path / "y.npy", arrays["a"])
        np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), arrays["a"])
        with pytest.raises(ValueError, match="Object arrays"):
            files.atomic_save_array(tmp_path / "y.npy", np.array([object()]))
        np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), arrays["a"])

    def test_a_full_disk_leaves_the_old_file(self, tmp_path, monkeypatch):
        path = tmp_path / "x.npy"
        files.atomic_save_array(path, np.zeros(2))

        def full(_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(files.os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            files.atomic_save_array(path, np.ones(2))
        np.testing.assert_array_equal(np.load(path), np.zeros(2))
        assert list(tmp_path.iterdir()) == [path]


class TestMemory:
    def test_default_is_half_of_what_is_available(self):
        available = memory.available_memory()
        assert available > 0
        assert 0 < memory.resolve_memory_limit(None) <= available
        assert memory.resolve_memory_limit(123) == 123
        assert memory.resolve_memory_limit(10**30) == sys.maxsize

    def test_control_groups_count(self, monkeypatch):
        class Folder(type(memory.Path())):
            def read_text(self):
                return {"memory.max": "1000\n", "memory.current": "400\n", "meminfo": "MemAvailable: 5 kB\n"}[self.name]

            def exists(self):
                return True

        monkeypatch.setattr(memory, "Path", Folder)
        assert memory.available_memory() == 600

    def test_byte_counts_are_readable(self):
        texts = [memory.format_bytes(n) for n in (0, 1023, 1024, 1536 * 2**20, 2**50)]
        assert texts == ["0 B", "1023 B", "1.0 KiB", "1.5 GiB", "1024.0 TiB"]


class TestRuntime:
    def test_info(self):
        info = native.info()
        assert info["isa"] in info["available_isas"]
        assert info["threads"] >= 1
        assert {"built", "architectures", "devices", "message"} <= set(info["cuda"])

    @pytest.mark.parametrize("isa", native.info()["available_isas"])
    def test_the_environment_forces_an_instruction_set(self, isa):
        result = run_python("import kernelgrowth._backend.native as n; print(n.info()['isa'])", KERNELGROWTH_ISA=isa)
        assert result.stdout.strip() == isa

    def test_an_impossible_instruction_set_is_an_error(self):
        result = run_python("import kernelgrowth._backend.native as n; n.info()", KERNELGROWTH_ISA="altivec")
        assert "ValueError: KERNELGROWTH_ISA=altivec is not one this machine and build can run" in result.stderr

    def test_the_environment_decides_the_threads(self):
        code = "import kernelgrowth._backend.native as n; print(n.num_threads())"
        assert run_python(code, KERNELGROWTH_NUM_THREADS="3").stdout.strip() == "3"
        assert "KERNELGROWTH_NUM_THREADS must be an integer" in run_python(code, KERNELGROWTH_NUM_THREADS="x").stderr

    def test_a_forked_child_computes_the_same_bits(self):
        result = run_python(
            """
            import multiprocessing, warnings
            import numpy as np
            from kernelgrowth.gradients import GradientFeatures, Rows
            from kernelgrowth.kernels import empirical_ntk
            warnings.simplefilter("ignore")
            features = GradientFeatures({"w": Rows(np.random.default_rng(0).normal(size=(700, 50)))})
            here = empirical_ntk(features, num_threads=3)
            with multiprocessing.get_context("fork").Pool(2) as pool:
                there = pool.map(empirical_ntk, [features] * 4)
            print(all(np.array_equal(here, kernel) for kernel in there))
            """
        )
        assert result.stdout.strip() == "True", result.stderr

    def test_a_call_on_a_daemon_thread_does_not_abort_the_exit(self):
        result = run_python(
            """
            import threading, time
            import numpy as np
            from kernelgrowth.gradients import GradientFeatures, Rows
            from kernelgrowth.kernels import empirical_ntk
            features = GradientFeatures({"w": Rows(np.ones((6000, 6000), np.float32))})
            threading.Thread(target=empirical_ntk, args=(features,), daemon=True).start()
            time.sleep(0.3)
            """
        )
        assert result.returncode == 0, result.stderr

    def test_ctrl_c_stops_a_long_call(self):
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                textwrap.dedent(
                    """
                    import numpy as np
                    from kernelgrowth.gradients import GradientFeatures, Rows
                    from kernelgrowth.kernels import empirical_ntk
                    rows = np.ones((1, 20_000), np.float32).repeat(20_000, axis=0)
                    features = GradientFeatures({"w": Rows(rows)})
                    out = np.empty((20_000, 20_000), np.float32)
                    try:
                        print("ready", flush=True)
                        empirical_ntk(features, out=out, num_threads=1, memory_limit=2**30)
                    except KeyboardInterrupt:
                        print("stopped", flush=True)
                    else:
                        print("finished", flush=True)
                    """
                ),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout.readline().strip() == "ready"
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=120)
        assert out.strip() == "stopped"
        assert process.returncode == 0


def test_the_copy_bandwidth_is_a_speed():
    assert 1e8 < native.copy_bandwidth(threads=1) < 1e13
