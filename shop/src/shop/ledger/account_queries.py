"""Queries for accounts, their entries and their past balances."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    ScalarSelect,
    Select,
    SQLColumnExpression,
    String,
    Subquery,
    case,
    cast,
    func,
    literal_column,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped

from howdah import AsyncRepository, Base
from shop.ledger.expiry import has_expired
from shop.ledger.models import (
    Account,
    AccountPurpose,
    AccountState,
    Direction,
    Entry,
    EntryKind,
    PendingTransfer,
    Transfer,
)
from shop.web.fields import ListOrder


class AccountRepository(AsyncRepository[Account]):
    """Reads accounts, and values that are computed from their entries."""

    async def find_last_entry_number(self, account_id: UUID, at: datetime) -> int:
        """The number of the last entry posted at or before `at`; 0 if there is none."""
        return int((await self.session.execute(select(entry_number_at(account_id, at)))).scalar_one())

    async def sum_effective_entries(self, account_id: UUID, at: datetime) -> int:
        """The sum of the entries whose transfers take effect at or before `at`. Reads all entries of the account."""
        total = (
            select(func.coalesce(func.sum(Entry.amount), 0))
            .join(Transfer, Transfer.id == Entry.transfer_id)
            .where(Entry.account_id == account_id, Transfer.effective_at <= at)
        )
        return int((await self.session.execute(total)).scalar_one())


def entry_number_at(
    account_id: UUID, at: datetime, *, inclusive: bool = True, name: str = "search"
) -> ScalarSelect[int]:
    """The number of the account's last entry posted at or before `at`; 0 if there is none.

    If `inclusive` is false, only entries posted before `at` count.

    Later entries have larger numbers, so this is a binary search by the primary key. It takes 20 steps for a million
    entries. An index on the time would make each insert of an entry 20 % slower.

    `name` is the name of the CTE, which must be unique in a statement.
    """
    start = select(cast(literal_column("0"), BigInteger).label("low"), Account.entry_count.label("high")).where(
        Account.id == account_id
    )
    search = start.cte(name, recursive=True)
    low, high = search.c.low, search.c.high
    # The middle is rounded up. If it were rounded down, `low` would not increase when `high` is `low + 1`.
    interval = select(low, high, ((low + high + 1) // 2).label("middle")).where(low < high).subquery()
    is_in_time = Entry.created_at <= at if inclusive else Entry.created_at < at
    step = (
        select(
            case((is_in_time, interval.c.middle), else_=interval.c.low),
            case((is_in_time, interval.c.high), else_=interval.c.middle - 1),
        )
        .select_from(interval)
        .join(Entry, (Entry.account_id == account_id) & (Entry.entry_number == interval.c.middle))
    )
    steps = search.union_all(step)
    return select(steps.c.low).where(steps.c.low == steps.c.high).scalar_subquery()


def posted_between(
    entry_number: SQLColumnExpression[int], account_id: UUID, start: datetime | None, end: datetime | None
) -> list[ColumnElement[bool]]:
    """Conditions on `entry_number` for the account's entries that were posted at or after `start` and before `end`."""
    conditions: list[ColumnElement[bool]] = []
    if start is not None:
        conditions.append(entry_number > entry_number_at(account_id, start, inclusive=False, name="search_start"))
    if end is not None:
        conditions.append(entry_number <= entry_number_at(account_id, end, inclusive=False, name="search_end"))
    return conditions


def _select_accounts() -> Subquery:
    """The columns of `accounts`, and `available`. Expired holds are subtracted from `held`."""
    columns = Account.__table__.c
    expired = (
        select(func.coalesce(func.sum(PendingTransfer.amount), 0))
        .where(
            PendingTransfer.from_account_id == columns.id,
            has_expired(PendingTransfer.state, PendingTransfer.expires_at),
        )
        .correlate(Account.__table__)
        .scalar_subquery()
    )
    # The CASE avoids reading the holds of accounts without a held amount. Most accounts have none.
    held = case((columns.held > 0, columns.held - cast(expired, BigInteger)), else_=columns.held)
    unexpired = select(held.label("held")).correlate(Account.__table__).lateral("unexpired")
    other_columns = [
        column.label("details" if column.name == "metadata" else column.name)
        for column in columns
        if column.name != "held"
    ]
    return (
        select(*other_columns, unexpired.c.held, (columns.balance - unexpired.c.held).label("available"))
        .select_from(Account.__table__)
        .join(unexpired, true())
        .subquery("account")
    )


