"""Bulk writes: what they take, what they leave, whom they name."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import BaseModel, ConfigDict
from sample import (
    Album,
    Car,
    Counter,
    Engineer,
    Label,
    Order,
    Seat,
    Specimen,
    Staff,
    Status,
    Track,
    User,
    UserRepository,
    Vehicle,
    Wide,
)
from sqlalchemy import MetaData, String, event, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError, InvalidRequestError, StatementError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Mapped, mapped_column, undefer

from howdah import (
    AsyncRepository,
    Base,
    CheckViolation,
    Created,
    Database,
    DeadlockDetected,
    ForeignKeyViolation,
    InvalidStatement,
    InvalidValue,
    LockTimeout,
    Matched,
    NotNullViolation,
    OutOfRange,
    StaleRow,
    TooLong,
    UniqueViolation,
    UnknownAttribute,
    Upserted,
    bulk,
    utcnow,
)
from howdah.refusals import or_name_the_row
from howdah.testing import assert_statements


class Separate(Base):
    """Away from the tables of the test database."""

    __abstract__ = True
    metadata = MetaData()


class Touched(Separate):
    __tablename__ = "touched"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    value: Mapped[int]
    by_constant: Mapped[str | None] = mapped_column(onupdate="constant")
    by_expression: Mapped[str | None] = mapped_column(onupdate=func.lower("EXPRESSION"))
    by_function: Mapped[str | None] = mapped_column(onupdate=lambda: "function")


class Tagged(Separate):
    __tablename__ = "tagged"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    value: Mapped[int]
    tag = mapped_column(String)
    __mapper_args__ = {"version_id_col": tag, "version_id_generator": lambda version: uuid4().hex}  # noqa: RUF012


LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


def user_rows(count: int, **values: Any) -> list[dict[str, Any]]:
    return [{"email": f"user{i}@example.org", "name": f"User {i % 10}", "age": i, **values} for i in range(count)]


async def make_users(session: AsyncSession, count: int) -> list[UUID]:
    return (await bulk.insert_many(session, User, user_rows(count, updated_at=LONG_AGO))).keys


async def make_orders(session: AsyncSession, count: int) -> list[UUID]:
    user = (await make_users(session, 1))[0]
    rows = [{"user_id": user, "total_cents": i, "updated_at": LONG_AGO} for i in range(count)]
    return (await bulk.insert_many(session, Order, rows)).keys


async def emails(session: AsyncSession) -> list[str]:
    return list(await session.scalars(select(User.email).order_by(User.id)))


# --- what a row may be


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
async def test_takes_rows_of_every_kind_from_every_iterable(session: AsyncSession, make: Any, chunk_size: int) -> None:
    created = await bulk.insert_many(session, User, make(), chunk_size=chunk_size)
    assert created.count == 5
    assert await emails(session) == [row["email"] for row in user_rows(5)]
    assert list(await session.scalars(select(User.id).order_by(User.email))) == created.keys


async def test_takes_the_rows_of_another_statement_and_of_a_stream_in_the_same_session(session: AsyncSession) -> None:
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
async def test_no_rows_are_no_work(session: AsyncSession, write: Any) -> None:
    result = await write(session, User, [])
    assert result in (Created(0, []), Matched(0, []), Upserted(0, 0, 0))


@pytest.mark.parametrize("write", [bulk.insert_many, bulk.update_many, bulk.upsert_many])
@pytest.mark.parametrize("size", [0, -1])
async def test_a_chunk_of_no_rows_is_refused(session: AsyncSession, write: Any, size: int) -> None:
    with pytest.raises(ValueError, match="at least one row"):
        await write(session, User, user_rows(1), chunk_size=size)


@pytest.mark.parametrize("wrong", [{"email": "a"}, "ab", [1, 2], [("a", "b")], [None], [Order()], [UserIn]])
async def test_what_is_no_row_is_named(session: AsyncSession, wrong: Any) -> None:
    with assert_statements(session, 0), pytest.raises(TypeError, match="a row is a mapping") as caught:
        await bulk.insert_many(session, User, wrong)
    assert caught.value.__notes__ == ["in row 0 of the input, counted from 0"]


@pytest.mark.parametrize("write", [bulk.insert_many, bulk.update_many, bulk.upsert_many])
async def test_an_unknown_attribute_is_named_with_its_row_before_its_chunk_is_sent(
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


async def test_related_objects_of_a_mapped_object_arent_silently_lost(session: AsyncSession) -> None:
    with pytest.raises(TypeError, match=r"User\.orders is set: a bulk write writes columns"):
        await bulk.insert_many(session, User, [User(email="a", name="A", orders=[Order()])])
    assert (await bulk.insert_many(session, User, [User(email="a", name="A", orders=[])])).count == 1


async def test_a_mapped_object_is_read_and_not_added(session: AsyncSession) -> None:
    user = User(email="a@example.org", name="A")
    created = await bulk.insert_many(session, User, [user])
    assert user not in session
    assert user.id is None
    assert len(created.keys) == 1


# --- values


async def test_defaults_apply_to_what_is_left_out_and_to_nothing_else(session: AsyncSession) -> None:
    """Control: SQLAlchemy's bulk insert takes a None for "left out" by itself."""
    await bulk.insert_many(session, User, [{"email": "a", "name": "A"}, {"email": "b", "name": "B", "nickname": "b"}])
    found = list(await session.scalars(select(User).order_by(User.email)))
    assert [user.nickname for user in found] == ["nobody", "b"]
    assert all(abs(user.created_at - utcnow()) < timedelta(minutes=1) for user in found)
    with pytest.raises(NotNullViolation) as caught:
        await bulk.insert_many(session, User, [{"email": "c", "name": "C", "nickname": None}])
    assert (caught.value.column, caught.value.row_index) == ("nickname", 0)
    with pytest.raises(NotNullViolation):
        await bulk.insert_many(session, User, [{"email": "c", "name": "C", "created_at": None}])
    await session.execute(insert(User), [{"email": "c", "name": "C", "nickname": None}])
    assert await session.scalar(select(User.nickname).where(User.email == "c")) == "nobody"


async def test_what_a_pydantic_model_leaves_unset_is_left_out(session: AsyncSession) -> None:
    await bulk.insert_many(session, User, [UserIn(email="a", name="A"), UserIn(email="b", name="B", nickname="b")])
    assert list(await session.scalars(select(User.nickname).order_by(User.email))) == ["nobody", "b"]


