"""`/users`: create, list, change and delete users.

`GET /users/{user_id}` and `/users/{user_id}/order-summary` are in `shop.user_orders.routes`, because they read orders.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response

from howdah import DatabaseError
from howdah.fastapi import (
    DbSession,
    IfMatch,
    PageOut,
    RequiredIfMatch,
    StrictJSONRoute,
    describe_problems,
    get_schema_ref,
    make_etag,
    page_response,
)
from shop.users.dependencies import UserReader
from shop.users.models import User
from shop.users.repository import UserRepository, select_users
from shop.users.schemas import (
    BulkCreatedOut,
    UserChange,
    UserIn,
    UserOut,
    UserPageParameters,
)
from shop.web.lines import JSON, NDJSON, read_rows
from shop.web.problems import RejectedLine

router = APIRouter(prefix="/users", tags=["users"], route_class=StrictJSONRoute)

_CHUNK_ROWS: Final = 1000


@router.post("", status_code=HTTPStatus.CREATED, response_model=UserOut)
async def create_user(body: UserIn, db: DbSession, response: Response) -> User:
    user = await UserRepository(db).create(**body.model_dump())
    response.headers["Location"] = f"/users/{user.id}"
    response.headers["ETag"] = make_etag(user.version)
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
    """Create many users, all or none. NDJSON may have any length, because it is written as it arrives."""
    # The line numbers of one chunk. A chunk is written before the next one is read, so a rejected row is one of these.
    lines: deque[int] = deque(maxlen=_CHUNK_ROWS)
    read = 0

    async def users() -> AsyncIterator[dict[str, Any]]:
        nonlocal read
        async for number, user in read_rows(request, UserIn):
            lines.append(number)
            read += 1
            yield user.model_dump()

    try:
        created = await UserRepository(db).create_many(users(), chunk_size=_CHUNK_ROWS, keys=False)
    except DatabaseError as error:
        if error.row_index is None:
            raise
        raise RejectedLine(lines[error.row_index - read], error) from error
    return BulkCreatedOut(created=created.count)


@router.get("", response_model=PageOut[UserOut])
async def list_users(parameters: Annotated[UserPageParameters, Query()], users: UserReader) -> Response:
    """Users in the order of their creation."""
    selected = select_users(
        email_prefix=parameters.email_prefix,
        country=parameters.country,
        created_from=parameters.created_from,
        created_before=parameters.created_before,
    )
    page = await users.page(selected, limit=parameters.limit, after=parameters.after, before=parameters.before)
    return page_response(page)


@router.patch("/{user_id}", response_model=UserOut)
async def change_user(
    user_id: UUID, body: UserChange, db: DbSession, response: Response, if_match: RequiredIfMatch
) -> User:
    """Change the fields that the body has. `If-Match` must have the user's current `ETag`."""
    users = UserRepository(db)
    user = (await users.lock([user_id]))[user_id]
    if_match.check(user.version)
    await users.update(user, **body.model_dump(exclude_unset=True))
    response.headers["ETag"] = make_etag(user.version)
    return user


@router.delete("/{user_id}", status_code=HTTPStatus.NO_CONTENT)
async def delete_user(user_id: UUID, db: DbSession, if_match: IfMatch) -> None:
    """Delete a user who has no orders and no accounts."""
    users = UserRepository(db)
    user = (await users.lock([user_id]))[user_id]
    if_match.check(user.version)
    await users.delete(user)
