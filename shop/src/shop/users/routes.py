"""`/users`: create, list and change users.

`GET /users/{user_id}` and `/users/{user_id}/order-summary` are in `shop.user_orders.routes`, because they read orders.
`DELETE /users/{user_id}` is in `shop.identity.deletion_routes`, because it ends sessions.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Final
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import select

from howdah.fastapi import (
    BodyRows,
    PageOut,
    RequiredIfMatch,
    describe_problems,
    describe_rows_body,
    direct,
    list_response,
    make_etag,
)
from shop.audit.dependencies import CurrentAuditTrail
from shop.audit.models import AuditAction
from shop.users.dependencies import UserReader
from shop.users.models import User
from shop.users.repository import UserRepository
from shop.users.rules import CHANGE_EMAIL, CHANGE_USERS, CREATE_USERS, OWN_USERS, READ_USERS
from shop.users.schemas import (
    BulkCreatedOut,
    UserChange,
    UserIn,
    UserOut,
    UserPageParameters,
)
from shop.web.dependencies import CurrentPrincipal, PrincipalSession
from shop.web.idempotency import StrictIdempotentRoute, request_key

router = APIRouter(prefix="/users", tags=["users"], route_class=StrictIdempotentRoute)

_CHUNK_ROWS: Final = 1000
# one object for all requests, so that the view prepares its page once
_ALL_USERS: Final = select(User)


@router.post("", status_code=HTTPStatus.CREATED, response_model=UserOut, dependencies=[CREATE_USERS, request_key])
async def create_user(body: UserIn, db: PrincipalSession, audit: CurrentAuditTrail, response: Response) -> User:
    user = await UserRepository(db).create(**body.model_dump())
    await audit.record(db, AuditAction.USER_CREATED, subject_type="user", subject_id=user.id)
    response.headers["Location"] = f"/users/{user.id}"
    response.headers["ETag"] = make_etag(user.version)
    return user


@router.post(
    "/bulk",
    status_code=HTTPStatus.CREATED,
    dependencies=[CREATE_USERS, request_key],
    responses=describe_problems(HTTPStatus.UNPROCESSABLE_ENTITY),
    openapi_extra=describe_rows_body(UserIn),
)
async def create_users(request: Request, db: PrincipalSession, audit: CurrentAuditTrail) -> BulkCreatedOut:
    """Create many users, all or none. NDJSON may have 1 GiB, and a JSON array 16 MiB."""
    rows = BodyRows(request, UserIn)
    with rows.locate_errors():
        users = (user.model_dump() async for user in rows)
        created = await UserRepository(db).create_many(users, chunk_size=_CHUNK_ROWS, keys=False)
    details = {"count": created.count}
    await audit.record(db, AuditAction.USERS_CREATED, subject_type="user", details=details)
    return BulkCreatedOut(created=created.count)


@router.get("", response_model=PageOut[UserOut], dependencies=[READ_USERS])
@direct
async def list_users(
    parameters: Annotated[UserPageParameters, Query()], users: UserReader, principal: CurrentPrincipal
) -> Response:
    """Users in the order of their creation. A customer's list has only the customer."""
    return await list_response(users, parameters, statement=OWN_USERS.restrict(_ALL_USERS, principal))


@router.patch("/{user_id}", response_model=UserOut, dependencies=[CHANGE_USERS])
async def change_user(
    *,
    user_id: UUID,
    body: UserChange,
    db: PrincipalSession,
    principal: CurrentPrincipal,
    audit: CurrentAuditTrail,
    response: Response,
    if_match: RequiredIfMatch,
) -> User:
    """Change the fields that the body has. `If-Match` must have the user's current `ETag`. Only an admin can change
    the email address."""
    OWN_USERS.check(principal, user_id, User, user_id)
    users = UserRepository(db)
    user = await users.lock_one(user_id)
    if_match.check(user.version)
    if "email" in body.model_fields_set and body.email != user.email:
        CHANGE_EMAIL.check(principal)
    await users.update(user, **body.model_dump(exclude_unset=True))
    details = {"fields": sorted(body.model_fields_set)}  # not the values: they are personal data
    await audit.record(db, AuditAction.USER_CHANGED, subject_type="user", subject_id=user_id, details=details)
    response.headers["ETag"] = make_etag(user.version)
    return user
