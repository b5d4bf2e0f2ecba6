"""After the type of a column has changed, COPY stores the same values as INSERT."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import (
    ARRAY,
    BigInteger,
    Date,
    DateTime,
    Enum,
    Float,
    Integer,
    Numeric,
    String,
    event,
    insert,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import (
    INT4RANGE,
    NUMRANGE,
    Range,
)

from howdah import Database, DatabaseError, bulk
from howdah._connections.prepared import PreparedSelect
from howdah.testing import assert_statements
from howdah_tests.support.typed_columns import (
    SIZES,
    Point,
    as_text,
    create_mapped_class,
    execute,
    open_one_connection,
    write,
)


@pytest.fixture
def far_from_utc() -> Iterator[None]:
    """The process has another time zone than the session."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = "America/New_York"
    time.tzset()
    yield
    if before is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = before
    time.tzset()


ALTER = "ALTER TABLE samples ALTER v TYPE "

CHANGES = [
    pytest.param(BigInteger(), [1250, None, 2**53], [ALTER + "double precision"], id="bigint to double"),
    pytest.param(BigInteger(), [1250, None, 2**53 + 1], [ALTER + "numeric"], id="bigint to numeric"),
    pytest.param(Integer(), [1250, None], [ALTER + "real"], id="int to real"),
    pytest.param(Integer(), [1250, None, -1], [ALTER + "bigint"], id="int to bigint"),
    pytest.param(BigInteger(), [1250, None, -1], [ALTER + "integer"], id="bigint to int"),
    pytest.param(Integer(), [1250, None], [ALTER + "text"], id="int to text"),
    pytest.param(Float(), [1.7, None, -0.5, 2.5], [ALTER + "integer"], id="double to int"),
    pytest.param(Float(), [0.1, None, 1e300], [ALTER + "numeric"], id="double to numeric"),
    pytest.param(Float(), [0.1, None, 1e30], [ALTER + "real"], id="double to real"),
    pytest.param(Numeric(10, 2), [Decimal("1.75"), None], [ALTER + "integer"], id="numeric to int"),
    pytest.param(Numeric(10, 2), [Decimal("1.75"), None], [ALTER + "double precision"], id="numeric to double"),
    pytest.param(Numeric(10, 2), [Decimal("1.7549"), None], [ALTER + "numeric(10, 4)"], id="numeric larger scale"),
    pytest.param(Numeric(10, 4), [Decimal("1.7549"), None], [ALTER + "numeric(10, 1)"], id="numeric smaller scale"),
    pytest.param(String(20), ["ä", None, ""], [ALTER + "text"], id="varchar to text"),
    pytest.param(String(20), ["ä", None, ""], [ALTER + "char(5)"], id="varchar to char"),
    pytest.param(
        DateTime(), [datetime.fromisoformat("2024-07-01T23:00:00"), None], [ALTER + "timestamptz"], id="to timestamptz"
    ),
    pytest.param(
        DateTime(timezone=True), [datetime(2024, 7, 1, 23, tzinfo=UTC), None], [ALTER + "timestamp"], id="to timestamp"
    ),
    pytest.param(
        DateTime(timezone=True),
        [datetime.fromisoformat("2024-07-01T23:00:00-05:00"), None],
        [ALTER + "date"],
        id="timestamptz to date",
    ),
    pytest.param(Date(), [date(2024, 7, 1), None], [ALTER + "timestamptz"], id="date to timestamptz"),
    pytest.param(
        ARRAY(BigInteger), [[1250, None], None, []], [ALTER + "double precision[]"], id="bigint[] to double[]"
    ),
    pytest.param(ARRAY(Float), [[1.7, None], None, []], [ALTER + "bigint[]"], id="double[] to bigint[]"),
    pytest.param(Enum("sad", "happy", name="mood"), ["sad", None], [ALTER + "text"], id="enum to text"),
    pytest.param(
        Integer(),
        [5, None],
        ["CREATE DOMAIN positive AS bigint CHECK (VALUE > 0)", ALTER + "positive"],
        id="int to domain",
    ),
    pytest.param(
        Float(),
        [2.5, None],
        ["DROP TABLE samples", "CREATE TABLE samples (v int, id uuid PRIMARY KEY)"],
        id="table that is created again",
    ),
    pytest.param(
        BigInteger(),
        [5, None],
        ["ALTER TABLE samples RENAME v TO w", "ALTER TABLE samples ADD v double precision"],
        id="column that is replaced",
    ),
]


