"""TOML as text: on which line a key stands, and how a table of plain values is written."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["format_toml", "key_lines"]

_KEY_PART = r"""(?:[A-Za-z0-9_-]+|"[^"\n]*"|'[^'\n]*')"""
_DOTTED = rf"{_KEY_PART}(?:\s*\.\s*{_KEY_PART})*"
_HEADER = re.compile(rf"\s*\[\s*({_DOTTED})\s*\]\s*(?:#.*)?")
_ASSIGNMENT = re.compile(rf"\s*({_DOTTED})\s*=")
_BARE = re.compile(r"[A-Za-z0-9_-]+")


def key_lines(text: str) -> dict[str, int]:
    """Return the line, counted from 1, on which each table and key of a valid TOML text is first written.

    Keys are dotted paths such as ``training.lr``. Keys inside inline tables have no entry of their own; look up the
    longest path that has one. Lines of a multi-line string that look like a key may add entries, never move one that
    stands before them.
    """
    lines: dict[str, int] = {}
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.fullmatch(line):
            table = _parts(header.group(1))
            path = table
        elif assignment := _ASSIGNMENT.match(line):
            path = (*table, *_parts(assignment.group(1)))
        else:
            continue
        for length in range(1, len(path) + 1):
            lines.setdefault(".".join(path[:length]), number)
    return lines


def _parts(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip("\"'") for part in re.findall(_KEY_PART, dotted))


def format_toml(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Write tables of strings, numbers, booleans, lists of these, and tables of these, as TOML.

    ``tomllib.loads`` reads back equal values.
    """
    blocks: list[str] = []
    for name, table in tables.items():
        plain = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
        nested = {key: value for key, value in table.items() if isinstance(value, Mapping)}
        blocks.append(_block(_key(name), plain))
        blocks.extend(_block(f"{_key(name)}.{_key(key)}", value) for key, value in nested.items())
    return "\n".join(blocks)


def _block(header: str, values: Mapping[str, Any]) -> str:
    return "\n".join([f"[{header}]", *(f"{_key(key)} = {_value(value)}" for key, value in values.items())]) + "\n"


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _string(key)


def _string(text: str) -> str:
    # JSON's escapes are TOML's, but for the delete character, which JSON leaves as it is.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_value(item) for item in value)}]"
    if isinstance(value, (int, float)):
        return repr(value)
    raise TypeError(f"no TOML for {value!r}")
