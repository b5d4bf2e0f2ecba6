"""Direct routes: routes of FastAPI that are served without FastAPI's router and its resolution of dependencies.

@router.get("/{order_id}", response_model=OrderOut, dependencies=[READ_ORDERS])
@direct
async def get_order(order_id: UUID, request: Request, orders: OrderReader) -> Response:
    return json_response(await orders.get(order_id), request)
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from http import HTTPStatus
from typing import Any, Final, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import FastAPIError
from fastapi.routing import APIRoute
from starlette._exception_handler import wrap_app_handling_exceptions
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from howdah.fastapi._compiled_routes import FUNCTION_STACK, REQUEST_STACK, CannotCompile, CompiledRoute
from howdah.fastapi._route_index import FoundRoute, RouteIndex
from howdah.fastapi._routes import RouteLists
from howdah.fastapi.access import AccessRule, find_rules
from howdah.fastapi.path_methods import get_route_path

EndpointT = TypeVar("EndpointT", bound=Callable[..., Any])

_MARK: Final = "howdah_direct"


def direct(endpoint: EndpointT) -> EndpointT:
    """Serve this route directly, if `configure_app` has set up the application. Write it below `@router.get(...)`.

    The route is declared as usual: parameters, dependencies, response model, OpenAPI. Everything is validated and
    checked as before, by the same types, and in the same order. All layers of `configure_app` and middleware apply.
    What is left out is FastAPI's work for each request: two thirds of its time.

    An application with a direct route that can't be served directly doesn't start (`RuntimeError`, with the reason).
    The endpoint and its dependencies must be `async def`. Forms, `BackgroundTasks`, streams of items, scopes of OAuth
    2.0, `max_body_size`, and path parameters that are not a whole segment, are not supported.

    If `dependency_overrides` replaces one of its dependencies, or FastAPI's telemetry is on, FastAPI serves the route.
    """
    setattr(endpoint, _MARK, True)
    return endpoint


class DirectRoutes:
    """The direct routes of an application. They are compiled when it starts, and again if a route was added since."""

    def __init__(self, application: FastAPI) -> None:
        self._application = application
        self._lists = RouteLists(application.router)
        self._index = RouteIndex(())
        self._served: dict[int, DirectRoute] = {}

    def prepare(self) -> None:
        """Compile the routes. Raises `RuntimeError` for a direct route that can't be served directly."""
        index = RouteIndex(self._application.routes)
        for each in index.others:
            if _is_marked(each):
                raise _cannot_serve(each, "a path parameter isn't a whole segment")
        self._served = {each.position: _compile(each) for each in index.found if _is_marked(each.route)}
        self._index = index
        self._lists.note()

    def find(self, scope: Scope) -> DirectRoute | None:
        """The direct route of the request, with its path parameters in the scope. None: FastAPI answers it."""
        if self._lists.have_changed():
            self.prepare()
        if not self._served or scope.get("fastapi.telemetry") is not None:
            return None
        path = get_route_path(scope)
        segments = path.split("/")
        found = self._index.find(scope["method"], segments, path)
        route = None if found is None else self._served.get(found.position)
        if found is None or route is None or route.is_overridden(self._application):
            return None
        parameters = {name: segments[number] for number, name in found.parameters}
        scope["path_params"] = {**scope.get("path_params", {}), **parameters}
        return route


class DirectRoutesLayer:
    """The innermost ASGI middleware. It serves the direct routes, and passes other requests on to FastAPI."""

    def __init__(self, app: ASGIApp, application: FastAPI, routes: DirectRoutes) -> None:
        self._app = app
        self._application = application
        self._routes = routes
        handlers = {
            key: handler
            for key, handler in application.exception_handlers.items()
            if key not in (Exception, HTTPStatus.INTERNAL_SERVER_ERROR)
        }
        exceptions = ExceptionMiddleware(app, handlers)
        self._handlers = exceptions._exception_handlers, exceptions._status_handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._routes.find(scope) if scope["type"] == "http" else None
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["starlette.exception_handlers"] = self._handlers
        request = Request(scope, receive, send)
        serve = wrap_app_handling_exceptions(partial(route.serve, self._application, request), request)
        # twice, as in FastAPI: the application's handlers also answer the errors that a handler raises
        await wrap_app_handling_exceptions(serve, request)(scope, receive, send)


class DirectRoute:
    """A direct route: its rule, its compiled handler, and what FastAPI's router would set in the scope."""

    def __init__(self, found: FoundRoute, rule: AccessRule | None, compiled: CompiledRoute) -> None:
        included = getattr(found.route, "_route_context", None)
        route = getattr(found.route, "original_route", found.route)
        self._scope = {"route": route, "endpoint": route.endpoint}
        self._included = included
        self._rule = rule
        self._compiled = compiled
        self._calls = compiled.calls if rule is None else compiled.calls | {rule}

    def is_overridden(self, application: FastAPI) -> bool:
        overrides = application.dependency_overrides
        return bool(overrides) and not self._calls.isdisjoint(overrides)

    async def serve(self, application: FastAPI, request: Request, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the rule, run the handler, and send its response."""
        scope.update(self._scope)
        scope.setdefault("router", application.router)
        if self._included is not None:
            scope["fastapi"] = {**scope.get("fastapi", {}), "effective_route_context": self._included}
        if self._rule is not None:
            self._rule.check_first(scope)
        if not self._compiled.needs_stacks:
            response = await self._compiled.handle(request)
            await response(scope, receive, send)
            return
        # The dependencies with `yield` end as in FastAPI: before the response is sent, or afterwards.
        is_sent = False
        async with AsyncExitStack() as request_stack:
            scope[REQUEST_STACK] = request_stack
            async with AsyncExitStack() as function_stack:
                scope[FUNCTION_STACK] = function_stack
                response = await self._compiled.handle(request)
            await response(scope, receive, send)
            is_sent = True
        if not is_sent:
            raise FastAPIError(
                "a dependency with `yield` has suppressed an exception: it must raise the exception again"
            )


def _compile(found: FoundRoute) -> DirectRoute:
    route = found.route
    included = getattr(route, "_route_context", None) or getattr(route, "original_route", route)
    rules = [*{id(rule): rule for rule in find_rules(route)}.values()]
    try:
        if not isinstance(getattr(included, "original_route", included), APIRoute):
            raise CannotCompile("it is not a route of FastAPI")
        if len(rules) > 1:
            raise CannotCompile("it has several rules")
        compiled = CompiledRoute(included)
    except CannotCompile as error:
        raise _cannot_serve(route, str(error)) from error
    return DirectRoute(found, rules[0] if rules else None, compiled)


def _is_marked(route: Any) -> bool:
    return hasattr(getattr(route, "endpoint", None), _MARK)


def _cannot_serve(route: Any, reason: str) -> RuntimeError:
    methods = ",".join(sorted(route.methods or ()))
    return RuntimeError(f"{methods} {route.path} can't be a direct route: {reason}. Change this, or remove @direct")
