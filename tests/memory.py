"""What a call says of the memory it needs."""

from __future__ import annotations

from kernelgrowth import MemoryLimitError


def smallest_limit(compute):
    """Raise the limit to what each refusal says is needed, until there is none."""
    limit = 1
    while True:
        try:
            compute(memory_limit=limit)
        except MemoryLimitError as error:
            refusal = error
        else:
            return limit
        assert refusal.limit == limit
        assert refusal.needed > limit
        limit = refusal.needed
