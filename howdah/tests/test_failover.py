"""After a failover: connections that can't write are replaced, and a new connection reaches the new primary."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from typing import Literal
from unittest import mock

import pytest
from fastapi import FastAPI
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncConnection

from howdah import Coalescer, Database, ReadOnly, Unavailable, bulk, run_transaction
from howdah._connections.pool import BoundedPool, PoolState
from howdah.fastapi import configure_app
from howdah_tests.support.fastapi_apps import http_client
from howdah_tests.support.sample_models import User
from howdah_tests.support.sample_rows import new_user, user_rows
from howdah_tests.support.standby_servers import Pair, open_pair
from howdah_tests.support.waiting import until

PID = text("SELECT pg_backend_pid()")
# It writes no row, so that it can be committed in the database that all tests share.
INSERT = text("INSERT INTO counters SELECT * FROM counters WHERE false")


@pytest.fixture
async def role(database_url: str) -> AsyncIterator[str]:
    """The URL of a role whose sessions start read-only until `allow_writes`."""
    name = f"{make_url(database_url).database}_writer"
    async with Database(database_url) as admin, admin.autocommit() as connection:
        for statement in (
            f"DROP ROLE IF EXISTS {name}",
            f"CREATE ROLE {name} SUPERUSER LOGIN",
            f"ALTER ROLE {name} SET default_transaction_read_only = on",
        ):
            await connection.execute(text(statement))
        yield make_url(database_url).set(username=name).render_as_string(hide_password=False)
        await connection.execute(text(f"DROP ROLE {name}"))


async def allow_writes(url: str) -> None:
    async with Database(url) as database, database.begin() as session:
        await session.execute(text("SET TRANSACTION READ WRITE"))
        await session.execute(text("ALTER ROLE CURRENT_USER RESET default_transaction_read_only"))


async def begin(database: Database) -> None:
    async with database.begin() as session:
        await session.execute(INSERT)


async def autocommit(database: Database) -> None:
    async with database.autocommit() as connection:
        await connection.execute(INSERT)


async def copy(database: Database) -> None:
    async with database.session() as session:
        await bulk.insert_many(session, User, user_rows(100))


async def flush(database: Database) -> None:
    async with database.session() as session:
        session.add(new_user())
        await session.flush()


async def scoped(database: Database) -> None:
    async with database.with_settings({"app.tenant_id": "1"}).session() as session:
        await session.execute(INSERT)


async def scoped_autocommit(database: Database) -> None:
    async with database.with_settings({"app.tenant_id": "1"}).autocommit() as connection:
        await connection.execute(INSERT)


async def read(database: Database) -> None:
    await database.read(lambda connection: connection.execute(INSERT))


async def transaction(database: Database) -> None:
    await run_transaction(database, lambda session: session.execute(INSERT))


async def batch(database: Database) -> None:
    async def write(_items: Sequence[int]) -> list[None]:
        await transaction(database)
        return [None]

    coalescer: Coalescer[int, None] = Coalescer(write)
    async with coalescer:
        await coalescer.submit(1)


async def driver(database: Database) -> None:
    """A statement that is sent directly to the driver, as by `PreparedSelect`."""
    async with database.autocommit() as connection:
        await connection.run_sync(lambda sync: sync.exec_driver_sql(INSERT.text))


WAYS: list[Callable[[Database], Awaitable[None]]] = [
    begin,
    autocommit,
    copy,
    flush,
    scoped,
    scoped_autocommit,
    read,
    transaction,
    batch,
    driver,
]


async def open_connections(database: Database, number: int = 4) -> set[int]:
    """Open this many pooled connections and some kept ones. Returns the backends."""
    async with AsyncExitStack() as stack:
        sessions = [await stack.enter_async_context(database.session()) for _ in range(number)]
        found = {(await session.scalars(PID)).one() for session in sessions}
        return found.union(await asyncio.gather(*(database.read(pid) for _ in range(2))))


async def pid(connection: AsyncConnection) -> int:
    found: int = (await connection.scalars(PID)).one()
    return found


@pytest.mark.parametrize(
    ("way", "pooler"), [*((way, None) for way in WAYS), (begin, "transaction"), (autocommit, "transaction")]
)
async def test_a_rejected_write_replaces_all_connections(
    role: str, way: Callable[[Database], Awaitable[None]], pooler: Literal["transaction"] | None
) -> None:
    async with Database(role, pooler=pooler) as database:
        before = await open_connections(database)
        await allow_writes(role)
        with pytest.raises(ReadOnly):
            await way(database)
        await way(database)
        assert not before & await open_connections(database)


@pytest.mark.parametrize("way", [begin, autocommit, read])
async def test_control_without_the_replacement_writes_never_recover(
    role: str, way: Callable[[Database], Awaitable[None]]
) -> None:
    async with Database(role) as database:
        await open_connections(database)
        await allow_writes(role)
        with mock.patch.object(PoolState, "discard_open"):
            for _ in range(8):
                with pytest.raises(ReadOnly):
                    await way(database)


async def test_a_rejected_write_in_a_requested_read_only_transaction_replaces_nothing(database_url: str) -> None:
    async with Database(database_url) as database:
        async with database.session(read_only=True) as session:
            first = await session.scalar(PID)
            with pytest.raises(ReadOnly):
                await session.execute(text("CREATE TABLE never ()"))
        async with database.session() as session:
            await session.execute(text("SET TRANSACTION READ ONLY"))
            assert await session.scalar(PID) == first
            with pytest.raises(ReadOnly):
                await session.execute(text("CREATE TABLE never ()"))
        async with database.session() as session:
            assert await session.scalar(PID) == first


async def test_the_session_can_go_on_after_a_savepoint(role: str) -> None:
    async with Database(role) as database, database.session() as session:
        with pytest.raises(ReadOnly):
            async with session.begin_nested():
                await session.execute(INSERT)
        assert await session.scalar(text("SELECT 1")) == 1


async def test_a_server_that_stays_read_only_costs_one_reconnect_per_second(role: str) -> None:
    async with Database(role) as database:
        async with database.session() as session:
            first = await session.scalar(PID)
        for way in (begin, begin, autocommit, begin):
            with pytest.raises(ReadOnly):
                await way(database)
        async with database.session() as session:
            second = await session.scalar(PID)
        assert first != second
        with pytest.raises(ReadOnly):
            await begin(database)
        async with database.session() as session:
            assert await session.scalar(PID) == second


def pool_of(database: Database) -> BoundedPool:
    pool = database.engine.pool
    assert isinstance(pool, BoundedPool)
    return pool


class TestPing:
    async def test_fails_on_a_database_that_is_read_only_and_passes_when_writes_are_possible(self, role: str) -> None:
        async with Database(role) as database:
            with pytest.raises(ReadOnly, match="read_only=True"):
                await database.ping()
            await allow_writes(role)
            pool_of(database).state.discarded = 0  # as if a second had passed
            await database.ping()

    async def test_passes_for_a_read_only_database(self, role: str) -> None:
        async with Database(role, read_only=True) as database:
            await database.ping()


@pytest.mark.parametrize(("way", "pooler"), [(autocommit, None), (copy, None), (begin, "transaction")])
async def test_a_read_only_database_rejects_every_write(
    database_url: str, way: Callable[[Database], Awaitable[None]], pooler: Literal["transaction"] | None
) -> None:
    async with Database(database_url, read_only=True, pooler=pooler) as replica:
        before = await open_connections(replica)
        with pytest.raises(ReadOnly):
            await way(replica)
        assert await open_connections(replica) == before


class TestServers:
    """A real primary with a real standby."""

    @pytest.fixture
    def pair(self) -> Iterator[Pair]:
        with open_pair(tables="CREATE TABLE counters (id int)") as pair:
            yield pair

    async def test_writes_reach_the_promoted_standby(self, pair: Pair) -> None:
        """This test promotes the standby, so it checks everything that needs this pair of servers."""
        both = pair.url(attributes="application_name=failover")  # several hosts: the primary is the default
        standby_url = pair.standby.url()
        async with (
            Database(both, connect_timeout=2) as database,
            Database(standby_url) as undeclared,
            Database(standby_url, read_only=True) as replica,
            Database(pair.url(attributes="target_session_attrs=prefer-standby")) as preferring,
        ):
            await database.ping()
            await replica.ping()
            await preferring.ping()
            assert await preferring.read(is_in_recovery)
            with pytest.raises(ReadOnly):
                await undeclared.ping()
            with pytest.raises(ReadOnly):
                await autocommit(undeclared)
            outcomes: list[str] = []
            writers = [asyncio.create_task(write_until_recovered(database, outcomes)) for _ in range(8)]
            while outcomes.count("ok") < 20:
                await asyncio.sleep(0.01)
            await asyncio.to_thread(pair.primary.stop)
            outcomes.append("stopped")
            await asyncio.to_thread(pair.promote)
            outcomes.append("promoted")
            promoted = time.monotonic()
            async with asyncio.timeout(5):
                await asyncio.gather(*writers)
            assert time.monotonic() - promoted < 5
            await database.ping()
            await begin(database)
            await undeclared.ping()
            await begin(undeclared)


async def is_in_recovery(connection: AsyncConnection) -> bool:
    found: bool = (await connection.scalars(text("SELECT pg_is_in_recovery()"))).one()
    return found


async def write_until_recovered(database: Database, outcomes: list[str]) -> None:
    """Write until the first success after the promotion."""
    while True:
        try:
            await run_transaction(database, lambda session: session.execute(INSERT))
        except (Unavailable, ReadOnly) as error:
            outcomes.append(type(error).__name__)
            await asyncio.sleep(0.01)
        else:
            is_last = "promoted" in outcomes
            outcomes.append("ok")
            if is_last:
                return
            await asyncio.sleep(0.005)


async def test_readyz_fails_until_a_new_connection_can_write_and_accepts_a_declared_replica(role: str) -> None:
    app = FastAPI()
    configure_app(
        app,
        database=lambda: Database(role),
        databases={"replica": lambda: Database(role, read_only=True)},
        metrics=False,
        request_log=False,
    )
    async with http_client(app) as client:
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()["detail"]) == (503, "ReadOnly")
        await allow_writes(role)

        async def is_ready() -> bool:
            return (await client.get("/readyz")).status_code == 200

        await until(is_ready)
