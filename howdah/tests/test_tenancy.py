"""A tenant's settings apply to every way to read, and stay on no connection."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import pytest
from sqlalchemy import text

from howdah import CoalescerClosed, Database, NotFound
from howdah.testing import assert_statements
from howdah_tests.support.tenants import (
    READS,
    ROWS,
    SETTING,
    TENANTS,
    NoteOut,
    NoteView,
    Read,
    by_view_key,
    create_notes,
    in_a_read,
    in_a_session,
    in_autocommit,
    scoped,
)


@pytest.fixture(scope="module")
def tenants_url(database_url: str) -> Iterator[str]:
    """The tests of this module don't change the notes."""
    with asyncio.Runner() as runner:
        notes = create_notes(database_url)
        yield runner.run(notes.__aenter__())
        runner.run(notes.__aexit__(None, None, None))


@pytest.fixture
async def tenants(tenants_url: str) -> AsyncIterator[Database]:
    """A database with few connections, whose role the policies apply to."""
    async with Database(tenants_url, pool_size=2, max_overflow=1) as database:
        yield database


async def test_each_tenant_sees_only_its_own_rows_by_every_way_to_read(tenants: Database) -> None:
    async with NoteView.open(tenants) as notes:
        for read in READS:
            for tenant in (*TENANTS, *TENANTS):
                assert await read(*scoped(tenants, notes, tenant)) == {tenant}, read
            assert await read(tenants, notes) == set(), read


async def test_concurrent_tenants_on_few_connections_see_only_their_own_rows(tenants: Database) -> None:
    async def check(read: Read, tenant: int | None) -> None:
        database, reader = (tenants, notes) if tenant is None else scoped(tenants, notes, tenant)
        assert await read(database, reader) == (set() if tenant is None else {tenant}), read

    async with NoteView.open(tenants) as notes:
        await asyncio.gather(*(check(read, tenant) for read in READS for tenant in (*TENANTS, None)))
    assert tenants.pool_status().in_use == 0


@pytest.mark.parametrize("read", [in_a_session, in_a_read, in_autocommit, by_view_key])
async def test_control_a_session_level_setting_reaches_the_next_user_of_the_connection(
    tenants_url: str, read: Read
) -> None:
    async with Database(tenants_url, pool_size=1, max_overflow=0) as database, NoteView.open(database) as notes:
        async with database.session() as session:
            await session.execute(text(f"SELECT set_config('{SETTING}', '1', false)"))
            await session.commit()
        assert await read(database, notes) == {1}


HOSTILE = [
    "'; SELECT pg_sleep(60); --",
    "\\'; DROP TABLE notes; --",
    "a\\",
    "it's",
    '"',
    "$1",
    "%s",
    "é\n;",
    " ",
    "1, 2",
]


async def test_a_value_may_be_any_text(tenants: Database) -> None:
    current = text(f"SELECT current_setting('{SETTING}')")
    for value in HOSTILE:
        own = tenants.with_settings({SETTING: value})
        async with own.session() as session:
            assert await session.scalar(current) == value
        assert await own.read(lambda connection: connection.scalar(current)) == value
        async with own.autocommit() as connection:
            assert await connection.scalar(current) == value
        bound_to_all = tenants.with_settings({"app.a": value, "app.user.B_2$": value})
        async with bound_to_all.session() as session:
            both = text("SELECT current_setting('app.a'), current_setting('app.user.b_2$')")
            assert (await session.execute(both)).one() == (value, value)
    async with tenants.with_settings(search_path=HOSTILE).session() as session:
        found = await session.scalar(text("SELECT current_setting('search_path')"))
        quoted = (f'"{each.replace(chr(34), chr(34) * 2)}"' for each in HOSTILE)
        assert found == ", ".join(quoted)


