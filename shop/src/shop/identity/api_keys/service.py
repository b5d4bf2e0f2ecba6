"""Create and revoke API keys."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import AsyncRepository
from shop.identity.api_keys.formats import generate_key
from shop.identity.api_keys.models import ApiKey
from shop.identity.principals import Principal
from shop.identity.scopes import Scope, scopes_of_role

MAX_KEYS: Final = 20
"""The highest number of keys of a user that are neither revoked nor expired."""


class ScopeNotAllowed(Exception):
    """The role of the user doesn't have this scope."""


class TooManyKeys(Exception):
    """The user has `MAX_KEYS` keys."""


async def create_key(
    session: AsyncSession, principal: Principal, *, name: str, scopes: Collection[Scope], expires_in: timedelta
) -> tuple[str, ApiKey]:
    """Create a key of this principal. Returns its text, which isn't stored, and its row.

    Raises `ScopeNotAllowed`, `TooManyKeys`, and `UniqueViolation` for the name of another key of the user.
    """
    if missing := sorted(frozenset(scopes) - scopes_of_role(principal.role)):
        raise ScopeNotAllowed(f"a user with the role {principal.role} can't create a key with the scope {missing[0]}")
    # so that concurrent requests of one user can't exceed the limit
    await session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"api_keys {principal.key}", 0))))
    own = (ApiKey.user_id == principal.user_id, ApiKey.revoked_at.is_(None))
    now = func.statement_timestamp()
    # an expired key isn't counted, and its name may be used again
    await session.execute(
        update(ApiKey)
        .where(*own, ApiKey.expires_at <= now)
        .values(revoked_at=ApiKey.expires_at)
        .execution_options(synchronize_session=False)
    )
    if (await session.scalar(select(func.count()).select_from(ApiKey).where(*own)) or 0) >= MAX_KEYS:
        raise TooManyKeys(f"a user can have {MAX_KEYS} keys: revoke one that isn't needed")
    text, parts = generate_key()
    created_at = (await session.scalars(select(now))).one()
    key = ApiKey(
        user_id=principal.user_id,
        name=name,
        prefix=parts.prefix,
        secret_hash=parts.secret_hash,
        scopes=sorted(scopes),
        created_at=created_at,
        expires_at=created_at + expires_in,
        last_used_at=None,
        revoked_at=None,
    )
    session.add(key)
    await session.flush()
    return text, key


async def lock_key(session: AsyncSession, key_id: UUID) -> ApiKey:
    """The key, locked until the end of the transaction. Raises `NotFound`."""
    return await AsyncRepository(session, ApiKey).lock_one(key_id)


async def revoke_key(session: AsyncSession, key: ApiKey) -> bool:
    """Revoke the key. Returns False if it was revoked before."""
    if key.revoked_at is not None:
        return False
    key.revoked_at = await session.scalar(select(func.statement_timestamp()))
    return True


async def revoke_keys_of(session: AsyncSession, user_id: UUID) -> None:
    """Revoke all keys of the user, in a transaction of the system. Call `ApiKeyVerifier.forget` after the commit."""
    await session.execute(
        update(ApiKey)
        .where(ApiKey.user_id == user_id, ApiKey.revoked_at.is_(None))
        .values(revoked_at=func.statement_timestamp())
        .execution_options(synchronize_session=False)
    )
