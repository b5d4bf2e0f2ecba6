"""`upsert_many` counts correctly with triggers, in partitioned tables, through views, and under concurrency."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import Identity, MetaData, UniqueConstraint, func, select, text
from sqlalchemy.dialects.postgresql import ARRAY, CITEXT
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.types import Integer

from howdah import Base, Database, UpsertResult, UUIDv7PrimaryKey, bulk
from howdah.testing import assert_statements
from howdah_tests.support.case_insensitive_types import create_citext
from howdah_tests.support.waiting import until_waiting

MANY = 40


class Separate(Base):
    __abstract__ = True
    metadata = MetaData()


class Item(Separate):
    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    value: Mapped[int]
    numbers: Mapped[Any] = mapped_column(ARRAY(Integer), nullable=True)  # rows with an array are sent with VALUES


class Measurement(Separate):
    __tablename__ = "measurements"
    __table_args__ = {"postgresql_partition_by": "RANGE (id)"}  # noqa: RUF012
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    value: Mapped[int]


class Reading(Separate):
    """A database view of the table of `Item`."""

    __tablename__ = "readings"
    __table_args__ = {"info": {"view": True}}  # noqa: RUF012
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    value: Mapped[int]


class OuterReading(Separate):
    """A view of that view."""

    __tablename__ = "outer_readings"
    __table_args__ = {"info": {"view": True}}  # noqa: RUF012
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    value: Mapped[int]


class Numbered(Separate):
    __tablename__ = "numbered"
    __table_args__ = (UniqueConstraint("code", name="one_code"),)
    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    code: Mapped[Any] = mapped_column(CITEXT, nullable=True)
    value: Mapped[int]


class Unique(UUIDv7PrimaryKey, Separate):
    __tablename__ = "unique_ones"
    code: Mapped[str] = mapped_column(unique=True)
    value: Mapped[int]


async def create_tables(session: AsyncSession) -> None:
    await create_citext(session)
    tables = [table for table in Separate.metadata.tables.values() if not table.info.get("view")]
    await session.run_sync(lambda sync: Separate.metadata.create_all(sync.connection(), tables))
    await session.execute(text("CREATE VIEW readings AS SELECT id, value FROM items"))
    for n in range(4):
        bounds = f"FROM ({n * 1000}) TO ({(n + 1) * 1000})"
        await session.execute(text(f"CREATE TABLE m{n} PARTITION OF measurements FOR VALUES {bounds}"))


@pytest.fixture
async def tables(session: AsyncSession) -> AsyncIterator[AsyncSession]:
    await create_tables(session)
    yield session
    await session.rollback()


async def trigger(session: AsyncSession, table: str, event: str, body: str) -> None:
    function = f"CREATE FUNCTION on_{table}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$"
    await session.execute(text(function.replace(":", "\\:")))
    await session.execute(
        text(f"CREATE TRIGGER t BEFORE {event} ON {table} FOR EACH ROW EXECUTE FUNCTION on_{table}()")
    )


async def values(session: AsyncSession, model: Any) -> list[tuple[int, int]]:
    return [tuple(row) for row in await session.execute(select(model.id, model.value).order_by(model.id))]


def rows_of(ids: Any, value: int, **more: Any) -> list[dict[str, Any]]:
    return [{"id": n, "value": value, **more} for n in ids]


@pytest.mark.parametrize("with_objects", [False, True])
@pytest.mark.parametrize("many", [4, 40, 1200])
@pytest.mark.parametrize("model", [Item, Measurement, Reading])
async def test_rows_of_tables_partitioned_tables_and_views_are_counted(
    tables: AsyncSession, model: Any, many: int, with_objects: bool
) -> None:
    half = many // 2
    assert await bulk.upsert_many(tables, model, rows_of(range(half), 1)) == UpsertResult(half, 0, 0)
    kept = (await tables.scalars(select(model))).all() if with_objects else []
    assert await bulk.upsert_many(tables, model, rows_of(range(half), 1)) == UpsertResult(0, 0, half)
    rows = [{"id": n, "value": n % 2} for n in reversed(range(many))]
    assert await bulk.upsert_many(tables, model, rows) == UpsertResult(half, half // 2, half // 2)
    assert await values(tables, model) == [(n, n % 2) for n in range(many)]
    assert [each.value for each in sorted(kept, key=lambda each: each.id)] == [
        n % 2 for n in range(half if with_objects else 0)
    ]
    twice = [*rows_of(range(half, many + 1), 5), *rows_of([0, 0, many], 6)]
    assert await bulk.upsert_many(tables, model, twice) == UpsertResult(1, many - half + 2, 1)
    assert await bulk.upsert_many(tables, model, rows_of(range(many + 2), 7), update=[]) == UpsertResult(1, 0, many + 1)


async def test_rows_that_are_sent_with_values_are_counted_the_same(tables: AsyncSession) -> None:
    rows = rows_of(range(2500), 1, numbers=[1])
    assert await bulk.upsert_many(tables, Item, rows[:1500]) == UpsertResult(1500, 0, 0)
    for n in range(0, 2500, 2):
        rows[n]["numbers"] = [2]
    assert await bulk.upsert_many(tables, Item, rows) == UpsertResult(1000, 750, 750)


@pytest.mark.parametrize("with_values", [False, True])
@pytest.mark.parametrize("many", [3, MANY, 1100])
async def test_rows_that_a_trigger_suppresses_are_neither_written_nor_unchanged(
    tables: AsyncSession, many: int, with_values: bool
) -> None:
    more: dict[str, Any] = {"numbers": [1]} if with_values else {}
    await bulk.insert_many(tables, Item, rows_of([0, 1], 1, **more))
    await trigger(tables, "items", "INSERT", "IF NEW.value = 3 THEN RETURN NULL; END IF; RETURN NEW;")
    rows = [*rows_of([0], 1, **more), *rows_of([1], 2, **more), *rows_of(range(2, many), 3, **more)]
    assert await bulk.upsert_many(tables, Item, rows) == UpsertResult(0, 1, 1, suppressed=many - 2)
    assert await bulk.upsert_many(tables, Item, rows, update=[]) == UpsertResult(0, 0, 2, suppressed=many - 2)
    assert await values(tables, Item) == [(0, 1), (1, 2)]
    assert await bulk.upsert_many(tables, Item, rows_of([0, 5], 3, **more)) == UpsertResult(0, 0, 0, suppressed=2)


async def test_rows_whose_update_a_trigger_suppresses_count_as_unchanged(tables: AsyncSession) -> None:
    await bulk.insert_many(tables, Item, rows_of(range(10), 1))
    await trigger(tables, "items", "UPDATE", "IF NEW.id < 4 THEN RETURN NULL; END IF; RETURN NEW;")
    assert await bulk.upsert_many(tables, Item, rows_of(range(12), 2)) == UpsertResult(2, 6, 4)


async def test_rows_are_matched_by_the_values_that_a_trigger_sets(tables: AsyncSession) -> None:
    await bulk.insert_many(tables, Unique, [{"code": "a", "value": 1}, {"code": "b", "value": 1}])
    await trigger(tables, "unique_ones", "INSERT", "NEW.code := lower(NEW.code); RETURN NEW;")
    rows = [{"code": code, "value": 1} for code in ("A", "b", "C")]
    assert await bulk.upsert_many(tables, Unique, rows, on=["code"]) == UpsertResult(1, 0, 2)
    for codes in ("aA", "Aa"):  # the first row changes the stored row, the second one changes it back
        rows = [{"code": code, "value": value} for code, value in zip(codes, (2, 1), strict=True)]
        assert await bulk.upsert_many(tables, Unique, rows, on=["code"]) == UpsertResult(0, 2, 0)
    rows = [{"code": code, "value": 2} for code in ("A", "a", "D")]
    assert await bulk.upsert_many(tables, Unique, rows, on=["code"]) == UpsertResult(1, 1, 1)
    assert await bulk.upsert_many(tables, Unique, rows, on=["code"], update=[]) == UpsertResult(0, 0, 3)


@pytest.mark.parametrize("model", [Measurement, Reading])
async def test_triggers_of_partitions_and_of_tables_behind_views_are_counted(tables: AsyncSession, model: Any) -> None:
    await bulk.upsert_many(tables, model, rows_of(range(3), 1))
    where = "m0" if model is Measurement else "items"
    await trigger(tables, where, "INSERT", "IF NEW.value = 3 THEN RETURN NULL; END IF; RETURN NEW;")
    rows = [*rows_of([0], 1), *rows_of([1], 2), *rows_of([2, 3], 3), *rows_of([4], 4)]
    assert await bulk.upsert_many(tables, model, rows) == UpsertResult(1, 1, 1, suppressed=2)
    assert await bulk.upsert_many(tables, model, rows, update=[]) == UpsertResult(0, 0, 3, suppressed=2)
    assert await values(tables, model) == [(0, 1), (1, 2), (2, 1), (4, 4)]


async def test_a_trigger_that_decides_differently_the_second_time_is_counted_or_rejected(tables: AsyncSession) -> None:
    """The trigger suppresses existing rows. Before PostgreSQL 18, rows of a partitioned table are sent twice."""
    dialect: Any = (await tables.connection()).dialect
    body = "IF EXISTS (SELECT FROM measurements m WHERE m.id = NEW.id) THEN RETURN NULL; END IF; RETURN NEW;"
    await bulk.upsert_many(tables, Measurement, rows_of([2000], 1))
    await trigger(tables, "m0", "INSERT", body)
    rows = [*rows_of(range(3), 1), *rows_of([2000], 2)]
    if dialect.server_version_info >= (18,):
        assert await bulk.upsert_many(tables, Measurement, rows) == UpsertResult(3, 1, 0)
        assert await bulk.upsert_many(tables, Measurement, rows) == UpsertResult(0, 0, 1, suppressed=3)
    else:
        with pytest.raises(RuntimeError, match="a trigger of measurements treats the same rows differently"):
            await bulk.upsert_many(tables, Measurement, rows)
        assert await values(tables, Measurement) == [(2000, 1)]


async def test_a_target_that_postgresql_cannot_upsert_into_is_rejected(tables: AsyncSession) -> None:
    await tables.execute(
        text("CREATE FUNCTION instead() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$")
    )
    await tables.execute(text("CREATE TRIGGER t INSTEAD OF INSERT ON readings FOR EACH ROW EXECUTE FUNCTION instead()"))
    await tables.execute(text("CREATE VIEW outer_readings AS SELECT id, value FROM readings"))
    updates: list[list[str] | None] = [None, []]
    for model in (Reading, OuterReading):
        for update in updates:
            with pytest.raises(TypeError, match="INSTEAD OF trigger, for which PostgreSQL finds no conflicts"):
                await bulk.upsert_many(tables, model, rows_of([1], 1), update=update)
    for action in ("INSTEAD NOTHING", "ALSO INSERT INTO items VALUES (7, 1)"):
        await tables.execute(text(f"CREATE OR REPLACE RULE r AS ON INSERT TO unique_ones DO {action}"))
        for update in (None, []):
            with pytest.raises(DBAPIError):
                await bulk.upsert_many(tables, Unique, [{"code": "a", "value": 1}], on=["code"], update=update)


async def test_counts_are_correct_after_a_savepoint_is_rolled_back(tables: AsyncSession) -> None:
    await bulk.upsert_many(tables, Item, rows_of(range(3), 1))
    for _ in range(2):
        async with tables.begin_nested() as nested:
            assert await bulk.upsert_many(tables, Item, rows_of(range(3), 1)) == UpsertResult(0, 0, 3)
            await nested.rollback()
        assert await bulk.upsert_many(tables, Item, rows_of(range(4), 1), update=["value"]) in (
            UpsertResult(1, 0, 3),
            UpsertResult(0, 0, 4),
        )


async def test_an_ordinary_table_is_not_read_again_for_the_counts(tables: AsyncSession) -> None:
    rows = [{"code": f"{n}", "value": n} for n in range(MANY)]
    with assert_statements(tables, 1):
        await bulk.upsert_many(tables, Unique, rows, on=["code"])
    with assert_statements(tables, 3) as sent:  # the upsert, the number of conflicting rows, the operators of the index
        assert await bulk.upsert_many(tables, Unique, rows, on=["code"]) == UpsertResult(0, 0, MANY)
    assert [statement for statement in sent if "unique_ones" in statement] == sent[:1]


# --- keys that are None


@pytest.mark.parametrize("model", [Numbered, Unique])
@pytest.mark.parametrize("many", [2, 25])
async def test_a_key_that_is_none_is_generated(tables: AsyncSession, model: Any, many: int) -> None:
    rows: list[dict[str, Any]] = [{"id": None, "code": f"{n}", "value": n} for n in range(many)]
    assert await bulk.upsert_many(tables, model, rows) == UpsertResult(many, 0, 0)
    keys = list(await tables.scalars(select(model.id).order_by(model.value)))
    assert len({*keys}) == many
    assert await bulk.upsert_many(tables, model, rows, on=["code"]) == UpsertResult(0, 0, many)
    for row, key in list(zip(rows, keys, strict=True))[::2]:
        row["id"] = key
    mixed = [*rows, {"id": None, "code": "new", "value": -1}]
    assert await bulk.upsert_many(tables, model, mixed, on=["code"]) == UpsertResult(1, 0, many)
    rows = [{"id": key, "code": f"new {key}", "value": 1} for key in keys[::2]]
    rows = [each for row in rows for each in (row, {"id": None, "code": f"made {row['id']}", "value": 2})]
    assert await bulk.upsert_many(tables, model, rows) == UpsertResult(len(keys[::2]), len(keys[::2]), 0)
    assert len(list(await tables.scalars(select(model.id)))) == many + 1 + len(keys[::2])


async def test_conflicting_rows_with_and_without_a_key_are_written_in_the_order_of_the_input(
    tables: AsyncSession,
) -> None:
    """They are written by two statements, and only PostgreSQL can detect the conflict."""
    rows: list[dict[str, Any]] = [
        {"id": 500, "code": "A", "value": 1},
        {"id": None, "code": "a", "value": 2},
        {"id": 501, "code": "b", "value": 3},
        {"id": None, "code": "B", "value": 4},
    ]
    assert await bulk.upsert_many(tables, Numbered, rows, on=["code"]) == UpsertResult(2, 2, 0)
    assert await values(tables, Numbered) == [(500, 2), (501, 4)]


async def test_null_in_a_conflict_column_conflicts_with_nothing(tables: AsyncSession) -> None:
    rows = [{"code": None if n % 2 else f"{n}", "value": n} for n in range(MANY)]
    assert await bulk.upsert_many(tables, Numbered, rows, on=["code"]) == UpsertResult(MANY, 0, 0)
    assert await bulk.upsert_many(tables, Numbered, rows, on=["code"]) == UpsertResult(MANY // 2, 0, MANY // 2)
    assert await bulk.upsert_many(tables, Numbered, rows, on=["code"], update=[]) == UpsertResult(
        MANY // 2, 0, MANY // 2
    )


async def test_null_conflicts_with_null_if_the_constraint_says_nulls_not_distinct(tables: AsyncSession) -> None:
    dialect: Any = (await tables.connection()).dialect
    if dialect.server_version_info < (15,):
        pytest.skip("NULLS NOT DISTINCT is new in PostgreSQL 15")
    await tables.execute(text("ALTER TABLE numbered DROP CONSTRAINT one_code"))
    await tables.execute(text("CREATE UNIQUE INDEX ON numbered (code) NULLS NOT DISTINCT"))
    rows = [{"code": code, "value": n} for n, code in enumerate([None, "a", None, "A", None])]
    assert await bulk.upsert_many(tables, Numbered, rows, on=["code"]) == UpsertResult(2, 3, 0)
    rows = [{"code": None, "value": 4}, {"code": "a", "value": 3}]
    assert await bulk.upsert_many(tables, Numbered, rows, on=["code"]) == UpsertResult(0, 0, 2)


async def test_an_empty_list_of_conflict_columns_is_rejected(tables: AsyncSession) -> None:
    with pytest.raises(ValueError, match="`on` must name at least one attribute"):
        await bulk.upsert_many(tables, Item, rows_of([1], 1), on=[])


# --- races


@pytest.mark.parametrize("model", [Item, Measurement, Reading])
@pytest.mark.parametrize("update", [None, []])
async def test_a_row_that_another_transaction_inserts_meanwhile_is_not_counted_as_created(
    committed_database: Database, model: Any, update: Any
) -> None:
    """The snapshot of the upsert doesn't contain the row."""
    async with committed_database.begin() as session:
        await create_tables(session)
    async with committed_database.session() as other, committed_database.session() as session:
        await bulk.insert_many(other, model, rows_of([2], 1))
        assert await session.scalar(select(func.count()).select_from(model)) == 0
        upsert = asyncio.create_task(bulk.upsert_many(session, model, rows_of([1, 2, 3], 2), update=update))
        await until_waiting(committed_database)
        await other.commit()
        assert await upsert == (UpsertResult(2, 1, 0) if update is None else UpsertResult(2, 0, 1))
        await session.commit()
    async with committed_database.session() as session:
        assert await values(session, model) == [(1, 2), (2, 2 if update is None else 1), (3, 2)]