@pytest.mark.usefixtures("far_from_utc")
@pytest.mark.parametrize(("kind", "values", "statements"), CHANGES)
async def test_after_a_type_change_the_stored_values_are_those_of_a_new_connection(
    committed_url: str, kind: Any, values: list[Any], statements: list[str]
) -> None:
    model = create_mapped_class(v=kind)
    async with (
        open_one_connection(committed_url) as database,
        open_one_connection(committed_url, copy=False) as inserting,
    ):
        async with database.engine.begin() as connection:
            await connection.run_sync(model.metadata.create_all)
        for size in SIZES:
            await write(database, model, values, size)
        await execute(committed_url, *statements)
        for size in SIZES:
            found = await write(database, model, values, size)
            assert len(found) == size
            assert found == await write(inserting, model, values, size)


async def test_an_enum_that_is_created_again_is_rejected_at_most_once(committed_url: str) -> None:
    """SQLAlchemy's prepared INSERT refers to the dropped type. After this error it prepares its statements again."""
    model = create_mapped_class(v=Enum("sad", "happy", name="mood"))
    async with open_one_connection(committed_url) as database:
        async with database.engine.begin() as connection:
            await connection.run_sync(model.metadata.create_all)
        for size in SIZES:
            await write(database, model, ["sad", "happy", None], size)
        await execute(
            committed_url,
            ALTER + "text",
            "DROP TYPE mood",
            "CREATE TYPE mood AS ENUM ('happy', 'neutral', 'sad')",
            ALTER + "mood USING v::mood",
        )
        for size in SIZES:
            with contextlib.suppress(DatabaseError):
                await write(database, model, ["sad"], size)
        for size in SIZES:
            found = await write(database, model, ["sad", "happy", None], size)
            assert {value for (value,) in found} <= {"sad", "happy", None}
            assert len(found) == size


async def test_a_column_of_the_type_of_the_model_is_copied(committed_url: str) -> None:
    for kind, value in ((BigInteger(), 1), (Float(), 1.5), (Numeric(), Decimal(1)), (ARRAY(Integer), [1])):
        model = create_mapped_class(v=kind)
        async with open_one_connection(committed_url) as database, database.begin() as session:
            await (await session.connection()).run_sync(model.metadata.create_all)
            with assert_statements(session, 1) as sent:
                await bulk.insert_many(session, model, [{"v": value}] * 30)
            assert sent[0].startswith("COPY samples (id, v) FROM STDIN")
            await session.rollback()


@pytest.mark.parametrize("chunks", [1, 4])
async def test_a_type_that_changes_between_two_chunks_is_seen_by_the_second_chunk(
    committed_url: str, chunks: int
) -> None:
    """In one transaction, because an ALTER of another transaction waits for this one."""
    model = create_mapped_class(v=BigInteger())
    async with open_one_connection(committed_url) as database, database.begin() as session:
        connection = await session.connection()
        await connection.run_sync(model.metadata.create_all)

        async def rows() -> Any:
            for chunk in range(chunks):
                if chunk:
                    await session.execute(text(ALTER + ("double precision", "bigint")[chunk % 2]))
                for value in range(30):
                    yield {"v": value}

        assert (await bulk.insert_many(session, model, rows(), chunk_size=30)).count == 30 * chunks
        assert await session.scalar(text("SELECT sum(v)::int FROM samples")) == sum(range(30)) * chunks


