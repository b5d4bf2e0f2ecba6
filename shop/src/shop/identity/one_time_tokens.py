"""One-time tokens: stored as hashes, short-lived, and deleted by their first use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncSession

from shop.identity.errors import InvalidToken
from shop.identity.models import OneTimeToken, Purpose
from shop.identity.opaque_tokens import hash_token, new_token
from shop.users.models import User

LIFETIMES: Final[Mapping[Purpose, timedelta]] = {
    Purpose.SIGN_UP: timedelta(hours=24),
    Purpose.SIGN_IN: timedelta(minutes=15),
    Purpose.RESET_PASSWORD: timedelta(minutes=30),
    Purpose.CHANGE_EMAIL: timedelta(hours=1),
    Purpose.INVITATION: timedelta(days=3),
    Purpose.ENROL_TOTP: timedelta(minutes=15),
}


@dataclass(frozen=True, slots=True)
class Redeemed:
    """The data with which a token was issued."""

    user_id: UUID | None
    email: str | None
    details: Mapping[str, Any]


async def issue_token(
    session: AsyncSession,
    purpose: Purpose,
    *,
    user_id: UUID | None = None,
    email: str | None = None,
    details: Mapping[str, Any] | None = None,
) -> str:
    """A new token, which is valid after the commit."""
    token = new_token()
    session.add(
        OneTimeToken(
            token_hash=hash_token(token),
            purpose=purpose,
            user_id=user_id,
            email=email,
            details=None if details is None else dict(details),
            expires_at=await session.scalar(select(func.statement_timestamp() + LIFETIMES[purpose])),
        )
    )
    await session.flush()
    return token


async def issue_token_to_address(
    session: AsyncSession, purpose: Purpose, email: str, *, details: Mapping[str, Any] | None = None
) -> tuple[str, UUID | None]:
    """A new token, and the user who has this address. The statement is the same if no user has it."""
    token = new_token()
    user_id = select(User.id).where(User.email == email).scalar_subquery()
    statement = (
        insert(OneTimeToken)
        .values(
            token_hash=hash_token(token),
            purpose=purpose,
            user_id=user_id,
            email=email,
            details=None if details is None else dict(details),
            expires_at=func.statement_timestamp() + LIFETIMES[purpose],
        )
        .returning(OneTimeToken.user_id)
    )
    return token, (await session.execute(statement)).scalar_one()


async def redeem_token(session: AsyncSession, purpose: Purpose, token: str) -> Redeemed:
    """Use up the token, in the session's transaction. Raises `InvalidToken`.

    If two transactions redeem the same token, the DELETE of the second one waits for the first one's commit, and finds
    no row. If the first one is rolled back, the second one gets the token.
    """
    statement = (
        delete(OneTimeToken)
        .where(
            OneTimeToken.token_hash == hash_token(token),
            OneTimeToken.purpose == purpose,
            OneTimeToken.expires_at > func.clock_timestamp(),
        )
        .returning(OneTimeToken.user_id, OneTimeToken.email, OneTimeToken.details)
        .execution_options(synchronize_session=False)
    )
    row = (await session.execute(statement)).one_or_none()
    if row is None:
        raise InvalidToken
    return Redeemed(row.user_id, row.email, row.details or {})


async def find_token(session: AsyncSession, purpose: Purpose, token: str) -> Redeemed:
    """The data of the token, without using it up. Raises `InvalidToken`."""
    statement = select(OneTimeToken.user_id, OneTimeToken.email, OneTimeToken.details).where(
        OneTimeToken.token_hash == hash_token(token),
        OneTimeToken.purpose == purpose,
        OneTimeToken.expires_at > func.clock_timestamp(),
    )
    row = (await session.execute(statement)).one_or_none()
    if row is None:
        raise InvalidToken
    return Redeemed(row.user_id, row.email, row.details or {})


async def revoke_tokens(session: AsyncSession, user_id: UUID, *purposes: Purpose) -> None:
    """Delete the user's tokens with these purposes, such as those that were sent to the former address."""
    await session.execute(
        delete(OneTimeToken)
        .where(OneTimeToken.user_id == user_id, OneTimeToken.purpose.in_(purposes))
        .execution_options(synchronize_session=False)
    )
