"""Direct routes: routes of FastAPI that are served without FastAPI's router and its resolution of dependencies.

@router.get("/{order_id}", response_model=OrderOut, dependencies=[READ_ORDERS])
@direct
async def get_order(order_id: UUID, request: Request, orders: OrderReader) -> Response:
    return json_response(await orders.get(order_id), request)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi import __version__ as fastapi_version
from fastapi.routing import APIRoute, request_response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from howdah.fastapi import _fastapi_internals as internals
from howdah.fastapi._error_handlers import add_handlers_of
from howdah.fastapi._native_telemetry import TELEMETRY_KEY, report_route
from howdah.fastapi._route_index import FoundRoute, RouteIndex
from howdah.fastapi._route_lists import RouteLists, iterate_routers
from howdah.fastapi._routes import iterate_all_routes
from howdah.fastapi._shared_response import SharedResponse, share_response
from howdah.fastapi.access import find_rules
from howdah.fastapi.path_methods import ROUTE_PATH_KEY, get_route_path
from howdah.fastapi.route_rules import RuleFirst

if internals.IS_SUPPORTED:
    from howdah.fastapi._compiled_routes import CannotCompile, CompiledRoute

EndpointT = TypeVar("EndpointT", bound=Callable[..., Any])

_MARK: Final = "howdah_direct"
# The key in the ASGI scope of the ASGI application that `DirectRoutesLayer` runs inside of the error handlers.
_APP_KEY: Final = "howdah.direct_app"

_log: Final = logging.getLogger("howdah.direct_routes")


def direct(endpoint: EndpointT) -> EndpointT:
    """Serve this route directly, if `configure_app` has set up the application. Write it below `@router.get(...)`.

    The route is declared as usual: parameters, dependencies, response model, OpenAPI. Everything is validated and
    checked as before, by the same types, and in the same order. All layers of `configure_app` and middleware apply.
    Only FastAPI's own work for each request is skipped: the search for the route and the resolution of dependencies.

    An application with a direct route that can't be served directly doesn't start (`RuntimeError`, with the reason).
    The endpoint and its dependencies must be `async def`. Forms, `BackgroundTasks`, streams of items, scopes of OAuth
    2.0, `max_body_size`, and path parameters that are not a whole segment, are not supported.

    FastAPI serves the route as before if

    - `dependency_overrides` replaces its rule or one of its dependencies,
    - FastAPI makes spans of the operations within each request: a tracer provider of OpenTelemetry is set, and the
      application was created without `FastAPI(telemetry={"operation_spans": False})`,
    - the version of FastAPI is older than 0.164.
    """
    setattr(getattr(endpoint, "__func__", endpoint), _MARK, True)  # a bound method has no attributes of its own
    return endpoint


class DirectRoutes:
    """The direct routes of an application. They are compiled at startup, and again after a route was added.

    With `notices_changes`, `find` updates `lists` before each request, and so notices added routes. Without it,
    `RuleCheck` must have updated the same `lists`.
    """

    def __init__(self, application: FastAPI, lists: RouteLists, *, notices_changes: bool) -> None:
        self._application = application
        self._lists = lists
        self._notices_changes = notices_changes
        self._version = 0
        self._index = RouteIndex(())
        self._served: dict[int, DirectRoute] = {}
        self._has_warned_about_telemetry = False

    def prepare(self) -> None:
        """Compile the routes. Raises `RuntimeError` for a direct route that can't be served directly."""
        version = self._lists.update()
        routes = [*iterate_all_routes(self._application.routes)]
        marked = {position: each for position, each in enumerate(routes) if _is_marked(each)}
        self._served = {}
        if marked and internals.IS_SUPPORTED:
            self._index = RouteIndex(routes)
            self._served = {
                position: _compile(each, self._index.found.get(position), self._application)
                for position, each in marked.items()
            }
            self._log_served(marked)
        elif marked:
            _log.warning("FastAPI %s serves the direct routes itself: 0.164 is needed", fastapi_version)
        self._version = version

    def _warn_about_telemetry(self) -> None:
        """Log once that FastAPI's own telemetry makes spans that a direct route doesn't make."""
        if not self._has_warned_about_telemetry:
            self._has_warned_about_telemetry = True
            _log.warning(
                "FastAPI serves the direct routes itself, because a tracer provider of OpenTelemetry is set, and so "
                "FastAPI makes spans of the operations within each request. To turn only these spans off, create the "
                "application with FastAPI(telemetry={'operation_spans': False})"
            )

    def _log_served(self, marked: Mapping[int, Any]) -> None:
        """Log which routes are served directly, and which of the marked ones are hidden by a route before them."""
        served = []
        for position, route in marked.items():
            hidden_by = self._index.found[position].find_hiding_prefix()
            if hidden_by is None:
                served.append(_name(route))
            else:
                _log.warning(
                    "FastAPI serves the direct route %s itself, because a route whose path begins with %s was declared "
                    "before it, and may match the same paths: declare that one later",
                    *(_name(route), hidden_by or "/"),
                )
        _log.debug("served directly: %s", "; ".join(served))

    def find(self, scope: Scope) -> DirectRoute | None:
        """The direct route of the request. Its path parameters are set in the scope. None if FastAPI must answer."""
        if self._version != (self._lists.update() if self._notices_changes else self._lists.version):
            self.prepare()
        if not self._served:
            return None
        telemetry = scope.get(TELEMETRY_KEY)
        if telemetry is not None and telemetry.tracer is not None:
            self._warn_about_telemetry()
            return None
        path = get_route_path(scope)
        segments = self._index.split(path)
        found = self._index.find(scope["method"], path, segments)
        if found is None:
            return None
        route = self._served.get(found.position)
        if route is None or not route.is_applicable():
            return None
        parameters = {}
        for number, name in found.parameters:
            parameters[name] = segments[number]
        outer = scope.get("path_params")
        scope["path_params"] = {**outer, **parameters} if outer else parameters
        if telemetry is not None:
            report_route(scope, route.path_template)
        return route


