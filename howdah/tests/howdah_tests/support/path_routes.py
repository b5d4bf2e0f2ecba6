"""The routes of an application with all kinds of declarations. Each endpoint gets the mark that is passed."""

# No `from __future__ import annotations`: FastAPI can't resolve the name of a local type in a string.

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from http import HTTPStatus
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote
from uuid import UUID

from fastapi import APIRouter, Body, Cookie, Depends, FastAPI, Header, HTTPException, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import func, select, text
from starlette.background import BackgroundTask
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from howdah import Database, Unavailable, errors
from howdah._reads.lookups import JsonBytes
from howdah.fastapi import (
    PUBLIC,
    BodyRows,
    DbSession,
    NotAuthenticated,
    ProblemException,
    ReadDbSession,
    StrictJSONRoute,
    allow,
    configure_app,
    find_principal,
    json_response,
    make_etag,
    problem_response,
    single_header,
)
from howdah_tests.support.idempotent_app import Note, StrictIdempotentRoute, note_key
from howdah_tests.support.path_pairs import Mark
from howdah_tests.support.principals import CUSTOMER, OPERATOR, Caller, authenticate

UNREACHABLE: Final = "postgresql+asyncpg://nobody@127.0.0.1:1/none"
MAX_BODY: Final = 2_000
JSON: Final = JsonBytes(b'{"id":1,"name":"caf\xc3\xa9"}')


class PathItemIn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=10)
    count: int = Field(default=1, ge=0)
    price: float | None = None
    tags: list[str] = []


class PathItemOut(BaseModel):
    name: str
    count: int = 5
    price: float | None = None


class PathParameters(BaseModel):
    model_config = ConfigDict(extra="forbid")

    limit: int = Field(default=20, ge=1, le=100)
    after: UUID | None = None
    names: list[str] = []


class ForeignError(Exception):
    """An error with a handler of the application."""


class SecondError(Exception):
    """Its handler raises another error that has a handler."""


class UnhandledError(Exception):
    """An error without a handler."""


def fail(name: str) -> None:
    """Raise the error with this name."""
    raise ERRORS[name]()


ERRORS: Final[dict[str, Callable[[], BaseException]]] = {
    "not-found": lambda: errors.NotFound(Note, [7]),
    "invalid-cursor": lambda: errors.InvalidCursor("the cursor is damaged"),
    "stale-row": lambda: errors.StaleRow("the row was changed"),
    "key-in-use": errors.IdempotencyKeyInUse,
    "key-reused": errors.IdempotencyKeyReused,
    "queue-full": lambda: errors.QueueFull("the queue is full"),
    "pool": lambda: errors.PoolExhausted("no connection"),
    "unavailable": lambda: Unavailable("later"),
    "unknown-attribute": lambda: errors.UnknownAttribute(Note, "a", ["b"]),
    "teapot": lambda: HTTPException(418, "short and stout", {"X-Teapot": "yes"}),
    "http-404": lambda: HTTPException(404),
    "http-304": lambda: HTTPException(304),
    "http-object": lambda: HTTPException(400, {"reason": "an object"}),
    "problem": lambda: ProblemException(409, "out-of-stock", "sold out", item=7),
    "not-authenticated": NotAuthenticated,
    "validation": lambda: RequestValidationError([{"type": "x", "loc": ("body", "a"), "msg": "no", "input": 1}]),
    "foreign": ForeignError,
    "second": SecondError,
    "unexpected": lambda: UnhandledError("secret"),
    "runtime": lambda: RuntimeError("secret"),
    "key": lambda: KeyError("secret"),
    "timeout": TimeoutError,
    "stop": lambda: StopAsyncIteration("stop"),
    "assertion": lambda: AssertionError("secret"),
    "group": lambda: ExceptionGroup("several", [UnhandledError("secret")]),
}


async def answer_foreign(request: Request, error: Exception) -> Response:
    return problem_response(422, "foreign", detail=f"{type(error).__name__} of {request.url.path}")


def raise_another(request: Request, error: Exception) -> Response:
    raise HTTPException(410, "the handler has raised another error")


class AddHeader:
    """Middleware of an application. It shows the path, and the route that was found."""

    def __init__(self, app: ASGIApp, name: bytes) -> None:
        self._app, self._name = app, name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_header(message: Message) -> None:
            if message["type"] == "http.response.start":
                endpoint = getattr(scope.get("endpoint"), "__name__", "none")
                message["headers"] = [*message["headers"], (self._name, f"{quote(scope['path'])} {endpoint}".encode())]
            await send(message)

        await self._app(scope, receive, send_with_header if scope["type"] == "http" else send)


