"""Training and test examples that belong together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kernelgrowth._backend.arrays import array_namespace, as_array

__all__ = ["Dataset"]


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Examples for training, and optionally examples held out.

    Attributes
    ----------
    x : ndarray (N, D), float32 or float64
        Training inputs, one example a row.
    y : ndarray (N,) or (N, C)
        Training targets in the dtype of `x`, or integer class indices.
    x_test : ndarray (M, D) or None
        Inputs held out, of the dtype of `x`.
    y_test : ndarray (M,) or (M, C) or None
        Their targets, of the dtype and number of columns of `y`.
    name : str
        What the data are, for titles and run folders.
    info : dict
        Where they come from and how they were prepared (the maker of the data set documents the keys).

    Raises
    ------
    TypeError
        If an array is not real, or dtypes are mixed.
    ValueError
        If a shape does not fit, there is no example or no feature, or a value is not finite.
    """

    x: Any
    y: Any
    x_test: Any = None
    y_test: Any = None
    name: str = "data"
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(f"name must be a string, got {self.name!r}")
        if not isinstance(self.info, dict):
            raise TypeError(f"info must be a dict, got {type(self.info).__name__}")
        x = _inputs("x", self.x)
        y = _targets("y", self.y, x, "x")
        x_test = y_test = None
        if self.x_test is not None:
            x_test = _inputs("x_test", self.x_test)
            if x_test.shape[1] != x.shape[1]:
                raise ValueError(f"x_test must have the {x.shape[1]} features of x, got shape {x_test.shape}")
            if x_test.dtype != x.dtype:
                raise TypeError(f"x_test is {x_test.dtype} but x is {x.dtype}: convert one of them explicitly")
        if self.y_test is not None:
            if x_test is None:
                raise ValueError("y_test was given without x_test")
            y_test = _targets("y_test", self.y_test, x_test, "x_test")
            if y_test.shape[1:] != y.shape[1:]:
                raise ValueError(f"y_test must have the columns of y {y.shape}, got shape {y_test.shape}")
            if y_test.dtype != y.dtype:
                raise TypeError(f"y_test is {y_test.dtype} but y is {y.dtype}: convert one of them explicitly")
        array_namespace(x, y, x_test, y_test)
        for name, value in (("x", x), ("y", y), ("x_test", x_test), ("y_test", y_test)):
            object.__setattr__(self, name, value)

    @property
    def num_examples(self) -> int:
        """Number of training examples N."""
        return int(self.x.shape[0])

    @property
    def num_features(self) -> int:
        """Number of features D of an example."""
        return int(self.x.shape[1])

    @property
    def num_test(self) -> int:
        """Number of examples held out, 0 if there are none."""
        return 0 if self.x_test is None else int(self.x_test.shape[0])

    def __repr__(self) -> str:
        return (
            f"Dataset({self.name!r}, x {self.x.shape} {self.x.dtype}, y {self.y.shape} {self.y.dtype}, "
            f"{self.num_test} test examples)"
        )


def _inputs(name: str, value: Any) -> Any:
    x = as_array(name, value, ndim=2)
    if 0 in x.shape:
        raise ValueError(f"{name} must have at least one example and one feature, got shape {x.shape}")
    return x


def _targets(name: str, value: Any, x: Any, name_x: str) -> Any:
    dtype = getattr(value, "dtype", None)
    # Class indices stay integers; as_array would turn them into floats.
    integers = isinstance(dtype, np.dtype) and dtype.kind in "iu"
    y = value if integers else as_array(name, value, ndim=(1, 2))
    if y.ndim not in (1, 2):
        raise ValueError(f"{name} must have 1 or 2 dimension(s), got shape {y.shape}")
    if y.shape[0] != x.shape[0]:
        raise ValueError(f"{name} must have one row for each of the {x.shape[0]} examples of {name_x}, got {y.shape}")
    if y.ndim == 2 and y.shape[1] == 0:
        raise ValueError(f"{name} must have at least one column, got shape {y.shape}")
    if not integers and y.dtype != x.dtype:
        raise TypeError(f"{name} is {y.dtype} but {name_x} is {x.dtype}: convert one of them explicitly")
    return y
