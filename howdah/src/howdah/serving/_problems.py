"""Responses of the server itself: problem details as the bytes of a whole HTTP response."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import orjson

RETRY_AFTER_SECONDS: Final = (1, 2, 3)
"""The values of `Retry-After`. Each response has one at random, so that rejected clients return at different times."""


@dataclass(frozen=True, slots=True)
class ServerProblem:
    """A problem with the type `urn:howdah:problem:<code>`. The server closes the connection after it."""

    status: HTTPStatus
    code: str
    detail: str

    def encode_body(self) -> bytes:
        members = {
            "type": f"urn:howdah:problem:{self.code}",
            "title": self.status.phrase,
            "status": int(self.status),
            "detail": self.detail,
        }
        return orjson.dumps(members)

    def encode(self, default_headers: Iterable[tuple[bytes, bytes]]) -> bytes:
        """Encode the response. A 503 has a `Retry-After`."""
        body = self.encode_body()
        headers = [
            *default_headers,
            (b"content-type", b"application/problem+json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
        ]
        if self.status == HTTPStatus.SERVICE_UNAVAILABLE:
            headers.append((b"retry-after", choose_retry_after().encode()))
        lines = [f"HTTP/1.1 {int(self.status)} {self.status.phrase}".encode(), *(b": ".join(each) for each in headers)]
        return b"\r\n".join((*lines, b"", body))


def choose_retry_after() -> str:
    return str(random.choice(RETRY_AFTER_SECONDS))  # noqa: S311  # not a secret


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
OVERLOADED: Final = ServerProblem(
    HTTPStatus.SERVICE_UNAVAILABLE,
    "overloaded",
    "the service has more requests than it can answer in time, so it did nothing: try again later",
)
STOPPING: Final = ServerProblem(HTTPStatus.SERVICE_UNAVAILABLE, "stopping", "the server stopped before it could answer")