async def authenticate_or_fail(connection: HTTPConnection) -> Caller | None:
    """`authenticate`, which fails for some requests."""
    match connection.headers.get("x-authenticate"):
        case "hang":
            await asyncio.Event().wait()
        case "unavailable":
            raise Unavailable("the users can't be read")
        case "fault":
            raise UnhandledError("secret")
        case "problem":
            raise ProblemException(403, "blocked", "the user is blocked")
    return await authenticate(connection)


def create_path_app(mark: Mark, url: str = UNREACHABLE, *, mounted: bool = False, **options: Any) -> FastAPI:
    """The application. With `mounted` it has another one inside, with the same routes."""
    app = FastAPI()
    app.add_middleware(AddHeader, name=b"x-inner")
    configure_app(
        app,
        database=lambda: Database(url, pool_size=3),
        **{
            "authenticate": authenticate_or_fail,
            "authenticate_timeout": 0.05,
            "max_body_bytes": MAX_BODY,
            "max_body_seconds": 0.15,
            "allowed_hosts": ["test"],
            **options,
        },
    )
    app.add_middleware(AddHeader, name=b"x-outer")
    app.add_exception_handler(ForeignError, answer_foreign)
    app.add_exception_handler(SecondError, raise_another)
    add_routes(app, mark)
    if mounted:
        app.mount("/mounted", create_path_app(mark, url))
    return app


def add_routes(app: FastAPI, mark: Mark) -> None:
    for add in (_add_parameters, _add_bodies, _add_responses, _add_rules, _add_sessions, _add_overlaps, _add_included):
        router = APIRouter(dependencies=[] if add in (_add_rules, _add_included) else [PUBLIC])
        add(router, mark)
        app.include_router(router)
    app.include_router(_build_strict_router(mark))
    app.include_router(_build_idempotent_router(mark))

    # without a router, and so without a context of an inclusion
    @app.get("/outside/{name}", dependencies=[PUBLIC])
    @mark
    async def get_outside(name: str, request: Request, limit: int = 5) -> dict[str, Any]:
        return {"name": name, "limit": limit, "url": str(request.url_for("get_outside", name="x"))}


def _add_parameters(router: APIRouter, mark: Mark) -> None:
    @router.get("/values/{number}")
    @mark
    async def get_values(  # noqa: PLR0917
        number: Annotated[int, Path(ge=0)],
        q: Annotated[str | None, Query(max_length=5)] = None,
        flags: Annotated[list[int], Query()] = [1, 2],  # noqa: B006
        kind: Literal["a", "b"] = "a",
        needed: Annotated[str, Query(alias="need-ed")] = "",
        x_text: Annotated[str | None, Header(max_length=5)] = None,
        x_many: Annotated[list[str] | None, Header()] = None,
        crumb: Annotated[int | None, Cookie()] = None,
    ) -> dict[str, Any]:
        flags.append(0)  # the default isn't shared by requests
        return {**locals()}

    @router.get("/required")
    @mark
    async def get_required(
        first: int, second: Annotated[bool, Query()], x_needed: Annotated[str, Header()], one: Annotated[UUID, Cookie()]
    ) -> list[Any]:
        return [first, second, x_needed, one]

    @router.get("/page")
    @mark
    async def get_page(parameters: Annotated[PathParameters, Query()]) -> PathParameters:
        return parameters

    @router.get("/single")
    @mark
    async def get_single(key: Annotated[str | None, single_header("X-Key", str)]) -> str | None:
        return key

    async def find_tenant(tenant: Annotated[str, Path()]) -> str:
        return tenant

    @router.get("/tenants/{tenant}/{rest}")
    @mark
    async def get_tenant(tenant: Annotated[str, Depends(find_tenant)], rest: str) -> list[str]:
        return [tenant, rest]

    @router.get("/without-tenant")
    @mark
    async def get_without_tenant(tenant: Annotated[str, Depends(find_tenant)]) -> str:
        return tenant

    @router.get("/scope/{name}")
    @mark
    async def get_scope(name: str, request: Request, connection: HTTPConnection) -> dict[str, Any]:
        scope = request.scope
        return {
            "keys": sorted(key for key in scope if not key.startswith(("fastapi", "howdah", "starlette"))),
            "route": scope["route"].path,
            "path": scope["fastapi"]["effective_route_context"].path,
            "endpoint": scope["endpoint"].__name__,
            "parameters": request.path_params,
            "router": scope["router"] is scope["app"].router,
            "url": str(request.url_for("get_scope", name="x")),
            "principal": getattr(find_principal(connection), "key", None),
            "same": connection is request,
        }


