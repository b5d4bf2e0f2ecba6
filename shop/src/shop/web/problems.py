"""Errors of requests to any feature, and their problem responses.

Each feature has a module `problems` for its own errors. `howdah.fastapi.add_error_handlers` handles Howdah's errors.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from fastapi import FastAPI, Request, Response
from starlette.requests import ClientDisconnect

from howdah import DatabaseError
from howdah.fastapi import error_response, problem_response

# No client reads this status. In the log and the metrics it separates disconnected clients from faults of the service.
_CLIENT_CLOSED_REQUEST: Final = 499


class UnsupportedMediaType(Exception):
    """The `Content-Type` of the body is none of `accepted`."""

    def __init__(self, *accepted: str) -> None:
        self.accepted = accepted
        super().__init__(f"the body must be {' or '.join(accepted)}: set Content-Type accordingly")


class InvalidLine(ValueError):
    """A line of an NDJSON body, or an element of an array, is invalid."""

    def __init__(self, line: int, reason: str) -> None:
        self.line = line
        super().__init__(f"line {line}: {reason}")


class RejectedLine(Exception):
    """PostgreSQL rejected the row on this line of the body."""

    def __init__(self, line: int, error: DatabaseError) -> None:
        self.line = line
        self.error = error
        super().__init__(f"line {line}: {error}")


def add_problem_handlers(app: FastAPI) -> None:
    """Register handlers for the errors of this module and for disconnected clients."""

    @app.exception_handler(UnsupportedMediaType)
    async def handle_unsupported_media_type(request: Request, error: UnsupportedMediaType) -> Response:
        return problem_response(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "unsupported-media-type",
            detail=str(error),
            headers={"Accept-Post": ", ".join(error.accepted)},
        )

    @app.exception_handler(InvalidLine)
    async def handle_invalid_line(request: Request, error: InvalidLine) -> Response:
        return problem_response(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid-line", detail=str(error), line=error.line)

    @app.exception_handler(RejectedLine)
    async def handle_rejected_line(request: Request, error: RejectedLine) -> Response:
        return error_response(error.error, line=error.line)

    @app.exception_handler(ClientDisconnect)
    async def handle_disconnect(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=_CLIENT_CLOSED_REQUEST)
