"""The layers of an application that `configure_app` has set up, as one ASGI middleware.

As separate middlewares they would make more function calls for each request.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, cast

from fastapi import FastAPI
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from howdah.fastapi._own_state import OwnStates
from howdah.fastapi._shared_response import Header, SharedResponse, share_response
from howdah.fastapi.authentication import Authentication
from howdah.fastapi.body_limits import BodyLimiter, BodyTimeout, BodyTooLarge, LimitedBody, build_limit_response
from howdah.fastapi.disconnects import end_without_client, get_logged_status, is_client_gone
from howdah.fastapi.http_rules import DEFAULT_HEADERS, HEADERS_WITH_ETAG, HTTPRules, reject_host
from howdah.fastapi.path_methods import get_route_path
from howdah.fastapi.problem import problem_response
from howdah.fastapi.rate_limits import CountedRequest, RateLimiter, find_network
from howdah.fastapi.resources import OPENED_KEY
from howdah.fastapi.security_headers import SECURITY_HEADERS, add_security_headers
from howdah.fastapi.websockets import WebSocketErrors

if TYPE_CHECKING:
    from howdah.fastapi.metrics import RequestMetrics  # needs an extra
    from howdah.fastapi.request_log import RequestLog  # needs an extra


_HEADERS_WITH_ETAG: Final = (*HEADERS_WITH_ETAG, *SECURITY_HEADERS)
_DEFAULT_HEADERS: Final = (*DEFAULT_HEADERS, *SECURITY_HEADERS)
# Constants, because looking up a member of an enum is slow.
_METHOD_NOT_ALLOWED: Final = int(HTTPStatus.METHOD_NOT_ALLOWED)
_INTERNAL_SERVER_ERROR: Final = int(HTTPStatus.INTERNAL_SERVER_ERROR)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """The layers of an application. A layer that it doesn't have is None."""

    http_rules: HTTPRules
    metrics: RequestMetrics | None = None
    request_log: RequestLog | None = None
    body_limiter: BodyLimiter | None = None
    rate_limiter: RateLimiter | None = None
    authentication: Authentication | None = None


def find_layers(app: FastAPI) -> Layers | None:
    """The layers that `configure_app` has added to the application, or None if it has not."""
    for each in app.user_middleware:
        if cast(object, each.cls) is LayersMiddleware:
            return cast(Layers, each.kwargs["layers"])
    return None


