"""Whether other processes post on the same accounts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from uuid import UUID

# So many batches without a change by others mean that this process is alone.
_REMEMBERED_BATCHES: Final = 32


class SharedAccounts:
    """Notices that others have posted on accounts of the last batch since that batch.

    Call `record` after each batch, in the order in which the batches were posted.
    """

    def __init__(self) -> None:
        self._entry_counts: dict[UUID, int] = {}
        self._batches_left = 0

    @property
    def has_others(self) -> bool:
        """Whether others have posted on the same accounts during the last batches."""
        return self._batches_left > 0

    def record(self, accounts: Iterable[tuple[UUID, int, int]]) -> None:
        """The accounts of a batch, each with its entry count before and after the batch."""
        known, counts, is_changed = self._entry_counts, {}, False
        for id_, before, after in accounts:
            counts[id_] = after
            if known.get(id_, before) != before:
                is_changed = True
        self._entry_counts = counts
        self._batches_left = _REMEMBERED_BATCHES if is_changed else max(self._batches_left - 1, 0)
