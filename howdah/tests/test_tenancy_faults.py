"""No setting stays on a connection, whatever fails, and no statement runs without its settings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from sqlalchemy import event, insert, select, text
from sqlalchemy.exc import InterfaceError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm.exc import StaleDataError

from howdah import (
    AsyncRepository,
    Database,
    DatabaseError,
    InvalidStatement,
    PolicyViolation,
    ReadOnly,
    bulk,
)
from howdah._connections import settings
from howdah_tests.support.pgbouncer import PROGRAM, run_pgbouncer
from howdah_tests.support.tenants import (
    READS,
    SETTING,
    TENANTS,
    Note,
    NoteView,
    by_view_page,
    create_notes,
    in_a_read,
    in_a_session,
    in_autocommit,
    scoped,
)

CURRENT = text(f"SELECT current_setting('{SETTING}', true), current_user, pg_backend_pid()")


@pytest.fixture
async def tenants_url(committed_url: str) -> AsyncIterator[str]:
    async with create_notes(committed_url) as url:
        yield url


@pytest.fixture
async def one(tenants_url: str) -> AsyncIterator[Database]:
    """A database with one connection, so that each use gets what the one before has left."""
    async with Database(tenants_url, pool_size=1, max_overflow=0) as database:
        yield database


async def find_left_over(database: Database) -> list[Any]:
    """What the next uses of the connection find: in a session, a kept connection, and on the driver's connection."""
    found = []
    async with database.session() as session:
        found.append((await session.execute(CURRENT)).one()[0] or None)
        raw: Any = await (await session.connection()).get_raw_connection()
        assert raw.driver_connection.settings_sql == ""
    found.append((await database.read(lambda connection: connection.execute(CURRENT))).one()[0] or None)
    async with database.autocommit() as connection:
        found.append((await connection.execute(CURRENT)).one()[0] or None)
        raw = await connection.get_raw_connection()
        assert not raw.driver_connection.is_in_transaction()
    assert database.pool_status().in_use == 0
    return [each for each in found if each is not None]


async def fail_in_a_statement(database: Database) -> None:
    async with database.begin() as session:
        await session.execute(text("SELECT 1 / 0"))


async def fail_in_the_block(database: Database) -> None:
    async with database.begin() as session:
        await session.execute(select(1))
        raise StaleDataError


async def fail_before_the_first_statement(database: Database) -> None:
    async with database.session() as session:
        await session.connection()  # SQLAlchemy has begun the transaction, but nothing was sent
        raise StaleDataError


async def fail_in_commit(database: Database) -> None:
    async with database.begin() as session:
        await session.execute(text("CREATE TEMP TABLE checked (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)"))
        await session.execute(text("INSERT INTO checked VALUES (1), (1)"))


async def fail_in_a_read(database: Database) -> None:
    await database.read(lambda connection: connection.execute(text("SELECT 1 / 0")))


async def fail_in_a_read_that_catches_the_error(database: Database) -> None:
    async def work(connection: Any) -> None:
        with pytest.raises(DatabaseError):
            await connection.execute(text("SELECT 1 / 0"))

    await database.read(work)


async def fail_in_python_in_a_read(database: Database) -> None:
    async def work(connection: Any) -> None:
        await connection.execute(select(1))
        raise StaleDataError

    await database.read(work)


async def fail_in_autocommit(database: Database) -> None:
    async with database.autocommit() as connection:
        await connection.execute(text("SELECT 1 / 0"))


async def fail_by_a_timeout(database: Database) -> None:
    async with database.with_settings({"statement_timeout": "20ms"}).session() as session:
        await session.execute(text("SELECT pg_sleep(60)"))


async def fail_by_a_lost_connection(database: Database) -> None:
    async with database.session() as session:
        await session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))


FAULTS = [
    fail_in_a_statement,
    fail_in_the_block,
    fail_before_the_first_statement,
    fail_in_commit,
    fail_in_a_read,
    fail_in_a_read_that_catches_the_error,
    fail_in_python_in_a_read,
    fail_in_autocommit,
    fail_by_a_timeout,
    fail_by_a_lost_connection,
]


async def test_after_a_fault_the_connection_has_no_setting(one: Database) -> None:
    for fault in FAULTS:
        with pytest.raises((DatabaseError, StaleDataError)):
            await fault(one.with_settings({SETTING: 1}))
        assert await find_left_over(one) == [], fault.__name__


async def cancelled_session(database: Database) -> None:
    async with database.begin() as session:
        await session.execute(text("SELECT pg_sleep(60)"))


