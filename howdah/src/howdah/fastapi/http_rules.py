"""Rules of HTTP for every route of an application: HEAD, OPTIONS, `Allow`, the host, and headers for caches."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from http import HTTPStatus
from typing import Final

from fastapi import FastAPI
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from howdah.fastapi._shared_response import SharedResponse, share_response
from howdah.fastapi.disconnects import CLIENT_GONE_KEY
from howdah.fastapi.hosts import AllowedHosts
from howdah.fastapi.path_methods import ROUTE_PATH_KEY, PathMethods, get_route_path
from howdah.fastapi.problem import NO_SNIFF, NO_STORE, problem_response

# A response with an ETag may be stored by its client, which asks before each use whether it is still current.
_FOR_CACHED: Final = (NO_SNIFF, (b"cache-control", b"private, no-cache"))
_DEFAULT: Final = (NO_SNIFF, NO_STORE)

_METHOD_NOT_ALLOWED: Final = int(HTTPStatus.METHOD_NOT_ALLOWED)  # an enum's member is slow to look up

# RFC 6455, section 7.4.1: the connection violates a policy of the service.
_POLICY_VIOLATION: Final = 1008


class HTTPRules:
    """ASGI middleware for rules of HTTP that Starlette's routes don't follow.

    - HEAD is answered wherever GET is, with the headers of GET (RFC 9110, section 9.3.2). For this, the route of GET
      runs. A response that streams is stopped before its first part.
    - `Allow` of a 405 has all methods of the path, and OPTIONS is answered with 204 and `Allow`, unless a route or a
      middleware answers it.
    - A path without parameters comes before paths with parameters, for all methods, as in OpenAPI.
    - `X-Content-Type-Options: nosniff`. `Cache-Control: no-store`, or `private, no-cache` for a response with an ETag,
      unless the route sets it.
    - A request for another host than the allowed ones is answered with 421.
    - `is_hidden` tells which requests are answered with 404.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        application: FastAPI,
        allowed_hosts: AllowedHosts | None,
        any_host_paths: Iterable[str],
        is_hidden: Callable[[Scope], bool] | None,
    ) -> None:
        self._app = app
        self._paths = PathMethods(application)
        self._allowed_hosts = allowed_hosts
        self._any_host_paths = frozenset(any_host_paths)
        self._is_hidden = is_hidden

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Check the host, and then run the application for a request."""
        kind = scope["type"]
        if (
            self._allowed_hosts is not None
            and kind in ("http", "websocket")
            and get_route_path(scope) not in self._any_host_paths
            and not self._allowed_hosts.allow(scope)
        ):
            return _reject_host(scope, receive, send)
        if kind != "http":
            return self._app(scope, receive, send)
        method = scope["method"]
        if self._is_hidden is not None and self._is_hidden(scope):
            return problem_response(HTTPStatus.NOT_FOUND, "not-found", detail="Not Found")(scope, receive, send)
        if method == "HEAD":
            return self._answer_head(scope, receive, send)
        if self._paths.rejects(scope, method) and method != "OPTIONS":
            return self._reject_method(scope, receive, send)
        return self._app(scope, receive, self._share(scope, send))

    def _share(self, scope: Scope, send: Send) -> SharedResponse:
        """The response, whose headers will be completed."""
        root_path = scope.get("root_path", "")  # a mounted application changes it in the same scope

        def complete(response: SharedResponse) -> None:
            if response.status == _METHOD_NOT_ALLOWED:
                self._add_allowed_methods({**scope, "root_path": root_path}, response)
            response.add_missing(_FOR_CACHED if b"etag" in response.by_name else _DEFAULT)

        response = share_response(send)
        response.before_start.append(complete)
        return response

    def _add_allowed_methods(self, scope: Scope, response: SharedResponse) -> None:
        """Set `Allow`. For OPTIONS, replace the 405 by a 204 without a body."""
        methods = self._paths.find(scope)
        if scope["method"] in methods:  # a route or a mounted application has answered 405 itself
            return
        allow = (b"allow", _join(methods))
        if scope["method"] == "OPTIONS":
            response.status = int(HTTPStatus.NO_CONTENT)
            response.set_headers([allow])
            response.replace_body(b"")
        else:
            response.set_headers([*(each for each in response.headers if each[0] != b"allow"), allow])

    async def _answer_head(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the route of GET, and send only the headers of its response."""
        methods = self._paths.find(scope)
        has_ended = False
        # a copy, because the server looks at the method of its own scope when it sends the response
        inner = {**scope, "method": "GET"} if "GET" in methods and "HEAD" not in methods else {**scope}
        response = self._share(inner, send)

        async def send_headers(message: Message) -> None:
            nonlocal has_ended
            if message["type"] == "http.response.start":
                await response(message)
                return
            if not has_ended:
                has_ended = True
                await response({"type": "http.response.body", "body": b"", "more_body": False})
            if message.get("more_body", False):
                raise _HeadAnswered

        try:
            if self._paths.rejects(inner, inner["method"]):
                await self._reject_method(inner, receive, send_headers)
            else:
                await self._app(inner, receive, send_headers)
        except (_HeadAnswered, ClientDisconnect):  # Starlette may turn the first one into the second
            if not has_ended:
                raise
        finally:
            # The metrics need the route that was found. A response that was stopped is complete for HEAD.
            scope.update({**inner, "method": "HEAD", CLIENT_GONE_KEY: not has_ended})

    async def _reject_method(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[ROUTE_PATH_KEY] = get_route_path(scope)
        response = problem_response(
            HTTPStatus.METHOD_NOT_ALLOWED,
            "method-not-allowed",
            detail="Method Not Allowed",
            headers={"Allow": _join(self._paths.find(scope)).decode()},
        )
        await response(scope, receive, send)


class _HeadAnswered(OSError):
    """Stops a streaming response. It is an `OSError`, so that the response ends as if the client had disconnected."""


def _join(methods: Iterable[str]) -> bytes:
    """The value of `Allow`."""
    added = {"HEAD", "OPTIONS"} if "GET" in methods else {"OPTIONS"}
    return ", ".join(sorted({*methods, *added})).encode()


async def _reject_host(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer 421. A WebSocket is closed before it is accepted, which the server answers with 403."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": "misdirected-request"})
        return
    response = problem_response(
        HTTPStatus.MISDIRECTED_REQUEST,
        "misdirected-request",
        detail="the service does not answer for the host of this request: use one of its own names, or have its "
        "operator add this name to the allowed hosts",
    )
    await response(scope, receive, send)
