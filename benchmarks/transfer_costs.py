"""CPU time of a transfer in Python and in PostgreSQL: `python -m benchmarks.transfer_costs`.

For several numbers of concurrent tasks it prints microseconds per transfer, medians of the rounds: the CPU time of this
process (the ledger, the driver, and the tasks that submit), the CPU time of PostgreSQL's backends, and the elapsed
time. The first two bound the speed. With two cores, a transfer can't take less than half of their sum. If all transfers
lock the same account, it can't take less than the time in PostgreSQL.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from contextlib import suppress
from typing import Any, Final, NamedTuple

import asyncpg
import psutil
import uvloop
from sqlalchemy import make_url

from benchmarks.distributions import HOT, UNIFORM
from benchmarks.transfer_loads import Window, fill, load, transfer_by
from howdah import Database
from howdah.embedded import EmbeddedPostgres, default_data_dir
from shop.ledger.group_commit import Ledger

_DATABASE: Final = "transfer_costs"
_ACCOUNTS: Final = 1_000
_ROUNDS: Final = 5
_SECONDS: Final = 2.0
_TASKS: Final = (1, 32, 256, 2_000)


class Costs(NamedTuple):
    """Microseconds per transfer."""

    python: float
    postgresql: float
    elapsed: float


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else _ROUNDS
    # the server of the other benchmarks; `benchmarks.postgres` can't be imported, because it has models of its own
    with EmbeddedPostgres(default_data_dir().with_name("benchmarks"), settings={"autovacuum": "off"}) as server:
        asyncio.run(_execute(server.url(), f"DROP DATABASE IF EXISTS {_DATABASE} WITH (FORCE)"))
        server.ensure_database(_DATABASE)
        try:
            uvloop.run(_measure(server, rounds))
        finally:
            asyncio.run(_execute(server.url(), f"DROP DATABASE {_DATABASE} WITH (FORCE)"))


async def _measure(server: EmbeddedPostgres, rounds: int) -> None:
    url = server.url(_DATABASE)
    await fill(url, _ACCOUNTS)
    await _measure_one(server, url, UNIFORM, 256)  # so that statements are planned for tables with rows
    print(f"{'':10} {'tasks':>6} {'Python':>8} {'PostgreSQL':>11} {'elapsed':>8}  µs per transfer")
    for distribution in (UNIFORM, HOT):
        for tasks in _TASKS:
            found = []
            for _ in range(rounds):
                await _execute(url, "VACUUM ANALYZE", "CHECKPOINT")
                found.append(await _measure_one(server, url, distribution, tasks))
            median = Costs(*(statistics.median(values) for values in zip(*found, strict=True)))
            print(f"{distribution:10} {tasks:6,} {median.python:8.1f} {median.postgresql:11.1f} {median.elapsed:8.1f}")


async def _execute(url: str, *statements: str) -> Any:
    """Execute the statements, and return the value of the last one."""
    connection = await asyncpg.connect(make_url(url).set(drivername="postgresql").render_as_string(False))
    try:
        return [await connection.fetchval(statement) for statement in statements][-1]
    finally:
        await connection.close()


async def _measure_one(server: EmbeddedPostgres, url: str, distribution: str, tasks: int) -> Costs:
    started: dict[int, float] = {}
    python_started = 0.0

    def start() -> None:
        nonlocal python_started
        started.update(_server_seconds(server))
        python_started = time.process_time()

    async with Database(url) as database, Ledger(database) as ledger:
        measured = await load(transfer_by(ledger), Window(distribution, tasks, _SECONDS, wait_for_others=start))
        python = time.process_time() - python_started
        own = set(await _execute(url, "SELECT array_agg(pid) FROM pg_stat_activity WHERE datname = current_database()"))
        postgresql = sum(
            seconds - started.get(pid, 0.0) for pid, seconds in _server_seconds(server).items() if pid in own
        )
    return Costs(*(seconds / len(measured.latencies) * 1e6 for seconds in (python, postgresql, measured.seconds)))


def _server_seconds(server: EmbeddedPostgres) -> dict[int, float]:
    """The CPU time of each process of the server."""
    assert server.pid is not None
    found = {}
    for process in psutil.Process(server.pid).children():
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            found[process.pid] = times.user + times.system
    return found


if __name__ == "__main__":
    main()
