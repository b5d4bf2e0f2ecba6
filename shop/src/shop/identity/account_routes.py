"""`/auth`: change how a user signs in: the password, the address, and the authenticator app."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter

from howdah.fastapi import StrictJSONRoute, describe_problems
from shop.identity import email_changes, enrolment, password_changes
from shop.identity.api_keys.verification import CurrentVerifier
from shop.identity.dependencies import CurrentClient, CurrentIdentity, SessionPrincipal
from shop.identity.revocation import CurrentRevocations
from shop.identity.routes import describe_signed_in
from shop.identity.rules import ANYONE, SIGNED_IN
from shop.identity.schemas import (
    AcceptedOut,
    EmailChangeIn,
    EmailIn,
    EnrolledOut,
    EnrolmentConfirmationIn,
    EnrolmentIn,
    EnrolmentOut,
    EnrolmentRequestIn,
    EnrolmentTokenOut,
    NewPasswordIn,
    PasswordChangeIn,
    TokenIn,
)

router = APIRouter(prefix="/auth", tags=["auth"], route_class=StrictJSONRoute)

# If a signed-in user sends a wrong password, the response is a 401, too.
_ASKS_FOR_PASSWORD = describe_problems(HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS)


@router.put("/password", status_code=HTTPStatus.NO_CONTENT, dependencies=[SIGNED_IN], responses=_ASKS_FOR_PASSWORD)
async def change_password(
    body: PasswordChangeIn,
    principal: SessionPrincipal,
    identity: CurrentIdentity,
    revocations: CurrentRevocations,
    client: CurrentClient,
) -> None:
    """Change your password. Your other sessions end, and you get a mail."""
    current = body.current_password
    ended = await password_changes.change_password(
        identity,
        principal,
        current_password=None if current is None else current.get_secret_value(),
        new_password=body.new_password.get_secret_value(),
        client=client,
    )
    revocations.revoke(*ended)


@router.post(
    "/password-reset",
    status_code=HTTPStatus.ACCEPTED,
    dependencies=[ANYONE],
    responses=describe_problems(HTTPStatus.TOO_MANY_REQUESTS),
)
async def request_password_reset(body: EmailIn, identity: CurrentIdentity, client: CurrentClient) -> AcceptedOut:
    """Send a mail with a token, if a user has the address. The next step is `POST /auth/password-reset/confirmation`.

    The response is the same if no user has the address.
    """
    await password_changes.request_reset(identity, email=body.email, client=client)
    return AcceptedOut()


@router.post(
    "/password-reset/confirmation",
    status_code=HTTPStatus.NO_CONTENT,
    dependencies=[ANYONE],
    responses=describe_problems(HTTPStatus.BAD_REQUEST),
)
async def reset_password(
    *,
    body: NewPasswordIn,
    identity: CurrentIdentity,
    revocations: CurrentRevocations,
    verifier: CurrentVerifier,
    client: CurrentClient,
) -> None:
    """Set a password with the token of the mail. All sessions end, and all API keys are revoked. An authenticator app
    stays enrolled."""
    user_id, ended = await password_changes.reset_password(
        identity, token=body.token.get_secret_value(), new_password=body.password.get_secret_value(), client=client
    )
    revocations.revoke(*ended)
    verifier.forget(user_id)


@router.post("/email-change", status_code=HTTPStatus.ACCEPTED, dependencies=[SIGNED_IN], responses=_ASKS_FOR_PASSWORD)
async def request_email_change(
    body: EmailChangeIn, principal: SessionPrincipal, identity: CurrentIdentity, client: CurrentClient
) -> AcceptedOut:
    """Send a mail with a token to the new address. The next step is `POST /auth/email-change/confirmation`."""
    await email_changes.request_email_change(
        identity, principal, new_email=body.new_email, password=body.password.get_secret_value(), client=client
    )
    return AcceptedOut()


@router.post(
    "/email-change/confirmation",
    status_code=HTTPStatus.NO_CONTENT,
    dependencies=[ANYONE],
    responses=describe_problems(HTTPStatus.BAD_REQUEST, HTTPStatus.CONFLICT),
)
async def confirm_email_change(body: TokenIn, identity: CurrentIdentity, client: CurrentClient) -> None:
    """Change the address. A mail is sent to the old one."""
    await email_changes.confirm_email_change(identity, body.token.get_secret_value(), client=client)


@router.post("/totp/enrolment-token", dependencies=[SIGNED_IN], responses=_ASKS_FOR_PASSWORD)
async def request_enrolment(
    body: EnrolmentRequestIn, principal: SessionPrincipal, identity: CurrentIdentity, client: CurrentClient
) -> EnrolmentTokenOut:
    """Get a token, with which you can enrol a first or another authenticator app."""
    token = await enrolment.request_enrolment(
        identity,
        principal,
        password=body.password.get_secret_value(),
        code=None if body.code is None else body.code.get_secret_value(),
        client=client,
    )
    return EnrolmentTokenOut(enrolment_token=token)


@router.post("/totp", dependencies=[ANYONE], responses=describe_problems(HTTPStatus.BAD_REQUEST))
async def begin_enrolment(body: EnrolmentIn, identity: CurrentIdentity) -> EnrolmentOut:
    """A new secret for an authenticator app. The next step is `POST /auth/totp/confirmation`."""
    begun = await enrolment.begin(identity, body.enrolment_token.get_secret_value())
    return EnrolmentOut(secret=begun.secret, uri=begun.uri)


@router.post(
    "/totp/confirmation",
    dependencies=[ANYONE],
    responses=describe_problems(HTTPStatus.BAD_REQUEST, HTTPStatus.UNAUTHORIZED),
)
async def confirm_enrolment(
    body: EnrolmentConfirmationIn, identity: CurrentIdentity, client: CurrentClient, revocations: CurrentRevocations
) -> EnrolledOut:
    """Use the app from now on, and sign in. Earlier sessions end. The response has the recovery codes."""
    enrolled = await enrolment.confirm(
        identity,
        token=body.enrolment_token.get_secret_value(),
        code=body.code.get_secret_value(),
        client=client,
    )
    revocations.revoke(*enrolled.ended)
    signed_in = describe_signed_in(enrolled.signed_in)
    return EnrolledOut(**signed_in.model_dump(), recovery_codes=enrolled.recovery_codes)