class DirectRoutesLayer:
    """The innermost ASGI middleware. It serves the direct routes, and passes other requests on to FastAPI."""

    def __init__(self, app: ASGIApp, application: FastAPI, routes: DirectRoutes) -> None:
        self._app = app
        self._routes = routes
        # Shared by all requests. It refers to itself, so only the garbage collector could free one for each request.
        self._exceptions = add_handlers_of(application, _run_app_of_request)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._routes.find(scope) if scope["type"] == "http" else None
        if route is None:
            await self._app(scope, receive, send)
            return
        if route.needs_stacks:
            scope[_APP_KEY] = route
            await self._exceptions(scope, receive, send)
            return
        request, shared = Request(scope, receive, send), share_response(send)
        try:
            route.begin(scope)
            response = await route.handle(request)
            if type(response) is Response and response.background is None:
                await shared.send_response(response.status_code, response.raw_headers, response.body)
            else:
                await response(scope, receive, shared)
        except Exception as error:
            await self._answer(error, request, receive, shared)

    async def _answer(self, error: Exception, request: Request, receive: Receive, shared: SharedResponse) -> None:
        """Answer with the application's error handlers. As in FastAPI, they also handle an error of such a handler."""
        has_started = shared.status is not None

        async def fail(scope: Scope, receive: Receive, send: Send) -> None:
            if has_started:
                await send({"type": "http.response.start"})  # so that no handler is called; `_discard` drops it
            raise error  # noqa: F821  # it is deleted below, after this

        async def fail_in_route(scope: Scope, receive: Receive, send: Send) -> None:
            await internals.wrap_app_handling_exceptions(fail, request)(scope, receive, send)

        request.scope[_APP_KEY] = fail_in_route
        try:
            await self._exceptions(request.scope, receive, _discard if has_started else shared)
        finally:
            # The scope and the traceback of the error refer to the functions above, which refer to the request and to
            # the error. Only the garbage collector would free them.
            del request.scope[_APP_KEY], error


