"""The page `/docs`, which shows the OpenAPI description without files from a CDN."""

from __future__ import annotations

import json
import re
from html import escape
from importlib.resources import files
from typing import Any, Final
from urllib.parse import urlsplit

from fastapi import FastAPI, Request, Response
from starlette.responses import HTMLResponse
from starlette.routing import Route

from howdah.fastapi.access import UNAUTHENTICATED, protect

# FastAPI's own pages load Swagger UI and ReDoc from cdn.jsdelivr.net. The package fastapi-offline has the same files.
_PACKAGE: Final = "fastapi_offline"
_MEDIA_TYPES: Final = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon.png": "image/png",
}
_START_SCRIPT: Final = "start.js"
_START: Final = b"""\
const { initOAuth, ...configuration } = JSON.parse(document.getElementById("swagger-ui").dataset.configuration);
const ui = SwaggerUIBundle({
  ...configuration,
  dom_id: "#swagger-ui",
  presets: [SwaggerUIBundle.presets.apis, SwaggerUIBundle.SwaggerUIStandalonePreset],
});
if (initOAuth) ui.initOAuth(initOAuth);
"""
_DEFAULTS: Final = {"layout": "BaseLayout", "deepLinking": True, "showExtensions": True, "showCommonExtensions": True}

# Swagger UI writes style attributes, and has images as data URLs.
_CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src {origins}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

# Other characters would end the directive.
_ORIGIN: Final = re.compile(r"https?://[A-Za-z0-9._:\[\]-]+", re.ASCII)

_PAGE: Final = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="{files}/favicon.png">
<link rel="stylesheet" href="{files}/swagger-ui.css">
</head>
<body>
<div id="swagger-ui" data-configuration="{configuration}"></div>
<script src="{files}/swagger-ui-bundle.js"></script>
<script src="{files}/start.js"></script>{script}
</body>
</html>
"""


def replace_docs_pages(app: FastAPI, *, script: str | None = None) -> None:
    """Serve `docs_url` from the application itself, and remove FastAPI's `redoc_url`, which needs a CDN.

    `script` is the path of a script of the application, which the page runs after Swagger UI has started. Pages that
    the application itself has at these paths are kept.
    """
    own_pages = {app.docs_url, app.redoc_url} - {None}
    if app.openapi_url is None or not own_pages:
        return
    app.router.routes[:] = [
        route
        for route in app.router.routes
        if not (
            isinstance(route, Route) and route.path in own_pages and route.endpoint.__module__ == FastAPI.__module__
        )
    ]
    if app.docs_url is None:
        return
    files_path = f"{app.docs_url.rstrip('/')}/files"

    async def docs(request: Request) -> Response:
        root_path = request.scope.get("root_path", "").rstrip("/")
        page = _PAGE.format(
            title=escape(f"{app.title} - Swagger UI"),
            files=escape(f"{root_path}{files_path}"),
            configuration=escape(json.dumps(_build_configuration(app, root_path))),
            script="" if script is None else f'\n<script src="{escape(root_path + script)}"></script>',
        )
        policy = _CONTENT_SECURITY_POLICY.format(origins=" ".join(["'self'", *_list_origins(app)]))
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})

    app.add_route(app.docs_url, protect(docs, UNAUTHENTICATED), include_in_schema=False)
    for name, media_type in {**_MEDIA_TYPES, _START_SCRIPT: "text/javascript"}.items():
        endpoint = protect(_make_file_endpoint(name, media_type), UNAUTHENTICATED)
        app.add_route(f"{files_path}/{name}", endpoint, include_in_schema=False)


def _list_origins(app: FastAPI) -> list[str]:
    """The origins of the description's servers, to which the page may send requests."""
    parsed = [urlsplit(str(server.get("url", ""))) for server in app.servers]
    return [f"{each.scheme}://{each.netloc}" for each in parsed if _ORIGIN.fullmatch(f"{each.scheme}://{each.netloc}")]


def _build_configuration(app: FastAPI, root_path: str) -> dict[str, Any]:
    configuration: dict[str, Any] = {**_DEFAULTS, **(app.swagger_ui_parameters or {})}
    configuration["url"] = f"{root_path}{app.openapi_url}"
    if app.swagger_ui_oauth2_redirect_url:
        configuration["oauth2RedirectUrl"] = f"{root_path}{app.swagger_ui_oauth2_redirect_url}"
    if app.swagger_ui_init_oauth:
        configuration["initOAuth"] = app.swagger_ui_init_oauth
    return configuration


def _make_file_endpoint(name: str, media_type: str) -> Any:
    """An endpoint that returns this file. It reads the file at the first request, because few processes get one."""
    content = _START if name == _START_SCRIPT else None

    async def get_file(request: Request) -> Response:
        nonlocal content
        if content is None:
            content = (files(_PACKAGE) / "static" / name).read_bytes()
        return Response(content, headers={"Cache-Control": "private, max-age=3600"}, media_type=media_type)

    return get_file
