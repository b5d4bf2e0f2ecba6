"""Rows are copied if COPY can store them, and inserted otherwise."""

from __future__ import annotations

import asyncio
import logging
import threading
from datetime import datetime
from typing import Any

import asyncpg
import pytest
from sqlalchemy import String, event, func, make_url, select, text
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.schema import MetaData
from sqlalchemy.types import UserDefinedType

from howdah import Base, ConnectionLost, Database, LockTimeout, UnknownAttribute, UUIDv7PrimaryKey, bulk
from howdah._writes.copying import MIN_COPY_ROWS
from howdah.testing import assert_statements
from howdah_tests.support.sample_models import User
from howdah_tests.support.sample_rows import user_rows


class Upper(UserDefinedType[str]):
    """Values are sent within an SQL expression."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "TEXT"

    def bind_expression(self, bindvalue):  # type: ignore[no-untyped-def]
        return func.upper(bindvalue)


class Separate(Base):
    __abstract__ = True
    metadata = MetaData()


class Parcel(UUIDv7PrimaryKey, Separate):
    __tablename__ = "parcels"

    label: Mapped[str] = mapped_column(Upper())
    sent_at: Mapped[datetime] = mapped_column(default=func.now())


class Numbered(UUIDv7PrimaryKey, Separate):
    __tablename__ = "numbered"

    name: Mapped[str] = mapped_column(String(20))
    shout: Mapped[str] = mapped_column(default=lambda context: context.get_current_parameters()["name"].upper())


async def test_many_rows_are_copied_and_few_are_inserted(database: Database) -> None:
    async with database.begin() as session:
        await session.connection()
        with assert_statements(session, 1) as sent:
            assert (await bulk.insert_many(session, User, user_rows(MIN_COPY_ROWS))).count == MIN_COPY_ROWS
        assert sent[0].startswith("COPY users (id, email, ")
        few = [{"email": f"{n}@few", "name": "F"} for n in range(MIN_COPY_ROWS - 1)]
        with assert_statements(session, 1):
            await bulk.insert_many(session, User, few)
        assert await session.scalar(select(func.count()).select_from(User)) == 2 * MIN_COPY_ROWS - 1


async def test_with_copy_disabled_rows_are_inserted(database_url: str) -> None:
    async with Database(database_url, copy=False) as database, database.session() as session:
        with assert_statements(session, 1):
            assert (await bulk.insert_many(session, User, user_rows(100))).count == 100


async def test_rows_with_different_attributes_are_copied(database: Database) -> None:
    rows = [{"email": f"{n}@x", "name": "N", **({"nickname": "odd"} if n % 2 else {})} for n in range(100)]
    async with database.begin() as session:
        await session.connection()
        with assert_statements(session, 2):
            keys = (await bulk.insert_many(session, User, rows)).keys
        found = dict((await session.execute(select(User.id, User.nickname))).all())
    assert [found[key] == "odd" for key in keys] == [bool(n % 2) for n in range(100)]


@pytest.mark.parametrize("position", [0, 999, 1000, 2500, 2999])
async def test_a_row_with_other_attributes_is_found_at_any_position(database: Database, position: int) -> None:
    """Rows are prepared a thousand at a time."""
    rows: list[Any] = [{"email": f"{n}@x", "name": "N"} for n in range(3000)]
    rows[position]["nickname"] = "odd"
    async with database.begin() as session:
        keys = (await bulk.insert_many(session, User, rows)).keys
        assert len(set(keys)) == 3000
        assert await session.scalar(select(User.id).where(User.nickname == "odd")) == keys[position]
        rows[position] = {"emial": "x"}
        with pytest.raises(UnknownAttribute) as caught:
            await bulk.insert_many(session, User, rows)
        assert caught.value.__notes__ == [f"in row {position} of the input, counted from 0"]
        rows[position] = None
        with pytest.raises(TypeError, match="a row must be a mapping") as not_a_row:
            await bulk.insert_many(session, User, rows)
        assert not_a_row.value.__notes__ == [f"in row {position} of the input, counted from 0"]
        assert await session.scalar(select(func.count()).select_from(User)) == 3000


async def test_a_default_is_called_once_for_each_row(database: Database) -> None:
    numbers = iter(range(100))

    class Ticket(UUIDv7PrimaryKey, Separate):
        __tablename__ = "tickets"

        number: Mapped[int] = mapped_column(default=lambda: next(numbers))

    async with database.begin() as session:
        await (await session.connection()).run_sync(Separate.metadata.create_all)
        assert (await bulk.insert_many(session, Ticket, [{} for _ in range(40)])).count == 40
        assert list(await session.scalars(select(Ticket.number).order_by(Ticket.id))) == list(range(40))
        assert next(numbers) == 40
        await session.rollback()


@pytest.mark.parametrize(
    ("model", "rows", "column", "value"),
    [
        (Parcel, [{"label": "a"}], "label", "A"),
        (Numbered, [{"name": "b"}], "shout", "B"),
    ],
)
async def test_rows_that_need_an_insert_are_inserted(
    database: Database, model: type[Base], rows: list[dict[str, str]], column: str, value: str
) -> None:
    """An SQL expression in a type or a default, and a default that depends on other values."""
    async with database.begin() as session:
        await (await session.connection()).run_sync(Separate.metadata.create_all)
        assert (await bulk.insert_many(session, model, rows * 100)).count == 100
        found = await session.scalars(select(getattr(model, column)).distinct())
        assert list(found) == [value]
        await session.rollback()


async def test_rows_are_inserted_if_postgresql_rejects_copy_and_the_reason_is_logged_once(
    committed_database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """PostgreSQL doesn't support COPY for a role that row-level security applies to."""
    async with committed_database.begin() as session:
        await session.execute(text("ALTER TABLE users ENABLE ROW LEVEL SECURITY"))
        await session.execute(text("CREATE POLICY everyone ON users USING (true)"))
        await session.execute(text("DROP ROLE IF EXISTS howdah_restricted"))
        await session.execute(text("CREATE ROLE howdah_restricted"))
        await session.execute(text("GRANT ALL ON users TO howdah_restricted"))
    try:
        with caplog.at_level(logging.WARNING, "howdah._writes.copying"):
            for letter in "ab":
                async with committed_database.begin() as session:
                    await session.execute(text("SET LOCAL ROLE howdah_restricted"))
                    rows = ({"email": f"{letter}{n}@x", "name": "N"} for n in range(100))
                    assert (await bulk.insert_many(session, User, rows)).count == 100
        async with committed_database.session() as session:
            assert await session.scalar(select(func.count()).select_from(User)) == 200
        assert [record.message.split(":")[0] for record in caplog.records] == [
            "COPY into users isn't possible, so rows are inserted for 60 s"
        ]
    finally:
        async with committed_database.begin() as session:
            await session.execute(text("DROP OWNED BY howdah_restricted"))
            await session.execute(text("DROP ROLE howdah_restricted"))


