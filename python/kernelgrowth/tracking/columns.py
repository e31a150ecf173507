"""The series of a run as columns that grow with every tracked step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from kernelgrowth.tracking.series import Record

__all__ = ["Series"]

_COUNTS = frozenset({"step", "num_examples"})

Column = npt.NDArray[Any]


class Series:
    """Named columns of one length, a row a tracked step; ``step`` increases.

    Parameters
    ----------
    columns : mapping of str to array, optional
        What there is already, ``step`` among it: arrays (T,) or (T, k), in the order of a record's fields.

    Notes
    -----
    Appending costs a few numbers, whatever the length. A snapshot shares memory with what it was taken of, of which
    rows are added to and never changed.
    """

    def __init__(self, columns: Mapping[str, Column] | None = None) -> None:
        self._columns = dict(columns or {})
        self._length = len(self._columns["step"]) if self._columns else 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    def __getitem__(self, name: str) -> Column:
        return self._columns[name][: self._length]

    @property
    def steps(self) -> npt.NDArray[np.int64]:
        """Tracked steps (T,), ascending."""
        return self["step"] if self._columns else np.zeros(0, np.int64)

    def record(self, row: int) -> Record:
        """Return a row by name, as numbers and lists of numbers; a negative number counts from the end."""
        return {name: self[name][row].tolist() for name in self}

    def row_of(self, step: int) -> int | None:
        """Return the row of a step, None if it was not tracked."""
        row = int(np.searchsorted(self.steps, step))
        return row if row < self._length and self.steps[row] == step else None

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a row.

        Raises
        ------
        ValueError
            If its fields are not those of the rows before, or its step does not follow theirs.
        """
        if not self._columns:
            self._columns = {name: _column(name, value) for name, value in record.items()}
        widths = {name: len(value) if isinstance(value, list) else None for name, value in record.items()}
        if widths != {name: column.shape[1] if column.ndim > 1 else None for name, column in self._columns.items()}:
            raise ValueError("its fields are not those of the rows before")
        if self._length and record["step"] <= self.steps[-1]:
            raise ValueError(f"step {record['step']} does not follow step {self.steps[-1]}")
        if self._length == len(self._columns["step"]):
            self._columns = {name: _longer(column) for name, column in self._columns.items()}
        for name, column in self._columns.items():
            column[self._length] = record[name]
        self._length += 1

    def extend(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Add rows that were lines; the message of a `ValueError` starts with the line's number among them."""
        for number, record in enumerate(records, start=1):
            try:
                self.append(record)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error

    def snapshot(self) -> Series:
        """Return the rows there are now."""
        return self.first(self._length)

    def first(self, count: int) -> Series:
        """Return the first rows, as a snapshot."""
        return Series({name: column[:count] for name, column in self._columns.items()} if count else None)


def _column(name: str, value: Any) -> Column:
    shape = (16, len(value)) if isinstance(value, list) else (16,)
    return np.empty(shape, np.int64 if name in _COUNTS else np.float64)


def _longer(column: Column) -> Column:
    longer = np.empty((max(16, 2 * len(column)), *column.shape[1:]), column.dtype)
    longer[: len(column)] = column
    return longer
