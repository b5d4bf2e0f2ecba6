"""The states of accounts that the ledger of this process keeps, and how it backs off after a version conflict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from shop.ledger.snapshots import PostingAccount

# Limits the memory of the cache.
_MAX_CACHED_ACCOUNTS: Final = 100_000
# After a conflict `_backoff - 1` batches use locks. So this maximum means 63 batches.
_MAX_BACKOFF: Final = 64


@dataclass(slots=True)
class AccountCache:
    """The states of accounts after all decisions of this process, including decisions that are not written yet.

    `epoch` counts invalidations. A decision of an earlier epoch must not be written.
    """

    accounts: dict[UUID, PostingAccount] = field(default_factory=dict)
    epoch: int = 0
    _backoff: int = 1
    _locked_batches_left: int = 0

    def take_optimistic_slot(self) -> bool:
        """Whether the next batch may be posted optimistically.

        Call this once for each batch, because it also counts the batches that use locks after a conflict.
        """
        if self._locked_batches_left == 0:
            return True
        self._locked_batches_left -= 1
        return False

    def find(self, ids: Iterable[UUID]) -> dict[UUID, PostingAccount]:
        """The accounts with these ids that are in the cache."""
        return {id_: account for id_ in ids if (account := self.accounts.get(id_)) is not None}

    def add(self, accounts: Mapping[UUID, PostingAccount]) -> None:
        """Add accounts that were read without locks."""
        if len(self.accounts) > _MAX_CACHED_ACCOUNTS:
            self.invalidate()
        for id_, account in accounts.items():
            # another batch may have added and changed it in the meantime
            self.accounts.setdefault(id_, account)

    def replace(self, accounts: Mapping[UUID, PostingAccount]) -> None:
        """Set the accounts to the states after a decision."""
        self.accounts.update(accounts)

    def record_success(self) -> None:
        self._backoff = 1

    def record_conflict(self) -> None:
        """Invalidate the cache, and use locks for the next batches: 1, 3, 7 … 63 after consecutive conflicts."""
        self.invalidate()
        self._backoff = min(2 * self._backoff, _MAX_BACKOFF)
        self._locked_batches_left = self._backoff - 1

    def invalidate(self) -> None:
        """Remove all accounts. Decisions that were made on them are not written any more."""
        self.accounts.clear()
        self.epoch += 1
