"""Liveness and readiness, for probes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Final, TypeAlias

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from howdah.database import Database
from howdah.errors import Unavailable
from howdah.fastapi.openapi import describe_problems
from howdah.fastapi.problem import RETRY_AFTER_SECONDS, problem_response
from howdah.fastapi.resources import find_opened
from howdah.fastapi.sessions import database_from_state
from howdah.serving import is_draining

ReadinessCheck: TypeAlias = Callable[[Database], Awaitable[str | None]]
"""Gets the application's `Database`. Returns why the service isn't ready, or None. May raise `Unavailable`."""

# The limit of all checks together. It is shorter than `statement_timeout`. Most probes have a shorter timeout.
_MAX_SECONDS: Final = 10.0


class Health(BaseModel):
    status: str


def build_health_router(checks: Sequence[ReadinessCheck]) -> APIRouter:
    """The routes `/healthz` and `/readyz`. `/readyz` pings every database and then calls these checks in order.

    While the process is being stopped by `howdah.serving.serve`, `/readyz` fails without any check.
    """
    router = APIRouter(tags=["health"])

    @router.get("/healthz", summary="The process is alive")
    async def healthz() -> Health:
        return Health(status="ok")

    @router.get(
        "/readyz",
        summary="The service can handle requests: its databases are reachable and its checks pass",
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
                for check in checks:
                    reason = await check(database_from_state(request))
                    if reason is not None:
                        return _build_not_ready_response(reason)
        except (Unavailable, TimeoutError) as error:
            return _build_not_ready_response(type(error).__name__)
        return Health(status="ready")

    return router


def _build_not_ready_response(reason: str) -> Response:
    return problem_response(
        HTTPStatus.SERVICE_UNAVAILABLE, "not-ready", detail=reason, headers={"Retry-After": str(RETRY_AFTER_SECONDS)}
    )
