"""Every waiter gets an outcome, for any order of submits, cancellations and failures."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from howdah import BatchAbandoned, Coalescer, CoalescerClosed, QueueFull, Unavailable
from howdah.errors import SerializationFailure

TIMEOUT_SECONDS = 10.0
"""Much longer than a schedule of a few steps takes."""


class Rejected(Exception):
    """An item at fault."""


@dataclass
class Item:
    key: int
    submitted_at: int


@dataclass
class World:
    """The environment of a coalescer: the outcomes of its batches, and the faults that were observed."""

    workers: int
    max_batch_size: int
    keyed: bool
    bisect_on_error: bool
    now: int = 0
    running: int = 0
    outcomes: list[str] = field(default_factory=list)
    gates: list[asyncio.Event] = field(default_factory=list)
    open: bool = False
    faults: list[str] = field(default_factory=list)

    async def apply(self, items: Sequence[Item]) -> Sequence[Any]:
        began = self.now
        self.running += 1
        try:
            if self.running > self.workers:
                self.faults.append("more batches than workers")
            if not 1 <= len(items) <= self.max_batch_size:
                self.faults.append(f"a batch of {len(items)}")
            if self.keyed and len({item.key for item in items}) < len(items):
                self.faults.append("a key twice in a batch")
            gate = asyncio.Event()
            if not self.open:
                self.gates.append(gate)
                await gate.wait()
            return self._end(items, began)
        finally:
            self.running -= 1

    def _end(self, items: Sequence[Item], began: int) -> Sequence[Any]:
        outcome = self.outcomes.pop() if self.outcomes else "ok"
        if outcome == "raise":
            raise Rejected
        if outcome == "unavailable":
            raise Unavailable
        if outcome == "conflict":
            raise SerializationFailure("SELECT 1", None, Exception())
        if outcome == "cancelled":
            raise asyncio.CancelledError
        if outcome == "short":
            return []
        if outcome == "item":
            return [Rejected() if item.key % 2 else (item.key, began) for item in items]
        if outcome == "at fault" and any(item.key == 0 for item in items):
            raise Rejected
        return [(item.key, began) for item in items]

    def release(self, outcome: str) -> None:
        if self.gates:
            self.outcomes.append(outcome)
            self.gates.pop(0).set()


OUTCOMES = st.sampled_from(["ok", "ok", "raise", "unavailable", "conflict", "cancelled", "short", "item", "at fault"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(0, 4)),
        st.tuples(st.just("submit three times"), st.integers(0, 4)),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.just("release"), OUTCOMES),
        st.tuples(st.just("turn"), st.integers(1, 4)),
    ),
    max_size=40,
)
ALLOWED = (Rejected, Unavailable, SerializationFailure, BatchAbandoned, TypeError, QueueFull, CoalescerClosed)


@contextmanager
def without_waits() -> Iterator[None]:
    with mock.patch("howdah._retry._FIRST_WAIT_SECONDS", 0):
        yield


async def submit_three_times(coalescer: Coalescer[Any, Any], item: Item) -> Any:
    """Submit the item again as soon as its result arrives."""
    for _ in range(2):
        with suppress(*ALLOWED):
            await coalescer.submit(item)
    return await coalescer.submit(item)


async def run_schedule(
    world: World,
    steps: list[tuple[str, Any]],
    kind: type[Coalescer[Any, Any]],
    max_waiting: int,
    max_seconds: float = TIMEOUT_SECONDS,
) -> None:
    """Raise `AssertionError` if a waiter gets no outcome, or the outcome of another one."""
    problems: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
    tasks: list[tuple[Item, asyncio.Task[Any]]] = []
    cancelled: set[int] = set()
    coalescer = kind(
        world.apply,
        max_batch_size=world.max_batch_size,
        max_waiting=max_waiting,
        workers=world.workers,
        key=(lambda item: item.key) if world.keyed else None,
        bisect_on_error=world.bisect_on_error,
        max_attempts=2,
    )
    for what, value in steps:
        world.now += 1
        if what.startswith("submit"):
            item = Item(value, world.now)
            submitted = coalescer.submit(item) if what == "submit" else submit_three_times(coalescer, item)
            tasks.append((item, asyncio.create_task(submitted)))
        elif what == "cancel" and value < len(tasks):
            cancelled.add(value)
            tasks[value][1].cancel()
        elif what == "release":
            world.release(value)
        elif what == "turn":
            for _ in range(value):
                await asyncio.sleep(0)
    world.open = True
    while world.gates:
        world.release("ok")
    await asyncio.sleep(0)
    _, lost = await asyncio.wait(
        [asyncio.create_task(coalescer.aclose()), *(task for _, task in tasks)], timeout=max_seconds
    )
    for task in lost:
        task.cancel()
    assert not lost, "a waiter is lost"
    for number, (item, task) in enumerate(tasks):
        if task.cancelled():
            assert number in cancelled, "a waiter was cancelled by somebody else"
        elif task.exception() is not None:
            assert isinstance(task.exception(), ALLOWED)
        else:
            key, began = task.result()
            assert key == item.key, "a waiter got the result of another one"
            assert began >= item.submitted_at, "a read is older than its submit"
    status = coalescer.status()
    assert (status.waiting, status.running) == (0, 0)
    assert world.faults == []
    assert problems == []


@pytest.mark.timeout(600)
@settings(deadline=None)
@given(
    steps=STEPS,
    world=st.builds(World, st.integers(1, 3), st.integers(1, 4), st.booleans(), st.booleans()),
    max_waiting=st.integers(1, 12),
)
def test_every_waiter_gets_its_own_result_or_an_error(
    steps: list[tuple[str, Any]], world: World, max_waiting: int
) -> None:
    with without_waits():
        asyncio.run(run_schedule(world, steps, Coalescer, max_waiting))


class Forgetful(Coalescer[Any, Any]):
    """Without the fix: it doesn't look for items that were submitted while a worker ended."""

    def _worker_ended(self, worker: asyncio.Task[None]) -> None:
        self._running.discard(worker)


class Careless(Coalescer[Any, Any]):
    """Without the fix: an error ends the worker, and the waiters of its batch get no error."""

    async def _run_batches(self, loop: asyncio.AbstractEventLoop) -> None:
        self._is_worker_starting = False
        while self._queue:
            batch = self._next_batch(loop)
            for entry, result in zip(batch, await self._calls.run(self._apply, batch), strict=True):
                for waiter in entry.waiters:
                    waiter.set_result(result)


@pytest.mark.parametrize("kind", [Forgetful, Careless])
def test_control_the_property_finds_lost_waiters(kind: type[Coalescer[Any, Any]]) -> None:
    """The control for the property: these coalescers have a fault."""
    steps = [("submit three times", 1), ("turn", 3), ("release", "raise"), ("turn", 4)]
    with pytest.raises(AssertionError, match="a waiter is lost"):
        asyncio.run(run_schedule(World(1, 4, keyed=False, bisect_on_error=False), steps, kind, 10, max_seconds=0.1))
