"""The contenders of `transfers`. Each runs in a new process, in a database with Shop's tables:
`python -m benchmarks.transfer_loads URL KIND DISTRIBUTION TASKS SECONDS [PROCESSES]`.

With PROCESSES the tasks are divided evenly between this number of processes, whose figures are summed.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from bisect import bisect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import accumulate, chain, count
from multiprocessing import get_context
from typing import Any, Final
from uuid import UUID

import asyncpg
import uvloop
from sqlalchemy import make_url, select
from sqlalchemy.dialects.postgresql.asyncpg import dialect
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

import shop.tables  # noqa: F401 (tables refer to each other)
from benchmarks.distributions import ACCOUNTS, HOT, PLAIN_SCHEMA, UNIFORM
from howdah import Database, bulk, utcnow, uuid7
from shop import migrations
from shop.ledger.basic_posting import POST_BASIC, basic_parameters, plan_basic_posting
from shop.ledger.group_commit import Ledger
from shop.ledger.models import Account
from shop.ledger.repository import LOCK, STORED_ANSWERS
from shop.ledger.requests import TransferRequest
from shop.ledger.writing import TRANSFER_PARAMETERS, WRITE
from shop.memory import collect_less_often, freeze_loaded_objects
from shop.users.models import User

Transfer = Callable[[UUID, UUID], Awaitable[None]]

_START_SECONDS: Final = 60
"""The time limit for the start of all processes of one contender."""
_POOR_ACCOUNTS: Final = 1_000
_REFUSED_SHARE: Final = 0.02


@dataclass(frozen=True, slots=True)
class Window:
    """The time in which a process measures, and its random accounts."""

    distribution: str
    task_count: int
    seconds: float
    seed: int = 7
    wait_for_others: Callable[[], object] = int
    """Called after the first transfers. It blocks until all processes are ready, so that their windows are the same.
    `int` does nothing, and can be passed to another process."""


@dataclass(frozen=True, slots=True)
class Load:
    """The figures of one process: the length of its window, and the time of each transfer in it, in seconds."""

    seconds: float
    latencies: list[float]


def account(number: int) -> UUID:
    """The id of an account. They are numbered from 1, so that a script of pgbench can compute them."""
    return UUID(int=0x7000_8000_0000_0000_0000 | number)


def customer(account_id: UUID) -> UUID:
    """The id of the account's owner. Each account has a different one."""
    return UUID(int=account_id.int + (1 << 100))


def account_chooser(distribution: str, seed: int) -> Callable[[], tuple[UUID, UUID]]:
    """A function that returns two different random accounts. It must be fast: its time is part of the figures."""
    size, draw = ACCOUNTS[distribution], random.Random(seed).random
    accounts = [account(number) for number in range(1, size + 1)]

    def choose_uniform() -> tuple[UUID, UUID]:
        first = int(draw() * size)
        return accounts[first], accounts[first - 1 - int(draw() * (size - 1))]

    if distribution == UNIFORM:
        return choose_uniform
    if distribution == HOT:
        return lambda: (accounts[0], accounts[1 + int(draw() * (size - 1))])
    bounds = list(accumulate(1 / rank for rank in range(1, size + 1)))

    def draw_zipf() -> int:
        return bisect(bounds, draw() * bounds[-1], hi=size - 1)

    def choose_zipf() -> tuple[UUID, UUID]:
        a = b = draw_zipf()
        while a == b:
            b = draw_zipf()
        return accounts[a], accounts[b]

    return choose_zipf


async def fill(url: str, account_count: int) -> None:
    """Create Shop's tables, the accounts and their owners."""
    await asyncio.to_thread(migrations.upgrade, url)
    ids = [account(number) for number in range(1, account_count + 1)]
    async with Database(url) as database, database.begin() as session:
        users = ({"id": customer(id_), "email": f"{id_}@example.com", "name": "Ada"} for id_ in ids)
        await bulk.insert_many(session, User, users, keys=False)
        accounts = (
            {"id": id_, "user_id": customer(id_), "name": "Account", "currency": "GBP", "allows_negative": True}
            for id_ in ids
        )
        await bulk.insert_many(session, Account, accounts, keys=False)


