"""A read with settings is one round trip, and its settings end with it, whatever fails."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from sqlalchemy import BindParameter, Integer, event, func, select, text

from howdah import ConnectionLost, Database, DatabaseError, InvalidStatement, InvalidValue, NotFound, StatementTimeout
from howdah._connections import pipelined
from howdah._connections.prepared import PreparedSelect, ReadRows
from howdah_tests.support.tenants import SETTING, TENANTS, Note, NoteView, create_notes, parse_tenant

_KEY: Any = BindParameter("key", type_=Integer())
NOTES = PreparedSelect(select(Note.tenant_id, Note.id).where(Note.id == _KEY))  # type: ignore[arg-type]
_SECONDS: Any = BindParameter("seconds", type_=Integer())
SLEEP = PreparedSelect(select(Note.id).where(func.pg_sleep(_SECONDS).is_not(None)))
DIVIDE = PreparedSelect(select(1 / _KEY))
SEEN = PreparedSelect(select(func.current_setting(SETTING, True), func.pg_backend_pid()))


@pytest.fixture
async def tenants_url(committed_url: str) -> AsyncIterator[str]:
    async with create_notes(committed_url) as url:
        yield url


@pytest.fixture
async def one(tenants_url: str) -> AsyncIterator[Database]:
    """A database with one connection that has prepared the statements of this module."""
    async with Database(tenants_url, pool_size=2, max_overflow=0) as database:
        own = database.with_settings({SETTING: 1})
        for statement, parameters in ((NOTES, {"key": 0}), (SLEEP, {"seconds": 0}), (DIVIDE, {"key": 1}), (SEEN, {})):
            await own.read(ReadRows(statement, parameters))
        yield database


async def get_driver(database: Database) -> Any:
    async def find(connection: Any) -> Any:
        return (await connection.get_raw_connection()).driver_connection

    return await database.read(find)


async def find_setting(database: Database) -> str | None:
    """The setting that a read without settings finds on the connection."""
    ((setting, _),) = await database.read(ReadRows(SEEN, {}))
    assert not (await get_driver(database)).is_in_transaction()
    return setting or None


async def read(database: Database, tenant: int, key: int) -> list[int]:
    return [row[0] for row in await database.with_settings({SETTING: tenant}).read(ReadRows(NOTES, {"key": key}))]


async def test_a_read_is_one_round_trip(one: Database) -> None:
    sent: list[str] = []
    (await get_driver(one)).add_query_logger(lambda query: sent.append(query.query))  # not called for a prepared SELECT
    assert [await read(one, tenant, key) for tenant in TENANTS for key in (0, 1)] == [[1], [], [], [2]]
    assert sent == []
    assert await find_setting(one) is None


async def test_several_settings_and_a_role_apply_in_their_order(one: Database) -> None:
    """The role comes last: it may not be allowed to change the other settings."""
    ((role,),) = await one.read(lambda connection: connection.execute(text("SELECT current_user")))
    seen = PreparedSelect(select(func.current_setting("app.a"), func.current_setting("work_mem"), func.current_user()))
    own = one.with_settings({"app.a": "ä'\\\n", "work_mem": "77MB"}, role=role, search_path=["public", "a, b"])
    for _ in range(2):
        assert [*map(tuple, await own.read(ReadRows(seen, {})))] == [("ä'\\\n", "77MB", role)]
    path = PreparedSelect(select(func.current_setting("search_path")))
    for _ in range(2):
        ((found,),) = await own.read(ReadRows(path, {}))
        assert found.replace('"public"', "public") == 'public, "a, b"'


async def fail_in_the_statement(database: Database) -> None:
    with pytest.raises(DatabaseError):
        await database.read(ReadRows(DIVIDE, {"key": 0}))


async def fail_before_the_statement_is_sent(database: Database) -> None:
    with pytest.raises(InvalidValue):
        await database.read(ReadRows(NOTES, {"key": 2**40}))


async def fail_by_a_timeout(database: Database) -> None:
    with pytest.raises(StatementTimeout):
        await database.with_settings({"statement_timeout": "20ms"}).read(ReadRows(SLEEP, {"seconds": 60}))


async def fail_by_a_cancellation(database: Database) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await database.read(ReadRows(SLEEP, {"seconds": 60}))


async def fail_by_a_rejected_setting(database: Database) -> None:
    with pytest.raises(InvalidStatement, match="can't begin with its settings"):
        await database.with_settings(role="nobody_has_this_name").read(ReadRows(NOTES, {"key": 0}))


FAULTS = [
    fail_in_the_statement,
    fail_before_the_statement_is_sent,
    fail_by_a_timeout,
    fail_by_a_cancellation,
    fail_by_a_rejected_setting,
]


@pytest.mark.parametrize("fault", FAULTS)
async def test_after_a_fault_the_connection_has_no_setting(one: Database, fault: Any) -> None:
    await fault(one.with_settings({SETTING: 1}))
    assert await find_setting(one) is None
    assert await read(one, 2, 1) == await read(one, 2, 1) == [2]
    assert one.pool_status().in_use == 0


@pytest.mark.parametrize("is_control", [False, True])
async def test_the_next_statement_on_the_connection_has_no_setting(
    one: Database, monkeypatch: pytest.MonkeyPatch, is_control: bool
) -> None:
    """The control: without the rollback it would be executed in the transaction of the failed read."""

    async def nothing(*_arguments: object) -> None: ...

    if is_control:
        monkeypatch.setattr(pipelined, "end_failed_transaction", nothing)
    settings = one.with_settings({SETTING: 1})._settings
    assert settings is not None

    async def fail_and_look(connection: Any) -> str | None:
        await SEEN.rows(connection, {})  # now the driver has prepared it
        with pytest.raises(InvalidValue):
            await NOTES.rows_with_settings(connection, {"key": 2**40}, settings)
        ((setting, _),) = await SEEN.rows(connection, {})
        return setting or None

    assert await one.read(fail_and_look) == ("1" if is_control else None)


async def test_a_read_that_is_cancelled_at_any_time_leaves_nothing(one: Database) -> None:
    for steps in range(12):
        task = asyncio.create_task(read(one, 1, 0))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert await find_setting(one) is None, steps


async def test_the_statement_is_not_executed_if_a_setting_is_rejected(
    one: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL skips the SELECT. Otherwise it would be executed with the rights of the login."""

    async def cannot_repeat(*_arguments: object) -> None:
        raise LookupError

    monkeypatch.setattr(pipelined, "_fetch_in_transaction", cannot_repeat)
    ((before,),) = await one.read(lambda connection: connection.execute(text("SELECT count(*) FROM notes")))
    assert before == 0  # without a tenant
    with pytest.raises(LookupError):
        await one.with_settings({SETTING: "no number"}).read(ReadRows(NOTES, {"key": 0}))