class AccountSnapshot(Base):
    """The current state of an account, read by one statement.

    `held` doesn't include expired holds, even if they aren't voided yet. `available` is the balance less `held`.
    """

    __table__ = _select_accounts()
    __mapper_args__ = {"primary_key": [__table__.c.id]}  # noqa: RUF012

    if TYPE_CHECKING:
        id: Mapped[UUID]
        user_id: Mapped[UUID | None]
        currency: Mapped[str]
        purpose: Mapped[AccountPurpose | None]
        state: Mapped[AccountState]
        balance: Mapped[int]
        held: Mapped[int]
        available: Mapped[int]
        entry_count: Mapped[int]
        revision: Mapped[int]


_REVERSAL: Final = literal_column(f"'{EntryKind.REVERSAL}'", String)
_POSTED_HOLD: Final = literal_column(f"'{EntryKind.POSTED_HOLD}'", String)
_TRANSFER: Final = literal_column(f"'{EntryKind.TRANSFER}'", String)


def _select_statement_entries() -> Subquery:
    """The columns of `entries`, with those of the transfer and the kind of the entry."""
    is_debit = Entry.amount < 0
    return (
        select(
            *(
                getattr(Entry, name)
                for name in ("account_id", "entry_number", "transfer_id", "amount", "balance_after")
            ),
            case((is_debit, Transfer.to_account_id), else_=Transfer.from_account_id).label("counterparty_account_id"),
            case(
                (Transfer.reverses_id.is_not(None), _REVERSAL),
                (PendingTransfer.id.is_not(None), _POSTED_HOLD),
                else_=_TRANSFER,
            ).label("kind"),
            Transfer.description,
            func.coalesce(Transfer.details, cast(literal_column("'{}'"), JSONB), type_=JSONB).label("details"),
            Transfer.effective_at,
            Transfer.group_id,
            Transfer.reverses_id,
            Entry.created_at,
        )
        .join(Transfer, Transfer.id == Entry.transfer_id)
        .outerjoin(PendingTransfer, PendingTransfer.id == Entry.transfer_id)
        .subquery("entry")
    )


class StatementEntry(Base):
    """A line of an account statement: an entry with columns of its transfer. `details` is the transfer's metadata."""

    __table__ = _select_statement_entries()
    __mapper_args__ = {"primary_key": [__table__.c.account_id, __table__.c.entry_number]}  # noqa: RUF012

    if TYPE_CHECKING:
        account_id: Mapped[UUID]
        entry_number: Mapped[int]
        amount: Mapped[int]
        counterparty_account_id: Mapped[UUID]
        kind: Mapped[str]
        effective_at: Mapped[datetime]


def select_entries(
    account_id: UUID,
    *,
    order: ListOrder = "oldest",
    created_from: datetime | None = None,
    created_before: datetime | None = None,
    effective_from: datetime | None = None,
    effective_before: datetime | None = None,
    counterparty_account_id: UUID | None = None,
    direction: Direction | None = None,
    kind: EntryKind | None = None,
) -> Select[Any]:
    """An account's entries, in the order of their numbers. A filter that is None is not applied.

    `created_from` and `created_before` are found by binary search. The other filters read the account's entries one by
    one until the page is full.
    """
    entry_number = StatementEntry.entry_number
    query = select(StatementEntry).where(StatementEntry.account_id == account_id)
    query = query.where(*posted_between(entry_number, account_id, created_from, created_before))
    if effective_from is not None:
        query = query.where(StatementEntry.effective_at >= effective_from)
    if effective_before is not None:
        query = query.where(StatementEntry.effective_at < effective_before)
    if counterparty_account_id is not None:
        query = query.where(StatementEntry.counterparty_account_id == counterparty_account_id)
    if direction is not None:
        amount = StatementEntry.amount
        query = query.where(amount < 0 if direction is Direction.DEBIT else amount > 0)
    if kind is not None:
        query = query.where(StatementEntry.kind == kind.value)
    query = query.execution_options(populate_existing=True)
    return query.order_by(entry_number.desc() if order == "newest" else entry_number)
