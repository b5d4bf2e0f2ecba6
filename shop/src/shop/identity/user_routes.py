"""`DELETE /users/{user_id}`: delete a user, and end the user's sessions.

The other routes of `/users` are in `shop.users.routes` and `shop.user_orders.routes`.
"""

from __future__ import annotations

from http import HTTPStatus
from uuid import UUID

from fastapi import APIRouter

from howdah.fastapi import IfMatch, StrictJSONRoute, describe_problems
from howdah.tenancy import role_in
from shop.audit.dependencies import CurrentAuditTrail
from shop.audit.models import AuditAction
from shop.identity.api_keys.verification import CurrentVerifier
from shop.identity.revocation import CurrentRevocations
from shop.identity.sessions import end_sessions_of_deleted
from shop.roles import SYSTEM_ROLE
from shop.users.repository import UserRepository
from shop.users.rules import DELETE_USERS
from shop.web.dependencies import PrincipalDatabase

router = APIRouter(prefix="/users", tags=["users"], route_class=StrictJSONRoute)


@router.delete(
    "/{user_id}",
    status_code=HTTPStatus.NO_CONTENT,
    dependencies=[DELETE_USERS],
    responses=describe_problems(HTTPStatus.CONFLICT),
)
async def delete_user(
    *,
    user_id: UUID,
    database: PrincipalDatabase,
    audit: CurrentAuditTrail,
    revocations: CurrentRevocations,
    verifier: CurrentVerifier,
    if_match: IfMatch,
) -> None:
    """Delete a user who has no orders and no accounts. The user's sessions and API keys end."""
    async with database.begin() as session:
        users = UserRepository(session)
        user = await users.lock_one(user_id)
        if_match.check(user.version)
        async with role_in(session, SYSTEM_ROLE):
            ended = await end_sessions_of_deleted(session, user_id)
        await users.delete(user)
        await audit.record(session, AuditAction.USER_DELETED, subject_type="user", subject_id=user_id)
    revocations.revoke(*ended)
    verifier.forget(user_id)