async def test_a_lost_connection_is_replaced_and_the_read_is_repeated(one: Database) -> None:
    driver = await get_driver(one)
    driver.terminate()
    assert await read(one, 1, 0) == [1]
    assert await read(one, 2, 0) == []
    assert await get_driver(one) is not driver


async def test_a_connection_that_lost_its_statements_is_replaced(one: Database) -> None:
    for statement in ("DEALLOCATE ALL", "DISCARD ALL"):
        driver = await get_driver(one)
        await driver.execute(statement)
        assert await read(one, 1, 0) == [1]
        assert await read(one, 2, 0) == []
        assert await get_driver(one) is not driver


async def test_an_open_transaction_on_the_connection_does_not_keep_the_setting(one: Database) -> None:
    """A read may have sent BEGIN in its own SQL."""
    await (await get_driver(one)).execute("BEGIN")
    assert await read(one, 1, 0) == [1]
    assert await find_setting(one) is None


async def test_after_a_change_of_the_table_the_read_is_repeated_with_its_settings(
    one: Database, committed_url: str
) -> None:
    await change_type(committed_url)
    assert await read(one, 1, 0) == await read(one, 1, 0) == [1]
    assert await read(one, 2, 0) == []


async def test_control_the_driver_itself_repeats_the_statement_without_the_settings(
    one: Database, committed_url: str
) -> None:
    """So a `PreparedStatement` is executed, which never does that."""
    driver = await get_driver(one)
    (text_of_notes,) = [each for each in driver.pipelined_statements.selects if "$1" in each and "tenant_id" in each]

    class ByFetch:
        async def fetch(self, *values: Any) -> Any:
            return await driver.fetch(text_of_notes, *values)

    await driver.fetch(text_of_notes, 0)  # now it is in the driver's cache
    driver.pipelined_statements.selects[text_of_notes] = ByFetch()
    assert await read(one, 1, 0) == [1]
    await change_type(committed_url)
    assert await read(one, 1, 0) == []