async def test_a_key_that_is_none_is_a_key_left_out(session: AsyncSession) -> None:
    created = await bulk.insert_many(session, User, [User(id=None, email="a", name="A")])
    assert isinstance(created.keys[0], UUID)
    assert (await bulk.insert_many(session, Counter, [{"id": None, "value": 1}])).keys != [None]


SPECIMENS: list[dict[str, Any]] = [
    {
        "whole": -(2**30),
        "big": 2**62,
        "words": "Straße\n\t\"'\\ 🐘",
        "code": "abc",
        "moment": datetime(2024, 2, 29, 12, 30, 15, 123456, tzinfo=UTC),
        "day": date(1, 1, 1),
        "hour": time(23, 59, 59, 999999),
        "exact": Decimal("12345678901234567890.123456789"),
        "rounded": 0.1,
        "real": float("inf"),
        "state": Status.PAID,
        "place": Status.PENDING,
        "token": UUID(int=7),
        "flag": True,
        "raw": b"\x00\xff",
        "span": timedelta(days=-1, microseconds=1),
        "loud": "quiet",
        "anything": {"a": [1, None, "x"]},
        "nothing": [1],
        "plain_json": {"b": 1},
        "notes": "note",
    },
    dict.fromkeys(
        [
            *("whole", "big", "words", "code", "moment", "day", "hour", "exact", "rounded", "real", "state", "place"),
            *("token", "flag", "raw", "span", "loud", "anything", "nothing", "plain_json", "notes"),
        ]
    ),
]


def values_of(specimen: Specimen) -> dict[str, Any]:
    return {name: getattr(specimen, name) for name in SPECIMENS[0]}


async def read_specimens(session: AsyncSession) -> list[dict[str, Any]]:
    session.expunge_all()
    found = await session.scalars(select(Specimen).options(undefer(Specimen.notes)).order_by(Specimen.id))
    return [values_of(specimen) for specimen in found]


async def json_nulls(session: AsyncSession) -> list[Any]:
    """Which of the JSON columns of the second specimen hold a JSON null; None where they are NULL."""
    columns = (func.jsonb_typeof(Specimen.anything), func.jsonb_typeof(Specimen.nothing), Specimen.plain_json.is_(None))
    return list((await session.execute(select(*columns).where(Specimen.id == 1))).one())


async def test_inserted_values_of_every_type_come_back_as_they_were(session: AsyncSession) -> None:
    rows = [{"id": i, **values, "tags": ["a", "b"]} for i, values in enumerate(SPECIMENS)]
    await bulk.insert_many(session, Specimen, rows)
    assert await read_specimens(session) == SPECIMENS
    assert await json_nulls(session) == ["null", None, False]
    assert list(await session.scalars(select(Specimen.tags))) == [["a", "b"]] * 2
    assert await session.scalar(text("SELECT loud FROM specimens WHERE id = 0")) == "QUIET"


async def test_updated_values_of_every_type_come_back_as_they_were(session: AsyncSession) -> None:
    await bulk.insert_many(session, Specimen, [{"id": i, **values} for i, values in enumerate(reversed(SPECIMENS))])
    rows = [{"id": i, **values} for i, values in enumerate(SPECIMENS)]
    assert (await bulk.update_many(session, Specimen, rows)).count == 2
    assert await read_specimens(session) == SPECIMENS
    assert await json_nulls(session) == ["null", None, False]
    assert await session.scalar(text("SELECT loud FROM specimens WHERE id = 0")) == "QUIET"


async def test_upserted_values_of_every_type_come_back_as_they_were(session: AsyncSession) -> None:
    rows = [{"id": i, **values} for i, values in enumerate(reversed(SPECIMENS))]
    assert await bulk.upsert_many(session, Specimen, rows) == Upserted(2, 0, 0)
    rows = [{"id": i, **values} for i, values in enumerate(SPECIMENS)]
    assert await bulk.upsert_many(session, Specimen, rows) == Upserted(0, 2, 0)
    assert await bulk.upsert_many(session, Specimen, rows) == Upserted(0, 0, 2)
    assert await read_specimens(session) == SPECIMENS
    assert await json_nulls(session) == ["null", None, False]


async def test_json_null_is_null_only_where_the_type_says_so_as_for_a_single_object(session: AsyncSession) -> None:
    session.add(Specimen(id=1, anything=None, nothing=None, plain_json=None))
    await session.flush()
    assert await json_nulls(session) == ["null", None, False]


async def test_arrays_cant_be_updated_in_bulk_and_that_is_said_before_anything_is_sent(session: AsyncSession) -> None:
    await bulk.insert_many(session, Specimen, [{"id": 1, "tags": ["a"]}])
    with pytest.raises(TypeError, match=r"update_many can't set Specimen\.tags, an array"):
        await bulk.update_many(session, Specimen, [{"id": 1, "tags": ["b"]}])
    assert (await bulk.update_by_key(session, Specimen, [1], {"tags": ["c"]})).count == 1
    assert await session.scalar(select(Specimen.tags)) == ["c"]


async def test_a_column_may_be_named_otherwise_than_its_attribute(session: AsyncSession) -> None:
    keys = (await bulk.insert_many(session, Counter, [{"value": 1}, {"value": 2}])).keys
    await bulk.update_many(session, Counter, [{"id": keys[0], "value": 10}])
    await bulk.upsert_many(session, Counter, [{"id": keys[1], "value": 20}])
    await bulk.update_by_key(session, Counter, keys[:1], {"value": Counter.value + 1})
    assert list(await session.scalars(select(Counter.value).order_by(Counter.id))) == [11, 20]
    with pytest.raises(UnknownAttribute, match="'val'"):
        await bulk.insert_many(session, Counter, [{"val": 1}])


async def test_keys_that_the_database_makes_come_back_in_the_order_of_the_input(session: AsyncSession) -> None:
    created = await bulk.insert_many(session, Counter, [{"value": i % 7} for i in range(2500)], chunk_size=999)
    rows = dict((await session.execute(select(Counter.id, Counter.value))).all())
    assert [rows[key] for key in created.keys] == [i % 7 for i in range(2500)]
    assert created.count == len(set(created.keys)) == 2500
    assert (await bulk.insert_many(session, Counter, [{"value": 1}], keys=False)) == Created(1, [])


async def test_rows_with_and_without_a_key_may_be_mixed(session: AsyncSession) -> None:
    rows = [{"value": 0}, {"id": 77_777, "value": 1}, {"value": 2}, {"id": 88_888}, {"value": 4}]
    created = await bulk.insert_many(session, Counter, rows)
    found = dict((await session.execute(select(Counter.id, Counter.value))).all())
    assert [found[key] for key in created.keys] == [0, 1, 2, 0, 4]
    assert (created.keys[1], created.keys[3]) == (77_777, 88_888)


