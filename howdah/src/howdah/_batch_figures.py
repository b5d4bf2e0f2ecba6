"""The figures of a Coalescer for monitoring."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class CoalescerStatus:
    """Figures for monitoring. `waiting` and `running` are current values; all others only grow."""

    waiting: int
    """Tasks whose item isn't in a batch yet."""
    running: int
    """Batches that are running."""
    batches: int
    """Calls of `apply`, including running ones and retries."""
    items: int
    """The items of these calls."""
    rejected: int
    """Calls of `submit` that found the queue full."""
    expired: int
    """Tasks whose `submit_timeout` passed before they had a result."""
    batch_size_histogram: Mapping[int, int]
    """The number of calls of `apply` by size. A key is an upper limit; the lower limit is half of it."""
    wait_histogram: Mapping[float, int]
    """The number of tasks by their wait in seconds, until their batch started. A key is an upper limit, as above."""
    wait_seconds_sum: float
    """The sum of these waits."""


@dataclass(slots=True)
class BatchFigures:
    """The figures that only grow. A key of a histogram is an exponent: its upper limit is 2 to the power of the key."""

    rejected: int = 0
    expired: int = 0
    waits: Counter[int] = field(default_factory=Counter)
    """The number of tasks by the bit length of their wait in milliseconds."""
    wait_seconds_sum: float = 0.0
    _batches: int = 0
    _items: int = 0
    _sizes: Counter[int] = field(default_factory=Counter)

    def count_batch(self, size: int) -> None:
        self._batches += 1
        self._items += size
        self._sizes[(size - 1).bit_length()] += 1

    def to_status(self, waiting: int, running: int) -> CoalescerStatus:
        return CoalescerStatus(
            waiting=waiting,
            running=running,
            batches=self._batches,
            items=self._items,
            rejected=self.rejected,
            expired=self.expired,
            batch_size_histogram={2**power: count for power, count in sorted(self._sizes.items())},
            wait_histogram={2**power / 1000: count for power, count in sorted(self.waits.items())},
            wait_seconds_sum=self.wait_seconds_sum,
        )
