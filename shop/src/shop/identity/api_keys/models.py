"""API keys, without their secrets."""

from __future__ import annotations

from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import ARRAY, CheckConstraint, ForeignKey, Index, LargeBinary, String, text
from sqlalchemy.orm import Mapped, mapped_column

from howdah import Base, UUIDv7PrimaryKey
from howdah.tenancy import TableGrant
from shop.policies import OWN_ID, customers_insert, customers_read, customers_update, staff_and_system
from shop.roles import CUSTOMER_ROLE, STAFF_ROLE, SYSTEM_ROLE
from shop.users.models import User

MAX_NAME: Final = 100
UNIQUE_NAMES: Final = "uq_api_keys_user_id_name"


_WITHOUT_SECRET: Final = (
    *("id", "user_id", "name", "prefix", "scopes"),
    *("created_at", "expires_at", "last_used_at", "revoked_at"),
)


class ApiKey(UUIDv7PrimaryKey, Base):
    """A key of a user. `prefix` is the part of the key that isn't secret, and `secret_hash` the SHA-256 of the rest.

    A revoked key is kept, for the audit. `last_used_at` is up to two minutes old.
    """

    __tablename__ = "api_keys"
    __table_args__ = (
        CheckConstraint("octet_length(secret_hash) = 32", name="secret_hash_is_sha256"),
        CheckConstraint("cardinality(scopes) > 0", name="has_scopes"),
        # Users recognize a key by its name. If a client repeats the creation, it gets a 409 instead of a second key.
        Index(UNIQUE_NAMES, "user_id", "name", unique=True, postgresql_where=text("revoked_at IS NULL")),
        Index("ix_api_keys_user_id_id", "user_id", "id"),
        customers_read(f"user_id = {OWN_ID}"),
        customers_insert(f"user_id = {OWN_ID}"),
        customers_update(f"user_id = {OWN_ID}"),
        *staff_and_system(),
        *(
            grant
            for role in (CUSTOMER_ROLE, STAFF_ROLE)
            for grant in (
                TableGrant(role, "SELECT", columns=_WITHOUT_SECRET),
                TableGrant(role, "INSERT"),
                TableGrant(role, "UPDATE", columns=["revoked_at"]),
            )
        ),
        TableGrant(SYSTEM_ROLE, "SELECT", "DELETE"),
        TableGrant(SYSTEM_ROLE, "UPDATE", columns=["last_used_at", "revoked_at"]),
    )

    user_id: Mapped[UUID] = mapped_column(ForeignKey(User.id, ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(MAX_NAME))
    prefix: Mapped[str] = mapped_column(String(32), unique=True)
    # Deferred, because the roles of customers and of the staff may not read it.
    secret_hash: Mapped[bytes] = mapped_column(LargeBinary, deferred=True)
    scopes: Mapped[list[str]] = mapped_column(ARRAY(String(32)))
    created_at: Mapped[datetime] = mapped_column(server_default=text("statement_timestamp()"))
    expires_at: Mapped[datetime]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
