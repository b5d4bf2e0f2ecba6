"""FastAPI's own telemetry: find its providers once, and report to it as FastAPI's router and handlers do.

`FastAPI.__call__` makes the span of a request, and its metrics and log entries. They need the path of the route, and
the errors of validation. A direct route reports both. It makes no spans of the operations within the request.
"""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.types import Scope

try:
    from fastapi.telemetry._api import _route_selected, _validation_failed
except ImportError:  # older versions have no telemetry
    _HAS_TELEMETRY = False
else:
    _HAS_TELEMETRY = True

TELEMETRY_KEY: Final = "fastapi.telemetry"
"""The key of the request's telemetry in the ASGI scope. Without telemetry the value is None, or the key is missing."""


def look_for_telemetry_once(app: FastAPI) -> None:
    """Let FastAPI look for the providers now, and not before each request. This saves 5 µs for each request.

    Providers that are set after the startup are not noticed until the application starts again.
    """
    telemetry: Any = getattr(app, "_native_telemetry", None)  # older versions have none
    if telemetry is None:
        return
    vars(telemetry).pop("enabled", None)
    is_enabled: bool = telemetry.enabled()
    telemetry.enabled = lambda: is_enabled


def report_route(scope: Scope, path: str) -> None:
    """Report the path template of the route to the telemetry in the scope, as FastAPI's router does."""
    _route_selected(scope=scope, path=path)


def report_validation_error(error: RequestValidationError) -> RequestValidationError:
    """Report the error to the telemetry of the current request, if there is one, as FastAPI does. Returns the error."""
    if _HAS_TELEMETRY:
        _validation_failed(error)
    return error
