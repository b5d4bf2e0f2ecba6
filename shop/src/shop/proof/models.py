"""The seal: digests of the rows that a statement wrote, as one link of a chain."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import ARRAY, BigInteger, CheckConstraint, Identity, LargeBinary, String, UniqueConstraint, Uuid, text
from sqlalchemy.orm import Mapped, mapped_column

from howdah import Base


class Seal(Base):
    """The digests of the rows that a statement wrote to the table `subject`, in the order of `ids`.

    Triggers insert a seal in the transaction that writes the rows. Later `link_seals` sets `position`, which counts
    from 1 without gaps, and `hash`, which is computed from the previous hash and the rest of the row. Both are NULL
    until then. Nothing else of a seal ever changes.

    `revisions` and `befores` are for rows that can change. `revisions` are the accounts' revisions; for pending
    transfers 0, and 1 once they are posted or voided. `befores` are the digests before the change. Idempotency keys are
    sealed without `ids`, because old keys are deleted.
    """

    __tablename__ = "seals"
    __table_args__ = (
        CheckConstraint("(position IS NULL) = (hash IS NULL)", name="linked_is_told"),
        UniqueConstraint("position"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    subject: Mapped[str] = mapped_column(String(20))
    ids: Mapped[list[UUID] | None] = mapped_column(ARRAY(Uuid))
    revisions: Mapped[list[int] | None] = mapped_column(ARRAY(BigInteger))
    digests: Mapped[list[bytes]] = mapped_column(ARRAY(LargeBinary))
    befores: Mapped[list[bytes] | None] = mapped_column(ARRAY(LargeBinary))
    created_at: Mapped[datetime] = mapped_column(server_default=text("clock_timestamp()"))
    position: Mapped[int | None] = mapped_column(BigInteger)
    hash: Mapped[bytes | None] = mapped_column(LargeBinary)
