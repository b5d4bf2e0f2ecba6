"""Change and reset passwords."""

from __future__ import annotations

from uuid import UUID

from shop.audit.models import AuditAction
from shop.identity.api_keys.service import revoke_keys_of
from shop.identity.clients import Client
from shop.identity.context import Identity
from shop.identity.credentials import (
    find_account,
    hash_new_password,
    load_own_account,
    store_password,
    verify_own_password,
)
from shop.identity.errors import InvalidToken, SignInFailed
from shop.identity.events import record_user_event
from shop.identity.models import Credential, Purpose
from shop.identity.one_time_tokens import find_token, issue_token_to_address, redeem_token
from shop.identity.principals import Principal
from shop.identity.sessions import revoke_sessions
from shop.identity.throttles import admit_mail, reset_account


async def change_password(
    identity: Identity, principal: Principal, *, current_password: str | None, new_password: str, client: Client
) -> list[UUID]:
    """Change the password, and end the user's other sessions. Returns their ids.

    A user who has no password yet, such as a new admin, doesn't send the current one. Raises `SignInFailed` if the
    current password is wrong, and `PasswordRejected` if the new one breaks a rule.
    """
    async with identity.database.session(read_only=True) as session:
        account = await load_own_account(session, principal)
    if account.password_hash is not None:
        await verify_own_password(identity, principal, account, current_password or "", client)
    password_hash = await hash_new_password(identity, new_password, account.email, account.name)
    with identity.mails.reserve() as mails:
        async with identity.database.begin() as session:
            credential = await session.get(Credential, account.user_id, with_for_update=True)
            if (credential.password_hash if credential else None) != account.password_hash:
                raise SignInFailed("the password was changed at the same moment: sign in again")
            await store_password(session, account.user_id, password_hash, role=account.role)
            ended = await revoke_sessions(session, account.user_id, keep=principal.session_id)
            action = AuditAction.PASSWORD_CHANGED
            await record_user_event(session, action, user_id=account.user_id, actor=principal, client=client)
        mails.append(identity.texts.password_changed(account.email))
    return ended


async def request_reset(identity: Identity, *, email: str, client: Client) -> None:
    """Send a token to the address if a user has it. The response and the work are the same if no user has it."""
    await admit_mail(identity.database, email, client)
    with identity.mails.reserve() as mails:
        async with identity.database.begin() as session:
            token, user_id = await issue_token_to_address(session, Purpose.RESET_PASSWORD, email)
            action = AuditAction.PASSWORD_RESET_REQUESTED
            await identity.bounded_events.record(action, user_id=user_id, client=client, session=session)
        if user_id is not None:
            mails.append(identity.texts.reset(email, token))


async def reset_password(
    identity: Identity, *, token: str, new_password: str, client: Client
) -> tuple[UUID, list[UUID]]:
    """Set the password, end all sessions, and revoke all API keys. Returns the ids of the user and of the sessions.

    Somebody else may have used the account, and may have made a key of their own.

    The authenticator app stays enrolled, so a mailbox alone isn't enough to sign in as an operator or admin.
    Raises `InvalidToken` and `PasswordRejected`. After a `PasswordRejected` the token is still valid.
    """
    async with identity.database.session(read_only=True) as session:
        found = await find_token(session, Purpose.RESET_PASSWORD, token)
        if found.user_id is None:
            raise InvalidToken
        account = await find_account(session, found.user_id)
    password_hash = await hash_new_password(identity, new_password, account.email, account.name)
    with identity.mails.reserve() as mails:
        async with identity.database.begin() as session:
            await redeem_token(session, Purpose.RESET_PASSWORD, token)
            await store_password(session, account.user_id, password_hash)
            ended = await revoke_sessions(session, account.user_id)
            await revoke_keys_of(session, account.user_id)
            await reset_account(session, account.email)
            await record_user_event(session, AuditAction.PASSWORD_RESET, user_id=account.user_id, client=client)
        mails.append(identity.texts.password_reset(account.email))
    return account.user_id, ended
