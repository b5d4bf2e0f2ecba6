"""Batches on a database that is locked, frozen or lost: every task has an answer in time."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from unittest import mock

import pytest
from sqlalchemy import func, select, text

from howdah import (
    Coalescer,
    ConnectionFailed,
    Database,
    JsonView,
    LockTimeout,
    OutcomeUnknown,
    QueueTimeout,
    ResultTimeout,
    Unavailable,
    bulk,
)
from howdah_tests.support.sample_models import Counter, User
from howdah_tests.support.sample_rows import make_users
from howdah_tests.support.view_schemas import UserOut
from howdah_tests.support.waiting import until, until_waiting


@asynccontextmanager
async def frozen(database: Database, pid: int) -> AsyncIterator[None]:
    """Stop the backend with this process id, which must be one of this test's own connections."""
    try:
        os.kill(pid, signal.SIGSTOP)
    except PermissionError:
        pytest.skip("this user must not send signals to the server's processes")
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("splits", [False, True])
async def test_with_a_locked_table_all_reads_have_an_answer_after_few_statements(
    committed_url: str, committed_database: Database, splits: bool
) -> None:
    """Control: if a batch is split after a timeout, nearly every row costs one more statement and one more timeout."""
    async with committed_database.begin() as session:
        ids = await make_users(session, 64)
    async with (
        Database(committed_url, lock_timeout=0.05) as database,
        JsonView(User, UserOut).open(database, submit_timeout=1) as users,
        committed_database.session() as holder,
    ):
        await users.get(ids[0])
        before = users.status().batches
        await holder.execute(text("LOCK TABLE users"))
        with mock.patch("howdah.coalescing._NOT_OF_ONE_ITEM", () if splits else (Unavailable,)):
            async with asyncio.timeout(30):
                answers = await asyncio.gather(*map(users.get, ids), return_exceptions=True)
        batches = users.status().batches - before
        await holder.rollback()
        assert {type(answer) for answer in answers} <= {LockTimeout, QueueTimeout, *([ResultTimeout] if splits else [])}
        assert (batches > 4) if splits else (batches <= 2)
        assert await users.get(ids[1])


async def test_with_a_frozen_backend_every_waiter_has_an_answer_and_the_next_batch_uses_another_connection(
    committed_url: str,
) -> None:
    pids: list[int] = []

    async with Database(committed_url) as database:

        async def apply(items: Sequence[int]) -> Sequence[int]:
            async with database.autocommit() as connection:
                pids.append(await connection.scalar(select(func.pg_backend_pid())) or 0)
            return items

        async with Coalescer(apply, submit_timeout=0.3, max_batch_size=10) as coalescer:
            assert await coalescer.submit(0) == 0
            async with frozen(database, pids[0]), asyncio.timeout(10):
                answers = await asyncio.gather(*map(coalescer.submit, range(50)), return_exceptions=True)
                assert all(isinstance(answer, OutcomeUnknown | QueueTimeout) for answer in answers)
                assert sum(isinstance(answer, OutcomeUnknown) for answer in answers) == 10, "one batch was sent"

                async def works() -> bool:
                    try:
                        return await coalescer.submit(1) == 1
                    except Unavailable:
                        return False

                await until(works)  # as soon as the frozen batch has ended
            assert pids[-1] != pids[0]


async def test_a_write_that_waited_too_long_in_the_queue_is_not_written_later(
    committed_url: str, committed_database: Database
) -> None:
    async with Database(committed_url) as database:

        async def apply(values: Sequence[int]) -> Sequence[int]:
            async with database.begin() as session:
                await bulk.insert_many(session, Counter, [{"value": value} for value in values])
            return values

        async with Coalescer(apply, submit_timeout=0.3, batch_timeout=9, max_batch_size=1) as coalescer:
            async with committed_database.session() as holder:
                await holder.execute(text("LOCK TABLE counters IN SHARE MODE"))
                tasks = [asyncio.create_task(coalescer.submit(value)) for value in (1, 2, 3)]
                await until_waiting(committed_database)
                answers = await asyncio.gather(*tasks, return_exceptions=True)
                assert isinstance(answers[0], OutcomeUnknown)
                assert [type(answer) for answer in answers[1:]] == [QueueTimeout, QueueTimeout]
                await holder.rollback()
            assert await coalescer.submit(4) == 4
    async with committed_database.session() as session:
        assert sorted(await session.scalars(select(Counter.value))) == [1, 4]


async def test_without_a_server_the_whole_queue_fails_after_the_attempts_of_one_batch() -> None:
    async with (
        Database("postgresql://127.0.0.1:1/nowhere") as database,
        JsonView(User, UserOut).open(database, workers=1, max_batch_size=1) as users,
    ):
        keys = [f"01977f1e-7c3a-7000-8000-{n:012}" for n in range(200)]
        answers = await asyncio.gather(*map(users.get, keys), return_exceptions=True)
        assert {type(answer) for answer in answers} == {ConnectionFailed}
        assert users.status().batches == 3


async def test_a_view_reader_closes_in_time_if_its_backend_is_frozen(committed_url: str) -> None:
    async with Database(committed_url) as database:
        users = JsonView(User, UserOut).open(database, close_timeout=0.1)
        with pytest.raises(Exception, match="no User"):
            await users.get("01977f1e-7c3a-7000-8000-000000000000")
        pid = await database.read(lambda connection: connection.scalar(select(func.pg_backend_pid())))
        assert pid is not None
        async with frozen(database, pid), asyncio.timeout(10):
            waiting = asyncio.create_task(users.get("01977f1e-7c3a-7000-8000-000000000000"))
            while not users.status().running:
                await asyncio.sleep(0)
            await users.aclose()
            assert isinstance(await asyncio.gather(waiting, return_exceptions=True), list)
            assert isinstance(waiting.exception(), Unavailable)
