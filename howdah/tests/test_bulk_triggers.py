"""Rows that a trigger suppresses or moves to another table: only existing rows are counted, for any number of rows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import ARRAY, Integer, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.schema import MetaData

from howdah import Base, Database, UUIDv7PrimaryKey, bulk, uuid7


class Separate(Base):
    __abstract__ = True
    metadata = MetaData()


class Guarded(UUIDv7PrimaryKey, Separate):
    __tablename__ = "guarded"

    n: Mapped[int] = mapped_column(Integer)


class Listed(UUIDv7PrimaryKey, Separate):
    """Arrays are inserted with VALUES."""

    __tablename__ = "listed"

    n: Mapped[int]
    parts: Mapped[list[int]] = mapped_column(ARRAY(Integer), default=list)


class Counted(Separate):
    """The database generates the keys."""

    __tablename__ = "counted"

    id: Mapped[int] = mapped_column(primary_key=True)
    n: Mapped[int]


SIZES = [1, 2, 6, 19, 20, 1100]


@pytest.fixture(params=[True, False], ids=["copy", "insert"])
async def session(request: pytest.FixtureRequest, database_url: str) -> AsyncIterator[AsyncSession]:
    async with Database(database_url, copy=request.param) as database, database.session() as session:
        await (await session.connection()).run_sync(Separate.metadata.create_all)
        yield session


async def before_insert(session: AsyncSession, body: str, table: str = "guarded") -> None:
    await session.execute(
        text(
            f"CREATE FUNCTION guard() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$"
        )  # no value of a user
    )
    trigger = f"CREATE TRIGGER guard BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION guard()"
    await session.execute(text(trigger))


async def stored_keys(session: AsyncSession) -> set[UUID]:
    return {*await session.scalars(select(Guarded.id))}


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("first", [0, 1])
async def test_rows_that_a_trigger_suppresses_are_not_counted_and_have_no_key(
    session: AsyncSession, count: int, first: int
) -> None:
    await before_insert(session, "IF NEW.n % 2 = 1 THEN RETURN NULL; END IF; RETURN NEW;")
    rows = [{"id": uuid7(), "n": number} for number in range(first, first + count)]
    created = await bulk.insert_many(session, Guarded, rows)
    assert created.keys == [row["id"] for row in rows if row["n"] % 2 == 0]  # type: ignore[operator]
    assert created.count == len(created.keys) == len(await stored_keys(session))
    more = await bulk.insert_many(session, Guarded, ({"n": number} for number in range(count)), keys=False)
    assert (more.count, more.keys) == ((count + 1) // 2, [])


@pytest.mark.parametrize("count", SIZES)
async def test_the_counts_of_chunks_with_suppressed_rows_add_up(session: AsyncSession, count: int) -> None:
    await before_insert(session, "IF NEW.n % 3 = 1 THEN RETURN NULL; END IF; RETURN NEW;")
    created = await bulk.insert_many(session, Guarded, [{"n": n} for n in range(count)], chunk_size=7)
    assert created.count == await session.scalar(select(func.count()).select_from(Guarded))
    assert {*created.keys} == await stored_keys(session)


@pytest.mark.parametrize("count", SIZES)
async def test_a_rejected_row_is_identified_by_its_position_among_all_rows(session: AsyncSession, count: int) -> None:
    await before_insert(
        session, "IF NEW.n < 0 THEN RAISE 'no'; ELSIF NEW.n % 2 = 1 THEN RETURN NULL; END IF; RETURN NEW;"
    )
    rows = [{"n": number} for number in range(count)]
    rows[-1]["n"] = -1
    for chunk_size in (None, 5):
        with pytest.raises(Exception, match="no") as caught:
            await bulk.insert_many(session, Guarded, rows, chunk_size=chunk_size)
        assert caught.value.row_index == count - 1  # type: ignore[attr-defined]
    assert not await stored_keys(session)


@pytest.mark.parametrize("count", SIZES)
async def test_rows_that_a_trigger_moves_to_an_inheriting_table_are_counted(session: AsyncSession, count: int) -> None:
    await session.execute(text("CREATE TABLE guarded_child () INHERITS (guarded)"))
    await before_insert(session, "INSERT INTO guarded_child VALUES (NEW.*); RETURN NULL;")
    created = await bulk.insert_many(session, Guarded, [{"n": number} for number in range(count)])
    assert created.count == count
    assert {*created.keys} == await stored_keys(session)


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("model", [Listed, Counted])
async def test_rows_that_are_inserted_with_values_are_counted_too(
    session: AsyncSession, model: type[Any], count: int
) -> None:
    await before_insert(session, "IF NEW.n % 2 = 1 THEN RETURN NULL; END IF; RETURN NEW;", model.__tablename__)
    created = await bulk.insert_many(session, model, [{"n": number} for number in range(count)])
    found = (await session.execute(select(model.id, model.n).order_by(model.n))).all()
    assert [n for _, n in found] == [*range(0, count, 2)]
    assert created.count == len(found)
    assert created.keys == [key for key, _ in found]
