"""Functions for admins: invite staff, change roles, end sessions, and remove a lost authenticator app."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import delete, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import NotFound, UniqueViolation
from shop.audit.models import AuditAction
from shop.identity.clients import Client
from shop.identity.context import Identity
from shop.identity.credentials import find_account, hash_new_password, store_password
from shop.identity.errors import EmailInUse, InvalidToken, RoleRefused
from shop.identity.events import record_user_event
from shop.identity.models import Credential, Purpose, TotpDevice
from shop.identity.one_time_tokens import find_token, issue_token, redeem_token, revoke_tokens
from shop.identity.principals import Principal, Role
from shop.identity.sessions import revoke_sessions
from shop.identity.throttles import admit_mail
from shop.users.models import User


async def invite(
    identity: Identity, principal: Principal, *, email: str, name: str, role: Role, client: Client
) -> None:
    """Send an invitation to the address. Raises `EmailInUse`: then change that user's role."""
    await admit_mail(identity.database, email, client)
    with identity.mails.reserve() as mails:
        async with identity.database.begin() as session:
            await _lock_as_admin(session, principal, principal.user_id)
            if await session.scalar(select(User.id).where(User.email == email)) is not None:
                raise EmailInUse
            details = {"name": name, "role": role.value}
            # the token belongs to the admin, so that it is revoked when the admin loses the role
            inviter = principal.user_id
            token = await issue_token(session, Purpose.INVITATION, user_id=inviter, email=email, details=details)
            await record_user_event(
                session, AuditAction.INVITED, user_id=None, actor=principal, client=client, role=role.value
            )
        mails.append(identity.texts.invitation(email, token, role))


async def accept_invitation(identity: Identity, *, token: str, password: str, client: Client) -> str:
    """Create the user with the role and this password. Returns a token that allows nothing but to enrol an app.

    Raises `InvalidToken`, also if the sender of the invitation isn't an admin any more, `PasswordRejected`, and
    `EmailInUse` if the user was created in the meantime.
    """
    async with identity.database.session(read_only=True) as session:
        found = await find_token(session, Purpose.INVITATION, token)
    if found.email is None:
        raise InvalidToken
    name, role = found.details["name"], Role(found.details["role"])
    password_hash = await hash_new_password(identity, password, found.email, name)
    try:
        async with identity.database.begin() as session:
            await redeem_token(session, Purpose.INVITATION, token)
            user = User(email=found.email, name=name)
            session.add(user)
            await session.flush()
            await store_password(session, user.id, password_hash, role=role)
            action = AuditAction.INVITATION_ACCEPTED
            await record_user_event(session, action, user_id=user.id, client=client, role=role.value)
            return await issue_token(session, Purpose.ENROL_TOTP, user_id=user.id)
    except UniqueViolation as error:
        raise EmailInUse from error


async def change_role(
    identity: Identity, principal: Principal, user_id: UUID, role: Role, *, client: Client
) -> list[UUID]:
    """Give the user another role, and end the user's sessions. Returns their ids.

    Raises `NotFound`, and `RoleRefused` for the admin's own role. So at least one admin always remains, even if two
    admins change each other's role at the same time.
    """
    if user_id == principal.user_id:
        raise RoleRefused("an admin can't change their own role: ask another admin")
    async with identity.database.begin() as session:
        await _lock_as_admin(session, principal, user_id)
        account = await find_account(session, user_id)
        ended = await set_role(session, user_id, role)
        roles = {"old": account.role.value, "new": role.value}
        await record_user_event(
            session, AuditAction.ROLE_CHANGED, user_id=user_id, actor=principal, client=client, **roles
        )
    return ended


async def end_sessions(identity: Identity, principal: Principal, user_id: UUID, *, client: Client) -> list[UUID]:
    """End all sessions of the user, and return their ids. Raises `NotFound`."""
    async with identity.database.begin() as session:
        await _lock_as_admin(session, principal, user_id)
        await find_account(session, user_id)
        ended = await revoke_sessions(session, user_id)
        action, count = AuditAction.SESSIONS_REVOKED, len(ended)
        await record_user_event(session, action, user_id=user_id, actor=principal, client=client, count=count)
    return ended


async def remove_app(identity: Identity, principal: Principal, user_id: UUID, *, client: Client) -> list[UUID]:
    """Remove the authenticator app of a user who has lost it and the recovery codes, and end the user's sessions.

    The user's tokens for an enrolment are revoked, too. An operator or admin has to enrol another app at the next
    sign-in. Raises `NotFound`.
    """
    async with identity.database.begin() as session:
        await _lock_as_admin(session, principal, user_id)
        removed = delete(TotpDevice).where(TotpDevice.user_id == user_id).returning(TotpDevice.user_id)
        if (await session.execute(removed)).first() is None:
            raise NotFound(TotpDevice, [user_id])
        await revoke_tokens(session, user_id, Purpose.ENROL_TOTP)
        ended = await revoke_sessions(session, user_id)
        await record_user_event(session, AuditAction.TOTP_DISABLED, user_id=user_id, actor=principal, client=client)
    return ended


async def set_role(session: AsyncSession, user_id: UUID, role: Role) -> list[UUID]:
    """Set the role, and end the user's sessions, whose tokens have the old role. The user must exist.

    Invitations that the user has sent are revoked: otherwise a former admin could accept one as another user.
    """
    await session.execute(
        insert(Credential)
        .values(user_id=user_id, role=role)
        .on_conflict_do_update(index_elements=[Credential.user_id], set_={"role": role})
    )
    await revoke_tokens(session, user_id, Purpose.SIGN_IN, Purpose.ENROL_TOTP, Purpose.INVITATION)
    return await revoke_sessions(session, user_id)


async def _lock_as_admin(session: AsyncSession, principal: Principal, user_id: UUID) -> None:
    """Lock both users' credentials. Raises `RoleRefused` if the principal isn't an admin any more.

    An access token may still be accepted for a moment after its user's role was changed.
    """
    locked = await session.execute(
        select(Credential.user_id, Credential.role)
        .where(Credential.user_id.in_([principal.user_id, user_id]))
        .order_by(Credential.user_id)
        .with_for_update()
    )
    roles = {row.user_id: row.role for row in locked}
    if roles.get(principal.user_id) is not Role.ADMIN:
        raise RoleRefused("only an admin may do this, and you aren't one any more")
