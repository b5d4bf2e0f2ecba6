"""The values of bulk writes: defaults, types, keys and inheritance."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import undefer

from howdah import (
    InsertResult,
    InvalidValue,
    MatchResult,
    NotNullViolation,
    UnknownAttribute,
    UpsertResult,
    bulk,
    utcnow,
)
from howdah_tests.support.sample_models import Car, Counter, Engineer, Specimen, Staff, Status, User, Vehicle, Wide
from howdah_tests.support.sample_rows import user_rows


async def test_defaults_apply_only_to_attributes_that_are_left_out(session: AsyncSession) -> None:
    """Control: SQLAlchemy's bulk insert treats None as left out."""
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


async def test_a_key_that_is_none_counts_as_left_out(session: AsyncSession) -> None:
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
    """Whether the JSON columns of the second specimen contain a JSON null (`"null"`, False) or NULL (None, True)."""
    columns = (func.jsonb_typeof(Specimen.anything), func.jsonb_typeof(Specimen.nothing), Specimen.plain_json.is_(None))
    return list((await session.execute(select(*columns).where(Specimen.id == 1))).one())


async def test_inserted_values_of_every_type_are_read_back_unchanged(session: AsyncSession) -> None:
    rows = [{"id": i, **values, "tags": ["a", "b"]} for i, values in enumerate(SPECIMENS)]
    await bulk.insert_many(session, Specimen, rows)
    assert await read_specimens(session) == SPECIMENS
    assert await json_nulls(session) == ["null", None, False]
    assert list(await session.scalars(select(Specimen.tags))) == [["a", "b"]] * 2
    assert await session.scalar(text("SELECT loud FROM specimens WHERE id = 0")) == "QUIET"


async def test_updated_values_of_every_type_are_read_back_unchanged(session: AsyncSession) -> None:
    await bulk.insert_many(session, Specimen, [{"id": i, **values} for i, values in enumerate(reversed(SPECIMENS))])
    rows = [{"id": i, **values} for i, values in enumerate(SPECIMENS)]
    assert (await bulk.update_many(session, Specimen, rows)).count == 2
    assert await read_specimens(session) == SPECIMENS
    assert await json_nulls(session) == ["null", None, False]
    assert await session.scalar(text("SELECT loud FROM specimens WHERE id = 0")) == "QUIET"


async def test_upserted_values_of_every_type_are_read_back_unchanged(session: AsyncSession) -> None:
    rows = [{"id": i, **values} for i, values in enumerate(reversed(SPECIMENS))]
    assert await bulk.upsert_many(session, Specimen, rows) == UpsertResult(2, 0, 0)
    rows = [{"id": i, **values} for i, values in enumerate(SPECIMENS)]
    assert await bulk.upsert_many(session, Specimen, rows) == UpsertResult(0, 2, 0)
    assert await bulk.upsert_many(session, Specimen, rows) == UpsertResult(0, 0, 2)
    assert await read_specimens(session) == SPECIMENS
    assert await json_nulls(session) == ["null", None, False]


async def test_none_becomes_json_null_or_null_as_for_a_single_object(session: AsyncSession) -> None:
    session.add(Specimen(id=1, anything=None, nothing=None, plain_json=None))
    await session.flush()
    assert await json_nulls(session) == ["null", None, False]


async def test_arrays_can_be_updated_in_bulk(session: AsyncSession) -> None:
    await bulk.insert_many(session, Specimen, [{"id": 1, "tags": ["a"]}])
    assert (await bulk.update_many(session, Specimen, [{"id": 1, "tags": ["b"]}])).count == 1
    assert await session.scalar(select(Specimen.tags)) == ["b"]
    assert (await bulk.update_by_key(session, Specimen, [1], {"tags": ["c"]})).count == 1
    assert await session.scalar(select(Specimen.tags)) == ["c"]


async def test_a_column_may_have_another_name_than_its_attribute(session: AsyncSession) -> None:
    keys = (await bulk.insert_many(session, Counter, [{"value": 1}, {"value": 2}])).keys
    await bulk.update_many(session, Counter, [{"id": keys[0], "value": 10}])
    await bulk.upsert_many(session, Counter, [{"id": keys[1], "value": 20}])
    await bulk.update_by_key(session, Counter, keys[:1], {"value": Counter.value + 1})
    assert list(await session.scalars(select(Counter.value).order_by(Counter.id))) == [11, 20]
    with pytest.raises(UnknownAttribute, match="'val'"):
        await bulk.insert_many(session, Counter, [{"val": 1}])


async def test_generated_keys_are_returned_in_the_order_of_the_input(session: AsyncSession) -> None:
    created = await bulk.insert_many(session, Counter, [{"value": i % 7} for i in range(2500)], chunk_size=999)
    rows = dict((await session.execute(select(Counter.id, Counter.value))).all())
    assert [rows[key] for key in created.keys] == [i % 7 for i in range(2500)]
    assert created.count == len(set(created.keys)) == 2500
    assert (await bulk.insert_many(session, Counter, [{"value": 1}], keys=False)) == InsertResult(1, [])