async def load(transfer: Transfer, window: Window) -> Load:
    """Run the tasks of the window. Each task posts one transfer after the other."""
    choose = account_chooser(window.distribution, window.seed)
    # The first transfers open connections, compile statements and prepare them.
    await asyncio.gather(*(transfer(*choose()) for _ in range(min(window.task_count, 10))))
    freeze_loaded_objects()
    collect_less_often()
    window.wait_for_others()
    latencies: list[float] = []
    started = time.perf_counter()

    async def work() -> None:
        while (sent := time.perf_counter()) < started + window.seconds:
            await transfer(*choose())
            latencies.append(time.perf_counter() - sent)

    await asyncio.gather(*(work() for _ in range(window.task_count)))
    return Load(time.perf_counter() - started, latencies)


def _new_keys() -> Iterator[str]:
    """Idempotency keys that no other call returns."""
    start = uuid7()
    return (f"{start}-{number}" for number in count())


def transfer_by(ledger: Ledger) -> Transfer:
    """A function that posts a transfer with a new idempotency key."""
    keys = _new_keys()

    async def transfer(source: UUID, target: UUID) -> None:
        (await ledger.submit(TransferRequest(source, target, 1, key=next(keys)))).unwrap()

    return transfer


async def with_ledger(url: str, window: Window) -> Load:
    async with Database(url) as database, Ledger(database) as ledger:
        return await load(transfer_by(ledger), window)


async def with_ledger_for_customers(url: str, window: Window) -> Load:
    """As `with_ledger`, but each transfer is posted for the owner of the debited account."""
    keys = _new_keys()
    owners = {account(number): customer(account(number)) for number in range(1, ACCOUNTS[window.distribution] + 1)}
    async with Database(url) as database, Ledger(database) as ledger:

        async def transfer(source: UUID, target: UUID) -> None:
            request = TransferRequest(source, target, 1, key=next(keys), posted_by=owners[source])
            (await ledger.submit(request)).unwrap()

        return await load(transfer, window)


async def with_refusals(url: str, window: Window) -> Load:
    """As `with_ledger`, but 2 % of the transfers are refused, because they debit accounts without money."""
    poor, dice = [uuid7() for _ in range(_POOR_ACCOUNTS)], random.Random(window.seed)
    keys = _new_keys()
    async with Database(url) as database, Ledger(database) as ledger:
        async with database.begin() as session:
            accounts = ({"id": id_, "name": "Poor", "currency": "GBP"} for id_ in poor)
            await bulk.insert_many(session, Account, accounts, keys=False)

        async def transfer(source: UUID, target: UUID) -> None:
            is_refused = dice.random() < _REFUSED_SHARE
            debited = dice.choice(poor) if is_refused else source
            result = await ledger.submit(TransferRequest(debited, target, 1, key=next(keys)))
            if (result.refusal is not None) is not is_refused:
                raise AssertionError(f"unexpected result: {result}")

        return await load(transfer, window)


