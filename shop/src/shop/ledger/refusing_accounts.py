"""The accounts whose transfers were refused lately, so that they don't decline a batch again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from uuid import UUID

# Limits the memory. The oldest ones are forgotten first.
_MAX_ACCOUNTS: Final = 10_000


class RefusingAccounts:
    """Accounts that declined a batch, and from or to which nothing was posted since then.

    This is only a hint: the transfers of these accounts are decided under locks.
    """

    def __init__(self) -> None:
        self._ids: dict[UUID, None] = {}

    def add(self, ids: Iterable[UUID]) -> None:
        """Remember accounts that declined a batch."""
        self._ids.update(dict.fromkeys(ids))
        while len(self._ids) > _MAX_ACCOUNTS:
            del self._ids[next(iter(self._ids))]

    def discard(self, ids: Iterable[UUID]) -> None:
        """Forget accounts, because a transfer of them was posted under locks."""
        for id_ in ids:
            self._ids.pop(id_, None)

    def has_any(self, ids: Iterable[UUID]) -> bool:
        """Whether one of these accounts refused lately."""
        return bool(self._ids) and not self._ids.keys().isdisjoint(ids)
