"""How many bytes the workers of a Dask cluster send and receive, counted at their sockets."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Any

__all__ = ["Traffic"]

# Of a worker's process, while bytes are counted there.
_counts = {"sent": 0, "received": 0}
_originals: dict[str, Any] = {}


@dataclass
class Traffic:
    """Counts what all workers of a client's cluster sent and received, everything included, in a `with` block."""

    client: Any
    sent: int = 0
    received: int = 0

    def __enter__(self) -> Traffic:
        self.client.run(_begin)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        found = self.client.run(_end).values()
        self.sent = sum(counts["sent"] for counts in found)
        self.received = sum(counts["received"] for counts in found)


def _begin() -> None:
    from distributed.comm import tcp

    _counts.update(sent=0, received=0)
    write, read = tcp.TCP.write, tcp.read_bytes_rw
    _originals.update(write=write, read=read)

    async def counted_write(self: Any, *args: Any, **options: Any) -> Any:
        count = await write(self, *args, **options)
        _counts["sent"] += int(count)
        return count

    async def counted_read(stream: Any, n: int) -> Any:
        frames = await read(stream, n)
        _counts["received"] += n
        return frames

    tcp.TCP.write, tcp.read_bytes_rw = counted_write, counted_read  # type: ignore[method-assign]


def _end() -> dict[str, int]:
    from distributed.comm import tcp

    tcp.TCP.write, tcp.read_bytes_rw = _originals["write"], _originals["read"]  # type: ignore[method-assign]
    return dict(_counts)
