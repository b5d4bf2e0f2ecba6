"""`upsert_many` counts a row as unchanged if the stored bytes are the same, not if an operator finds them equal."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from asyncpg import Point
from sqlalchemy import ARRAY, CHAR, JSON, Float, Integer, MetaData, Numeric, String, Text, func, select, text
from sqlalchemy.dialects.postgresql import (
    CITEXT,
    DOMAIN,
    INT4MULTIRANGE,
    INT4RANGE,
    INTERVAL,
    JSONB,
    TSVECTOR,
    Range,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import UserDefinedType

from howdah import Base, Timestamps, UpsertResult, bulk
from howdah_tests.support.case_insensitive_types import create_citext, create_nondeterministic_collation
from howdah_tests.support.sample_rows import LONG_AGO

MANY = 40


class Kind(UserDefinedType[Any]):
    """A type that SQLAlchemy doesn't know."""

    cache_ok = True

    def __init__(self, name: str) -> None:
        self.name = name

    def get_col_spec(self, **_: Any) -> str:
        return self.name


class Separate(Base):
    __abstract__ = True
    metadata = MetaData()


class Thing(Timestamps, Separate):
    __tablename__ = "things"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[Any] = mapped_column(CITEXT)
    code: Mapped[Any] = mapped_column(CITEXT, unique=True)


def model_of(kind: Any) -> Any:
    """A class with a column `value` of this type. It has its own metadata."""

    class Own(DeclarativeBase):
        pass

    class Valued(Own):
        __tablename__ = "valued"
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        value: Mapped[Any] = mapped_column(kind, nullable=True)

    return Valued


async def create(session: AsyncSession, model: Any) -> Any:
    await session.run_sync(lambda sync: model.metadata.create_all(sync.connection()))
    return model


async def has_xml(session: AsyncSession) -> bool:
    try:
        async with session.begin_nested():
            await session.execute(text("SELECT xml '<a/>'"))
    except DBAPIError:
        return False
    return True


@pytest.fixture
async def things(session: AsyncSession) -> AsyncIterator[AsyncSession]:
    await create_citext(session)
    await create(session, Thing)
    yield session
    await session.rollback()


# a type, a value, and the text of a value that the type's operator `=` finds equal
SEEM_EQUAL = [
    (Numeric, Decimal("1.0"), "1.00"),
    (Float, 0.0, "-0"),
    (JSONB, {"a": 1}, '{"a": 1.0}'),
    (INTERVAL, timedelta(days=30), "1 month"),
    (ARRAY(Numeric), [Decimal("1.0")], "{1.00}"),
    (Kind("BPCHAR"), "a", "a "),
]


@pytest.mark.parametrize("many", [1, 25])
@pytest.mark.parametrize(("kind", "value", "other"), SEEM_EQUAL, ids=str)
async def test_a_value_that_is_equal_but_has_other_bytes_is_written(
    session: AsyncSession, kind: Any, value: Any, other: str, many: int
) -> None:
    model = await create(session, model_of(kind))
    insert = f"INSERT INTO valued SELECT n, '{other}' FROM generate_series(0, {many - 1}) n"
    await session.execute(text(insert.replace(":", "\\:")))
    rows = [{"id": n, "value": value} for n in range(many)]
    before = (await session.scalars(text("SELECT row(value)::text FROM valued"))).all()
    assert await bulk.upsert_many(session, model, rows) == UpsertResult(0, many, 0)
    after = (await session.scalars(text("SELECT row(value)::text FROM valued"))).all()
    assert len(after) == many
    assert set(before) != set(after)
    assert await bulk.upsert_many(session, model, rows) == UpsertResult(0, 0, many)


SAME = [
    (Kind("POINT"), Point(1, 2), Point(2, 1)),
    (Kind("XML"), "<a/>", "<b/>"),
    (JSON, {"b": 1, "a": [1, None]}, {"a": 1}),
    (ARRAY(JSON), [{"a": 1}, {"a": 2}], [{"a": 1}]),
    (ARRAY(Integer, dimensions=2), [[1, 2], [3, 4]], [[1]]),
    (INT4RANGE, Range(1, 5), Range(1, 6)),
    (INT4MULTIRANGE, [Range(1, 5), Range(8, 9)], [Range(1, 5)]),
    (DOMAIN("numbers", ARRAY(Integer)), [1, 2], [2]),
    (DOMAIN("short", String(5)), "abc", "abd"),
    (Kind("POLYGON"), None, None),
    (TSVECTOR, None, None),
    (CHAR(5), "a", "b"),
    (String(5), "", " "),
    (Text, "x" * 100_000, "x" * 99_999 + "y"),
    (JSONB, {"long": "x" * 100_000}, {"long": "y"}),
    (Kind("BIT(3)"), None, None),
    (Numeric(10, 2), Decimal("1"), Decimal("1.01")),
    (Float, float("nan"), 1.0),
]