async def cancelled_block(database: Database) -> None:
    async with database.begin() as session:
        await session.execute(select(1))
        await asyncio.sleep(60)


async def cancelled_read(database: Database) -> None:
    await database.read(lambda connection: connection.execute(text("SELECT pg_sleep(60)")))


async def cancelled_block_of_a_read(database: Database) -> None:
    async def work(connection: Any) -> None:
        await connection.execute(select(1))
        await asyncio.sleep(60)

    await database.read(work)


async def cancelled_autocommit(database: Database) -> None:
    async with database.autocommit() as connection:
        await connection.execute(text("SELECT pg_sleep(60)"))


CANCELLED = [cancelled_session, cancelled_block, cancelled_read, cancelled_block_of_a_read, cancelled_autocommit]


async def test_after_a_cancellation_the_connection_has_no_setting(one: Database) -> None:
    """Cancelled before, during and after BEGIN, but not in the pool's ping: SQLAlchemy 2.0 swallows that."""
    for work in CANCELLED:
        for steps in (4, 5, 6, 8, 10, 30):
            task = asyncio.create_task(work(one.with_settings({SETTING: 1})))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await find_left_over(one) == [], (work.__name__, steps)


async def test_a_rejected_setting_is_raised_by_each_statement_and_leaves_the_connection_usable(one: Database) -> None:
    """Otherwise a second statement would run without the settings."""
    for wrong in (one.with_settings({SETTING: 1, "work_mem": "much"}), one.with_settings(role="nobody_has_this_name")):
        async with wrong.session() as session:
            for _ in range(2):
                with pytest.raises(DatabaseError):
                    await session.scalars(select(Note.tenant_id))
        with pytest.raises(DatabaseError):
            await in_a_read(wrong, NoteView.open(wrong))
        with pytest.raises(DatabaseError):
            await in_autocommit(wrong, NoteView.open(wrong))
        assert await find_left_over(one) == []


async def test_a_second_transaction_on_the_connection_of_a_session_has_the_settings(one: Database) -> None:
    async with one.with_settings({SETTING: 1}).session() as session:
        connection = await session.connection()
        await connection.commit()
        assert (await connection.execute(CURRENT)).one()[0] == "1"


@pytest.mark.parametrize("is_committed", [True, False])
async def test_after_a_two_phase_transaction_a_read_of_another_tenant_has_its_own_settings(
    one: Database, is_committed: bool
) -> None:
    async with one.with_settings({SETTING: 1}).engine.connect() as connection:
        transaction = await connection.run_sync(lambda sync: sync.begin_twophase())
        await connection.execute(CURRENT)
        await connection.run_sync(lambda _: transaction.commit() if is_committed else transaction.rollback())
    assert await in_a_read(one.with_settings({SETTING: 2}), NoteView.open(one)) == {2}
    assert await find_left_over(one) == []


async def test_a_session_in_autocommit_is_refused(one: Database) -> None:
    async with one.with_settings({SETTING: 1}).session() as session:
        with pytest.raises(RuntimeError, match="AUTOCOMMIT"):
            await session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})


async def test_connections_that_the_database_does_not_open_are_refused(tenants_url: str) -> None:
    async def connect() -> Any:
        return await asyncpg.connect(tenants_url.replace("+asyncpg", ""))

    async with Database(tenants_url, async_creator=connect) as database:
        await database.ping()
        async with database.with_settings({SETTING: 1}).session() as session:
            with pytest.raises(RuntimeError, match="async_creator"):
                await session.execute(select(1))


async def test_a_connection_class_of_the_application_is_kept(tenants_url: str) -> None:
    class Own(asyncpg.Connection):  # type: ignore[misc]
        pass

    database = Database(tenants_url, connect_args={"connection_class": Own})
    async with database, database.with_settings({SETTING: 1}).session() as session:
        raw: Any = await (await session.connection()).get_raw_connection()
        assert isinstance(raw.driver_connection, Own)
        assert (await session.execute(CURRENT)).one()[0] == "1"


async def test_the_begin_listener_of_an_application_is_called_too(one: Database) -> None:
    event.listen(
        one.engine.sync_engine,
        "begin",
        lambda connection: connection.exec_driver_sql("SELECT set_config('app.other', 'x', true)"),
    )
    both = text(f"SELECT current_setting('{SETTING}', true), current_setting('app.other', true)")
    own = one.with_settings({SETTING: 1})
    assert (await own.read(lambda connection: connection.execute(both))).one() == ("1", "x")
    async with own.session() as session:
        assert (await session.execute(both)).one() == ("1", "x")


