"""The role of a Database: each connection takes it when it is opened."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, Final, Literal

import asyncpg
import pytest
from sqlalchemy import Select, make_url, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from howdah import AsyncRepository, ConnectionFailed, Database, InvalidStatement, JsonViewReader, bulk, run_transaction
from howdah.tenancy import login_role_statements
from howdah_tests.support.pgbouncer import PROGRAM, run_pgbouncer
from howdah_tests.support.tenants import Base, Note, NoteView
from howdah_tests.support.waiting import kill

CURRENT: Final = text("SELECT current_user")
PID: Final = text("SELECT pg_backend_pid()")
Pooler = Literal["transaction"]


class Roles:
    """A login that may take two roles. Each may read the notes; only the first one may write them."""

    def __init__(self, url: str) -> None:
        parsed = make_url(url)
        login = f"{parsed.database}_login"
        self.login, self.writer, self.reader = login, f"{parsed.database}_writer", f"{parsed.database}_reader"
        self.url = parsed.set(username=login).render_as_string(hide_password=False)

    def statements(self) -> list[str]:
        return [
            *login_role_statements(self.login, roles=[self.writer, self.reader]),
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON notes TO {self.writer}",
            f"GRANT SELECT ON notes TO {self.reader}",
            "ALTER TABLE notes NO FORCE ROW LEVEL SECURITY, DISABLE ROW LEVEL SECURITY",
        ]


@pytest.fixture(scope="module")
def roles(database_url: str) -> Iterator[Roles]:
    found = Roles(database_url)

    async def create() -> None:
        async with Database(database_url) as owner, owner.begin() as session:
            connection = await session.connection()
            await connection.run_sync(Base.metadata.create_all)
            for each in found.statements():
                await connection.exec_driver_sql(each)

    async def drop() -> None:
        async with Database(database_url) as owner, owner.begin() as session:
            connection = await session.connection()
            for each in (found.writer, found.reader, found.login):
                await connection.exec_driver_sql(f"DROP OWNED BY {each}")
                await connection.exec_driver_sql(f"DROP ROLE {each}")
            await connection.run_sync(Base.metadata.drop_all)

    asyncio.run(create())
    yield found
    asyncio.run(drop())


@pytest.fixture
async def writer(roles: Roles) -> AsyncIterator[Database]:
    async with Database(roles.url, role=roles.writer, pool_size=2, max_overflow=1) as database:
        yield database


async def by_session(database: Database) -> object:
    async with database.session() as session:
        return await session.scalar(CURRENT)


async def by_begin(database: Database) -> object:
    async with database.begin(isolation_level="SERIALIZABLE") as session:
        return await session.scalar(CURRENT)


async def by_read_only_session(database: Database) -> object:
    async with database.session(read_only=True) as session:
        return await session.scalar(CURRENT)


async def by_factory(database: Database) -> object:
    async with database.session_factory() as session:
        return await session.scalar(CURRENT)


async def by_second_transaction(database: Database) -> object:
    async with database.session() as session:
        await session.execute(text("SELECT 1"))
        await session.rollback()
        return await session.scalar(CURRENT)


async def by_run_transaction(database: Database) -> object:
    return await run_transaction(database, lambda session: session.scalar(CURRENT))


async def by_engine(database: Database) -> object:
    async with database.engine.connect() as connection:
        found: object = await connection.scalar(CURRENT)
        return found


async def by_read(database: Database) -> object:
    found: object = await database.read(lambda connection: connection.scalar(CURRENT))
    return found


async def by_autocommit(database: Database) -> object:
    async with database.autocommit() as connection:
        found: object = await connection.scalar(CURRENT)
        return found


async def by_stream(database: Database) -> object:
    async with database.session() as session:
        return [row async for row in await session.stream_scalars(CURRENT)].pop()


WAYS: list[Callable[[Database], Awaitable[object]]] = [
    by_session,
    by_begin,
    by_read_only_session,
    by_factory,
    by_second_transaction,
    by_run_transaction,
    by_engine,
    by_read,
    by_autocommit,
    by_stream,
]


async def check_every_way(url: str, roles: Roles, pooler: Pooler | None = None) -> None:
    async with Database(url, role=roles.writer, pool_size=2, pooler=pooler) as database:
        other = database.with_settings(role=roles.reader)
        tenant = database.with_settings({"app.tenant_id": 1})
        for way in WAYS * 2:
            assert await way(database) == roles.writer, way
            assert await way(other) == roles.reader, way
            assert await way(tenant) == roles.writer, way
        await asyncio.gather(*(way(each) for way in WAYS for each in (database, other)))
        assert [await way(database) for way in WAYS] == [roles.writer] * len(WAYS)


async def test_every_way_has_the_role_and_with_settings_replaces_it_for_a_transaction(roles: Roles) -> None:
    await check_every_way(roles.url, roles)


@pytest.mark.skipif(PROGRAM is None, reason="pgbouncer isn't installed")
async def test_behind_a_transaction_pooler_every_way_has_the_role(roles: Roles) -> None:
    with run_pgbouncer(roles.url) as url:
        await check_every_way(url, roles, "transaction")
        async with Database(url, pooler="transaction") as database:  # no role stays on a connection to the server
            assert {await way(database) for way in WAYS * 2} == {roles.login}


async def test_control_without_a_role_the_login_has_no_right(roles: Roles) -> None:
    async with Database(roles.url) as database:
        assert {await way(database) for way in WAYS} == {roles.login}
        with pytest.raises(InvalidStatement, match="permission denied for table notes"):
            async with database.session() as session:
                await session.execute(select(Note.id))


async def test_the_role_takes_no_round_trip(writer: Database, roles: Roles) -> None:
    async with writer.session() as session:
        connection = await session.connection()
        raw: Any = await connection.get_raw_connection()
        assert raw.driver_connection.settings_sql == raw.driver_connection.base_settings_sql == ""
        await session.execute(text("SET LOCAL ROLE NONE"))
        assert await session.scalar(CURRENT) == roles.login
        await session.execute(text("RESET ROLE"))
        assert await session.scalar(CURRENT) == roles.writer


async def test_writes_of_every_kind_and_views_have_the_rights_of_the_role(writer: Database, roles: Roles) -> None:
    rows = [{"id": n, "tenant_id": 1} for n in range(200)]
    reader = writer.with_settings(role=roles.reader)
    async with writer.begin() as session:
        assert len((await bulk.insert_many(session, Note, rows)).keys) == 200  # COPY
        session.add(Note(id=200, tenant_id=1))
    for database in (writer, reader):
        async with NoteView.open(database) as notes:
            assert len(await notes.get_many(range(10))) == 10
            assert len([line async for line in notes.stream()]) == 201
            assert isinstance(notes, JsonViewReader)
        async with database.session() as session:
            assert len([note async for note in AsyncRepository(session, Note).stream(batch=50)]) == 201
    with pytest.raises(InvalidStatement, match="permission denied for table notes"):
        async with reader.begin() as session:
            await bulk.insert_many(session, Note, [{"id": 900 + n, "tenant_id": 1} for n in range(200)])
    async with writer.begin() as session:
        await bulk.delete_where(session, Note, Note.id >= 0)


async def test_two_databases_of_a_process_keep_their_roles_and_rights(roles: Roles) -> None:
    """The statements are the same, and each connection has prepared them."""
    async with (
        Database(roles.url, role=roles.writer) as writer,
        Database(roles.url, role=roles.reader) as reader,
        NoteView.open(writer) as notes,
        NoteView.open(reader) as other_notes,
    ):
        for n in range(8):  # PostgreSQL may use a generic plan after five executions
            await run_transaction(writer, lambda session, n=n: session.merge(Note(id=n, tenant_id=1)))  # type: ignore[misc]
            with pytest.raises(InvalidStatement, match="permission denied"):
                await run_transaction(reader, lambda session, n=n: session.merge(Note(id=n + 50, tenant_id=1)))  # type: ignore[misc]
            found = await asyncio.gather(notes.get(n), other_notes.get(n), by_read(writer), by_read(reader))
            assert found[0] == found[1]
            assert found[2] == roles.writer
            assert found[3] == roles.reader
        async with writer.begin() as session:
            await bulk.delete_where(session, Note, Note.id >= 0)


async def test_one_connection_shows_each_role_only_its_rows(roles: Roles, database_url: str) -> None:
    """PostgreSQL plans a prepared statement again if its policies depend on another role than that of the plan."""
    rows = [{"id": n, "tenant_id": n % 2} for n in range(10)]
    policies = (
        "ALTER TABLE notes ENABLE ROW LEVEL SECURITY",
        f"CREATE POLICY all_rows ON notes TO {roles.writer} USING (true)",
        f"CREATE POLICY own ON notes TO {roles.reader} USING (tenant_id = current_setting('app.tenant_id')::int)",
    )
    async with Database(database_url) as owner, owner.begin() as session:
        await bulk.insert_many(session, Note, rows)
        for each in policies:
            await (await session.connection()).exec_driver_sql(each)
    try:
        async with (
            Database(roles.url, role=roles.writer, pool_size=1, max_overflow=0) as database,
            NoteView.open(database) as notes,
        ):
            scoped = [database.with_settings({"app.tenant_id": n}, role=roles.reader) for n in (0, 1)]
            query = select(Note.tenant_id).where(Note.id >= 0)
            for _ in range(8):  # PostgreSQL may use a generic plan after five executions
                assert len(await database.read(lambda connection: _all(connection, query))) == 10
                for tenant, own in enumerate(scoped):
                    assert set(await own.read(lambda connection: _all(connection, query))) == {tenant}
                    found = await notes.scoped(own).get_many([tenant, tenant + 2])
                    assert len(found) == 2
                    assert await notes.scoped(own).get_many([1 - tenant]) == []
                # a reader of the database of the writer's role reads with the other role, and doesn't share a batch
                async with Database(roles.url, role=roles.reader) as reader:
                    for other in (reader, reader.with_settings({"app.tenant_id": 1})):
                        bodies = await asyncio.gather(
                            *(each.get(1) for each in (notes, notes.scoped(other))), return_exceptions=True
                        )
                        assert isinstance(bodies[0], bytes)
                        assert isinstance(bodies[1], bytes) is (other is not reader)  # the policy needs the setting
                    async with own.session() as session:
                        assert set(await session.scalars(query)) == {tenant}
                async with database.session() as session:
                    assert len((await session.scalars(query)).all()) == 10
    finally:
        async with Database(database_url) as owner, owner.begin() as session:
            for each in ("DROP POLICY own ON notes", "DROP POLICY all_rows ON notes", "DELETE FROM notes"):
                await session.execute(text(each))
            await session.execute(text("ALTER TABLE notes DISABLE ROW LEVEL SECURITY"))


async def _all(connection: AsyncConnection, query: Select[Any]) -> Sequence[Any]:
    return (await connection.scalars(query)).all()


async def test_a_connection_that_replaces_a_lost_one_has_the_role(
    writer: Database, roles: Roles, real_database: Database
) -> None:
    async def pid(connection: AsyncConnection) -> int:
        found: int = (await connection.scalars(PID)).one()
        return found

    first = await writer.read(pid)
    await kill(real_database, first)
    assert await by_read(writer) == roles.writer
    async with writer.session() as session:
        second = await session.scalar(PID)
    await kill(real_database, second)
    assert await by_session(writer) == roles.writer
    before = await writer.read(pid)
    writer.engine.pool.state.discard_open()  # type: ignore[attr-defined]  # as after a failover
    assert await writer.read(pid) != before
    await writer.engine.dispose()
    assert [await way(writer) for way in WAYS] == [roles.writer] * len(WAYS)


@pytest.mark.parametrize("pooler", [None, "transaction"])
async def test_a_role_that_the_login_cannot_take_is_named(roles: Roles, pooler: Pooler | None) -> None:
    expected = ConnectionFailed if pooler is None else InvalidStatement
    for role, reason in (("howdah_missing", '"howdah_missing" does not exist'), ("pg_monitor", "permission denied")):
        async with Database(roles.url, role=role, pooler=pooler) as database:
            for way in (by_session, by_read, by_autocommit):
                with pytest.raises(expected, match=rf"{reason}.*GRANT role TO login"):
                    await way(database)
            assert database.pool_status().in_use == 0


async def test_a_role_of_with_settings_that_the_login_cannot_take_is_no_value_of_a_client(writer: Database) -> None:
    for scoped in (writer.with_settings(role="howdah_missing"), writer.with_settings({"work_mem": "much"})):
        for way in (by_session, by_read, by_autocommit):
            with pytest.raises(InvalidStatement, match="the transaction can't begin with its settings"):
                await way(scoped)
    assert await by_session(writer) is not None


async def test_a_connection_that_may_not_have_the_role_is_refused(roles: Roles) -> None:
    async def connect(**_arguments: Any) -> Any:
        return await asyncpg.connect(roles.url.replace("+asyncpg", ""))

    for options in ({"async_creator": connect}, {"connect_args": {"async_creator_fn": connect}}):
        database = Database(roles.url, role=roles.writer, **options)
        with pytest.raises(RuntimeError, match=r"role=.* needs connections that the Database opens"):
            await by_session(database)
        await database.close()


def test_a_wrong_role_is_rejected_before_any_connection() -> None:
    for wrong, error in (("", "1 to 63 bytes"), ("none", "can't be 'none'"), ("a\0", "NUL")):
        with pytest.raises(ValueError, match=error):
            Database("postgresql://nowhere/x", role=wrong)
    with pytest.raises(ValueError, match="given twice"):
        Database("postgresql://nowhere/x", role="a", connect_args={"server_settings": {"role": "b"}})