def kill(url: str, pid: int) -> None:
    """End a backend and wait until it is gone. The event loop of this thread doesn't run meanwhile."""

    async def end() -> None:
        connection = await asyncpg.connect(make_url(url).set(drivername="postgresql").render_as_string(False))
        await connection.execute("SELECT pg_terminate_backend($1)", pid)
        while await connection.fetchval("SELECT count(*) FROM pg_stat_activity WHERE pid = $1", pid):
            await asyncio.sleep(0.001)
        await connection.close()

    thread = threading.Thread(target=lambda: asyncio.run(end()))
    thread.start()
    thread.join(10)


@pytest.mark.parametrize("turns", range(10))
async def test_a_backend_that_is_killed_at_any_moment_of_a_copy_raises_connection_lost(
    committed_database: Database, committed_url: str, turns: int
) -> None:
    """If the driver notices it between two messages, it rejects the next message with one of its own errors."""
    async with committed_database.session() as session:
        pid = (await session.scalars(select(func.pg_backend_pid()))).one()
        loop = asyncio.get_running_loop()
        savepoints = 0

        def wait(remaining: int) -> None:
            if remaining:
                loop.call_soon(wait, remaining - 1)
            else:
                kill(committed_url, pid)

        @event.listens_for(committed_database.engine.sync_engine, "before_cursor_execute")
        def kill_after_savepoint(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            nonlocal savepoints
            savepoints += statement.startswith("SAVEPOINT")
            if savepoints == 1:  # the savepoint for COPY
                savepoints += 1
                loop.call_soon(wait, turns)

        with pytest.raises(ConnectionLost):
            await bulk.insert_many(session, User, user_rows(100))
    assert committed_database.pool_status().in_use == 0
    async with committed_database.begin() as session:
        assert (await bulk.insert_many(session, User, user_rows(100))).count == 100


async def test_an_error_that_no_row_caused_is_raised_for_the_statement(
    committed_database: Database, committed_url: str
) -> None:
    """Another transaction has inserted the same email, so COPY waits."""
    rows = user_rows(100)
    async with Database(committed_url, lock_timeout=0.05) as with_timeout, committed_database.begin() as other:
        await bulk.insert_many(other, User, rows[-1:])
        with pytest.raises(LockTimeout) as caught:
            async with with_timeout.begin() as session:
                await bulk.insert_many(session, User, rows)
        assert (caught.value.statement or "").startswith("COPY users (id, email, ")
        assert caught.value.row_index is None
        async with with_timeout.begin() as session:
            assert (await bulk.insert_many(session, User, rows[:-1])).count == 99


async def test_a_copy_that_is_cancelled_while_it_waits_returns_its_connection(
    committed_database: Database, committed_url: str
) -> None:
    rows = user_rows(100)
    async with Database(committed_url, pool_size=1, max_overflow=0) as database:
        async with committed_database.begin() as other:
            await bulk.insert_many(other, User, rows[-1:])

            async def copy() -> None:
                async with database.begin() as session:
                    await bulk.insert_many(session, User, rows)

            task = asyncio.create_task(copy())
            blocked = text(
                "SELECT count(*) FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY (pg_blocking_pids(pid))"
            )
            while not await other.scalar(blocked):
                assert not task.done()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert database.pool_status().in_use == 0
            await other.rollback()
        await copy()
        async with database.session() as session:
            assert await session.scalar(select(func.count()).select_from(User)) == 100