async def test_a_read_only_or_serializable_session_with_settings_can_lock_a_table_first(one: Database) -> None:
    """SET takes no snapshot, so LOCK TABLE still comes before it."""
    own = one.with_settings({SETTING: 1})
    async with own.session(isolation_level="REPEATABLE READ") as session:
        await session.execute(text("LOCK TABLE notes IN ACCESS SHARE MODE"))
        await session.execute(text("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"))
        assert await session.scalar(text("SHOW transaction_isolation")) == "serializable"
    async with own.session(read_only=True) as session:
        with pytest.raises(ReadOnly):
            await session.execute(insert(Note).values(id=900, tenant_id=1))


async def test_writes_of_every_kind_are_limited_to_the_tenant(one: Database) -> None:
    own = one.with_settings({SETTING: 1})
    async with own.begin() as session:
        notes = AsyncRepository(session, Note)
        await bulk.insert_many(session, Note, [{"id": n, "tenant_id": 1} for n in range(100, 150)])
        assert (await notes.update_many([{"id": n, "tenant_id": 1} for n in range(6)])).missing == [1, 3, 5]
        assert (await notes.delete_many([100, 1])).missing == [1]
    for rows in ([{"id": 200, "tenant_id": 2}], [{"id": n, "tenant_id": 2} for n in range(200, 240)]):
        async with own.session() as session:
            with pytest.raises(InvalidStatement):
                await bulk.insert_many(session, Note, rows)
    async with one.with_settings({SETTING: 2}).session() as session:
        assert set(await session.scalars(select(Note.id))) == {1, 3, 5}


@pytest.mark.skipif(PROGRAM is None, reason="needs pgbouncer (apt-get install pgbouncer)")
async def test_behind_a_transaction_pooler_each_tenant_sees_only_its_own_rows(tenants_url: str) -> None:
    with run_pgbouncer(tenants_url) as url:
        async with Database(url, pooler="transaction", pool_size=10) as database, NoteView.open(database) as notes:

            async def check(read: Any, tenant: int | None) -> None:
                database_and_notes = (database, notes) if tenant is None else scoped(database, notes, tenant)
                assert await read(*database_and_notes) == (set() if tenant is None else {tenant}), read

            await asyncio.gather(*(check(read, tenant) for read in READS for tenant in (*TENANTS, None)))
            for fault in (fail_in_a_statement, fail_in_a_read, fail_in_autocommit, fail_in_the_block):
                with pytest.raises((DatabaseError, StaleDataError)):
                    await fault(database.with_settings({SETTING: 1}))
            await asyncio.gather(*(check(read, None) for read in (in_a_session, in_a_read, by_view_page) * 4))


async def lock_timeout_of(session: AsyncSession) -> Any:
    return await session.scalar(text("SHOW lock_timeout"))


async def test_other_settings_apply_to_one_scope_only(one: Database) -> None:
    async with one.with_settings({"lock_timeout": "123ms"}).session() as session:
        assert await lock_timeout_of(session) == "123ms"
    async with one.session() as session:
        assert await lock_timeout_of(session) == "5s"


async def test_control_a_connection_that_keeps_the_settings_shows_the_rows_of_the_last_tenant(
    one: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the listeners for the end and the begin of a transaction prevent."""
    monkeypatch.setattr(settings, "_forget", lambda driver: None)
    notes = NoteView.open(one)
    assert await in_a_session(one.with_settings({SETTING: 1}), notes) == {1}
    assert await in_a_session(one, notes) == {1}


async def test_control_a_failed_read_without_a_rollback_leaves_its_transaction_on_the_connection(
    one: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(*_arguments: object) -> None: ...

    monkeypatch.setattr(settings, "end_failed_transaction", nothing)
    with pytest.raises(StaleDataError):
        await fail_in_python_in_a_read(one.with_settings({SETTING: 1}))
    with pytest.raises(InterfaceError, match="manually started transaction"):
        await find_left_over(one)


async def test_the_row_that_a_policy_rejects_is_named(one: Database) -> None:
    rows = [{"id": 100 + n, "tenant_id": 2 if n == 3 else 1} for n in range(5)]
    async with one.with_settings({SETTING: 1}).session() as session:
        with pytest.raises(PolicyViolation) as caught:
            await bulk.insert_many(session, Note, rows)
    assert caught.value.row_index == 3
