"""Sessions, and the refresh tokens that rotate in them.

Each refresh token is used once. Its first use replaces it by a successor. If a replaced token is used again, somebody
has copied it, and the service can't tell who is the owner. So the session is revoked.

One case is tolerated: a client sends the same refresh twice, because the response was lost or two of its tasks refresh
at the same moment. Within `TOLERANCE` the second one gets the same successor as the first one, if that successor hasn't
been used. So a session never has two valid refresh tokens, and a thief gains nothing: as soon as the thief and the
owner have both refreshed again, one of them has used a replaced token.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import ColumnElement, Select, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from shop.identity.clients import Client
from shop.identity.errors import InvalidRefreshToken
from shop.identity.models import Credential, RefreshToken, SignInSession
from shop.identity.opaque_tokens import derive_successor, hash_token, new_nonce, new_token
from shop.identity.principals import Role

TOLERANCE: Final = timedelta(seconds=10)

# Ended sessions are kept for this time: the poll of revocations reads them, and the throttles use their networks.
_KEEP_ENDED: Final = timedelta(days=30)
# An access token is signed when its session is used, and is valid for ten minutes.
_KEEP_ORPHANS: Final = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Lifetime:
    """A session ends after `idle` without a refresh, and at the latest after `total`."""

    idle: timedelta
    total: timedelta


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """Sessions of operators and admins are shorter (NIST SP 800-63B, AAL2)."""

    customers: Lifetime
    staff: Lifetime = Lifetime(idle=timedelta(hours=1), total=timedelta(hours=12))

    def of(self, role: Role) -> Lifetime:
        return self.customers if role is Role.CUSTOMER else self.staff


@dataclass(frozen=True, slots=True)
class OpenSession:
    """A session, and its only valid refresh token."""

    id: UUID
    user_id: UUID
    role: Role
    refresh_token: str

    def __repr__(self) -> str:
        return f"OpenSession(id={self.id}, user_id={self.user_id}, role={self.role})"


@dataclass(frozen=True, slots=True)
class ReusedToken:
    """A refresh token that was replaced before. Its session was revoked."""

    session_id: UUID
    user_id: UUID


async def open_session(
    session: AsyncSession, user_id: UUID, role: Role, client: Client, lifetimes: Lifetimes
) -> OpenSession:
    """Sign the user in, in the session's transaction."""
    lifetime = lifetimes.of(role)
    now: datetime = (await session.scalars(select(func.clock_timestamp()))).one()
    opened = SignInSession(
        user_id=user_id,
        expires_at=now + min(lifetime.idle, lifetime.total),
        ends_at=now + lifetime.total,
        address=client.shown_address,
        network=client.network,
        user_agent=client.shown_user_agent,
    )
    session.add(opened)
    await session.flush()
    token = new_token()
    session.add(RefreshToken(token_hash=hash_token(token), session_id=opened.id))
    await session.flush()
    return OpenSession(opened.id, user_id, role, token)


