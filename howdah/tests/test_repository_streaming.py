"""Repositories: streams read a batch at a time, and the session can be used meanwhile."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from uuid import UUID

import pytest
from sqlalchemy import func, insert, select
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import AsyncRepository, Database
from howdah.testing import assert_statements
from howdah_tests.support.sample_models import Counter, Order, User, UserRepository
from howdah_tests.support.sample_rows import user_rows


@pytest.fixture
async def counter_count(session: AsyncSession) -> int:
    numbers = select(func.generate_series(1, 20_000).label("n")).subquery()
    await session.execute(insert(Counter).from_select(["id"], select(numbers.c.n)))
    return 20_000


async def test_a_stream_returns_every_row_in_order_with_one_statement(
    session: AsyncSession, counter_count: int
) -> None:
    with assert_statements(session, 1):
        ids = [counter.id async for counter in AsyncRepository(session, Counter).stream()]
    assert ids == list(range(1, counter_count + 1))


async def test_a_stream_keeps_at_most_two_batches_in_memory(session: AsyncSession, counter_count: int) -> None:
    """Control: `list` keeps all objects in memory."""
    counters = AsyncRepository(session, Counter)
    max_in_session = 0
    async for _ in counters.stream(batch=100):
        max_in_session = max(max_in_session, len(session.identity_map))
    assert 0 < max_in_session <= 201, max_in_session  # the current batch, the next one, and the current row
    listed = await counters.list(limit=None)
    assert len(session.identity_map) == len(listed) == counter_count


async def test_a_stream_applies_the_order_the_limit_and_the_loader_options(
    users: UserRepository, twenty: list[UUID]
) -> None:
    await AsyncRepository(users.session, Order).create(user_id=twenty[19])
    statement = select(User).order_by(User.age.desc()).limit(3)
    found = [(user.age, len(user.orders)) async for user in users.stream(statement, batch=2, load=[User.orders])]
    assert found == [(19, 1), (18, 0), (17, 0)]


async def test_an_empty_stream_ends_at_once(users: UserRepository) -> None:
    assert [user async for user in users.stream()] == []


async def test_a_batch_of_no_rows_is_rejected(users: UserRepository) -> None:
    with pytest.raises(ValueError, match="batch must be at least 1"):
        await anext(users.stream(batch=0))


async def test_the_session_is_usable_during_a_stream_and_immediately_after_it(
    committed_database: Database,
) -> None:
    async with committed_database.session() as session:
        users = UserRepository(session)
        await users.create_many(user_rows(500))
        await session.commit()
        seen = 0
        async for user in users.stream(batch=10):
            await users.update(user, nickname="seen")
            seen += 1
            assert await users.count(select(User).where(User.nickname == "seen")) == seen
            if seen == 25:
                break
        assert await users.count() == 500
        await session.commit()
        assert await users.count(select(User).where(User.nickname == "seen")) == 25
    assert committed_database.pool_status().in_use == 0


async def test_a_stream_that_ends_with_an_error_or_never_ends_releases_its_connection(
    committed_database: Database,
) -> None:
    async with committed_database.session() as session:
        await UserRepository(session).create_many(user_rows(100))
        await session.commit()
    unfinished: list[AsyncIterator[User]] = []
    for _ in range(3):
        async with committed_database.session() as session:
            stream = UserRepository(session).stream(batch=10)
            await anext(stream)
            unfinished.append(stream)

    async def fail() -> None:
        async with committed_database.session() as session:
            async for user in UserRepository(session).stream(batch=10):
                raise KeyError(user.name)

    with pytest.raises(KeyError):
        await fail()
    assert committed_database.pool_status().in_use == 0
    unfinished.clear()
    gc.collect()
    async with committed_database.session() as session:
        assert await UserRepository(session).count() == 100