async def test_a_key_given_as_text_comes_back_as_a_key(session: AsyncSession) -> None:
    id = uuid4()
    assert (await bulk.insert_many(session, User, [{"id": str(id), "email": "a", "name": "A"}])).keys == [id]
    assert (await bulk.update_many(session, User, [{"id": str(id), "name": "B"}])) == Matched(1, [])
    assert (await bulk.upsert_many(session, User, [{"id": str(id), "email": "a", "name": "C"}])) == Upserted(0, 1, 0)
    with pytest.raises(ValueError, match="badly formed") as caught:
        await bulk.update_many(session, User, [{"id": id, "name": "B"}, {"id": "x", "name": "B"}])
    assert caught.value.__notes__ == ["in row 1 of the input, counted from 0"]


async def test_rows_of_more_values_than_a_statement_may_have_parameters(session: AsyncSession) -> None:
    rows = [{"id": i, **{f"c{c}": i + c for c in range(60)}} for i in range(1500)]
    assert (await bulk.insert_many(session, Wide, rows, chunk_size=1500)).count == 1500
    more = [{**row, "c0": -1} for row in rows]
    assert await bulk.update_many(session, Wide, more, chunk_size=1500) == Matched(1500, [])
    assert await bulk.upsert_many(session, Wide, rows, chunk_size=1500) == Upserted(0, 1500, 0)
    fresh = [{**row, "id": row["id"] + 10_000} for row in rows]
    assert await bulk.upsert_many(session, Wide, fresh, chunk_size=1500) == Upserted(1500, 0, 0)


async def test_keys_of_the_database_in_wide_rows(session: AsyncSession) -> None:
    created = await bulk.insert_many(session, User, user_rows(4000), chunk_size=4000)
    assert created.count == 4000


async def test_joined_tables_can_be_inserted_and_nothing_else(session: AsyncSession) -> None:
    rows = [{"name": f"E{i}", "language": "Python"} for i in range(5)]
    created = await bulk.insert_many(session, Engineer, rows)
    found = list(await session.scalars(select(Engineer).order_by(Engineer.name)))
    assert [(engineer.id, engineer.kind, engineer.language) for engineer in found] == [
        (key, "engineer", "Python") for key in created.keys
    ]
    refused = [
        bulk.update_many(session, Engineer, [{"id": created.keys[0], "language": "C"}]),
        bulk.upsert_many(session, Engineer, rows),
        bulk.update_by_key(session, Engineer, created.keys, {"language": "C"}),
        bulk.delete_many(session, Engineer, created.keys),
    ]
    for call in refused:
        with pytest.raises(TypeError, match="a Engineer lies in staff, engineers"):
            await call
    assert await bulk.update_many(session, Staff, [{"id": created.keys[0], "name": "Z"}]) == Matched(1, [])
    assert found[0].name == "Z"


async def test_a_single_table_keeps_its_subclasses_apart(session: AsyncSession) -> None:
    cars = (await bulk.insert_many(session, Car, [{"wheels": 4, "doors": 3}, {"wheels": 3}])).keys
    carts = (await bulk.insert_many(session, Vehicle, [{"wheels": 2}])).keys
    assert list(await session.scalars(select(Vehicle.kind).order_by(Vehicle.id))) == ["car", "car", "vehicle"]
    everything = [*cars, *carts]
    assert await bulk.update_by_key(session, Car, everything, {"wheels": 5}) == Matched(2, carts)
    assert await bulk.update_many(session, Car, [{"id": key, "doors": 1} for key in everything]) == Matched(2, carts)
    assert await bulk.delete_many(session, Car, everything) == Matched(2, carts)


async def test_an_object_of_a_subclass_isnt_cut_down_to_its_base(session: AsyncSession) -> None:
    with pytest.raises(TypeError, match="a Car can't be written as Vehicle"):
        await bulk.insert_many(session, Vehicle, [Car(wheels=4, doors=3)])
    assert (await bulk.insert_many(session, Car, [Car(wheels=4, doors=3)])).count == 1


# --- all or nothing, and which row it was


@pytest.fixture
async def settled(session: AsyncSession) -> AsyncSession:
    """A session in which something was written before."""
    await bulk.insert_many(session, User, [{"email": "first@example.org", "name": "First"}])
    return session


ROWS = user_rows(260)  # three chunks of 100


def bad_rows(place: int, **values: Any) -> list[dict[str, Any]]:
    return [{**row, **values} if i == place else row for i, row in enumerate(ROWS)]


@pytest.mark.parametrize(
    ("place", "values", "error", "constraint"),
    [
        (250, {"email": "first@example.org"}, UniqueViolation, "uq_users_email"),
        (259, {"email": "user3@example.org"}, UniqueViolation, "uq_users_email"),
        (215, {"email": "user210@example.org"}, UniqueViolation, "uq_users_email"),
        (234, {"age": -1}, CheckViolation, "ck_users_age_not_negative"),
        (234, {"name": None}, NotNullViolation, None),
        (200, {"name": "x" * 21}, TooLong, None),
        (99, {"age": 2**31}, OutOfRange, None),
        (234, {"age": "seven"}, InvalidValue, None),
        (234, {"email": "nul\x00"}, InvalidValue, None),
        (100, {"created_at": datetime(2024, 1, 1)}, InvalidValue, None),  # noqa: DTZ001
        (234, {"created_at": "yesterday"}, InvalidValue, None),
        (0, {"id": "no key"}, InvalidValue, None),
    ],
    ids=["unique", "far", "near", "check", "null", "long", "range", "type", "nul", "naive", "text", "key"],
)
async def test_a_bad_row_fails_the_whole_and_is_named(
    settled: AsyncSession, place: int, values: dict[str, Any], error: Any, constraint: str | None
) -> None:
    with pytest.raises(error) as caught:
        await bulk.insert_many(settled, User, bad_rows(place, **values), chunk_size=100)
    assert caught.value.row_index == place
    assert caught.value.constraint == constraint
    assert f"row {place} of the input" in caught.value.__notes__[-1]
    assert await emails(settled) == ["first@example.org"], "the caller goes on in the same transaction"
    await bulk.insert_many(settled, User, user_rows(3))
    assert len(await emails(settled)) == 4


