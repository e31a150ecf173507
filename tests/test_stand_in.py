"""The stand-in for CuPy offers nothing that CuPy has not, where CuPy is installed (it needs no GPU for this)."""

from __future__ import annotations

import numpy as np
import pytest

import stand_in_cupy

cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
special = pytest.importorskip("cupyx.scipy.special", reason="CuPy is not installed")


def test_names_are_cupys():
    assert [name for name in stand_in_cupy.FUNCTIONS if not hasattr(cupy, name)] == []
    assert [name for name in stand_in_cupy.LINALG if not hasattr(cupy.linalg, name)] == []
    names = stand_in_cupy.METHODS | stand_in_cupy.ATTRIBUTES
    assert [name for name in names if not hasattr(cupy.ndarray, name)] == []
    stand_in = stand_in_cupy.CuPy()
    assert [name for name in vars(stand_in.cuda) if not hasattr(cupy.cuda, name)] == []
    assert [name for name in vars(stand_in.cuda.runtime) if not hasattr(cupy.cuda.runtime, name)] == []
    names = {name for name in vars(stand_in_cupy.Stream) if not name.startswith("_")} - {"copy", "position"}
    assert [name for name in names if not hasattr(cupy.cuda.Stream, name)] == []


def test_numpy_arrays_are_not_taken_for_cupys():
    with pytest.raises(TypeError):
        cupy.ascontiguousarray(np.ones(3))
