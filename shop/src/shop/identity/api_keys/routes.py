"""`/auth/api-keys`: users create, list and revoke their API keys. Admins list and revoke the keys of all users."""

from __future__ import annotations

from datetime import timedelta
from http import HTTPStatus
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Response
from sqlalchemy import Select, select

from howdah import Page, paginate
from howdah.fastapi import NotAllowed, PageOut, ProblemException, StrictJSONRoute, describe_problems
from shop.audit.dependencies import CurrentAuditTrail
from shop.audit.models import AuditAction
from shop.identity.api_keys.models import ApiKey
from shop.identity.api_keys.rules import MANAGE_KEYS, OWN_KEYS, REVOKE_KEYS_OF_OTHERS
from shop.identity.api_keys.schemas import ApiKeyCreatedOut, ApiKeyIn, ApiKeyOut, ApiKeyPageParameters
from shop.identity.api_keys.service import ScopeNotAllowed, TooManyKeys, create_key, lock_key, revoke_key
from shop.identity.api_keys.verification import CurrentVerifier
from shop.web.dependencies import CurrentPrincipal, PrincipalDatabase, PrincipalReadSession, PrincipalSession

router = APIRouter(prefix="/auth/api-keys", tags=["auth"], route_class=StrictJSONRoute, dependencies=[MANAGE_KEYS])


@router.post("", status_code=HTTPStatus.CREATED, responses=describe_problems(HTTPStatus.CONFLICT))
async def create_api_key(
    body: ApiKeyIn, principal: CurrentPrincipal, db: PrincipalSession, audit: CurrentAuditTrail, response: Response
) -> ApiKeyCreatedOut:
    """Create a key that acts for you, within its scopes and your role. The key is only in this
    response.

    `Idempotency-Key` has no effect, because the response isn't stored. If the response is lost, send the request again.
    If it gets a 409, the key was created: revoke the key with this name, and create another one.
    """
    try:
        text, key = await create_key(
            db, principal, name=body.name, scopes=body.scopes, expires_in=timedelta(days=body.expires_in_days)
        )
    except ScopeNotAllowed as error:
        raise NotAllowed(str(error)) from error
    except TooManyKeys as error:
        raise ProblemException(HTTPStatus.CONFLICT, "too-many-api-keys", str(error)) from error
    details = {"user_id": str(key.user_id), "scopes": key.scopes}
    await audit.record(db, AuditAction.API_KEY_CREATED, subject_type="api_key", subject_id=key.id, details=details)
    response.headers["Location"] = f"/auth/api-keys/{key.id}"
    return ApiKeyCreatedOut(**ApiKeyOut.model_validate(key).model_dump(), key=text)


@router.get("", response_model=PageOut[ApiKeyOut])
async def list_api_keys(
    parameters: Annotated[ApiKeyPageParameters, Query()], principal: CurrentPrincipal, db: PrincipalReadSession
) -> Page[ApiKey]:
    """List your keys, oldest first. Operators and admins see the keys of all users."""
    keys: Select[Any] = select(ApiKey)
    query = OWN_KEYS.restrict(keys, principal)
    return await paginate(db, parameters.apply(query), **parameters.page_arguments)


@router.delete("/{key_id}", status_code=HTTPStatus.NO_CONTENT, responses=describe_problems(HTTPStatus.NOT_FOUND))
async def revoke_api_key(
    key_id: UUID,
    principal: CurrentPrincipal,
    database: PrincipalDatabase,
    audit: CurrentAuditTrail,
    verifier: CurrentVerifier,
) -> None:
    """Revoke a key. Other processes may accept it for two more seconds. An operator can revoke only their own keys."""
    async with database.begin() as session:
        key = await lock_key(session, key_id)
        OWN_KEYS.check(principal, key.user_id, ApiKey, key_id)
        if key.user_id != principal.user_id:
            REVOKE_KEYS_OF_OTHERS.check(principal)
        user_id = key.user_id
        if await revoke_key(session, key):
            action, details = AuditAction.API_KEY_REVOKED, {"user_id": str(user_id)}
            await audit.record(session, action, subject_type="api_key", subject_id=key_id, details=details)
    verifier.forget(user_id)