async def test_what_fails_is_still_caught_by_sqlalchemys_classes(settled: AsyncSession) -> None:
    with pytest.raises(IntegrityError):
        await bulk.insert_many(settled, User, bad_rows(234, age=-1))
    with pytest.raises(StatementError) as caught:
        await bulk.insert_many(settled, User, bad_rows(234, created_at=datetime(2024, 1, 1)))  # noqa: DTZ001
    assert "has no time zone" in str(caught.value.__cause__)


async def test_the_first_of_several_bad_rows_is_named(settled: AsyncSession) -> None:
    rows = bad_rows(140, age=-1)
    rows[130] = {**rows[130], "name": "x" * 21}
    with pytest.raises(TooLong) as caught:
        await bulk.insert_many(settled, User, rows)
    assert caught.value.row_index == 130


async def test_a_statement_that_is_wrong_itself_isnt_blamed_on_a_row(settled: AsyncSession) -> None:
    with pytest.raises(InvalidStatement) as caught:
        await bulk.upsert_many(settled, User, user_rows(3), on=["name"])
    assert caught.value.row_index is None


async def test_a_bad_row_of_an_update_is_named_and_nothing_stays(session: AsyncSession) -> None:
    keys = await make_users(session, 250)
    for place, values, error in (
        (222, {"age": -1}, CheckViolation),
        (222, {"email": "user0@example.org"}, UniqueViolation),
        (1, {"name": "x" * 21}, TooLong),
        (249, {"age": 2**31}, OutOfRange),
        (222, {"created_at": datetime(2024, 1, 1)}, InvalidValue),  # noqa: DTZ001
        (222, {"name": None}, NotNullViolation),
    ):
        rows = [
            {"id": key, **row, "name": "New", "created_at": LONG_AGO}
            for key, row in zip(keys, user_rows(250), strict=True)
        ]
        rows[place] |= values
        with pytest.raises(error) as caught:
            await bulk.update_many(session, User, rows, chunk_size=100)
        assert caught.value.row_index == place
        assert await session.scalar(select(func.count()).where(User.name == "New")) == 0


async def test_a_bad_row_of_an_upsert_is_named_by_its_place_in_the_input_though_it_is_sorted(
    session: AsyncSession,
) -> None:
    rows = list(reversed(user_rows(250)))
    rows[123] = {**rows[123], "age": -1}
    with pytest.raises(CheckViolation) as caught:
        await bulk.upsert_many(session, User, rows, on=["email"], chunk_size=100)
    assert caught.value.row_index == 123
    twice = [*rows[:10], *rows[:10], rows[123], *rows[20:30]]
    with pytest.raises(CheckViolation) as caught:
        await bulk.upsert_many(session, User, twice, on=["email"])
    assert caught.value.row_index == 20
    assert await emails(session) == []


async def test_a_key_that_cant_be_deleted_or_updated_is_named(session: AsyncSession) -> None:
    keys = await make_users(session, 10)
    await bulk.insert_many(session, Order, [{"user_id": keys[7]}])
    with pytest.raises(ForeignKeyViolation) as caught:
        await bulk.delete_many(session, User, [uuid4(), *keys])
    assert caught.value.row_index == 8
    with pytest.raises(CheckViolation) as checked:
        await bulk.update_by_key(session, User, [keys[3], *keys[:6]], {"age": 4 - User.age})
    assert checked.value.row_index == 6
    assert list(await session.scalars(select(User.age).order_by(User.id))) == list(range(10))


async def test_a_key_of_another_type_is_named(session: AsyncSession) -> None:
    with pytest.raises(InvalidValue) as caught:
        await bulk.update_many(session, Counter, [{"id": i if i != 30 else "x", "value": 1} for i in range(50)])
    assert caught.value.row_index == 30
    for call in (bulk.delete_many(session, Counter, [1, "x"]), bulk.update_by_key(session, Counter, [1, "x"], {})):
        with pytest.raises(InvalidValue) as caught:
            await call
        assert caught.value.row_index == 1
    assert await AsyncRepository(session, Counter).count() == 0


async def test_a_refusal_that_doesnt_come_again_is_blamed_on_no_row(session: AsyncSession) -> None:
    times = 0

    async def write(ids: Sequence[int]) -> None:
        nonlocal times
        times += 1
        await session.execute(insert(Counter), [{"id": 7 if times == 1 else id} for id in ids])

    with pytest.raises(UniqueViolation) as caught:
        async with session.begin_nested():
            await or_name_the_row(session, [(0, 1), (1, 2), (2, 3)], write)
    assert caught.value.row_index is None
    assert times == 4
    assert await AsyncRepository(session, Counter).count() == 0


async def test_a_lock_that_isnt_free_in_time_isnt_blamed_on_a_row(committed_database: Database) -> None:
    async with committed_database.begin() as session:
        keys = await make_users(session, 10)
    async with committed_database.session() as holder, committed_database.session() as session:
        await holder.execute(select(User).where(User.id == keys[8]).with_for_update())
        await session.execute(text("SET LOCAL lock_timeout = '50ms'"))
        with pytest.raises(LockTimeout) as caught:
            await bulk.update_many(session, User, [{"id": key, "name": "New"} for key in keys])
        assert caught.value.row_index is None
        assert await session.scalar(select(func.count()).where(User.name == "New")) == 0


async def test_without_the_library_s_engine_errors_are_sqlalchemys_and_name_the_row_all_the_same(
    committed_database: Database,
) -> None:
    engine = create_async_engine(committed_database.engine.url)
    async with AsyncSession(engine) as session:
        with pytest.raises(IntegrityError) as caught:
            await bulk.insert_many(session, User, bad_rows(134, age=-1))
        assert type(caught.value) is IntegrityError
        with pytest.raises(StatementError) as refused:
            await bulk.insert_many(session, User, bad_rows(134, created_at=datetime(2024, 1, 1)))  # noqa: DTZ001
        for error in (caught.value, refused.value):
            assert error.__notes__ == ["row 134 of the input, counted from 0, was refused, so none was written"]
        assert await emails(session) == []
    await engine.dispose()


async def test_a_cancelled_bulk_leaves_nothing_and_the_connection_usable(committed_database: Database) -> None:
    waiting = asyncio.Event()

    async def slow() -> AsyncIterator[dict[str, Any]]:
        for row in user_rows(25):
            yield row
        waiting.set()
        await asyncio.Event().wait()

    async with committed_database.session() as session:
        await bulk.insert_many(session, User, [{"email": "first@example.org", "name": "First"}])
        task = asyncio.create_task(bulk.insert_many(session, User, slow(), chunk_size=10))
        await waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await emails(session) == ["first@example.org"]
        await session.commit()
    assert committed_database.pool_status().in_use == 0


