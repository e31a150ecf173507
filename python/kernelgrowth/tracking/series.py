"""The line format of a recorded series: one strict JSON object per tracked step, exact to the bit.

Floats are written by their shortest exact decimal form. Strict JSON has no words for the others, so NaN is ``null``
and an infinity is ``1e999`` or ``-1e999``, which every reader rounds back to infinity.
"""

from __future__ import annotations

import functools
import json
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["Record", "decode_lines", "decode_record", "encode_record"]

Record = dict[str, Any]
"""Name -> int (``step``), float, or list of floats."""


def encode_record(record: Mapping[str, Any]) -> str:
    """Return `record` as one line of JSON, newline included."""
    fields = (f"{_encode_name(name)}: {_encode_value(value)}" for name, value in record.items())
    return "{" + ", ".join(fields) + "}\n"


# The same few names at every step.
_encode_name = functools.lru_cache(maxsize=4096)(json.dumps)


def _encode_value(value: Any) -> str:
    if isinstance(value, Sequence):
        return "[" + ", ".join(_encode_number(item) for item in value) + "]"
    return _encode_number(value)


def _encode_number(value: Any) -> str:
    # Nearly all are.
    if type(value) is float and math.isfinite(value):
        return repr(value)
    if isinstance(value, numbers.Integral):
        return str(int(value))
    number = float(value)
    if math.isnan(number):
        return "null"
    if math.isinf(number):
        return "1e999" if number > 0 else "-1e999"
    return repr(number)


def decode_record(line: str | bytes) -> Record:
    """Return the record that one line holds.

    Raises
    ------
    ValueError
        If the line is not one JSON object of numbers and lists of numbers with an integer ``step``.
    """
    record = json.loads(line)
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    decoded = {name: _decode_value(name, value) for name, value in record.items()}
    if not isinstance(decoded.get("step"), int):
        raise ValueError("no integer 'step'")
    return decoded


def _decode_value(name: str, value: Any) -> Any:
    if isinstance(value, list):
        return [_decode_number(name, item) for item in value]
    return _decode_number(name, value)


def _decode_number(name: str, value: Any) -> int | float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name!r} is not a number or a list of numbers")
    return value


def decode_lines(content: bytes) -> list[Record]:
    """Return the records that lines hold.

    What follows the last newline is a line whose writing was cut short, and is left out.

    Raises
    ------
    ValueError
        If a finished line is not a record; the message starts with the line's number.
    """
    records: list[Record] = []
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            records.append(decode_record(line))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
    return records