async def test_an_alter_of_another_connection_waits_until_the_rows_are_committed(committed_url: str) -> None:
    model = create_mapped_class(v=BigInteger())
    async with open_one_connection(committed_url) as database:
        async with database.engine.begin() as connection:
            await connection.run_sync(model.metadata.create_all)
        async with database.begin() as session:
            await bulk.insert_many(session, model, [{"v": 1250}] * 30)
            alter = asyncio.create_task(execute(committed_url, ALTER + "double precision"))
            waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'samples'::regclass")
            while not await session.scalar(waiting):
                assert not alter.done()
            await bulk.insert_many(session, model, [{"v": 1250}] * 30)
        await alter
        async with database.begin() as session:
            await bulk.insert_many(session, model, [{"v": 1250}] * 30)
            assert set(await session.scalars(text("SELECT v FROM samples"))) == {1250.0}


async def test_a_copy_locks_the_table_before_its_first_row(committed_url: str) -> None:
    """So no ALTER can run between the description of the columns and the rows."""
    model = create_mapped_class(v=BigInteger())
    async with open_one_connection(committed_url) as database:
        async with database.engine.begin() as connection:
            await connection.run_sync(model.metadata.create_all)
        locks: list[str] = []

        @event.listens_for(database.engine.sync_engine, "after_cursor_execute")
        def read_locks(connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            if not statement.startswith("COPY"):
                return
            held = "SELECT mode FROM pg_locks WHERE relation = 'samples'::regclass AND pid = pg_backend_pid()"
            locks.extend(connection.exec_driver_sql(held).scalars())

        async with database.begin() as session:
            await bulk.insert_many(session, model, [{"v": 1250}] * 30)
        assert "AccessShareLock" in locks


async def test_the_same_table_name_in_two_schemas_is_two_tables(committed_url: str) -> None:
    model = create_mapped_class(v=BigInteger())
    await execute(
        committed_url,
        "CREATE SCHEMA one CREATE TABLE samples (id uuid, v bigint)",
        "CREATE SCHEMA two CREATE TABLE samples (id uuid, v double precision)",
    )
    async with open_one_connection(committed_url) as database:
        for schema in ("one", "two", "one", "two"):
            async with database.begin() as session:
                await session.execute(text(f"SET LOCAL search_path = {schema}"))
                for size in SIZES:
                    await bulk.insert_many(session, model, [{"v": 1250}] * size)
        async with database.session() as session:
            for schema in ("one", "two"):
                found = await session.execute(text(f"SELECT v::text, count(*) FROM {schema}.samples GROUP BY 1"))
                assert found.all() == [("1250", 2 * sum(SIZES))]


@pytest.mark.parametrize(
    ("changes", "stored"),
    [
        (["ALTER TYPE place ADD ATTRIBUTE z int CASCADE"], None),
        (["ALTER TYPE place DROP ATTRIBUTE y CASCADE"], None),
        (
            [
                "ALTER TABLE samples DROP v",
                "DROP TYPE place",
                "CREATE TYPE place AS (x double precision, y text)",
                "ALTER TABLE samples ADD v place",
            ],
            "(1,b)",
        ),
    ],
)
async def test_a_changed_composite_type_is_stored_correctly_or_rejected(
    committed_url: str, changes: list[str], stored: str | None
) -> None:
    """The driver caches the description of a composite type until PostgreSQL rejects a value."""
    await execute(committed_url, "CREATE TYPE place AS (x bigint, y text)")
    model = create_mapped_class(v=Point())
    async with open_one_connection(committed_url) as database:
        async with database.engine.begin() as connection:
            await connection.run_sync(model.metadata.create_all)
        for size in SIZES:
            await write(database, model, [(1, "b")], size)
        await execute(committed_url, *changes)
        for size in SIZES:
            with contextlib.suppress(DatabaseError):
                assert await write(database, model, [(1, "b")], size) == [(stored,)] * size
        for size in SIZES:
            if stored is None:
                with pytest.raises(DatabaseError):
                    await write(database, model, [(1, "b")], size)
            else:
                assert await write(database, model, [(1, "b")], size) == [(stored,)] * size


async def test_a_range_of_another_type_is_rejected(committed_url: str) -> None:
    """PostgreSQL rejects it in an INSERT, too. The driver would truncate the bounds to whole numbers."""
    model = create_mapped_class(v=NUMRANGE())
    async with open_one_connection(committed_url) as database:
        async with database.engine.begin() as connection:
            await connection.run_sync(model.metadata.create_all)
        await write(database, model, [Range(Decimal("1.7"), Decimal("2.7"))], 30)
        await execute(committed_url, "ALTER TABLE samples DROP v", "ALTER TABLE samples ADD v int4range")
        other = create_mapped_class(v=INT4RANGE())
        for size in SIZES:
            with pytest.raises(DatabaseError):
                await write(database, model, [Range(Decimal("1.7"), Decimal("2.7"))], size)
            assert await write(database, other, [Range(1, 2)], size) == [("[1,2)",)] * size


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE samples RENAME v TO w",
        "ALTER TABLE samples DROP v",
        "ALTER TABLE samples DROP v, ADD v bigint GENERATED ALWAYS AS (1) STORED",
        "DROP TABLE samples",
    ],
)
async def test_a_column_that_cannot_be_written_any_more_is_rejected(committed_url: str, change: str) -> None:
    model = create_mapped_class(v=BigInteger())
    async with open_one_connection(committed_url) as database:
        async with database.engine.begin() as connection:
            await connection.run_sync(model.metadata.create_all)
        for size in SIZES:
            await write(database, model, [1250], size)
        await execute(committed_url, change)
        for size in SIZES:
            with pytest.raises(DatabaseError):
                await write(database, model, [1250], size)


