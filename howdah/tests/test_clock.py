"""`DatabaseClock` is never ahead of the database's clock, even if the clocks of the process are changed."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import DatabaseClock

START = datetime(2026, 1, 1, tzinfo=UTC)


class Monotonic:
    """A monotonic clock that the test sets."""

    def __init__(self) -> None:
        self.seconds = 1_000.0

    def __call__(self) -> float:
        return self.seconds


def test_the_time_is_unknown_until_the_clock_has_learned_one() -> None:
    clock = DatabaseClock()
    assert clock.now() is None
    clock.learn(START)
    assert clock.now() is not None
    clock.forget()
    assert clock.now() is None


def test_the_clock_is_slightly_slower_than_the_monotonic_clock() -> None:
    """So it isn't ahead of a database whose clock is slowed down."""
    monotonic = Monotonic()
    clock = DatabaseClock(monotonic=monotonic)
    clock.learn(START)
    monotonic.seconds += 10
    assert clock.now() == START + timedelta(seconds=9.99)


def test_a_late_time_does_not_set_the_clock_back() -> None:
    monotonic = Monotonic()
    clock = DatabaseClock(monotonic=monotonic)
    clock.learn(START)
    monotonic.seconds += 2
    clock.learn(START + timedelta(seconds=1))  # the message took a second
    assert clock.now() == START + timedelta(seconds=1.998)
    clock.learn(START + timedelta(seconds=1.999))
    assert clock.now() == START + timedelta(seconds=1.999)


def test_a_time_that_was_learned_over_a_minute_ago_is_not_used() -> None:
    monotonic = Monotonic()
    clock = DatabaseClock(monotonic=monotonic)
    clock.learn(START)
    monotonic.seconds += 60.5
    assert clock.now() is None
    clock.learn(START + timedelta(seconds=5))  # for example from a standby that was promoted
    assert clock.now() == START + timedelta(seconds=5)


async def test_the_clock_is_not_ahead_of_postgresql(session: AsyncSession) -> None:
    clock = DatabaseClock()
    at = select(func.clock_timestamp())
    for _ in range(20):
        clock.learn((await session.execute(at)).scalar_one())
        await asyncio.sleep(0)
        known = clock.now()
        assert known is not None
        later = (await session.execute(at)).scalar_one()
        assert later - timedelta(seconds=5) < known <= later
