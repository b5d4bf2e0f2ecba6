"""`Database(url, pooler="transaction")` behind PgBouncer, whose clients share a few server connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel
from sqlalchemy import event, func, insert, literal, select, text, update

from howdah import (
    AsyncRepository,
    ConnectionFailed,
    Database,
    DatabaseError,
    InvalidStatement,
    InvalidValue,
    JsonView,
    LockTimeout,
    ReadOnly,
    SerializationFailure,
    StatementTimeout,
    UniqueViolation,
    advisory_lock,
    bulk,
    lock,
    run_transaction,
    savepoint,
)
from howdah_tests.support.pgbouncer import PROGRAM, SERVER_CONNECTIONS, run_pgbouncer
from howdah_tests.support.sample_models import Counter, Order, Status, User
from howdah_tests.support.sample_rows import user_rows

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs pgbouncer (apt-get install pgbouncer)")

CLIENTS = 4 * SERVER_CONNECTIONS


class UserOut(BaseModel):
    id: UUID
    email: str


class OrderOut(BaseModel):
    id: UUID
    status: Status


UserView = JsonView(User, UserOut)


@pytest.fixture
def pooled_url(committed_url: str) -> Iterator[str]:
    with run_pgbouncer(committed_url) as url:
        yield url


@pytest.fixture
async def pooled(pooled_url: str) -> AsyncIterator[Database]:
    async with Database(pooled_url, pooler="transaction") as database:
        yield database


async def run_clients(work: Any) -> list[Any]:
    """The results of concurrent clients. There are so many that each transaction may use another server connection."""
    return await asyncio.gather(*(work(n) for n in range(CLIENTS)))


def test_another_kind_of_pooler_is_rejected() -> None:
    with pytest.raises(ValueError, match="pooler must be 'transaction'"):
        Database("postgresql://x", pooler="session")  # type: ignore[arg-type]


async def test_control_without_the_option_the_pooler_rejects_the_connection(pooled_url: str) -> None:
    async with Database(pooled_url) as database:
        with pytest.raises((ConnectionFailed, DatabaseError)):
            await database.ping()


async def test_sessions_have_their_settings_and_leave_none_on_the_connection(pooled_url: str, pooled: Database) -> None:
    names = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "TimeZone", "application_name")
    read = select(*(func.current_setting(name) for name in names))

    async def settings(_n: int) -> tuple[Any, ...]:
        async with pooled.session() as session:
            return tuple((await session.execute(read)).one())

    assert set(await run_clients(settings)) == {("30s", "5s", "1min", "UTC", "howdah")}
    bare = Database(
        pooled_url,
        pooler="transaction",
        statement_timeout=None,
        lock_timeout=None,
        idle_in_transaction_timeout=None,
        application_name="bare",
        connect_args={"server_settings": {"search_path": "pg_catalog", "app.tenant": 'it\'s \\ "one"'}},
    )
    async with bare, bare.session() as session:
        assert tuple((await session.execute(read)).one()) == ("0", "0", "0", "UTC", "bare")
        found = await session.execute(text("SELECT current_setting('search_path'), current_setting('app.tenant')"))
        assert tuple(found.one()) == ("pg_catalog", 'it\'s \\ "one"')
    async with pooled.session() as session:
        assert "pg_catalog" not in str(await session.scalar(text("SELECT current_setting('search_path')")))
        assert not await session.scalar(text("SELECT current_setting('app.tenant', true)"))


async def test_a_rejected_setting_leaves_the_connection_usable(pooled_url: str) -> None:
    wrong = {"server_settings": {"work_mem": "much"}}
    async with Database(pooled_url, pooler="transaction", connect_args=wrong, pool_size=1) as database:
        for _ in range(2):
            with pytest.raises(DatabaseError):
                await database.ping()
    async with Database(pooled_url, pooler="transaction") as database:
        await run_clients(lambda n: database.ping())


async def test_a_setting_may_be_a_list(pooled_url: str) -> None:
    paths = {"server_settings": {"search_path": "pg_catalog, public"}}
    database = Database(pooled_url, pooler="transaction", connect_args=paths)
    async with database, database.session() as session:
        assert await session.scalar(text("SELECT current_schemas(false)")) == ["pg_catalog", "public"]


async def test_a_listener_of_the_checkout_is_rejected(pooled: Database) -> None:
    """The next transaction may be on another connection to the server."""
    event.listen(pooled.engine.sync_engine, "checkout", lambda *_: None)
    with pytest.raises(RuntimeError, match="listen to the engine's begin"):
        await pooled.ping()


async def test_timeouts_apply(pooled_url: str) -> None:
    async with Database(pooled_url, pooler="transaction", statement_timeout=0.05, lock_timeout=0.02) as database:
        async with database.session() as session:
            with pytest.raises(StatementTimeout):
                await session.execute(text("SELECT pg_sleep(60)"))
        with pytest.raises(StatementTimeout):
            await database.read(lambda connection: connection.execute(text("SELECT pg_sleep(60)")))
        async with database.session() as one, database.session() as other:
            await advisory_lock(one, "x")
            with pytest.raises(LockTimeout):
                await advisory_lock(other, "x")


async def test_every_kind_of_write_and_read_works(pooled: Database) -> None:
    async def write(n: int) -> None:
        rows = user_rows(50)
        for m, row in enumerate(rows):
            row["email"] = f"{n}-{m}@example.org"
        async with pooled.begin() as session:
            users = AsyncRepository(session, User)
            keys = (await users.create_many(rows)).keys  # with COPY
            one = await users.create(email=f"{n}@example.org", name="One")
            await bulk.insert_many(session, Order, [{"user_id": one.id, "placed_at": datetime(2024, 1, 1, tzinfo=UTC)}])
            await users.update_many([{"id": key, "name": f"Client {n}"} for key in keys])
            upserted = await users.upsert_many([{"email": rows[0]["email"], "name": "Up"}], on=["email"])
            assert (upserted.created, upserted.updated) == (0, 1)
            assert len(await lock(session, User, keys)) == 50
            with pytest.raises(UniqueViolation):
                async with savepoint(session):
                    await users.create(email=f"{n}@example.org", name="Two")
            assert len([user async for user in users.stream(select(User).where(User.name == f"Client {n}"))]) == 49
            await session.execute(insert(Counter), [{"value": m} for m in range(3)])

    await run_clients(write)
    async with pooled.session() as session:
        names = select(User.name, func.count()).group_by(User.name)
        counts = dict((await session.execute(names)).all())
        assert counts == {**{f"Client {n}": 49 for n in range(CLIENTS)}, "One": CLIENTS, "Up": CLIENTS}
        order = (await session.scalars(select(Order).limit(1))).one()
        assert (order.status, order.placed_at) == (Status.PENDING, datetime(2024, 1, 1, tzinfo=UTC))


async def test_every_kind_of_view_read_works(pooled: Database) -> None:
    async with pooled.begin() as session:
        keys = (await bulk.insert_many(session, User, user_rows(60))).keys

    async def read(n: int) -> None:
        body = UserOut.model_validate_json(await view.get(keys[n]))
        assert body.id == keys[n]
        assert len(await view.get_many(keys[n : n + 5])) == 5
        first = await view.page(select(User).order_by(User.email), limit=7, count=True)
        second = await view.page(select(User).order_by(User.email), limit=7, after=first.next)
        assert first.total == 60
        assert not {*first.items} & {*second.items}
        assert len([line async for line in view.stream(batch=10)]) == 60

    async with UserView.open(pooled) as view:
        await run_clients(read)
        await run_clients(read)
    assert pooled.pool_status().in_use == 0


async def test_each_statement_in_autocommit_is_a_separate_transaction(pooled: Database) -> None:
    async def write(n: int) -> None:
        async with pooled.autocommit() as connection:
            await connection.execute(insert(Counter).values(id=n + 1, value=n))
            with pytest.raises(UniqueViolation):
                await connection.execute(insert(Counter).values(id=n + 1, value=n))
            with pytest.raises(InvalidValue):
                await connection.execute(select(literal(1) / 0))
            await connection.execute(update(Counter).where(Counter.id == n + 1).values(value=Counter.value + 100))
            async with pooled.session() as other:
                assert await other.scalar(select(Counter.value).where(Counter.id == n + 1)) == n + 100
            times = [(await connection.scalars(select(func.now()))).one() for _ in range(2)]
            assert times[0] < times[1]

    await run_clients(write)
    assert pooled.pool_status().in_use == 0


async def test_rows_that_are_streamed_in_autocommit_are_committed(pooled: Database) -> None:
    async with pooled.autocommit() as connection:
        statement = insert(Counter).returning(Counter.id)
        async with connection.stream(statement, [{"id": 1, "value": 1}]) as result:
            assert [row.id async for row in result] == [1]
    async with pooled.session() as session:
        assert await session.scalar(select(func.count()).select_from(Counter)) == 1


async def test_read_only_serializable_and_retried_transactions_work(pooled: Database) -> None:
    async with pooled.session(read_only=True) as session:
        with pytest.raises(ReadOnly):
            await session.execute(insert(Counter), {"value": 1})
    async with pooled.begin() as session:
        await session.execute(insert(Counter), {"id": 1, "value": 0})

    async def count_up(session: Any) -> None:
        counter = (await session.scalars(select(Counter))).one()
        counter.value += 1

    async def run(_n: int) -> None:
        await run_transaction(pooled, count_up, isolation_level="REPEATABLE READ", max_attempts=100)

    await run_clients(run)
    async with pooled.session() as session:
        assert await session.scalar(select(Counter.value)) == CLIENTS
    with pytest.raises(SerializationFailure):  # noqa: PT012  # without run_transaction
        async with pooled.begin(isolation_level="REPEATABLE READ") as session:
            counter = (await session.scalars(select(Counter))).one()
            await run(0)
            counter.value += 1


async def test_errors_are_those_of_a_direct_connection(pooled: Database) -> None:
    with pytest.raises(InvalidStatement):
        await pooled.read(lambda connection: connection.execute(text("SELECT nothing")))
    async with pooled.session() as session:
        with pytest.raises(InvalidStatement):
            await session.execute(text("SELECT nothing"))
    await run_clients(lambda n: pooled.ping())