async def test_rows_with_and_without_a_key_may_be_mixed(session: AsyncSession) -> None:
    rows = [{"value": 0}, {"id": 77_777, "value": 1}, {"value": 2}, {"id": 88_888}, {"value": 4}]
    created = await bulk.insert_many(session, Counter, rows)
    found = dict((await session.execute(select(Counter.id, Counter.value))).all())
    assert [found[key] for key in created.keys] == [0, 1, 2, 0, 4]
    assert (created.keys[1], created.keys[3]) == (77_777, 88_888)


async def test_a_key_that_is_passed_as_text_is_returned_as_a_key(session: AsyncSession) -> None:
    id = uuid4()
    assert (await bulk.insert_many(session, User, [{"id": str(id), "email": "a", "name": "A"}])).keys == [id]
    assert (await bulk.update_many(session, User, [{"id": str(id), "name": "B"}])) == MatchResult(1, [])
    assert (await bulk.upsert_many(session, User, [{"id": str(id), "email": "a", "name": "C"}])) == UpsertResult(
        0, 1, 0
    )
    with pytest.raises(InvalidValue, match="isn't a UUID") as caught:
        await bulk.update_many(session, User, [{"id": id, "name": "B"}, {"id": "x", "name": "B"}])
    assert caught.value.row_index == 1
    assert caught.value.__notes__ == ["in row 1 of the input, counted from 0"]


async def test_wide_rows_with_more_values_than_the_maximum_of_parameters_can_be_written(session: AsyncSession) -> None:
    rows = [{"id": i, **{f"c{c}": i + c for c in range(60)}} for i in range(1500)]
    assert (await bulk.insert_many(session, Wide, rows, chunk_size=1500)).count == 1500
    more = [{**row, "c0": -1} for row in rows]
    assert await bulk.update_many(session, Wide, more, chunk_size=1500) == MatchResult(1500, [])
    assert await bulk.upsert_many(session, Wide, rows, chunk_size=1500) == UpsertResult(0, 1500, 0)
    fresh = [{**row, "id": row["id"] + 10_000} for row in rows]
    assert await bulk.upsert_many(session, Wide, fresh, chunk_size=1500) == UpsertResult(1500, 0, 0)


async def test_many_rows_with_generated_keys_can_be_inserted(session: AsyncSession) -> None:
    created = await bulk.insert_many(session, User, user_rows(4000), chunk_size=4000)
    assert created.count == 4000


async def test_joined_tables_support_only_inserts(session: AsyncSession) -> None:
    rows = [{"name": f"E{i}", "language": "Python"} for i in range(5)]
    created = await bulk.insert_many(session, Engineer, rows)
    found = list(await session.scalars(select(Engineer).order_by(Engineer.name)))
    assert [(engineer.id, engineer.kind, engineer.language) for engineer in found] == [
        (key, "engineer", "Python") for key in created.keys
    ]
    unsupported = [
        bulk.update_many(session, Engineer, [{"id": created.keys[0], "language": "C"}]),
        bulk.upsert_many(session, Engineer, rows),
        bulk.update_by_key(session, Engineer, created.keys, {"language": "C"}),
        bulk.delete_many(session, Engineer, created.keys),
    ]
    for call in unsupported:
        with pytest.raises(TypeError, match=r"Engineer is stored in several tables \(staff, engineers\)"):
            await call
    assert await bulk.update_many(session, Staff, [{"id": created.keys[0], "name": "Z"}]) == MatchResult(1, [])
    assert found[0].name == "Z"


async def test_bulk_writes_of_a_subclass_match_only_its_rows(session: AsyncSession) -> None:
    cars = (await bulk.insert_many(session, Car, [{"wheels": 4, "doors": 3}, {"wheels": 3}])).keys
    carts = (await bulk.insert_many(session, Vehicle, [{"wheels": 2}])).keys
    assert list(await session.scalars(select(Vehicle.kind).order_by(Vehicle.id))) == ["car", "car", "vehicle"]
    everything = [*cars, *carts]
    assert await bulk.update_by_key(session, Car, everything, {"wheels": 5}) == MatchResult(2, carts)
    assert await bulk.update_many(session, Car, [{"id": key, "doors": 1} for key in everything]) == MatchResult(
        2, carts
    )
    assert await bulk.delete_many(session, Car, everything) == MatchResult(2, carts)


async def test_an_object_of_a_subclass_is_rejected_for_its_base(session: AsyncSession) -> None:
    with pytest.raises(TypeError, match="a Car can't be written as Vehicle"):
        await bulk.insert_many(session, Vehicle, [Car(wheels=4, doors=3)])
    assert (await bulk.insert_many(session, Car, [Car(wheels=4, doors=3)])).count == 1
