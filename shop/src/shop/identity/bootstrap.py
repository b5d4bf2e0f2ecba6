"""The first admin. These functions need the database's owner."""

from __future__ import annotations

import asyncio
from typing import Final

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert

from howdah import Database
from shop.audit.models import AuditAction
from shop.identity.events import record_user_event
from shop.identity.models import Credential, Purpose
from shop.identity.one_time_tokens import issue_token
from shop.identity.principals import Role
from shop.identity.staff import set_role
from shop.users.models import User

FIRST_ADMIN: Final = "admin@example.com"

_BY: Final = "the owner of the database"


async def create_admin(database: Database, email: str) -> str:
    """Make the user with this address an admin, and create the user if necessary. Returns a token to sign in with once.

    The sessions of a user who had another role end.
    """
    async with database.begin() as session:
        await session.execute(
            insert(User).values(email=email.lower(), name="Admin").on_conflict_do_nothing(index_elements=[User.email])
        )
        user_id = (await session.scalars(select(User.id).where(User.email == email.lower()))).one()
        credential = await session.get(Credential, user_id, with_for_update=True)
        if credential is None or credential.role is not Role.ADMIN:
            await set_role(session, user_id, Role.ADMIN)
            await record_user_event(session, AuditAction.ROLE_CHANGED, user_id=user_id, by=_BY, new=Role.ADMIN.value)
        await record_user_event(session, AuditAction.SIGN_IN_LINK_CREATED, user_id=user_id, by=_BY)
        return await issue_token(session, Purpose.SIGN_IN, user_id=user_id)


async def has_admin(database: Database) -> bool:
    """Whether an admin has a password. Then no one-time token has to be printed."""
    query = select(Credential.user_id).where(Credential.role == Role.ADMIN, Credential.password_hash.is_not(None))
    async with database.session(read_only=True) as session:
        return await session.scalar(query.limit(1)) is not None


def create_first_admin(url: str) -> str | None:
    """A token for the first sign-in, or None if an admin has a password. Blocks."""

    async def run() -> str | None:
        async with Database(url, pool_size=1, application_name="shop") as database:
            return None if await has_admin(database) else await create_admin(database, FIRST_ADMIN)

    return asyncio.run(run())


def describe_one_time_sign_in(address: str, token: str) -> str:
    """A line for the console: how to sign in with the token."""
    return f"curl -s {address}/auth/one-time -H 'Content-Type: application/json' -d '{{\"token\": \"{token}\"}}'"


def describe_sign_in_link(address: str, token: str) -> str:
    """The same for a browser. No server gets the fragment. Only the button of the page uses the token up."""
    return f"or in a browser: {address}/sign-in/link#token={token}"