def _add_bodies(router: APIRouter, mark: Mark) -> None:
    @router.post("/items", status_code=HTTPStatus.CREATED, response_model_exclude_unset=True)
    @mark
    async def create_item(item: PathItemIn, response: Response) -> PathItemOut:
        response.headers["Location"] = f"/items/{item.name}"
        return PathItemOut(**item.model_dump(include={"name", "price"}))

    @router.post("/pairs")
    @mark
    async def create_pair(
        first: PathItemIn, second: Annotated[int, Body()], q: int = 0, third: Annotated[str | None, Body()] = None
    ) -> list[Any]:
        return [first, second, q, third]

    @router.post("/embedded")
    @mark
    async def create_embedded(item: Annotated[PathItemIn, Body(embed=True)]) -> PathItemIn:
        return item

    @router.post("/optional")
    @mark
    async def create_optional(item: PathItemIn | None = None) -> PathItemIn | None:
        return item

    @router.post("/any")
    @mark
    async def create_any(value: Annotated[Any, Body()]) -> Any:
        return {"value": value if not isinstance(value, bytes) else value.decode("latin-1")}

    @router.post("/text")
    @mark
    async def create_text(value: Annotated[bytes, Body(media_type="text/plain")]) -> int:
        return len(value)

    @router.post("/raw")
    @mark
    async def create_raw(request: Request) -> int:
        return len(await request.body())

    @router.post("/unread")
    @mark
    async def create_unread() -> None: ...

    @router.post("/rows")
    @mark
    async def create_rows(request: Request) -> int:
        rows = BodyRows(request, PathItemIn)
        with rows.locate_errors():
            return len([each async for each in rows])


def _build_strict_router(mark: Mark) -> APIRouter:
    router = APIRouter(prefix="/strict", route_class=StrictJSONRoute, dependencies=[PUBLIC])

    @router.post("/items")
    @mark
    async def create_strict(item: PathItemIn, note: str = "", many: Annotated[list[int], Query()] = []) -> Any:  # noqa: B006
        return {"item": item, "note": note, "many": many}

    return router


def _build_idempotent_router(mark: Mark) -> APIRouter:
    router = APIRouter(prefix="/notes", route_class=StrictIdempotentRoute, dependencies=[PUBLIC])

    @router.post("", status_code=HTTPStatus.CREATED, dependencies=[note_key])
    @mark
    async def create_note(item: PathItemIn, db: DbSession, response: Response) -> dict[str, Any]:
        db.add(Note(text=item.name))
        await db.flush()
        response.headers["Location"] = "/notes/1"
        response.set_cookie("a", "1")
        return {"count": await db.scalar(select(func.count()).select_from(Note))}

    @router.post("/failing", dependencies=[note_key])
    @mark
    async def fail_note(item: PathItemIn, db: DbSession) -> Response:
        db.add(Note(text=item.name))
        await db.flush()
        if item.name in ERRORS:
            fail(item.name)
        return problem_response(int(item.name), "refused")

    return router


class ShoutingResponse(PlainTextResponse):
    def render(self, content: Any) -> bytes:
        return str(content).upper().encode()


