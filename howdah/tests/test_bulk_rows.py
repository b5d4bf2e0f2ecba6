"""The kinds of rows that a bulk write accepts, and its memory use."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
from pydantic import BaseModel, ConfigDict
from sqlalchemy import event, select
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import InsertResult, MatchResult, UnknownAttribute, UpsertResult, bulk
from howdah.testing import assert_statements
from howdah_tests.support.sample_models import Order, Seat, User, UserRepository
from howdah_tests.support.sample_rows import emails, make_users, user_rows

# --- kinds of rows


class UserIn(BaseModel):
    email: str
    name: str
    age: int | None = None
    nickname: str | None = None


@dataclass
class UserData:
    email: str
    name: str
    age: int | None = None
    nickname: str = "from data"


def generated() -> Iterator[dict[str, Any]]:
    yield from user_rows(5)


async def generated_async() -> AsyncIterator[dict[str, Any]]:
    for row in user_rows(5):
        await asyncio.sleep(0)
        yield row


@pytest.mark.parametrize(
    "make",
    [
        lambda: user_rows(5),
        lambda: tuple(user_rows(5)),
        generated,
        generated_async,
        lambda: map(dict, user_rows(5)),
        lambda: [UserIn(**row) for row in user_rows(5)],
        lambda: [UserData(**row) for row in user_rows(5)],
        lambda: [User(**row) for row in user_rows(5)],
        lambda: [kind(**row) for kind, row in zip([dict, UserIn, UserData, User, dict], user_rows(5), strict=True)],
    ],
    ids=["list", "tuple", "generator", "async generator", "map", "Pydantic", "dataclass", "mapped", "mixed"],
)
@pytest.mark.parametrize("chunk_size", [2, 5])
async def test_rows_of_every_kind_from_every_iterable_are_accepted(
    session: AsyncSession, make: Any, chunk_size: int
) -> None:
    created = await bulk.insert_many(session, User, make(), chunk_size=chunk_size)
    assert created.count == 5
    assert await emails(session) == [row["email"] for row in user_rows(5)]
    assert list(await session.scalars(select(User.id).order_by(User.email))) == created.keys


async def test_the_rows_of_a_result_and_of_a_stream_of_the_same_session_are_accepted(session: AsyncSession) -> None:
    await make_users(session, 25)
    rows = (await session.execute(select(User.email.label("row"), User.age.label("number")))).mappings()
    assert (await bulk.insert_many(session, Seat, rows)).count == 25
    await bulk.delete_many(
        session, Seat, [tuple(seat) for seat in await session.execute(select(Seat.row, Seat.number))]
    )

    async def streamed() -> AsyncIterator[dict[str, Any]]:
        async for user in UserRepository(session).stream(batch=3):
            yield {"row": user.email, "number": user.age}

    assert (await bulk.insert_many(session, Seat, streamed(), chunk_size=4)).count == 25


@pytest.mark.parametrize("write", [bulk.insert_many, bulk.update_many, bulk.upsert_many])
async def test_an_empty_input_writes_nothing(session: AsyncSession, write: Any) -> None:
    result = await write(session, User, [])
    assert result in (InsertResult(0, []), MatchResult(0, []), UpsertResult(0, 0, 0))


@pytest.mark.parametrize("write", [bulk.insert_many, bulk.update_many, bulk.upsert_many])
@pytest.mark.parametrize("size", [0, -1])
async def test_a_chunk_of_no_rows_is_rejected(session: AsyncSession, write: Any, size: int) -> None:
    with pytest.raises(ValueError, match="chunk_size must be at least 1"):
        await write(session, User, user_rows(1), chunk_size=size)


@pytest.mark.parametrize("wrong", [[1, 2], [("a", "b")], [None], [Order()], [UserIn]])
async def test_a_value_that_is_not_a_row_is_rejected_with_its_index(session: AsyncSession, wrong: Any) -> None:
    with assert_statements(session, 0), pytest.raises(TypeError, match="a row must be a mapping") as caught:
        await bulk.insert_many(session, User, wrong)
    assert caught.value.__notes__ == ["in row 0 of the input, counted from 0"]


@pytest.mark.parametrize("write", [bulk.insert_many, bulk.update_many, bulk.upsert_many])
@pytest.mark.parametrize("single", [{"email": "a"}, "ab", UserIn, 1])
async def test_a_single_row_instead_of_an_iterable_is_rejected(session: AsyncSession, write: Any, single: Any) -> None:
    with assert_statements(session, 0), pytest.raises(TypeError, match="rows must be an iterable"):
        await write(session, User, single)


async def test_a_single_name_instead_of_a_list_of_names_is_rejected(session: AsyncSession) -> None:
    with pytest.raises(
        ValueError, match=r"no unique constraint or index named 'email'.* To name attributes, pass a list"
    ):
        await bulk.upsert_many(session, User, user_rows(1), on="email")
    with pytest.raises(TypeError, match="`update` must be a list of attribute names"):
        await bulk.upsert_many(session, User, user_rows(1), on=["email"], update="name")


@pytest.mark.parametrize("write", [bulk.insert_many, bulk.update_many, bulk.upsert_many])
async def test_an_unknown_attribute_is_reported_with_its_row_before_the_chunk_is_sent(
    session: AsyncSession, write: Any
) -> None:
    rows = [{"id": uuid4(), "email": f"{i}@example.org", "name": "A"} for i in range(3)]
    rows[2]["emial"] = "x"
    with assert_statements(session, 0), pytest.raises(UnknownAttribute, match="'emial'") as caught:
        await write(session, User, rows)
    assert caught.value.__notes__ == ["in row 2 of the input, counted from 0"]


class LooseUser(BaseModel):
    model_config = ConfigDict(extra="allow")
    email: str


@pytest.mark.parametrize(
    "row",
    [
        {"email": "a", "name": "A", "orders": []},
        {"email": "a", "name": "A", "name_length": 1},
        {"email": "a", "name": "A", "shout": "A"},
        {"email": "a", "name": "A", "metadata": None},
        LooseUser.model_validate({"email": "a", "orders": []}),
    ],
    ids=["relationship", "column_property", "hybrid", "metadata", "Pydantic extra"],
)
async def test_only_columns_can_be_set_in_bulk(session: AsyncSession, row: Any) -> None:
    with pytest.raises(UnknownAttribute):
        await bulk.insert_many(session, User, [row])


async def test_a_mapped_object_with_related_objects_is_rejected(session: AsyncSession) -> None:
    with pytest.raises(TypeError, match=r"User\.orders is set: a bulk write writes columns"):
        await bulk.insert_many(session, User, [User(email="a", name="A", orders=[Order()])])
    assert (await bulk.insert_many(session, User, [User(email="a", name="A", orders=[])])).count == 1


async def test_a_mapped_object_is_not_added_to_the_session(session: AsyncSession) -> None:
    user = User(email="a@example.org", name="A")
    created = await bulk.insert_many(session, User, [user])
    assert user not in session
    assert user.id is None
    assert len(created.keys) == 1


async def test_unset_fields_of_a_pydantic_model_are_left_out(session: AsyncSession) -> None:
    await bulk.insert_many(session, User, [UserIn(email="a", name="A"), UserIn(email="b", name="B", nickname="b")])
    assert list(await session.scalars(select(User.nickname).order_by(User.email))) == ["nobody", "b"]


# --- memory


class Counted(dict[str, Any]):
    """A row that counts its instances."""

    instances = 0
    max_instances = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        Counted.instances += 1
        Counted.max_instances = max(Counted.max_instances, Counted.instances)

    def __del__(self) -> None:
        Counted.instances -= 1


async def test_rows_are_released_chunk_by_chunk_and_no_object_stays_in_the_session(session: AsyncSession) -> None:
    """Fault 5. Control: the reference creates an object for every row, from a list of all rows."""
    Counted.max_instances = 0
    created_objects = 0

    @event.listens_for(User, "init")
    def count(*_: Any) -> None:
        nonlocal created_objects
        created_objects += 1

    async def reference_bulk_create_users(db: AsyncSession, users_data: list[Any], chunk_size: int) -> int:
        max_in_session = 0
        for i in range(0, len(users_data), chunk_size):
            users = [User(**data) for data in users_data[i : i + chunk_size]]
            db.add_all(users)
            await db.flush()
            max_in_session = max(max_in_session, len(db.identity_map))
        return max_in_session

    try:
        await bulk.insert_many(session, User, (Counted(row) for row in user_rows(5000)), chunk_size=500)
        gc.collect()
        assert len(session.identity_map) == created_objects == 0
        assert Counted.max_instances <= 1001
        more = [{**row, "email": row["email"] + ".org"} for row in user_rows(5000)]
        assert await reference_bulk_create_users(session, more, 500) >= 500
        assert created_objects == 5000
    finally:
        event.remove(User, "init", count)
