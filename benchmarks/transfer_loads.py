"""The loads that `transfers` compares, each in a process of its own, in a database with Shop's tables:
`python -m benchmarks.transfer_loads URL KIND SPREAD WAITING SECONDS`."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from bisect import bisect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import accumulate, count
from typing import Any, Final
from uuid import UUID

import asyncpg
import uvloop
from sqlalchemy import make_url, select
from sqlalchemy.dialects.postgresql.asyncpg import dialect
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

import shop.tables  # noqa: F401 (tables refer to each other)
from benchmarks.transfer_names import ACCOUNTS, BARE, HOT, SPREAD
from howdah import Database, bulk, utcnow, uuid7
from shop import migrations
from shop.ledger.group_commit import Ledger
from shop.ledger.models import Account
from shop.ledger.repository import LOCK, OUTCOMES
from shop.ledger.requests import TransferRequest
from shop.ledger.writing import WRITE, WRITE_IF_UNCHANGED
from shop.memory import collect_less_often, freeze_loaded_objects

Transfer = Callable[[UUID, UUID], Awaitable[None]]


def account(number: int) -> UUID:
    """Numbered from 1, so that pgbench can name them."""
    return UUID(int=0x7000_8000_0000_0000_0000 | number)


def drawn(spread: str, dice: random.Random) -> Callable[[], tuple[UUID, UUID]]:
    """Two accounts at random; for next to nothing, for it isn't what is measured."""
    size, random = ACCOUNTS[spread], dice.random
    accounts = [account(number) for number in range(1, size + 1)]

    def two() -> tuple[UUID, UUID]:
        first = int(random() * size)
        return accounts[first], accounts[first - 1 - int(random() * (size - 1))]

    if spread == SPREAD:
        return two
    if spread == HOT:
        return lambda: (accounts[0], accounts[1 + int(random() * (size - 1))])
    bounds = list(accumulate(1 / rank for rank in range(1, size + 1)))

    def zipf() -> int:
        return bisect(bounds, random() * bounds[-1], hi=size - 1)

    def pair() -> tuple[UUID, UUID]:
        a = b = zipf()
        while a == b:
            b = zipf()
        return accounts[a], accounts[b]

    return pair


async def fill(url: str) -> None:
    await asyncio.to_thread(migrations.upgrade, url)
    async with Database(url) as database, database.begin() as session:
        accounts = (
            {"id": account(number), "name": "Account", "currency": "GBP", "allows_negative": True}
            for number in range(1, max(ACCOUNTS.values()) + 1)
        )
        await bulk.insert_many(session, Account, accounts, keys=False)


async def load(transfer: Transfer, spread: str, waiting: int, seconds: float) -> None:
    """As many tasks as are to wait, one transfer after the other; and print what came of it."""
    pair = drawn(spread, random.Random(7))
    await asyncio.gather(*(transfer(*pair()) for _ in range(min(waiting, 10))))  # connected, compiled, prepared
    freeze_loaded_objects()
    collect_less_often()
    latencies: list[float] = []
    started = time.perf_counter()

    async def work() -> None:
        while (begun := time.perf_counter()) < started + seconds:
            await transfer(*pair())
            latencies.append(time.perf_counter() - begun)

    await asyncio.gather(*(work() for _ in range(waiting)))
    each = (time.perf_counter() - started) / len(latencies)
    latencies.sort()
    p50, p99 = (latencies[int(len(latencies) * part)] for part in (0.5, 0.99))
    print(json.dumps({"seconds": each, "latency": [p50, p99]}))


async def with_ledger(url: str, spread: str, waiting: int, seconds: float) -> None:
    keys = (f"{start}-{number}" for start in [uuid7()] for number in count())
    async with Database(url) as database, Ledger(database) as ledger:

        async def transfer(source: UUID, target: UUID) -> None:
            (await ledger.submit(TransferRequest(source, target, 1, key=next(keys)))).unwrap()

        await load(transfer, spread, waiting, seconds)


async def with_reference(url: str, spread: str, waiting: int, seconds: float) -> None:
    """The pattern of the reference, the locks in one order so that it survives."""
    engine = create_async_engine(
        url,
        pool_size=20,
        max_overflow=10,
        pool_pre_ping=True,
        pool_timeout=600,
        connect_args={"server_settings": {"search_path": BARE}},
    )
    sessions = async_sessionmaker(engine, class_=AsyncSession, expire_on_commit=False)

    async def transfer(source: UUID, target: UUID) -> None:
        async with sessions() as db, db.begin():
            accounts = {}
            for id in sorted((source, target)):
                found = await db.execute(select(Account).where(Account.id == id).with_for_update())
                accounts[id] = found.scalar_one()
            accounts[source].balance -= 1
            accounts[target].balance += 1
            await db.flush()

    await load(transfer, spread, waiting, seconds)
    await engine.dispose()


