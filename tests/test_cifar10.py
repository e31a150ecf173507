"""CIFAR-10's batches: true small ones are read exactly, damaged and hostile ones are refused and run nothing."""

import builtins
import contextlib
import os
import pickle
import struct
import subprocess
import sys
import tempfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelgrowth.datasets import cifar10
from kernelgrowth.datasets.plain_pickle import load_plain_pickle

PIXELS = 3072
TRAIN = [f"data_batch_{number}" for number in range(1, 6)]
WATCHED = {"exec", "compile", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class"}


class Watch:
    """Records, while it is on, whatever Python says it is about to run."""

    def __init__(self):
        self.on = False
        self.events = []
        sys.addaudithook(self.hook)

    def hook(self, event, _):
        if self.on and event in WATCHED:
            self.events.append(event)

    def __enter__(self):
        self.on, self.events = True, []
        return self

    def __exit__(self, *_):
        self.on = False


WATCH = Watch()


def draw_batch(seed, n):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, PIXELS), dtype=np.uint8), [int(label) for label in rng.permutation(n) % 10]


def python_2_batch(images, labels):
    """The instructions that Python 2 wrote at protocol 2: strings without encoding, an array under its old names."""
    memo = iter(range(10_000))

    def put():
        return b"q" + bytes([next(memo)])

    def string(data):
        data = data.encode() if isinstance(data, str) else data
        head = b"U" + bytes([len(data)]) if len(data) < 256 else b"T" + struct.pack("<I", len(data))
        return head + data

    def integer(value):
        return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)

    array = b"".join(
        [
            b"cnumpy.core.multiarray\n_reconstruct\n", put(), b"cnumpy\nndarray\n", put(),
            b"K\x00\x85", put(), string("b"), b"\x87", put(), b"R", put(),
            b"(K\x01", integer(len(images)), integer(PIXELS), b"\x86", put(),
            b"cnumpy\ndtype\n", put(), string("u1"), b"K\x00K\x01\x87", put(), b"R", put(),
            b"(K\x03", string("|"), b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t", put(), b"b",
            b"\x89", string(images.tobytes()), b"t", put(), b"b",
        ]
    )  # fmt: skip
    items = [
        string("batch_label"), put(), string("training batch 1 of 5"), put(),
        string("labels"), put(), b"]", put(), b"(", *(integer(label) for label in labels), b"e",
        string("data"), put(), array,
        string("filenames"), put(), b"]", put(), b"(", *(string(f"image_{i}.png") + put() for i in range(3)), b"e",
    ]  # fmt: skip
    return b"\x80\x02}" + put() + b"(" + b"".join(items) + b"u."


def python_3_batch(images, labels, protocol=2, text=False):
    batch = {"batch_label": "training", "labels": labels, "data": images, "filenames": ["a.png"] * len(labels)}
    if not text:
        batch = {key.encode(): value for key, value in batch.items()}
    return pickle.dumps(batch, protocol=protocol)


def binary_batch(images, labels):
    return b"".join(bytes([label]) + image.tobytes() for image, label in zip(images, labels, strict=True))


ENCODINGS = {
    "Python 2": ("", python_2_batch),
    "protocol 2": ("", python_3_batch),
    "protocol 3": ("", lambda *batch: python_3_batch(*batch, protocol=3)),
    "protocol 4": ("", lambda *batch: python_3_batch(*batch, protocol=4, text=True)),
    "binary": (".bin", binary_batch),
}


def write(folder, encode=python_2_batch, suffix="", n=12, names=(*TRAIN, "test_batch")):
    folder.mkdir(parents=True, exist_ok=True)
    kept = {}
    for seed, name in enumerate(names):
        kept[name] = draw_batch(seed, n)
        (folder / f"{name}{suffix}").write_bytes(encode(*kept[name]))
    return kept


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("place", ["", "cifar-10-batches-py", "cifar-10-batches-bin"])
def test_every_example_is_read(tmp_path, encoding, place):
    suffix, encode = ENCODINGS[encoding]
    kept = write(tmp_path / place, encode, suffix)
    with WATCH:
        data = cifar10(tmp_path, targets="index")
    assert "pickle.find_class" not in WATCH.events
    assert data.x.shape == (60, PIXELS)
    assert data.x.dtype == np.float32
    assert data.num_test == 12
    assert data.info["image_shape"] == (3, 32, 32)
    assert data.info["class_names"][3] == "cat"
    for names, x, y in ((TRAIN, data.x, data.y), (["test_batch"], data.x_test, data.y_test)):
        rows = {
            (image / 255).astype(np.float32).tobytes(): label
            for name in names
            for image, label in zip(*kept[name], strict=True)
        }
        assert [rows.pop(row.tobytes()) for row in x] == list(y)
        assert not rows


