"""The slots of the pool: how they are divided, granted and released."""

from __future__ import annotations

import asyncio

import pytest

from howdah._connections.slots import Priority, Slots


@pytest.mark.parametrize(
    ("pool_size", "max_overflow", "limits"),
    [
        (20, 10, (25, 27, 29, 30)),
        (1, 10, (8, 9, 10, 11)),
        (4, 0, (1, 2, 3, 4)),
        (2, 1, (1, 2, 2, 3)),
        (1, 1, (1, 2, 2, 2)),
        (1, 0, (1, 1, 1, 1)),
    ],
)
def test_a_quarter_is_reserved_and_at_least_one_connection_is_for_sessions(
    pool_size: int, max_overflow: int, limits: tuple[int, int, int, int]
) -> None:
    slots = Slots(pool_size=pool_size, max_overflow=max_overflow)
    assert tuple(map(slots.limit, Priority)) == limits


class TestSlots:
    @pytest.fixture
    def slots(self) -> Slots:
        """One slot for each priority."""
        return Slots(pool_size=4, max_overflow=0)

    async def test_are_granted_in_order_of_arrival(self, slots: Slots) -> None:
        taken = await slots.take(Priority.SESSION, 1)
        order: list[int] = []

        async def use(number: int) -> None:
            slot = await slots.take(Priority.SESSION, 5)
            order.append(number)
            slots.release(slot)

        tasks = [asyncio.create_task(use(n)) for n in range(10)]
        await asyncio.sleep(0)
        slots.release(taken)
        late = asyncio.create_task(use(10))
        await asyncio.gather(*tasks, late)
        assert order == list(range(11))

    async def test_of_the_reserves_are_not_granted_to_sessions(self, slots: Slots) -> None:
        session = await slots.take(Priority.SESSION, 1)
        with pytest.raises(TimeoutError):
            await slots.take(Priority.SESSION, 0.01)
        nested = await slots.take(Priority.NESTED, 0.01)
        with pytest.raises(TimeoutError):
            await slots.take(Priority.NESTED, 0.01)
        batch = await slots.take(Priority.BATCH, 0.01)
        with pytest.raises(TimeoutError):
            await slots.take(Priority.BATCH, 0.01)
        read = await slots.take(Priority.READ, 0.01)
        with pytest.raises(TimeoutError):
            await slots.take(Priority.READ, 0.01)
        waiting = asyncio.create_task(slots.take(Priority.SESSION, 5))
        await asyncio.sleep(0)
        for reserved in (nested, batch, read):
            slots.release(reserved)
        await asyncio.sleep(0)
        assert not waiting.done()
        slots.release(session)
        assert (await waiting).supply is Priority.SESSION

    async def test_of_all_supplies_are_granted_to_reads(self, slots: Slots) -> None:
        kinds = [(await slots.take(Priority.READ, 0.01)).supply for _ in range(4)]
        assert kinds == [Priority.READ, Priority.BATCH, Priority.NESTED, Priority.SESSION]

    async def test_are_released_only_once(self, slots: Slots) -> None:
        slot = await slots.take(Priority.SESSION, 1)
        slots.release(slot)
        slots.release(slot)
        assert slots._free == [1, 1, 1, 1]

    async def test_of_cancelled_and_late_waiters_are_not_lost(self, slots: Slots) -> None:
        taken = await slots.take(Priority.SESSION, 1)
        cancelled = asyncio.create_task(slots.take(Priority.SESSION, 5))
        granted = asyncio.create_task(slots.take(Priority.SESSION, 5))
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(TimeoutError):
            await slots.take(Priority.SESSION, 0.01)
        slots.release(taken)  # the slot goes to the second task, which is cancelled before it runs
        granted.cancel()
        for task in (cancelled, granted):
            with pytest.raises(asyncio.CancelledError):
                await task
        assert slots._free == [1, 1, 1, 1]
        assert not slots._waiting
