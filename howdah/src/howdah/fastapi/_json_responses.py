"""Responses with JSON that is encoded already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from starlette.responses import Response

_JSON: Final = "application/json"
_CONTENT_TYPE: Final = (b"content-type", _JSON.encode())


def build_json_response(body: bytes, *, status: int = 200, headers: Sequence[tuple[bytes, bytes]] = ()) -> Response:
    """`Response(body, status, headers, "application/json")` in a quarter of the time, for a status with a body."""
    response = Response.__new__(Response)
    response.status_code, response.media_type, response.background, response.body = status, _JSON, None, body
    response.raw_headers = [*headers, (b"content-length", b"%d" % len(body)), _CONTENT_TYPE]
    return response
