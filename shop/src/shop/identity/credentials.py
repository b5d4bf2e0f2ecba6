"""Store passwords, and ask signed-in users for theirs again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import NotFound
from shop.audit.models import AuditAction
from shop.identity.clients import Client
from shop.identity.context import Identity
from shop.identity.errors import AccountDeleted, SignInFailed
from shop.identity.models import Credential, Purpose
from shop.identity.one_time_tokens import revoke_tokens
from shop.identity.passwords import check_new_password
from shop.identity.principals import Principal, Role
from shop.identity.throttles import PER_ACCOUNT, count, reset
from shop.users.models import User

# A change of the password revokes these tokens, because another person may have requested them before.
_REVOKED: Final = (Purpose.RESET_PASSWORD, Purpose.CHANGE_EMAIL, Purpose.ENROL_TOTP)


@dataclass(frozen=True, slots=True, repr=False)
class Account:
    """The data of a user that sign-in needs."""

    user_id: UUID
    email: str
    name: str
    role: Role
    password_hash: str | None


async def find_account(session: AsyncSession, user_id: UUID) -> Account:
    """Raises `NotFound`."""
    query = (
        select(User.id, User.email, User.name, Credential.role, Credential.password_hash)
        .outerjoin(Credential, Credential.user_id == User.id)
        .where(User.id == user_id)
    )
    row = (await session.execute(query)).one_or_none()
    if row is None:
        raise NotFound(User, [user_id])
    return Account(row.id, row.email, row.name, row.role or Role.CUSTOMER, row.password_hash)


async def load_own_account(session: AsyncSession, principal: Principal) -> Account:
    """The account of the user who has signed in. Raises `AccountDeleted`."""
    try:
        return await find_account(session, principal.user_id)
    except NotFound as error:
        raise AccountDeleted from error


async def verify_own_password(
    identity: Identity, principal: Principal, account: Account, password: str, client: Client
) -> None:
    """Ask a signed-in user for the password again: a stolen access token alone must not change how they sign in.

    These attempts are counted separately from sign-ins, so that nobody without the token can block them.
    """
    key = f"user:{account.user_id}"
    await count(identity.database, key, PER_ACCOUNT)
    is_right, _ = await identity.hashing.verify(password, account.password_hash)
    if not is_right:
        action = AuditAction.PASSWORD_REFUSED
        await identity.bounded_events.record(action, user_id=account.user_id, actor=principal, client=client)
        raise SignInFailed("the current password is wrong")
    async with identity.database.begin() as session:
        await reset(session, key)


async def hash_new_password(identity: Identity, password: str, *personal: str) -> str:
    """Raises `PasswordRejected` and `HashingBusy`. No transaction may be open, because this may wait."""
    return await identity.hashing.hash(check_new_password(password, personal=personal))


async def store_password(
    session: AsyncSession, user_id: UUID, password_hash: str, *, role: Role = Role.CUSTOMER
) -> None:
    """Set the password, and revoke tokens that were issued before. `role` is for a user who has no credential yet."""
    now = func.statement_timestamp()
    values = {"password_hash": password_hash, "password_changed_at": now}
    await session.execute(
        insert(Credential)
        .values(user_id=user_id, role=role, **values)
        .on_conflict_do_update(index_elements=[Credential.user_id], set_=values)
    )
    await revoke_tokens(session, user_id, *_REVOKED)
