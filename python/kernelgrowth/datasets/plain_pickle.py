"""Read pickles that hold nothing but arrays, strings, bytes, numbers and containers; refuse all others.

A pickle is a program: `pickle.load` calls whatever functions it names with whatever arguments it gives, and
some of NumPy's own are unsafe on bad ones. This reader is a stack machine that knows only the instructions which build
plain data. The few global names of a pickled array stand for inert markers; what the array is made of is checked
here, and the array is a view of the bytes read. So a pickle from a stranger can call nothing, and builds
nothing much larger than itself.

Differences from the standard library's reader: protocol 2 or later; dictionary keys are str or bytes (others can be
chosen to collide, or to take for ever to hash); bytes after the end are refused; nothing that stands for code, classes,
persistent or out-of-band objects.
"""

from __future__ import annotations

import math
import pickle
import struct
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

__all__ = ["load_plain_pickle"]

_PROTOCOLS = range(2, 6)


class _Global:
    """One of the names that a pickled array refers to."""

    def __init__(self, name: str) -> None:
        self.name = name


class _Dtype:
    """A fixed-size numeric dtype: its code, to which the state adds the byte order."""

    def __init__(self, code: str) -> None:
        self.code = code
        self.order = "|"


class _PendingArray:
    """An array between its creation and its state, and the memo entries to be replaced by it."""

    def __init__(self) -> None:
        self.memo_keys: list[int] = []


class _Parts(tuple[Any, ...]):
    """A tuple with one of these internal things in it: arguments or state, never a result."""

    __slots__ = ()


_INTERNAL = (_Global, _Dtype, _PendingArray, _Parts)
_RECONSTRUCT, _NDARRAY, _DTYPE, _ENCODE = (_Global(name) for name in ("_reconstruct", "ndarray", "dtype", "encode"))
_GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _DTYPE,
    ("_codecs", "encode"): _ENCODE,
}
_DTYPE_CODES = ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
# The state of a dtype without fields, subarray or metadata, after its version and byte order.
_PLAIN_DTYPE_STATE = (None, None, None, -1, -1, 0)


def load_plain_pickle(data: bytes) -> Any:
    """Rebuild the plain data in a pickle of protocol 2 or later.

    Parameters
    ----------
    data : bytes
        The whole pickle. Strings written by Python 2 come out as bytes.

    Returns
    -------
    object
        None, bool, int, float, str, bytes, list, tuple, dict with str or bytes keys, or a numeric ndarray
        (read-only, a view of the bytes read).

    Raises
    ------
    ValueError
        If the pickle is truncated or corrupt, or holds anything else; nothing is ever called on its behalf.
    """
    return _Reader(data).run()


