"""Invalid keys and the forms of valid keys, in every call that accepts keys."""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import AsyncRepository, Database, InvalidValue, JsonView, bulk, lock
from howdah.fastapi import DbSession, add_error_handlers
from howdah.testing import assert_statements
from howdah_tests.support.sample_models import Counter, Seat, User
from howdah_tests.support.sample_rows import make_users

Call = Callable[[AsyncSession, type[Any], Any], Awaitable[Any]]


async def update_many(session: AsyncSession, model: type[Any], key: Any) -> Any:
    row = dict(zip(("row", "number"), key, strict=True)) if model is Seat else {"id": key}
    return await bulk.update_many(session, model, [row])


CALLS: dict[str, Call] = {
    "get": lambda session, model, key: AsyncRepository(session, model).get(key),
    "get_one": lambda session, model, key: AsyncRepository(session, model).get_one(key),
    "get with load": lambda session, model, key: AsyncRepository(session, model).get(key, load=[]),
    "get_by_ids": lambda session, model, key: AsyncRepository(session, model).get_by_ids([key]),
    "lock": lambda session, model, key: lock(session, model, [key]),
    "update_by_key": lambda session, model, key: bulk.update_by_key(session, model, [key], {}),
    "delete_many": lambda session, model, key: bulk.delete_many(session, model, [key]),
}


@pytest.mark.parametrize("call", [*CALLS.values(), update_many])
@pytest.mark.parametrize(("model", "key"), [(User, "x"), (Counter, 1.5), (Seat, ("A", 1.5))])
async def test_a_value_that_is_invalid_for_the_key_is_rejected_before_anything_is_sent(
    session: AsyncSession, call: Call, model: type[Any], key: Any
) -> None:
    await session.connection()
    with assert_statements(session, 0), pytest.raises(InvalidValue) as caught:
        await call(session, model, key)
    assert pickle.loads(pickle.dumps(caught.value)).args == caught.value.args  # noqa: S301


@pytest.mark.parametrize("name", CALLS)
async def test_a_value_that_only_the_driver_rejects_is_an_invalid_value_too(session: AsyncSession, name: str) -> None:
    with pytest.raises(InvalidValue):
        await CALLS[name](session, Counter, "x")


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("key", [("A", 1), ["A", 1], {"number": 1, "row": "A"}, {"row": "A", "number": 1.0}])
async def test_a_composite_key_may_be_a_tuple_a_list_or_a_mapping(session: AsyncSession, name: str, key: Any) -> None:
    await bulk.insert_many(session, Seat, [{"row": "A", "number": n} for n in range(3)])
    expected = await CALLS[name](session, Seat, ("A", 2))
    found = await CALLS[name](session, Seat, key)
    assert found
    assert type(found) is type(expected)
    assert getattr(found, "missing", []) == []


async def test_a_key_of_one_column_may_be_a_mapping(session: AsyncSession) -> None:
    session.add(Counter(id=1))
    await session.flush()
    for name, call in CALLS.items():
        assert await call(session, Counter, {"id": 1}), name


class Out(BaseModel):
    model_config = {"from_attributes": True}


class CounterOut(Out):
    id: int


class SeatOut(Out):
    row: str
    number: int


async def test_a_view_accepts_keys_in_every_form(session: AsyncSession, database: Database) -> None:
    await bulk.insert_many(session, Seat, [{"row": "A", "number": n} for n in range(3)])
    await bulk.insert_many(session, Counter, [{"id": 1}, {"id": 2}])
    await session.commit()
    async with JsonView(Seat, SeatOut).open(database) as seats:
        assert json.loads(await seats.get({"number": 1, "row": "A"})) == {"row": "A", "number": 1}
        assert len(await seats.get_many([{"number": 1, "row": "A"}, ("A", 1.0), ["A", 2]])) == 2
    async with JsonView(Counter, CounterOut).open(database) as counters:
        keys = [1, 1.0, True, {"id": 1}, 1.5, "x", 2]
        found = await asyncio.gather(*map(counters.get, keys), return_exceptions=True)
        assert [each if isinstance(each, bytes) else type(each) for each in found] == [
            *[b'{"id":1}'] * 4,
            *(InvalidValue, InvalidValue, b'{"id":2}'),
        ]


async def test_a_key_that_is_not_a_uuid_is_422(session: AsyncSession, database: Database) -> None:
    users = await make_users(session, 1)
    await session.commit()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> Any:
        yield {"database": database}

    app = FastAPI(lifespan=lifespan)
    add_error_handlers(app)

    @app.get("/users/{id}")
    async def get_user(id: str, session: DbSession) -> str:
        return (await AsyncRepository(session, User).get_one(id)).email

    @app.delete("/users")
    async def delete_users(ids: str, session: DbSession) -> int:
        return (await bulk.delete_many(session, User, ids.split(","))).count

    async with (
        lifespan(app) as state,
        httpx.AsyncClient(transport=WithState(app, state), base_url="http://test") as client,
    ):
        assert (await client.get(f"/users/{users[0]}")).status_code == 200
        for response in (await client.get("/users/x"), await client.delete(f"/users?ids={users[0]},x")):
            assert response.status_code == 422
            assert response.json()["type"] == "urn:howdah:problem:invalid-value"


class WithState(httpx.ASGITransport):
    """A transport that passes on the lifespan's state, as a server does."""

    def __init__(self, app: FastAPI, state: dict[str, Any]) -> None:
        async def app_with_state(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, "state": dict(state)}, receive, send)

        super().__init__(app=app_with_state)
