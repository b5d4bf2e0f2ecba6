"""A request id, a log line and metrics for each request."""

from __future__ import annotations

import logging
import re
import sys
import time
from http import HTTPMethod, HTTPStatus
from typing import Any, Final, Literal

import orjson
import structlog
from prometheus_client import Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from howdah import uuid7
from howdah.fastapi import problem_response

REQUEST_ID_HEADER: Final = b"x-request-id"
_ACCEPTABLE_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")

# Other methods have the label `any`. A client can send any text as the method, and each would be a new time series.
_METHODS: Final = frozenset(HTTPMethod)

_requests: Final = Counter("shop_requests_total", "Requests by route and status", ["method", "route", "status"])
_seconds: Final = Histogram("shop_request_seconds", "Time until the response was sent", ["method", "route"])

_log: Final = structlog.get_logger("shop.request")


class Observability:
    """ASGI middleware: the request id, the log line and the metrics of each request.

    The request id is the client's `X-Request-ID` if it consists of 1 to 128 letters, digits and `._:-`. Otherwise it is
    a new UUID. The response and every log line of the request contain it, even after an unexpected error.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application for one request. An unexpected error is logged, and answered with a 500."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _get_request_id(scope)
        status = 0
        started = time.perf_counter()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (REQUEST_ID_HEADER, request_id.encode())]
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, send_with_id)
            except Exception:
                # Handled here and not by Starlette, so that the response and the traceback have the request id.
                _log.exception("unexpected error")
                if status:  # the response has started
                    raise
                response = problem_response(HTTPStatus.INTERNAL_SERVER_ERROR, "internal-error")
                await response(scope, receive, send_with_id)
            finally:
                self._record(scope, status, time.perf_counter() - started)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        # The pattern of the route is the label, because each path with another id would be a new time series.
        route = getattr(scope.get("route"), "path", "unmatched")
        method = scope["method"] if route != "unmatched" and scope["method"] in _METHODS else "any"
        _requests.labels(method, route, status or "none").inc()
        _seconds.labels(method, route).observe(seconds)
        _log.info(
            "request", method=scope["method"], path=scope["path"], status=status or None, ms=round(seconds * 1000, 1)
        )


def _get_request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == REQUEST_ID_HEADER:
            request_id: str = value.decode("latin-1")
            if _ACCEPTABLE_ID.fullmatch(request_id):
                return request_id
    return str(uuid7())


def configure_logging(log_format: Literal["auto", "json", "console"]) -> None:
    """Write all logs to standard error: readable text (`console`), or one JSON object per line (`json`).

    `auto` is `console` on a terminal and `json` elsewhere.
    """
    for_people = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    rendered: list[Any] = (
        # a plain traceback, because the default one shows local variables, which may hold customers' data
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if for_people
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(_as_json)]
    )
    unwrapped = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=[unwrapped, *rendered])
    )
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    for verbose in ("alembic", "howdah._connections.pool"):
        logging.getLogger(verbose).setLevel(logging.WARNING)
    structlog.configure(cache_logger_on_first_use=True)
    if for_people:
        structlog.configure(
            processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
            logger_factory=structlog.stdlib.LoggerFactory(),
        )
    else:  # directly to the stream, because that takes a quarter of the time of `logging`
        structlog.configure(
            processors=[*shared, *rendered[:-1], structlog.processors.JSONRenderer(orjson.dumps, default=str)],
            logger_factory=structlog.BytesLoggerFactory(sys.stderr.buffer),
        )


def _as_json(event: Any, **_options: Any) -> str:
    return orjson.dumps(event, default=str).decode()
