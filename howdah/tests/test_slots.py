"""The slots of the pool: how they are divided, granted and released."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import TypeVar
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from howdah._connections import slots as slots_module
from howdah._connections.slots import Priority, Slot, Slots, new_batch_context, start_slot_record

ResultT = TypeVar("ResultT")


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
        assert slots.waiting == 0


class TestWaiters:
    """The waiter that gets a released slot. There is one slot for sessions, and all four slots are taken."""

    @pytest.fixture
    async def taken(self) -> list[Slot]:
        self.slots = Slots(pool_size=4, max_overflow=0)
        self.order: list[str] = []
        return [await in_new_context(lambda: self.slots.take(Priority.READ, 1)) for _ in range(4)][::-1]

    async def wait(self, name: str, priority: Priority) -> Slot:
        slot = await self.slots.take(priority, 5)
        self.order.append(name)
        return slot

    async def start(self, name: str, priority: Priority, context: Context | None = None) -> asyncio.Task[Slot]:
        task = asyncio.create_task(self.wait(name, priority), context=context or Context())
        await asyncio.sleep(0)
        return task

    async def start_holder(self, name: str, priority: Priority) -> tuple[Slot, asyncio.Task[Slot]]:
        """A task that holds a slot of another pool and waits for a second one of this pool."""

        async def hold() -> tuple[Slot, asyncio.Task[Slot]]:
            start_slot_record()
            held = await Slots(pool_size=1, max_overflow=0).take(Priority.SESSION, 1)
            task = asyncio.create_task(self.wait(name, priority))
            await asyncio.sleep(0)
            return held, task

        return await in_new_context(hold)

    async def release_all(self, taken: list[Slot]) -> list[str]:
        for slot in taken:
            self.slots.release(slot)
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        return self.order

    async def test_that_hold_a_connection_come_first_because_others_wait_for_them(self, taken: list[Slot]) -> None:
        first = await self.start("first", Priority.SESSION)
        _, holder = await self.start_holder("holder", Priority.NESTED)
        second = await self.start("second", Priority.SESSION)
        assert await self.release_all(taken[:1]) == ["holder"]
        self.slots.release(await holder)
        self.slots.release(await first)
        await second
        assert self.order == ["holder", "first", "second"]

    async def test_control_in_order_of_arrival_alone_they_come_after_new_sessions(self, taken: list[Slot]) -> None:
        with mock.patch.object(slots_module, "_is_waited_for", return_value=False):
            await self.start("first", Priority.SESSION)
            await self.start_holder("holder", Priority.NESTED)
            assert await self.release_all(taken[:1]) == ["first"]

    async def test_of_a_batch_come_first(self, taken: list[Slot]) -> None:
        await self.start("first", Priority.SESSION)
        await self.start("batch", Priority.BATCH, new_batch_context())
        assert await self.release_all(taken[:1]) == ["batch"]

    async def test_of_the_same_kind_and_different_priorities_are_served_in_order_of_arrival(
        self, taken: list[Slot]
    ) -> None:
        waiting = [await self.start("session", Priority.SESSION), await self.start("read", Priority.READ)]
        assert await self.release_all(taken[:1]) == ["session"]
        self.slots.release(await waiting[0])
        await waiting[1]

    async def test_for_a_reserve_are_served_at_once_although_sessions_wait_longer(self, taken: list[Slot]) -> None:
        sessions = [await self.start(f"session {n}", Priority.SESSION) for n in range(3)]
        await self.start("nested", Priority.NESTED)
        await self.start("batch", Priority.BATCH)
        await self.start("read", Priority.READ)
        assert await self.release_all(taken[1:]) == ["nested", "batch", "read"]
        assert not any(task.done() for task in sessions)

    async def test_that_come_while_others_wait_never_overtake_them(self, taken: list[Slot]) -> None:
        """The released slot is assigned before a task that runs next can see it."""
        waiting = await self.start("waiting", Priority.SESSION)
        self.slots.release(taken[0])
        late = asyncio.create_task(self.wait("late", Priority.SESSION), context=Context())
        self.slots.release(await waiting)
        await late
        assert self.order == ["waiting", "late"]


async def in_new_context(work: Callable[[], Awaitable[ResultT]]) -> ResultT:
    async def run() -> ResultT:
        return await work()

    return await asyncio.create_task(run(), context=Context())


ACTIONS = st.one_of(
    st.tuples(st.just("take"), st.sampled_from(Priority), st.booleans()),
    st.tuples(st.sampled_from(["release", "cancel", "expire", "run"]), st.integers(0, 9), st.booleans()),
)


@given(st.lists(ACTIONS, max_size=80))
def test_no_slot_is_lost_and_no_waiter_is_overtaken(actions: list[tuple[str, int, bool]]) -> None:
    """The tasks run only at the action `run`, so a slot, a cancellation and a timeout can coincide."""
    asyncio.run(_Model().check(actions))


class _Model:
    def __init__(self) -> None:
        self.slots = Slots(pool_size=4, max_overflow=1)
        self.tasks: list[asyncio.Task[Slot]] = []
        self.granted: dict[tuple[bool, int], list[int]] = {}

    async def check(self, actions: list[tuple[str, int, bool]]) -> None:
        for action, value, is_batch in actions:
            if action == "take":
                context = new_batch_context() if is_batch else Context()
                taking = self.take(len(self.tasks), Priority(value), is_batch)
                self.tasks.append(asyncio.create_task(taking, context=context))
            elif action == "release" and (held := self.held()):
                self.slots.release(held[value % len(held)])
            elif action == "cancel" and self.tasks:
                self.tasks[value % len(self.tasks)].cancel()
            elif action == "expire" and (waiters := self.waiters()):
                slots_module._expire(waiters[value % len(waiters)][1])
            else:
                await self.run_tasks()
            self.check_that_no_free_slot_has_a_waiter()
        await self.run_tasks()
        while self.slots.waiting:
            self.slots.release(self.held()[0])
            await self.run_tasks()
        for slot in self.held():
            self.slots.release(slot)
        assert tuple(self.slots._free) == self.slots._supplies
        for numbers in self.granted.values():
            assert numbers == sorted(numbers)

    async def take(self, number: int, priority: Priority, is_batch: bool) -> Slot:
        slot = await self.slots.take(priority, 60)
        self.granted.setdefault((is_batch, priority), []).append(number)
        return slot

    async def run_tasks(self) -> None:
        for _ in range(3):
            await asyncio.sleep(0)

    def held(self) -> list[Slot]:
        done = [task for task in self.tasks if task.done() and not task.cancelled() and task.exception() is None]
        return [task.result() for task in done if not task.result().is_released]

    def waiters(self) -> list[tuple[int, asyncio.Future[Slot]]]:
        queues = [*enumerate(self.slots._first._queues), *enumerate(self.slots._others._queues)]
        return [(priority, waiter) for priority, queue in queues for waiter in queue.values() if not waiter.done()]

    def check_that_no_free_slot_has_a_waiter(self) -> None:
        for priority, _ in self.waiters():
            assert not any(self.slots._free[: priority + 1])
