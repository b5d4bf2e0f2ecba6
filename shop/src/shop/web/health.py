"""Whether the service lives, and is ready."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from howdah import Unavailable
from howdah.fastapi import RETRY_AFTER_SECONDS, database_from_state, describe_problems, problem_response
from shop import migrations
from shop.migrations.guards import compare_guards

router = APIRouter(tags=["health"])


class Health(BaseModel):
    status: str


@router.get("/healthz", summary="The process lives")
async def healthz() -> Health:
    return Health(status="ok")


@router.get(
    "/readyz",
    summary="The database is reachable, its schema is current, and it has the ledger's triggers, enabled",
    response_model=Health,
    responses=describe_problems(HTTPStatus.SERVICE_UNAVAILABLE),
)
async def readyz(request: Request) -> Health | Response:
    database = database_from_state(request)
    try:
        current = await migrations.current(database)
        async with database.session(read_only=True) as session:
            guards = await compare_guards(session)
    except Unavailable as error:
        return _not_ready(type(error).__name__)
    if current != migrations.head():
        return _not_ready(f"the schema is at {current}, not at {migrations.head()}: run shop migrate")
    if guards.missing or guards.unknown:
        return _not_ready(f"the database differs from guards.sql, run shop check: {guards}")
    return Health(status="ready")


def _not_ready(why: str) -> Response:
    return problem_response(
        HTTPStatus.SERVICE_UNAVAILABLE, "not-ready", detail=why, headers={"Retry-After": str(RETRY_AFTER_SECONDS)}
    )
