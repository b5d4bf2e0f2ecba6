"""Each waiter of a Coalescer has an answer in time, whatever its batch does."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Sequence
from unittest import mock

import pytest

from howdah import (
    BatchAbandoned,
    Coalescer,
    CoalescerClosed,
    HowdahError,
    LockTimeout,
    OutcomeUnknown,
    PoolExhausted,
    QueueTimeout,
    ReadOnly,
    ResultTimeout,
    StatementTimeout,
)
from howdah._scoped_coalescing import ScopedCoalescers
from howdah.errors import ConnectionFailed, DatabaseError, SerializationFailure
from howdah_tests.support.batch_recorder import BatchRecorder, until


def of_database(kind: type[DatabaseError]) -> DatabaseError:
    return kind("SELECT 1", None, Exception("as in PostgreSQL"))


async def test_an_item_that_waits_too_long_in_the_queue_is_never_sent() -> None:
    recorder = BatchRecorder()
    async with Coalescer(recorder, submit_timeout=0.05, batch_timeout=9) as coalescer:
        running = asyncio.create_task(coalescer.submit("a"))
        await recorder.wait_for_batches(1)
        results = await asyncio.gather(*map(coalescer.submit, "bc"), return_exceptions=True)
        assert [type(result) for result in results] == [QueueTimeout, QueueTimeout]
        assert not any(isinstance(result, OutcomeUnknown) for result in results)
        assert coalescer.status().waiting == 0
        recorder.release(9)
        with pytest.raises(ResultTimeout, match="may be written"):
            await running
        assert await coalescer.submit("d") == "D"
        assert coalescer.status().expired == 3
    assert recorder.batches == [["a"], ["d"]]


async def test_the_deadline_of_a_waiter_does_not_cancel_the_batch_for_the_others() -> None:
    recorder = BatchRecorder()
    async with Coalescer(recorder, key=lambda item: item) as coalescer:
        patient = [asyncio.create_task(coalescer.submit(letter)) for letter in "ab"]
        with pytest.raises(ResultTimeout) as caught:
            await coalescer.submit("a", timeout=0.02)
        assert isinstance(caught.value, OutcomeUnknown)
        recorder.release(1)
        assert await asyncio.gather(*patient) == ["A", "B"]
    assert recorder.batches == [["a", "b"]]


async def test_an_item_with_several_waiters_stays_in_the_queue_for_the_others() -> None:
    recorder = BatchRecorder()
    async with Coalescer(recorder, key=lambda item: item) as coalescer:
        first = asyncio.create_task(coalescer.submit("a"))
        await recorder.wait_for_batches(1)
        patient = asyncio.create_task(coalescer.submit("b"))
        with pytest.raises(QueueTimeout):
            await coalescer.submit("b", timeout=0.02)
        assert coalescer.status().waiting == 1
        recorder.release(2)
        assert [*await asyncio.gather(first, patient)] == ["A", "B"]


async def test_an_item_with_a_timeout_of_zero_or_less_is_rejected() -> None:
    recorder = BatchRecorder(waiting=False)
    async with Coalescer(recorder) as coalescer:
        for timeout in (0, -1):
            with pytest.raises(QueueTimeout):
                await coalescer.submit("a", timeout=timeout)
        assert await coalescer.submit("b", timeout=1_000) == "B"
    assert recorder.batches == [["b"]]


async def test_a_frozen_batch_ends_and_never_more_than_the_workers_run() -> None:
    """By default `batch_timeout` is `submit_timeout`, so no task waits for the batch any more."""
    recorder = BatchRecorder()
    async with Coalescer(recorder, submit_timeout=0.05, workers=2, max_batch_size=1) as coalescer:
        for _ in range(3):
            results = await asyncio.gather(*map(coalescer.submit, "abcdef"), return_exceptions=True)
            assert all(isinstance(result, OutcomeUnknown | QueueTimeout) for result in results)
        await until(lambda: coalescer.status().running == 0)
    assert recorder.max_running == 2
    assert recorder.running == 0


@pytest.mark.parametrize(
    "error",
    [
        of_database(LockTimeout),
        of_database(StatementTimeout),
        of_database(ReadOnly),
        of_database(SerializationFailure),
        PoolExhausted("none is free"),
        TimeoutError(),
        ConnectionResetError(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_batch_is_not_split_after_an_error_that_no_single_item_causes(error: Exception) -> None:
    """Control: an error of one item splits the batch down to that item."""
    raised = error
    sizes: list[int] = []

    async def apply(items: Sequence[int]) -> Sequence[int]:
        sizes.append(len(items))
        raise raised

    async with Coalescer(apply, bisect_on_error=True, max_attempts=1) as coalescer:
        results = await asyncio.gather(*map(coalescer.submit, range(8)), return_exceptions=True)
        assert {type(result) for result in results} == {type(error)}
        assert sizes == [8]
        raised = HowdahError()
        await asyncio.gather(*map(coalescer.submit, range(8)), return_exceptions=True)
        assert len(sizes) == 1 + 15


async def test_an_item_without_waiters_is_not_sent_again_when_its_batch_is_split() -> None:
    batches: list[list[int]] = []
    go = asyncio.Event()

    async def apply(items: Sequence[int]) -> Sequence[int]:
        batches.append(list(items))
        if 3 in items:
            await go.wait()
            raise HowdahError
        return items

    async with Coalescer(apply, bisect_on_error=True) as coalescer:
        patient = [asyncio.create_task(coalescer.submit(n)) for n in (0, 3)]
        with pytest.raises(ResultTimeout):
            await coalescer.submit(1, timeout=0.02)
        go.set()
        results = await asyncio.gather(*patient, return_exceptions=True)
    assert results[0] == 0
    assert batches == [[1, 0, 3], [0, 3], [0], [3]]


@pytest.mark.parametrize("error", [of_database(ConnectionFailed), PoolExhausted("none is free")])
@pytest.mark.parametrize("other_succeeds", [False, True])
async def test_without_a_connection_the_whole_queue_fails_at_once(error: Exception, other_succeeds: bool) -> None:
    """Control: if another batch got a connection in the meantime, the queue goes on."""
    calls, gates = 0, [asyncio.Event(), asyncio.Event()]

    async def apply(items: Sequence[int]) -> Sequence[int]:
        nonlocal calls
        calls += 1
        if items[0] < 2:
            await gates[items[0]].wait()
        if items[0] == 0:
            raise error
        return items

    async with Coalescer(apply, workers=2, max_batch_size=1, max_attempts=1) as coalescer:
        tasks = [asyncio.create_task(coalescer.submit(n)) for n in range(6)]
        await until(lambda: calls == 2)
        if other_succeeds:
            gates[1].set()
            await tasks[1]
        gates[0].set()
        results = await asyncio.gather(*tasks[:1], *tasks[2:], return_exceptions=True)
        gates[1].set()
    failed = [type(result) for result in results if isinstance(result, Exception)]
    assert failed == [type(error)] * (1 if other_succeeds else 5)
    assert calls == (6 if other_succeeds else 2)


async def test_a_retry_that_cannot_end_before_the_deadline_is_not_started() -> None:
    """Control: with more time there are `max_attempts` attempts."""
    calls = 0

    async def apply(items: Sequence[int]) -> Sequence[int]:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0.06)
        raise of_database(ConnectionFailed)

    for submit_timeout, expected in ((0.1, 1), (9, 3)):
        calls = 0
        async with Coalescer(apply, submit_timeout=submit_timeout) as coalescer:
            with pytest.raises(ConnectionFailed):
                await coalescer.submit(1)
        assert calls == expected


async def test_closing_ends_in_time_if_a_batch_is_frozen() -> None:
    recorder = BatchRecorder()
    coalescer = Coalescer(recorder, max_batch_size=1, close_timeout=0.05)
    tasks = [asyncio.create_task(coalescer.submit(letter)) for letter in "ab"]
    await recorder.wait_for_batches(1)
    async with asyncio.timeout(5):
        await coalescer.aclose()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [BatchAbandoned, CoalescerClosed]
    assert (recorder.batches, recorder.running) == ([["a"]], 0)


async def test_closing_waits_only_briefly_for_a_batch_without_waiters() -> None:
    recorder = BatchRecorder()
    coalescer = Coalescer(recorder, close_timeout=1_000)
    task = asyncio.create_task(coalescer.submit("a"))
    await recorder.wait_for_batches(1)
    task.cancel()
    await asyncio.wait([task])
    with mock.patch("howdah.coalescing._UNOBSERVED_CLOSE_SECONDS", 0.02):
        async with asyncio.timeout(5):
            await coalescer.aclose()
    assert recorder.running == 0


async def test_closing_ends_in_time_even_if_a_batch_ignores_its_cancellation() -> None:
    go = asyncio.Event()

    async def apply(items: Sequence[int]) -> Sequence[int]:
        while not go.is_set():
            try:
                await go.wait()
            except asyncio.CancelledError:
                continue
        return items

    coalescer = Coalescer(apply, close_timeout=0.02)
    task = asyncio.create_task(coalescer.submit(1))
    await until(lambda: coalescer.status().running == 1)
    with mock.patch("howdah.coalescing._CANCEL_SECONDS", 0.02):
        async with asyncio.timeout(5):
            await coalescer.aclose()
    with pytest.raises(BatchAbandoned):
        await task
    go.set()
    await until(lambda: coalescer.status().running == 0)


async def test_all_waiters_share_one_timer() -> None:
    """A timer for each waiter would cost as much as the rest of `submit`."""
    loop, recorder = asyncio.get_running_loop(), BatchRecorder(waiting=False)
    async with Coalescer(recorder) as coalescer:
        with mock.patch.object(loop, "call_at", wraps=loop.call_at) as call_at:
            for _ in range(5):
                await asyncio.gather(*map(coalescer.submit, "abc"))
        deadlines = [call for call in call_at.call_args_list if "DeadlineTimer" in repr(call)]
    assert len(deadlines) == 1


async def test_a_scope_without_waiters_is_not_kept_in_memory_by_its_timer() -> None:
    scopes: ScopedCoalescers[str, str] = ScopedCoalescers(Coalescer(BatchRecorder()))
    submitted = asyncio.ensure_future(scopes.submit("tenant", BatchRecorder(waiting=False), "a"))
    await asyncio.sleep(0)
    (created,) = [weakref.ref(used.coalescer) for used in scopes._by_scope.values()]
    gc.disable()  # it isn't in a cycle
    try:
        assert await submitted == "A"
        await asyncio.sleep(0)
        assert created() is None
    finally:
        gc.enable()


async def test_closing_all_scopes_waits_for_the_batch_of_a_scope_whose_waiters_were_cancelled() -> None:
    """Otherwise the batch would go on after the close of the database, and lose its connection."""
    scopes: ScopedCoalescers[str, str] = ScopedCoalescers(Coalescer(BatchRecorder()))
    recorder = BatchRecorder()
    submitted = asyncio.create_task(scopes.submit("tenant", recorder, "a"))
    await recorder.wait_for_batches(1)
    submitted.cancel()
    with pytest.raises(asyncio.CancelledError):
        await submitted
    assert (len(scopes), scopes.status().running) == (0, 1)
    closing = asyncio.create_task(scopes.aclose())
    await asyncio.sleep(0.05)  # nothing shows that it waits
    assert not closing.done()
    recorder.release(1)
    await closing
    assert recorder.running == 0