async def test_a_bulk_that_is_cancelled_while_it_waits_for_a_lock_leaves_nothing(committed_database: Database) -> None:
    async with committed_database.begin() as session:
        keys = await make_users(session, 10)
    for write in (
        lambda session: bulk.update_many(session, User, [{"id": key, "name": "New"} for key in keys], chunk_size=3),
        lambda session: bulk.upsert_many(
            session, User, [{"id": key, "email": str(key), "name": "New"} for key in keys], chunk_size=3
        ),
        lambda session: bulk.delete_many(session, User, keys),
    ):
        async with committed_database.session() as holder, committed_database.session() as session:
            await holder.execute(select(User).where(User.id == keys[8]).with_for_update())
            pid = (await session.execute(select(func.pg_backend_pid()))).scalar_one()
            task = asyncio.create_task(write(session))
            await until_waiting(committed_database, pid)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await session.rollback()
            assert await session.scalar(select(func.count()).where(User.name == "New")) == 0
            assert len(await emails(session)) == 10
    assert committed_database.pool_status().in_use == 0


async def until_waiting(database: Database, pid: int) -> None:
    """Until this backend waits for a lock."""
    query = text("SELECT wait_event_type FROM pg_stat_activity WHERE pid = :pid")
    async with asyncio.timeout(10), database.engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        while await connection.scalar(query, {"pid": pid}) != "Lock":
            await asyncio.sleep(0.005)


# --- memory


class Counted(dict[str, Any]):
    """A row that can be counted while it lives."""

    alive = 0
    most = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        Counted.alive += 1
        Counted.most = max(Counted.most, Counted.alive)

    def __del__(self) -> None:
        Counted.alive -= 1


async def test_rows_are_let_go_chunk_by_chunk_and_no_object_stays_in_the_session(session: AsyncSession) -> None:
    """Fault 5. Control: the reference's way makes an object of every row, and the caller's list holds every row."""
    Counted.most = 0
    made = 0

    @event.listens_for(User, "init")
    def count(*_: Any) -> None:
        nonlocal made
        made += 1

    async def reference_bulk_create_users(db: AsyncSession, users_data: list[Any], chunk_size: int) -> int:
        held = 0
        for i in range(0, len(users_data), chunk_size):
            users = [User(**data) for data in users_data[i : i + chunk_size]]
            db.add_all(users)
            await db.flush()
            held = max(held, len(db.identity_map))
        return held

    try:
        await bulk.insert_many(session, User, (Counted(row) for row in user_rows(5000)), chunk_size=500)
        gc.collect()
        assert len(session.identity_map) == made == 0
        assert Counted.most <= 1001
        more = [{**row, "email": row["email"] + ".org"} for row in user_rows(5000)]
        assert await reference_bulk_create_users(session, more, 500) >= 500
        assert made == 5000
    finally:
        event.remove(User, "init", count)


# --- update_many, update_by_key, delete_many


async def test_each_row_is_updated_to_its_own_values(session: AsyncSession) -> None:
    keys = await make_users(session, 5)
    rows = [{"id": key, "name": f"New {i}", "age": None} for i, key in enumerate(reversed(keys))]
    assert await bulk.update_many(session, User, rows, chunk_size=2) == Matched(5, [])
    found = list(await session.scalars(select(User).order_by(User.id)))
    assert [(user.name, user.age) for user in found] == [(f"New {4 - i}", None) for i in range(5)]
    assert [user.email for user in found] == [f"user{i}@example.org" for i in range(5)]
    assert all(user.updated_at > LONG_AGO for user in found)


async def test_more_rows_than_a_statement_may_have_parameters(session: AsyncSession) -> None:
    """Fault 4. Control: the reference's IN fails over 32,767."""
    await bulk.insert_many(session, Counter, ({"id": i} for i in range(40_000)), chunk_size=10_000)
    ids = list(range(40_000))
    with pytest.raises(StatementError, match="32767"):
        async with session.begin_nested():
            await session.execute(update(Counter).where(Counter.id.in_(ids)).values(value=1))
    assert await bulk.update_by_key(session, Counter, [*ids, -1], {"value": 1}) == Matched(40_000, [-1])
    rows = [{"id": i, "value": i} for i in ids]
    assert await bulk.update_many(session, Counter, rows, chunk_size=40_000) == Matched(40_000, [])
    assert await session.scalar(select(func.sum(Counter.value))) == sum(ids)
    assert await bulk.delete_many(session, Counter, [-2, *ids]) == Matched(40_000, [-2])


async def test_missing_keys_are_reported_in_the_order_of_the_input(session: AsyncSession) -> None:
    keys = await make_users(session, 6)
    gone = [uuid4() for _ in range(4)]
    asked = [gone[2], keys[5], gone[0], keys[0], gone[3], gone[1]]
    rows = [{"id": key, "name": "New"} for key in asked]
    missing = [gone[2], gone[0], gone[3], gone[1]]
    assert await bulk.update_many(session, User, rows, chunk_size=2) == Matched(2, missing)
    assert await bulk.update_by_key(session, User, [*asked, gone[2]], {"name": "B"}) == Matched(2, missing)
    assert await bulk.delete_many(session, User, map(str, [*asked, keys[5]])) == Matched(2, missing)
    assert len(await emails(session)) == 4


async def test_composite_keys_are_updated_and_deleted(session: AsyncSession) -> None:
    await bulk.insert_many(session, Seat, [{"row": row, "number": n} for row in "AB" for n in range(3)])
    rows = [{"row": "A", "number": 1, "taken_by": "x"}, {"row": "C", "number": 1, "taken_by": "y"}]
    assert await bulk.update_many(session, Seat, rows) == Matched(1, [("C", 1)])
    assert await bulk.update_by_key(session, Seat, [("B", 2), ["A", 1]], {"taken_by": "z"}) == Matched(2, [])
    assert await bulk.delete_many(session, Seat, [("A", 1), ("Z", 1)]) == Matched(1, [("Z", 1)])
    taken = (await session.execute(select(Seat.row, Seat.number).where(Seat.taken_by == "z"))).all()
    assert taken == [("B", 2)]


