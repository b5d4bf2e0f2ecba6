"""The transfer, and the memory of what was answered under an idempotency key."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, LargeBinary, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from howdah import Base, UUIDv7PrimaryKey, utcnow


class Transfer(UUIDv7PrimaryKey, Base):
    """Money moved from one account to another, in the smallest unit of their currency. Never changed, never deleted;
    its two entries are `shop.accounts.models.Entry`.

    `reverses_id` is the transfer of which this one takes a part or all back, `reversed_total` how much of that one has
    been taken back with this: a running total, so that two reversals can't count on the same money.
    """

    __tablename__ = "transfers"
    __table_args__ = (
        CheckConstraint("amount > 0", name="amount_positive"),
        CheckConstraint("from_account_id <> to_account_id", name="accounts_differ"),
        CheckConstraint("(reverses_id IS NULL) = (reversed_total IS NULL)", name="reversal_is_told"),
        CheckConstraint("reversed_total >= amount", name="reversed_total_is_running"),
        UniqueConstraint("reverses_id", "reversed_total"),
    )

    # Copies of what its entries say, whose foreign keys and index are enough: more would double the time of a transfer.
    from_account_id: Mapped[UUID]
    to_account_id: Mapped[UUID]
    amount: Mapped[int] = mapped_column(BigInteger)
    currency: Mapped[str] = mapped_column(String(3))
    description: Mapped[str | None] = mapped_column(String(500))
    reverses_id: Mapped[UUID | None] = mapped_column(ForeignKey("transfers.id"))
    reversed_total: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(default=utcnow)


class IdempotencyKey(Base):
    """What was answered to the first request under a key: a transfer, or a refusal.

    Written in the transfer's own transaction, so there is never one without the other. `fingerprint` is a digest of
    the request; the same key with another one is refused.
    """

    __tablename__ = "idempotency_keys"
    __table_args__ = (
        # both NULL only within the transaction that decides
        CheckConstraint("transfer_id IS NULL OR refusal IS NULL", name="one_outcome"),
    )

    scope: Mapped[str] = mapped_column(String(100), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    fingerprint: Mapped[bytes] = mapped_column(LargeBinary)
    transfer_id: Mapped[UUID | None] = mapped_column(ForeignKey("transfers.id"))
    refusal: Mapped[str | None] = mapped_column(String(40))
    created_at: Mapped[datetime] = mapped_column(default=utcnow, index=True)
