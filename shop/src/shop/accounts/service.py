"""What is done with accounts, and the proof of the books."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import Text, TextClause, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from shop.accounts.models import Account, AccountState, Entry
from shop.accounts.repository import AccountRepository
from shop.accounts.schemas import AccountChange, AccountIn
from shop.transfers.models import Transfer

_SHOWN: Final = 20

# Each finds what must not be, one line of text a finding.
_FAULTS: Final[dict[str, TextClause]] = {
    "balances differ from their entries": text("""
        SELECT format('account %s: balance %s, entries sum to %s', a.id, a.balance, coalesce(e.total, 0))
        FROM accounts a
        LEFT JOIN (SELECT account_id, sum(amount) AS total FROM entries GROUP BY account_id) e ON e.account_id = a.id
        WHERE a.balance <> coalesce(e.total, 0)
        """),
    "balances differ from the last entry": text("""
        SELECT format('account %s: balance %s, last entry says %s', a.id, a.balance, e.balance_after)
        FROM accounts a JOIN entries e ON e.account_id = a.id AND e.version = a.version
        WHERE a.balance <> e.balance_after
        """),
    "versions have gaps": text("""
        SELECT format(
            'account %s: version %s, %s entries up to %s', a.id, a.version, coalesce(e.n, 0), coalesce(e.last, 0)
        )
        FROM accounts a
        LEFT JOIN (SELECT account_id, count(*) AS n, max(version) AS last FROM entries GROUP BY account_id) e
          ON e.account_id = a.id
        WHERE a.version <> coalesce(e.n, 0) OR a.version <> coalesce(e.last, 0)
        """),
    "entries don't follow from the one before": text("""
        SELECT format('account %s: entry %s', account_id, version)
        FROM (SELECT account_id, version, amount, balance_after,
                     lag(balance_after, 1, 0::bigint) OVER (PARTITION BY account_id ORDER BY version) AS before
              FROM entries) e
        WHERE balance_after <> before::numeric + amount
        """),
    "transfers without their two entries": text("""
        SELECT format('transfer %s', t.id)
        FROM transfers t
        LEFT JOIN entries debit ON debit.transfer_id = t.id AND debit.account_id = t.from_account_id
        LEFT JOIN entries credit ON credit.transfer_id = t.id AND credit.account_id = t.to_account_id
        WHERE debit.amount IS DISTINCT FROM -t.amount OR credit.amount IS DISTINCT FROM t.amount
           OR (SELECT count(*) FROM entries e WHERE e.transfer_id = t.id) <> 2
        """),
    "transfers between currencies": text("""
        SELECT format('transfer %s: %s, from %s to %s', t.id, t.currency, debit.currency, credit.currency)
        FROM transfers t
        JOIN accounts debit ON debit.id = t.from_account_id
        JOIN accounts credit ON credit.id = t.to_account_id
        WHERE t.currency <> debit.currency OR t.currency <> credit.currency
        """),
    "reversals that don't go back the way of the transfer": text("""
        SELECT format('transfer %s reverses %s', r.id, t.id)
        FROM transfers r JOIN transfers t ON t.id = r.reverses_id
        WHERE r.from_account_id <> t.to_account_id OR r.to_account_id <> t.from_account_id
        """),
    "reversals of more than there was": text("""
        SELECT format('transfer %s: %s, reversed %s', t.id, t.amount, r.total)
        FROM (SELECT reverses_id, sum(amount) AS total, max(reversed_total) AS told
              FROM transfers WHERE reverses_id IS NOT NULL GROUP BY reverses_id) r
        JOIN transfers t ON t.id = r.reverses_id
        WHERE r.total > t.amount OR r.total <> r.told
        """),
    "idempotency keys without an outcome": text("""
        SELECT format('key %s', key) FROM idempotency_keys WHERE transfer_id IS NULL AND refusal IS NULL
        """),
    "currencies that don't sum to zero": text("""
        SELECT format('%s: %s', currency, sum(balance)) FROM accounts GROUP BY currency HAVING sum(balance) <> 0
        """),
    "balances below zero without leave": text("""
        SELECT format('account %s: %s', id, balance) FROM accounts
        WHERE balance < -overdraft_limit AND NOT allows_negative
        """),
    "balances above their limit": text("""
        SELECT format('account %s: %s', id, balance) FROM accounts WHERE balance > balance_limit
        """),
}


@dataclass(frozen=True, slots=True)
class BooksReport:
    """`faults` has up to 20 findings of each kind, and is empty when the books are right."""

    accounts: int
    transfers: int
    entries: int
    faults: dict[str, list[str]] = field(default_factory=dict)


class AccountUnchangeable(ValueError):
    """A closed account stays as it is, only an empty one can be closed, and a balance must be within its limits."""

    def __init__(self, account: Account, reason: str) -> None:
        self.account_id = account.id
        super().__init__(f"account {account.id} can't be changed: {reason}")


async def open_account(db: AsyncSession, account: AccountIn) -> Account:
    """A new account with nothing on it. Raises `ForeignKeyViolation` for an unknown user."""
    values = account.model_dump()
    return await AccountRepository(db).create(details=values.pop("metadata"), **values)


async def change_account(db: AsyncSession, account_id: UUID, change: AccountChange) -> Account:
    """Change what `change` names. Transfers of the account wait for it, and it for them.

    Raises `NotFound`, and `AccountUnchangeable`.
    """
    accounts = AccountRepository(db)
    account = (await accounts.lock([account_id]))[account_id]
    values = change.model_dump(exclude_unset=True)
    if "metadata" in values:
        values["details"] = values.pop("metadata")
    if account.state is AccountState.CLOSED and values:
        raise AccountUnchangeable(account, "it is closed")
    if values.get("state") is AccountState.CLOSED and account.balance != 0:
        raise AccountUnchangeable(account, f"there are {account.balance} on it, and only an empty one can be closed")
    if -account.balance > values.get("overdraft_limit", account.overdraft_limit) and not account.allows_negative:
        raise AccountUnchangeable(account, "its overdraft is more than the new limit")
    limit = values.get("balance_limit", account.balance_limit)
    if limit is not None and account.balance > limit:
        raise AccountUnchangeable(account, "its balance is more than the new limit")
    await accounts.update(account, **values)
    return account


async def balance_at(db: AsyncSession, account_id: UUID, at: datetime) -> tuple[int, int]:
    """The balance and the version that the account had at that time. Raises `NotFound`."""
    accounts = AccountRepository(db)
    await accounts.get_one(account_id)
    entry = await accounts.last_entry(account_id, at)
    return (0, 0) if entry is None else (entry.balance_after, entry.version)


async def check_books(db: AsyncSession) -> BooksReport:
    """Prove that every balance follows from its entries, every transfer balances, every currency sums to zero.

    The session must read from one snapshot (`isolation_level="REPEATABLE READ"`), or transfers under way would look
    like faults.
    """

    async def count(table: type[Account | Transfer | Entry]) -> int:
        return await db.scalar(select(func.count()).select_from(table)) or 0

    faults = {}
    for name, statement in _FAULTS.items():
        found = await db.scalars(select(text("*")).select_from(statement.columns(fault=Text).subquery()).limit(_SHOWN))
        if findings := list(found):
            faults[name] = findings
    return BooksReport(await count(Account), await count(Transfer), await count(Entry), faults)