async def by_hand(url: str, spread: str, waiting: int, seconds: float) -> None:
    """The statements of `post_transfers` for one transfer, in a transaction of asyncpg."""
    lock, outcomes, write = (_Statement(each) for each in (LOCK, OUTCOMES, WRITE))

    async with _pool(url, waiting) as pool:

        async def transfer(source: UUID, target: UUID) -> None:
            key = str(uuid7())
            async with pool.acquire() as connection, connection.transaction():
                rows = await connection.fetch(lock.text, *lock.values({"ids": [source, target]}))
                versions = {row["id"]: row["entry_count"] for row in rows}
                await connection.fetch(outcomes.text, *outcomes.values({"scopes": [""], "keys": [key]}))
                await connection.fetch(write.text, *write.values(_written(source, target, versions, key)))

        await load(transfer, spread, waiting, seconds)


async def one_by_hand(url: str, spread: str, waiting: int, seconds: float) -> None:
    """The one statement that the ledger writes accounts by that it knows, on a connection of asyncpg that knows them,
    too; only for one task, which nobody comes in between."""
    write = _Statement(WRITE_IF_UNCHANGED)
    known: dict[UUID, int] = {}

    async with _pool(url, waiting) as pool:

        async def transfer(source: UUID, target: UUID) -> None:
            async with pool.acquire() as connection:
                if unknown := [each for each in (source, target) if each not in known]:
                    rows = await connection.fetch("SELECT id, entry_count FROM accounts WHERE id = ANY($1)", unknown)
                    known.update({row["id"]: row["entry_count"] for row in rows})
                ids = sorted((source, target))
                values = _written(source, target, known, str(uuid7()))
                values |= {"a_id": ids, "a_version": [known[each] for each in ids], "a_revision": []}
                if not await connection.fetchval(write.text, *write.values(values)):
                    raise AssertionError("somebody else has moved the money of these accounts")
                for each in ids:
                    known[each] += 1

        await load(transfer, spread, waiting, seconds)


@asynccontextmanager
async def _pool(url: str, size: int) -> AsyncIterator[Any]:
    own = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    async with asyncpg.create_pool(own, min_size=size, max_size=size) as pool:
        yield pool


def _written(source: UUID, target: UUID, versions: dict[UUID, int], key: str) -> dict[str, Any]:
    """What the statements are given for one transfer of 1."""
    id, now = uuid7(), utcnow()
    values: dict[str, Any] = {
        "t_id": [id],
        "t_from_account_id": [source],
        "t_from_entry_number": [versions[source] + 1],
        "t_to_account_id": [target],
        "t_to_entry_number": [versions[target] + 1],
        "t_amount": [1],
        **dict.fromkeys(
            f"t_{name}"
            for name in (
                "currency",
                "created_at",
                "description",
                "metadata",
                "effective_at",
                "reverses_id",
                "reversed_total",
                "group_id",
            )
        ),
        "k_scope": [],
        "k_key": [key],
        "k_fingerprint": [b"x" * 32],
        "k_transfer_id": [id],
        "k_refusal": [],
        "k_answer": [],
        "currency": "GBP",
        "at": now,
    }
    return {name: [] if value is None else value for name, value in values.items()}


class _Statement:
    """As the driver is given it."""

    def __init__(self, statement: Any) -> None:
        compiled = statement.compile(dialect=dialect())  # type: ignore[no-untyped-call]
        self.text, self._names = str(compiled), compiled.positiontup

    def values(self, given: dict[str, Any]) -> list[Any]:
        return [given[name] for name in self._names]


KINDS: Final = {"ledger": with_ledger, "reference": with_reference, "hand": by_hand, "one by hand": one_by_hand}


def main() -> None:
    _, url, kind, *rest = sys.argv
    if kind == "fill":
        asyncio.run(fill(url))
        print(json.dumps({"seconds": 0}))
    else:
        spread, waiting, seconds = rest
        uvloop.run(KINDS[kind](url, spread, int(waiting), float(seconds)))


if __name__ == "__main__":
    main()
