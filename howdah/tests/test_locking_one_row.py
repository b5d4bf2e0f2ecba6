"""`lock_one` returns the refreshed object of one locked row, if the locked row meets a criterion."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from howdah import AsyncRepository, Database, LockTimeout, NotFound, lock_one, uuid7
from howdah.testing import assert_statements
from howdah_tests.support.sample_models import Counter, Order, User
from howdah_tests.support.sample_rows import make_orders
from howdah_tests.support.waiting import until_waiting

other = aliased(Counter)
# Each is true for counter 1 as long as the value of counters 1 and 2 is 0.
CRITERIA = {
    "own column": Counter.value == 0,
    "subquery": select(other.value).where(other.id == 2).scalar_subquery() == 0,
    "function": func.abs(Counter.value) == 0,
    "other table": (other.id == Counter.id + 1) & (other.value == 0),
}


@pytest.fixture
async def counters(committed_database: Database) -> Database:
    async with committed_database.begin() as session:
        session.add_all([Counter(id=1), Counter(id=2)])
    return committed_database


async def test_the_object_is_refreshed_by_one_statement(session: AsyncSession) -> None:
    session.add(counter := Counter(id=1))
    await session.flush()
    await session.execute(update(Counter).values(value=5), execution_options={"synchronize_session": False})
    with assert_statements(session, 1) as sent:
        assert await AsyncRepository(session, Counter).lock_one(1, where=Counter.value == 5) is counter
    assert "FOR UPDATE" in sent[0]
    assert counter.value == 5
    assert await lock_one(session, Counter, 1) is counter


async def test_a_missing_or_excluded_row_is_not_found(session: AsyncSession) -> None:
    (key,) = await make_orders(session, 1)
    visible = Order.user.has(User.email == "user0@example.org")
    assert (await lock_one(session, Order, key, where=visible)).id == key
    for id, where in ((uuid7(), None), (uuid7(), visible), (key, ~visible), (key, Order.total_cents > 0)):
        with pytest.raises(NotFound) as caught:
            await lock_one(session, Order, id, where=where)
        assert caught.value.keys == [id]


async def test_the_criterion_is_checked_after_the_wait_for_the_lock(counters: Database) -> None:
    for name, criterion in CRITERIA.items():
        async with counters.session() as holder, counters.session() as session:
            await holder.execute(update(Counter).values(value=7))
            waiting = asyncio.create_task(lock_one(session, Counter, 1, where=criterion))
            await until_waiting(counters)
            await holder.commit()
            with pytest.raises(NotFound):
                await waiting
            await session.rollback()
            await holder.execute(update(Counter).values(value=0))
            await holder.commit()
            assert await lock_one(session, Counter, 1, where=criterion), name


async def test_control_a_select_for_update_checks_a_subquery_on_old_rows(counters: Database) -> None:
    async with counters.session() as holder, counters.session() as session:
        await holder.execute(update(Counter).values(value=7))
        statement = select(Counter).where(Counter.id == 1, CRITERIA["subquery"]).with_for_update()
        waiting = asyncio.create_task(session.scalar(statement))
        await until_waiting(counters)
        await holder.commit()
        assert await waiting is not None


async def test_nowait_fails_at_once_and_an_excluded_row_is_not_locked(counters: Database) -> None:
    for criterion in (None, *CRITERIA.values()):
        async with counters.session() as holder, counters.session() as session:
            with pytest.raises(NotFound):
                await lock_one(holder, Counter, 1, where=Counter.value > 0)
            assert (await lock_one(session, Counter, 1, where=criterion, nowait=True)).id == 1
            with pytest.raises(LockTimeout):
                await lock_one(holder, Counter, 1, where=criterion, nowait=True)
