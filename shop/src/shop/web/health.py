"""Liveness and readiness."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import TypeAlias

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from howdah import Database, Unavailable
from howdah.fastapi import RETRY_AFTER_SECONDS, database_from_state, describe_problems, problem_response

ReadinessCheck: TypeAlias = Callable[[Database], Awaitable[str | None]]
"""Returns why the service isn't ready, or None. May raise `Unavailable`."""


class Health(BaseModel):
    status: str


def health_router(checks: Sequence[ReadinessCheck]) -> APIRouter:
    """`/healthz`, and `/readyz` with these checks, in this order."""
    router = APIRouter(tags=["health"])

    @router.get("/healthz", summary="The process is alive")
    async def healthz() -> Health:
        return Health(status="ok")

    @router.get(
        "/readyz",
        summary="The database is reachable, its schema is current, and the ledger's triggers and functions are intact",
        response_model=Health,
        responses=describe_problems(HTTPStatus.SERVICE_UNAVAILABLE),
    )
    async def readyz(request: Request) -> Health | Response:
        try:
            for check in checks:
                problem = await check(database_from_state(request))
                if problem is not None:
                    return _not_ready(problem)
        except Unavailable as error:
            return _not_ready(type(error).__name__)
        return Health(status="ready")

    return router


def _not_ready(why: str) -> Response:
    return problem_response(
        HTTPStatus.SERVICE_UNAVAILABLE, "not-ready", detail=why, headers={"Retry-After": str(RETRY_AFTER_SECONDS)}
    )
