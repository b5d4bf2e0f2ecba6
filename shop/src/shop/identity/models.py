"""Credentials and sessions."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import ForeignKey, Index, String, func
from sqlalchemy.orm import Mapped, mapped_column

from howdah import Base, UUIDv7PrimaryKey, text_enum
from shop.identity.principals import Role
from shop.users.models import User


class Credential(Base):
    """How a user signs in, and the user's role. A user without a row is a customer who has no password yet."""

    __tablename__ = "credentials"

    user_id: Mapped[UUID] = mapped_column(ForeignKey(User.id, ondelete="CASCADE"), primary_key=True)
    role: Mapped[Role] = mapped_column(text_enum(Role, name="role_is_known", length=10), default=Role.CUSTOMER)
    password_hash: Mapped[str | None] = mapped_column(String(255))


class SignInSession(UUIDv7PrimaryKey, Base):
    """A sign-in. Verifiers of access tokens read `revoked_at`."""

    __tablename__ = "sign_in_sessions"
    __table_args__ = (
        Index("ix_sign_in_sessions_user_id_created_at", "user_id", "created_at"),
        Index("ix_sign_in_sessions_revoked_at", "revoked_at", postgresql_where="revoked_at IS NOT NULL"),
    )

    user_id: Mapped[UUID] = mapped_column(ForeignKey(User.id, ondelete="CASCADE"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.statement_timestamp())
    last_used_at: Mapped[datetime] = mapped_column(server_default=func.statement_timestamp())
    expires_at: Mapped[datetime]
    ends_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]
