"""`/auth/invitations` and `/auth/users`: admins invite operators and admins, and change roles, sessions and apps."""

from __future__ import annotations

from http import HTTPStatus
from uuid import UUID

from fastapi import APIRouter

from howdah.fastapi import StrictJSONRoute, describe_problems
from shop.identity import staff
from shop.identity.api_keys.verification import CurrentVerifier
from shop.identity.dependencies import CurrentClient, CurrentIdentity, SessionPrincipal
from shop.identity.revocation import CurrentRevocations
from shop.identity.rules import ANYONE, MANAGE_USERS
from shop.identity.schemas import AcceptedOut, EnrolmentTokenOut, InvitationIn, NewPasswordIn, RoleIn

router = APIRouter(prefix="/auth", tags=["auth"], route_class=StrictJSONRoute)


@router.post(
    "/invitations",
    status_code=HTTPStatus.ACCEPTED,
    dependencies=[MANAGE_USERS],
    responses=describe_problems(HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS),
)
async def invite(
    body: InvitationIn, principal: SessionPrincipal, identity: CurrentIdentity, client: CurrentClient
) -> AcceptedOut:
    """Send an invitation to become an operator or admin. If a user has the address (409), change that user's role."""
    await staff.invite(identity, principal, email=body.email, name=body.name, role=body.role, client=client)
    return AcceptedOut()


@router.post(
    "/invitations/acceptance",
    status_code=HTTPStatus.CREATED,
    dependencies=[ANYONE],
    responses=describe_problems(HTTPStatus.BAD_REQUEST, HTTPStatus.CONFLICT),
)
async def accept_invitation(body: NewPasswordIn, identity: CurrentIdentity, client: CurrentClient) -> EnrolmentTokenOut:
    """Create the operator or admin with the token of the mail and a password. The next step is `POST /auth/totp`."""
    token = await staff.accept_invitation(
        identity, token=body.token.get_secret_value(), password=body.password.get_secret_value(), client=client
    )
    return EnrolmentTokenOut(enrolment_token=token)


@router.put(
    "/users/{user_id}/role",
    status_code=HTTPStatus.NO_CONTENT,
    dependencies=[MANAGE_USERS],
    responses=describe_problems(HTTPStatus.CONFLICT),
)
async def change_role(
    *,
    user_id: UUID,
    body: RoleIn,
    principal: SessionPrincipal,
    identity: CurrentIdentity,
    revocations: CurrentRevocations,
    verifier: CurrentVerifier,
    client: CurrentClient,
) -> None:
    """Give the user another role. The user's sessions end. Nobody can change their own role."""
    revocations.revoke(*await staff.change_role(identity, principal, user_id, body.role, client=client))
    verifier.forget(user_id)


@router.delete(
    "/users/{user_id}/sessions",
    status_code=HTTPStatus.NO_CONTENT,
    dependencies=[MANAGE_USERS],
    responses=describe_problems(HTTPStatus.CONFLICT),
)
async def end_sessions(
    user_id: UUID,
    principal: SessionPrincipal,
    identity: CurrentIdentity,
    revocations: CurrentRevocations,
    client: CurrentClient,
) -> None:
    """End all sessions of the user."""
    revocations.revoke(*await staff.end_sessions(identity, principal, user_id, client=client))


@router.delete(
    "/users/{user_id}/totp",
    status_code=HTTPStatus.NO_CONTENT,
    dependencies=[MANAGE_USERS],
    responses=describe_problems(HTTPStatus.CONFLICT),
)
async def remove_app(
    user_id: UUID,
    principal: SessionPrincipal,
    identity: CurrentIdentity,
    revocations: CurrentRevocations,
    client: CurrentClient,
) -> None:
    """Remove a lost authenticator app. The user's sessions end. Operators and admins then enrol another one."""
    revocations.revoke(*await staff.remove_app(identity, principal, user_id, client=client))
