"""MNIST's IDX files: true small ones are read exactly, damaged ones are refused with the reason."""

import gzip
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelgrowth.datasets import Whitening, mnist

NAMES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "t10k": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def idx(array):
    """The IDX encoding of an array of unsigned bytes."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 0x08, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def draw_images(seed, n, shape=(28, 28)):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, *shape), dtype=np.uint8), np.arange(n, dtype=np.uint8) % 10


def write(folder, parts=("train", "t10k"), sizes=(40, 20), zipped=False, names=NAMES, shape=(28, 28)):
    folder.mkdir(parents=True, exist_ok=True)
    kept = {}
    for seed, (part, n) in enumerate(zip(parts, sizes, strict=False)):
        kept[part] = draw_images(seed, n, shape)
        for name, array in zip(names[part], kept[part], strict=True):
            data = idx(array)
            (folder / (name + (".gz" if zipped else ""))).write_bytes(gzip.compress(data) if zipped else data)
    return kept


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("place", ["", "raw", "MNIST/raw"])
def test_every_example_is_read(tmp_path, zipped, place):
    kept = write(tmp_path / place, zipped=zipped)
    data = mnist(tmp_path, targets="index")
    assert data.x.shape == (40, 784)
    assert data.x.dtype == np.float32
    assert data.num_test == 20
    assert data.info["image_shape"] == (28, 28)
    for part, x, y in (("train", data.x, data.y), ("t10k", data.x_test, data.y_test)):
        images, labels = kept[part]
        rows = {
            (image.reshape(-1) / 255).astype(np.float32).tobytes(): label
            for image, label in zip(images, labels, strict=True)
        }
        assert [rows.pop(row.tobytes()) for row in x] == list(y)
        assert not rows


def test_files_spelt_with_a_dot_or_zipped_without_saying_so(tmp_path):
    names = {part: tuple(name.replace("-idx", ".idx") for name in pair) for part, pair in NAMES.items()}
    write(tmp_path / "dot", names=names)
    assert mnist(tmp_path / "dot").num_examples == 40
    write(tmp_path / "plain")
    for pair in NAMES.values():
        for name in pair:
            file = tmp_path / "plain" / name
            file.write_bytes(gzip.compress(file.read_bytes()))
    assert mnist(str(tmp_path / "plain")).num_examples == 40


def test_selection_targets_whitening_and_dtype(tmp_path):
    write(tmp_path)
    data = mnist(tmp_path, classes=(3, 5), n_train=6, n_test=2, whiten=True, reduce=True, dtype=np.float64)
    assert data.x.shape == (6, 6)
    assert data.x_test.shape == (2, 6)
    np.testing.assert_allclose(data.x @ data.x.T, 6 * np.eye(6), atol=1e-9)
    assert sorted(data.y) == [-1.0] * 3 + [1.0] * 3
    assert data.name == "MNIST 3/5"
    raw = mnist(tmp_path, classes=(3, 5), n_train=6, n_test=2, dtype=np.float64)
    np.testing.assert_array_equal(raw.y, data.y)
    half = mnist(tmp_path, classes=(3, 5), n_train=6, n_test=2, whiten=0.5, dtype=np.float64)
    whitening = Whitening.fit(raw.x, 0.5)
    np.testing.assert_allclose(half.x, whitening.transform(raw.x), atol=1e-10)
    np.testing.assert_allclose(half.x_test, whitening.transform(raw.x_test), atol=1e-10)
    assert mnist(tmp_path, n_train=7).y.shape == (7, 10)
    assert not np.array_equal(mnist(tmp_path, n_train=7, seed=1).x, mnist(tmp_path, n_train=7).x)
    with pytest.raises(ValueError, match="n_test must be at most the 4 examples"):
        mnist(tmp_path, classes=(3, 5), n_test=5)


def test_test_files_are_not_needed_when_no_test_examples_are(tmp_path):
    write(tmp_path, parts=("train",))
    data = mnist(tmp_path, n_test=0)
    assert data.x_test is None
    assert data.y_test is None
    with pytest.raises(FileNotFoundError, match="t10k-images-idx3-ubyte"):
        mnist(tmp_path)


def test_missing_folders_and_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="root must be a folder"):
        mnist(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no file train-images-idx3-ubyte or train-images-idx3-ubyte\.gz"):
        mnist(tmp_path)
    write(tmp_path)
    (tmp_path / NAMES["train"][1]).unlink()
    with pytest.raises(FileNotFoundError, match="train-labels-idx1-ubyte"):
        mnist(tmp_path)
    with pytest.raises(FileNotFoundError, match="root must be a folder"):
        mnist(tmp_path / NAMES["train"][0])


IMAGES, LABELS = (idx(array) for array in draw_images(0, 40))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("images", b"", "truncated: 4 bytes of magic number wanted, 0 left"),
        ("images", IMAGES[:3], "truncated: 4 bytes of magic number"),
        ("images", IMAGES[:9], "truncated: 12 bytes of header wanted, 5 left"),
        ("images", IMAGES[:-1], "truncated or corrupt"),
        ("images", IMAGES[:16], "truncated or corrupt"),
        ("images", IMAGES + b"\0", "more data than the 31360 bytes"),
        ("images", LABELS, "wrong magic number 0x00000801, wanted 0x00000803"),
        ("labels", IMAGES, "wrong magic number 0x00000803, wanted 0x00000801"),
        ("images", b"\0\0\x0d\x03" + IMAGES[4:], "wrong magic number 0x00000d03"),
        ("images", b"PK\x03\x04" + IMAGES[4:], "wrong magic number 0x504b0304"),
        ("images", b"\0\0\x08\x03" + struct.pack(">3I", 0, 28, 28), "no data"),
        ("images", b"\0\0\x08\x03" + struct.pack(">3I", *[2**32 - 1] * 3) + IMAGES[16:], "cannot hold"),
        ("labels", idx(np.zeros(39, np.uint8)), "40 images but .* holds 39 labels"),
        ("labels", LABELS[:-1] + b"\x0a", "label 10 of example 39 is not in 0..9"),
        ("images", idx(np.zeros((40, 27, 28), np.uint8)), r"training images are \(27, 28\) but the test images are"),
        ("images", gzip.compress(IMAGES)[:-30], "truncated or corrupt gzip"),
        ("images", gzip.compress(IMAGES)[:10], "truncated or corrupt gzip"),
        ("images", b"\x1f\x8b" + IMAGES, "truncated or corrupt gzip"),
        ("images", gzip.compress(IMAGES[:-1]), "truncated: 31360 bytes of data wanted, 31359 left"),
        ("images", gzip.compress(IMAGES + b"\0"), "more data than the 31360 bytes"),
        ("images", gzip.compress(b"\0\0\x08\x03" + struct.pack(">3I", *[2**32 - 1] * 3)), "cannot hold"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_damaged_files_are_refused_by_name(tmp_path, name, content, words):
    write(tmp_path)
    file = tmp_path / NAMES["train"][name == "labels"]
    file.write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        mnist(tmp_path)
    assert str(file) in str(caught.value) or str(tmp_path) in str(caught.value)


def test_only_one_class_is_not_a_task(tmp_path):
    write(tmp_path)
    (tmp_path / NAMES["train"][1]).write_bytes(idx(np.zeros(40, np.uint8)))
    with pytest.raises(ValueError, match="only the class 0"):
        mnist(tmp_path)
    with pytest.raises(ValueError, match=r"classes must be among those of the data, \[0\], got 1"):
        mnist(tmp_path, classes=(0, 1))


def damage(draw, data):
    """Cut a file short, or change some of its bytes, preferably in the header."""
    data = bytearray(data)
    if draw(st.booleans()):
        return bytes(data[: draw(st.integers(0, len(data) - 1))])
    for _ in range(draw(st.integers(1, 4))):
        where = draw(st.one_of(st.integers(0, min(20, len(data) - 1)), st.integers(0, len(data) - 1)))
        data[where] = draw(st.integers(0, 255))
    return bytes(data)


@settings(deadline=None, max_examples=50)
@given(data=st.data(), zipped=st.booleans(), which=st.integers(0, 1))
def test_random_damage_is_read_or_refused(data, zipped, which):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, sizes=(12, 12), zipped=zipped, shape=(3, 4))
        file = folder / (NAMES["train"][which] + (".gz" if zipped else ""))
        file.write_bytes(damage(data.draw, file.read_bytes()))
        refusal = ""
        try:
            assert mnist(folder).num_examples == 12
        except ValueError as error:
            refusal = str(error)
        assert not refusal or name in refusal
