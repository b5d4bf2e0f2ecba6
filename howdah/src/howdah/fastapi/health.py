"""Liveness and readiness, for probes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Final, TypeAlias

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from howdah.database import Database
from howdah.errors import LockTimeout, ReadOnly, Unavailable
from howdah.fastapi.access import UNAUTHENTICATED
from howdah.fastapi.openapi import describe_problems
from howdah.fastapi.problem import problem_response
from howdah.fastapi.resources import find_opened
from howdah.fastapi.sessions import database_from_state
from howdah.serving import is_draining

ReadinessCheck: TypeAlias = Callable[[Database], Awaitable[str | None]]
"""Gets the application's `Database`. Returns why the service isn't ready, or None.

Its transactions have a `lock_timeout` of half a second. If it raises `LockTimeout`, its last result stays valid,
because a table that another session has locked says nothing about the service. If there is no last result, or if it
raises another error, the service isn't ready. An error other than `Unavailable` is logged with its traceback.
"""

_log = logging.getLogger("howdah.readiness")

# The limit of all checks together. It is shorter than `statement_timeout`. Most probes have a shorter timeout.
_MAX_SECONDS: Final = 10.0
# A check that reads the catalog waits for locks on tables, for example `pg_get_constraintdef`. The time limit of a
# probe is often one second.
_CHECK_SETTINGS: Final = {"lock_timeout": "500ms"}


class Health(BaseModel):
    status: str


def build_health_router(checks: Sequence[ReadinessCheck]) -> APIRouter:
    """The routes `/healthz` and `/readyz`. `/readyz` pings every database and then calls these checks in order.

    While the process is being stopped by `howdah.serving.serve`, `/readyz` fails without any check.
    A ping also checks that the database accepts writes, unless it is a replica.
    """
    router = APIRouter(tags=["health"], dependencies=[UNAUTHENTICATED])
    run_checks = _Checks(checks).run

    @router.get("/healthz", summary="The process is alive")
    async def healthz() -> Health:
        return Health(status="ok")

    @router.get(
        "/readyz",
        summary="The service can handle requests: its databases are reachable and writable, and its checks pass",
        response_model=Health,
        responses=describe_problems(HTTPStatus.SERVICE_UNAVAILABLE),
    )
    async def readyz(request: Request) -> Health | Response:
        if is_draining(request.scope):
            return _build_not_ready_response("the process is being stopped")
        databases = find_opened(request, "the database").databases
        try:
            async with asyncio.timeout(_MAX_SECONDS):
                for database in databases.values():
                    await database.ping()
                reason = await run_checks(database_from_state(request))
                if reason is not None:
                    return _build_not_ready_response(reason)
        except (Unavailable, ReadOnly, TimeoutError) as error:
            return _build_not_ready_response(type(error).__name__)
        except Exception as error:  # a probe must get its answer: a 500 would say nothing about the database
            _log.exception("a readiness check failed")
            return _build_not_ready_response(type(error).__name__)
        return Health(status="ready")

    return router


class _Checks:
    """The checks of an application, with the last result of each one."""

    def __init__(self, checks: Sequence[ReadinessCheck]) -> None:
        self._checks = checks
        self._last: dict[int, str | None] = {}

    async def run(self, database: Database) -> str | None:
        """The first reason why the service isn't ready, or None."""
        if not self._checks:
            return None
        limited = database.with_settings(_CHECK_SETTINGS)
        for number, check in enumerate(self._checks):
            try:
                self._last[number] = await check(limited)
            except LockTimeout:
                if number not in self._last:
                    raise
                _log.warning("a readiness check waits for a lock of another session: its last result is used")
            if (reason := self._last[number]) is not None:
                return reason
        return None


def _build_not_ready_response(reason: str) -> Response:
    return problem_response(HTTPStatus.SERVICE_UNAVAILABLE, "not-ready", detail=reason)
