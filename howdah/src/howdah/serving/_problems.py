"""Responses of the server itself: problem details as the bytes of a whole HTTP response."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import orjson


@dataclass(frozen=True, slots=True)
class ServerProblem:
    """A problem with the type `urn:howdah:problem:<code>`. The server closes the connection after it."""

    status: HTTPStatus
    code: str
    detail: str

    def encode(self, default_headers: Iterable[tuple[bytes, bytes]]) -> bytes:
        """Encode the response. A 503 has a random `Retry-After` of 1 to 3 s, so clients return at different times."""
        body = orjson.dumps(
            {
                "type": f"urn:howdah:problem:{self.code}",
                "title": self.status.phrase,
                "status": int(self.status),
                "detail": self.detail,
            }
        )
        headers = [
            *default_headers,
            (b"content-type", b"application/problem+json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        if self.status == HTTPStatus.SERVICE_UNAVAILABLE:
            headers.append((b"retry-after", str(random.randint(1, 3)).encode()))  # noqa: S311
        lines = [f"HTTP/1.1 {int(self.status)} {self.status.phrase}".encode(), *(b": ".join(each) for each in headers)]
        return b"\r\n".join((*lines, b"", body))


INVALID_REQUEST: Final = ServerProblem(HTTPStatus.BAD_REQUEST, "invalid-request", "this isn't a valid HTTP/1.1 request")
HEADER_TIMEOUT: Final = ServerProblem(
    HTTPStatus.REQUEST_TIMEOUT, "header-timeout", "the header of the request took too long: send it at once"
)
BODY_TIMEOUT: Final = ServerProblem(
    HTTPStatus.REQUEST_TIMEOUT,
    "body-timeout",
    "the client paused for too long while it sent the body: send it without pauses",
)
HEADER_TOO_LARGE: Final = ServerProblem(
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "header-too-large", "the header has too many bytes or too many fields"
)
TOO_MANY_CONNECTIONS: Final = ServerProblem(
    HTTPStatus.SERVICE_UNAVAILABLE, "too-many-connections", "the server has too many connections: try again later"
)
STOPPING: Final = ServerProblem(HTTPStatus.SERVICE_UNAVAILABLE, "stopping", "the server stopped before it could answer")
