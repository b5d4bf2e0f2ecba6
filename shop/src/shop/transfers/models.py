"""The transfer, pending or made, and the memory of what was answered under an idempotency key."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, LargeBinary, String, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from howdah import Base, UUIDv7PrimaryKey
from shop.ledger.models import one_of


class TransferState(StrEnum):
    """A pending transfer becomes posted or voided, and stays it."""

    PENDING = "pending"
    POSTED = "posted"
    VOIDED = "voided"


class Transfer(UUIDv7PrimaryKey, Base):
    """Money moved from one account to another, in the smallest unit of their currency. Never changed, never deleted.

    Its two entries, `shop.ledger.models.Entry`, are those of `from_account_id` and `to_account_id` with the numbers
    `from_entry_number` and `to_entry_number`; a trigger makes them, once a statement, if these follow. `effective_at` is when the
    transfer counts from, which may be another time than that of its booking. Those that were made
    together, all or none, share a `group_id`.

    `reverses_id` is the transfer of which this one takes a part or all back, `reversed_total` how much of that one has
    been taken back with this: a running total, so that two reversals can't count on the same money.
    """

    __tablename__ = "transfers"
    __table_args__ = (
        CheckConstraint("amount > 0", name="amount_positive"),
        CheckConstraint("from_account_id <> to_account_id", name="accounts_differ"),
        CheckConstraint("(reverses_id IS NULL) = (reversed_total IS NULL)", name="reversal_is_told"),
        CheckConstraint("reversed_total >= amount", name="reversed_total_is_running"),
        # partial, so that what nearly no transfer has costs it nothing
        Index(
            "uq_transfers_reverses_id_reversed_total",
            "reverses_id",
            "reversed_total",
            unique=True,
            postgresql_where="reverses_id IS NOT NULL",
        ),
        Index("ix_transfers_group_id", "group_id", postgresql_where="group_id IS NOT NULL"),
        # times only increase, so a BRIN index is small and costs a transfer almost nothing
        Index("ix_transfers_created_at", "created_at", postgresql_using="brin"),
        Index(
            "ix_transfers_metadata",
            "metadata",
            postgresql_using="gin",
            postgresql_ops={"metadata": "jsonb_path_ops"},
            postgresql_where="metadata IS NOT NULL",
        ),
    )

    from_account_id: Mapped[UUID]
    from_entry_number: Mapped[int] = mapped_column(BigInteger)
    to_account_id: Mapped[UUID]
    to_entry_number: Mapped[int] = mapped_column(BigInteger)
    amount: Mapped[int] = mapped_column(BigInteger)
    currency: Mapped[str] = mapped_column(String(3))
    description: Mapped[str | None] = mapped_column(String(500))
    details: Mapped[dict[str, Any] | None] = mapped_column("metadata", JSONB(none_as_null=True))
    effective_at: Mapped[datetime] = mapped_column(server_default=func.statement_timestamp())
    reverses_id: Mapped[UUID | None] = mapped_column(ForeignKey("transfers.id"))
    reversed_total: Mapped[int | None] = mapped_column(BigInteger)
    group_id: Mapped[UUID | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.statement_timestamp())


_UNPOSTED: Final = "state <> 'posted'"


class PendingTransfer(UUIDv7PrimaryKey, Base):
    """A hold on `from_account_id`. The amount is still part of that account's balance, but not of its available
    balance, and not yet part of the other account's balance.

    It is posted, whole or in part, as the `Transfer` with the same id, or voided. `from_account_id` is locked while its
    state changes. A trigger ensures that it changes only once.

    It expires at `expires_at`, by the database's clock. From then on it can't be posted, reserves nothing and is shown
    as voided. Its row says `pending` until its account is next locked, or `shop.ledger.maintenance` voids it (see
    `shop.ledger.expiry`).
    """

    __tablename__ = "pending_transfers"
    __table_args__ = (
        CheckConstraint("amount > 0", name="amount_positive"),
        CheckConstraint("from_account_id <> to_account_id", name="accounts_differ"),
        CheckConstraint("(state = 'pending') = (settled_at IS NULL)", name="settled_is_told"),
        Index("ix_pending_transfers_expires_at", "expires_at", postgresql_where="state = 'pending'"),
        # with `expires_at`: each transaction that locks an account looks for its expired holds, and it may have many
        Index(
            "ix_pending_transfers_from_account_id_expires_at",
            "from_account_id",
            "expires_at",
            postgresql_where="state = 'pending'",
        ),
        # for lists, which read posted holds from `transfers`
        Index("ix_pending_transfers_from_account_id_id", "from_account_id", "id", postgresql_where=_UNPOSTED),
        Index("ix_pending_transfers_to_account_id_id", "to_account_id", "id", postgresql_where=_UNPOSTED),
        Index("ix_pending_transfers_group_id", "group_id", postgresql_where="group_id IS NOT NULL"),
        Index(
            "ix_pending_transfers_metadata",
            "metadata",
            postgresql_using="gin",
            postgresql_ops={"metadata": "jsonb_path_ops"},
            postgresql_where="metadata IS NOT NULL",
        ),
    )

    from_account_id: Mapped[UUID] = mapped_column(ForeignKey("accounts.id"))
    to_account_id: Mapped[UUID] = mapped_column(ForeignKey("accounts.id"))
    amount: Mapped[int] = mapped_column(BigInteger)
    currency: Mapped[str] = mapped_column(String(3))
    description: Mapped[str | None] = mapped_column(String(500))
    details: Mapped[dict[str, Any] | None] = mapped_column("metadata", JSONB(none_as_null=True))
    effective_at: Mapped[datetime | None]
    group_id: Mapped[UUID | None]
    state: Mapped[TransferState] = mapped_column(one_of(TransferState, "state_is_known"))
    expires_at: Mapped[datetime]
    created_at: Mapped[datetime]
    settled_at: Mapped[datetime | None]


class AnswerKind(StrEnum):
    """The kind of the first answer under an idempotency key: the state in which a transfer was returned, a refusal, or
    a new account."""

    POSTED = "posted"
    PENDING = "pending"
    VOIDED = "voided"
    REFUSED = "refused"
    OPENED = "opened"


class IdempotencyKey(Base):
    """The answer to the first request under a key: a transfer, a refusal, or an account.

    Written in the transaction of the transfer or account, so one never exists without the other. `answer` is stored
    because it can't be derived: one transfer can be the answer to a hold, and later to its posting. `fingerprint` is
    a digest of the request; a different request with the same key is refused. `shop.ledger.maintenance` deletes old keys.
    """

    __tablename__ = "idempotency_keys"
    __table_args__ = (
        CheckConstraint(
            "num_nonnulls(transfer_id, refusal, account_id) = 1 AND (refusal IS NOT NULL) = (answer = 'refused') "
            "AND (account_id IS NOT NULL) = (answer = 'opened')",
            name="one_outcome",
        ),
        # for what is old, which lies together: a hundredth of the size of an index of every key
        Index("ix_idempotency_keys_created_at", "created_at", postgresql_using="brin"),
    )

    scope: Mapped[str] = mapped_column(String(100), primary_key=True)
    key: Mapped[str] = mapped_column(String(260), primary_key=True)
    fingerprint: Mapped[bytes] = mapped_column(LargeBinary)
    transfer_id: Mapped[UUID | None]
    refusal: Mapped[str | None] = mapped_column(String(40))
    account_id: Mapped[UUID | None]  # no foreign key: PostgreSQL would queue its check for every new key, even for NULL
    answer: Mapped[AnswerKind] = mapped_column(one_of(AnswerKind, "answer_is_known"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.statement_timestamp())
