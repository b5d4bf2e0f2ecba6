"""The Coalescer: how items are collected into batches, and what its status counts."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest

from howdah import Coalescer, CoalescerClosed, QueueFull
from howdah_tests.support.batch_recorder import BatchRecorder, until


async def test_an_idle_coalescer_sends_an_item_at_once_and_a_busy_one_collects_items() -> None:
    recorder = BatchRecorder()
    async with Coalescer(recorder) as coalescer:
        first = asyncio.create_task(coalescer.submit("a"))
        await recorder.wait_for_batches(1)
        rest = [asyncio.create_task(coalescer.submit(letter)) for letter in "bcd"]
        await until(lambda: coalescer.status().waiting == 3)
        assert recorder.batches == [["a"]]
        recorder.release(1)
        assert await first == "A"
        await recorder.wait_for_batches(2)
        recorder.release(1)
        assert await asyncio.gather(*rest) == ["B", "C", "D"]
    assert recorder.batches == [["a"], ["b", "c", "d"]]


async def test_items_of_the_same_moment_share_a_batch() -> None:
    recorder = BatchRecorder(waiting=False)
    async with Coalescer(recorder, workers=4) as coalescer:
        assert await asyncio.gather(*(coalescer.submit(letter) for letter in "abc")) == ["A", "B", "C"]
    assert recorder.batches == [["a", "b", "c"]]


async def test_batches_have_a_maximum_size_and_run_concurrently() -> None:
    recorder = BatchRecorder()
    async with Coalescer(recorder, max_batch_size=2, workers=2) as coalescer:
        tasks = [asyncio.create_task(coalescer.submit(letter)) for letter in "abcdefg"]
        await recorder.wait_for_batches(2)
        assert recorder.batches == [["a", "b"], ["c", "d"]]
        assert coalescer.status().running == 2
        recorder.release(10)
        assert await asyncio.gather(*tasks) == list("ABCDEFG")
    assert recorder.max_running == 2
    assert max(map(len, recorder.batches)) == 2


async def test_with_split_between_workers_a_long_queue_is_divided() -> None:
    """Control: without the option, all items are in one batch."""
    for split_between_workers, sizes in ((True, [50, 50]), (False, [100])):
        recorder = BatchRecorder()
        async with Coalescer(recorder, workers=2, split_between_workers=split_between_workers) as coalescer:
            tasks = [asyncio.create_task(coalescer.submit(letter)) for letter in "abcdefghij" * 10]
            await recorder.wait_for_batches(len(sizes))
            assert [len(batch) for batch in recorder.batches] == sizes
            recorder.release(10)
            assert await asyncio.gather(*tasks) == list("ABCDEFGHIJ" * 10)


async def test_one_at_a_time_makes_one_large_batch_of_what_the_tasks_submit_again() -> None:
    """Control: otherwise the next batch starts before the tasks of the last one have continued."""
    for is_one_at_a_time, sizes in ((True, [8, 64]), (False, [8, 56])):
        recorder = BatchRecorder()

        async def submit_twice(coalescer: Coalescer[str, str]) -> None:
            for _ in range(2):
                await coalescer.submit("a")

        async with Coalescer(recorder, one_at_a_time=partial(bool, is_one_at_a_time)) as coalescer:
            tasks = [asyncio.create_task(submit_twice(coalescer)) for _ in range(8)]
            await recorder.wait_for_batches(1)
            tasks += [asyncio.create_task(submit_twice(coalescer)) for _ in range(56)]
            recorder.release(10)
            await asyncio.gather(*tasks)
        assert [len(batch) for batch in recorder.batches][:2] == sizes
        assert recorder.max_running == 1


async def test_with_split_between_workers_a_short_queue_is_not_divided() -> None:
    recorder = BatchRecorder()
    async with Coalescer(recorder, workers=2, split_between_workers=True) as coalescer:
        tasks = [asyncio.create_task(coalescer.submit(letter)) for letter in "abcdefgh" * 4]
        await recorder.wait_for_batches(1)
        recorder.release(10)
        await asyncio.gather(*tasks)
    assert [len(batch) for batch in recorder.batches] == [32]


async def test_with_split_between_workers_a_further_worker_waits_for_32_items() -> None:
    """Control: without the option, it starts for as many items as the running batch has."""
    for split_between_workers, sizes in ((True, [8, 32]), (False, [8, 8])):
        recorder = BatchRecorder()
        async with Coalescer(recorder, workers=2, split_between_workers=split_between_workers) as coalescer:
            tasks: list[asyncio.Task[str]] = []
            for _ in range(5):
                tasks += [asyncio.create_task(coalescer.submit(letter)) for letter in "abcdefgh"]
                await until(lambda: coalescer.status().items + coalescer.status().waiting == len(tasks))  # noqa: B023
                await asyncio.sleep(0)  # a batch starts in the next iteration of the event loop
            assert [len(batch) for batch in recorder.batches] == sizes
            recorder.release(10)
            assert await asyncio.gather(*tasks) == list("ABCDEFGH" * 5)


async def test_one_at_a_time_may_begin_while_a_further_worker_starts() -> None:
    failures: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, failure: failures.append(failure))
    is_one_at_a_time, written = False, loop.create_future()

    async def apply(items: Sequence[int]) -> Sequence[int]:
        nonlocal is_one_at_a_time
        await written
        is_one_at_a_time = True
        return items

    async with Coalescer(
        apply, workers=2, split_between_workers=True, one_at_a_time=lambda: is_one_at_a_time
    ) as coalescer:
        first = asyncio.create_task(coalescer.submit(-1))
        await until(lambda: coalescer.status().items == 1)
        # In the next iteration of the event loop, these items start a second worker, and then the first batch ends.
        rest = [asyncio.create_task(coalescer.submit(item)) for item in range(40)]
        written.set_result(None)
        assert await asyncio.gather(first, *rest) == [-1, *range(40)]
    assert failures == []


async def test_a_further_worker_waits_for_as_many_items_as_the_running_batches_have() -> None:
    """Otherwise a busy system would have more batches instead of larger ones."""
    recorder = BatchRecorder()
    async with Coalescer(recorder, workers=3) as coalescer:
        tasks: list[asyncio.Task[str]] = []

        async def submit(letters: str) -> None:
            tasks.extend(asyncio.create_task(coalescer.submit(letter)) for letter in letters)
            await until(lambda: coalescer.status().items + coalescer.status().waiting == len(tasks))
            await asyncio.sleep(0)  # a batch starts in the next iteration of the event loop

        await submit("abc")
        await submit("de")
        assert recorder.batches == [["a", "b", "c"]]
        await submit("f")
        assert recorder.batches == [["a", "b", "c"], ["d", "e", "f"]]
        await submit("ghijk")
        assert len(recorder.batches) == 2
        recorder.release(1)  # the first batch ends, and its worker takes all waiting items
        await recorder.wait_for_batches(3)
        assert recorder.batches[2] == list("ghijk")
        recorder.release(10)
        assert await asyncio.gather(*tasks) == list("ABCDEFGHIJK")


async def test_the_same_key_is_sent_once_and_never_joins_a_running_batch() -> None:
    """So a read sees everything that was committed before the call of `submit`."""
    reads: list[list[str]] = []
    value = 0
    go = asyncio.Event()

    async def read(keys: Sequence[str]) -> list[tuple[str, int]]:
        reads.append(list(keys))
        seen = value
        await go.wait()
        return [(key, seen) for key in keys]

    async with Coalescer(read, key=lambda key: key) as coalescer:
        first = [asyncio.create_task(coalescer.submit(key)) for key in "aab"]
        await until(lambda: len(reads) == 1)
        value = 1
        second = [asyncio.create_task(coalescer.submit(key)) for key in "aab"]
        await until(lambda: coalescer.status().waiting == 3)
        go.set()
        assert await asyncio.gather(*first) == [("a", 0), ("a", 0), ("b", 0)]
        assert await asyncio.gather(*second) == [("a", 1), ("a", 1), ("b", 1)]
    assert reads == [["a", "b"], ["a", "b"]]


async def test_without_a_key_equal_items_are_separate_items() -> None:
    recorder = BatchRecorder(waiting=False)
    async with Coalescer(recorder) as coalescer:
        assert await asyncio.gather(*(coalescer.submit("a") for _ in range(3))) == ["A", "A", "A"]
    assert recorder.batches == [["a", "a", "a"]]


async def test_a_full_queue_rejects_items_until_there_is_room() -> None:
    recorder = BatchRecorder()
    async with Coalescer(recorder, max_waiting=2) as coalescer:
        first = asyncio.create_task(coalescer.submit("a"))
        await recorder.wait_for_batches(1)
        waiting = [asyncio.create_task(coalescer.submit(letter)) for letter in "bc"]
        await until(lambda: coalescer.status().waiting == 2)
        with pytest.raises(QueueFull, match="the queue is full: 2 tasks are waiting"):
            await coalescer.submit("d")
        waiting[0].cancel()
        await asyncio.wait(waiting[:1])
        next_item = asyncio.create_task(coalescer.submit("e"))
        recorder.release(9)
        assert [*await asyncio.gather(first, waiting[1], next_item)] == ["A", "C", "E"]
        assert coalescer.status().rejected == 1


async def test_closing_finishes_the_queue_and_rejects_new_items() -> None:
    recorder = BatchRecorder()
    async with Coalescer(recorder, max_batch_size=1) as coalescer:
        tasks = [asyncio.create_task(coalescer.submit(letter)) for letter in "abc"]
        await recorder.wait_for_batches(1)
        closing = asyncio.create_task(coalescer.aclose())
        await asyncio.sleep(0)
        with pytest.raises(CoalescerClosed):
            await coalescer.submit("d")
        assert not closing.done()
        recorder.release(9)
        await closing
        assert [task.result() for task in tasks] == ["A", "B", "C"]
    await coalescer.aclose()
    with pytest.raises(CoalescerClosed):
        await coalescer.submit("e")


async def test_leaving_with_an_error_finishes_the_queue_too() -> None:
    tasks: list[asyncio.Task[str]] = []

    async def fail() -> None:
        async with Coalescer(BatchRecorder(waiting=False)) as coalescer:
            tasks.append(asyncio.create_task(coalescer.submit("a")))
            await asyncio.sleep(0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert await tasks[0] == "A"


async def test_apply_does_not_see_the_context_of_a_submitter() -> None:
    """Otherwise all items of a batch would share one request's context: its id, its user, its open transaction."""
    user = contextvars.ContextVar("user", default="nobody")
    seen: list[str] = []

    async def apply(items: Sequence[int]) -> Sequence[int]:
        seen.append(user.get())
        return items

    async with Coalescer(apply) as coalescer:
        user.set("ada")
        assert await coalescer.submit(1) == 1
    assert seen == ["nobody"]


