"""The CUDA module's boundary, on any machine: what it asks for, what it refuses, what it says where there is no GPU."""

from __future__ import annotations

import numpy as np
import pytest

_cuda = pytest.importorskip("kernelgrowth._cuda", reason="built without CUDA", exc_type=ImportError)

needs_no_gpu = pytest.mark.skipif(bool(_cuda.devices()[0]), reason="there is a GPU")


class OnDevice:
    """Says where an array of the host's lies, as if it were a device's: nothing may read it."""

    def __init__(self, array, read_only=False):
        self.array, self.read_only = array, read_only

    @property
    def __cuda_array_interface__(self):
        return {
            "shape": self.array.shape,
            "typestr": self.array.dtype.str,
            "data": (self.array.ctypes.data, self.read_only),
            "strides": None if self.array.flags.c_contiguous else self.array.strides,
            "version": 3,
        }


def terms(n=70, outputs=3, dtype=np.float32):
    a, d = np.ones((n, 1, 784), dtype), np.ones((n, outputs, 10), dtype)
    return [(OnDevice(a), None, OnDevice(d), None, 1.0, 0.5)]


def run(arguments, out, **options):
    defaults = {"symmetric": True, "precision": "float32", "workspace": 0, "workspace_bytes": 2**30}
    _cuda.gram(arguments, OnDevice(out), **{**defaults, **options})


def test_workspace_is_that_of_packed_vectors():
    rows, chunk = 128, 32  # vectors are padded to tiles of rows and chunks of floats
    packed = 4 * rows * (25 * chunk + 3 * chunk)
    least, most = _cuda.gram_workspace(terms(), 210, 210, symmetric=True, precision="float32")
    assert least == packed
    assert most == packed + -(-4 * 70 * 70 // 256) * 256  # and of inner products that all outputs share
    halves, _ = _cuda.gram_workspace(terms(), 210, 210, symmetric=True, precision="bf16")
    assert halves == 2 * rows * (13 * 2 * chunk + 3 * 2 * chunk)


def test_strided_arrays_are_read_as_they_lie():
    a, d = np.ones((784, 1, 70), np.float32).T, np.ones((70, 3, 20), np.float32)[:, :, ::2]
    arguments = [(OnDevice(a), None, OnDevice(d), None, 1.0, 0.5)]
    assert _cuda.gram_workspace(arguments, 210, 210, symmetric=True, precision="float32") == _cuda.gram_workspace(
        terms(), 210, 210, symmetric=True, precision="float32"
    )


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"precision": "fp8"}, ValueError, "no precision is named 'fp8'"),
        ({"precision": "float64"}, ValueError, "the precision is another type's"),
        ({"workspace_bytes": 1000}, MemoryError, "needs 458752 bytes of workspace, got 1000"),
        ({"symmetric": False}, ValueError, "needs right factors"),
    ],
)
def test_refusals_come_before_any_work(change, error, text):
    with pytest.raises(error, match=text):
        run(terms(), np.zeros((210, 210), np.float32), **change)


def test_arrays_are_checked():
    with pytest.raises(TypeError, match="factors and out must share one dtype"):
        run(terms(dtype=np.float64), np.zeros((210, 210), np.float32))
    with pytest.raises(TypeError, match="out must be float32 or float64"):
        run(terms(), np.zeros((210, 210), np.int32))
    with pytest.raises(ValueError, match="does not fit 211 rows"):
        run(terms(), np.zeros((211, 211), np.float32))
    with pytest.raises(ValueError, match="contiguous rows"):
        run(terms(), np.zeros((210, 420), np.float32)[:, ::2])
    with pytest.raises(ValueError, match="out must be writeable"):
        _cuda.gram(
            terms(),
            OnDevice(np.zeros((210, 210), np.float32), read_only=True),
            symmetric=True,
            precision="float32",
            workspace=0,
            workspace_bytes=2**30,
        )
    with pytest.raises(TypeError):  # an array of the host's
        run([(np.ones((70, 1, 4), np.float32), None, None, None, 0.0, 1.0)], np.zeros((70, 70), np.float32))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"kernel": np.ones((5, 5), np.int32)}, TypeError, "kernel must be float32 or float64"),
        ({"kernel": np.ones((5, 10))[:, ::2]}, ValueError, "kernel must be a matrix with contiguous rows"),
        ({"kernel": np.ones((0, 5))}, ValueError, "kernel must not be empty"),
        ({"other": np.ones((5, 5), np.float32)}, ValueError, "other must be a matrix .* of one dtype"),
        ({"other": np.ones((5, 4))}, ValueError, "the two kernels differ in shape"),
        ({"targets": np.ones((2, 4))}, ValueError, "targets need a square kernel"),
        ({"results": np.ones(3)}, ValueError, "results must be doubles, as many as are found"),
    ],
)
def test_statistics_refuse_before_any_work(change, error, text):
    given = {"kernel": np.ones((5, 5)), "targets": None, "other": None, "results": np.ones(14), **change}
    placed = [None if array is None else OnDevice(array) for array in given.values()]
    with pytest.raises(error, match=text):
        _cuda.statistics(*placed, workspace=0)


def test_statistics_say_how_many_they_are():
    _, size, workspace = _cuda.statistics_layout(5, 5, 0, False)
    assert size == 5 + 5 + 4
    assert workspace == 8 * (5 + 8)  # of one strip: sums of its columns, and scalars
    layout, size, workspace = _cuda.statistics_layout(17, 9, 3, True)
    assert size == 2 * 17 + 2 * 9 + 4 + 3
    assert workspace == 8 * 2 * (2 * 9 + 8)
    places = [p if isinstance(p, tuple) else (p, 1) for p in layout.values()]
    assert sorted(i for first, count in places for i in range(first, first + count)) == list(range(size))


@needs_no_gpu
def test_without_a_gpu_cuda_says_why():
    with pytest.raises(RuntimeError, match="CUDA says: "):
        run(terms(), np.zeros((210, 210), np.float32))
    with pytest.raises(RuntimeError, match="CUDA says: "):
        _cuda.statistics(OnDevice(np.ones((5, 5))), None, None, OnDevice(np.ones(14)), workspace=0)
