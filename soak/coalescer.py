"""Read and write through coalescers. Meanwhile waiters are cancelled, and PostgreSQL's backends are terminated, at
random.

    python -m soak.coalescer --seconds 300

The run passes if every waiter got its result within a minute, every result belongs to its item, every acknowledged
write is in the table, and no connection, task or backend remains. Otherwise the exit code is 1.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence

import asyncpg
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from howdah import AsyncRepository, Base, Coalescer, Database, Unavailable, bulk, run_transaction
from soak.server import temporary_server

RESULT_TIMEOUT_SECONDS = 60
BACKENDS_TIMEOUT_SECONDS = 10
KEYS = 1_000
FACTOR = 7
"""The value of a row is its key times this factor."""
CLIENT_NAME = "soak"


class Value(Base):
    """A row that the clients read."""

    __tablename__ = "soak_values"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    value: Mapped[int]


class Note(Base):
    """A row that a client writes."""

    __tablename__ = "soak_notes"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


class Soak:
    """The clients of one run, and their counts."""

    def __init__(self, database: Database, until: float) -> None:
        self.reads: Counter[str] = Counter()
        """The number of submits, by outcome."""
        self.writes: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.terminated_backends = 0
        self._database = database
        self._until = until
        self._acknowledged: set[int] = set()
        self._last_note = 0

    async def read_values(self, keys: Sequence[int]) -> Sequence[int]:
        async with self._database.session(read_only=True) as session:
            rows = await AsyncRepository(session, Value).get_by_ids(keys)
        values = {row.id: row.value for row in rows}
        return [values[key] for key in keys]

    async def write_notes(self, notes: Sequence[int]) -> Sequence[int]:
        async def insert(session: AsyncSession) -> Sequence[int]:
            return (await bulk.insert_many(session, Note, [{"id": note} for note in notes])).keys

        return await run_transaction(self._database, insert)

    async def run_client(self, reads: Coalescer[int, int], writes: Coalescer[int, int]) -> None:
        while time.monotonic() < self._until:
            if random.random() < 0.7:
                key = random.randrange(KEYS)
                await self._submit(reads, key, self.reads, expected=key * FACTOR)
            else:
                self._last_note += 1
                note = self._last_note
                if await self._submit(writes, note, self.writes, expected=note):
                    self._acknowledged.add(note)

    async def _submit(
        self, coalescer: Coalescer[int, int], item: int, outcomes: Counter[str], *, expected: int
    ) -> bool:
        """Submit the item. One submit in ten is cancelled soon afterwards. Return whether there was a result."""
        task = asyncio.create_task(coalescer.submit(item))
        if random.random() < 0.1:
            await asyncio.sleep(random.random() * 0.02)
            task.cancel()
        done, _ = await asyncio.wait([task], timeout=RESULT_TIMEOUT_SECONDS)
        if not done:
            self.faults["waiters without a result"] += 1
        elif task.cancelled():
            outcomes["cancelled"] += 1
        elif task.exception() is None:
            outcomes["finished"] += 1
            if task.result() != expected:
                self.faults["results of another item"] += 1
            return True
        elif isinstance(task.exception(), Unavailable):
            outcomes[type(task.exception()).__name__] += 1
        else:
            self.faults[repr(task.exception())] += 1
        return False

    async def terminate_backends(self, url: str) -> None:
        """Terminate up to two backends at a time, after random pauses of up to a second."""
        connection = await connect(url)
        try:
            while time.monotonic() < self._until:
                await asyncio.sleep(random.random())
                self.terminated_backends += await connection.fetchval(
                    "SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity "
                    "WHERE application_name = $1 ORDER BY random() LIMIT 2) AS backends",
                    CLIENT_NAME,
                )
        finally:
            await connection.close()

    async def check(self) -> None:
        """Count acknowledged writes that are missing, and connections that were not returned to the pool."""
        async with self._database.session() as session:
            stored = set(await session.scalars(select(Note.id)))
        self.faults["acknowledged writes missing"] += len(self._acknowledged - stored)
        self.faults["connections leaked"] += self._database.pool_status().in_use


async def connect(url: str) -> asyncpg.Connection:
    return await asyncpg.connect(url.replace("+asyncpg", ""))


async def count_remaining_backends(url: str) -> int:
    """Wait until the backends of the closed `Database` have ended. Returns how many remain after
    `BACKENDS_TIMEOUT_SECONDS`."""
    connection = await connect(url)
    deadline = time.monotonic() + BACKENDS_TIMEOUT_SECONDS
    try:
        while True:
            remaining: int = await connection.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1", CLIENT_NAME
            )
            if not remaining or time.monotonic() > deadline:
                return remaining
            await asyncio.sleep(0.05)
    finally:
        await connection.close()


async def run(url: str, seconds: float, clients: int) -> Soak:
    """Create the tables, run the clients, and count the faults."""
    async with Database(url, application_name=CLIENT_NAME, pool_size=6, max_overflow=2, pool_timeout=5) as database:
        async with database.engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        async with database.begin() as session:
            await bulk.insert_many(session, Value, [{"id": n, "value": n * FACTOR} for n in range(KEYS)])
        soak = Soak(database, time.monotonic() + seconds)
        async with (
            Coalescer(soak.read_values, key=lambda key: key, workers=3, max_batch_size=50) as reads,
            Coalescer(soak.write_notes, workers=2, max_batch_size=50) as writes,
        ):
            await asyncio.gather(
                soak.terminate_backends(url), *(soak.run_client(reads, writes) for _ in range(clients))
            )
        await soak.check()
        soak.faults["remaining tasks"] += len(asyncio.all_tasks()) - 1  # without this task
        for name, coalescer in (("reads", reads), ("writes", writes)):
            status = coalescer.status()
            print(f"{name}: {status.items:,} items in {status.batches:,} batches")
            soak.faults["remaining waiters"] += status.waiting
    soak.faults["remaining backends"] += await count_remaining_backends(url)
    return soak


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--clients", type=int, default=200)
    options = parser.parse_args(argv)
    with temporary_server() as server:
        soak = asyncio.run(run(server.url(), options.seconds, options.clients))
    print(f"terminated backends: {soak.terminated_backends}")
    print(f"reads:  {dict(soak.reads)}")
    print(f"writes: {dict(soak.writes)}")
    faults = {kind: count for kind, count in soak.faults.items() if count}
    print(f"faults: {faults or 'none'}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
