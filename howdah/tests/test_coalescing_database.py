"""A Coalescer that writes to PostgreSQL: rejected rows, killed backends, an exhausted pool."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import func, select, text

from howdah import Coalescer, ConnectionLost, Database, PoolExhausted, UniqueViolation, bulk, run_transaction
from howdah_tests.support.batch_recorder import until
from howdah_tests.support.sample_models import Counter


def inserting(database: Database) -> Any:
    async def apply(rows: Sequence[dict[str, int]]) -> Sequence[int]:
        async def write(session: Any) -> Sequence[int]:
            return (await bulk.insert_many(session, Counter, rows)).keys

        return await run_transaction(database, write)

    return apply


async def count(database: Database) -> int:
    async with database.session() as session:
        return (await session.scalars(select(func.count()).select_from(Counter))).one()


async def test_many_writers_share_few_transactions_and_get_results_after_the_commit(
    committed_database: Database,
) -> None:
    async with Coalescer(inserting(committed_database)) as coalescer:

        async def write(id: int) -> None:
            assert await coalescer.submit({"id": id, "value": id}) == id
            async with committed_database.session() as session:
                assert await session.get(Counter, id) is not None

        await asyncio.gather(*(write(id) for id in range(1, 201)))
        assert coalescer.status().batches < 100
    assert await count(committed_database) == 200


async def test_with_bisect_on_error_only_the_rejected_rows_fail(committed_database: Database) -> None:
    """Control: without `bisect_on_error` all rows of the batch fail."""
    async with committed_database.begin() as session:
        await bulk.insert_many(session, Counter, [{"id": 7}, {"id": 13}])
    for bisect_on_error, stored in ((False, 2), (True, 20)):
        inserts = Coalescer(
            inserting(committed_database),
            bisect_on_error=bisect_on_error,
            submit_timeout=60,  # a busy machine may need more than 10 s for the halves
        )
        async with inserts as coalescer:
            rows = ({"id": id} for id in range(1, 21))
            results = await asyncio.gather(*map(coalescer.submit, rows), return_exceptions=True)
        assert await count(committed_database) == stored, results
    assert [id for id, result in enumerate(results, 1) if isinstance(result, UniqueViolation)] == [7, 13]
    assert sum(isinstance(result, int) for result in results) == 18


async def test_a_killed_backend_fails_its_batch_and_not_the_next_one(committed_database: Database) -> None:
    pids: list[int] = []

    async def apply(seconds: Sequence[float]) -> Sequence[int]:
        async with committed_database.session() as session:
            pids.append((await session.scalars(select(func.pg_backend_pid()))).one())
            await session.execute(text("SELECT pg_sleep(:s)"), {"s": max(seconds)})
        return [pids[-1]] * len(seconds)

    async with Coalescer(apply) as coalescer:
        waiting = [asyncio.create_task(coalescer.submit(60)) for _ in range(3)]
        await wait_for_server(lambda: len(pids) == 1)
        async with committed_database.session() as session:
            await session.execute(select(func.pg_terminate_backend(pids[0])))
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(result) for result in results] == [ConnectionLost] * 3
        assert await coalescer.submit(0) == pids[1] != pids[0]
    assert committed_database.pool_status().in_use == 0


async def test_an_exhausted_pool_fails_every_waiter_within_the_timeout(committed_url: str) -> None:
    async with Database(committed_url, pool_size=1, max_overflow=0, pool_timeout=0.05) as database:
        async with database.session() as holder, Coalescer(inserting(database)) as coalescer:
            await holder.connection()
            results = await asyncio.gather(*(coalescer.submit({"value": n}) for n in range(5)), return_exceptions=True)
            assert [type(result) for result in results] == [PoolExhausted] * 5
            await holder.close()
            assert await coalescer.submit({"value": 1}) > 0
        assert database.pool_status().in_use == 0


async def wait_for_server(condition: Any) -> None:
    """Wait for something that the server does."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def test_a_coalescer_works_under_uvloop() -> None:
    uvloop = pytest.importorskip("uvloop", reason="uvloop isn't installed")

    async def main() -> list[int]:
        async def apply(items: Sequence[int]) -> Sequence[int]:
            await asyncio.sleep(0)
            return [-item for item in items]

        async with Coalescer(apply, max_batch_size=7, workers=2) as coalescer:
            tasks = [asyncio.create_task(coalescer.submit(n)) for n in range(50)]
            await until(lambda: coalescer.status().batches > 0)
            tasks[0].cancel()
            return [
                result for result in await asyncio.gather(*tasks, return_exceptions=True) if isinstance(result, int)
            ]

    assert uvloop.run(main())[-1] == -49