async def change_type(url: str) -> None:
    """Change the type of a column that the statements return."""
    async with Database(url) as owner, owner.begin() as session:
        await session.execute(text("ALTER TABLE notes ALTER id TYPE bigint"))


async def test_without_the_right_to_call_set_config_each_read_is_a_transaction(
    one: Database, committed_url: str
) -> None:
    async with Database(committed_url) as owner, owner.begin() as session:
        await session.execute(text("REVOKE EXECUTE ON FUNCTION pg_catalog.set_config FROM PUBLIC"))
    assert await read(one, 1, 0) == await read(one, 1, 0) == [1]
    assert (await get_driver(one)).pipelined_statements.is_disabled


async def test_concurrent_tenants_on_few_connections_get_their_own_rows(tenants_url: str) -> None:
    async with Database(tenants_url, pool_size=4, max_overflow=0) as database, NoteView.open(database) as notes:

        async def get(number: int) -> None:
            tenant, key = TENANTS[number % 2], number % 6
            reader = notes.scoped(database.with_settings({SETTING: tenant}))
            try:
                assert parse_tenant(await reader.get(key)) == tenant == TENANTS[key % 2]
            except NotFound:
                assert TENANTS[key % 2] != tenant

        await asyncio.gather(*(get(number * 7) for number in range(300)))
        assert database.pool_status().in_use == 0


async def test_altered_tables_fail_no_read_on_any_connection(tenants_url: str, committed_url: str) -> None:
    """Each connection has a statement that was prepared before. So a read must not be repeated on another one."""
    async with Database(tenants_url, pool_size=4, max_overflow=0) as database:

        async def read_on_each_connection() -> list[list[int]]:
            parameters = ((tenant, 1) for tenant in TENANTS * 2)
            return await asyncio.gather(*(read(database, *each) for each in parameters))

        for _ in range(2):
            await read_on_each_connection()
        await change_type(committed_url)
        assert await read_on_each_connection() == [[], [2], [], [2]]


async def test_a_server_that_closes_each_connection_raises_connection_lost(one: Database) -> None:
    kill = PreparedSelect(select(func.pg_terminate_backend(func.pg_backend_pid())).where(_KEY == 1))
    await one.with_settings({SETTING: 1}).read(ReadRows(kill, {"key": 0}))
    opened: list[object] = []
    event.listen(one.engine.sync_engine, "connect", lambda *_: opened.append(None))
    with pytest.raises(ConnectionLost):
        await one.with_settings({SETTING: 1}).read(ReadRows(kill, {"key": 1}))
    assert len(opened) == 1  # for the second attempt, and none to describe the error


async def test_a_connection_whose_end_was_announced_is_replaced(one: Database) -> None:
    """The driver has read the announcement, and not yet the end."""
    fields = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection\0\0"
    for is_scoped in (True, False):
        (await get_driver(one))._protocol.data_received(b"E" + struct.pack("!i", len(fields) + 4) + fields)
        database = one.with_settings({SETTING: 1}) if is_scoped else one
        assert len(await database.read(ReadRows(NOTES, {"key": 0}))) == is_scoped


async def test_a_connection_keeps_a_limited_number_of_statements(
    one: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipelined, "_MAX_STATEMENTS", 3)
    for number in range(6):
        assert (
            len(await one.with_settings({SETTING: 1}).read(ReadRows(PreparedSelect(select(text(f"{number}"))), {})))
            == 1
        )
    driver: asyncpg.Connection = await get_driver(one)
    assert len(driver.pipelined_statements.selects) == 3
