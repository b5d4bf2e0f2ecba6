"""What is done with accounts."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import NotFound, uuid7
from shop.ledger.account_queries import AccountRepository, AccountSnapshot
from shop.ledger.expiry import void_expired_holds
from shop.ledger.http.account_schemas import AccountChange, AccountIn
from shop.ledger.metadata import in_jsonb_order
from shop.ledger.models import Account, AccountPurpose, AccountState, Entry


class AccountUnchangeable(ValueError):
    """A closed account stays as it is, only an empty one can be closed, and a balance must be within its limits."""

    def __init__(self, account: Account, reason: str) -> None:
        self.account_id = account.id
        super().__init__(f"account {account.id} can't be changed: {reason}")


_BOUNDARIES: Final = (AccountPurpose.CASH_IN, AccountPurpose.CASH_OUT)


async def open_account(db: AsyncSession, account: AccountIn, *, id_: UUID | None = None) -> Account:
    """Open an account with the balance 0. A `cash_in` or `cash_out` account has `allows_negative` by default. Raises
    `ForeignKeyViolation` for an unknown user."""
    return await AccountRepository(db).create(**build_account_values(account, id_=id_))


def build_account_values(account: AccountIn, *, id_: UUID | None = None) -> dict[str, Any]:
    """The attributes of a new account. The others have defaults; those of the times are the database's."""
    values = account.model_dump()
    values["details"] = in_jsonb_order(values.pop("metadata"))
    if account.purpose in _BOUNDARIES and "allows_negative" not in account.model_fields_set:
        values["allows_negative"] = True
    return values | {"id": id_ or uuid7()}


async def change_account(
    db: AsyncSession,
    account_id: UUID,
    change: AccountChange,
    *,
    precondition: Callable[[Account], None] = lambda _account: None,
) -> Account:
    """Change the fields that `change` names. The account is locked, so the change and the account's transfers wait for
    each other.

    `precondition` is called with the locked account before the change. Its errors are passed on. Raises `NotFound` and
    `AccountUnchangeable`.
    """
    accounts = AccountRepository(db)
    account = (await accounts.lock([account_id]))[account_id]
    precondition(account)
    values = change.model_dump(exclude_unset=True)
    if "metadata" in values:
        values["details"] = in_jsonb_order(values.pop("metadata"))
    if account.state is AccountState.CLOSED and values:
        raise AccountUnchangeable(account, "it is closed")
    if values.get("state") is AccountState.CLOSED and account.purpose is not None:
        raise AccountUnchangeable(
            account, f"it is the {account.currency} account for {account.purpose}, of which there is one"
        )
    if account.held:
        await void_expired_holds(db, [account_id])
    if values.get("state") is AccountState.CLOSED and (account.balance or account.held):
        on_it = f"{account.balance} on it, {account.held} of it held"
        raise AccountUnchangeable(account, f"there are {on_it}, and only an empty one can be closed")
    free = account.balance - account.held
    if -free > values.get("overdraft_limit", account.overdraft_limit) and not account.allows_negative:
        raise AccountUnchangeable(account, "its overdraft is more than the new limit")
    limit = values.get("balance_limit", account.balance_limit)
    if limit is not None and account.balance > limit:
        raise AccountUnchangeable(account, "its balance is more than the new limit")
    await accounts.update(account, **values)
    return account


async def get_or_open_system_account(db: AsyncSession, purpose: AccountPurpose, currency: str) -> Account:
    """The account of the house for this purpose and currency, which is opened if there is none. It may go below zero,
    so that what comes into the books comes from somewhere. Two who open it at the same time get the same."""
    values = {"id": uuid7(), "name": purpose.replace("_", " ").capitalize(), "allows_negative": True}
    opening = insert(Account).values(purpose=purpose, currency=currency, **values)
    await db.execute(opening.on_conflict_do_nothing())
    found = select(Account).where(Account.purpose == purpose, Account.currency == currency)
    return (await db.scalars(found)).one()


async def read_account(db: AsyncSession, account_id: UUID) -> AccountSnapshot:
    """The current state of the account, without expired holds. Raises `NotFound`."""
    found = select(AccountSnapshot).where(AccountSnapshot.id == account_id)
    account = (await db.scalars(found.execution_options(populate_existing=True))).one_or_none()
    if account is None:
        raise NotFound(Account, [account_id])
    return account


async def read_balance_at(db: AsyncSession, account_id: UUID, at: datetime) -> tuple[int, int]:
    """The balance and the number of the last entry that the account had at that time. Raises `NotFound`."""
    accounts = AccountRepository(db)
    await accounts.get_one(account_id)
    entry_number = await accounts.find_last_entry_number(account_id, at)
    return await read_balance_after_entry(db, account_id, entry_number), entry_number


async def read_balance_after_entry(db: AsyncSession, account_id: UUID, entry_number: int) -> int:
    """The balance after the entry of this number, 0 before the first. Raises `NotFound`, for the entry if there is no
    such yet."""
    if entry_number == 0:
        await AccountRepository(db).get_one(account_id)
        return 0
    entry = await db.get(Entry, (account_id, entry_number))
    if entry is None:
        await AccountRepository(db).get_one(account_id)
        raise NotFound(Entry, [(account_id, entry_number)])
    return entry.balance_after


async def read_effective_balance(db: AsyncSession, account_id: UUID, at: datetime) -> int:
    """What the account had at that time by what counts from then or earlier, whenever it was booked. Raises
    `NotFound`."""
    accounts = AccountRepository(db)
    await accounts.get_one(account_id)
    return await accounts.sum_effective_entries(account_id, at)
