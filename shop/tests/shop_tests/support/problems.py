"""The check of a problem response."""

from __future__ import annotations

import re
from typing import Any, Final

import httpx

_ID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_VARYING_HEADERS: Final = frozenset({"date", "x-request-id"})


def assert_problem(response: httpx.Response, status: int, code: str, **members: Any) -> dict[str, Any]:
    """Check that the response is a problem with this status, code and members. Returns its body."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["type"] == f"urn:howdah:problem:{code}", body
    assert body["status"] == status
    assert body["title"]
    assert {name: body.get(name) for name in members} == members
    assert ("retry-after" in response.headers) == (status in {429, 503})
    assert not any(
        word in response.text for word in ("INSERT", "SELECT", "UPDATE", "asyncpg", "sqlalchemy", "Traceback")
    )
    return body


def assert_same_problem(foreign: httpx.Response, missing: httpx.Response, *, status: int) -> None:
    """Check that two problem responses differ only in the ids that the requests had."""
    assert (foreign.status_code, missing.status_code) == (status, status), (foreign.text, missing.text)
    assert _ID.sub("id", foreign.text) == _ID.sub("id", missing.text)
    headers = [
        {name: text for name, text in each.headers.items() if name not in _VARYING_HEADERS}
        for each in (foreign, missing)
    ]
    assert headers[0] == headers[1]
