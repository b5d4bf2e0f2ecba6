"""Read and lock the rows that decisions need, with a few statements for any number of requests."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import fields
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    CompoundSelect,
    Result,
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
from shop.ledger.lock_waits import LOCK_WAIT_MS, raise_locked_for_long
from shop.ledger.models import Account, AnswerKind, Entry, IdempotencyKey, PendingTransfer, Transfer
from shop.ledger.requests import NamedTransfer, ScopedKey, TransferRecord
from shop.ledger.snapshots import Hold, PostingAccount, Reversible


class StoredAnswer(NamedTuple):
    """The answer that is stored with an idempotency key: see `IdempotencyKey`."""

    fingerprint: bytes
    answer: AnswerKind
    transfer_id: UUID | None
    refusal: str | None
    account_id: UUID | None


class AccountsAt(NamedTuple):
    """The states of accounts, and the time `at` at which they were read, by the database's clock."""

    accounts: dict[UUID, PostingAccount]
    at: datetime


class TransferRepository(AsyncRepository[Transfer]):
    async def lock_accounts(self, ids: Iterable[UUID], *, is_wait_short: bool = False) -> AccountsAt:
        """Lock the accounts that exist, in key order, until the transaction ends. `at` is read after the last lock.

        With `is_wait_short` it waits for each lock for up to `LOCK_WAIT_MS`, then raises `LockedForLong`. This limit
        holds for the rest of the transaction.
        """
        if not is_wait_short:
            return _accounts_at(await self.session.execute(LOCK, {"ids": list(ids)}))
        with raise_locked_for_long():
            return _accounts_at(await self.session.execute(_LOCK_BRIEFLY, {"ids": list(ids)}))

    async def lock_accounts_skip_locked(self, ids: Iterable[UUID]) -> AccountsAt:
        """Lock the accounts that exist and that no other transaction has locked. Waits for no lock."""
        return _accounts_at(await self.session.execute(_LOCK_SKIP_LOCKED, {"ids": list(ids)}))

    async def find_owners(self, ids: Iterable[UUID]) -> dict[UUID, UUID | None]:
        """The owners of the accounts that exist, without locks. An owner never changes."""
        return {row.id: row.user_id for row in await self.session.execute(_OWNERS, {"ids": list(ids)})}

    async def find_answers(self, keys: Collection[ScopedKey]) -> dict[ScopedKey, StoredAnswer]:
        """The stored answers, by key. Unused keys are left out. There may be any number of keys."""
        if not keys:
            return {}
        rows = await self.session.execute(
            STORED_ANSWERS, {"scopes": [scope for scope, _ in keys], "keys": [key for _, key in keys]}
        )
        answers: dict[ScopedKey, StoredAnswer] = {}
        for row in rows:
            fields = row._asdict()
            scoped_key = fields.pop("scope"), fields.pop("key")
            answers[scoped_key] = StoredAnswer(**fields)
        return answers

    async def find_posted(self, transfer_ids: Collection[UUID]) -> dict[UUID, TransferRecord]:
        """The posted transfers with these ids, as they were returned when they were posted."""
        if not transfer_ids:
            return {}
        rows = await self.session.execute(_POSTED, {"ids": list(transfer_ids)})
        return {row.id: TransferRecord(**row._asdict()) for row in rows}

    async def find_holds(self, transfer_ids: Collection[UUID]) -> dict[UUID, Hold]:
        """The rows of `pending_transfers` with these ids. They may be posted or voided by now."""
        if not transfer_ids:
            return {}
        rows = await self.session.execute(_HOLDS, {"ids": list(transfer_ids)})
        return {row.id: Hold(**row._asdict()) for row in rows}

    async def find_named(
        self, transfer_ids: Collection[UUID], *, customer: UUID | None = None
    ) -> dict[UUID, NamedTransfer]:
        """The transfers with these ids, in any state, with their accounts. This is one statement.

        With `customer`, only the transfers from or to an account of this customer.
        """
        if not transfer_ids:
            return {}
        rows = await self.session.execute(_select_named(customer), {"ids": list(transfer_ids)})
        return {row.id: NamedTransfer(**row._asdict()) for row in rows}

    async def find_reversible(self, transfer_ids: Collection[UUID]) -> dict[UUID, Reversible]:
        """The posted transfers with these ids, and how much of each has been reversed."""
        if not transfer_ids:
            return {}
        rows = await self.session.execute(_REVERSIBLE, {"ids": list(transfer_ids)})
        return {row.id: Reversible(**row._asdict()) for row in rows}


async def read_accounts(connection: AsyncConnection, ids: Iterable[UUID]) -> dict[UUID, PostingAccount]:
    """Read the accounts that exist, without locks. Another transaction may change them at any time."""
    rows = await connection.execute(_ACCOUNTS, {"ids": list(ids)})
    return {row.id: PostingAccount(**row._asdict()) for row in rows}