def test_selection_targets_whitening_and_dtype(tmp_path):
    write(tmp_path)
    data = cifar10(tmp_path, classes=(0, 1), n_train=8, n_test=2, whiten=True, dtype=np.float64)
    assert data.x.shape == (8, PIXELS)
    np.testing.assert_allclose(data.x @ data.x.T, 8 * np.eye(8), atol=1e-9)
    assert data.x_test.shape == (2, PIXELS)
    assert sorted(data.y) == [-1.0] * 4 + [1.0] * 4
    assert data.info["class_names"] == ("airplane", "automobile")
    assert cifar10(tmp_path, n_train=8, n_test=0).y.shape == (8, 10)
    assert cifar10(tmp_path, batches=(2, 5)).num_examples == 24
    for wrong, error in (((), ValueError), ((1, 1), ValueError), ((0,), ValueError), ("12", TypeError), (1, TypeError)):
        with pytest.raises(error, match="batches must be"):
            cifar10(tmp_path, batches=wrong)


def test_missing_folders_and_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="root must be a folder"):
        cifar10(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no file data_batch_1 or data_batch_1\.bin"):
        cifar10(tmp_path)
    write(tmp_path, names=["data_batch_1", "data_batch_2"])
    with pytest.raises(FileNotFoundError, match="data_batch_3 is missing"):
        cifar10(tmp_path)
    with pytest.raises(FileNotFoundError, match="test_batch is missing"):
        cifar10(tmp_path, batches=[1, 2])
    assert cifar10(tmp_path, batches=[1, 2], n_test=0).num_examples == 24


GOOD_IMAGES, GOOD_LABELS = draw_batch(0, 12)


@pytest.mark.parametrize(
    ("suffix", "content", "words"),
    [
        (".bin", b"", "truncated or corrupt: 0 bytes"),
        (".bin", binary_batch(GOOD_IMAGES, GOOD_LABELS)[:-1], "truncated or corrupt: 36875 bytes are not a whole"),
        (".bin", b"\x0a" + bytes(PIXELS), "the label of example 0 is not in 0..9"),
        ("", b"", "truncated"),
        ("", b"not a pickle", "not a pickle of protocol 2 to 5"),
        ("", python_2_batch(GOOD_IMAGES, GOOD_LABELS)[:-1], "truncated"),
        ("", python_2_batch(GOOD_IMAGES, GOOD_LABELS) + b"x", "1 bytes after the end"),
        ("", python_3_batch(GOOD_IMAGES, GOOD_LABELS[:-1]), "12 images but 'labels' 11 labels"),
        ("", python_3_batch(GOOD_IMAGES, [*GOOD_LABELS[:-1], 10]), "the label of example 11 is not in 0..9"),
        ("", python_3_batch(GOOD_IMAGES, [-1, *GOOD_LABELS[1:]]), "the label of example 0 is not in 0..9"),
        ("", python_3_batch(GOOD_IMAGES, [10**50, *GOOD_LABELS[1:]]), "the label of example 0 is not in 0..9"),
        ("", python_3_batch(GOOD_IMAGES, [0.5, *GOOD_LABELS[1:]]), "'labels' must be a list of integers"),
        ("", python_3_batch(GOOD_IMAGES, tuple(GOOD_LABELS)), "'labels' must be a list of integers"),
        (
            "",
            python_3_batch(GOOD_IMAGES[:, :-1], GOOD_LABELS),
            r"must be a uint8 array \(N, 3072\), got uint8 \(12, 3071\)",
        ),
        ("", python_3_batch(GOOD_IMAGES.astype(np.float32), GOOD_LABELS), "got float32"),
        ("", python_3_batch(np.uint8(GOOD_IMAGES[0]), GOOD_LABELS), r"got uint8 \(3072,\)"),
        ("", python_3_batch(np.array(7, np.uint8), GOOD_LABELS), r"got uint8 \(\)"),
        ("", python_3_batch([1, 2], GOOD_LABELS), "got list"),
        ("", pickle.dumps([1, 2], 2), "must be a dict, got list"),
        ("", pickle.dumps({b"data": GOOD_IMAGES}, 2), "no entry 'labels'"),
        ("", pickle.dumps({b"labels": GOOD_LABELS}, 2), "no entry 'data'"),
    ],
)
def test_damaged_batches_are_refused_by_name(tmp_path, suffix, content, words):
    write(tmp_path, *reversed(ENCODINGS["binary" if suffix else "Python 2"]))
    file = tmp_path / f"data_batch_1{suffix}"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        cifar10(tmp_path)
    assert str(file) in str(caught.value)


# Pickles from strangers.


class Calls:
    """Pickles to a call of `function`."""

    def __init__(self, function, *arguments):
        self.recipe = (function, arguments)

    def __reduce__(self):
        return self.recipe


class WithState:
    """Pickles to a call of `function` followed by a state."""

    def __init__(self, function, arguments, state):
        self.recipe = (function, arguments, state)

    def __reduce__(self):
        return self.recipe


RECONSTRUCT = np.array(0).__reduce__()[0]
ENCODE = b"\x80\x02c_codecs\nencode\n"
ARRAY = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
DTYPE = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
BILLION = struct.pack("<q", 10**12)[:6]


def hostile_objects(canary):
    touch = f"touch {canary}"
    write_canary = f"open({str(canary)!r}, 'w').close()"
    return [
        Calls(os.system, touch),
        Calls(eval, write_canary),
        Calls(exec, write_canary),
        Calls(builtins.__import__, "this"),
        Calls(subprocess.Popen, ["touch", str(canary)]),
        Calls(open, str(canary), "w"),
        Calls(getattr, [], "append"),
        Calls(np.load, str(canary)),
        Calls(np.fromfile, str(canary)),
        Calls(np.memmap, str(canary), "u1", "w+"),
        Calls(np.ndarray, (10**12,), np.dtype("u1")),
        Calls(np.ndarray, (1,)),
        Calls(RECONSTRUCT, np.memmap, (1,), b"b"),
        Calls(RECONSTRUCT, np.matrix, (1,), b"b"),
        Calls(RECONSTRUCT, np.ndarray, (10**12,), b"b"),
        Calls(RECONSTRUCT, np.ndarray, (1,)),
        Calls(np.dtype, "O"),
        Calls(np.dtype, [("a", "u1")]),
        Calls(np.dtype, "V1000000000"),
        Calls(np.dtype, "u1"),
        WithState(np.dtype, ("u1", False, True), (3, "|", None, ("a",), {"a": 1}, -1, -1, 0)),
        WithState(np.dtype, ("u1", False, True), (4, "|", None, None, None, -1, -1, 0, {"metadata": 1})),
        WithState(np.dtype, ("u8", False, True), (3, "!", None, None, None, -1, -1, 0)),
        WithState(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (10**12,), np.dtype("u1"), False, b"1")),
        WithState(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (-1,), np.dtype("u1"), False, b"1")),
        WithState(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (1,), np.dtype("O"), False, [os.system])),
        WithState(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (1,), np.dtype("u1"), False, [7])),
        WithState(RECONSTRUCT, (np.ndarray, (0,), b"b"), {"shape": (1,)}),
        WithState(print, (), {"__name__": "x"}),
        np.array([{}], dtype=object),
        np.array(["text"]),
        np.zeros(2, dtype=[("a", "u1")]),
        np.zeros(2, dtype="M8[s]"),
        np.zeros(2, dtype=complex),
        np.float64(1.0),
        np.random.default_rng(0),
        OrderedDict(a=1),
        {1, 2},
        frozenset({1}),
        {1: 2},
        {(1, 2): 3},
        1j,
        print,
        Path("x"),
        ValueError("x"),
        range(3),
        slice(1),
        bytearray(b"x"),
        type,
        int,
        os.system,
        b"",
    ]


