"""The account and its entries."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, Enum, ForeignKey, Index, String
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from howdah import Base, Timestamps, UUIDv7PrimaryKey, utcnow


class AccountState(StrEnum):
    """Money moves into and out of an open account only. A frozen one can be opened again, a closed one is empty and
    stays closed."""

    OPEN = "open"
    FROZEN = "frozen"
    CLOSED = "closed"


class Account(UUIDv7PrimaryKey, Timestamps, Base):
    """Money of one currency, in its smallest unit.

    `version` counts the entries, from 0. Only `shop.transfers.service.post_transfers` changes it and `balance`.
    The balance stays from `-overdraft_limit` to `balance_limit`. An account that money enters or leaves the books by
    `allows_negative`, however much; so every currency sums to zero.
    """

    __tablename__ = "accounts"
    __table_args__ = (
        CheckConstraint("balance >= -overdraft_limit OR allows_negative", name="balance_covered"),
        CheckConstraint("balance <= balance_limit", name="balance_within_limit"),
        CheckConstraint("overdraft_limit >= 0", name="overdraft_limit_not_negative"),
        CheckConstraint("balance_limit >= 0", name="balance_limit_not_negative"),
        CheckConstraint("state <> 'closed' OR balance = 0", name="closed_is_empty"),
        CheckConstraint("currency ~ '^[A-Z]{3}$'", name="currency_is_a_code"),
        CheckConstraint("version >= 0", name="version_not_negative"),
    )

    user_id: Mapped[UUID | None] = mapped_column(ForeignKey("users.id"), index=True)
    name: Mapped[str] = mapped_column(String(100))
    currency: Mapped[str] = mapped_column(String(3))
    balance: Mapped[int] = mapped_column(BigInteger, default=0)
    allows_negative: Mapped[bool] = mapped_column(default=False)
    overdraft_limit: Mapped[int] = mapped_column(BigInteger, default=0)
    balance_limit: Mapped[int | None] = mapped_column(BigInteger)
    state: Mapped[AccountState] = mapped_column(
        Enum(
            AccountState,
            name="state_is_known",
            native_enum=False,
            create_constraint=True,
            length=10,
            values_callable=lambda states: [state.value for state in states],
        ),
        default=AccountState.OPEN,
    )
    details: Mapped[dict[str, Any]] = mapped_column("metadata", JSONB, default=dict)
    version: Mapped[int] = mapped_column(BigInteger, default=0)


class Entry(Base):
    """One side of a transfer: `amount` is what came in, negative for what went out. Never changed, never deleted.

    An account's entries are numbered from 1 without gaps by `version`; `balance_after` is the account's balance then.
    """

    __tablename__ = "entries"
    __table_args__ = (
        CheckConstraint("amount <> 0", name="amount_not_zero"),
        CheckConstraint("version > 0", name="version_positive"),
        Index("ix_entries_account_id_created_at", "account_id", "created_at"),
    )

    account_id: Mapped[UUID] = mapped_column(ForeignKey("accounts.id"), primary_key=True)
    version: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    transfer_id: Mapped[UUID] = mapped_column(ForeignKey("transfers.id"), index=True)
    amount: Mapped[int] = mapped_column(BigInteger)
    balance_after: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(default=utcnow)
