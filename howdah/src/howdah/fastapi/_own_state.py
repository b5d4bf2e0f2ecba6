"""The `request.state` of applications that are mounted in each other."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from howdah.fastapi.resources import OPENED_KEY

STATES_KEY: Final = "howdah_states"
"""The key in the lifespan's state for the states of all applications: the outermost one, and those mounted in it."""

DATABASE_KEY: Final = "database"


class OwnState:
    """ASGI middleware that sets `request.state` to the state of this application.

    The server gives the state of the outermost application to every request. If this application is mounted in another
    one, the routes would use the other one's database.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] not in ("http", "websocket"):
            return self._app(scope, receive, send)
        outer = scope.get("state", {})
        own = outer.get(STATES_KEY, {}).get(scope["app"])
        if own is None:  # the lifespan of this application has not run, so it has no database
            own = {DATABASE_KEY: None, OPENED_KEY: None}
        elif outer.get(OPENED_KEY) is own[OPENED_KEY]:  # it is the outermost application
            return self._app(scope, receive, send)
        return self._run({**outer, **own}, outer, scope, receive, send)

    async def _run(self, own: object, outer: object, scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"] = own
        try:
            await self._app(scope, receive, send)
        finally:
            scope["state"] = outer
