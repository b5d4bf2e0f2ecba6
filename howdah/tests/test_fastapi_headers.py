"""`single_header`: a header that has one value."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from pydantic import StringConstraints

from howdah.fastapi import PROBLEM_JSON, MissingHeader, RepeatedHeader, single_header
from howdah_tests.support.fastapi_apps import asgi_client, create_bare_app

Key = Annotated[str, StringConstraints(min_length=1, max_length=5)]
Optional = Annotated[str | None, single_header("Idempotency-Key", Key, description="One per request")]
Required = Annotated[str, single_header("Idempotency-Key", Key, required=True)]
WithDefault = Annotated[int, single_header("X-Depth", int, default=7)]


def create_app() -> Any:
    app = create_bare_app()

    @app.post("/optional")
    async def optional(key: Optional) -> str | None:
        return key

    @app.post("/required")
    async def required(key: Required) -> str:
        return key

    @app.post("/default")
    async def default(depth: WithDefault) -> int:
        return depth

    return app


@pytest.mark.parametrize(
    ("path", "headers", "value"),
    [
        ("/optional", [], None),
        ("/optional", [("idempotency-key", "a")], "a"),
        ("/required", [("Idempotency-Key", "a b")], "a b"),
        ("/default", [], 7),
        ("/default", [("X-Depth", "3")], 3),
        ("/default", [("X-Depth", "0")], 0),
    ],
)
async def test_the_value_of_the_header_or_the_default_is_passed(
    path: str, headers: list[tuple[str, str]], value: Any
) -> None:
    async with asgi_client(create_app()) as client:
        answer = await client.post(path, headers=headers)
    assert (answer.status_code, answer.json()) == (200, value)


async def test_a_missing_required_header_is_a_400_with_a_type_of_its_own() -> None:
    async with asgi_client(create_app()) as client:
        answer = await client.post("/required")
    assert (answer.status_code, answer.headers["content-type"]) == (400, PROBLEM_JSON)
    assert answer.json()["type"] == "urn:howdah:problem:idempotency-key-missing"
    assert answer.json()["title"] == "Bad Request"
    assert "Idempotency-Key" in answer.json()["detail"]


@pytest.mark.parametrize("values", [("a", "b"), ("a", "a")])
async def test_a_header_that_is_sent_twice_is_a_400(values: tuple[str, str]) -> None:
    async with asgi_client(create_app()) as client:
        for path in ("/optional", "/required"):
            answer = await client.post(path, headers=[("Idempotency-Key", value) for value in values])
            assert (answer.status_code, answer.json()["type"]) == (400, "urn:howdah:problem:repeated-header")
            assert "Idempotency-Key" in answer.json()["detail"]


@pytest.mark.parametrize(("path", "value"), [("/optional", "123456"), ("/required", ""), ("/default", "x")])
async def test_an_invalid_value_is_a_422_that_names_the_header(path: str, value: str) -> None:
    name = "X-Depth" if path == "/default" else "Idempotency-Key"
    async with asgi_client(create_app()) as client:
        answer = await client.post(path, headers={name: value})
    assert answer.status_code == 422
    assert [error["loc"] for error in answer.json()["errors"]] == [["header", name]]


def test_the_header_and_its_problems_are_described() -> None:
    paths = create_app().openapi()["paths"]
    for path in ("/optional", "/required"):
        [parameter] = paths[path]["post"]["parameters"]
        assert (parameter["name"], parameter["in"]) == ("Idempotency-Key", "header")
        assert list(paths[path]["post"]["responses"]) == ["200", "400", "422"]
    assert paths["/optional"]["post"]["parameters"][0]["description"] == "One per request"


def test_the_errors_are_http_exceptions() -> None:
    assert (MissingHeader("A").status_code, RepeatedHeader("A").status_code) == (400, 400)
