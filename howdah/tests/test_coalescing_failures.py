"""The effect of a failed, slow or cancelled batch on its waiters."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from howdah import BatchAbandoned, Coalescer, CoalescerClosed, HowdahError, NotFound, Unavailable
from howdah.errors import ConnectionFailed, SerializationFailure, TransactionConflict
from howdah_tests.support.batch_recorder import BatchRecorder, until


class Rejected(HowdahError):
    """An item that can't be applied."""


class Uncopyable(Exception):
    def __init__(self, *, detail: str) -> None:
        super().__init__(detail)


def database_error(kind: type[TransactionConflict | ConnectionFailed]) -> Exception:
    return kind("SELECT 1", None, Exception("lost"))


async def test_every_waiter_of_a_failed_batch_gets_a_copy_of_the_error_with_the_cause() -> None:
    async def apply(items: Sequence[int]) -> Sequence[int]:
        raise NotFound(Rejected, items)

    async with Coalescer(apply) as coalescer:
        errors = await asyncio.gather(*(coalescer.submit(n) for n in range(3)), return_exceptions=True)
    assert len(set(map(id, errors))) == 3
    assert {type(error) for error in errors} == {NotFound}
    causes = {id(error.__cause__) for error in errors if isinstance(error, NotFound)}
    assert len(causes) == 1
    assert all(error.keys == [0, 1, 2] for error in errors if isinstance(error, NotFound))


async def test_an_error_that_cannot_be_copied_is_raised_itself() -> None:
    error = Uncopyable(detail="x")

    async def apply(items: Sequence[int]) -> Sequence[int]:
        raise error

    async with Coalescer(apply) as coalescer:
        assert await asyncio.gather(*map(coalescer.submit, range(2)), return_exceptions=True) == [error, error]


async def test_an_error_among_the_results_is_raised_only_for_its_item() -> None:
    async def apply(items: Sequence[str]) -> Sequence[str | Exception]:
        return [Rejected(item) if item == "b" else item.upper() for item in items]

    async with Coalescer(apply, key=lambda item: item) as coalescer:
        results = await asyncio.gather(*map(coalescer.submit, "abcb"), return_exceptions=True)
    assert (results[0], results[2]) == ("A", "C")
    assert [str(result) for result in results[1::2]] == ["b", "b"]
    assert results[1] is not results[3]


async def test_the_next_batch_runs_after_a_failed_batch() -> None:
    async def apply(items: Sequence[int]) -> Sequence[float]:
        return [1 / item for item in items]

    async with Coalescer(apply) as coalescer:
        with pytest.raises(ZeroDivisionError):
            await coalescer.submit(0)
        assert await coalescer.submit(2) == 0.5


@pytest.mark.parametrize("kind", [SerializationFailure, ConnectionFailed])
async def test_a_transaction_conflict_or_a_failed_connection_retries_the_batch(
    kind: type[TransactionConflict | ConnectionFailed],
) -> None:
    calls = 0

    async def apply(items: Sequence[int]) -> Sequence[int]:
        nonlocal calls
        calls += 1
        if calls % 3:
            raise database_error(kind)
        return items

    async with Coalescer(apply, max_attempts=3) as coalescer:
        assert await asyncio.gather(*map(coalescer.submit, range(3))) == [0, 1, 2]
        assert (calls, coalescer.status().batches, coalescer.status().items) == (3, 3, 9)
    async with Coalescer(apply, max_attempts=2) as coalescer:
        with pytest.raises(kind):
            await coalescer.submit(1)
    assert calls == 5


async def test_bisect_on_error_finds_the_items_at_fault() -> None:
    """Control: without `bisect_on_error` all items of the batch fail."""
    applied: list[int] = []
    calls = 0

    async def all_or_nothing(items: Sequence[int]) -> Sequence[int]:
        nonlocal calls
        calls += 1
        if any(item % 100 == 7 for item in items):
            raise Rejected(str(items))
        applied.extend(items)
        return items

    async with Coalescer(all_or_nothing, bisect_on_error=True) as coalescer:
        results = await asyncio.gather(*map(coalescer.submit, range(300)), return_exceptions=True)
    assert [n for n, result in enumerate(results) if result != n] == [7, 107, 207]
    assert all(type(results[n]) is Rejected for n in (7, 107, 207))
    assert sorted(applied) == [n for n in range(300) if n % 100 != 7]
    assert calls < 3 * 2 * 10
    async with Coalescer(all_or_nothing) as coalescer:
        results = await asyncio.gather(*map(coalescer.submit, range(300)), return_exceptions=True)
    assert {type(result) for result in results} == {Rejected}


async def test_bisect_on_error_does_not_split_a_batch_that_was_unavailable() -> None:
    calls = 0

    async def apply(items: Sequence[int]) -> Sequence[int]:
        nonlocal calls
        calls += 1
        raise Unavailable

    async with Coalescer(apply, bisect_on_error=True) as coalescer:
        results = await asyncio.gather(*map(coalescer.submit, range(8)), return_exceptions=True)
    assert {type(result) for result in results} == {Unavailable}
    assert calls == 1


@pytest.mark.parametrize("returned", [[], ["A", "B", "C"]])
async def test_a_wrong_number_of_results_is_an_error_for_all_waiters(returned: list[str]) -> None:
    async def apply(items: Sequence[str]) -> list[str]:
        return returned

    async with Coalescer(apply) as coalescer:
        results = await asyncio.gather(*map(coalescer.submit, "ab"), return_exceptions=True)
    assert [str(result) for result in results] == [
        f"apply got 2 items and returned {len(returned)} results: return one result per item"
    ] * 2


