"""`/auth`: sign up, sign in, refresh and sign out; the sessions of a user.

No route takes an `Idempotency-Key`, because the stored response would contain a token. None needs one: a one-time token
is used once anyway, a refresh may be repeated, and a repeated sign-in only opens another session.
"""

from __future__ import annotations

from http import HTTPStatus
from uuid import UUID

from fastapi import APIRouter

from howdah.fastapi import StrictJSONRoute, describe_problems
from shop.audit.models import AuditAction
from shop.identity import registration, service
from shop.identity.context import SignedIn
from shop.identity.credentials import load_own_account
from shop.identity.dependencies import CurrentClient, CurrentIdentity, SessionPrincipal
from shop.identity.events import record_user_event
from shop.identity.revocation import CurrentRevocations
from shop.identity.rules import ANYONE, OWN_SESSIONS, SIGNED_IN
from shop.identity.schemas import (
    AcceptedOut,
    NewPasswordIn,
    RefreshIn,
    SessionOut,
    SessionsOut,
    SignedInOut,
    SignedInUserOut,
    SignInIn,
    SignUpIn,
    TokenIn,
)
from shop.identity.sessions import find_owner, list_sessions, revoke_session, revoke_sessions
from shop.identity.totp import has_device
from shop.web.dependencies import CurrentPrincipal

router = APIRouter(prefix="/auth", tags=["auth"], route_class=StrictJSONRoute)

_THROTTLED = describe_problems(HTTPStatus.TOO_MANY_REQUESTS)


def describe_signed_in(signed_in: SignedIn) -> SignedInOut:
    """The body of a response with tokens."""
    return SignedInOut(
        access_token=signed_in.access_token,
        expires_in=signed_in.expires_in,
        refresh_token=signed_in.refresh_token,
        user_id=signed_in.principal.user_id,
        role=signed_in.principal.role,
    )


@router.post("/sign-up", status_code=HTTPStatus.ACCEPTED, dependencies=[ANYONE], responses=_THROTTLED)
async def sign_up(body: SignUpIn, identity: CurrentIdentity, client: CurrentClient) -> AcceptedOut:
    """Send a mail with a token to the address. The next step is `POST /auth/sign-up/confirmation`.

    If a user has the address already, the response is the same. Only the mail says so.
    """
    await registration.request_sign_up(identity, email=body.email, name=body.name, country=body.country, client=client)
    return AcceptedOut()


@router.post(
    "/sign-up/confirmation",
    status_code=HTTPStatus.CREATED,
    dependencies=[ANYONE],
    responses=describe_problems(HTTPStatus.BAD_REQUEST, HTTPStatus.CONFLICT),
)
async def confirm_sign_up(body: NewPasswordIn, identity: CurrentIdentity, client: CurrentClient) -> SignedInOut:
    """Create the user, a customer, with the token of the mail and a password, and sign in."""
    signed_in = await registration.confirm_sign_up(
        identity, token=body.token.get_secret_value(), password=body.password.get_secret_value(), client=client
    )
    return describe_signed_in(signed_in)


@router.post(
    "/sign-in",
    dependencies=[ANYONE],
    responses=describe_problems(HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.TOO_MANY_REQUESTS),
)
async def sign_in(body: SignInIn, identity: CurrentIdentity, client: CurrentClient) -> SignedInOut:
    """Open a session.

    An unknown address and a wrong password get the same response, `sign-in-failed`. With an authenticator app, `code`
    is needed (`code-required`). An operator or admin without one gets `enrolment-required`, with an `enrolment_token`
    for `POST /auth/totp`.
    """
    signed_in = await service.sign_in(
        identity,
        email=body.email,
        password=body.password.get_secret_value(),
        code=None if body.code is None else body.code.get_secret_value(),
        client=client,
    )
    return describe_signed_in(signed_in)


