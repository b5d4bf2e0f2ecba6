"""`update_many` of array columns, and of columns whose type writes values by an SQL expression."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import (
    ARRAY,
    Boolean,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    String,
    Uuid,
    func,
    literal,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import DOMAIN, ENUM, INT4RANGE, JSONB, Range
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import UserDefinedType

from howdah import AsyncRepository, Base, InvalidValue, MatchResult, StaleRow, TooLong, Versioned, bulk
from howdah._writes import updating
from howdah.models import AwareDateTime
from howdah.testing import assert_statements
from howdah_tests.support.sample_models import Loud, Specimen, Status


class Reversed(UserDefinedType[str]):
    """Writes its values by an SQL expression."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "text"

    def bind_expression(self, bindvalue: Any) -> Any:
        return func.reverse(bindvalue, type_=self)


class Separate(Base):
    __abstract__ = True
    metadata = MetaData()


class Tagged(Versioned, Separate):
    __tablename__ = "tagged_rows"

    code: Mapped[str] = mapped_column(String(5), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    tags: Mapped[list[str | None] | None] = mapped_column(ARRAY(String(5)))
    matrix: Mapped[list[list[int]] | None] = mapped_column(ARRAY(Integer, dimensions=2))
    mirrored: Mapped[str | None] = mapped_column(Reversed)
    value: Mapped[int | None]


class ByArray(Separate):
    __tablename__ = "by_array"

    path: Mapped[list[str]] = mapped_column(ARRAY(String), primary_key=True)
    value: Mapped[int]


MOMENT = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
# a type, and values of it
KINDS: list[tuple[Any, list[Any]]] = [
    (ARRAY(Integer), [[1, None, 2], [], None, [None], [2**31 - 1]]),
    (ARRAY(String), [["a,b", '"', "{}", "NULL", "", None, "\\"], [], ["ä" * 500], None]),
    (ARRAY(String(3)), [["abc", None], []]),
    (ARRAY(Integer, dimensions=2), [[[1, 2], [3, None]], [], [[5]], None]),
    (ARRAY(Integer), [[[1, 2], [3, 4]], [[[1], [2]], [[3], [4]]]]),
    (ARRAY(Numeric(10, 3)), [[Decimal("1.250"), None], []]),
    (ARRAY(JSONB, dimensions=1), [[{"a": [1]}, [1, [2]], "text", None, 5], []]),
    (ARRAY(AwareDateTime()), [[MOMENT, None], []]),
    (ARRAY(INT4RANGE), [[Range(1, 5), None, Range(empty=True)], []]),
    (ARRAY(ENUM(Status, name="array_status")), [[Status.PAID, None, Status.PENDING], []]),
    (ARRAY(DOMAIN("small_number", Integer)), [[1, None], []]),
    (ARRAY(LargeBinary), [[b"\0\1", None, b""], []]),
    (ARRAY(Uuid), [[UUID(int=5), None], []]),
    (ARRAY(Boolean), [[True, None, False], []]),
    (ARRAY(Loud), [["abc", None], []]),
    (Reversed(), ["abc", None, ""]),
]


def model_of(kind: Any) -> Any:
    class Own(DeclarativeBase):
        pass

    class Valued(Own):
        __tablename__ = "valued"
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        value: Mapped[Any] = mapped_column(kind, nullable=True)

    return Valued


@pytest.fixture
async def tagged(session: AsyncSession) -> AsyncSession:
    await session.run_sync(lambda sync: Separate.metadata.create_all(sync.connection()))
    return session


@pytest.mark.parametrize(("kind", "values"), KINDS, ids=lambda each: str(each)[:30])
async def test_an_update_stores_what_the_orm_stores(session: AsyncSession, kind: Any, values: list[Any]) -> None:
    model = model_of(kind)
    await session.run_sync(lambda sync: model.metadata.create_all(sync.connection()))
    session.add_all(model(id=number, value=value) for number, value in enumerate(values))
    await session.flush()
    session.expunge_all()
    stored = text("SELECT value::text FROM valued ORDER BY id")  # shows the dimensions of an array
    expected = (await session.execute(stored)).all()
    count = len(values)
    moved = [{"id": number, "value": values[(number + 1) % count]} for number in range(count)]
    assert await bulk.update_many(session, model, moved) == MatchResult(count, [])
    assert (await session.execute(stored)).all() == [*expected[1:], expected[0]]


async def test_arrays_and_other_columns_are_updated_together(tagged: AsyncSession) -> None:
    keys = [{"code": code, "number": number} for code in "ab" for number in range(2)]
    await bulk.insert_many(tagged, Tagged, keys)
    loaded = await tagged.get_one(Tagged, ("b", 1))
    rows = [
        {**key, "tags": ["x"] * number, "value": number, "matrix": [[number]], "mirrored": "ab"}
        for number, key in enumerate([*reversed(keys), {"code": "c", "number": 9}])
    ]
    with assert_statements(tagged, 3):  # the second one finds the missing key, the third one refreshes the object
        result = await bulk.update_many(tagged, Tagged, rows)
    assert result == MatchResult(4, [("c", 9)])
    assert (loaded.tags, loaded.matrix, loaded.value, loaded.version, loaded.mirrored) == ([], [[0]], 0, 2, "ba")
    found = await tagged.execute(select(Tagged.number, Tagged.tags, Tagged.value).order_by(Tagged.code, Tagged.number))
    assert found.all() == [(0, ["x"] * 3, 3), (1, ["x"] * 2, 2), (0, ["x"], 1), (1, [], 0)]


async def test_rows_with_the_same_key_and_stale_versions(tagged: AsyncSession) -> None:
    await bulk.insert_many(tagged, Tagged, [{"code": "a", "number": n} for n in range(3)])
    rows = [{"code": "a", "number": 1, "tags": [tag]} for tag in "xyz"]
    assert await bulk.update_many(tagged, Tagged, rows) == MatchResult(3, [])
    assert await tagged.scalar(select(Tagged.tags).where(Tagged.version == 4)) == ["z"]
    stale = [{"code": "a", "number": n, "tags": ["s"], "version": 1} for n in range(3)]
    with pytest.raises(StaleRow) as caught:
        await bulk.update_many(tagged, Tagged, stale)
    assert caught.value.keys == [("a", 1)]
    assert await bulk.update_many(tagged, Tagged, [stale[0], stale[2]]) == MatchResult(2, [])


async def test_a_text_that_is_too_long_is_rejected_and_not_truncated(tagged: AsyncSession) -> None:
    """SQLAlchemy would cast the parameter to `VARCHAR(5)[]`, which truncates it."""
    await bulk.insert_many(tagged, Tagged, [{"code": "a", "number": n} for n in range(2)])
    rows: list[dict[str, Any]] = [{"code": "a", "number": n, "tags": ["ok", "x" * (5 + n)]} for n in range(2)]
    for write in (bulk.update_many, bulk.upsert_many):
        with pytest.raises(TooLong) as caught:
            await write(tagged, Tagged, rows)
        assert caught.value.row_index == 1
    for write_one in (AsyncRepository(tagged, Tagged).upsert, AsyncRepository(tagged, Tagged).create_many):
        with pytest.raises(TooLong):
            async with tagged.begin_nested():
                await write_one([{**rows[1], "number": 5}] if write_one.__name__ == "create_many" else rows[1])
    with pytest.raises(TooLong):
        async with tagged.begin_nested():
            await AsyncRepository(tagged, Tagged).create(**rows[1] | {"number": 7})
    with pytest.raises(DBAPIError) as wrong:
        await bulk.update_many(tagged, Tagged, [{"code": "a", "number": 0, "tags": [5]}])
    assert "row 0 of the input" in wrong.value.__notes__[0]


async def test_a_text_in_place_of_an_array_is_rejected_and_not_split_into_characters(tagged: AsyncSession) -> None:
    await bulk.insert_many(tagged, Tagged, [{"code": "a", "number": 0}])
    for write in (bulk.insert_many, bulk.update_many, bulk.upsert_many):
        for count in (1, 25):
            rows = [{"code": "a", "number": n, "tags": "word"} for n in range(count)]
            with pytest.raises(InvalidValue, match="a str was rejected for an array: pass a list"):
                await write(tagged, Tagged, rows)
    with pytest.raises(InvalidValue):
        await AsyncRepository(tagged, Tagged).exists(
            select(Tagged).where(Tagged.tags == literal("word", ARRAY(String)))
        )


async def test_more_rows_than_one_statement_may_have(tagged: AsyncSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows are locked in key order first. A stale row of any statement is found."""
    monkeypatch.setattr(updating, "_LISTED_ROWS", 7)
    await bulk.insert_many(tagged, Tagged, [{"code": "a", "number": n} for n in range(30)])
    rows = [{"code": "a", "number": n, "tags": [str(n)], "version": 1} for n in reversed(range(30))]
    with assert_statements(tagged, 2 + 5):  # the rows are matched with their keys, and locked
        await bulk.update_many(tagged, Tagged, rows)
    found = (await tagged.execute(select(Tagged.number, Tagged.tags))).all()
    assert {(number, *tags) for number, tags in found if tags} == {(n, str(n)) for n in range(30)}
    with pytest.raises(StaleRow, match="2 Tagged rows") as caught:
        await bulk.update_many(tagged, Tagged, [{**row, "version": 2 - (row["number"] in (1, 29))} for row in rows])
    assert caught.value.keys == [("a", 29), ("a", 1)]


async def test_an_array_in_the_key_is_rejected(tagged: AsyncSession) -> None:
    with pytest.raises(TypeError, match="the key of ByArray has an array"):
        await bulk.update_many(tagged, ByArray, [{"path": ["a"], "value": 1}])


async def test_the_array_of_the_sample_model_can_be_updated(session: AsyncSession) -> None:
    await bulk.insert_many(session, Specimen, [{"id": n} for n in range(3)])
    rows = [{"id": n, "tags": ["a"] * n, "day": date(2026, 1, 1 + n), "anything": [n]} for n in range(3)]
    assert await bulk.update_many(session, Specimen, rows) == MatchResult(3, [])
    found = await session.execute(select(Specimen.tags, Specimen.day, Specimen.anything).order_by(Specimen.id))
    assert [tuple(row) for row in found] == [(["a"] * n, date(2026, 1, 1 + n), [n]) for n in range(3)]