async def with_reference(url: str, window: Window) -> Load:
    """The code of the reference, except that the accounts are locked in key order. Otherwise it would deadlock."""
    engine = create_async_engine(
        url,
        pool_size=20,
        max_overflow=10,
        pool_pre_ping=True,
        pool_timeout=600,
        connect_args={"server_settings": {"search_path": PLAIN_SCHEMA}},
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

    measured = await load(transfer, window)
    await engine.dispose()
    return measured


async def with_same_statements(url: str, window: Window) -> Load:
    """The statements that `post_transfers` runs for one transfer, in a transaction of asyncpg."""
    lock, outcomes, write = (_Statement(each) for each in (LOCK, STORED_ANSWERS, WRITE))

    async with _pool(url, window.task_count) as pool:

        async def transfer(source: UUID, target: UUID) -> None:
            key = str(uuid7())
            async with pool.acquire() as connection, connection.transaction():
                rows = await connection.fetch(lock.text, *lock.values({"ids": [source, target]}))
                entry_counts = {row["id"]: row["entry_count"] for row in rows}
                await connection.fetch(outcomes.text, *outcomes.values({"scopes": [""], "keys": [key]}))
                await connection.fetch(write.text, *write.values(_parameters(source, target, entry_counts, key)))

        return await load(transfer, window)


async def with_one_statement(url: str, window: Window) -> Load:
    """The statement of `Ledger.submit`, sent through asyncpg for one transfer."""
    async with _pool(url, window.task_count) as pool:

        async def transfer(source: UUID, target: UUID) -> None:
            plan = plan_basic_posting([TransferRequest(source, target, 1, key=str(uuid7()))])
            assert plan is not None
            async with pool.acquire() as connection:
                row = await connection.fetchrow(POST_BASIC, *basic_parameters(plan))
            if not row["is_posted"]:
                raise AssertionError("the transfer was declined: do both accounts exist?")

        return await load(transfer, window)


@asynccontextmanager
async def _pool(url: str, size: int) -> AsyncIterator[Any]:
    own = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    async with asyncpg.create_pool(own, min_size=size, max_size=size) as pool:
        yield pool


def _parameters(source: UUID, target: UUID, entry_counts: dict[UUID, int], key: str) -> dict[str, Any]:
    """The parameters of the writing statements for one transfer with the amount 1."""
    id = uuid7()
    columns: dict[str, Sequence[Any]] = dict.fromkeys(TRANSFER_PARAMETERS.names, ()) | {
        "id": [id],
        "from_account_id": [source],
        "from_entry_number": [entry_counts[source] + 1],
        "to_account_id": [target],
        "to_entry_number": [entry_counts[target] + 1],
        "amount": [1],
    }
    return TRANSFER_PARAMETERS.values(columns) | {
        "k_scope": [],
        "k_key": [key],
        "k_fingerprint": [b"x" * 32],
        "k_transfer_id": [id],
        "k_refusal": [],
        "k_answer": [],
        "currency": "GBP",
        "at": utcnow(),
    }


class _Statement:
    """A statement of SQLAlchemy as text for asyncpg, with the order of its parameters."""

    def __init__(self, statement: Any) -> None:
        compiled = statement.compile(dialect=dialect())  # type: ignore[no-untyped-call]
        self.text, self._names = str(compiled), compiled.positiontup

    def values(self, parameters: dict[str, Any]) -> list[Any]:
        return [parameters[name] for name in self._names]


KINDS: Final[dict[str, Callable[[str, Window], Awaitable[Load]]]] = {
    "ledger": with_ledger,
    "ledger-for-customers": with_ledger_for_customers,
    "ledger-with-refusals": with_refusals,
    "reference": with_reference,
    "same-statements": with_same_statements,
    "one-statement": with_one_statement,
}


def run(kind: str, url: str, window: Window) -> Load:
    return uvloop.run(KINDS[kind](url, window))  # type: ignore[arg-type]  # all kinds are coroutine functions


def run_in_processes(kind: str, url: str, window: Window, processes: int) -> list[Load]:
    """Divide the tasks between new processes. Each of them measures the same window, with other random accounts."""
    spawning = get_context("spawn")
    barrier = spawning.Barrier(processes, timeout=_START_SECONDS)
    with ProcessPoolExecutor(processes, spawning, initializer=_set_barrier, initargs=(barrier,)) as pool:
        share = replace(window, task_count=window.task_count // processes)
        running = [
            pool.submit(_run_with_others, kind, url, replace(share, seed=window.seed + number))
            for number in range(processes)
        ]
        return [each.result() for each in running]


_barriers: Final[list[Any]] = []


def _set_barrier(barrier: Any) -> None:
    """A barrier can be passed to a new process only when it starts."""
    _barriers.append(barrier)


def _run_with_others(kind: str, url: str, window: Window) -> Load:
    return run(kind, url, replace(window, wait_for_others=_barriers[-1].wait))


def print_figures(loads: Sequence[Load]) -> None:
    """Print the figures of all processes as one contender: their transfers per second are added."""
    latencies = sorted(chain.from_iterable(each.latencies for each in loads))
    p50, p99 = (latencies[int(len(latencies) * part)] for part in (0.5, 0.99))
    per_second = sum(len(each.latencies) / each.seconds for each in loads)
    print(json.dumps({"seconds": 1 / per_second, "latency": [p50, p99]}))


def main() -> None:
    _, url, kind, *rest = sys.argv
    if kind == "fill":
        asyncio.run(fill(url, int(rest[0])))
        print(json.dumps({"seconds": 0}))
        return
    distribution, task_count, seconds, *processes = rest
    window = Window(distribution, int(task_count), float(seconds))
    print_figures(run_in_processes(kind, url, window, int(processes[0])) if processes else [run(kind, url, window)])


if __name__ == "__main__":
    main()
