"""The account and its entries."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, Enum, FetchedValue, ForeignKey, Index, String, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from howdah import Base, UUIDv7PrimaryKey


def one_of(kind: type[StrEnum], name: str) -> Enum:
    """The type of a column that holds a member of `kind`. `name` is that of its CHECK constraint."""
    return Enum(
        kind,
        name=name,
        native_enum=False,
        create_constraint=True,
        length=10,
        values_callable=lambda members: [member.value for member in members],
    )


class AccountState(StrEnum):
    """Money moves into and out of an open account only. A frozen one can be opened again, a closed one is empty and
    stays closed."""

    OPEN = "open"
    FROZEN = "frozen"
    CLOSED = "closed"


class AccountPurpose(StrEnum):
    """What an account of the house is for: money comes into the books from `cash_in` and leaves them for `cash_out`."""

    CASH_IN = "cash_in"
    CASH_OUT = "cash_out"
    FEES = "fees"


class EntryKind(StrEnum):
    """What created an entry: a transfer, the posting of a hold, or a reversal."""

    TRANSFER = "transfer"
    POSTED_HOLD = "posted_hold"
    REVERSAL = "reversal"


class Direction(StrEnum):
    """A debit takes from the account, a credit adds to it."""

    DEBIT = "debit"
    CREDIT = "credit"


class Account(UUIDv7PrimaryKey, Base):
    """Money of one currency, in its smallest unit.

    `entry_number` is the number of entries. A trigger on new transfers changes it and `balance`. `held` is the part of the
    balance that pending transfers reserve; `shop.transfers` changes it. The available balance stays at
    `-overdraft_limit` or more, and the balance never exceeds `balance_limit`. The accounts through which money enters
    and leaves the ledger have `allows_negative`, so every currency sums to zero. There is one account for each purpose
    and currency.

    `revision` is incremented by a trigger on every change that creates no entry. Other triggers reject a change of the
    balance without a transfer, a new account with a balance, deletion, and a change of currency.

    `created_at` and `updated_at` are times of PostgreSQL's clock, not of a process's.
    """

    __tablename__ = "accounts"
    __table_args__ = (
        CheckConstraint("balance - held >= -overdraft_limit OR allows_negative", name="balance_covered"),
        CheckConstraint("balance <= balance_limit", name="balance_within_limit"),
        CheckConstraint("overdraft_limit >= 0", name="overdraft_limit_not_negative"),
        CheckConstraint("balance_limit >= 0", name="balance_limit_not_negative"),
        CheckConstraint("held >= 0", name="held_not_negative"),
        CheckConstraint("state <> 'closed' OR (balance = 0 AND held = 0)", name="closed_is_empty"),
        CheckConstraint("currency ~ '^[A-Z]{3}$'", name="currency_is_a_code"),
        CheckConstraint("entry_number >= 0", name="entry_count_not_negative"),
        Index(
            "uq_accounts_purpose_currency", "purpose", "currency", unique=True, postgresql_where="purpose IS NOT NULL"
        ),
        {"postgresql_with": {"fillfactor": 70}},  # room for a balance's next entry_number on its page
    )

    user_id: Mapped[UUID | None] = mapped_column(ForeignKey("users.id"), index=True)
    name: Mapped[str] = mapped_column(String(100))
    currency: Mapped[str] = mapped_column(String(3))
    purpose: Mapped[AccountPurpose | None] = mapped_column(one_of(AccountPurpose, "purpose_is_known"))
    balance: Mapped[int] = mapped_column(BigInteger, default=0)
    held: Mapped[int] = mapped_column(BigInteger, default=0)
    allows_negative: Mapped[bool] = mapped_column(default=False)
    overdraft_limit: Mapped[int] = mapped_column(BigInteger, default=0)
    balance_limit: Mapped[int | None] = mapped_column(BigInteger)
    state: Mapped[AccountState] = mapped_column(one_of(AccountState, "state_is_known"), default=AccountState.OPEN)
    details: Mapped[dict[str, Any]] = mapped_column("metadata", JSONB, default=dict)
    entry_number: Mapped[int] = mapped_column(BigInteger, default=0)
    revision: Mapped[int] = mapped_column(BigInteger, default=0, server_onupdate=FetchedValue())
    created_at: Mapped[datetime] = mapped_column(server_default=func.statement_timestamp())
    updated_at: Mapped[datetime] = mapped_column(
        server_default=func.statement_timestamp(), onupdate=func.statement_timestamp()
    )

    @property
    def available(self) -> int:
        """Balance less `held`. `shop.ledger.account_queries.AccountSnapshot` also leaves out holds that have expired."""
        return self.balance - self.held


class Entry(Base):
    """One side of a transfer: `amount` is what came in, negative for what went out. Never changed, never deleted.

    An account's entries are numbered from 1 without gaps by `entry_number`, and not older than the one before;
    `balance_after` is the account's balance then. There are no foreign keys: a trigger makes the entries of new
    transfers, once a statement, and another one refuses any from somebody else.
    """

    __tablename__ = "entries"
    __table_args__ = (
        CheckConstraint("amount <> 0", name="amount_not_zero"),
        CheckConstraint("entry_number > 0", name="entry_number_positive"),
    )

    account_id: Mapped[UUID] = mapped_column(primary_key=True)
    entry_number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    transfer_id: Mapped[UUID]
    amount: Mapped[int] = mapped_column(BigInteger)
    balance_after: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime]