@pytest.mark.parametrize(("kind", "values", "statements"), CHANGES)
async def test_control_objects_and_statements_of_sqlalchemy_store_the_same_after_a_type_change(
    committed_url: str, kind: Any, values: list[Any], statements: list[str]
) -> None:
    """Their prepared statements are cached too, and PostgreSQL plans them again."""
    model = create_mapped_class(v=kind)

    async def store(database: Database) -> list[Any]:
        async with database.begin() as session:
            session.add_all(model(v=value) for value in values)
            await session.flush()
            await session.execute(insert(model.__table__), [{"v": value} for value in values])
            found = [*await session.execute(as_text(model))]
            await session.execute(text("DELETE FROM samples"))
        return found

    async with open_one_connection(committed_url) as database, open_one_connection(committed_url, copy=False) as fresh:
        async with database.engine.begin() as connection:
            await connection.run_sync(model.metadata.create_all)
        await store(database)
        await execute(committed_url, *statements)
        found = await store(database)
        assert found == await store(fresh)
        assert len(found) == 2 * len(values)


async def test_a_prepared_select_returns_the_stored_values_after_a_type_change(committed_url: str) -> None:
    model = create_mapped_class(v=BigInteger())
    prepared = PreparedSelect(select(model.v))

    async def read(database: Database) -> list[Any]:
        return [row[0] for row in await database.read(lambda connection: prepared.rows(connection, {}))]

    async with Database(committed_url, pool_size=5) as database:
        async with database.engine.begin() as connection:
            await connection.run_sync(model.metadata.create_all)
        async with database.begin() as session:
            await bulk.insert_many(session, model, [{"v": 1250}])
        assert await read(database) == [1250]
        for change in (ALTER + "double precision", ALTER + "numeric(9, 2)", ALTER + "bigint"):
            await execute(committed_url, change)
            assert await read(database) == [1250]
        await execute(
            committed_url,
            "DROP TABLE samples",
            "CREATE TABLE samples (v real, id uuid)",
            "INSERT INTO samples VALUES (2.5)",
        )
        assert await read(database) == [2.5]
