"""The seal: what a statement has written, in digests, as one link of a chain."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import ARRAY, BigInteger, CheckConstraint, Identity, LargeBinary, String, UniqueConstraint, Uuid, text
from sqlalchemy.orm import Mapped, mapped_column

from howdah import Base


class Seal(Base):
    """The digests of the rows that a statement wrote to the table `subject`, in the order of `ids`.

    Triggers insert it, in the transaction of what it seals. `link_seals` numbers it once by `position`, from 1 without
    gaps, and `hash` follows from the hash before and from the rest of the row. Neither is there until then. Nothing
    else of it ever changes.

    `revisions` counts a row's changes up, for what can change: accounts, and pending transfers (1 once they are
    settled). `befores` are the digests before the change. Keys are forgotten one day, and sealed without `ids`.
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