def _add_responses(router: APIRouter, mark: Mark) -> None:
    @router.get("/json")
    @mark
    async def get_json(request: Request) -> Response:
        return json_response(JSON, request)

    @router.get("/changed/{status}")
    @mark
    async def get_changed(status: int, response: Response) -> dict[str, int]:
        response.status_code = status
        response.headers["X-Status"] = str(status)
        response.headers.append("Vary", "Accept")
        response.set_cookie("a", "1")
        response.set_cookie("b", "2")
        response.headers["ETag"] = make_etag(status)
        return {"status": status}

    async def change(response: Response) -> None:
        response.status_code = 202
        response.headers["X-Changed"] = "by a dependency"

    @router.get("/changed-by-dependency", dependencies=[Depends(change)])
    @mark
    async def get_changed_by_dependency() -> str:
        return "value"

    @router.get("/own-response", dependencies=[Depends(change)])
    @mark
    async def get_own_response() -> Response:
        return PlainTextResponse("own", 203)

    @router.delete("/nothing", status_code=HTTPStatus.NO_CONTENT)
    @mark
    async def delete_nothing() -> None: ...

    @router.get("/none")
    @mark
    async def get_none() -> None: ...

    @router.get("/shouting", response_class=ShoutingResponse)
    @mark
    async def get_shouting() -> str:
        return "loud"

    @router.get("/untyped", response_model=None, response_class=JSONResponse)
    @mark
    async def get_untyped() -> Any:
        return {"when": UUID(int=1), "set": {1}}

    @router.get("/redirect", response_class=RedirectResponse)
    @mark
    async def get_redirect() -> str:
        return "/elsewhere"

    @router.get("/excluded", response_model_exclude={"price"}, response_model_exclude_defaults=True)
    @mark
    async def get_excluded() -> PathItemOut:
        return PathItemOut(name="a", count=5, price=1.5)

    @router.get("/invalid-response", response_model=PathItemOut)
    @mark
    async def get_invalid() -> Any:
        return {"name": 5}

    @router.get("/nan", response_model=None, response_class=JSONResponse)
    @mark
    async def get_nan() -> Any:
        return float("nan")

    @router.get("/stream")
    @mark
    async def get_stream(broken: bool = False) -> StreamingResponse:
        async def generate() -> AsyncIterator[bytes]:
            yield b"first,"
            if broken:
                raise UnhandledError("secret")
            yield b"second"

        return StreamingResponse(generate(), headers={"X-Streams": "yes"})

    @router.get("/background/{name}")
    @mark
    async def get_background(name: str) -> Response:
        async def run() -> None:
            if name in ERRORS:
                fail(name)

        return Response(name, background=BackgroundTask(run))

    @router.get("/hang")
    @mark
    async def hang() -> None:
        await asyncio.Event().wait()

    cleaned: list[str] = []

    async def clean(name: Annotated[str, Query()] = "") -> AsyncIterator[None]:
        try:
            yield
        finally:
            await asyncio.sleep(0)
            cleaned.append(name)

    @router.get("/cleaned/{what}", dependencies=[Depends(clean, scope="function")])
    @mark
    async def get_cleaned(what: str) -> list[str]:
        if what == "hang":
            await asyncio.Event().wait()
        return cleaned

    @router.get("/errors/{name}")
    @mark
    async def get_error(name: str) -> None:
        fail(name)

    @router.put("/methods")
    @router.patch("/methods")
    @mark
    async def change_methods(request: Request) -> str:
        return request.method

    @router.api_route("/several", methods=["GET", "POST", "OPTIONS"])
    @mark
    async def get_several(request: Request) -> str:
        return request.method

    @router.head("/only-head")
    @mark
    async def head_only() -> Response:
        return Response(headers={"X-Head": "yes"})


def _add_rules(router: APIRouter, mark: Mark) -> None:
    @router.post("/customers", dependencies=[allow(CUSTOMER, scope="items:write")])
    @mark
    async def create_customer(item: PathItemIn, request: Request) -> str:
        return str(find_principal(request).key)

    @router.get("/operators/{number}", dependencies=[allow(OPERATOR)])
    @mark
    async def get_operator(number: int) -> int:
        return number

    @router.get("/as-parameter")
    @mark
    async def get_as_parameter(rule: Annotated[None, allow(OPERATOR)], number: int) -> int:
        return number


