"""Rules of HTTP for every route of an application: HEAD, OPTIONS, `Allow`, the host, and headers for caches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Final

from fastapi import FastAPI
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from howdah.fastapi._shared_response import SharedResponse
from howdah.fastapi.disconnects import CLIENT_GONE_KEY
from howdah.fastapi.hosts import AllowedHosts
from howdah.fastapi.path_methods import ROUTE_PATH_KEY, PathMethods, get_route_path
from howdah.fastapi.problem import NO_SNIFF, NO_STORE, problem_response

# A response with an ETag may be stored by its client, which asks before each use whether it is still current.
HEADERS_WITH_ETAG: Final = (NO_SNIFF, (b"cache-control", b"private, no-cache"))
DEFAULT_HEADERS: Final = (NO_SNIFF, NO_STORE)

# RFC 6455, section 7.4.1: the connection violates a policy of the service.
_POLICY_VIOLATION: Final = 1008


class HTTPRules:
    """Rules of HTTP that Starlette's routes don't follow.

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
        application: FastAPI,
        *,
        allowed_hosts: AllowedHosts | None,
        any_host_paths: Iterable[str],
        is_hidden: Callable[[Scope], bool] | None,
    ) -> None:
        self._paths = PathMethods(application)
        self._allowed_hosts = allowed_hosts
        self._any_host_paths = frozenset(any_host_paths)
        self._is_hidden = is_hidden

    def allows_host(self, scope: Scope, path: str) -> bool:
        """Whether the application answers for the host of this request. If not, the response is `reject_host`."""
        return self._allowed_hosts is None or path in self._any_host_paths or self._allowed_hosts.allow(scope)

    def find_rejection(self, scope: Scope, path: str) -> ASGIApp | None:
        """The response if the request must not reach a route, otherwise None."""
        if self._allowed_hosts is not None and not self.allows_host(scope, path):
            return reject_host
        if self._is_hidden is not None and self._is_hidden(scope):
            return problem_response(HTTPStatus.NOT_FOUND, "not-found", detail="Not Found")
        method = scope["method"]
        if self._paths.rejects(path, method) and method not in ("HEAD", "OPTIONS"):
            return self._reject_method
        return None

    def add_allowed_methods(self, scope: Scope, response: SharedResponse) -> None:
        """Set `Allow` in a 405. For OPTIONS, replace the 405 by a 204 without a body."""
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

    def copy_for_head(self, scope: Scope) -> Scope:
        """A copy of the scope of a HEAD request. Its method is GET if the path has a GET route and no HEAD route.

        It is a copy, because the server looks at the method of its own scope when it sends the response.
        """
        methods = self._paths.find(scope)
        return {**scope, "method": "GET"} if "GET" in methods and "HEAD" not in methods else {**scope}

    async def answer_head(
        self, app: ASGIApp, scope: Scope, inner: Scope, receive: Receive, response: SharedResponse
    ) -> None:
        """Run `app` with `inner`, the result of `copy_for_head`, and send only the headers of its response."""
        has_ended = False

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
            if self._paths.rejects(get_route_path(inner), inner["method"]):
                await self._reject_method(inner, receive, send_headers)
            else:
                await app(inner, receive, send_headers)
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


async def reject_host(scope: Scope, receive: Receive, send: Send) -> None:
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
