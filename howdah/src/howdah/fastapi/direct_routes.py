"""Direct routes: routes of FastAPI that are served without FastAPI's router and its resolution of dependencies.

@router.get("/{order_id}", response_model=OrderOut, dependencies=[READ_ORDERS])
@direct
async def get_order(order_id: UUID, request: Request, orders: OrderReader) -> Response:
    return json_response(await orders.get(order_id), request)
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from http import HTTPStatus
from typing import Any, Final, TypeVar

from anyio import CancelScope
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi import __version__ as fastapi_version
from fastapi.exceptions import FastAPIError
from fastapi.routing import APIRoute
from starlette._exception_handler import wrap_app_handling_exceptions
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from howdah.fastapi._fastapi_internals import FUNCTION_STACK, IS_SUPPORTED, REQUEST_STACK
from howdah.fastapi._route_index import FoundRoute, RouteIndex
from howdah.fastapi._routes import RouteLists, iterate_all_routes, iterate_routers
from howdah.fastapi.access import find_rules
from howdah.fastapi.path_methods import get_route_path
from howdah.fastapi.route_rules import RuleFirst

if IS_SUPPORTED:
    from howdah.fastapi._compiled_routes import CannotCompile, CompiledRoute

EndpointT = TypeVar("EndpointT", bound=Callable[..., Any])

_MARK: Final = "howdah_direct"
# The key in the ASGI scope of the application that raises the error of the request.
_FAILURE_KEY: Final = "howdah.failure"

_log: Final = logging.getLogger("howdah.direct_routes")


def direct(endpoint: EndpointT) -> EndpointT:
    """Serve this route directly, if `configure_app` has set up the application. Write it below `@router.get(...)`.

    The route is declared as usual: parameters, dependencies, response model, OpenAPI. Everything is validated and
    checked as before, by the same types, and in the same order. All layers of `configure_app` and middleware apply.
    What is left out is FastAPI's work for each request: two thirds of its time.

    An application with a direct route that can't be served directly doesn't start (`RuntimeError`, with the reason).
    The endpoint and its dependencies must be `async def`. Forms, `BackgroundTasks`, streams of items, scopes of OAuth
    2.0, `max_body_size`, and path parameters that are not a whole segment, are not supported.

    FastAPI serves the route as before if

    - `dependency_overrides` replaces its rule or one of its dependencies,
    - the telemetry of FastAPI is on,
    - the version of FastAPI is older than 0.164.
    """
    setattr(getattr(endpoint, "__func__", endpoint), _MARK, True)  # a bound method has no attributes of its own
    return endpoint


class DirectRoutes:
    """The direct routes of an application. They are compiled when it starts, and again if a route was added since.

    With `notices_changes` it looks for added routes before each request. Otherwise the check of the rules does it.
    """

    def __init__(self, application: FastAPI, lists: RouteLists, *, notices_changes: bool) -> None:
        self._application = application
        self._lists = lists
        self._notices_changes = notices_changes
        self._version = 0
        self._index = RouteIndex(())
        self._served: dict[int, DirectRoute] = {}

    def prepare(self) -> None:
        """Compile the routes. Raises `RuntimeError` for a direct route that can't be served directly."""
        version = self._lists.update()
        routes = [*iterate_all_routes(self._application.routes)]
        marked = {position: each for position, each in enumerate(routes) if _is_marked(each)}
        self._served = {}
        if marked and IS_SUPPORTED:
            self._index = RouteIndex(routes)
            self._served = {
                position: _compile(each, self._index.found.get(position), self._application)
                for position, each in marked.items()
            }
            _log.debug("served directly: %s", "; ".join(map(_name, marked.values())))
        elif marked:
            _log.warning("FastAPI %s serves the direct routes itself: 0.164 is needed", fastapi_version)
        self._version = version

    def find(self, scope: Scope) -> DirectRoute | None:
        """The direct route of the request, with its path parameters in the scope. None: FastAPI answers it."""
        if self._version != (self._lists.update() if self._notices_changes else self._lists.version):
            self.prepare()
        if not self._served or scope.get("fastapi.telemetry") is not None:
            return None
        path = get_route_path(scope)
        segments = self._index.split(path)
        found = self._index.find(scope["method"], path, segments)
        if found is None:
            return None
        route = self._served.get(found.position)
        if route is None or not route.is_applicable():
            return None
        parameters = {name: segments[number] for number, name in found.parameters}
        outer = scope.get("path_params")
        scope["path_params"] = {**outer, **parameters} if outer else parameters
        return route


