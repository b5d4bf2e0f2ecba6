"""The operator's pages of an application on a separate port: `/metrics`, `/docs` and the OpenAPI description."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.types import Scope

from howdah.fastapi.path_methods import get_route_path
from howdah.serving.limits import METRICS_PATH, PROBE_PATHS


class InternalPort:
    """Decides by the port of a request which paths it may use. The server listens on several sockets.

    The internal port has the operator's pages and the probes. The other ports have all other paths, and the probes.
    """

    def __init__(self, app: FastAPI, port: int) -> None:
        urls = (METRICS_PATH, app.openapi_url, app.docs_url, app.redoc_url, app.swagger_ui_oauth2_redirect_url)
        self._port = port
        self._paths = frozenset(url for url in urls if url)
        self._prefix = f"{app.docs_url.rstrip('/')}/" if app.docs_url else METRICS_PATH

    def hides(self, scope: Scope) -> bool:
        """Whether the path isn't served on the port of this request."""
        path = get_route_path(scope)
        if path in PROBE_PATHS:
            return False
        _, port = scope.get("server") or (None, None)
        return (port == self._port) != (path in self._paths or path.startswith(self._prefix))