async def test_too_long_a_text_is_refused_and_not_cut(session: AsyncSession) -> None:
    """Control: through an array of VARCHAR(5), as SQLAlchemy's type renders it, it is cut."""
    await bulk.insert_many(session, Label, [{"name": "a", "colour": "red"}])
    with pytest.raises(TooLong) as caught:
        await bulk.update_many(session, Label, [{"name": "a", "colour": "yellow"}])
    assert caught.value.row_index == 0
    cut = text("UPDATE labels SET colour = g.c FROM unnest(CAST(:c AS VARCHAR(5)[])) AS g(c)")
    await session.execute(cut, {"c": ["yellow"]})
    assert await session.scalar(select(Label.colour)) == "yello"
    assert await bulk.update_many(session, Label, [{"name": "abcdefgh", "colour": "x"}]) == Matched(0, ["abcdefgh"])


async def test_rows_with_one_key_are_written_one_after_the_other_whatever_the_chunks(session: AsyncSession) -> None:
    for chunk_size in (1, 2, 3, 100):
        keys = (await bulk.insert_many(session, Counter, [{"value": 0}, {"value": 0}])).keys
        rows = [{"id": key, "value": i} for i, key in enumerate([*keys, keys[0], keys[0], keys[1]], start=1)]
        assert await bulk.update_many(session, Counter, rows, chunk_size=chunk_size) == Matched(5, [])
        values = await session.scalars(select(Counter.value).where(Counter.id.in_(keys)).order_by(Counter.id))
        assert list(values) == [4, 5]


@pytest.mark.parametrize(
    "rows",
    [
        [{"id": UUID(int=1), "name": "A"}, {"id": UUID(int=2), "age": 1}],
        [{"id": UUID(int=1), "name": "A"}, {"name": "B"}],
        [{"id": UUID(int=1), "name": "A"}, {"id": UUID(int=2)}],
    ],
)
@pytest.mark.parametrize("write", [bulk.update_many, bulk.upsert_many])
async def test_rows_must_name_the_key_and_the_same_attributes(session: AsyncSession, write: Any, rows: Any) -> None:
    with pytest.raises(ValueError, match=r"row 1 of the input, counted from 0, (must name id|names other attributes)"):
        await write(session, User, rows)


async def test_rows_that_name_only_their_key_are_matched_and_left_alone(session: AsyncSession) -> None:
    keys = await make_users(session, 2)
    missing = uuid4()
    assert await bulk.update_many(session, User, [{"id": key} for key in [*keys, missing]]) == Matched(2, [missing])
    assert await bulk.update_by_key(session, User, keys, {}) == Matched(2, [])
    assert set(await session.scalars(select(User.updated_at))) == {LONG_AGO}


async def test_the_version_moves_and_a_stale_one_is_refused(session: AsyncSession) -> None:
    keys = await make_orders(session, 3)
    assert await bulk.update_many(session, Order, [{"id": key, "total_cents": 5} for key in keys]) == Matched(3, [])
    assert await bulk.update_by_key(session, Order, keys, {"total_cents": 6}) == Matched(3, [])
    fresh = [{"id": key, "total_cents": 7, "version": 3} for key in keys]
    assert await bulk.update_many(session, Order, fresh) == Matched(3, [])
    rows = (await session.execute(select(Order.version, Order.updated_at, Order.total_cents))).all()
    assert {(version, updated > LONG_AGO, cents) for version, updated, cents in rows} == {(4, True, 7)}
    stale = [{**fresh[0], "version": 4}, {**fresh[1], "version": 3}, {**fresh[2], "version": 4}]
    with pytest.raises(StaleRow, match=f"1 Order rows have another version by now: {keys[1]}"):
        await bulk.update_many(session, Order, stale)
    assert set(await session.scalars(select(Order.version))) == {4}, "nothing is written"


async def test_a_row_that_names_only_its_version_is_checked_too(session: AsyncSession) -> None:
    keys = await make_orders(session, 1)
    with pytest.raises(StaleRow):
        await bulk.update_many(session, Order, [{"id": keys[0], "version": 2}])
    assert await bulk.update_many(session, Order, [{"id": keys[0], "version": 1}]) == Matched(1, [])
    assert await session.scalar(select(Order.version)) == 2


async def test_the_key_and_the_version_cant_be_set_for_many(session: AsyncSession) -> None:
    keys = await make_orders(session, 1)
    for values in ({"id": uuid4()}, {"version": 7}):
        with pytest.raises(ValueError, match="can't be set"):
            await bulk.update_by_key(session, Order, keys, values)
    with pytest.raises(UnknownAttribute):
        await bulk.update_by_key(session, Order, keys, {"user": None})


async def test_objects_that_the_session_holds_are_fresh_afterwards(session: AsyncSession) -> None:
    keys = await make_orders(session, 4)
    orders = await AsyncRepository(session, Order).get_by_ids(keys)
    orders[3].total_cents = 99  # pending: flushed first, so not lost
    await bulk.update_many(session, Order, [{"id": keys[0], "total_cents": 10}])
    await bulk.update_by_key(session, Order, keys[1:2], {"status": Status.PAID})
    await bulk.upsert_many(session, Order, [{"id": keys[2], "user_id": orders[2].user_id, "total_cents": 30}])
    await bulk.update_many(session, Order, [{"id": keys[3], "weight": Decimal(1)}])
    assert [order.total_cents for order in orders] == [10, 1, 30, 99]
    assert orders[1].status is Status.PAID
    assert [order.version for order in orders] == [2, 2, 2, 3]
    assert all(order.updated_at > LONG_AGO for order in orders)


async def test_a_related_object_isnt_left_stale_when_its_column_is_changed(session: AsyncSession) -> None:
    users = await make_users(session, 2)
    orders = AsyncRepository(session, Order)
    order = await orders.create(user_id=users[0])
    await orders.get(order.id, load=[Order.user])
    assert order.user.id == users[0]
    await bulk.update_many(session, Order, [{"id": order.id, "user_id": users[1]}])
    with pytest.raises(InvalidRequestError, match="raise"):
        _ = order.user
    await orders.get(order.id, load=[Order.user])
    assert order.user.id == users[1]


async def test_a_deferred_column_isnt_left_stale(session: AsyncSession) -> None:
    specimens = AsyncRepository(session, Specimen)
    specimen = await specimens.create(id=1, notes="old", left=1, top=2)
    assert (specimen.notes, specimen.corner.left) == ("old", 1)
    await bulk.update_by_key(session, Specimen, [1], {"notes": "new", "left": 3})
    assert specimen.corner.left == 3
    assert vars(specimen).get("notes") != "old"
    await session.refresh(specimen, ["notes"])
    assert specimen.notes == "new"