def test_the_watch_sees_what_the_standard_reader_would_run():
    with WATCH:
        assert pickle.loads(pickle.dumps(Calls(eval, "6 * 7"))) == 42
    assert {"pickle.find_class", "compile", "exec"} <= set(WATCH.events)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_objects_other_than_plain_data_are_refused_and_never_run(tmp_path, protocol):
    canary = tmp_path / "canary"
    for hostile in hostile_objects(canary):
        # Some are plain data at the protocols that have an instruction for them.
        if isinstance(hostile, bytes) and protocol > 2:
            continue
        for content in (hostile, {b"data": GOOD_IMAGES, b"labels": [hostile]}, [(hostile,)]):
            data = pickle.dumps(content, protocol)
            with WATCH, pytest.raises(ValueError, match="pickle refused"):
                load_plain_pickle(data)
            assert not WATCH.events
            assert not canary.exists()


@pytest.mark.parametrize(
    "data",
    [
        # Calls spelt by instructions that no pickler writes for data.
        b"\x80\x02(S'touch canary'\nios\nsystem\n.",
        b"\x80\x02(cos\nsystem\nU\x06canaryo.",
        b"\x80\x02cos\nsystem\n)\x81.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        b"\x80\x04K\x01K\x02\x93.",
        b"\x80\x04]]\x93.",
        b"\x80\x02\x82\x01.",
        b"\x80\x02P1\n.",
        b"\x80\x02U\x01aQ.",
        b"\x80\x05\x97.",
        # Names inside allowed modules, dotted names, missing names.
        b"\x80\x02cnumpy\nload\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x0dndarray.dumps\x93.",
        b"\x80\x02c_codecs\ndecode\n.",
        b"\x80\x02cnumpy\nndarray",
        b"\x80\x02cnumpy\xff\nndarray\n.",
        # The allowed names as values, or used as something else.
        b"\x80\x02cnumpy\nndarray\n.",
        b"\x80\x02]cnumpy\nndarray\na.",
        b"\x80\x02}U\x01acnumpy\ndtype\ns.",
        b"\x80\x02cnumpy\nndarray\n\x85\x85.",
        b"\x80\x02cnumpy\nndarray\n}b.",
        b"\x80\x02cnumpy\nndarray\n)R.",
        ENCODE + b"X\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86R.",
        ENCODE + b"X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.",
        ENCODE + b"X\x03\x00\x00\x00\xe2\x82\xacX\x06\x00\x00\x00latin1\x86R.",
        ENCODE + b"X\x01\x00\x00\x00a\x85R.",
        ENCODE + b"]X\x06\x00\x00\x00latin1\x86R.",
        ENCODE + b"X\x01\x00\x00\x00aR.",
        b"\x80\x02cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R.",
        b"\x80\x02cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R.",
        b"\x80\x02cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R]b.",
        b"\x80\x02" + DTYPE + b".",
        # Arrays without or with an impossible state.
        ARRAY + b".",
        ARRAY + b"\x85.",
        b"\x80\x02]" + ARRAY[2:] + b"a.",
        ARRAY + b")b.",
        ARRAY + b"(K\x02K\x01\x85" + DTYPE + b"\x89U\x01atb.",
        ARRAY + b"(K\x01K\x01\x85K\x07\x89U\x01atb.",
        ARRAY + b"(K\x01K\x01\x85" + DTYPE + b"K\x07U\x01atb.",
        ARRAY + b"(K\x01\x8a\x06" + BILLION + b"\x85" + DTYPE + b"\x89U\x01atb.",
        ARRAY + b"(K\x01(" + b"K\x01" * 65 + b"t" + DTYPE + b"\x89U\x01atb.",
        ARRAY + b"(K\x01]" + DTYPE + b"\x89U\x01atb.",
        ARRAY + b"(K\x01\x88\x85" + DTYPE + b"\x89U\x01atb.",
        # Absurd sizes and memo entries.
        b"\x80\x02T\xff\xff\xff\xffa.",
        b"\x80\x03B\xff\xff\xff\x7fa.",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fa.",
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xffa.",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xffN.",
        b"\x80\x02\x8b\xff\xff\xff\x7fa.",
        b"\x80\x02j\xff\xff\xff\xff.",
        b"\x80\x02h\x00.",
        b"\x80\x02Nr\xff\xff\xff\xff",
        # A stack in disorder.
        b"\x80\x02.",
        b"\x80\x02NN.",
        b"\x80\x02(N.",
        b"\x80\x02t.",
        b"\x80\x02\x85.",
        b"\x80\x02Na.",
        b"\x80\x02]Nu.",
        b"\x80\x02}(Nu.",
        b"\x80\x02}Ns.",
        b"\x80\x02R.",
        b"\x80\x02b.",
        b"\x80\x02q\x00.",
        b"\x80\x02(q\x00.",
        b"\x80\x04\x94.",
        # Not this kind of pickle at all.
        b"\x80\x01N.",
        b"\x80\x06N.",
        b"\x80",
        b"\x80\x02",
        b"N.",
        b"(dp0\n.",
        b"\x80\x02\x80\x02N.",
    ],
)  # fmt: skip
def test_instructions_out_of_place_are_refused(data):
    with WATCH, pytest.raises(ValueError, match=r"pickle refused|codec can't"):
        load_plain_pickle(data)
    assert not WATCH.events