@pytest.mark.parametrize("many", [1, 25])
@pytest.mark.parametrize(("kind", "value", "other"), SAME, ids=lambda each: str(each)[:20])
async def test_a_value_of_any_type_is_unchanged_or_written(
    session: AsyncSession, kind: Any, value: Any, other: Any, many: int
) -> None:
    """Also for types without an operator `=`, types that an array can't hold, and long values in TOAST tables."""
    if str(kind) == "XML" and not await has_xml(session):
        pytest.skip("this server was built without libxml")
    model = await create(session, model_of(kind))
    rows = [{"id": n, "value": value} for n in range(many)]
    assert await bulk.upsert_many(session, model, rows) == UpsertResult(many, 0, 0)
    assert await bulk.upsert_many(session, model, rows) == UpsertResult(0, 0, many)
    changes = [{"id": n, "value": other if n == 0 else value} for n in range(many)]
    same = int(value is other)
    assert await bulk.upsert_many(session, model, changes) == UpsertResult(0, 1 - same, many - 1 + same)
    nothing = [{"id": n, "value": None} for n in range(many)]
    assert (await bulk.upsert_many(session, model, nothing)).unchanged == (many if value is None else 0)
    assert await bulk.upsert_many(session, model, nothing) == UpsertResult(0, 0, many)


@pytest.mark.parametrize("many", [1, 25, 1100])
async def test_a_change_of_case_alone_is_written(things: AsyncSession, many: int) -> None:
    rows = [{"id": n, "name": "name", "code": f"c{n}", "updated_at": LONG_AGO} for n in range(many)]
    await bulk.insert_many(things, Thing, rows)
    rows = [{"id": n, "name": "NAME" if n % 2 == 0 else "name", "code": f"c{n}"} for n in range(many)]
    changed = (many + 1) // 2
    assert await bulk.upsert_many(things, Thing, rows) == UpsertResult(0, changed, many - changed)
    found = await things.execute(select(Thing.name, Thing.updated_at > LONG_AGO).order_by(Thing.id))
    assert [tuple(row) for row in found] == [(row["name"], row["name"] == "NAME") for row in rows]


async def test_a_change_of_case_under_a_nondeterministic_collation_is_written(session: AsyncSession) -> None:
    if not await create_nondeterministic_collation(session):
        pytest.skip("nondeterministic collations need ICU, and this server was built without it")
    model = await create(session, model_of(String(collation="ignores_case")))
    await session.execute(text("CREATE UNIQUE INDEX ON valued (value)"))
    await bulk.insert_many(session, model, [{"id": n, "value": f"a{n}"} for n in range(25)])
    assert await bulk.upsert_many(session, model, [{"id": n, "value": f"A{n}"} for n in range(25)]) == UpsertResult(
        0, 25, 0
    )
    rows = [{"id": 100, "value": "b"}, {"id": 101, "value": "B"}, {"id": 102, "value": "a3"}]
    assert await bulk.upsert_many(session, model, rows, on=["value"]) == UpsertResult(1, 0, 2)


async def test_rows_with_keys_of_another_case_have_the_result_of_single_upserts(things: AsyncSession) -> None:
    """Control: one statement would write the second of these rows first, or wouldn't detect the conflict."""
    await bulk.insert_many(things, Thing, [{"id": 1, "name": "old", "code": "b"}])
    for codes in ("bB", "Bb"):
        rows = [{"id": 8, "name": "new", "code": codes[0]}, {"id": 9, "name": "old", "code": codes[1]}]
        assert await bulk.upsert_many(things, Thing, rows, on=["code"], update=["name"]) == UpsertResult(0, 2, 0)
        rows.reverse()
        assert await bulk.upsert_many(things, Thing, rows, on=["code"], update=["name"]) == UpsertResult(0, 1, 1)
        await bulk.upsert_many(things, Thing, [{"id": 1, "name": "old", "code": "b"}], on=["code"], update=["name"])
    rows = [{"id": n, "name": f"{n}", "code": code} for n, code in enumerate(["z", "z", "Z"], start=20)]
    assert await bulk.upsert_many(things, Thing, rows, on=["code"], update=["name"]) == UpsertResult(1, 2, 0)
    assert await things.scalar(select(Thing.name).where(Thing.id == 20)) == "22"
    for codes in ("yY", "Xx"):
        rows = [{"id": 30 + ord(code), "name": code, "code": code} for code in codes]
        assert await bulk.upsert_many(things, Thing, rows, on=["code"], update=[]) == UpsertResult(1, 0, 1)
        assert await things.scalar(select(Thing.name).where(Thing.code == codes[0])) == codes[0]


async def test_control_a_comparison_with_the_operator_of_the_type_loses_a_change(
    things: AsyncSession,
) -> None:
    await bulk.insert_many(things, Thing, [{"id": 1, "name": "a", "code": "a"}])
    found = await things.scalar(text("SELECT name IS DISTINCT FROM CAST('A' AS citext) FROM things"))
    assert found is False
    with pytest.raises(DBAPIError, match="operator does not exist"):
        async with things.begin_nested():
            await things.execute(select(func.count()).where(text("point '(1,2)' = point '(1,2)'")))
    assert datetime.now(UTC) > LONG_AGO