async def test_deleted_objects_are_expunged_and_their_keys_are_free(session: AsyncSession) -> None:
    keys = await make_users(session, 3)
    users = UserRepository(session)
    held = await users.get_by_ids(keys)
    held[0].name = "pending"
    await bulk.delete_many(session, User, keys[:2])
    assert [user in session for user in held] == [False, False, True]
    assert await users.get(keys[0]) is None
    assert (await users.create(id=keys[0], email="again@example.org", name="Again")).id == keys[0]


async def test_a_delete_follows_the_databases_cascades_only(session: AsyncSession) -> None:
    album = await AsyncRepository(session, Album).create(title="A", tracks=[Track(position=1)])
    with pytest.raises(ForeignKeyViolation):
        await bulk.delete_many(session, Album, [album.id])
    assert album in session


# --- upsert_many


async def test_upserts_count_created_updated_and_unchanged_rows(session: AsyncSession) -> None:
    await make_users(session, 10)
    rows = [row if i < 4 else {**row, "age": 100 + i} for i, row in enumerate(user_rows(15))]
    assert await bulk.upsert_many(session, User, rows, on=["email"], chunk_size=4) == Upserted(5, 6, 4)
    found = list(await session.scalars(select(User).order_by(User.age)))
    assert [user.age for user in found] == [0, 1, 2, 3, *range(104, 115)]
    assert [user.updated_at > LONG_AGO for user in found] == [False] * 4 + [True] * 11


async def test_an_upsert_never_changes_the_key_of_an_existing_row(session: AsyncSession) -> None:
    keys = await make_users(session, 2)
    rows = [{**row, "id": uuid4(), "name": "New"} for row in user_rows(3)]
    assert await bulk.upsert_many(session, User, rows, on=["email"]) == Upserted(1, 2, 0)
    assert list(await session.scalars(select(User.id).order_by(User.age))) == [*keys, rows[2]["id"]]
    for name in ("id", "email"):
        with pytest.raises(ValueError, match="`update` can't name the key"):
            await bulk.upsert_many(session, User, rows, on=["email"], update=[name])


async def test_an_upsert_makes_keys_for_new_rows_only(session: AsyncSession) -> None:
    keys = await make_users(session, 1)
    await bulk.upsert_many(session, User, user_rows(2, nickname="x"), on=["email"])
    assert (await session.scalars(select(User.id).order_by(User.age).limit(1))).one() == keys[0]


async def test_update_chooses_what_an_existing_row_gets(session: AsyncSession) -> None:
    await make_users(session, 2)
    rows = user_rows(3, name="New", nickname="new")
    assert await bulk.upsert_many(session, User, rows, on=["email"], update=["nickname"]) == Upserted(1, 2, 0)
    found = list(await session.scalars(select(User).order_by(User.age)))
    assert [(user.name, user.nickname) for user in found] == [("User 0", "new"), ("User 1", "new"), ("New", "new")]
    assert await bulk.upsert_many(session, User, user_rows(4), on=["email"], update=[]) == Upserted(1, 0, 3)
    assert [user.name for user in found] == ["User 0", "User 1", "New"]


async def test_what_update_names_the_rows_must_name(session: AsyncSession) -> None:
    """Otherwise existing rows would get the default of a column that nobody gave."""
    with pytest.raises(ValueError, match="row 0 of the input, counted from 0, must name nickname"):
        await bulk.upsert_many(session, User, user_rows(2), on=["email"], update=["nickname"])
    wrongs: list[dict[str, Any]] = [{"on": ["orders"]}, {"update": ["emial"]}, {"on": ["emial"]}]
    for wrong in wrongs:
        with pytest.raises(UnknownAttribute):
            await bulk.upsert_many(session, User, user_rows(2), **wrong)


async def test_rows_that_meet_come_out_as_if_written_one_by_one_whatever_the_chunks(
    committed_database: Database,
) -> None:
    rows = [
        {"email": "a", "name": "1", "age": 1},
        {"email": "b", "name": "1", "age": 1},
        {"email": "a", "name": "2", "age": 2},
        {"email": "a", "name": "2", "age": 2},
        {"email": "a", "name": "3", "age": 3},
    ]
    for update_names, counts, a in (
        (None, Upserted(2, 2, 1), ("3", 3)),
        (["name"], Upserted(2, 2, 1), ("3", 1)),
        ([], Upserted(2, 0, 3), ("1", 1)),
    ):
        for chunk_size in (1, 2, 3, 1000):
            async with committed_database.session() as session:
                options: dict[str, Any] = {"on": ["email"], "update": update_names, "chunk_size": chunk_size}
                assert await bulk.upsert_many(session, User, rows, **options) == counts
                assert (await session.execute(select(User.name, User.age).where(User.email == "a"))).one() == a


async def test_null_meets_nothing(session: AsyncSession) -> None:
    await session.execute(text("CREATE UNIQUE INDEX ON specimens (words)"))
    rows = [{"id": i, "words": word} for i, word in enumerate([None, "a", None, "b", None])]
    assert await bulk.upsert_many(session, Specimen, rows, on=["words"]) == Upserted(5, 0, 0)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("state", [Status.PAID, None, Status.PENDING]),
        ("exact", [Decimal(2), 1, None, 3]),
        ("token", [UUID(int=3), None, UUID(int=1)]),
        ("moment", [utcnow(), None, LONG_AGO]),
        ("flag", [True, None, False]),
        ("raw", [b"b", None, b"a"]),
        ("loud", ["b", None, "a"]),
    ],
)
async def test_values_that_cant_be_sorted_among_each_other_can_still_be_what_rows_are_found_by(
    session: AsyncSession, name: str, values: list[Any]
) -> None:
    await session.execute(text(f"CREATE UNIQUE INDEX ON specimens ({name}, whole)"))
    rows = [{"id": i, "whole": None if i == 0 else 1, name: value} for i, value in enumerate(values)]
    assert await bulk.upsert_many(session, Specimen, rows, on=[name, "whole"]) == Upserted(len(values), 0, 0)


async def test_an_upsert_moves_the_version_of_what_it_changes_and_cant_set_it(session: AsyncSession) -> None:
    keys = await make_orders(session, 2)
    user = await session.scalar(select(User.id))
    rows = [{"id": key, "user_id": user, "total_cents": 1} for key in [*keys, uuid4()]]
    assert await bulk.upsert_many(session, Order, rows) == Upserted(1, 1, 1)
    assert sorted(await session.scalars(select(Order.version))) == [1, 1, 2]
    with pytest.raises(ValueError, match="can't check a version"):
        await bulk.upsert_many(session, Order, [{**row, "version": 1} for row in rows])
    with pytest.raises(ValueError, match="the version"):
        await bulk.upsert_many(session, Order, rows, update=["version"])