def test_a_string_cannot_be_multiplied_into_a_bomb():
    text = b"X" + struct.pack("<I", 1000) + b"a" * 1000
    once = b"h\x00h\x01h\x02\x86R"
    start = b"\x80\x02]c_codecs\nencode\nq\x00" + text + b"q\x01X\x06\x00\x00\x00latin1q\x02\x87"
    with pytest.raises(ValueError, match="it builds more bytes than it holds"):
        load_plain_pickle(start + b"]" + (once + b"a") * 100 + b".")


def test_deep_and_shared_containers_end():
    deep = b"\x80\x02]" + b"\x85" * 100_000 + b"."
    assert isinstance(load_plain_pickle(deep), tuple)
    shared = b"\x80\x02K\x01" + b"q\x00h\x00\x86" * 200 + b"."
    assert len(load_plain_pickle(shared)) == 2
    # As a key it would take for ever to hash.
    with pytest.raises(ValueError, match="a dictionary key of type tuple"):
        load_plain_pickle(b"\x80\x02}K\x01" + b"q\x00h\x00\x86" * 200 + b"Ns.")
    itself = load_plain_pickle(b"\x80\x02]q\x00h\x00a.")
    assert itself[0] is itself


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**600), 2**600)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(min_size=1),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.binary(min_size=1), inner),
    max_leaves=20,
)