@router.post("/one-time", dependencies=[ANYONE], responses=describe_problems(HTTPStatus.BAD_REQUEST))
async def sign_in_once(body: TokenIn, identity: CurrentIdentity, client: CurrentClient) -> SignedInOut:
    """Open a session with the token that `shop create-admin` or the first start has printed."""
    return describe_signed_in(await service.sign_in_once(identity, body.token.get_secret_value(), client))


@router.post("/refresh", dependencies=[ANYONE], responses=describe_problems(HTTPStatus.UNAUTHORIZED))
async def refresh(body: RefreshIn, identity: CurrentIdentity, client: CurrentClient) -> SignedInOut:
    """New tokens for the session. The refresh token is replaced.

    The same request may be sent again within 10 seconds, and its response has the same refresh token. If a replaced
    token is used later, the session ends, because somebody has copied the token.
    """
    return describe_signed_in(await service.refresh(identity, body.refresh_token.get_secret_value(), client))


@router.post("/sign-out", status_code=HTTPStatus.NO_CONTENT, dependencies=[SIGNED_IN])
async def sign_out(
    principal: SessionPrincipal, identity: CurrentIdentity, revocations: CurrentRevocations, client: CurrentClient
) -> None:
    """End the session of the access token."""
    await service.sign_out(identity, principal, client=client)
    if principal.session_id is not None:
        revocations.revoke(principal.session_id)


@router.get("/me", dependencies=[SIGNED_IN], responses=describe_problems(HTTPStatus.UNAUTHORIZED))
async def get_me(principal: CurrentPrincipal, identity: CurrentIdentity) -> SignedInUserOut:
    """The user who is signed in."""
    async with identity.database.session(read_only=True) as session:
        account = await load_own_account(session, principal)
        has_totp = await has_device(session, principal.user_id)
    return SignedInUserOut(
        user_id=account.user_id,
        email=account.email,
        name=account.name,
        role=account.role,
        has_password=account.password_hash is not None,
        has_totp=has_totp,
    )


@router.get("/sessions", dependencies=[SIGNED_IN])
async def list_own_sessions(principal: SessionPrincipal, identity: CurrentIdentity) -> SessionsOut:
    """Your sessions that haven't ended, the newest first, at most 100."""
    async with identity.database.session(read_only=True) as session:
        sessions = await list_sessions(session, principal.user_id)
    return SessionsOut(
        items=[
            SessionOut(
                id=each.id,
                created_at=each.created_at,
                last_used_at=each.last_used_at,
                expires_at=each.expires_at,
                address=each.address,
                user_agent=each.user_agent,
                is_current=each.id == principal.session_id,
            )
            for each in sessions
        ]
    )


@router.delete("/sessions", status_code=HTTPStatus.NO_CONTENT, dependencies=[SIGNED_IN])
async def end_other_sessions(
    principal: SessionPrincipal, identity: CurrentIdentity, revocations: CurrentRevocations, client: CurrentClient
) -> None:
    """End all your sessions but this one."""
    async with identity.database.begin() as session:
        ended = await revoke_sessions(session, principal.user_id, keep=principal.session_id)
        action, count = AuditAction.SESSIONS_REVOKED, len(ended)
        await record_user_event(session, action, user_id=principal.user_id, actor=principal, client=client, count=count)
    revocations.revoke(*ended)


@router.delete("/sessions/{session_id}", status_code=HTTPStatus.NO_CONTENT, dependencies=[SIGNED_IN])
async def end_session(
    session_id: UUID,
    principal: SessionPrincipal,
    identity: CurrentIdentity,
    revocations: CurrentRevocations,
    client: CurrentClient,
) -> None:
    """End one of your sessions. The session of another user is a 404."""
    async with identity.database.begin() as session:
        OWN_SESSIONS.check(principal, await find_owner(session, session_id), session_id)
        if await revoke_session(session, session_id):
            action, ended = AuditAction.SESSIONS_REVOKED, str(session_id)
            await record_user_event(
                session, action, user_id=principal.user_id, actor=principal, client=client, session_id=ended
            )
    revocations.revoke(session_id)
