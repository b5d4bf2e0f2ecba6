"""FastAPI: sessions that commit before the response goes out, and errors as problem details (RFC 9457).

@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Database]]:
    async with Database(url) as database:
        yield {"database": database}

app = FastAPI(lifespan=lifespan)
add_error_handlers(app)

@app.post("/users")
async def create_user(body: UserIn, db: DbSession) -> UserOut: ...
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Annotated, Any, Final, Self
from weakref import WeakValueDictionary

import orjson
from fastapi import Depends, FastAPI, Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.params import Depends as DependsMarker
from fastapi.utils import is_body_allowed_for_status_code
from pydantic import BaseModel, ConfigDict, Field, model_validator
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection

from howdah import errors
from howdah.database import Database
from howdah.pagination import MAX_LIMIT, Page
from howdah.views import Body

PROBLEM_JSON: Final = "application/problem+json"

# The one place that decides on statuses; the nearest class in the error's ancestry counts. What isn't here is a fault
# of the program and answers 500.
STATUS: Final[dict[type[errors.HowdahError], HTTPStatus]] = {
    errors.NotFound: HTTPStatus.NOT_FOUND,
    errors.InvalidCursor: HTTPStatus.BAD_REQUEST,
    errors.StaleRow: HTTPStatus.CONFLICT,
    errors.UniqueViolation: HTTPStatus.CONFLICT,
    errors.ExclusionViolation: HTTPStatus.CONFLICT,
    errors.ForeignKeyViolation: HTTPStatus.CONFLICT,
    errors.CheckViolation: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.NotNullViolation: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.InvalidValue: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.Conflict: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.LockTimeout: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.StatementTimeout: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.ReadOnly: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
}

RETRY_AFTER_SECONDS: Final = 1

# A body of a hundred thousand faults would be answered by one much larger.
_SHOWN_FAULTS: Final = 20


class Problem(BaseModel):
    """RFC 9457. `type` is stable, and what a client should branch on; `title` and `detail` are for people."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(examples=["urn:howdah:problem:not-found"])
    title: str = Field(examples=["Not Found"])
    status: int = Field(examples=[404])
    detail: str | None = Field(default=None, examples=["no User with key 01977f1e-7c3a-7000-8000-000000000000"])


class PageParameters(BaseModel):
    """Query parameters of a listing, as `Annotated[PageParameters, Query()]`; subclass it to add filters. A parameter
    that it doesn't name is refused."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(default=50, ge=1, le=MAX_LIMIT, description="How many at most")
    after: str | None = Field(default=None, description="The `next` of the page before")
    before: str | None = Field(default=None, description="The `previous` of the page behind; not beside `after`")

    @model_validator(mode="after")
    def _one_direction(self) -> Self:
        if self.after is not None and self.before is not None:
            raise ValueError("a page follows `after` or comes before `before`, not both")
        return self


def database_of(connection: HTTPConnection) -> Database:
    """The `Database` that the application's lifespan yielded as `{"database": …}`."""
    database = getattr(connection.state, "database", None)
    if not isinstance(database, Database):
        raise RuntimeError(  # noqa: TRY004  # the application is set up wrongly
            'no database: the application\'s lifespan must yield {"database": Database(...)}'
        )
    return database


async def get_database(connection: HTTPConnection) -> Database:
    """`database_of` as a dependency: what the sessions below are made of. Tests put another one in its place:
    `app.dependency_overrides[get_database] = lambda: database`."""
    return database_of(connection)


async def get_db(
    connection: HTTPConnection, database: Annotated[Database, Depends(get_database)]
) -> AsyncIterator[AsyncSession]:
    """A session for one request: committed when the route has returned and before the response is sent, so that a
    commit that fails is the response. An exception, a client that disconnects or a cancelled task roll it back.

    Take it as `DbSession`. FastAPI would run the commit after the response had gone out if it were declared without
    `scope="function"`, so that is refused at the route's first request.

    A response that streams from the database must take `ReadDbSession`: this session is closed by then, and says so.
    """
    async with _committed(connection, database, get_db) as session:
        yield session


async def get_read_db(database: Annotated[Database, Depends(get_database)]) -> AsyncIterator[AsyncSession]:
    """A session for one request in which PostgreSQL refuses writes; open until the response has been sent, streams
    included, then rolled back. Take it as `ReadDbSession`."""
    async with database.session(read_only=True) as session:
        yield session


DbSession = Annotated[AsyncSession, Depends(get_db, scope="function")]
ReadDbSession = Annotated[AsyncSession, Depends(get_read_db, scope="request")]


def session_dependency(find: Callable[[HTTPConnection], Database]) -> Any:
    """`DbSession` for a further database: `Annotated[AsyncSession, session_dependency(lambda c: c.state.reports)]`."""

    async def get_session(connection: HTTPConnection) -> AsyncIterator[AsyncSession]:
        async with _committed(connection, find(connection), get_session) as session:
            yield session

    return DependsMarker(get_session, scope="function")


@asynccontextmanager
async def _committed(
    connection: HTTPConnection, database: Database, declared: Callable[..., Any]
) -> AsyncIterator[AsyncSession]:
    _refuse_late_commit(connection, declared)
    async with database.session() as session:
        yield session
        await session.commit()


# by id, because routes can't be hashed
_checked_routes: WeakValueDictionary[int, Any] = WeakValueDictionary()


