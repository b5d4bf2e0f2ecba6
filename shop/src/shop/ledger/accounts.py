"""Operations on accounts: open, change and read them, and read their past balances."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import NotFound, uuid7
from howdah.tenancy import role_in
from shop.ledger.account_queries import AccountRepository, AccountSnapshot
from shop.ledger.account_schemas import AccountChange, AccountIn
from shop.ledger.expiry import void_expired_holds
from shop.ledger.metadata import sort_like_jsonb
from shop.ledger.models import Account, AccountPurpose, AccountState, Entry
from shop.roles import SYSTEM_ROLE


class AccountUnchangeable(ValueError):
    """The change of an account was rejected.

    A closed account can't be changed. A system account and an account that isn't empty can't be closed. A new limit
    must cover the current balance.
    """

    def __init__(self, account: Account, reason: str) -> None:
        self.account_id = account.id
        super().__init__(f"account {account.id} can't be changed: {reason}")


# The balances of a currency sum to zero. If other accounts have positive balances, the accounts through which the money
# entered have negative ones.
_NEGATIVE_BY_DEFAULT: Final = (AccountPurpose.CASH_IN, AccountPurpose.CASH_OUT)


async def open_account(db: AsyncSession, account: AccountIn, *, id_: UUID | None = None) -> Account:
    """Open an account with the balance 0.

    A `cash_in` or `cash_out` account has `allows_negative` by default. Raises `ForeignKeyViolation` if the user doesn't
    exist, and `UniqueViolation` if there is an account with this purpose and currency.
    """
    return await AccountRepository(db).create(**build_account_values(account, id_=id_))


def build_account_values(account: AccountIn, *, id_: UUID | None = None) -> dict[str, Any]:
    """The attributes with which an account is created. The other attributes have defaults."""
    values = account.model_dump()
    values["details"] = sort_like_jsonb(values.pop("metadata"))
    if account.purpose in _NEGATIVE_BY_DEFAULT and "allows_negative" not in account.model_fields_set:
        values["allows_negative"] = True
    return values | {"id": id_ or uuid7()}


async def change_account(
    db: AsyncSession,
    account_id: UUID,
    change: AccountChange,
    *,
    precondition: Callable[[Account], None] = lambda _account: None,
) -> Account:
    """Change the fields that are set in `change`.

    The account is locked until the transaction ends. Transfers of the account wait for this lock.

    `precondition` is called with the locked account before the change. Its errors are passed on. Raises `NotFound` and
    `AccountUnchangeable`.
    """
    accounts = AccountRepository(db)
    account = await accounts.lock_one(account_id)
    precondition(account)
    values = change.model_dump(exclude_unset=True)
    if "metadata" in values:
        values["details"] = sort_like_jsonb(values.pop("metadata"))
    if account.state is AccountState.CLOSED and values:
        raise AccountUnchangeable(account, "it is closed")
    if account.held:
        async with role_in(db, SYSTEM_ROLE):  # the role of the session may not change holds
            await void_expired_holds(db, [account_id])  # so that an expired hold doesn't prevent the change
    if values.get("state") is AccountState.CLOSED:
        _require_closable(account)
    _require_limits(
        account,
        overdraft_limit=values.get("overdraft_limit", account.overdraft_limit),
        balance_limit=values.get("balance_limit", account.balance_limit),
    )
    await accounts.update(account, **values)
    return account


def _require_closable(account: Account) -> None:
    """Raise `AccountUnchangeable` for a system account and for an account that isn't empty."""
    if account.purpose is not None:
        raise AccountUnchangeable(
            account, f"it is the only {account.currency} account with the purpose {account.purpose} and must stay open"
        )
    if account.balance or account.held:
        raise AccountUnchangeable(
            account,
            f"only an empty account can be closed, and its balance is {account.balance}, with {account.held} held",
        )


def _require_limits(account: Account, *, overdraft_limit: int, balance_limit: int | None) -> None:
    """Raise `AccountUnchangeable` if the current balance exceeds one of the new limits."""
    available = account.balance - account.held
    if available < -overdraft_limit and not account.allows_negative:
        raise AccountUnchangeable(account, f"its available balance is {available}, below the new overdraft_limit")
    if balance_limit is not None and account.balance > balance_limit:
        raise AccountUnchangeable(account, f"its balance is {account.balance}, above the new balance_limit")


async def get_or_open_system_account(db: AsyncSession, purpose: AccountPurpose, currency: str) -> Account:
    """The system account with this purpose and currency. If there is none, it is opened with `allows_negative`.

    Concurrent calls return the same account.
    """
    values = {"id": uuid7(), "name": purpose.replace("_", " ").capitalize(), "allows_negative": True}
    insert_account = insert(Account).values(purpose=purpose, currency=currency, **values)
    await db.execute(insert_account.on_conflict_do_nothing())
    select_account = select(Account).where(Account.purpose == purpose, Account.currency == currency)
    return (await db.scalars(select_account)).one()


async def read_account(db: AsyncSession, account_id: UUID) -> AccountSnapshot:
    """The current state of the account, without expired holds. Raises `NotFound`."""
    select_account = select(AccountSnapshot).where(AccountSnapshot.id == account_id)
    account = (await db.scalars(select_account.execution_options(populate_existing=True))).one_or_none()
    if account is None:
        raise NotFound(Account, [account_id])
    return account


async def read_balance_at(db: AsyncSession, account_id: UUID, at: datetime) -> tuple[int, int]:
    """The balance at the time `at`, and the number of the last entry that it includes (0 if there is none).

    Raises `NotFound`.
    """
    accounts = AccountRepository(db)
    await accounts.get_one(account_id)
    entry_number = await accounts.find_last_entry_number(account_id, at)
    return await read_balance_after_entry(db, account_id, entry_number), entry_number


async def read_balance_after_entry(db: AsyncSession, account_id: UUID, entry_number: int) -> int:
    """The balance after the entry with this number. The balance after entry 0 is 0.

    Raises `NotFound` for the account, or for the entry if the account has no such entry.
    """
    if entry_number == 0:
        await AccountRepository(db).get_one(account_id)  # raises NotFound
        return 0
    entry = await db.get(Entry, (account_id, entry_number))
    if entry is None:
        await AccountRepository(db).get_one(account_id)  # raises NotFound for the account
        raise NotFound(Entry, [(account_id, entry_number)])
    return entry.balance_after


async def read_effective_balance(db: AsyncSession, account_id: UUID, at: datetime) -> int:
    """The sum of the entries that take effect at or before `at`, whenever they were posted. Raises `NotFound`."""
    accounts = AccountRepository(db)
    await accounts.get_one(account_id)
    return await accounts.sum_effective_entries(account_id, at)
