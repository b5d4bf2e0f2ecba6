"""Concurrent bulk writes of the same rows."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Database, DeadlockDetected, UpsertResult, bulk
from howdah_tests.support.sample_models import Counter, Order, User
from howdah_tests.support.sample_rows import make_orders, user_rows


async def test_concurrent_upserts_of_the_same_rows_create_each_row_once(committed_database: Database) -> None:
    rows = user_rows(300)

    async def upsert(order: int) -> UpsertResult:
        async with committed_database.begin() as session:
            return await bulk.upsert_many(session, User, rows[::order], on=["email"])

    results = await asyncio.gather(*(upsert(1 if i % 2 else -1) for i in range(8)))
    assert sum(result.created for result in results) == 300
    assert sum(result.unchanged for result in results) == 7 * 300


async def _race(database: Database, write: Any, *, inputs: tuple[Any, Any]) -> list[BaseException | None]:
    """Run `write(session, input)` for both inputs concurrently. Both transactions begin before the first write."""
    ready = asyncio.Barrier(2)

    async def run(rows: Any) -> None:
        async with database.begin() as session:
            await session.connection()
            await ready.wait()
            await write(session, rows)

    return await asyncio.gather(*(run(rows) for rows in inputs), return_exceptions=True)


async def test_two_updates_of_the_same_rows_in_opposite_order_do_not_deadlock(committed_database: Database) -> None:
    """Control: an executemany in the order of the input deadlocks."""
    async with committed_database.begin() as session:
        keys = (await bulk.insert_many(session, Counter, ({"value": 0} for _ in range(400)))).keys
    opposite = (keys, keys[::-1])

    async def in_key_order(session: AsyncSession, ids: list[int]) -> None:
        await bulk.update_many(session, Counter, [{"id": id, "value": 1} for id in ids])
        await bulk.update_by_key(session, Counter, ids, {"value": 2})
        await bulk.delete_many(session, Counter, [-id for id in ids])

    halfway = asyncio.Barrier(2)

    async def one_by_one(session: AsyncSession, ids: list[int]) -> None:
        await session.execute(update(Counter), [{"id": id, "value": 1} for id in ids[:200]])
        await halfway.wait()  # each has locked the rows that the other one updates next
        await session.execute(update(Counter), [{"id": id, "value": 1} for id in ids[200:]])

    for _ in range(5):
        assert await _race(committed_database, in_key_order, inputs=opposite) == [None, None]
    outcomes = await _race(committed_database, one_by_one, inputs=opposite)
    assert [type(each) for each in outcomes if each is not None] == [DeadlockDetected]


async def test_two_updates_of_many_chunks_do_not_deadlock_if_their_inputs_are_lists_or_sorted(
    committed_database: Database,
) -> None:
    """Control: with unsorted generators they can deadlock, as the docstring of `howdah.bulk` says."""
    async with committed_database.begin() as session:
        keys = (await bulk.insert_many(session, Counter, ({"value": 0} for _ in range(200)))).keys

    async def chunks(session: AsyncSession, ids: list[int]) -> None:
        await bulk.update_many(session, Counter, ({"id": id, "value": 1} for id in ids), chunk_size=20)

    async def listed(session: AsyncSession, ids: list[int]) -> None:
        await bulk.update_many(session, Counter, [{"id": id, "value": 1} for id in ids], chunk_size=20)

    for _ in range(5):
        assert await _race(committed_database, chunks, inputs=(keys, keys)) == [None, None]
        assert await _race(committed_database, listed, inputs=(keys, keys[::-1])) == [None, None]
    for _ in range(20):
        if any(
            isinstance(each, DeadlockDetected)
            for each in await _race(committed_database, chunks, inputs=(keys, keys[::-1]))
        ):
            break
    else:
        pytest.fail("the control has not deadlocked in 20 attempts")


async def test_two_upserts_of_the_same_rows_in_opposite_order_do_not_deadlock(committed_database: Database) -> None:
    async def upsert(session: AsyncSession, rows: list[dict[str, Any]]) -> None:
        await bulk.upsert_many(session, User, rows, on=["email"])

    for round in range(5):
        rows = user_rows(200, name=f"Round {round}")
        assert await _race(committed_database, upsert, inputs=(rows, rows[::-1])) == [None, None]


async def test_one_of_two_concurrent_versioned_updates_is_stale(committed_database: Database) -> None:
    async with committed_database.begin() as session:
        keys = await make_orders(session, 20)

    async def versioned(session: AsyncSession, cents: int) -> None:
        await bulk.update_many(session, Order, [{"id": key, "total_cents": cents, "version": 1} for key in keys])

    results = await _race(committed_database, versioned, inputs=(7, 8))
    assert sorted(type(result).__name__ for result in results) == ["NoneType", "StaleRow"]
    async with committed_database.session() as session:
        rows = (await session.execute(select(Order.version, Order.total_cents).distinct())).all()
        assert rows == [(2, 7 if results[0] is None else 8)]
