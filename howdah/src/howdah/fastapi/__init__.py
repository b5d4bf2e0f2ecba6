"""FastAPI: sessions that commit before the response is sent, and errors as problem details (RFC 9457).

def create_app() -> FastAPI:
    app = FastAPI()
    configure_app(app, database=lambda: Database(url))  # lifespan, errors, /healthz, /readyz, /metrics, request log
    app.include_router(router)
    return app

@router.post("/users")
async def create_user(body: UserIn, db: DbSession) -> UserOut: ...
"""

from __future__ import annotations

from howdah.fastapi.application import configure_app
from howdah.fastapi.exact_types import DecimalDigits, RFC3339Datetime
from howdah.fastapi.handlers import add_error_handlers
from howdah.fastapi.headers import MissingHeader, RepeatedHeader, single_header
from howdah.fastapi.health import ReadinessCheck
from howdah.fastapi.json_bodies import InvalidJSON, StrictJSONRoute, parse_json
from howdah.fastapi.openapi import describe_problems, get_schema_ref
from howdah.fastapi.pages import PageOut, PageParameters
from howdah.fastapi.preconditions import (
    NOT_MODIFIED,
    IfMatch,
    Precondition,
    PreconditionFailed,
    PreconditionRequired,
    RequiredIfMatch,
    make_etag,
)
from howdah.fastapi.problem import (
    HTTP_STATUS_BY_ERROR,
    PROBLEM_JSON,
    RETRY_AFTER_SECONDS,
    InputError,
    Problem,
    error_response,
    problem_response,
)
from howdah.fastapi.resources import Resource
from howdah.fastapi.sessions import (
    DbSession,
    ReadDbSession,
    database_dependency,
    database_from_state,
    get_database,
    get_db,
    get_read_db,
    session_dependency,
)
from howdah.fastapi.view_responses import json_response, page_response

__all__ = [
    "HTTP_STATUS_BY_ERROR",
    "NOT_MODIFIED",
    "PROBLEM_JSON",
    "RETRY_AFTER_SECONDS",
    "DbSession",
    "DecimalDigits",
    "IfMatch",
    "InputError",
    "InvalidJSON",
    "MissingHeader",
    "PageOut",
    "PageParameters",
    "Precondition",
    "PreconditionFailed",
    "PreconditionRequired",
    "Problem",
    "RFC3339Datetime",
    "ReadDbSession",
    "ReadinessCheck",
    "RepeatedHeader",
    "RequiredIfMatch",
    "Resource",
    "StrictJSONRoute",
    "add_error_handlers",
    "configure_app",
    "database_dependency",
    "database_from_state",
    "describe_problems",
    "error_response",
    "get_database",
    "get_db",
    "get_read_db",
    "get_schema_ref",
    "json_response",
    "make_etag",
    "page_response",
    "parse_json",
    "problem_response",
    "session_dependency",
    "single_header",
]