async def test_the_status_counts_waiters_batches_and_items() -> None:
    recorder = BatchRecorder()
    async with Coalescer(recorder, key=lambda item: item) as coalescer:
        tasks = [asyncio.create_task(coalescer.submit("x"))]
        await recorder.wait_for_batches(1)
        tasks += [asyncio.create_task(coalescer.submit(letter)) for letter in "abcdea"]
        await until(lambda: coalescer.status().waiting == 6)
        status = coalescer.status()
        assert (status.waiting, status.running, status.batches, status.items) == (6, 1, 1, 1)
        recorder.release(2)
        await asyncio.gather(*tasks)
        status = coalescer.status()
        assert (status.waiting, status.batches, status.items, status.rejected) == (0, 2, 6, 0)
        assert status.batch_size_histogram == {1: 1, 8: 1}
        assert sum(status.wait_histogram.values()) == 7
        assert 0 < status.wait_seconds_sum < 5
    assert coalescer.status().running == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_batch_size": 0},
        {"max_waiting": 0},
        {"workers": 0},
        {"max_attempts": 0},
        {"batch_timeout": 0},
        {"batch_timeout": -1},
    ],
)
def test_invalid_limits_are_rejected(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Coalescer(BatchRecorder(), **wrong)


def test_a_coalescer_belongs_to_one_event_loop() -> None:
    coalescer = Coalescer(BatchRecorder(waiting=False))
    assert asyncio.run(coalescer.submit("a")) == "A"
    with pytest.raises(RuntimeError, match="another event loop"):
        asyncio.run(coalescer.submit("b"))
