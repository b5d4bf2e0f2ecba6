"""A queue of bytes that is stored in temporary files."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import AsyncIterator

import pytest

from howdah.fastapi import BodyLimits, SendLimits, TooManyStreams, _spool
from howdah.fastapi._spool import MEMORY_BYTES, Spool, SpooledParts, SpoolFull
from howdah.fastapi.stream_limits import ClientPace, take_ticket


@pytest.mark.parametrize("seed", range(5))
async def test_bytes_are_read_in_the_order_in_which_they_were_written(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Writer and reader pause at random, so that the bytes are sometimes in memory and sometimes in files."""
    monkeypatch.setattr(_spool, "FILE_BYTES", 300_000)
    choices = random.Random(seed)
    parts = [choices.randbytes(choices.choice([1, 5_000, 200_000])) for _ in range(60)]
    spool, received = Spool(), bytearray()

    async def write() -> None:
        for part in parts:
            await spool.write(part, waits=True)
            await asyncio.sleep(choices.choice([0, 0, 0.002]))
        spool.finish()

    writing = asyncio.create_task(write())
    while part := await spool.read():
        received += part
        await asyncio.sleep(choices.choice([0, 0, 0.002]))
    await writing
    assert received == b"".join(parts)
    assert _spool.stored_bytes() == 0


@pytest.mark.parametrize("is_disk_full", [True, False])
async def test_a_writer_waits_or_fails_if_nothing_more_can_be_stored(
    monkeypatch: pytest.MonkeyPatch, is_disk_full: bool
) -> None:
    if is_disk_full:
        monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")
    else:
        monkeypatch.setattr(_spool, "MAX_STORED_BYTES", MEMORY_BYTES - 1)
    spool = Spool()
    with pytest.raises(SpoolFull):
        await spool.write(bytes(MEMORY_BYTES), waits=False)
    waiting = asyncio.create_task(spool.write(b"x", waits=True))
    received = 0
    while received <= MEMORY_BYTES:
        received += len(await spool.read())
    await asyncio.wait_for(waiting, 5)
    assert _spool.stored_bytes() == 0


@pytest.mark.parametrize("reads", [0, 1, 50])
async def test_a_reader_that_stops_ends_the_source_and_deletes_the_files(reads: int) -> None:
    ended: list[str] = []

    async def source() -> AsyncIterator[bytes]:
        try:
            while True:
                yield bytes(50_000)
        finally:
            ended.append("source")

    parts = SpooledParts(source(), at_end=lambda: ended.append("end"))
    for _ in range(reads):
        await anext(parts)
    await parts.aclose()
    assert "end" in ended
    assert ("source" in ended) == (reads > 0)
    assert _spool.stored_bytes() == 0


async def test_parts_that_no_reader_waits_for_are_read_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: a fast reader gets everything at once."""
    monkeypatch.setattr(_spool, "READ_AHEAD_BYTES_PER_SECOND", 1.0)
    size, produced = MEMORY_BYTES, 0

    async def source() -> AsyncIterator[bytes]:
        nonlocal produced
        for _ in range(20):
            produced += 1
            yield bytes(size)

    parts = SpooledParts(source(), at_end=lambda: None)
    received = len(await anext(parts))
    for _ in range(200):  # the reader does nothing for a while
        await asyncio.sleep(0)
    assert produced < 20
    async with asyncio.timeout(5):
        async for part in parts:
            received += len(part)
    await parts.aclose()
    assert received == 20 * size


async def test_bytes_before_an_error_are_received_before_it() -> None:
    async def source() -> AsyncIterator[bytes]:
        yield bytes(MEMORY_BYTES * 3)
        raise ValueError("broken")

    parts, received = SpooledParts(source(), at_end=lambda: None), 0
    while received < MEMORY_BYTES * 3:
        received += len(await anext(parts))
    with pytest.raises(ValueError, match="broken"):
        await anext(parts)
    await parts.aclose()


async def test_a_fast_start_allows_no_longer_pause() -> None:
    pace = ClientPace(BodyLimits(window_seconds=0.05, min_bytes_per_second=1))
    pace.count(1_000_000)
    with pytest.raises(TimeoutError):
        await pace.wait(asyncio.sleep(5))


async def test_the_total_time_of_waiting_is_limited() -> None:
    pace = ClientPace(SendLimits(max_seconds=0.05))

    async def send_often() -> None:
        for _ in range(100):
            await pace.wait(asyncio.sleep(0.005))
            pace.count(1_000_000)

    with pytest.raises(TimeoutError):
        await send_often()


async def test_a_ticket_that_is_lost_is_released() -> None:
    tickets = [await take_ticket(None) for _ in range(5)]
    tickets.pop()
    tickets.append(await take_ticket(None))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("howdah.fastapi.stream_limits._DEFAULT_WAIT_SECONDS", 0.01)
        with pytest.raises(TooManyStreams):
            await take_ticket(None)
    tickets[0].release()
    tickets[0].release()
    await take_ticket(None)


@pytest.mark.parametrize("name", ["max_bytes", "max_array_bytes", "min_bytes_per_second", "window_seconds"])
def test_limits_are_positive(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        BodyLimits(**{name: 0})
