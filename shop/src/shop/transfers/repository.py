"""Finding transfers, and writing the books: a few statements for any number of requests."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import fields
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    ScalarSelect,
    Select,
    SQLColumnExpression,
    String,
    Uuid,
    any_,
    bindparam,
    column,
    func,
    select,
)
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import aliased

from howdah import AsyncRepository
from shop.accounts.models import Account, Entry
from shop.transfers.books import BookAccount, Hold, Reversible
from shop.transfers.models import IdempotencyKey, PendingTransfer, Transfer
from shop.transfers.requests import BookedTransfer, ScopedKey


class TransferRepository(AsyncRepository[Transfer]):
    async def lock_accounts(self, ids: Iterable[UUID]) -> dict[UUID, BookAccount]:
        """Those of the accounts that exist, locked in key order until the transaction ends."""
        rows = await self.session.execute(LOCK, {"ids": list(ids)})
        return {row[0]: BookAccount(*row) for row in rows}

    async def lock_free_accounts(self, ids: set[UUID]) -> tuple[dict[UUID, BookAccount], set[UUID]]:
        """Those that nobody else has locked, locked until the transaction ends, and the ids of those that somebody
        has. Waits for nothing."""
        rows = await self.session.execute(_LOCK_FREE, {"ids": list(ids)})
        free = {row[0]: BookAccount(*row) for row in rows}
        missing = ids - free.keys()
        if not missing:
            return free, set()
        return free, set(
            await self.session.scalars(select(Account.id).where(Account.id == _ids), {"ids": list(missing)})
        )

    async def outcomes_of(self, keys: Collection[ScopedKey]) -> dict[ScopedKey, tuple[bytes, UUID | None, str | None]]:
        """Fingerprint, transfer and refusal under each of these (scope, key) pairs, any number, that was used."""
        if not keys:
            return {}
        found = await self.session.execute(
            OUTCOMES, {"scopes": [scope for scope, _ in keys], "keys": [key for _, key in keys]}
        )
        return {(row.scope, row.key): (row.fingerprint, row.transfer_id, row.refusal) for row in found}

    async def booked(self, transfer_ids: Collection[UUID]) -> dict[UUID, BookedTransfer]:
        """Those of these transfers that have been posted, as they were when they were posted."""
        if not transfer_ids:
            return {}
        rows = await self.session.execute(_BOOKED, {"ids": list(transfer_ids)})
        return {row.id: BookedTransfer(**row._mapping) for row in rows}

    async def holds(self, transfer_ids: Collection[UUID]) -> dict[UUID, Hold]:
        """Those of these transfers that are, or have been, pending."""
        if not transfer_ids:
            return {}
        rows = await self.session.execute(_HOLDS, {"ids": list(transfer_ids)})
        return {row.id: Hold(*row) for row in rows}

    async def reversible(self, transfer_ids: Collection[UUID]) -> dict[UUID, Reversible]:
        """Those of these transfers that exist, and how much of each has been taken back."""
        if not transfer_ids:
            return {}
        rows = await self.session.execute(_REVERSIBLE, {"ids": list(transfer_ids)})
        return {row.id: Reversible(*row) for row in rows}


async def accounts_now(connection: AsyncConnection, ids: Sequence[UUID]) -> dict[UUID, BookAccount]:
    """Those of the accounts that exist, as they stand now; they may be others the next moment."""
    return {row[0]: BookAccount(*row) for row in await connection.execute(_ACCOUNTS, {"ids": list(ids)})}


_ids: Final = any_(bindparam("ids", type_=ARRAY(Uuid())))

_ACCOUNTS: Final[Select[Any]] = select(*(getattr(Account, each.name) for each in fields(BookAccount))).where(
    Account.id == _ids
)
LOCK: Final = _ACCOUNTS.order_by(Account.id).with_for_update(key_share=True)
_LOCK_FREE: Final = _ACCOUNTS.order_by(Account.id).with_for_update(key_share=True, skip_locked=True)


def balance_after(account_id: SQLColumnExpression[UUID], version: SQLColumnExpression[int]) -> ScalarSelect[int]:
    """The account's balance after the entry with this number.

    A scalar subquery, and no join: PostgreSQL then finds each entry by the primary key. For a join it may plan, without
    statistics of a new table, to compare all transfers with all entries of their accounts.
    """
    entry = aliased(Entry)
    return select(entry.balance_after).where(entry.account_id == account_id, entry.version == version).scalar_subquery()


def held_amount(transfer_id: SQLColumnExpression[UUID]) -> ScalarSelect[int]:
    """What the transfer held, or holds; NULL if it was never pending."""
    hold = aliased(PendingTransfer)
    return select(hold.amount).where(hold.id == transfer_id).scalar_subquery()


# Entries never change, so a transfer is read as it was answered when it was posted.
_BOOKED: Final = select(
    *(getattr(Transfer, name) for name in BookedTransfer._fields if hasattr(Transfer, name)),
    held_amount(Transfer.id).label("held_amount"),
    balance_after(Transfer.from_account_id, Transfer.from_version).label("from_balance"),
    balance_after(Transfer.to_account_id, Transfer.to_version).label("to_balance"),
).where(Transfer.id == _ids)
_HOLDS: Final = select(*(getattr(PendingTransfer, each.name) for each in fields(Hold) if each.name != "settled")).where(
    PendingTransfer.id == _ids
)

_reversal: Final = aliased(Transfer)
_REVERSIBLE: Final = select(
    Transfer.id,
    Transfer.from_account_id,
    Transfer.to_account_id,
    Transfer.amount,
    select(func.coalesce(func.max(_reversal.reversed_total), 0))
    .where(_reversal.reverses_id == Transfer.id)
    .scalar_subquery(),
).where(Transfer.id == _ids)

_pairs: Final = (
    func.unnest(bindparam("scopes", type_=ARRAY(String())), bindparam("keys", type_=ARRAY(String())))
    .table_valued(column("scope", String()), column("key", String()))
    .render_derived(name="given")
)
OUTCOMES: Final = select(
    IdempotencyKey.scope,
    IdempotencyKey.key,
    IdempotencyKey.fingerprint,
    IdempotencyKey.transfer_id,
    IdempotencyKey.refusal,
).join(_pairs, (IdempotencyKey.scope == _pairs.c.scope) & (IdempotencyKey.key == _pairs.c.key))