async def _run_app_of_request(scope: Scope, receive: Receive, send: Send) -> None:
    await scope[_APP_KEY](scope, receive, send)


async def _discard(message: Message) -> None:
    """Sends nothing."""


class DirectRoute:
    """A direct route: its rule, its compiled handler, and the values that FastAPI's router would set in the scope.

    If it `needs_stacks`, call it as an ASGI application. Otherwise call `begin` and `handle`, which takes less time.
    """

    def __init__(self, found: FoundRoute, compiled: CompiledRoute, application: FastAPI) -> None:
        self._route = getattr(found.route, "original_route", found.route)
        self._included = getattr(found.route, "_route_context", None)
        self.path_template: str = (self._included or self._route).path_format
        self._path: str = (self._included or self._route).path
        self._application = application
        rules = set(find_rules(found.route))
        self._rule = next((rule for rule in rules if not rule.is_public), None)
        self._calls = compiled.dependencies | rules
        self.needs_stacks, self.handle = compiled.needs_stacks, compiled.handle
        # FastAPI's own function opens the stacks of the dependencies with `yield`, and handles the errors.
        self._app = request_response(compiled.handle)

    def is_applicable(self) -> bool:
        """Whether no dependency is overridden, and FastAPI would check the rule first, too."""
        overrides = self._application.dependency_overrides
        if overrides and not self._calls.isdisjoint(overrides):
            return False
        return self._rule is None or type(self._route.handle) is RuleFirst

    def begin(self, scope: Scope) -> None:
        """Set the same values in the scope as FastAPI's router, and check the rule."""
        scope["route"], scope["endpoint"], scope[ROUTE_PATH_KEY] = self._route, self._route.endpoint, self._path
        scope.setdefault("router", self._application.router)
        if self._included is not None:
            scope["fastapi"] = {**scope.get("fastapi", {}), "effective_route_context": self._included}
        if self._rule is not None:
            self._rule.check_first(scope)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.begin(scope)
        await self._app(scope, receive, send)


def _compile(route: Any, found: FoundRoute | None, application: FastAPI) -> DirectRoute:
    """Raises `RuntimeError` if the route can't be served directly."""
    original = getattr(route, "original_route", route)
    try:
        if not isinstance(original, APIRoute):
            raise CannotCompile("it isn't an HTTP route of FastAPI")
        if (own := _find_own_router(application)) is not None:
            raise CannotCompile(f"{own.__name__}, the class of a router, may choose routes in its own way")
        if len({*find_rules(route)}) > 1:
            raise CannotCompile("it has several rules")
        included = getattr(route, "_route_context", None) or original
        if included.dependency_overrides_provider not in (None, application):
            raise CannotCompile("it belongs to another application, and uses the `dependency_overrides` of that one")
        compiled = CompiledRoute(included)
        if found is None:
            raise CannotCompile("each parameter of its path must be a whole segment, without a convertor")
    except CannotCompile as error:
        raise RuntimeError(
            f"{_name(route)} can't be a direct route: {error}. Change this, or remove @direct"
        ) from error
    return DirectRoute(found, compiled, application)


def _find_own_router(application: FastAPI) -> type | None:
    """The class of a router that decides itself which paths match."""
    for each in iterate_routers(application.router, mounted=False):
        own = type(each)
        if any(getattr(own, name) is not getattr(APIRouter, name) for name in ("__call__", "app", "handle", "matches")):
            return own
    return None


def _is_marked(route: Any) -> bool:
    return hasattr(getattr(route, "endpoint", None), _MARK)


def _name(route: Any) -> str:
    methods = ",".join(sorted(getattr(route, "methods", None) or ()))
    return f"{methods} {route.path}".strip()
