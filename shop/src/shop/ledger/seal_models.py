"""The table of the seals, with which `shop.ledger.seals` detects changes of the ledger and of the audit trail."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import ARRAY, BigInteger, CheckConstraint, Identity, LargeBinary, String, UniqueConstraint, Uuid, text
from sqlalchemy.orm import Mapped, mapped_column

from howdah import Base
from howdah.tenancy import TableGrant
from shop.policies import staff_and_system
from shop.roles import STAFF_ROLE, SYSTEM_ROLE


class Seal(Base):
    """The digests of the rows that a statement wrote to the table `subject`, in the order of `ids`.

    Triggers insert a seal in the transaction that writes the rows. Later `link_seals` sets `position`, which counts
    from 1 without gaps, and `hash`, which is computed from the previous hash and the other columns of the row, without
    `position`. Both are NULL until then. Nothing else of a seal ever changes.

    `revisions` and `previous_digests` are set for rows that can change. The revision of an account is its `revision`.
    The revision of a pending transfer is 0, and 1 when it is posted or voided. `previous_digests` are the digests
    before the change. Idempotency keys are sealed without `ids`, because old keys are deleted.
    """

    __tablename__ = "seals"
    __table_args__ = (
        CheckConstraint("(position IS NULL) = (hash IS NULL)", name="linked_has_hash"),
        UniqueConstraint("position"),
        *staff_and_system(),
        # only triggers and `link_seals` write seals; they have the rights of the owner
        TableGrant(STAFF_ROLE, "SELECT"),
        TableGrant(SYSTEM_ROLE, "SELECT"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    subject: Mapped[str] = mapped_column(String(20))
    ids: Mapped[list[UUID] | None] = mapped_column(ARRAY(Uuid))
    revisions: Mapped[list[int] | None] = mapped_column(ARRAY(BigInteger))
    digests: Mapped[list[bytes]] = mapped_column(ARRAY(LargeBinary))
    previous_digests: Mapped[list[bytes] | None] = mapped_column(ARRAY(LargeBinary))
    created_at: Mapped[datetime] = mapped_column(server_default=text("clock_timestamp()"))
    position: Mapped[int | None] = mapped_column(BigInteger)
    hash: Mapped[bytes | None] = mapped_column(LargeBinary)