class DirectRoutesLayer:
    """The innermost ASGI middleware. It serves the direct routes, and passes other requests on to FastAPI."""

    def __init__(self, app: ASGIApp, application: FastAPI, routes: DirectRoutes) -> None:
        self._app = app
        self._routes = routes
        handlers = {
            key: handler
            for key, handler in application.exception_handlers.items()
            if key not in (Exception, HTTPStatus.INTERNAL_SERVER_ERROR)
        }
        # one for all requests, because it refers to itself
        self._exceptions = ExceptionMiddleware(_run_failure, handlers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._routes.find(scope) if scope["type"] == "http" else None
        if route is None:
            await self._app(scope, receive, send)
            return
        request, sender = Request(scope, receive, send), _Sender(send)
        try:
            await route.serve(request, receive, sender)
        except Exception as error:
            await self._answer(error, request, receive, sender)

    async def _answer(self, error: Exception, request: Request, receive: Receive, sender: _Sender) -> None:
        """Answer with the application's error handlers. As in FastAPI, they handle the errors of handlers, too."""

        async def fail(scope: Scope, receive: Receive, send: Send) -> None:
            if sender.has_started:
                await send({"type": "http.response.start"})  # so that no handler is called; it isn't sent
            raise error  # noqa: F821  # it is deleted when this function isn't called any more

        async def fail_in_route(scope: Scope, receive: Receive, send: Send) -> None:
            await wrap_app_handling_exceptions(fail, request)(scope, receive, send)

        request.scope[_FAILURE_KEY] = fail_in_route
        try:
            await self._exceptions(request.scope, receive, _discard if sender.has_started else sender)
        finally:
            # The scope and the traceback of the error refer to the functions above, which refer to the request and to
            # the error. Only the garbage collector would free them.
            del request.scope[_FAILURE_KEY], error


async def _run_failure(scope: Scope, receive: Receive, send: Send) -> None:
    await scope[_FAILURE_KEY](scope, receive, send)


class _Sender:
    """Passes messages on, and notices the start of the response."""

    __slots__ = ("_send", "has_started")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.has_started = False

    def __call__(self, message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            self.has_started = True
        return self._send(message)


async def _discard(message: Message) -> None:
    """Sends nothing."""


class DirectRoute:
    """A direct route: its rule, its compiled handler, and what FastAPI's router would set in the scope."""

    def __init__(self, found: FoundRoute, compiled: CompiledRoute, application: FastAPI) -> None:
        self._route = getattr(found.route, "original_route", found.route)
        self._included = getattr(found.route, "_route_context", None)
        self._compiled = compiled
        self._router = application.router
        rules = set(find_rules(found.route))
        self._rule = next((rule for rule in rules if not rule.is_public), None)
        self._calls = compiled.dependencies | rules
        provider = (self._included or self._route).dependency_overrides_provider
        self._providers = [each for each in {id(each): each for each in (application, provider)}.values() if each]

    def is_applicable(self) -> bool:
        """Whether no dependency is overridden, and FastAPI would check the rule first, too."""
        for each in self._providers:
            if each.dependency_overrides and not self._calls.isdisjoint(each.dependency_overrides):
                return False
        return self._rule is None or type(self._route.handle) is RuleFirst

    async def serve(self, request: Request, receive: Receive, send: Send) -> None:
        """Check the rule, run the handler, and send its response."""
        scope = request.scope
        scope["route"], scope["endpoint"] = self._route, self._route.endpoint
        scope.setdefault("router", self._router)
        if self._included is not None:
            scope["fastapi"] = {**scope.get("fastapi", {}), "effective_route_context": self._included}
        if self._rule is not None:
            self._rule.check_first(scope)
        if not self._compiled.needs_stacks:
            await (await self._compiled.handle(request))(scope, receive, send)
            return
        response = await self._run_with_stacks(request, receive, send)
        if response is None:
            raise FastAPIError("a dependency with `yield` has suppressed an exception: it must raise it again")

    async def _run_with_stacks(self, request: Request, receive: Receive, send: Send) -> Response | None:
        """Run the handler, and send its response. The result is None if a dependency has suppressed an exception.

        The dependencies with `yield` end as in FastAPI: before the response is sent, or afterwards. While they end,
        they aren't cancelled by a cancel scope of anyio around the request, such as that of a timeout in middleware.
        """
        scope, sent = request.scope, None
        with CancelScope() as cleanup:
            async with AsyncExitStack() as request_stack:
                scope[REQUEST_STACK] = request_stack
                try:
                    response = None
                    async with AsyncExitStack() as function_stack:
                        scope[FUNCTION_STACK] = function_stack
                        try:
                            response = await self._compiled.handle(request)
                        finally:
                            cleanup.shield = True
                    cleanup.shield = False
                    if response is not None:
                        await response(scope, receive, send)
                        sent = response
                finally:
                    cleanup.shield = True
        return sent


def _compile(route: Any, found: FoundRoute | None, application: FastAPI) -> DirectRoute:
    """Raises `RuntimeError` if the route can't be served directly."""
    original = getattr(route, "original_route", route)
    try:
        if not isinstance(original, APIRoute):
            raise CannotCompile("it isn't a route of FastAPI")
        if (own := _find_own_router(application)) is not None:
            raise CannotCompile(f"{own.__name__}, the class of a router, may choose routes in its own way")
        if len({*find_rules(route)}) > 1:
            raise CannotCompile("it has several rules")
        compiled = CompiledRoute(getattr(route, "_route_context", None) or original)
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