def _add_sessions(router: APIRouter, mark: Mark) -> None:
    @router.post("/commits/{name}", status_code=HTTPStatus.CREATED)
    @mark
    async def commit(name: str, db: DbSession, response: Response) -> dict[str, str]:
        """Write a row whose commit fails if its text is `late`."""
        response.headers["X-Written"] = "yes"
        await db.execute(text("INSERT INTO path_rows VALUES (:name)"), {"name": name})
        if name in ERRORS:
            fail(name)
        return {"name": name}

    @router.get("/commits")
    @mark
    async def count_commits(db: ReadDbSession) -> int:
        return await db.scalar(text("SELECT count(*) FROM path_rows")) or 0

    @router.get("/write-in-read-session")
    @mark
    async def write(db: ReadDbSession) -> None:
        await db.execute(text("INSERT INTO path_rows VALUES ('never')"))

    async def yield_function(before: str = "", after: str = "") -> AsyncIterator[str]:
        if before:
            fail(before)
        yield "function"
        if after:
            fail(after)

    async def yield_request(late: str = "") -> AsyncIterator[str]:
        yield "request"
        if late:
            fail(late)

    async def translate(translated: str = "") -> AsyncIterator[None]:
        try:
            yield
        except UnhandledError as error:
            if translated == "swallow":
                return
            if translated:
                raise HTTPException(409, translated) from error
            raise

    async def swallow() -> AsyncIterator[None]:
        with suppress(UnhandledError):
            yield

    @router.get("/swallowed-late", dependencies=[Depends(swallow)])
    @mark
    async def get_swallowed() -> None:
        fail("unexpected")

    @router.get("/yields/{name}", dependencies=[Depends(translate, scope="function")])
    @mark
    async def get_yields(
        name: str,
        first: Annotated[str, Depends(yield_function, scope="function")],
        second: Annotated[str, Depends(yield_request, scope="request")],
    ) -> list[str]:
        if name in ERRORS:
            fail(name)
        return [name, first, second]


def _add_overlaps(router: APIRouter, mark: Mark) -> None:
    """Paths of which several match. The route that is declared first wins, unless another one has no parameter."""

    def show(name: str) -> Any:
        async def endpoint(request: Request) -> dict[str, Any]:
            return {"route": name, "parameters": request.path_params}

        endpoint.__name__ = name
        return endpoint

    router.get("/orders/export")(mark(show("export")))
    router.get("/orders/{order_id}")(mark(show("order")))
    router.get("/late/{late_id}")(mark(show("late")))
    router.get("/late/export")(mark(show("late_export")))
    router.post("/late/only-post")(mark(show("only_post")))
    router.get("/a/{first}/c")(mark(show("abc_first")))
    router.get("/a/b/{second}")(mark(show("abc_second")))
    router.get("/a/{first}/{second}")(mark(show("abc_both")))
    router.delete("/a/b/c")(mark(show("abc_delete")))
    router.get("/mixed/{number:int}")(show("mixed_int"))  # only Starlette can convert it
    router.get("/mixed/{text}")(mark(show("mixed_text")))
    router.get("/parts/{name}.json")(show("part"))
    router.get("/parts/{name}")(mark(show("whole")))
    router.get("/files/{path:path}")(show("files"))
    router.get("/files/{name}")(mark(show("file")))
    router.get("/unmarked/{name}")(show("unmarked"))
    router.get("/unmarked/fixed")(mark(show("unmarked_fixed")))
    router.get("/marked/{name}")(mark(show("marked")))
    router.post("/marked/{name}")(show("marked_post"))
    router.get("/api")(mark(show("api")))
    router.get("/slash/")(mark(show("slash")))
    router.get("/dot.s/{name}")(mark(show("dots")))
    router.get("/é/{name}")(mark(show("accent")))


def _add_included(router: APIRouter, mark: Mark) -> None:
    """A router that is included twice, with other prefixes and dependencies."""
    inner = APIRouter(prefix="/inner")

    async def require_key(x_key: Annotated[str, Header()]) -> str:
        return x_key

    async def limit_query(limit: Annotated[int, Query(le=10)] = 5) -> int:
        return limit

    @inner.get("/{name}")
    @mark
    async def get_inner(name: str, request: Request) -> dict[str, Any]:
        return {"name": name, "parameters": request.path_params}

    router.include_router(inner, prefix="/one", dependencies=[Depends(require_key), PUBLIC], tags=["one"])
    router.include_router(inner, prefix="/two/{outer}", dependencies=[Depends(limit_query), allow(OPERATOR)])


CREATE_ROWS: Final = (
    "CREATE TABLE path_rows (name text)",
    "CREATE FUNCTION reject_late() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
    "IF NEW.name = 'late' THEN RAISE unique_violation USING CONSTRAINT = 'late'; END IF; "
    "IF NEW.name = 'conflict' THEN RAISE serialization_failure; END IF; RETURN NULL; END $$",
    "CREATE CONSTRAINT TRIGGER reject_late AFTER INSERT ON path_rows DEFERRABLE INITIALLY DEFERRED "
    "FOR EACH ROW EXECUTE FUNCTION reject_late()",
)
