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

from howdah.fastapi.access import PUBLIC, AccessRule, NotAllowed, allow, protect
from howdah.fastapi.application import configure_app
from howdah.fastapi.authentication import (
    Authenticate,
    AuthenticationTimeout,
    NotAuthenticated,
    Principal,
    find_principal,
    require_principal,
    require_principal_key,
)
from howdah.fastapi.body_limits import BodyTimeout, BodyTooLarge, lift_body_limits
from howdah.fastapi.cookies import find_cookie
from howdah.fastapi.cross_origin import CrossOrigin, check_same_origin
from howdah.fastapi.direct_routes import direct
from howdah.fastapi.exact_types import DecimalDigits, RFC3339Datetime
from howdah.fastapi.exports import (
    CSV,
    NDJSON,
    ExportFormat,
    describe_export,
    export_response,
    ndjson_response,
    unescape_formula,
)
from howdah.fastapi.handlers import add_error_handlers
from howdah.fastapi.headers import MissingHeader, RepeatedHeader, single_header
from howdah.fastapi.health import ReadinessCheck
from howdah.fastapi.idempotency import IdempotentRoute, InvalidIdempotencyKey, idempotency_key
from howdah.fastapi.in_progress import finish_without_client
from howdah.fastapi.jobs import Job
from howdah.fastapi.json_bodies import InvalidJSON, StrictJSONRoute, parse_json
from howdah.fastapi.line_results import answer_batches, answer_lines, describe_rejected_row
from howdah.fastapi.load_limit import LoadLimit
from howdah.fastapi.ndjson import (
    MAX_LINE_BYTES,
    BodyRows,
    InvalidLine,
    RejectedLine,
    UnsupportedMediaType,
    describe_rows_body,
    parse_line,
    read_lines,
)
from howdah.fastapi.openapi import describe_problems, get_schema_ref
from howdah.fastapi.pages import PageOut, PageParameters
from howdah.fastapi.parameters import RepeatedParameter
from howdah.fastapi.path_methods import get_route_path
from howdah.fastapi.preconditions import (
    NOT_MODIFIED,
    CacheCondition,
    IfMatch,
    IfNoneMatch,
    NotModified,
    Precondition,
    PreconditionFailed,
    PreconditionRequired,
    RequiredIfMatch,
    make_etag,
)
from howdah.fastapi.problem import (
    HTTP_STATUS_BY_ERROR,
    PROBLEM_JSON,
    InputError,
    Problem,
    ProblemException,
    error_response,
    problem_response,
    retry_after,
)
from howdah.fastapi.rate_limits import RateLimit, RateLimits, find_client_network
from howdah.fastapi.resources import Resource, find_named_database
from howdah.fastapi.scoped_sessions import reader_from, session_from
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
from howdah.fastapi.stream_limits import BodyLimits, SendLimits, TooManyStreams
from howdah.fastapi.view_responses import json_response, list_response, page_response
from howdah.fastapi.visible_text import VisibleText

__all__ = [
    "CSV",
    "HTTP_STATUS_BY_ERROR",
    "MAX_LINE_BYTES",
    "NDJSON",
    "NOT_MODIFIED",
    "PROBLEM_JSON",
    "PUBLIC",
    "AccessRule",
    "Authenticate",
    "AuthenticationTimeout",
    "BodyLimits",
    "BodyRows",
    "BodyTimeout",
    "BodyTooLarge",
    "CacheCondition",
    "CrossOrigin",
    "DbSession",
    "DecimalDigits",
    "ExportFormat",
    "IdempotentRoute",
    "IfMatch",
    "IfNoneMatch",
    "InputError",
    "InvalidIdempotencyKey",
    "InvalidJSON",
    "InvalidLine",
    "Job",
    "LoadLimit",
    "MissingHeader",
    "NotAllowed",
    "NotAuthenticated",
    "NotModified",
    "PageOut",
    "PageParameters",
    "Precondition",
    "PreconditionFailed",
    "PreconditionRequired",
    "Principal",
    "Problem",
    "ProblemException",
    "RFC3339Datetime",
    "RateLimit",
    "RateLimits",
    "ReadDbSession",
    "ReadinessCheck",
    "RejectedLine",
    "RepeatedHeader",
    "RepeatedParameter",
    "RequiredIfMatch",
    "Resource",
    "SendLimits",
    "StrictJSONRoute",
    "TooManyStreams",
    "UnsupportedMediaType",
    "VisibleText",
    "add_error_handlers",
    "allow",
    "answer_batches",
    "answer_lines",
    "check_same_origin",
    "configure_app",
    "database_dependency",
    "database_from_state",
    "describe_export",
    "describe_problems",
    "describe_rejected_row",
    "describe_rows_body",
    "direct",
    "error_response",
    "export_response",
    "find_client_network",
    "find_cookie",
    "find_named_database",
    "find_principal",
    "finish_without_client",
    "get_database",
    "get_db",
    "get_read_db",
    "get_route_path",
    "get_schema_ref",
    "idempotency_key",
    "json_response",
    "lift_body_limits",
    "list_response",
    "make_etag",
    "ndjson_response",
    "page_response",
    "parse_json",
    "parse_line",
    "problem_response",
    "protect",
    "read_lines",
    "reader_from",
    "require_principal",
    "require_principal_key",
    "retry_after",
    "session_dependency",
    "session_from",
    "single_header",
    "unescape_formula",
]
