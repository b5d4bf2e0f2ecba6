"""Enrol an authenticator app. The token of an enrolment allows nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from shop.audit.models import AuditAction
from shop.identity.clients import Client
from shop.identity.context import Identity, SignedIn
from shop.identity.credentials import find_account, load_own_account, verify_own_password
from shop.identity.errors import CodeRequired, InvalidToken, SignInFailed
from shop.identity.events import record_user_event
from shop.identity.models import Purpose
from shop.identity.one_time_tokens import find_token, issue_token, redeem_token, revoke_tokens
from shop.identity.principals import Principal
from shop.identity.service import start_session
from shop.identity.sessions import revoke_sessions
from shop.identity.throttles import PER_ACCOUNT, count, reset
from shop.identity.totp import CodeKind, Enrolment, begin_enrolment, confirm_enrolment, has_device, verify_code


@dataclass(frozen=True, slots=True, repr=False)
class Enrolled:
    """The recovery codes, which are shown once, the new session, and the ids of the sessions that have ended."""

    recovery_codes: list[str]
    signed_in: SignedIn
    ended: list[UUID]


async def request_enrolment(
    identity: Identity, principal: Principal, *, password: str, code: str | None, client: Client
) -> str:
    """A token for the enrolment of a first or another app. With an app, its code or a recovery code is needed.

    Codes are counted apart from passwords: a right password doesn't set the count of wrong codes to zero.
    """
    async with identity.database.session(read_only=True) as session:
        account = await load_own_account(session, principal)
    await verify_own_password(identity, principal, account, password, client)
    codes_key = f"code:{account.user_id}"
    if code is not None:
        await count(identity.database, codes_key, PER_ACCOUNT)
    async with identity.database.begin() as session:
        if await has_device(session, account.user_id):
            if code is None:
                raise CodeRequired
            kind = await verify_code(session, identity.box, account.user_id, code)
            if kind is None:
                raise SignInFailed
            await reset(session, codes_key)
            if kind is CodeKind.RECOVERY:
                action = AuditAction.RECOVERY_CODE_USED
                await record_user_event(session, action, user_id=account.user_id, actor=principal, client=client)
        return await issue_token(session, Purpose.ENROL_TOTP, user_id=account.user_id)


async def begin(identity: Identity, token: str) -> Enrolment:
    """A new secret for the app. A repeated call replaces it. Raises `InvalidToken`."""
    async with identity.database.begin() as session:
        found = await find_token(session, Purpose.ENROL_TOTP, token)
        if found.user_id is None:
            raise InvalidToken
        account = await find_account(session, found.user_id)
        return await begin_enrolment(session, identity.box, account.user_id, account.email)


async def confirm(identity: Identity, *, token: str, code: str, client: Client) -> Enrolled:
    """Use the app from now on, end all earlier sessions and other enrolments, and sign in.

    Raises `InvalidToken`, and `SignInFailed` for a wrong code. After a wrong code, the token is still valid.
    """
    with identity.mails.reserve() as mails:
        async with identity.database.begin() as session:
            redeemed = await redeem_token(session, Purpose.ENROL_TOTP, token)
            if redeemed.user_id is None:
                raise InvalidToken
            account = await find_account(session, redeemed.user_id)
            codes = await confirm_enrolment(session, identity.box, account.user_id, code)
            # another person may have requested a token before, and could replace the app with it
            await revoke_tokens(session, account.user_id, Purpose.ENROL_TOTP)
            ended = await revoke_sessions(session, account.user_id)
            await record_user_event(session, AuditAction.TOTP_ENABLED, user_id=account.user_id, client=client)
            opened = await start_session(identity, session, account.user_id, account.role, client, method="enrolment")
        mails.append(identity.texts.totp_enrolled(account.email))
    return Enrolled(codes, identity.sign(opened), ended)
