"""Whether other processes post on the same accounts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final
from uuid import UUID

# After this number of batches without a change by others, this process counts as the only one.
_REMEMBERED_BATCHES: Final = 32


class SharedAccounts:
    """Notices that others have posted on the accounts of the last batch, by the entry counts of the next one.

    The batches of this process overlap, so their results may arrive in another order than they were posted in. Call
    `record` in the block of `posting`, with the same object: the number of entries of each account of the batch.
    """

    def __init__(self) -> None:
        self._entry_counts: dict[UUID, int] = {}
        self._running: dict[int, Mapping[UUID, int]] = {}
        self._batches_left = 0

    @property
    def has_others(self) -> bool:
        """Whether others have posted on the same accounts during the last batches."""
        return self._batches_left > 0

    @contextmanager
    def posting(self, entries: Mapping[UUID, int]) -> Iterator[None]:
        """In this block the batch is posted. Another batch may find its entries before `record` is called."""
        self._running[id(entries)] = entries
        try:
            yield
        finally:
            del self._running[id(entries)]

    def record(self, entries: Mapping[UUID, int], entry_counts: Sequence[int]) -> None:
        """Compare the accounts of a batch with the last one. `entry_counts` has those before the batch, in the order of
        `entries`."""
        known, counts, is_changed = self._entry_counts, {}, False
        for (id_, added), before in zip(entries.items(), entry_counts, strict=True):
            expected, after = known.get(id_, before), before + added
            if before > expected and not is_changed:
                is_changed = before - expected not in self._sum_running(entries, id_)
            # it was posted before the last one if its count is lower
            counts[id_] = after if before >= expected else max(after, expected)
        self._entry_counts = counts
        self._batches_left = _REMEMBERED_BATCHES if is_changed else max(self._batches_left - 1, 0)

    def _sum_running(self, entries: Mapping[UUID, int], id_: UUID) -> set[int]:
        """How many entries of this account the other running batches may have created: each has posted or not."""
        sums = {0}
        for other in self._running.values():
            if other is not entries and (added := other.get(id_)) is not None:
                sums |= {each + added for each in sums}
        return sums
