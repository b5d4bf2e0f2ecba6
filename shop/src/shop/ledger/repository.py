"""Finding transfers, and writing the books: a few statements for any number of requests."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any, Final, NamedTuple
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
    literal_column,
    select,
    true,
    union_all,
)
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import aliased

from howdah import AsyncRepository
from shop.ledger.models import Account, AnswerKind, Entry, IdempotencyKey, PendingTransfer, Transfer
from shop.ledger.requests import NamedTransfer, ScopedKey, TransferRecord
from shop.ledger.snapshots import Hold, PostingAccount, Reversible


class StoredAnswer(NamedTuple):
    """What is stored under an idempotency key: see `IdempotencyKey`."""

    fingerprint: bytes
    answer: AnswerKind
    transfer_id: UUID | None
    refusal: str | None
    account_id: UUID | None


class AccountsAt(NamedTuple):
    """The accounts' states at the time `at`, by the database's clock."""

    accounts: dict[UUID, PostingAccount]
    at: datetime


class TransferRepository(AsyncRepository[Transfer]):
    async def lock_accounts(self, ids: Iterable[UUID]) -> AccountsAt:
        """Lock the accounts that exist, in key order, until the transaction ends. `at` is read after the last lock."""
        return _accounts_at(await self.session.execute(LOCK, {"ids": list(ids)}))

    async def lock_free_accounts(self, ids: set[UUID]) -> tuple[AccountsAt, set[UUID]]:
        """Those that nobody else has locked, locked until the transaction ends, and the ids of those that somebody
        has. Waits for nothing."""
        free = _accounts_at(await self.session.execute(_LOCK_FREE, {"ids": list(ids)}))
        missing = ids - free.accounts.keys()
        if not missing:
            return free, set()
        return free, set(
            await self.session.scalars(select(Account.id).where(Account.id == _ids), {"ids": list(missing)})
        )

    async def answers_under(self, keys: Collection[ScopedKey]) -> dict[ScopedKey, StoredAnswer]:
        """The stored answers of those keys that were used. There may be any number of keys."""
        if not keys:
            return {}
        found = await self.session.execute(
            OUTCOMES, {"scopes": [scope for scope, _ in keys], "keys": [key for _, key in keys]}
        )
        return {(scope, key): StoredAnswer(*answer) for scope, key, *answer in found}

    async def booked(self, transfer_ids: Collection[UUID]) -> dict[UUID, TransferRecord]:
        """The posted ones of these transfers, as they were when they were posted."""
        if not transfer_ids:
            return {}
        rows = await self.session.execute(_BOOKED, {"ids": list(transfer_ids)})
        return {row.id: TransferRecord(**row._mapping) for row in rows}

    async def holds(self, transfer_ids: Collection[UUID]) -> dict[UUID, Hold]:
        """Those of these transfers that are or were pending, as they are stored."""
        if not transfer_ids:
            return {}
        rows = await self.session.execute(_HOLDS, {"ids": list(transfer_ids)})
        return {row.id: Hold(*row) for row in rows}

    async def named(self, transfer_ids: Collection[UUID]) -> dict[UUID, NamedTransfer]:
        """Those of these transfers that exist in any state, with their accounts. Takes one statement."""
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


async def accounts_now(connection: AsyncConnection, ids: Sequence[UUID]) -> AccountsAt:
    """Those of the accounts that exist, as they stand now; they may be others the next moment."""
    return _accounts_at(await connection.execute(_ACCOUNTS_AT, {"ids": list(ids)}))


def _accounts_at(rows: Iterable[Sequence[Any]]) -> AccountsAt:
    accounts: dict[UUID, PostingAccount] = {}
    for at, id_, *values in rows:  # noqa: B007  # each row has the time when its account was locked: the last one is used
        if id_ is not None:
            accounts[id_] = PostingAccount(id_, *values)
    return AccountsAt(accounts, at)


_ids: Final = any_(bindparam("ids", type_=ARRAY(Uuid())))


def _with_time(accounts: Select[Any]) -> Select[Any]:
    """The accounts with the time in the first column. It is read after an account has been locked, which a column of
    the locking SELECT itself isn't. If there is no account, there is a row with the time alone."""
    found, one = accounts.cte("found"), select(literal_column("1")).subquery("one")
    return select(func.clock_timestamp(), *found.c).select_from(one.outerjoin(found, true()))


_ACCOUNTS: Final[Select[Any]] = select(*(getattr(Account, each.name) for each in fields(PostingAccount))).where(
    Account.id == _ids
)
_ACCOUNTS_AT: Final = _with_time(_ACCOUNTS)
LOCK: Final = _with_time(_ACCOUNTS.order_by(Account.id).with_for_update(key_share=True))
_LOCK_FREE: Final = _with_time(_ACCOUNTS.order_by(Account.id).with_for_update(key_share=True, skip_locked=True))

_HOLD_NAMES: Final = [each.name for each in fields(Hold) if each.name not in {"settled", "is_told"}]
_HOLDS: Final = select(*(getattr(PendingTransfer, name) for name in _HOLD_NAMES)).where(PendingTransfer.id == _ids)

_NAMED: Final = union_all(
    *(
        select(table.id, table.from_account_id, table.to_account_id).where(table.id == _ids)
        for table in (Transfer, PendingTransfer)
    )
)


def balance_after(account_id: SQLColumnExpression[UUID], entry_number: SQLColumnExpression[int]) -> ScalarSelect[int]:
    """The account's balance after the entry with this number.

    A scalar subquery makes PostgreSQL find each entry by the primary key. For a join, without statistics of a new
    table, it may compare all transfers with all entries of their accounts.
    """
    entry = aliased(Entry)
    return (
        select(entry.balance_after)
        .where(entry.account_id == account_id, entry.entry_number == entry_number)
        .scalar_subquery()
    )


def held_amount(transfer_id: SQLColumnExpression[UUID]) -> ScalarSelect[int]:
    """The amount that the transfer held or still holds; NULL if it was never pending."""
    hold = aliased(PendingTransfer)
    return select(hold.amount).where(hold.id == transfer_id).scalar_subquery()


# Entries never change, so this is the transfer as it was returned when it was posted.
_BOOKED: Final = select(
    *(getattr(Transfer, name) for name in TransferRecord._fields if hasattr(Transfer, name)),
    held_amount(Transfer.id).label("held_amount"),
    balance_after(Transfer.from_account_id, Transfer.from_entry_number).label("from_balance"),
    balance_after(Transfer.to_account_id, Transfer.to_entry_number).label("to_balance"),
).where(Transfer.id == _ids)

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