def _accounts_at(rows: Result[Any]) -> AccountsAt:
    """The accounts and the time. Each row has the time at which its account was locked; the last one is returned."""
    accounts: dict[UUID, PostingAccount] = {}
    names = tuple(rows.keys())
    for row in rows:
        values = dict(zip(names, row, strict=True))  # `row._asdict()` takes three times as long
        at = values.pop("at")
        if values["id"] is not None:
            accounts[values["id"]] = PostingAccount(**values)
    return AccountsAt(accounts, at)


_ids: Final = any_(bindparam("ids", type_=ARRAY(Uuid())))


def _with_time(accounts: Select[Any]) -> Select[Any]:
    """The accounts with the current time in the column `at`. If there is no account, there is one row with the time.

    The time is not a column of the locking SELECT, because PostgreSQL computes its columns before it waits for the
    lock.
    """
    found, one = accounts.cte("found"), select(literal_column("1")).subquery("one")
    return select(func.clock_timestamp().label("at"), *found.c).select_from(one.outerjoin(found, true()))


_ACCOUNTS: Final[Select[Any]] = select(*(getattr(Account, each.name) for each in fields(PostingAccount))).where(
    Account.id == _ids
)
_OWNERS: Final = select(Account.id, Account.user_id).where(Account.id == _ids)
LOCK: Final = _with_time(_ACCOUNTS.order_by(Account.id).with_for_update(key_share=True))
_LOCK_BRIEFLY: Final = _with_time(
    _ACCOUNTS.where(select(func.set_config("lock_timeout", str(LOCK_WAIT_MS), True)).scalar_subquery().is_not(None))
    .order_by(Account.id)
    .with_for_update(key_share=True)
)
_LOCK_SKIP_LOCKED: Final = _with_time(_ACCOUNTS.order_by(Account.id).with_for_update(key_share=True, skip_locked=True))

_HOLDS: Final = select(
    *(getattr(PendingTransfer, each.name) for each in fields(Hold) if hasattr(PendingTransfer, each.name))
).where(PendingTransfer.id == _ids)


def _select_named(customer: UUID | None) -> CompoundSelect[tuple[UUID, UUID, UUID]]:
    def select_from(table: type[Transfer | PendingTransfer]) -> Any:
        accounts = table.from_account_id, table.to_account_id
        query = select(table.id, *accounts).where(table.id == _ids)
        return query if customer is None else query.where(concerns_customer(customer, *accounts))

    return union_all(select_from(Transfer), select_from(PendingTransfer))


def balance_after(account_id: SQLColumnExpression[UUID], entry_number: SQLColumnExpression[int]) -> ScalarSelect[int]:
    """The account's balance after the entry with this number.

    With a scalar subquery PostgreSQL finds each entry by the primary key. With a join, and while a new table has no
    statistics, it might compare all transfers with all entries of their accounts.
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


def owner_of(account_id: SQLColumnExpression[UUID]) -> ScalarSelect[UUID | None]:
    """The owner of the account; NULL if it has none."""
    account = aliased(Account)
    return select(account.user_id).where(account.id == account_id).scalar_subquery()


def concerns_customer(
    customer: UUID, from_account_id: SQLColumnExpression[UUID], to_account_id: SQLColumnExpression[UUID]
) -> ColumnElement[bool]:
    """Whether one of these accounts is the customer's own."""
    return (owner_of(from_account_id) == customer) | (owner_of(to_account_id) == customer)


# Entries never change, so this is the transfer as it was returned when it was posted.
_POSTED: Final = select(
    *(getattr(Transfer, name) for name in TransferRecord._fields if hasattr(Transfer, name)),
    held_amount(Transfer.id).label("held_amount"),
    balance_after(Transfer.from_account_id, Transfer.from_entry_number).label("from_balance"),
    balance_after(Transfer.to_account_id, Transfer.to_entry_number).label("to_balance"),
    owner_of(Transfer.from_account_id).label("from_user_id"),
    owner_of(Transfer.to_account_id).label("to_user_id"),
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
    .scalar_subquery()
    .label("reversed_amount"),
).where(Transfer.id == _ids)

_pairs: Final = (
    func.unnest(bindparam("scopes", type_=ARRAY(String())), bindparam("keys", type_=ARRAY(String())))
    .table_valued(column("scope", String()), column("key", String()))
    .render_derived(name="input")
)
STORED_ANSWERS: Final = select(
    IdempotencyKey.scope, IdempotencyKey.key, *(getattr(IdempotencyKey, name) for name in StoredAnswer._fields)
).join(_pairs, (IdempotencyKey.scope == _pairs.c.scope) & (IdempotencyKey.key == _pairs.c.key))
