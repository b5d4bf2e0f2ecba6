"""The check of a problem response."""

from __future__ import annotations

from typing import Any

import httpx


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
