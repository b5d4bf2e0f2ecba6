"""Routes that can't be direct ones, and the parts of FastAPI and Starlette that direct routes replace or use."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import fastapi
import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, Response, Security
from fastapi.dependencies import utils
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute
from fastapi.security import SecurityScopes
from starlette.types import Receive, Scope, Send

from howdah import Database
from howdah.fastapi import allow, configure_app, direct
from howdah.fastapi._fastapi_internals import IS_SUPPORTED
from howdah.fastapi._json_responses import build_json_response
from howdah.fastapi._route_lists import RouteLists
from howdah.fastapi.direct_routes import DirectRoutes

_SUPPORTED: Final = (0, 164)

# If a version of FastAPI has other digests, read what has changed in these functions, change `_compiled_routes`,
# `_route_parameters` and `direct_routes` in the same way, and add its digests here.
_READ: Final = {
    "0.165.0": {
        "_populate_api_route_state": "f4631f02941b361d",
        "get_request_handler": "d959336b716257f3",
        "request_response": "69a7733a62388770",
        "serialize_response": "69d99624855bb669",
        "request_body_to_args": "8ae56248184ce989",
        "request_params_to_args": "e028df88c5ead125",
        "solve_dependencies": "19825365bd06b12b",
        "_request_param_model_to_args": "3cf0e28c26c656be",
        "_get_multidict_value": "1c0a3bde8f297e56",
        "_solve_generator": "15a7cbc2eb614099",
    }
}

needs_support = pytest.mark.skipif(
    not IS_SUPPORTED, reason="FastAPI is older than 0.164, so it serves the direct routes"
)


def test_direct_routes_are_served_directly_since_fastapi_0_164() -> None:
    major, minor = (int(each) for each in fastapi.__version__.split(".")[:2])
    assert ((major, minor) >= _SUPPORTED) is IS_SUPPORTED


@pytest.mark.skipif(fastapi.__version__ not in _READ, reason="nobody has read this version's functions")
def test_the_functions_of_fastapi_that_direct_routes_replace_are_those_that_were_read() -> None:
    read = _READ[fastapi.__version__]
    functions = {name: getattr(fastapi.routing, name, None) or getattr(utils, name) for name in read}
    digests = {
        name: hashlib.sha256(inspect.getsource(each).encode()).hexdigest()[:16] for name, each in functions.items()
    }
    assert digests == read


def test_a_response_whose_json_is_ready_is_one_of_starlette() -> None:
    headers = {"Location": "/issues/1"}
    built = build_json_response(b"{}", status=201, headers=[(b"location", b"/issues/1")])
    assert vars(built) == vars(Response(b"{}", 201, headers, "application/json"))
    assert type(built) is Response


async def _endpoint() -> None: ...


async def _with_background_tasks(tasks: BackgroundTasks) -> None: ...


async def _with_scopes(scopes: SecurityScopes) -> None: ...


def _not_async() -> None: ...


def _generator() -> Any:
    yield


async def _items() -> AsyncIterator[int]:
    yield 1


class _Page:
    def __init__(self, limit: int = 50) -> None: ...


class _Unhashable:
    __hash__ = None  # type: ignore[assignment]

    async def __call__(self) -> None: ...


class _OwnMatches(APIRoute):
    def matches(self, scope: Scope) -> Any:
        return super().matches(scope)


class _OwnHandle(APIRoute):
    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await super().handle(scope, receive, send)


class _OwnApplication(APIRoute):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.app = _wrap(self.app)


def _wrap(app: Any) -> Any:
    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)

    return wrapped


class _HandlerWithoutSuper(APIRoute):
    def get_route_handler(self) -> Any:
        return APIRoute.get_route_handler(self)


class _OwnRouter(APIRouter):
    def matches(self, scope: Scope) -> Any:
        return super().matches(scope)


def _depends(dependency: Any) -> Callable[[FastAPI], None]:
    # a default, because FastAPI can't resolve an annotation that names an argument
    marker = Depends(dependency)

    async def endpoint(value: Any = marker) -> None: ...

    return lambda app: app.add_api_route("/issues", direct(endpoint))


def _declare(path: str = "/issues", endpoint: Any = _endpoint, **options: Any) -> Callable[[FastAPI], None]:
    async def own(*args: Any, **values: Any) -> None: ...

    return lambda app: app.add_api_route(path, direct(own if endpoint is _endpoint else endpoint), **options)


def _with_class(route_class: type[APIRoute]) -> Callable[[FastAPI], None]:
    def declare(app: FastAPI) -> None:
        app.router.route_class = route_class
        _depends(_endpoint)(app)

    return declare


def _with_router(app: FastAPI) -> None:
    router = _OwnRouter()
    router.add_api_route("/others", _endpoint)
    app.include_router(router)
    _depends(_endpoint)(app)


def _with_route_of_another_application(app: FastAPI) -> None:
    other = FastAPI()
    _depends(_endpoint)(other)
    app.router.routes.extend(other.routes)


def _prepare(declare: Callable[[FastAPI], None]) -> None:
    app = FastAPI()
    declare(app)
    DirectRoutes(app, RouteLists(app.router), notices_changes=True).prepare()


@needs_support
@pytest.mark.parametrize(
    ("declare", "reason"),
    [
        (_depends(_not_async), "_not_async isn't `async def`"),
        (_depends(_generator), "_generator isn't `async def`"),
        (_depends(_Page), "_Page isn't `async def`: use an `async def` that returns one"),
        (_depends(_Unhashable()), "can't be hashed"),
        (_depends(_with_background_tasks), "has BackgroundTasks"),
        (_depends(_with_scopes), "has scopes of OAuth 2.0"),
        (_declare(endpoint=_not_async), "_not_async isn't `async def`"),
        (_declare(endpoint=_items, response_class=StreamingResponse), "streams items"),
        (_declare(dependencies=[Security(_endpoint, scopes=["read"])]), "has scopes of OAuth 2.0"),
        (_declare(dependencies=[allow("reader"), allow("writer")]), "has several rules"),
        (_declare(methods=["POST"], max_body_size=10), "has a `max_body_size` of its own"),
        (_declare("/files/{name:path}"), "must be a whole segment"),
        (_declare("/issue-{number}"), "must be a whole segment"),
        (lambda app: app.add_route("/issues", direct(lambda request: Response())), "isn't an HTTP route of FastAPI"),
        (_with_class(_OwnMatches), r"_OwnMatches has a method matches\(\)"),
        (_with_class(_OwnHandle), r"_OwnHandle has a method handle\(\)"),
        (_with_class(_OwnApplication), "_OwnApplication replaces the application"),
        (_with_class(_HandlerWithoutSuper), r"_HandlerWithoutSuper doesn't call super\(\)"),
        (_with_router, "_OwnRouter, the class of a router"),
        (_with_route_of_another_application, "it belongs to another application"),
    ],
)
def test_a_route_that_cant_be_served_directly_is_rejected_with_the_reason(
    declare: Callable[[FastAPI], None], reason: str
) -> None:
    with pytest.raises(RuntimeError, match=f"can't be a direct route: .*{reason}"):
        _prepare(declare)


@needs_support
def test_a_direct_route_that_another_one_hides_is_named(caplog: pytest.LogCaptureFixture) -> None:
    async def get_issue(number: int) -> None:
        """A route that FastAPI serves."""

    def declare(app: FastAPI) -> None:
        app.add_api_route("/issues/{number:int}", get_issue)
        app.add_api_route("/issues/latest", direct(_endpoint))
        app.add_api_route("/notes", direct(_endpoint))

    with caplog.at_level("DEBUG", "howdah.direct_routes"):
        _prepare(declare)
    hidden, served = caplog.messages
    assert hidden.startswith("FastAPI serves the direct route GET /issues/latest itself, because a route")
    assert served == "served directly: GET /notes"


@needs_support
async def test_an_application_with_such_a_route_doesnt_start() -> None:
    app = FastAPI()
    _declare("/files/{name:path}")(app)
    configure_app(app, database=lambda: Database("postgresql+asyncpg://127.0.0.1:1/never_opened"))
    with pytest.raises(RuntimeError):
        async with app.router.lifespan_context(app):
            pass
