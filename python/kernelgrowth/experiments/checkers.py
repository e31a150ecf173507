"""Checks of configuration values: functions of the key's path and the value, returning the value in its final type."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from kernelgrowth._backend.checks import check_choice, check_integer, check_number

__all__ = [
    "Check",
    "choice",
    "flag",
    "flag_or",
    "integer",
    "integer_or_steps",
    "list_of",
    "number",
    "optional",
    "rates",
    "text",
    "whitening",
]

Check = Callable[[str, Any], Any]


def choice(*options: str) -> Check:
    """Accept one of the strings."""
    return lambda path, value: check_choice(path, value, options)


def integer(minimum: int) -> Check:
    """Accept an integer of at least `minimum` that fits 64 bits."""
    return lambda path, value: check_integer(path, value, minimum=minimum, maximum=2**63 - 1)


def number(minimum: float, maximum: float | None = None, *, exclusive: bool = False) -> Check:
    """Accept a finite number within bounds; `exclusive` leaves out the lower one."""

    def check(path: str, value: Any) -> float:
        try:
            return check_number(path, value, minimum=minimum, maximum=maximum, exclusive_minimum=exclusive)
        except OverflowError:
            raise ValueError(f"{path} must be a number that a float can hold") from None

    return check


def flag(path: str, value: Any) -> bool:
    """Accept true or false."""
    if not isinstance(value, bool):
        raise TypeError(f"{path} must be true or false, got {value!r}")
    return value


def text(path: str, value: Any) -> str:
    """Accept a string that is not empty."""
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise TypeError(f"{path} must be a text that is not empty, got {value!r}")
    return value


def optional(check: Check) -> Check:
    """Accept None, the absence of a key, as well."""
    return lambda path, value: None if value is None else check(path, value)


def flag_or(check: Check) -> Check:
    """Accept true, false, or what `check` accepts."""

    def either(path: str, value: Any) -> Any:
        if isinstance(value, bool):
            return value
        try:
            return check(path, value)
        except (TypeError, ValueError) as error:
            raise type(error)(str(error).replace(" must be ", " must be true, false or ", 1)) from None

    return either


def list_of(check: Check, *, at_least: int = 0, distinct: bool = False) -> Check:
    """Accept a list whose items `check` accepts; it becomes a tuple."""

    def check_all(path: str, value: Any) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)):
            raise TypeError(f"{path} must be a list, got {value!r}")
        if len(value) < at_least:
            raise ValueError(f"{path} must have at least {at_least} entries, got {len(value)}")
        items = tuple(check(f"{path}[{i}]", item) for i, item in enumerate(value))
        if distinct and len(set(items)) != len(items):
            raise ValueError(f"{path} must not repeat an entry, got {list(items)}")
        return items

    return check_all


def integer_or_steps(path: str, value: Any) -> int | tuple[int, ...]:
    """Accept a period of at least 1, or a list of ascending steps."""
    if not isinstance(value, (list, tuple)):
        return check_integer(path, value, minimum=1, maximum=2**63 - 1)
    steps: tuple[int, ...] = list_of(integer(0), at_least=1)(path, value)
    for before, after in itertools.pairwise(steps):
        if after <= before:
            raise ValueError(f"{path} must list ascending steps, got {after} after {before}")
    return steps


def rates(path: str, value: Any) -> Mapping[str, float] | None:
    """Accept a table of multipliers by layer, none negative; 0 freezes a layer. An empty table is none."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{path} must be a table such as {{layer1 = 0.5}}, got {value!r}")
    multiplier = number(0.0)
    checked = {str(layer): multiplier(f"{path}.{layer}", rate) for layer, rate in value.items()}
    return MappingProxyType(checked) if checked else None


def whitening(path: str, value: Any) -> bool | float:
    """Accept true, false, or a gamma in [0, 1] written with a decimal point."""
    if isinstance(value, bool):
        return value
    # 1 could mean "yes" (gamma = 0) or gamma = 1, which are opposites.
    if isinstance(value, int):
        raise TypeError(f"{path} must be true, false or a gamma such as 0.5, got the integer {value}: write {value}.0")
    return float(number(0.0, 1.0)(path, value))
