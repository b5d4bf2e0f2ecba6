"""`DELETE /users/{user_id}`: delete a user, and end the user's sessions and API keys."""

from __future__ import annotations

from http import HTTPStatus
from uuid import UUID

from fastapi import APIRouter

from howdah.fastapi import IfMatch, ProblemException, describe_problems
from shop.audit.dependencies import CurrentAuditTrail
from shop.audit.models import AuditAction
from shop.identity.api_keys.verification import CurrentVerifier
from shop.identity.revocation import CurrentRevocations
from shop.users.repository import UserRepository
from shop.users.rules import DELETE_USERS
from shop.web.dependencies import CurrentPrincipal, PrincipalDatabase
from shop.web.idempotency import StrictIdempotentRoute

router = APIRouter(prefix="/users", tags=["users"], route_class=StrictIdempotentRoute)


@router.delete(
    "/{user_id}",
    status_code=HTTPStatus.NO_CONTENT,
    dependencies=[DELETE_USERS],
    responses=describe_problems(HTTPStatus.CONFLICT),
)
async def delete_user(
    *,
    user_id: UUID,
    principal: CurrentPrincipal,
    database: PrincipalDatabase,
    audit: CurrentAuditTrail,
    revocations: CurrentRevocations,
    verifier: CurrentVerifier,
    if_match: IfMatch,
) -> None:
    """Delete a user who has no orders and no accounts. The user's sessions and API keys end. Nobody can delete their
    own user."""
    if user_id == principal.user_id:  # so that an admin remains
        raise ProblemException(HTTPStatus.CONFLICT, "own-user", "you can't delete your own user: ask another admin")
    async with database.begin() as session:
        users = UserRepository(session)
        user = await users.lock_one(user_id)
        if_match.check(user.version)
        await users.delete(user)
        await audit.record(session, AuditAction.USER_DELETED, subject_type="user", subject_id=user_id)
    verifier.forget(user_id)
    await revocations.poll_now()
