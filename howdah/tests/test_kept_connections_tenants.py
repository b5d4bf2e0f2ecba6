"""A setting that a listener makes on a connection (a tenant for row-level security) doesn't affect other callers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import Connection, event, make_url, select, text
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.schema import MetaData

from howdah import Base, Database, JsonView, JsonViewReader, bulk
from howdah._connections.kept import KeptConnections
from howdah.testing import assert_statements

tenant: ContextVar[str] = ContextVar("tenant")
ROWS = 6


class Separate(Base):
    __abstract__ = True
    metadata = MetaData()


class SignedNote(Separate):
    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    tenant: Mapped[str]


class NoteOut(BaseModel):
    id: int
    tenant: str


NoteView = JsonView(SignedNote, NoteOut)


@pytest.fixture
async def restricted_url(committed_url: str) -> AsyncIterator[str]:
    """The URL of a role that sees only the rows of `app.tenant`. Each of two tenants has half of the notes."""
    role = make_url(committed_url).database
    async with Database(committed_url) as database:
        async with database.begin() as session:
            await (await session.connection()).run_sync(Separate.metadata.create_all)
            for statement in (
                "ALTER TABLE notes ENABLE ROW LEVEL SECURITY",
                "CREATE POLICY own ON notes USING (tenant = current_setting('app.tenant'))",
                f'CREATE ROLE "{role}" LOGIN',
                f'GRANT ALL ON notes TO "{role}"',
            ):
                await session.execute(text(statement))
            await bulk.insert_many(session, SignedNote, [{"id": n, "tenant": "ab"[n % 2]} for n in range(ROWS)])
        yield make_url(committed_url).set(username=role).render_as_string(hide_password=False)
        async with database.begin() as session:
            await session.execute(text(f'DROP OWNED BY "{role}"'))
            await session.execute(text(f'DROP ROLE "{role}"'))


def set_at_checkout(database: Database) -> None:
    """Like a typical service: the setting applies until the next checkout sets another one."""

    @event.listens_for(database.engine.sync_engine, "checkout")
    def checkout(connection: Any, _record: Any, _proxy: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("SELECT set_config('app.tenant', $1, false)", (tenant.get(),))
        cursor.close()
        connection.commit()


def set_at_begin(database: Database) -> None:
    @event.listens_for(database.engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("SELECT set_config('app.tenant', $1, true)", (tenant.get(),))


def set_at_engine_connect(database: Database) -> None:
    @event.listens_for(database.engine.sync_engine, "engine_connect")
    def engine_connect(connection: Connection) -> None:
        connection.exec_driver_sql("SELECT set_config('app.tenant', $1, false)", (tenant.get(),))
        connection.commit()


def set_before_each_statement(database: Database) -> None:
    @event.listens_for(database.engine.sync_engine, "before_cursor_execute")
    def before(_connection: Connection, cursor: Any, *_statement: Any) -> None:
        cursor.execute("SELECT set_config('app.tenant', $1, false)", (tenant.get(),))


async def in_a_session(database: Database, view: JsonViewReader[SignedNote]) -> set[str]:
    async with database.session() as session:
        return set(await session.scalars(select(SignedNote.tenant)))


async def in_a_read(database: Database, view: JsonViewReader[SignedNote]) -> set[str]:
    return set(await database.read(lambda connection: connection.scalars(select(SignedNote.tenant))))


async def in_autocommit(database: Database, view: JsonViewReader[SignedNote]) -> set[str]:
    async with database.autocommit() as connection:
        return set(await connection.scalars(select(SignedNote.tenant)))


async def by_key(database: Database, view: JsonViewReader[SignedNote]) -> set[str]:
    bodies = await asyncio.gather(*(view.get(n) for n in range(ROWS)), return_exceptions=True)
    return {NoteOut.model_validate_json(body).tenant for body in bodies if isinstance(body, bytes)}


async def by_keys(database: Database, view: JsonViewReader[SignedNote]) -> set[str]:
    return {NoteOut.model_validate_json(body).tenant for body in await view.get_many(range(ROWS))}


async def by_page(database: Database, view: JsonViewReader[SignedNote]) -> set[str]:
    page = await view.page(count=True)
    assert page.total == ROWS // 2
    return {NoteOut.model_validate_json(body).tenant for body in page.items}


async def by_stream(database: Database, view: JsonViewReader[SignedNote]) -> set[str]:
    return {NoteOut.model_validate_json(line).tenant async for line in view.stream()}


READS: list[Callable[[Database, JsonViewReader[SignedNote]], Awaitable[set[str]]]] = [
    in_a_session,
    in_a_read,
    in_autocommit,
    by_key,
    by_keys,
    by_page,
    by_stream,
]


@asynccontextmanager
async def service(
    url: str, listen: Callable[[Database], None]
) -> AsyncIterator[tuple[Database, JsonViewReader[SignedNote]]]:
    async with Database(url) as database, NoteView.open(database) as view:
        listen(database)
        yield database, view


async def seen_by(name: str, read: Callable[..., Awaitable[set[str]]], *database_and_view: Any) -> set[str]:
    tenant.set(name)
    return await read(*database_and_view)


@pytest.mark.parametrize(
    ("listen", "read"),
    [
        *((set_at_checkout, read) for read in READS),
        *((set_at_engine_connect, read) for read in READS),
        # a server-side cursor can't run another statement
        *((set_before_each_statement, read) for read in READS if read is not by_stream),
        # autocommit has no transaction that a setting could be local to: see the next test
        *((set_at_begin, read) for read in READS if read is not in_autocommit),
    ],
)
async def test_each_tenant_sees_only_its_own_rows_one_after_the_other_and_concurrently(
    restricted_url: str,
    listen: Callable[[Database], None],
    read: Callable[[Database, JsonViewReader[SignedNote]], Awaitable[set[str]]],
) -> None:
    async with service(restricted_url, listen) as database_and_view:
        for name in "abab":
            assert await asyncio.create_task(seen_by(name, read, *database_and_view)) == {name}
        names = ["ab"[n % 2] for n in range(40)]
        seen = await asyncio.gather(*(seen_by(name, read, *database_and_view) for name in names))
        assert seen == [{name} for name in names]


async def test_a_statement_in_autocommit_does_not_see_the_setting_of_a_begin_listener(restricted_url: str) -> None:
    """After the end of the transaction its setting is empty."""
    async with service(restricted_url, set_at_begin) as database_and_view:
        for name in "ab":
            assert await asyncio.create_task(seen_by(name, in_a_session, *database_and_view)) == {name}
            assert await asyncio.create_task(seen_by(name, in_autocommit, *database_and_view)) == set()


@pytest.mark.parametrize("read", [in_a_read, in_autocommit, by_keys, by_page])
async def test_control_a_kept_connection_shows_one_tenant_the_rows_of_another(
    restricted_url: str,
    read: Callable[[Database, JsonViewReader[SignedNote]], Awaitable[set[str]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(KeptConnections, "_is_prepared_for_each_use", lambda self: False)
    async with service(restricted_url, set_at_checkout) as database_and_view:
        assert await asyncio.create_task(seen_by("a", read, *database_and_view)) == {"a"}
        assert await asyncio.create_task(seen_by("b", read, *database_and_view)) == {"a"}


async def test_control_a_batch_has_no_tenant(restricted_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KeptConnections, "is_shared", lambda self: True)
    async with service(restricted_url, set_at_checkout) as database_and_view:
        assert await seen_by("a", by_key, *database_and_view) == set()


async def test_execution_options_of_one_use_do_not_apply_to_the_next(committed_url: str) -> None:
    async with Database(committed_url) as database:
        async with database.begin() as session:
            connection = await session.connection()
            await connection.execute(text("CREATE SCHEMA other"))
            await connection.run_sync(Separate.metadata.create_all)
            await connection.execute(text("CREATE TABLE other.notes AS SELECT 1 AS id, CAST('b' AS varchar) AS tenant"))
        async with NoteView.open(database) as view:
            async with database.autocommit() as single:
                await single.execution_options(schema_translate_map={None: "other"}, isolation_level="SERIALIZABLE")
                assert list(await single.scalars(select(SignedNote.tenant))) == ["b"]
            assert (await view.page()).items == []
            async with database.autocommit() as single:
                assert list(await single.scalars(select(SignedNote.tenant))) == []
                assert await single.scalar(text("SHOW transaction_isolation")) == "read committed"


async def test_a_listener_that_only_observes_does_not_stop_the_sharing_of_reads(committed_url: str) -> None:
    def observe(*_event: Any) -> None: ...

    observe.__module__ = "opentelemetry.instrumentation.sqlalchemy.engine"
    async with Database(committed_url) as database:
        event.listen(database.engine.sync_engine, "checkout", observe)
        assert database.shares_reads()
        async with database.begin() as session:
            await (await session.connection()).run_sync(Separate.metadata.create_all)
            await bulk.insert_many(session, SignedNote, [{"id": n, "tenant": "a"} for n in range(ROWS)])
        async with NoteView.open(database) as view:
            with assert_statements(database, 1):
                await asyncio.gather(*(view.get(n) for n in range(ROWS)))
        event.listen(database.engine.sync_engine, "checkin", lambda *_event: None)
        assert not database.shares_reads()