async def refresh_session(
    session: AsyncSession, token: str, client: Client, lifetimes: Lifetimes
) -> OpenSession | ReusedToken:
    """Replace the refresh token. If it was replaced before, the session is revoked, and the caller must commit.

    Raises `InvalidRefreshToken` if the token is unknown or the session has ended.
    """
    digest = hash_token(token)
    session_id = await session.scalar(select(RefreshToken.session_id).where(RefreshToken.token_hash == digest))
    row = None if session_id is None else (await session.execute(_lock_session(session_id))).one_or_none()
    if row is None:
        raise InvalidRefreshToken
    # Read after the session was locked: another refresh may have replaced the token while this one waited.
    used, now = (
        await session.execute(
            select(RefreshToken, func.clock_timestamp())
            .where(RefreshToken.token_hash == digest)
            .execution_options(populate_existing=True)
        )
    ).one()
    if row.user_id is None or row.revoked_at is not None or now >= row.expires_at:
        raise InvalidRefreshToken
    if used.replaced_at is None:
        await session.execute(
            update(RefreshToken)
            .where(RefreshToken.session_id == session_id, RefreshToken.nonce.is_not(None))
            .values(nonce=None)
            .execution_options(synchronize_session=False)
        )
        used.replaced_at, used.nonce = now, new_nonce()
        successor = derive_successor(token, used.nonce)
        session.add(RefreshToken(token_hash=hash_token(successor), session_id=session_id))
    elif used.nonce is not None and now - used.replaced_at <= TOLERANCE:
        successor = derive_successor(token, used.nonce)
    else:
        await revoke_session(session, row.id)
        return ReusedToken(row.id, row.user_id)
    role = row.role or Role.CUSTOMER
    await session.execute(
        update(SignInSession)
        .where(SignInSession.id == row.id)
        .values(
            last_used_at=now,
            expires_at=min(now + lifetimes.of(role).idle, row.ends_at),
            address=client.shown_address,
            user_agent=client.shown_user_agent,
        )
        .execution_options(synchronize_session=False)
    )
    await session.flush()
    return OpenSession(row.id, row.user_id, role, successor)


def _lock_session(session_id: UUID) -> Select[UUID, UUID | None, datetime, datetime, datetime | None, Role | None]:
    return (
        select(
            SignInSession.id,
            SignInSession.user_id,
            SignInSession.expires_at,
            SignInSession.ends_at,
            SignInSession.revoked_at,
            Credential.role,
        )
        .outerjoin(Credential, Credential.user_id == SignInSession.user_id)
        .where(SignInSession.id == session_id)
        .with_for_update(of=SignInSession)
    )


async def revoke_session(session: AsyncSession, session_id: UUID) -> bool:
    """End the session: its refresh tokens are invalid after the commit, and its access tokens shortly after.

    Returns False if it was revoked before.
    """
    return bool(await _revoke(session, SignInSession.id == session_id))


async def revoke_sessions(session: AsyncSession, user_id: UUID, *, keep: UUID | None = None) -> list[UUID]:
    """End the user's sessions, except the one to keep. Returns their ids, for `Revocations.revoke` after the commit."""
    condition = SignInSession.user_id == user_id
    return await _revoke(session, condition if keep is None else condition & (SignInSession.id != keep))


async def _revoke(session: AsyncSession, condition: ColumnElement[bool]) -> list[UUID]:
    statement = (
        update(SignInSession)
        .where(condition, SignInSession.revoked_at.is_(None))
        .values(revoked_at=func.clock_timestamp())
        .returning(SignInSession.id)
        .execution_options(synchronize_session=False)
    )
    return list(await session.scalars(statement))


async def list_sessions(session: AsyncSession, user_id: UUID) -> list[SignInSession]:
    """The user's sessions that haven't ended, the newest first."""
    query = (
        select(SignInSession)
        .where(
            SignInSession.user_id == user_id,
            SignInSession.revoked_at.is_(None),
            SignInSession.expires_at > func.statement_timestamp(),
        )
        .order_by(SignInSession.created_at.desc(), SignInSession.id.desc())
        .limit(100)
    )
    return list(await session.scalars(query))


async def find_owner(session: AsyncSession, session_id: UUID) -> UUID | None:
    """The user of the session. None if there is no such session."""
    return await session.scalar(select(SignInSession.user_id).where(SignInSession.id == session_id))


def is_unneeded() -> ColumnElement[bool]:
    """The condition of sessions that can be deleted: they expired more than 30 days ago, or their user was deleted and
    no access token of theirs can be valid any more."""
    now = func.statement_timestamp()
    is_orphan = SignInSession.user_id.is_(None) & (SignInSession.last_used_at < now - _KEEP_ORPHANS)
    return or_(SignInSession.expires_at < now - _KEEP_ENDED, is_orphan)