def _refuse_late_commit(connection: HTTPConnection, declared: Callable[..., Any]) -> None:
    route = connection.scope.get("route")
    dependant = getattr(route, "dependant", None)
    if not isinstance(dependant, Dependant) or id(route) in _checked_routes:
        return
    waiting = [dependant]
    while waiting:
        each = waiting.pop()
        if each.call is declared and each.scope != "function":
            raise RuntimeError(
                f"{connection.scope['path']}: a session that commits must be declared with scope='function' "
                "(DbSession is), or its commit would come after the response"
            )
        waiting += each.dependencies
    _checked_routes[id(route)] = route


def add_error_handlers(app: FastAPI) -> None:
    """Answer every error of this application as problem details: Howdah's by `STATUS`, with `Retry-After` where
    trying again may help; FastAPI's validation errors and `HTTPException`; and what nobody foresaw as a bare 500."""
    app.add_exception_handler(errors.HowdahError, _howdah_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(Exception, _unforeseen)


def problem_response(
    status: int,
    code: str,
    *,
    title: str | None = None,
    detail: str | None = None,
    headers: Mapping[str, str] | None = None,
    **members: Any,
) -> Response:
    """A problem details response with the type `urn:howdah:problem:<code>`; `members` extend it."""
    body = {
        "type": f"urn:howdah:problem:{code}",
        "title": title or HTTPStatus(status).phrase,
        "status": int(status),
        **({} if detail is None else {"detail": detail}),
        **members,
    }
    return Response(orjson.dumps(body), int(status), headers=headers, media_type=PROBLEM_JSON)


def error_response(error: errors.HowdahError, **members: Any) -> Response:
    """The problem details that `STATUS` decides on for this error; `members` extend them, say with the line of the
    input that it arose from. Raises the error itself where that is a fault of the program."""
    status = next((STATUS[cls] for cls in type(error).__mro__ if cls in STATUS), None)
    if status is None:
        raise error
    return problem_response(
        status,
        _code(type(error).__name__),
        detail=_detail(error),
        headers={"Retry-After": str(RETRY_AFTER_SECONDS)} if status == HTTPStatus.SERVICE_UNAVAILABLE else None,
        **_members(error),
        **members,
    )


def json_response(body: Body, request: HTTPConnection | None = None) -> Response:
    """What a `JsonView` wrote, with its `ETag`; of a request whose `If-None-Match` has it, 304 without the body.

    For a route that names the Pydantic model as its `response_model`: the OpenAPI schema stays that of the model, and
    FastAPI leaves a response as it is.
    """
    etag = body.etag
    known = "" if request is None else ",".join(request.headers.getlist("if-none-match"))
    # a comparison of weak tags: RFC 9110, section 13.1.2
    if known == "*" or etag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers={"ETag": etag})
    return Response(bytes(body), headers={"ETag": etag}, media_type="application/json")


def page_response(page: Page[bytes]) -> Response:
    """A page of a `JsonView`: an object with `items`, `next` and `previous`, and where the page was counted with
    `total` and `total_capped`. As with `json_response`, the route names the Pydantic model."""
    members: dict[str, Any] = {"next": page.next, "previous": page.previous}
    if page.total is not None:
        members |= {"total": page.total, "total_capped": page.total_capped}
    return Response(
        b'{"items":[' + b",".join(page.items) + b"]," + orjson.dumps(members)[1:], media_type="application/json"
    )


async def _howdah_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, errors.HowdahError)
    return error_response(error)


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = error.errors()[:_SHOWN_FAULTS]
    shown = [{"loc": each["loc"], "msg": each["msg"], "type": each["type"]} for each in found]
    return problem_response(
        HTTPStatus.UNPROCESSABLE_ENTITY, "validation", detail="the request is not as described", errors=shown
    )


async def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if not is_body_allowed_for_status_code(error.status_code):
        return Response(status_code=error.status_code, headers=error.headers)
    known = error.status_code in HTTPStatus.__members__.values()
    phrase = HTTPStatus(error.status_code).phrase if known else f"Status {error.status_code}"
    detail = error.detail
    return problem_response(
        error.status_code,
        _code(phrase),
        title=phrase,
        detail=detail if isinstance(detail, str) and detail else None,
        headers=error.headers,
        **({} if detail is None or isinstance(detail, str) else {"errors": jsonable_encoder(detail)}),
    )


async def _unforeseen(request: Request, error: Exception) -> Response:
    return problem_response(HTTPStatus.INTERNAL_SERVER_ERROR, "internal-error")


def _detail(error: Exception) -> str | None:
    """What a client may read: never a statement, nor a row's values."""
    if isinstance(error, errors.IntegrityViolation):
        return f"refused by {error.constraint}" if error.constraint else f"{error.column} must have a value"
    if isinstance(error, errors.DatabaseError):
        return (type(error).__doc__ or "").split("\n")[0]
    return str(error)


def _members(error: Exception) -> dict[str, Any]:
    if isinstance(error, errors.IntegrityViolation) and error.constraint:
        return {"constraint": error.constraint}
    return {}


def _code(name: str) -> str:
    """`UniqueViolation` and `Not Found` as `unique-violation` and `not-found`."""
    words = "".join(f" {letter}" if letter.isupper() else letter for letter in name.replace("-", " ")).split()
    return "-".join(words).lower()