@pytest.mark.parametrize("standard_conforming_strings", ["on", "off"])
async def test_a_backslash_is_safe_whatever_the_servers_setting_is(
    tenants_url: str, standard_conforming_strings: str
) -> None:
    settings = {"server_settings": {"standard_conforming_strings": standard_conforming_strings}}
    value = "\\'; SELECT 1; --"
    database = Database(tenants_url, connect_args=settings)
    async with database, database.with_settings({SETTING: value}).session() as session:
        assert await session.scalar(text(f"SELECT current_setting('{SETTING}')")) == value


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({SETTING: None}, TypeError, "reject a caller"),
        ({SETTING: True}, TypeError, "reject a caller"),
        ({SETTING: 1.5}, TypeError, "must be a str, int or UUID"),
        ({SETTING: ""}, ValueError, "is empty"),
        ({SETTING: "a\x00b"}, ValueError, "NUL"),
        ({SETTING: "\ud800"}, ValueError, "surrogate"),
        ({"app.tenant id": 1}, ValueError, "name of a setting"),
        ({"app.x = 1; --": 1}, ValueError, "name of a setting"),
        ({"app.": 1}, ValueError, "name of a setting"),
        ({"Role": "x"}, ValueError, "role="),
        ({"search_path": "x"}, ValueError, "search_path="),
        ({"TimeZone": "Europe/Berlin"}, ValueError, "UTC"),
        ({"transaction_read_only": "on"}, ValueError, "read_only"),
        ({}, ValueError, "needs a setting"),
    ],
)
def test_a_wrong_setting_is_rejected_before_anything_is_sent(
    settings: Mapping[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Database("postgresql://x").with_settings(settings)


def test_a_wrong_role_or_search_path_is_rejected() -> None:
    database = Database("postgresql://x")
    for role in ("", "x" * 64, "None", "a\x00"):
        with pytest.raises(ValueError, match="role"):
            database.with_settings(role=role)
    with pytest.raises(TypeError, match="list of schemas"):
        database.with_settings(search_path="a, b")
    with pytest.raises(ValueError, match="search_path"):
        database.with_settings(search_path=["a", ""])


def test_settings_are_added_to_those_of_an_earlier_scope() -> None:
    first = Database("postgresql://x").with_settings({"app.a": 1, "app.b": 2}, role="r", search_path=["s"])
    assert first._settings is not None
    second = first.with_settings({"app.b": 3})
    assert second._settings is not None
    assert second._settings.values == (("app.a", "1"), ("app.b", "3"))
    assert (second._settings.role, second._settings.search_path) == ("r", ("s",))


async def test_a_scope_leaves_nothing_behind_and_does_not_close_the_pool(tenants: Database) -> None:
    async with NoteView.open(tenants) as notes:
        await in_a_session(*scoped(tenants, notes, 1))
        engines = len(tenants._engines)
        own = tenants.with_settings({SETTING: 2})
        with pytest.raises(RuntimeError, match="can't be opened or closed"):
            await own.close()
        with pytest.raises(RuntimeError, match="can't be opened or closed"):
            async with own:
                pass
        reference = weakref.ref(own)
        del own
        for tenant in range(100):
            await in_a_session(*scoped(tenants, notes, tenant))
        gc.collect()
        assert reference() is None
        assert len(tenants._engines) == engines
        assert notes.scoped(tenants) is notes
        async with notes.scoped(tenants.with_settings({SETTING: 1})):
            pass  # the end of this block doesn't close the reader that it was made from
        await notes.get_many([1])
    await tenants.close()
    with pytest.raises(RuntimeError, match="closed"):
        tenants.with_settings({SETTING: 1}).session()


async def test_the_reader_of_another_database_is_kept_and_closed_with_the_first_one(
    tenants: Database, tenants_url: str
) -> None:
    async with Database(tenants_url) as other:
        async with NoteView.open(tenants) as notes:
            reader = notes.scoped(other)
            assert reader is notes.scoped(other)
            for _ in range(2):
                with pytest.raises(NotFound):  # without a tenant there are no rows
                    await reader.get(1)
                await reader.aclose()  # does nothing
            assert reader.status() == notes.status()
            assert notes.scoped(other.with_settings({SETTING: 1})) is not reader
        for each in (notes, reader):
            with pytest.raises(CoalescerClosed):
                await each.get(1)


async def test_begin_and_the_settings_are_one_message(tenants_url: str) -> None:
    """The query logger of the driver doesn't see prepared statements."""
    async with Database(tenants_url, pool_size=1, max_overflow=0, pool_pre_ping=False) as database:
        own = database.with_settings({SETTING: 1})
        await in_a_read(own, NoteView.open(own))
        sent: list[str] = []
        async with database.session() as session:
            raw: Any = await (await session.connection()).get_raw_connection()
            raw.driver_connection.add_query_logger(lambda query: sent.append(query.query))
        await in_a_read(own, NoteView.open(own))
        message = 'BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL "app"."tenant_id" = \'1\''
        assert sent == [message, "COMMIT"]
        sent.clear()
        await in_a_session(own, NoteView.open(own))
        assert sent == [message, "ROLLBACK;"]


async def test_view_reads_with_equal_settings_share_a_statement_and_others_do_not(tenants: Database) -> None:
    async with NoteView.open(tenants) as notes:

        async def get(tenant: int, note: int) -> int | None:
            _, reader = scoped(tenants, notes, tenant)
            try:
                return NoteOut.model_validate_json(await reader.get(note)).tenant_id
            except NotFound:
                return None

        calls = [(tenant, note) for note in range(ROWS) for tenant in TENANTS]
        with assert_statements(tenants, len(TENANTS)) as sent:
            found = await asyncio.gather(*(get(*call) for call in calls))
        assert found == [tenant if TENANTS[note % 2] == tenant else None for tenant, note in calls]
        assert len(set(sent)) == 1
        assert len(notes._scopes) == 0
        assert (notes.status().batches, notes.status().items) == (len(TENANTS), len(calls))
        waiting = asyncio.create_task(get(1, 0))
        await asyncio.sleep(0)
        assert (len(notes._scopes), notes.status().waiting) == (1, 1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert len(notes._scopes) == 0
        _, reader = scoped(tenants, notes, 1)
    with pytest.raises(CoalescerClosed):
        await reader.get(0)


async def test_control_batches_without_the_scope_show_one_tenant_the_rows_of_another(
    tenants: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Database, "scope_key", lambda self: None)
    async with NoteView.open(tenants) as notes:
        readers = [scoped(tenants, notes, tenant)[1] for tenant in TENANTS]
        own, foreign = await asyncio.gather(readers[0].get(0), readers[1].get(0))
        assert own == foreign