@given(value=PLAIN, protocol=st.integers(2, 5))
def test_plain_data_come_back_as_they_were(value, protocol):
    assert load_plain_pickle(pickle.dumps(value, protocol)) == value


@given(
    shape=st.lists(st.integers(1, 4), max_size=4),
    dtype=st.sampled_from(["u1", "i2", ">i4", "<i8", "f2", "f4", ">f8", "u8"]),
    order=st.sampled_from("CF"),
    protocol=st.integers(2, 4),
)
def test_arrays_come_back_as_they_were(shape, dtype, order, protocol):
    array = np.asarray(np.arange(np.prod(shape, dtype=int)).reshape(shape), dtype=dtype, order=order)
    shared = load_plain_pickle(pickle.dumps([array, (array, "text"), {"key": array}], protocol))
    assert shared[0] is shared[1][0] is shared[2]["key"]
    assert shared[0].dtype == array.dtype
    np.testing.assert_array_equal(shared[0], array)


def damage(draw, data):
    data = bytearray(data)
    kind = draw(st.sampled_from(["cut", "change", "insert", "drop"]))
    if kind == "cut":
        return bytes(data[: draw(st.integers(0, len(data) - 1))])
    for _ in range(draw(st.integers(1, 6))):
        # Most of a batch is pixels: aim at the instructions, which are at its ends.
        where = draw(st.integers(0, 300) | st.integers(len(data) - 80, len(data) - 2))
        if kind == "change":
            data[where] = draw(st.integers(0, 255))
        elif kind == "insert":
            data[where:where] = draw(st.binary(min_size=1, max_size=4))
        else:
            del data[where]
    return bytes(data)


@settings(deadline=None, max_examples=150)
@given(data=st.data(), encoding=st.sampled_from(sorted(ENCODINGS)))
def test_random_damage_is_read_or_refused_and_runs_nothing(data, encoding):
    suffix, encode = ENCODINGS[encoding]
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / f"data_batch_1{suffix}"
        file.write_bytes(damage(data.draw, encode(*draw_batch(0, 3))))
        with WATCH:
            refusal = ""
            try:
                assert cifar10(name, batches=[1], n_test=0).x.shape[1] == PIXELS
            except ValueError as error:
                refusal = str(error)
        # What is wrong with a file is said with its name; labels can also be changed into good ones.
        assert not refusal or name in refusal or "only the class" in refusal
        assert not WATCH.events


@settings(max_examples=300)
@given(data=st.binary(max_size=60), protocol=st.integers(2, 5))
def test_random_bytes_are_read_or_refused(data, protocol):
    with contextlib.suppress(ValueError):
        load_plain_pickle(bytes([0x80, protocol]) + data)
