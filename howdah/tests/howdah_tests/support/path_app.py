"""An application with all kinds of routes. Each endpoint gets the mark that is passed."""

# No `from __future__ import annotations`: FastAPI can't resolve the name of a local type in a string.

import asyncio
from typing import Annotated, Any, Final
from urllib.parse import quote

from fastapi import APIRouter, Depends, FastAPI, Header, Query, Request
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from howdah import Database, Unavailable
from howdah.fastapi import (
    PUBLIC,
    ProblemException,
    allow,
    configure_app,
    find_principal,
)
from howdah_tests.support.path_errors import ForeignError, SecondError, UnhandledError, answer_foreign, raise_another
from howdah_tests.support.path_inputs import (
    PathItemIn,
    add_bodies,
    add_parameters,
    build_idempotent_router,
    build_strict_router,
)
from howdah_tests.support.path_outputs import add_responses, add_sessions, note_reader
from howdah_tests.support.path_pairs import Mark
from howdah_tests.support.principals import CUSTOMER, OPERATOR, Caller, authenticate
from howdah_tests.support.untraced import create_fastapi

UNREACHABLE: Final = "postgresql+asyncpg://nobody@127.0.0.1:1/none"
MAX_BODY: Final = 2_000


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
    """The application. With `mounted` it has another one inside, with the same routes and an internal port."""
    app = create_fastapi()
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
            "resources": [note_reader],
            **options,
        },
    )
    app.add_middleware(AddHeader, name=b"x-outer")
    app.add_exception_handler(ForeignError, answer_foreign)
    app.add_exception_handler(SecondError, raise_another)
    add_routes(app, mark)
    if mounted:
        inner = create_path_app(mark, url, internal_port=1)
        app.mount("/mounted", inner)
        app.mount("/of/{tenant}", inner)
    return app


def add_routes(app: FastAPI, mark: Mark) -> None:
    for add in (add_parameters, add_bodies, add_responses, _add_rules, add_sessions, _add_overlaps, _add_included):
        router = APIRouter(dependencies=[] if add in (_add_rules, _add_included) else [PUBLIC])
        add(router, mark)
        app.include_router(router)
    app.include_router(build_strict_router(mark))
    app.include_router(build_idempotent_router(mark))

    # without a router, and so without a context of an inclusion
    @app.get("/outside/{name}", dependencies=[PUBLIC])
    @mark
    async def get_outside(name: str, request: Request, limit: int = 5) -> dict[str, Any]:
        return {"name": name, "limit": limit, "url": str(request.url_for("get_outside", name="x"))}


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
