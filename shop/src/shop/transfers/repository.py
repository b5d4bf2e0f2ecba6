"""Finding transfers, and writing the books: a few statements for any number of requests."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import fields
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    Select,
    String,
    Uuid,
    any_,
    bindparam,
    column,
    func,
    select,
    union_all,
)
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import aliased

from howdah import AsyncRepository
from shop.accounts.models import Account
from shop.transfers.books import BookAccount, Hold, Reversible
from shop.transfers.models import AnswerKind, IdempotencyKey, PendingTransfer, Transfer
from shop.transfers.requests import BookedTransfer, NamedTransfer, ScopedKey


class StoredAnswer(NamedTuple):
    """What is stored under an idempotency key: see `IdempotencyKey`."""

    fingerprint: bytes
    answer: AnswerKind
    transfer_id: UUID | None
    refusal: str | None
    account_id: UUID | None


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

    async def answers_under(self, keys: Collection[ScopedKey]) -> dict[ScopedKey, StoredAnswer]:
        """The answers under those of these keys, any number, that were used."""
        if not keys:
            return {}
        found = await self.session.execute(
            OUTCOMES, {"scopes": [scope for scope, _ in keys], "keys": [key for _, key in keys]}
        )
        return {(scope, key): StoredAnswer(*answer) for scope, key, *answer in found}

    async def booked(self, transfer_ids: Collection[UUID]) -> dict[UUID, BookedTransfer]:
        """Those of these transfers that have been made."""
        if not transfer_ids:
            return {}
        rows = await self.session.execute(_BOOKED, {"ids": list(transfer_ids)})
        return {row.id: BookedTransfer(*row) for row in rows}

    async def holds(self, transfer_ids: Collection[UUID]) -> dict[UUID, Hold]:
        """Those of these transfers that are, or have been, pending."""
        if not transfer_ids:
            return {}
        rows = await self.session.execute(_HOLDS, {"ids": list(transfer_ids)})
        return {row.id: Hold(*row) for row in rows}

    async def named(self, transfer_ids: Collection[UUID]) -> dict[UUID, NamedTransfer]:
        """Those of these transfers that exist, posted or pending or voided, with their accounts: one statement."""
        if not transfer_ids:
            return {}
        rows = await self.session.execute(_NAMED, {"ids": list(transfer_ids)})
        return {row.id: NamedTransfer(*row) for row in rows}

    async def reversible(self, transfer_ids: Collection[UUID]) -> dict[UUID, Reversible]:
        """Those of these transfers that exist, and how much of each has been taken back."""
        if not transfer_ids:
            return {}
        rows = await self.session.execute(_REVERSIBLE, {"ids": list(transfer_ids)})
        return {row.id: Reversible(*row) for row in rows}


async def accounts_now(connection: AsyncConnection, ids: Sequence[UUID]) -> dict[UUID, BookAccount]:
    """Those of the accounts that exist, as they stand now; they may be others the next moment."""
    return {row[0]: BookAccount(*row) for row in await connection.execute(_ACCOUNTS, {"ids": list(ids)})}


def booked(transfer: Transfer) -> BookedTransfer:
    """The row of a mapped transfer."""
    return BookedTransfer(*(getattr(transfer, name) for name in _BOOKED_NAMES))


_BOOKED_NAMES: Final = [name for name in BookedTransfer._fields if name not in {"state", "expires_at"}]
_ids: Final = any_(bindparam("ids", type_=ARRAY(Uuid())))

_ACCOUNTS: Final[Select[Any]] = select(*(getattr(Account, each.name) for each in fields(BookAccount))).where(
    Account.id == _ids
)
LOCK: Final = _ACCOUNTS.order_by(Account.id).with_for_update(key_share=True)
_LOCK_FREE: Final = _ACCOUNTS.order_by(Account.id).with_for_update(key_share=True, skip_locked=True)

_BOOKED: Final = select(*(getattr(Transfer, name) for name in _BOOKED_NAMES)).where(Transfer.id == _ids)
_HOLDS: Final = select(*(getattr(PendingTransfer, each.name) for each in fields(Hold) if each.name != "settled")).where(
    PendingTransfer.id == _ids
)

_NAMED: Final = union_all(
    *(
        select(table.id, table.from_account_id, table.to_account_id).where(table.id == _ids)
        for table in (Transfer, PendingTransfer)
    )
)

_reversal: Final = aliased(Transfer)
_REVERSIBLE: Final = select(
    Transfer.id,
    Transfer.from_account_id,
    Transfer.to_account_id,
    Transfer.amount,
    Transfer.effective_at,
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
    IdempotencyKey.scope, IdempotencyKey.key, *(getattr(IdempotencyKey, name) for name in StoredAnswer._fields)
).join(_pairs, (IdempotencyKey.scope == _pairs.c.scope) & (IdempotencyKey.key == _pairs.c.key))
