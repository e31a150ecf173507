from collections.abc import Callable, Sequence
from typing import Any

class WorkspaceTooSmall(MemoryError): ...

def gram(
    terms: Sequence[Any],
    out: Any,
    *,
    symmetric: bool,
    accumulate: bool = False,
    precision: str,
    workspace: int,
    workspace_bytes: int,
    stream: int = 0,
) -> None: ...
def gram_workspace(
    terms: Sequence[Any], rows: int, cols: int, *, kernels: int = 1, symmetric: bool, precision: str
) -> tuple[int, int]: ...
def set_lapack(*, dsyevd: Any, dsyevr: Any) -> None: ...
def block_krylov(
    operator: Callable[[Any], Any],
    start: Any,
    locked: Any,
    probes: Any,
    vectors: Any,
    new_block: Callable[[int, int], Any],
    allocate: Callable[[int], Any],
    stream: int,
    **kwargs: Any,
) -> dict[str, Any]: ...
def compiled_architectures() -> str: ...
def runtime_version() -> int: ...
def driver_version() -> int: ...
def devices() -> tuple[list[dict[str, Any]], str]: ...
def statistics(kernel: Any, targets: Any, other: Any, results: Any, *, workspace: int, stream: int = 0) -> None: ...
def statistics_layout(rows: int, columns: int, targets: int, two: bool) -> tuple[dict[str, Any], int, int]: ...