async def test_an_upsert_moves_what_onupdate_makes_of_every_kind(session: AsyncSession) -> None:
    await session.run_sync(lambda sync: Separate.metadata.create_all(sync.connection()))
    rows = [{"id": 1, "value": 1}, {"id": 2, "value": 2}]
    await bulk.upsert_many(session, Touched, rows)
    assert await bulk.upsert_many(session, Touched, [{"id": 1, "value": 1}, {"id": 2, "value": 3}]) == Upserted(0, 1, 1)
    found = (await session.scalars(select(Touched).order_by(Touched.id))).all()
    assert [(each.by_constant, each.by_expression, each.by_function) for each in found] == [
        (None, None, None),
        ("constant", "expression", "function"),
    ]


async def test_a_version_that_is_no_number_cant_be_moved_in_bulk(session: AsyncSession) -> None:
    await session.run_sync(lambda sync: Separate.metadata.create_all(sync.connection()))
    await bulk.insert_many(session, Tagged, [{"id": 1, "value": 1}])
    with pytest.raises(TypeError, match=r"Tagged\.tag isn't an integer: bulk writes can't move such a version"):
        await bulk.update_many(session, Tagged, [{"id": 1, "value": 2}])
    assert await session.scalar(select(Tagged.value)) == 1


async def test_an_upsert_that_sees_none_of_its_rows_change_still_inserts_the_others(session: AsyncSession) -> None:
    assert await bulk.upsert_many(session, Seat, [{"row": "A", "number": 1}]) == Upserted(1, 0, 0)
    assert await bulk.upsert_many(session, Seat, [{"row": "A", "number": n} for n in (2, 1)]) == Upserted(1, 0, 1)


@dataclass
class SeatData:
    row: str
    number: int
    taken_by: str | None = None
    history: list[str] = field(default_factory=list)


async def test_an_upsert_takes_dataclasses_and_names_what_they_have_too_many(session: AsyncSession) -> None:
    with pytest.raises(UnknownAttribute, match="'history'"):
        await bulk.upsert_many(session, Seat, [SeatData("A", 1)])


# --- races


async def test_concurrent_upserts_of_the_same_rows_make_each_once(committed_database: Database) -> None:
    rows = user_rows(300)

    async def upsert(order: int) -> Upserted:
        async with committed_database.begin() as session:
            return await bulk.upsert_many(session, User, rows[::order], on=["email"])

    results = await asyncio.gather(*(upsert(1 if i % 2 else -1) for i in range(8)))
    assert sum(result.created for result in results) == 300
    assert sum(result.unchanged for result in results) == 7 * 300


async def _race(database: Database, write: Any, *, inputs: tuple[Any, Any]) -> list[BaseException | None]:
    """Run `write(session, input)` for both inputs, in transactions that have each begun before either writes."""
    ready = asyncio.Barrier(2)

    async def run(given: Any) -> None:
        async with database.begin() as session:
            await session.connection()
            await ready.wait()
            await write(session, given)

    return await asyncio.gather(*(run(given) for given in inputs), return_exceptions=True)


async def test_two_updates_of_the_same_rows_in_opposite_order_dont_deadlock(committed_database: Database) -> None:
    """Control: an executemany in the order of the input does."""
    async with committed_database.begin() as session:
        keys = (await bulk.insert_many(session, Counter, ({"value": 0} for _ in range(400)))).keys
    opposite = (keys, keys[::-1])

    async def in_key_order(session: AsyncSession, ids: list[int]) -> None:
        await bulk.update_many(session, Counter, [{"id": id, "value": 1} for id in ids])
        await bulk.update_by_key(session, Counter, ids, {"value": 2})
        await bulk.delete_many(session, Counter, [-id for id in ids])

    async def one_by_one(session: AsyncSession, ids: list[int]) -> None:
        await session.execute(update(Counter), [{"id": id, "value": 1} for id in ids])

    for _ in range(5):
        assert await _race(committed_database, in_key_order, inputs=opposite) == [None, None]
    for _ in range(20):
        if any(
            isinstance(each, DeadlockDetected) for each in await _race(committed_database, one_by_one, inputs=opposite)
        ):
            break
    else:
        pytest.fail("the control should have deadlocked")


async def test_two_updates_of_many_chunks_dont_deadlock_if_their_inputs_are_sorted(
    committed_database: Database,
) -> None:
    """Control: unsorted they do, as the module says."""
    async with committed_database.begin() as session:
        keys = (await bulk.insert_many(session, Counter, ({"value": 0} for _ in range(200)))).keys

    async def chunks(session: AsyncSession, ids: list[int]) -> None:
        await bulk.update_many(session, Counter, ({"id": id, "value": 1} for id in ids), chunk_size=20)

    for _ in range(5):
        assert await _race(committed_database, chunks, inputs=(keys, keys)) == [None, None]
    for _ in range(20):
        if any(
            isinstance(each, DeadlockDetected)
            for each in await _race(committed_database, chunks, inputs=(keys, keys[::-1]))
        ):
            break
    else:
        pytest.fail("the control should have deadlocked")


async def test_two_upserts_of_the_same_rows_in_opposite_order_dont_deadlock(committed_database: Database) -> None:
    async def upsert(session: AsyncSession, rows: list[dict[str, Any]]) -> None:
        await bulk.upsert_many(session, User, rows, on=["email"])

    for round in range(5):
        rows = user_rows(200, name=f"Round {round}")
        assert await _race(committed_database, upsert, inputs=(rows, rows[::-1])) == [None, None]


async def test_two_versioned_updates_of_the_same_rows_let_one_through(committed_database: Database) -> None:
    async with committed_database.begin() as session:
        keys = await make_orders(session, 20)

    async def versioned(session: AsyncSession, cents: int) -> None:
        await bulk.update_many(session, Order, [{"id": key, "total_cents": cents, "version": 1} for key in keys])

    results = await _race(committed_database, versioned, inputs=(7, 8))
    assert sorted(type(result).__name__ for result in results) == ["NoneType", "StaleRow"]
    async with committed_database.session() as session:
        rows = (await session.execute(select(Order.version, Order.total_cents).distinct())).all()
        assert rows == [(2, 7 if results[0] is None else 8)]
