"""`/users`."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response

from howdah import DatabaseError, NotFound
from howdah.fastapi import PageOut, StrictJSONRoute, describe_problems, get_schema_ref, json_response, page_response
from shop.users.models import User
from shop.users.repository import UserRepository, matching
from shop.users.schemas import (
    BulkCreatedOut,
    OrderSummaryOut,
    UserChange,
    UserIn,
    UserOut,
    UserPageParameters,
    UserWithOrdersOut,
)
from shop.users.service import get_user_order_summary
from shop.web.dependencies import CurrentUsers, DbSession, IfMatch
from shop.web.errors import LineRefused
from shop.web.lines import JSON, NDJSON, rows
from shop.web.preconditions import CACHED, etag, require_match

router = APIRouter(prefix="/users", tags=["users"], route_class=StrictJSONRoute)

_CHUNK_ROWS: Final = 1000


@router.post("", status_code=HTTPStatus.CREATED, response_model=UserOut)
async def create_user(body: UserIn, db: DbSession, response: Response) -> User:
    user = await UserRepository(db).create(**body.model_dump())
    response.headers["Location"] = f"/users/{user.id}"
    response.headers["ETag"] = etag(user.version)
    return user


@router.post(
    "/bulk",
    status_code=HTTPStatus.CREATED,
    responses=describe_problems(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, HTTPStatus.UNPROCESSABLE_ENTITY),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                JSON: {"schema": {"type": "array", "items": get_schema_ref(UserIn, "validation")}},
                NDJSON: {"schema": get_schema_ref(UserIn, "validation")},
            },
        }
    },
)
async def create_users(request: Request, db: DbSession) -> BulkCreatedOut:
    """Create many users, all or none. NDJSON is read as it arrives and may be of any length."""
    # the lines of one chunk: it is written before the next is read, so a row that is refused is one of these
    lines: deque[int] = deque(maxlen=_CHUNK_ROWS)
    read = 0

    async def users() -> AsyncIterator[dict[str, Any]]:
        nonlocal read
        async for number, user in rows(request, UserIn):
            lines.append(number)
            read += 1
            yield user.model_dump()

    try:
        created = await UserRepository(db).create_many(users(), chunk_size=_CHUNK_ROWS, keys=False)
    except DatabaseError as error:
        if error.row_index is None:
            raise
        raise LineRefused(lines[error.row_index - read], error) from error
    return BulkCreatedOut(created=created.count)


@router.get("", response_model=PageOut[UserOut])
async def list_users(parameters: Annotated[UserPageParameters, Query()], users: CurrentUsers) -> Response:
    """Users in the order of their making."""
    found = matching(
        email_prefix=parameters.email_prefix,
        country=parameters.country,
        created_from=parameters.created_from,
        created_before=parameters.created_before,
    )
    page = await users.listed.page(found, limit=parameters.limit, after=parameters.after, before=parameters.before)
    return page_response(page)


@router.get("/{user_id}", response_model=UserWithOrdersOut, responses=CACHED)
async def get_user(user_id: UUID, request: Request, users: CurrentUsers) -> Response:
    """The user with their orders. The `ETag` is for `If-None-Match`, and for the `If-Match` of a change, which minds
    the user alone."""
    return json_response(await users.with_orders.get(user_id), request)


@router.get("/{user_id}/order-summary", response_model=OrderSummaryOut)
async def get_order_summary(user_id: UUID, db: DbSession) -> dict[str, Any]:
    summary = await get_user_order_summary(db, user_id)
    if summary is None:
        raise NotFound(User, [user_id])
    return summary


@router.patch("/{user_id}", response_model=UserOut, responses=describe_problems(HTTPStatus.PRECONDITION_REQUIRED))
async def change_user(
    user_id: UUID, body: UserChange, db: DbSession, response: Response, if_match: IfMatch = None
) -> User:
    """Change what the body names. `If-Match` must have the user's current `ETag`."""
    users = UserRepository(db)
    user = (await users.lock([user_id]))[user_id]
    require_match(if_match, user.version)
    await users.update(user, **body.model_dump(exclude_unset=True))
    response.headers["ETag"] = etag(user.version)
    return user


@router.delete("/{user_id}", status_code=HTTPStatus.NO_CONTENT)
async def delete_user(user_id: UUID, db: DbSession, if_match: IfMatch = None) -> None:
    """Delete a user who has no orders and no accounts."""
    users = UserRepository(db)
    user = (await users.lock([user_id]))[user_id]
    if if_match is not None:
        require_match(if_match, user.version)
    await users.delete(user)
