"""Whether other processes post on the same accounts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from uuid import UUID

# After this number of batches without a change by others, this process counts as the only one.
_REMEMBERED_BATCHES: Final = 32


class SharedAccounts:
    """Notices that others have posted on the accounts of the last batch, by the entry counts of the next one.

    Call `record` after each batch, in the order in which the batches were posted. In another order, a batch of this
    process seems to be one of another process.
    """

    def __init__(self) -> None:
        self._entry_counts: dict[UUID, int] = {}
        self._batches_left = 0

    @property
    def has_others(self) -> bool:
        """Whether others have posted on the same accounts during the last batches."""
        return self._batches_left > 0

    def record(self, accounts: Iterable[tuple[UUID, int, int]]) -> None:
        """Compare the accounts of a batch with the last one. Each has its entry count before and after the batch."""
        known, counts, is_changed = self._entry_counts, {}, False
        for id_, before, after in accounts:
            counts[id_] = after
            if known.get(id_, before) != before:
                is_changed = True
        self._entry_counts = counts
        self._batches_left = _REMEMBERED_BATCHES if is_changed else max(self._batches_left - 1, 0)
