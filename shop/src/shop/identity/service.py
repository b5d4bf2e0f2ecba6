"""Sign in, refresh and sign out.

An unknown user and a wrong password get the same error after the same work: the attempt is counted, one row is looked
up, and one hash is verified.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from shop.audit.models import AuditAction
from shop.identity.clients import Client
from shop.identity.context import Identity, SignedIn
from shop.identity.errors import CodeRequired, EnrolmentRequired, InvalidRefreshToken, SignInFailed, TooManyAttempts
from shop.identity.events import record_user_event
from shop.identity.models import Credential, Purpose
from shop.identity.one_time_tokens import issue_token, redeem_token
from shop.identity.passwords import MAX_INPUT_LENGTH
from shop.identity.principals import Principal, Role
from shop.identity.sessions import OpenSession, ReusedToken, open_session, refresh_session, revoke_session
from shop.identity.throttles import admit_sign_in, forgive
from shop.identity.totp import CodeKind, has_device, verify_code
from shop.users.models import User
from shop.users.schemas import MAX_EMAIL


@dataclass(frozen=True, slots=True, repr=False)
class _Known:
    user_id: UUID
    password_hash: str | None


async def sign_in(
    identity: Identity, *, email: str, password: str, code: str | None = None, client: Client
) -> SignedIn:
    """Open a session. `code` is that of the authenticator app, or a recovery code.

    Raises `TooManyAttempts`, `SignInFailed`, `CodeRequired` and `EnrolmentRequired`. An address or a password that no
    user can have isn't counted as an attempt.
    """
    if len(email) > MAX_EMAIL or "\0" in email or len(password) > MAX_INPUT_LENGTH:
        raise SignInFailed
    email = email.lower()
    try:
        attempt = await admit_sign_in(identity.database, email, client)
    except TooManyAttempts as error:
        await _record_throttled(identity, error, email, client)
        raise
    known = await _find_user(identity, email)
    is_right, new_hash = await identity.hashing.verify(password, known.password_hash if known else None)
    if known is None or not is_right:
        await _record_refused(identity, known.user_id if known else None, client, "password")
        raise SignInFailed
    reason = "changed"
    try:
        async with identity.database.begin() as session:
            credential = await session.get(Credential, known.user_id, with_for_update=True)
            # the password was changed, or the user was deleted, while the hash was verified
            if credential is None or credential.password_hash != known.password_hash:
                raise SignInFailed
            if new_hash is not None:
                credential.password_hash = new_hash
                await session.flush()
            reason = "code"
            enrolment = await _check_second_factor(identity, session, credential, code, client)
            await forgive(session, attempt)
            if enrolment is None:
                opened = await start_session(
                    identity, session, credential.user_id, credential.role, client, method="password"
                )
    except CodeRequired:
        raise  # the client asks the person for the code now
    except SignInFailed:
        await _record_refused(identity, known.user_id, client, reason)
        raise
    if enrolment is not None:
        raise enrolment
    return identity.sign(opened)


async def _record_refused(identity: Identity, user_id: UUID | None, client: Client, reason: str) -> None:
    """Record a refused sign-in, after the end of its transaction."""
    action = AuditAction.SIGN_IN_REFUSED
    await identity.bounded_events.record(action, user_id=user_id, client=client, reason=reason)


async def _record_throttled(identity: Identity, error: TooManyAttempts, email: str, client: Client) -> None:
    """Record the 1st, 10th, 100th, … attempt that an account or an address made too early."""
    if str(error.refused).rstrip("0") == "1":
        known = await _find_user(identity, email)
        user_id = known.user_id if known else None
        action = AuditAction.SIGN_IN_THROTTLED
        await identity.bounded_events.record(action, user_id=user_id, client=client, attempts=error.refused)


async def _check_second_factor(
    identity: Identity, session: AsyncSession, credential: Credential, code: str | None, client: Client
) -> EnrolmentRequired | None:
    """Raises an error if the code is wrong. `EnrolmentRequired` is returned, because its token must be committed."""
    user_id = credential.user_id
    if await has_device(session, user_id):
        if code is None:
            raise CodeRequired
        kind = await verify_code(session, identity.box, user_id, code)
        if kind is None:
            raise SignInFailed
        if kind is CodeKind.RECOVERY:
            await record_user_event(session, AuditAction.RECOVERY_CODE_USED, user_id=user_id, client=client)
    elif credential.role is not Role.CUSTOMER:
        return EnrolmentRequired(await issue_token(session, Purpose.ENROL_TOTP, user_id=user_id))
    return None


async def sign_in_once(identity: Identity, token: str, client: Client) -> SignedIn:
    """Open a session with a one-time token of `shop create-admin` or of the first start. It needs no second factor.

    Only the owner of the database can create such a token. Raises `InvalidToken`.
    """
    async with identity.database.begin() as session:
        redeemed = await redeem_token(session, Purpose.SIGN_IN, token)
        assert redeemed.user_id is not None
        role = await session.scalar(select(Credential.role).where(Credential.user_id == redeemed.user_id))
        opened = await start_session(identity, session, redeemed.user_id, role or Role.CUSTOMER, client, method="link")
    return identity.sign(opened)


async def refresh(identity: Identity, token: str, client: Client) -> SignedIn:
    """New tokens for the session of this refresh token. Raises `InvalidRefreshToken`.

    A change of the role ends the user's sessions, so the new access token has the current role.
    """
    async with identity.database.begin() as session:
        opened = await refresh_session(session, token, client, identity.lifetimes)
        if isinstance(opened, ReusedToken):
            action, session_id = AuditAction.REFRESH_TOKEN_REUSED, str(opened.session_id)
            await record_user_event(session, action, user_id=opened.user_id, client=client, session_id=session_id)
    if isinstance(opened, ReusedToken):
        raise InvalidRefreshToken
    return identity.sign(opened)


async def sign_out(identity: Identity, principal: Principal, *, client: Client) -> None:
    """End the principal's session. Does nothing if it has ended before."""
    if principal.session_id is None:
        return
    async with identity.database.begin() as session:
        if await revoke_session(session, principal.session_id):
            await record_user_event(
                session, AuditAction.SIGNED_OUT, user_id=principal.user_id, actor=principal, client=client
            )


async def start_session(
    identity: Identity, session: AsyncSession, user_id: UUID, role: Role, client: Client, *, method: str
) -> OpenSession:
    """Open a session in the caller's transaction. The caller has made all checks, with this method."""
    opened = await open_session(session, user_id, role, client, identity.lifetimes)
    actor = Principal(user_id, role, session_id=opened.id)
    await record_user_event(session, AuditAction.SIGNED_IN, user_id=user_id, actor=actor, client=client, method=method)
    return opened


async def _find_user(identity: Identity, email: str) -> _Known | None:
    query = (
        select(User.id, Credential.password_hash)
        .outerjoin(Credential, Credential.user_id == User.id)
        .where(User.email == email)
    )
    async with identity.database.autocommit() as connection:
        row = (await connection.execute(query)).one_or_none()
    return None if row is None else _Known(row.id, row.password_hash)
