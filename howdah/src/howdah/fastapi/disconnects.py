"""Clients that disconnect, or that receive too slowly, are no errors of the service."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from howdah.fastapi._shared_response import SharedResponse, share_response

CLIENT_CLOSED_REQUEST: Final = 499
"""The status in the log and the metrics of a request whose client has disconnected. No client reads it."""

CLIENT_GONE_KEY: Final = "howdah.client_gone"
"""The key in the ASGI scope for a boolean: true if the client didn't receive the whole response."""


class ClientDisconnects:
    """ASGI middleware that ends a request quietly if its client disconnects.

    An exception handler can't do that. It isn't called after the response has started, and Starlette raises another
    error instead.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application. If the client has disconnected, the response is incomplete."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        response = share_response(send)
        try:
            await self._app(scope, receive, response)
        except (ClientDisconnect, OSError) as error:
            if not is_client_gone(error, response):
                raise
        if not response.is_complete:
            await end_without_client(scope, receive, response)


def is_client_gone(error: ClientDisconnect | OSError, response: SharedResponse) -> bool:
    """Whether the client has disconnected, and caused this error. An `OSError` can have other causes."""
    return isinstance(error, ClientDisconnect) or response.has_failed


async def end_without_client(scope: Scope, receive: Receive, response: SharedResponse) -> None:
    """Note that the client didn't receive the whole response. If the response hasn't started, send a 499."""
    mark_client_gone(scope)
    if response.status is None and not response.has_failed:
        await Response(status_code=CLIENT_CLOSED_REQUEST)(scope, receive, response)


def mark_client_gone(scope: Scope) -> None:
    """Note in the scope that the client has gone, for the log and the metrics."""
    scope[CLIENT_GONE_KEY] = True


def get_logged_status(scope: Scope, status: int | None) -> int | None:
    """The status for the log and the metrics: 499 if the client didn't receive the whole response."""
    return CLIENT_CLOSED_REQUEST if scope.get(CLIENT_GONE_KEY) else status


def is_disconnect(error: BaseException) -> bool:
    """Whether the error is FastAPI's 400 for a client that disconnected while it sent the body."""
    return getattr(error, "status_code", None) == HTTPStatus.BAD_REQUEST and isinstance(
        error.__cause__, ClientDisconnect
    )