class _Reader:
    """The stack machine. `stack` holds the items since the last mark, `below` the stacks under it."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.encoded = 0

    def run(self) -> Any:
        if self.take(1) != pickle.PROTO or self.number("<B") not in _PROTOCOLS:
            _refuse("not a pickle of protocol 2 to 5")
        while (code := self.take(1)) != pickle.STOP:
            instruction = _INSTRUCTIONS.get(code)
            if instruction is None:
                _refuse(f"instruction {code!r} at byte {self.position - 1} builds something other than plain data")
            instruction(self)
        result = self.pop()
        if self.stack or self.below:
            _refuse("corrupt: objects left over at the end")
        if self.position != len(self.data):
            _refuse(f"corrupt: {len(self.data) - self.position} bytes after the end")
        return _checked(result)

    # What the instructions are made of.

    def take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self.data):
            _refuse(f"truncated: {count} bytes wanted at byte {self.position} of {len(self.data)}")
        chunk = self.data[self.position : end]
        self.position = end
        return chunk

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def line(self) -> str:
        end = self.data.find(b"\n", self.position)
        if end < 0:
            _refuse(f"truncated: a line without an end at byte {self.position}")
        return self.take(end + 1 - self.position)[:-1].decode("utf-8")

    def text(self, layout: str) -> str:
        return self.take(self.number(layout)).decode("utf-8", "surrogatepass")

    def push(self, item: Any) -> None:
        self.stack.append(item)

    def pop(self) -> Any:
        if not self.stack:
            _refuse(f"corrupt: nothing to take from the stack at byte {self.position}")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        if not self.below:
            _refuse(f"corrupt: no mark on the stack at byte {self.position}")
        items, self.stack = self.stack, self.below.pop()
        return items

    def top(self, kind: type[Any]) -> Any:
        if not self.stack or type(self.stack[-1]) is not kind:
            _refuse(f"corrupt: no {kind.__name__} to add to at byte {self.position}")
        return self.stack[-1]

    # The instructions.

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def remember(self, key: int) -> None:
        item = self.pop()
        self.push(item)
        self.memo[key] = item
        if isinstance(item, _PendingArray):
            item.memo_keys.append(key)

    def recall(self, key: int) -> None:
        if key not in self.memo:
            _refuse(f"corrupt: object {key} is used before it is made")
        self.push(self.memo[key])

    def push_tuple(self, items: list[Any]) -> None:
        internal = any(isinstance(item, _INTERNAL) for item in items)
        self.push(_Parts(items) if internal else tuple(items))

    def push_short_tuple(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self.push_tuple(items[::-1])

    def append(self, items: list[Any]) -> None:
        self.top(list).extend(_checked(item) for item in items)

    def set_items(self, items: list[Any]) -> None:
        if len(items) % 2:
            _refuse(f"corrupt: a key without a value at byte {self.position}")
        target = self.top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, (str, bytes)):
                _refuse(f"a dictionary key of type {type(key).__name__}; only str and bytes are read")
            target[key] = _checked(value)

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        self.set_items([key, value])

    def find_global(self, module: Any, name: Any) -> None:
        found = _GLOBALS.get((module, name)) if isinstance(module, str) and isinstance(name, str) else None
        if found is None:
            _refuse(f"it refers to {_short(module)}.{_short(name)}, which is no part of a numeric array")
        self.push(found)

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        self.find_global(module, name)

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(arguments, tuple):
            _refuse("corrupt: the arguments of a call are no tuple")
        if function is _RECONSTRUCT and len(arguments) == 3 and arguments[0] is _NDARRAY:
            self.push(_PendingArray())
        elif function is _DTYPE and len(arguments) in (1, 3):
            self.push(_Dtype(_dtype_code(arguments[0])))
        elif function is _ENCODE and len(arguments) == 2 and all(isinstance(part, str) for part in arguments):
            self.push(self.encode(*arguments))
        else:
            _refuse("a call other than those that build a numeric array")

    def encode(self, text: str, encoding: str) -> bytes:
        """Return bytes that protocol 2 wrote as text."""
        if encoding != "latin1":
            _refuse(f"a string in the encoding {_short(encoding)}")
        # One string encoded again and again could fill the memory.
        self.encoded += len(text)
        if self.encoded > len(self.data):
            _refuse("it builds more bytes than it holds")
        return text.encode("latin-1")

    def build(self) -> None:
        state, item = self.pop(), self.pop()
        if isinstance(item, _Dtype):
            item.order = _byte_order(state)
            self.push(item)
        elif isinstance(item, _PendingArray):
            array = _array(state)
            for key in item.memo_keys:
                self.memo[key] = array
            self.push(array)
        else:
            _refuse("a state for something that is no numeric array")


_INSTRUCTIONS: dict[bytes, Callable[[_Reader], None]] = {
    pickle.FRAME: lambda r: None if r.number("<Q") <= len(r.data) else _refuse("truncated frame"),
    pickle.MARK: _Reader.mark,
    pickle.NONE: lambda r: r.push(None),
    pickle.NEWTRUE: lambda r: r.push(True),
    pickle.NEWFALSE: lambda r: r.push(False),
    pickle.BININT: lambda r: r.push(r.number("<i")),
    pickle.BININT1: lambda r: r.push(r.number("<B")),
    pickle.BININT2: lambda r: r.push(r.number("<H")),
    pickle.LONG1: lambda r: r.push(int.from_bytes(r.take(r.number("<B")), "little", signed=True)),
    pickle.BINFLOAT: lambda r: r.push(r.number(">d")),
    # Python 2's str: text or bytes, which nobody can know, so bytes.
    pickle.SHORT_BINSTRING: lambda r: r.push(r.take(r.number("<B"))),
    pickle.BINSTRING: lambda r: r.push(r.take(r.number("<I"))),
    pickle.SHORT_BINBYTES: lambda r: r.push(r.take(r.number("<B"))),
    pickle.BINBYTES: lambda r: r.push(r.take(r.number("<I"))),
    pickle.BINBYTES8: lambda r: r.push(r.take(r.number("<Q"))),
    pickle.SHORT_BINUNICODE: lambda r: r.push(r.text("<B")),
    pickle.BINUNICODE: lambda r: r.push(r.text("<I")),
    pickle.BINUNICODE8: lambda r: r.push(r.text("<Q")),
    pickle.EMPTY_TUPLE: lambda r: r.push(()),
    pickle.TUPLE1: lambda r: r.push_short_tuple(1),
    pickle.TUPLE2: lambda r: r.push_short_tuple(2),
    pickle.TUPLE3: lambda r: r.push_short_tuple(3),
    pickle.TUPLE: lambda r: r.push_tuple(r.pop_to_mark()),
    pickle.EMPTY_LIST: lambda r: r.push([]),
    pickle.APPEND: lambda r: r.append([r.pop()]),
    pickle.APPENDS: lambda r: r.append(r.pop_to_mark()),
    pickle.EMPTY_DICT: lambda r: r.push({}),
    pickle.SETITEM: _Reader.set_item,
    pickle.SETITEMS: lambda r: r.set_items(r.pop_to_mark()),
    pickle.BINPUT: lambda r: r.remember(r.number("<B")),
    pickle.LONG_BINPUT: lambda r: r.remember(r.number("<I")),
    pickle.MEMOIZE: lambda r: r.remember(len(r.memo)),
    pickle.BINGET: lambda r: r.recall(r.number("<B")),
    pickle.LONG_BINGET: lambda r: r.recall(r.number("<I")),
    pickle.GLOBAL: lambda r: r.find_global(r.line(), r.line()),
    pickle.STACK_GLOBAL: _Reader.stack_global,
    pickle.REDUCE: _Reader.reduce,
    pickle.BUILD: _Reader.build,
}


def _dtype_code(code: Any) -> str:
    text = code.decode("latin-1") if isinstance(code, bytes) else code
    if not isinstance(text, str) or text not in _DTYPE_CODES:
        _refuse(f"an array of dtype {_short(text)}; only fixed-size numbers are read")
    return text


def _byte_order(state: Any) -> str:
    # Types first: comparing an array with a number gives an array.
    if type(state) is not tuple or len(state) != 8 or any(isinstance(part, (np.ndarray, list, dict)) for part in state):
        _refuse("a dtype whose state is of an unknown form")
    if state[0] != 3 or state[2:] != _PLAIN_DTYPE_STATE:
        _refuse("a dtype that is no plain number")
    order = state[1].decode("latin-1") if isinstance(state[1], bytes) else state[1]
    if not isinstance(order, str) or order not in ("|", "<", ">", "="):
        _refuse(f"an array with the byte order {_short(order)}")
    return order


def _array(state: Any) -> npt.NDArray[Any]:
    if not isinstance(state, _Parts) or len(state) != 5:
        _refuse("an array whose state is of an unknown form")
    version, shape, kind, fortran, raw = state
    if type(version) is not int or version != 1 or type(fortran) not in (bool, int) or fortran not in (0, 1):
        _refuse("an array whose state is of an unknown form")
    if type(shape) is not tuple or any(type(length) is not int or length < 0 for length in shape) or len(shape) > 32:
        _refuse("an array with an impossible shape")
    if not isinstance(kind, _Dtype) or not isinstance(raw, bytes):
        _refuse("an array that is not made of numbers in a string of bytes")
    dtype = np.dtype(kind.order + kind.code)
    if math.prod(shape) * dtype.itemsize != len(raw):
        _refuse(f"corrupt: an array of shape {_short(str(shape))} and dtype {dtype} in {len(raw)} bytes")
    return np.frombuffer(raw, dtype=dtype).reshape(shape, order="F" if fortran else "C")


def _checked(item: Any) -> Any:
    if isinstance(item, _INTERNAL):
        _refuse("corrupt: a part of an array where a value should be")
    return item


def _short(value: Any) -> str:
    # Never the repr of a container: it can be exponentially longer than the pickle.
    text = value if isinstance(value, str) else type(value).__name__
    return text if len(text) <= 60 else f"{text[:57]}..."


def _refuse(reason: str) -> NoReturn:
    raise ValueError(f"pickle refused: {reason}")
