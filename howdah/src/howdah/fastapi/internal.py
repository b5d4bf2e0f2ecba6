"""The operator's pages of an application on another address: the probes, `/metrics`, `/docs` and the description."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from howdah.fastapi.path_methods import get_route_path
from howdah.fastapi.problem import problem_response

PROBE_PATHS: Final = frozenset({"/healthz", "/readyz"})
METRICS_PATH: Final = "/metrics"

LIFESPAN_STATE_KEY: Final = "howdah_lifespan_state"
"""The attribute of `app.state` that has the lifespan's state while the application runs."""

_INTERNAL_KEY: Final = "howdah.internal"  # in the ASGI scope


class InternalPaths:
    """The paths that only the operator needs."""

    def __init__(self, app: FastAPI) -> None:
        urls = (METRICS_PATH, app.openapi_url, app.docs_url, app.redoc_url, app.swagger_ui_oauth2_redirect_url)
        self._paths = frozenset(url for url in urls if url)
        self._prefix = f"{app.docs_url.rstrip('/')}/" if app.docs_url else METRICS_PATH

    def has(self, path: str) -> bool:
        """Whether the path is one of them, or a file of the docs."""
        return path in self._paths or path.startswith(self._prefix)

    def hide(self, scope: Scope) -> bool:
        """Whether the request is for one of them, and did not come through `build_internal_app`."""
        return self.has(get_route_path(scope)) and _INTERNAL_KEY not in scope


def build_internal_app(app: FastAPI) -> ASGIApp:
    """An application with `/healthz`, `/readyz`, `/metrics`, the docs and the OpenAPI description of this one only.

    Serve it on an address that only the operator reaches, in the same process and event loop, and with
    `configure_app(..., internal_app=True)`, which removes `/metrics` and the docs from the public address:

        uvicorn.Server(uvicorn.Config(build_internal_app(app), host="10.0.0.5", port=9000, lifespan="off"))

    It has no lifespan. It uses the databases of the running application.
    """
    paths = InternalPaths(app)

    async def internal_app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not (scope["path"] in PROBE_PATHS or paths.has(scope["path"])):
            if scope["type"] == "http":
                await problem_response(HTTPStatus.NOT_FOUND, "not-found", detail="Not Found")(scope, receive, send)
            elif scope["type"] == "websocket":
                await send({"type": "websocket.close"})
            else:
                raise RuntimeError("the internal application has no lifespan: serve it with lifespan='off'")
            return
        state = getattr(app.state, LIFESPAN_STATE_KEY, None) or {}
        await app({**scope, "state": {**state}, _INTERNAL_KEY: True}, receive, send)

    return internal_app
