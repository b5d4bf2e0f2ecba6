"""Finding accounts and their entries."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Select, select

from howdah import AsyncRepository
from shop.accounts.models import Account, Entry


class AccountRepository(AsyncRepository[Account]):
    async def last_entry(self, account_id: UUID, at: datetime) -> Entry | None:
        """The last entry made up to `at`, None if there is none yet."""
        entries = statement_of(account_id).where(Entry.created_at <= at)
        newest_first = entries.order_by(None).order_by(Entry.version.desc()).limit(1)
        return (await self.session.scalars(newest_first)).one_or_none()


def statement_of(account_id: UUID) -> Select[Any]:
    """An account's entries, the oldest first."""
    return select(Entry).where(Entry.account_id == account_id).order_by(Entry.version)
