"""An invalid key is an error of the client, in every call that accepts keys."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import Request
from pydantic import BaseModel, ConfigDict

from howdah import AsyncRepository, Database, JsonView, bulk, lock
from howdah.fastapi import DbSession, json_response
from howdah_tests.support.fastapi_apps import asgi_client, create_bare_app
from howdah_tests.support.sample_models import Counter, Order, Seat, User


class UserOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    name: str


CALLS: dict[str, Any] = {
    "get": lambda db, key: AsyncRepository(db, User).get(key),
    "get_one": lambda db, key: AsyncRepository(db, User).get_one(key),
    "get_by_ids": lambda db, key: AsyncRepository(db, User).get_by_ids([key]),
    "lock": lambda db, key: lock(db, User, [key]),
    "delete_many": lambda db, key: AsyncRepository(db, User).delete_many([key]),
    "update_by_key": lambda db, key: bulk.update_by_key(db, User, [key], {"name": "b"}),
    "update_many": lambda db, key: bulk.update_many(db, User, [{"id": key, "name": "b"}]),
    "upsert_many": lambda db, key: bulk.upsert_many(db, User, [{"id": key, "email": "a@x", "name": "b"}]),
    "create_many": lambda db, key: bulk.insert_many(db, User, [{"id": key, "email": "a@x", "name": "b"}]),
    "create": lambda db, key: AsyncRepository(db, Order).create(user_id=key),
    "integer key": lambda db, key: AsyncRepository(db, Counter).get_one(key),
    "composite key": lambda db, key: AsyncRepository(db, Seat).get_one(("a", key)),
}


@pytest.mark.parametrize("key", ["no-uuid", "", "01977f1e-7c3a-7000-8000-00000000000", "٣", "1; DROP TABLE users"])
@pytest.mark.parametrize("call", CALLS)
async def test_a_key_that_is_invalid_for_its_column_is_422(database: Database, call: str, key: str) -> None:
    app = create_bare_app(database)

    @app.post("/{call}")
    async def write(db: DbSession, key: str) -> None:
        await CALLS[call](db, key)

    async with asgi_client(app) as client:
        answer = await client.post(f"/{call}", params={"key": key})
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"].startswith("urn:howdah:problem:")
    assert "DROP" not in answer.text


async def test_a_key_of_a_view_that_is_not_a_uuid_is_422(committed_database: Database) -> None:
    app = create_bare_app()
    async with JsonView(User, UserOut).open(committed_database) as view:

        @app.get("/{key}", response_model=UserOut)
        async def read(key: str, request: Request) -> Any:
            return json_response(await view.get(key), request)

        async with asgi_client(app) as client:
            assert (await client.get("/no-uuid")).status_code == 422
            assert (await client.get("/01977f1e-7c3a-7000-8000-000000000000")).status_code == 404