async def test_a_cancelled_waiter_does_not_affect_the_others() -> None:
    recorder = BatchRecorder()
    async with Coalescer(recorder, key=lambda item: item) as coalescer:
        running = [asyncio.create_task(coalescer.submit(letter)) for letter in "ab"]
        await recorder.wait_for_batches(1)
        waiting = [asyncio.create_task(coalescer.submit(letter)) for letter in "ccde"]
        await until(lambda: coalescer.status().waiting == 4)
        for task in (running[0], waiting[0], waiting[2]):
            task.cancel()
        await asyncio.wait([running[0], waiting[0], waiting[2]])
        assert coalescer.status().waiting == 2
        recorder.release(9)
        assert [*await asyncio.gather(running[1], waiting[1], waiting[3])] == ["B", "C", "E"]
    assert recorder.batches == [["a", "b"], ["c", "e"]]
    assert [task.cancelled() for task in (*running, *waiting)] == [True, False, True, False, True, False]


async def test_the_timeout_of_a_waiter_applies() -> None:
    recorder = BatchRecorder()
    async with Coalescer(recorder) as coalescer:
        first = asyncio.create_task(coalescer.submit("a"))
        await recorder.wait_for_batches(1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await coalescer.submit("b")
        recorder.release(9)
        assert await first == "A"
    assert recorder.batches == [["a"]]


async def test_a_batch_that_exceeds_its_timeout_is_abandoned() -> None:
    recorder = BatchRecorder()
    async with Coalescer(recorder, batch_timeout=0.01) as coalescer:
        results = await asyncio.gather(*map(coalescer.submit, "ab"), return_exceptions=True)
        assert [type(result) for result in results] == [BatchAbandoned, BatchAbandoned]
        assert recorder.running == 0, "it was cancelled"
        recorder.release(1)
        assert await coalescer.submit("c") == "C"


async def test_a_timeout_error_of_apply_is_raised_unchanged() -> None:
    async def apply(items: Sequence[int]) -> Sequence[int]:
        raise TimeoutError("mine")

    async with Coalescer(apply) as coalescer:
        with pytest.raises(TimeoutError, match="mine"):
            await coalescer.submit(1)


async def test_a_cancellation_inside_of_apply_abandons_the_batch() -> None:
    async def apply(items: Sequence[int]) -> Sequence[int]:
        inner = asyncio.get_running_loop().create_future()
        inner.cancel()
        await inner
        return items

    async with Coalescer(apply) as coalescer:
        with pytest.raises(BatchAbandoned):
            await coalescer.submit(1)
        with pytest.raises(BatchAbandoned):
            await coalescer.submit(2)


def test_the_end_of_the_event_loop_ends_every_waiter() -> None:
    """`asyncio.run` cancels all tasks in no particular order. A task that shields `submit` still gets an outcome."""
    outcomes: list[object] = []
    started = asyncio.Event()

    async def apply(items: Sequence[int]) -> Sequence[int]:
        started.set()
        await asyncio.Event().wait()
        return items

    async def main() -> None:
        coalescer = Coalescer(apply, max_batch_size=1)

        async def wait(n: int) -> None:
            submitted = asyncio.ensure_future(coalescer.submit(n))
            try:
                outcomes.append(await asyncio.shield(submitted))
            except asyncio.CancelledError:
                outcomes.append(await asyncio.gather(submitted, return_exceptions=True))

        tasks = [asyncio.create_task(wait(n)) for n in range(3)]
        await started.wait()
        del tasks

    asyncio.run(asyncio.wait_for(main(), 10))
    assert len(outcomes) == 3


async def test_a_cancelled_worker_ends_every_waiter() -> None:
    recorder = BatchRecorder()
    coalescer = Coalescer(recorder, max_batch_size=1)
    waiting = [asyncio.create_task(coalescer.submit(letter)) for letter in "abc"]
    await recorder.wait_for_batches(1)
    for task in asyncio.all_tasks() - {asyncio.current_task(), *waiting}:
        task.cancel()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(result) for result in results] == [BatchAbandoned, CoalescerClosed, CoalescerClosed]
    with pytest.raises(CoalescerClosed):
        await coalescer.submit("d")


@pytest.mark.parametrize("returned", [None, [], [1], [1, 2, 3, 4]])
async def test_a_wrong_number_of_results_does_not_run_the_batch_again(returned: Any) -> None:
    calls: list[list[int]] = []

    async def write(items: Sequence[int]) -> Any:
        calls.append(list(items))
        return returned

    async with Coalescer(write, bisect_on_error=True) as coalescer:
        results = await asyncio.gather(*map(coalescer.submit, (1, 2, 3)), return_exceptions=True)
    assert [type(result) for result in results] == [TypeError] * 3
    assert "got 3 items" in str(results[0])
    assert calls == [[1, 2, 3]]


async def test_an_item_may_fail_with_stop_iteration() -> None:
    async def work(items: Sequence[int]) -> list[int | Exception]:
        return [StopIteration() if item == 2 else item for item in items]

    async with Coalescer(work) as coalescer:
        for _ in range(2):
            results = await asyncio.gather(*map(coalescer.submit, (1, 2, 3)), return_exceptions=True)
            assert (results[0], results[2]) == (1, 3)
            assert isinstance(results[1], RuntimeError)
            assert isinstance(results[1].__cause__, StopIteration)
