"""log-and-metrics: the CPU time that the log entry and the metrics of a request add, compared with the usual way."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any, BinaryIO, Final
from uuid import uuid4

import orjson
import structlog
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from benchmarks.comparison import Comparison, Contender, Goal, Measured, check_equal
from howdah import Database
from howdah.fastapi import configure_app
from howdah.logs import configure_logging

_WITH: Final = "howdah, log and metrics"
_WITHOUT: Final = "howdah, neither"
_USUAL: Final = "structlog and prometheus_client"


class LogAndMetrics(Comparison):
    name = "log-and-metrics"
    description = "call an application {size} times, in its own process, with a route that does nothing"
    unit = "requests"
    size = 2_000
    quick_size = 300

    async def set_up(self) -> None:
        self._stack = contextlib.ExitStack()
        null = self._stack.enter_context(_log_nowhere())
        self._apps = {
            _WITH: self._create_app(has_both=True),
            _WITHOUT: self._create_app(has_both=False),
            _USUAL: self._create_app(has_both=False, prepare=lambda app: app.add_middleware(_Usual, file=null)),
        }

    async def tear_down(self) -> None:
        self._stack.close()

    def _create_app(self, *, has_both: bool, prepare: Callable[[FastAPI], Any] = lambda app: None) -> FastAPI:
        app = FastAPI()

        @app.get("/{id}")  # before `/metrics`, so that its route is found at once
        async def answer(id: int) -> Response:
            return Response()

        configure_app(
            app,
            database=lambda: Database(self.connections.database.engine.url),
            metrics=has_both,
            request_log=has_both,
        )
        prepare(app)
        return app

    def contenders(self) -> list[Contender]:
        return [
            Contender(_WITH, "howdah", self._make_run(self._apps[_WITH]), self.count),
            Contender(_WITHOUT, "baseline", self._make_run(self._apps[_WITHOUT]), self.count),
            Contender(_USUAL, "reference", self._make_run(self._apps[_USUAL]), self.count),
        ]

    def goals(self) -> list[Goal]:
        return [Goal(_WITH, "of the time", 1.25, _WITHOUT), Goal(_WITH, "of the time", 0.9, _USUAL)]

    def rounds(self) -> int:
        return 10 * self.requested_rounds  # the differences are only a few percent

    def _make_run(self, app: FastAPI) -> Callable[[], Any]:
        async def run() -> Measured:
            count = 0

            async def receive() -> Message:
                return {"type": "http.request", "body": b"", "more_body": False}

            async def send(message: Message) -> None:
                nonlocal count
                count += message.get("status") == HTTPStatus.OK

            started = time.process_time()  # of all threads, and so of the one that writes the log, too
            for _ in range(self.count):
                scope = {
                    "type": "http",
                    "method": "GET",
                    "path": "/1",
                    "raw_path": b"/1",
                    "query_string": b"",
                    "headers": [(b"host", b"shop.example.com")],
                    "client": ("10.0.0.1", 1),
                    "scheme": "http",
                }
                await app(scope, receive, send)
            seconds = time.process_time() - started
            check_equal("responses", count, self.count)
            return Measured(seconds)

        return run

    async def reset(self, contender: Contender) -> None:
        """Nothing is written, so there is nothing to restore."""

    async def verify(self, contender: Contender, returned: Any) -> None:
        """`run` has checked the responses."""


@contextlib.contextmanager
def _log_nowhere() -> Iterator[BinaryIO]:
    """Log as a service does, but to the null device, which is returned. Afterwards errors are printed again."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
    with open(os.devnull, "w") as null, contextlib.redirect_stderr(null):
        configure_logging("json")
    try:
        with open(os.devnull, "wb") as file:
            yield file
    finally:
        structlog.reset_defaults()
        sys.excepthook, threading.excepthook, sys.unraisablehook = hooks
        logging.captureWarnings(False)
        logging.basicConfig(handlers=handlers, level=level, force=True)


class _Usual:
    """ASGI middleware as services write it: structlog with the processors of its guide, and two metrics."""

    def __init__(self, app: ASGIApp, file: BinaryIO) -> None:
        self._app = app
        self._log = structlog.wrap_logger(
            structlog.BytesLogger(file),
            processors=[
                structlog.contextvars.merge_contextvars,
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.JSONRenderer(orjson.dumps),
            ],
            cache_logger_on_first_use=True,
        )
        registry = CollectorRegistry()
        self._requests = Counter("requests", "Requests", ["method", "route", "status"], registry=registry)
        self._seconds = Histogram("seconds", "Durations", ["method", "route"], registry=registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status = 0
        request_id = str(uuid4())
        started = time.perf_counter()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        try:
            await self._app(scope, receive, send_with_id)
        finally:
            seconds = time.perf_counter() - started
            route = scope["route"].path
            self._requests.labels(scope["method"], route, status).inc()
            self._seconds.labels(scope["method"], route).observe(seconds)
            self._log.info("request", method=scope["method"], path=scope["path"], status=status, seconds=seconds)
