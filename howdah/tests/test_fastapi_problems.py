"""Problem details can be written with members of any type."""

from __future__ import annotations

from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from fastapi import HTTPException, Response
from pydantic import BaseModel, ConfigDict

from howdah import uuid7
from howdah.fastapi import problem_response
from howdah_tests.support.fastapi_apps import bare_app, calling


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")

    names: dict[str, int] = {}


async def test_members_may_be_of_the_drivers_class_of_uuids() -> None:
    app, key = bare_app(), uuid7()

    @app.get("/")
    async def refuse() -> Response:
        return problem_response(409, "in-use", account_id=key, others=[key], by_key={str(key): Decimal("1.5")})

    async with calling(app) as client:
        answer = await client.get("/")
    assert answer.status_code == 409
    assert UUID(answer.json()["account_id"]) == key
    assert answer.json()["others"] == [str(key)]


@pytest.mark.parametrize(
    ("detail", "errors"),
    [
        ({1: "a", None: "b"}, {"1": "a", "null": "b"}),
        ([UUID(int=1), {"left"}], [str(UUID(int=1)), ["left"]]),
        ([Strict(names={"a": 1})], [{"names": {"a": 1}}]),
    ],
)
async def test_the_detail_of_an_http_exception_may_be_what_fastapi_encodes(detail: Any, errors: Any) -> None:
    app = bare_app()

    @app.get("/")
    async def refuse() -> None:
        raise HTTPException(409, detail)

    async with calling(app) as client:
        answer = await client.get("/")
    assert (answer.status_code, answer.json()["errors"]) == (409, errors)


@pytest.mark.parametrize(
    "body",
    [b'{"\\ud800": 1}', b'{"names": {"\\ud800": "x"}}', b'{"names": {"a": "\\ud800"}}', b'["\\ud800"]', b'"\\udfff"'],
)
async def test_half_a_character_in_a_body_is_422(body: bytes) -> None:
    app = bare_app()

    @app.post("/")
    async def create(body: Strict) -> None: ...

    async with calling(app) as client:
        answer = await client.post("/", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"]
