"""The slots of the pool: some are reserved for nested use, batches and reads, so that no task waits for itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import Context
from typing import Any
from uuid import UUID

import httpx
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, Request, Response
from pydantic import BaseModel
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Coalescer, ConnectionLost, Database, JsonView, PoolExhausted, PoolStatus, run_transaction
from howdah._connections.pool import BoundedPool
from howdah._connections.slots import Priority, Slots
from howdah.fastapi import DbSession, ReadDbSession, add_error_handlers, json_response
from howdah_tests.support.fastapi_apps import http_client
from howdah_tests.support.sample_models import Counter, User
from howdah_tests.support.sample_rows import new_user
from howdah_tests.support.waiting import until

# Reads are fast. The other requests are fewer, but still twice as many as the pool has connections.
REQUESTS = 120
OTHER_REQUESTS = 60


class UserOut(BaseModel):
    id: UUID
    name: str


UserView = JsonView(User, UserOut)


def slots_of(database: Database) -> Slots:
    pool = database.engine.pool
    assert isinstance(pool, BoundedPool)
    return pool.state.slots


def without_reserve(database: Database) -> None:
    """Let sessions use every connection, for a control test."""
    slots = slots_of(database)
    slots._supplies = (slots.limit(Priority.READ), 0, 0, 0)
    slots._free = [*slots._supplies]


@pytest.fixture
async def user_id(committed_url: str) -> UUID:
    async with Database(committed_url) as database, database.begin() as session:
        session.add(user := new_user())
        await session.flush()
        return user.id


@asynccontextmanager
async def application(url: str, *, has_reserve: bool = True) -> AsyncIterator[tuple[httpx.AsyncClient, Database]]:
    """A service whose routes depend on a login, which reads from a session that stays open during the request."""

    async def login(db: DbSession) -> None:
        await db.scalar(select(func.count()).select_from(User))

    async def reading_login(db: ReadDbSession) -> None:
        await db.scalar(select(func.count()).select_from(User))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async with UserView.open(database) as users, Coalescer(count_up) as counts:
            yield {"database": database, "users": users, "counts": counts}

    async def count_up(items: Sequence[int]) -> list[int]:
        async def work(session: AsyncSession) -> list[int]:
            await session.execute(text("SELECT 1"))
            return list(items)

        return await run_transaction(database, work)

    async def count_one(session: AsyncSession) -> int:
        one: int = (await session.scalars(text("SELECT 1"))).one()
        return one

    app = FastAPI(lifespan=lifespan)
    add_error_handlers(app)

    for path, dependency in (("", login), ("/reading", reading_login)):

        @app.get(f"{path}/view/{{id}}", dependencies=[Depends(dependency)])
        async def view(id: UUID, request: Request) -> Response:
            return json_response(await request.state.users.get(id))

        @app.get(f"{path}/batch", dependencies=[Depends(dependency)])
        async def batch(request: Request) -> int:
            found: int = await request.state.counts.submit(1)
            return found

        @app.get(f"{path}/autocommit", dependencies=[Depends(dependency)])
        async def autocommit() -> int:
            async with database.autocommit() as connection:
                found: int = (await connection.scalars(text("SELECT 1"))).one()
                return found

        @app.get(f"{path}/transaction", dependencies=[Depends(dependency)])
        async def transaction() -> int:
            return await run_transaction(database, count_one)

        @app.get(f"{path}/background", dependencies=[Depends(dependency)])
        async def background(tasks: BackgroundTasks) -> int:
            tasks.add_task(run_transaction, database, an_insert)
            return 1

    async def an_insert(session: AsyncSession) -> None:
        session.add(Counter())

    async with Database(url, pool_timeout=20 if has_reserve else 0.2) as database:
        if not has_reserve:
            without_reserve(database)
        async with http_client(app) as client:
            yield client, database


async def statuses(client: httpx.AsyncClient, path: str) -> list[int]:
    requests = REQUESTS if "view" in path else OTHER_REQUESTS
    limits = httpx.Limits(max_connections=requests)
    async with httpx.AsyncClient(base_url=client.base_url, limits=limits, timeout=60) as concurrent_client:
        answers = await asyncio.gather(*(concurrent_client.get(path) for _ in range(requests)))
    return sorted({answer.status_code for answer in answers})


@pytest.mark.parametrize("path", ["/view/{}", "/batch", "/autocommit", "/transaction", "/reading/view/{}"])
async def test_a_request_with_an_open_session_gets_a_second_connection(
    committed_url: str, user_id: UUID, path: str
) -> None:
    async with application(committed_url) as (client, database):
        assert await statuses(client, path.format(user_id)) == [200]
        assert database.pool_status().in_use == 0


@pytest.mark.parametrize("path", ["/view/{}", "/batch", "/autocommit", "/transaction"])
async def test_control_without_a_reserve_such_requests_wait_for_each_other(
    committed_url: str, user_id: UUID, path: str
) -> None:
    async with application(committed_url, has_reserve=False) as (client, _):
        assert 503 in await statuses(client, path.format(user_id))


async def test_a_background_task_can_run_a_transaction_while_the_request_has_an_open_session(
    committed_url: str, user_id: UUID
) -> None:
    async with application(committed_url) as (client, database):
        assert await statuses(client, "/reading/background") == [200]

        async def all_are_done() -> bool:  # the last background tasks may still run after the responses
            async with database.session() as session:
                return await session.scalar(select(func.count()).select_from(Counter)) == OTHER_REQUESTS

        await until(all_are_done)


async def test_several_sessions_of_one_task_can_use_the_reserve(database_url: str) -> None:
    async with (
        Database(database_url, pool_size=5, max_overflow=0, pool_timeout=0.1) as database,
        AsyncExitStack() as stack,
    ):

        async def hold() -> None:
            session = await stack.enter_async_context(database.session())
            await session.execute(text("SELECT 1"))

        for _ in range(2):
            await asyncio.create_task(hold())  # each task has its own context
        with pytest.raises(PoolExhausted, match=r"all 2 connections \(3 more are reserved for reads and batches\)"):
            await asyncio.create_task(hold())
        holder = stack.pop_all()
        await holder.aclose()
        for _ in range(4):
            await hold()
        assert database.pool_status() == PoolStatus(size=5, max_overflow=0, in_use=4, idle=0)


async def use_session(database: Database) -> None:
    async with database.session() as session:
        await session.execute(text("SELECT 1"))


async def test_slots_are_counted_correctly_after_the_engine_is_disposed(database_url: str) -> None:
    async with Database(database_url, pool_size=4, max_overflow=0, pool_timeout=0.1) as database:
        async with database.session() as session:
            await session.execute(text("SELECT 1"))
            await database.engine.dispose()
            with pytest.raises(PoolExhausted):
                await asyncio.create_task(use_session(database), context=Context())
            await database.ping()  # its connection is reserved for reads
        await use_session(database)
        assert slots_of(database)._free == [1, 1, 1, 1]


async def test_tasks_that_wait_while_the_engine_is_disposed_get_a_connection(database_url: str) -> None:
    async with Database(database_url, pool_size=1, max_overflow=0, pool_timeout=10) as database:

        async def use() -> None:
            async with database.session() as session:
                await session.execute(text("SELECT 1"))

        async with database.session() as session:
            await session.execute(text("SELECT 1"))
            waiting = [asyncio.create_task(use(), context=Context()) for _ in range(10)]
            await asyncio.sleep(0)
            await database.engine.dispose()
        await asyncio.gather(*waiting)


async def test_a_connection_that_is_reopened_during_its_use_releases_all_slots(database_url: str) -> None:
    async with Database(database_url, pool_size=8, max_overflow=0) as database:
        for _ in range(10):
            async with database.autocommit() as connection:
                with pytest.raises(ConnectionLost):
                    await connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
                await connection.rollback()
                await connection.execute(text("SELECT 1"))
        slots = slots_of(database)
        assert tuple(slots._free) == slots._supplies


@pytest.mark.parametrize("has_levels", [True, False])
async def test_three_connections_of_a_task_come_from_three_supplies(database_url: str, has_levels: bool) -> None:
    """Control: with one reserve for all nested use, such tasks wait for each other."""
    async with Database(database_url, pool_size=8, max_overflow=0, pool_timeout=10 if has_levels else 0.3) as database:
        if not has_levels:
            slots = slots_of(database)
            slots._supplies = (5, 2, 0, 1)
            slots._free = [*slots._supplies]

        async def use() -> None:
            async with database.session() as outer, database.session() as inner:
                await outer.execute(text("SELECT 1"))
                await asyncio.wait_for(
                    inner.execute(text("SELECT 1")), 20
                )  # before Python 3.12 it runs in a separate task
                async with database.autocommit() as connection:
                    await connection.execute(text("SELECT 1"))

        outcomes = await asyncio.gather(
            *(asyncio.create_task(use(), context=Context()) for _ in range(40)), return_exceptions=True
        )
        assert any(isinstance(each, PoolExhausted) for each in outcomes) is not has_levels


async def test_a_session_whose_statement_ran_in_another_task_counts_as_open(database_url: str) -> None:
    async with Database(database_url, pool_size=6, max_overflow=0, pool_timeout=10) as database:

        async def use() -> None:
            async with database.session() as session:
                await asyncio.create_task(session.execute(text("SELECT 1")))
                async with database.begin() as other:
                    await other.execute(text("SELECT 1"))

        await asyncio.gather(*(asyncio.create_task(use(), context=Context()) for _ in range(40)))


async def test_cancelled_and_failing_uses_of_every_kind_leave_all_slots_free(database_url: str) -> None:
    async with Database(database_url, pool_size=4, max_overflow=0) as database:

        async def read() -> None:
            await database.read(lambda connection: connection.execute(text("SELECT pg_sleep(0.02)")))

        async def fail() -> None:
            await database.read(lambda connection: connection.execute(text("SELECT 1/0")))

        async def write() -> None:
            async with database.autocommit() as connection:
                await connection.execute(text("SELECT pg_sleep(0.02)"))

        async def transact() -> None:
            async with database.begin() as session:
                await session.execute(text("SELECT pg_sleep(0.02)"))

        uses: list[Callable[[], Awaitable[None]]] = [read, fail, write, transact]
        tasks = [asyncio.ensure_future(uses[n % 4]()) for n in range(80)]
        for n, task in enumerate(tasks):
            if n % 3 == 0:
                asyncio.get_running_loop().call_later(n / 500, task.cancel)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert database.pool_status().in_use == 0
        slots = slots_of(database)
        assert tuple(slots._free) == slots._supplies
        assert slots.waiting == 0


async def test_tasks_with_a_common_ancestor_that_had_a_session_are_not_nested(database_url: str) -> None:
    """A connection of one task doesn't count for the others."""
    async with Database(database_url, pool_size=8, max_overflow=0, pool_timeout=10) as database:
        async with database.session() as session:
            await session.execute(text("SELECT 1"))
        inside, finish = 0, asyncio.Event()

        async def hold(use: str) -> None:
            nonlocal inside
            if use == "session":
                async with database.session_factory() as session:
                    await session.execute(text("SELECT 1"))
                    inside += 1
                    await finish.wait()
            elif use == "read":
                await database.read(lambda connection: connection.execute(text("SELECT pg_sleep(0.01)")))
            else:
                await database.ping()

        tasks = [asyncio.create_task(hold(use)) for use in ("session", "read", "ping") * 20]
        while (
            sum(task.done() for task in tasks) < 20 or inside < 5
        ):  # all reads are done, and the maximum of sessions is open
            await asyncio.sleep(0.001)
        assert (inside, slots_of(database).limit(Priority.SESSION)) == (5, 5)
        finish.set()
        await asyncio.gather(*tasks)