class LayersMiddleware:
    """ASGI middleware that runs the layers.

    A request is admitted in this order: the host and the method, the limit of its address, the authentication, the
    limit of its principal. An error that no handler knows is logged, and becomes a 500. Each response gets the headers
    of the layers. When the request has ended, it is logged and counted, even after an error.
    """

    def __init__(self, app: ASGIApp, layers: Layers) -> None:
        self._app = app
        self._http_rules = layers.http_rules
        self._metrics, self._request_log = layers.metrics, layers.request_log
        self._body_limiter, self._rate_limiter = layers.body_limiter, layers.rate_limiter
        self._authentication = layers.authentication
        self._own_states = OwnStates()
        self._websocket_app = WebSocketErrors(self._run_websocket)

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        kind = scope["type"]
        if kind == "http":
            return self._serve(scope, receive, send)
        return self._serve_websocket(scope, receive, send) if kind == "websocket" else self._app(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application for an HTTP request, log the request and count it."""
        started = time.perf_counter()
        application, path = scope["app"], get_route_path(scope)  # a mounted application changes them in the same scope
        response = share_response(send)
        outer_count = len(response.before_start)
        request = _Request(scope, path, self._http_rules)
        response.before_start.append(request.complete)
        request_log = self._request_log
        token = None
        if request_log is not None:
            token, request.id_header = request_log.begin(scope)
        failed_status: int | None = None
        try:
            if self._body_limiter is not None and (body := self._body_limiter.limit(scope, receive, response)):
                request.body, receive = body, body.receive
            rejection = self._http_rules.find_rejection(scope, path)
            if rejection is not None:
                await rejection(scope, receive, response)
            elif scope["method"] != "HEAD":
                await self._run(request, scope, receive, response)
            else:
                request.scope = self._http_rules.copy_for_head(scope)
                app = partial(self._run, request)
                await self._http_rules.answer_head(app, scope, request.scope, receive, response)
        except Exception as error:
            error_response = self._handle_error(error, request, is_started=response.status is not None)
            if error_response is None:
                failed_status = _INTERNAL_SERVER_ERROR  # Starlette sends it, outside of this middleware
                raise
            request.is_replaced = True
            response.drop_inner(outer_count + 1)
            await error_response(scope, receive, response)
        finally:
            if request.body is not None:
                request.body.end()
            # Otherwise the response and the request would refer to each other until the garbage collector frees them.
            response.drop_inner(outer_count)
            seconds = time.perf_counter() - started
            status = get_logged_status(scope, response.status or failed_status)
            if request_log is not None and token is not None:
                request_log.end(token, scope, status, seconds, is_outermost=request.id_header is not None)
            if self._metrics is not None:
                self._metrics.record_request(application, path, scope, status, seconds)

    async def _run(self, request: _Request, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application, unless a limit or the authentication rejects the request.

        If the client has disconnected, no error is raised.
        """
        response = share_response(send)
        outer_state, own_state = scope.get("state", {}), None
        if outer_state.get(OPENED_KEY) is not self._own_states.opened:
            own_state = self._own_states.find(scope)
            if own_state is not None:
                scope["state"] = own_state
        try:
            rejection = await self._admit(request, scope)
            await (self._app if rejection is None else rejection)(scope, receive, response)
        except (ClientDisconnect, OSError) as error:
            if not is_client_gone(error, response):
                raise
        finally:
            if request.has_slot:
                request.release_slot()
            if own_state is not None:
                scope["state"] = outer_state
        if not response.is_complete:
            await end_without_client(scope, receive, response)

    async def _admit(self, request: _Request, scope: Scope) -> ASGIApp | None:
        """Count and authenticate the request. Returns the response if it is rejected."""
        limiter, address = self._rate_limiter, None
        if limiter is not None and request.path not in limiter.exempt_paths:
            address = find_network(scope)
            rejection = limiter.count_address(address, time.monotonic())
            if rejection is not None:
                return rejection
        if self._authentication is not None:
            rejection = await self._authentication.set_principal(scope, request.path)
            if rejection is not None:
                return rejection
        if limiter is None or address is None:
            return None
        # The time is read again, because the authentication may have taken seconds.
        return limiter.count_principal(request, scope, address, time.monotonic())

    def _handle_error(self, error: Exception, request: _Request, *, is_started: bool) -> ASGIApp | None:
        """Log an error that no handler knows, and return the response. The errors of a limited body aren't logged.

        Returns None if the error must be raised: the response has started, or there is no log.
        """
        if isinstance(error, BodyTooLarge | BodyTimeout) and request.body is not None and not is_started:
            return build_limit_response(error)  # middleware without error handlers has read the body
        if self._request_log is None:
            return None
        # Handled here and not by Starlette, so that the response and the traceback have the request id.
        self._request_log.log_error(error, is_started=is_started)
        return None if is_started else problem_response(HTTPStatus.INTERNAL_SERVER_ERROR, "internal-error")

    async def _serve_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._http_rules.allows_host(scope, get_route_path(scope)):
            await reject_host(scope, receive, send)
            return
        outer_state, own_state = scope.get("state", {}), self._own_states.find(scope)
        if own_state is not None:
            scope["state"] = own_state
        try:
            await self._websocket_app(scope, receive, send)
        finally:
            if own_state is not None:
                scope["state"] = outer_state

    async def _run_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = _Request(scope, get_route_path(scope), self._http_rules)
        try:
            rejection = await self._admit(request, scope)
            await (self._app if rejection is None else rejection)(scope, receive, send)
        finally:
            if request.has_slot:
                request.release_slot()


class _Request(CountedRequest):
    """One request, and the data from which the layers complete the headers of its response."""

    id_header: Header | None = None
    body: LimitedBody | None = None
    is_replaced = False
    """Whether the response for an error has replaced that of the application."""

    def __init__(self, scope: Scope, path: str, http_rules: HTTPRules) -> None:
        self.scope, self.path = scope, path
        self._http_rules, self._root_path = http_rules, scope.get("root_path", "")
        # read now, because inner middleware may change it in the same scope
        self._is_over_tls = scope.get("scheme") == "https"

    def complete(self, response: SharedResponse) -> None:
        """Complete the headers of the response when it starts."""
        if not self.is_replaced:
            if self.limited is not None:
                response.headers += (self.limited.policy, self.limited.describe(self.excess))
            if response.status == _METHOD_NOT_ALLOWED:
                self._http_rules.add_allowed_methods({**self.scope, "root_path": self._root_path}, response)
            elif self.body is not None:
                self.body.replace_plain_413(response)
        headers = _HEADERS_WITH_ETAG if b"etag" in response.by_name else _DEFAULT_HEADERS
        add_security_headers(response, headers, is_over_tls=self._is_over_tls)
        if self.id_header is not None:
            response.headers.append(self.id_header)
