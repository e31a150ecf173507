from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_Array = np.ndarray[Any, np.dtype[Any]]
_Factor = _Array | tuple[_Array, _Array] | tuple[_Array, _Array, bool, bool, _Array | None]
_Term = tuple[_Factor, _Factor | None, _Factor | None, _Factor | None, float, float]

class WorkspaceTooSmall(MemoryError): ...

def default_threads() -> int: ...
def available_isas() -> list[str]: ...
def active_isa() -> str: ...
def has_bf16() -> bool: ...
def multiply_add_peak(
    *, double_precision: bool = False, threads: int = 0, isa: str = "", quick: bool = False
) -> float: ...
def copy_bandwidth(*, threads: int = 0) -> float: ...
def gram(
    terms: Sequence[_Term],
    out: _Array,
    *,
    symmetric: bool,
    accumulate: bool = False,
    workspace: int = 0,
    threads: int = 0,
    isa: str = "",
    bf16: bool = False,
    stacked: bool = False,
) -> None: ...
def gram_workspace(
    terms: Sequence[_Term], rows: int, cols: int, *, kernels: int = 1, symmetric: bool, threads: int = 0
) -> tuple[int, int, int]: ...
def im2col(
    images: _Array,
    columns: _Array,
    *,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    threads: int = 0,
) -> None: ...
def col2im(
    columns: _Array,
    images: _Array,
    *,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    threads: int = 0,
) -> None: ...
def gemm(a: _Array, b: _Array, out: _Array, *, threads: int = 0, isa: str = "") -> None: ...
def matmul(
    left: tuple[_Array, _Array],
    right: tuple[_Array, _Array] | None,
    v: _Array,
    out: npt.NDArray[np.float64],
    *,
    bias: bool,
    fold: bool,
    weights: _Array | None = None,
    bias_weights: _Array | None = None,
    scale: float = 1.0,
    accumulate: bool = False,
    workspace: int = 0,
    threads: int = 0,
    isa: str = "",
) -> None: ...
def matmul_workspace(
    left: tuple[_Array, _Array],
    right: tuple[_Array, _Array] | None,
    vectors: int,
    *,
    bias: bool,
    fold: bool,
    threads: int = 0,
) -> tuple[int, int]: ...
def statistics(
    kernel: _Array,
    targets: npt.NDArray[np.float64] | None = None,
    other: _Array | None = None,
    *,
    threads: int = 0,
    isa: str = "",
) -> dict[str, Any]: ...
def symmetry(matrix: _Array, *, threads: int = 0, isa: str = "") -> dict[str, Any]: ...
def set_lapack(*, dsyevd: Any, dsyevr: Any) -> None: ...
def block_krylov(
    operator: Any,
    start: _Array | None,
    locked: _Array | None,
    probes: _Array | None,
    vectors: _Array,
    **kwargs: Any,
) -> dict[str, Any]: ...
