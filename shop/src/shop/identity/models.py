"""Credentials, sessions with their refresh tokens, one-time tokens, authenticator apps, and throttles.

Only `shop_system` and the owner of the tables may read them. All times are those of the database's clock. Tokens are
stored as SHA-256 hashes. They are random, and a slow hash is needed only for secrets that can be guessed.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import ARRAY, BigInteger, ForeignKey, Index, LargeBinary, String, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from howdah import Base, UUIDv7PrimaryKey, text_enum
from shop.identity.principals import Role
from shop.policies import system_only
from shop.users.models import User


class Purpose(StrEnum):
    """The purpose of a one-time token. The token is rejected for every other purpose."""

    SIGN_UP = "sign_up"
    SIGN_IN = "sign_in"
    RESET_PASSWORD = "reset_password"  # noqa: S105  # the name of a purpose
    CHANGE_EMAIL = "change_email"
    INVITATION = "invitation"
    ENROL_TOTP = "enrol_totp"


def _user_key(**options: Any) -> Mapped[UUID]:
    return mapped_column(ForeignKey(User.id, ondelete="CASCADE"), **options)


def _database_time(**options: Any) -> Mapped[datetime]:
    return mapped_column(server_default=func.statement_timestamp(), **options)


class Credential(Base):
    """How a user signs in, and the user's role. A user without a row is a customer who has no password yet."""

    __tablename__ = "credentials"
    __table_args__ = system_only()

    user_id: Mapped[UUID] = _user_key(primary_key=True)
    role: Mapped[Role] = mapped_column(text_enum(Role, name="role_is_known", length=10), default=Role.CUSTOMER)
    password_hash: Mapped[str | None] = mapped_column(String(255))
    created_at: Mapped[datetime] = _database_time()
    password_changed_at: Mapped[datetime | None]


class SignInSession(UUIDv7PrimaryKey, Base):
    """A sign-in, and the family of its refresh tokens.

    It ends at `expires_at` unless it is refreshed before, at `ends_at` in any case, or when it is revoked. Verifiers of
    access tokens read `revoked_at`, so a revoked row is kept longer than an access token is valid. For the same reason
    the row is kept when its user is deleted: a session whose `user_id` is NULL has ended.
    """

    __tablename__ = "sign_in_sessions"
    __table_args__ = (
        Index("ix_sign_in_sessions_user_id_created_at", "user_id", "created_at"),
        Index("ix_sign_in_sessions_revoked_at", "revoked_at", postgresql_where="revoked_at IS NOT NULL"),
        Index("ix_sign_in_sessions_expires_at", "expires_at"),
        Index("ix_sign_in_sessions_orphans", "id", postgresql_where="user_id IS NULL"),
        *system_only(),
    )

    user_id: Mapped[UUID | None] = mapped_column(ForeignKey(User.id, ondelete="SET NULL"))
    created_at: Mapped[datetime] = _database_time()
    last_used_at: Mapped[datetime] = _database_time()
    expires_at: Mapped[datetime]
    ends_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]
    address: Mapped[str | None] = mapped_column(String(45))
    network: Mapped[str | None] = mapped_column(String(50))
    user_agent: Mapped[str | None] = mapped_column(String(200))


class RefreshToken(Base):
    """A refresh token of a session. `replaced_at` is the time of its first use.

    Its successor is derived from the token itself and `nonce`. It is erased when the successor is used, so that nobody
    can derive a later token from an old one.
    """

    __tablename__ = "refresh_tokens"
    __table_args__ = system_only()

    token_hash: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    session_id: Mapped[UUID] = mapped_column(ForeignKey(SignInSession.id, ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime] = _database_time()
    replaced_at: Mapped[datetime | None]
    nonce: Mapped[bytes | None] = mapped_column(LargeBinary)


class OneTimeToken(Base):
    """A token that was sent by mail or printed on the console. It is deleted when it is used.

    `user_id` is the user of the token; for an invitation it is the admin who sent it. It is None for a sign-up, and for
    an address that no user has. In the second case nobody gets the token: the row is only written so that both cases
    cause the same work.
    """

    __tablename__ = "one_time_tokens"
    __table_args__ = system_only()

    token_hash: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    purpose: Mapped[Purpose] = mapped_column(text_enum(Purpose, name="purpose_is_known", length=20))
    user_id: Mapped[UUID | None] = mapped_column(ForeignKey(User.id, ondelete="CASCADE"), index=True)
    email: Mapped[str | None] = mapped_column(String(255))
    details: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    created_at: Mapped[datetime] = _database_time()
    expires_at: Mapped[datetime] = mapped_column(index=True)


class TotpDevice(Base):
    """The authenticator app of a user. The secrets are encrypted.

    `pending_secret` becomes `secret` when a code confirms it. `last_counter` is the time step of the last code that was
    accepted; codes of this and earlier steps are rejected. `recovery_hashes` are the hashes of the unused recovery
    codes.
    """

    __tablename__ = "totp_devices"
    __table_args__ = system_only()

    user_id: Mapped[UUID] = _user_key(primary_key=True)
    secret: Mapped[bytes | None] = mapped_column(LargeBinary)
    pending_secret: Mapped[bytes | None] = mapped_column(LargeBinary)
    confirmed_at: Mapped[datetime | None]
    last_counter: Mapped[int] = mapped_column(BigInteger, default=0)
    recovery_hashes: Mapped[list[bytes]] = mapped_column(ARRAY(LargeBinary), default=list)


class SignInThrottle(Base):
    """The attempts of one account or address. The next attempt is admitted at `blocked_until`.

    `refused` counts those that came too early.
    """

    __tablename__ = "sign_in_throttles"
    __table_args__ = system_only()

    key: Mapped[str] = mapped_column(String(100), primary_key=True)
    attempts: Mapped[int]
    refused: Mapped[int] = mapped_column(server_default="0")
    blocked_until: Mapped[datetime]
    updated_at: Mapped[datetime] = mapped_column(index=True)
