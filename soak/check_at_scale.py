"""Run `shop check` on a ledger with ten million entries, and measure its time and memory.

    python -m soak.check_at_scale --entries 10_000_000

The tables are filled by SQL statements, not by Shop. There are accounts in three currencies, and transfers between
them, each with an idempotency key. One transfer in a hundred is a reversal. Some holds are pending, posted or voided.
All rows are sealed.

Then `shop check` runs twice: on the correct ledger, and after one amount was changed. Each check takes about four
minutes. Ten million entries need ten gigabytes of disk.

The run passes if the first check finds no fault, the second one finds the changed entry, and both need at most
`--megabytes` of memory. The limit applies to the memory of the `shop check` process. It also applies to the private
memory of all PostgreSQL processes together, without shared buffers. Private memory can be measured only on Linux. If
the run doesn't pass, the exit code is 1. The size of the temporary files is printed, too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import psutil
from sqlalchemy.ext.asyncio import AsyncConnection

from howdah import Database
from soak.server import ShopServer, shop_server
from soak.service import SHOP

TRANSFERS_PER_ACCOUNT = 50
INITIAL_BALANCE = 1_000_000
MAX_AMOUNT = 1_000  # small, so that no account becomes negative
ROWS_PER_SEAL = 128
SAMPLE_SECONDS = 0.02
MEGABYTE = 1_000_000

# Accounts 0, 1 and 2 fund the accounts of the three currencies. Accounts have the same currency if their numbers differ
# by a multiple of three. The temporary table `moves` has a row for each transfer.
FILL_STEPS = {
    # Triggers are disabled, and the largest indexes are built at the end. This still takes minutes.
    "setting up": """
        SET session_replication_role = replica;
        SET work_mem = '512MB';
        SET maintenance_work_mem = '512MB';
        SELECT setseed(0.5);
        ALTER TABLE entries DROP CONSTRAINT pk_entries;
        ALTER TABLE idempotency_keys DROP CONSTRAINT pk_idempotency_keys;
        CREATE FUNCTION pg_temp.account(n bigint) RETURNS uuid IMMUTABLE LANGUAGE sql
        RETURN ('01990000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid;
        CREATE FUNCTION pg_temp.transfer(n bigint) RETURNS uuid IMMUTABLE LANGUAGE sql
        RETURN ('01990000-0000-7000-9000-' || lpad(to_hex(n), 12, '0'))::uuid;
        CREATE FUNCTION pg_temp.pending(n bigint) RETURNS uuid IMMUTABLE LANGUAGE sql
        RETURN ('01990000-0000-7000-a000-' || lpad(to_hex(n), 12, '0'))::uuid;
        CREATE FUNCTION pg_temp.currency(n bigint) RETURNS text IMMUTABLE LANGUAGE sql
        RETURN (ARRAY['EUR', 'GBP', 'USD'])[n % 3 + 1];
        CREATE FUNCTION pg_temp.at(n bigint) RETURNS timestamptz IMMUTABLE LANGUAGE sql
        RETURN timestamptz '2026-01-01 00:00:00+00' + n * interval '10 milliseconds'
        """,
    "moves": """
        CREATE TEMPORARY TABLE moves AS
        SELECT n, (n + 2) % 3 AS source, n + 2 AS target, {initial_balance}::bigint AS amount, NULL::bigint AS reverses
        FROM generate_series(1::bigint, {accounts}) n
        UNION ALL
        SELECT n, 3 + source, 3 + (source + 3 * (1 + floor(random() * ({accounts} / 3 - 1)))::bigint) % {accounts},
            1 + floor(random() * {max_amount})::bigint, NULL
        FROM (
            SELECT n, floor(random() * {accounts})::bigint AS source
            FROM generate_series({accounts} + 1::bigint, {transfers}) n
        ) drawn;
        UPDATE moves m SET source = r.target, target = r.source, amount = r.amount, reverses = r.n
        FROM moves r WHERE m.n % 100 = 0 AND r.n = m.n - 1 AND r.n > {accounts};
        ANALYZE moves
        """,
    "entries": """
        INSERT INTO entries (account_id, entry_number, transfer_id, amount, balance_after, created_at)
        SELECT pg_temp.account(account), row_number() OVER w, pg_temp.transfer(n), amount, sum(amount) OVER w,
            pg_temp.at(n)
        FROM (
            SELECT n, source AS account, -amount AS amount FROM moves
            UNION ALL
            SELECT n, target, amount FROM moves
        ) side
        WINDOW w AS (PARTITION BY account ORDER BY n)
        ORDER BY n;
        ALTER TABLE entries ADD CONSTRAINT pk_entries PRIMARY KEY (account_id, entry_number);
        ANALYZE entries
        """,
    "transfers": """
        INSERT INTO transfers (
            id, from_account_id, from_entry_number, to_account_id, to_entry_number, amount, currency, effective_at,
            reverses_id, reversed_total, created_at
        )
        SELECT pg_temp.transfer(n), debit.account_id, debit.entry_number, credit.account_id, credit.entry_number,
            m.amount, pg_temp.currency(source), pg_temp.at(n), pg_temp.transfer(reverses),
            CASE WHEN reverses IS NOT NULL THEN m.amount END, pg_temp.at(n)
        FROM moves m
        JOIN entries debit ON debit.transfer_id = pg_temp.transfer(n) AND debit.amount < 0
        JOIN entries credit ON credit.transfer_id = pg_temp.transfer(n) AND credit.amount > 0
        ORDER BY n
        """,
    "pending transfers": """
        INSERT INTO pending_transfers (
            id, from_account_id, to_account_id, amount, currency, state, expires_at, created_at, settled_at
        )
        SELECT CASE WHEN state = 'posted' THEN pg_temp.transfer(n) ELSE pg_temp.pending(n) END, pg_temp.account(source),
            pg_temp.account(target), amount, pg_temp.currency(source), state, pg_temp.at(n) + interval '1 day',
            pg_temp.at(n), CASE WHEN state <> 'pending' THEN pg_temp.at(n) END
        FROM moves JOIN (VALUES (1, 'posted'), (2, 'pending'), (3, 'voided')) AS each (rest, state) ON n % 1000 = rest
        """,
    "accounts": """
        INSERT INTO accounts (
            id, name, currency, balance, entry_count, held, revision, allows_negative, overdraft_limit, state, metadata,
            created_at, updated_at
        )
        SELECT pg_temp.account(n), 'Account ' || n, pg_temp.currency(n), e.balance, e.entry_count, coalesce(p.held, 0),
            0, n < 3, 0, 'open', '{{}}', pg_temp.at(0), pg_temp.at({transfers})
        FROM generate_series(0::bigint, {accounts} + 2) n
        JOIN (
            SELECT account_id, sum(amount) AS balance, count(*) AS entry_count FROM entries GROUP BY account_id
        ) e ON e.account_id = pg_temp.account(n)
        LEFT JOIN (
            SELECT from_account_id, sum(amount) AS held FROM pending_transfers WHERE state = 'pending' GROUP BY 1
        ) p ON p.from_account_id = pg_temp.account(n)
        """,
    "keys": """
        INSERT INTO idempotency_keys (scope, key, fingerprint, transfer_id, refusal, answer, created_at)
        SELECT '', gen_random_uuid(), sha256(id::text::bytea), id, NULL, 'posted', created_at FROM transfers
        UNION ALL
        SELECT '', gen_random_uuid(), sha256(id::text::bytea), id, NULL, state, created_at FROM pending_transfers
        WHERE state <> 'posted'
        UNION ALL
        SELECT '', gen_random_uuid(), sha256(n::text::bytea), NULL, 'insufficient_funds', 'refused', pg_temp.at(n)
        FROM moves
        WHERE n % 50 = 0;
        ALTER TABLE idempotency_keys ADD CONSTRAINT pk_idempotency_keys PRIMARY KEY (scope, key)
        """,
    # One seal for each chunk of rows, as the triggers write them.
    "seals": """
        INSERT INTO seals (subject, ids, digests)
        SELECT 'transfers', array_agg(id), array_agg(digest_of_transfer(t))
        FROM (SELECT t, id, (row_number() OVER (ORDER BY id) - 1) / {rows_per_seal} AS chunk FROM transfers t) numbered
        GROUP BY chunk;
        INSERT INTO seals (subject, ids, revisions, digests)
        SELECT 'pending_transfers', array_agg(id), array_agg((state <> 'pending')::int::bigint),
            array_agg(digest_of_pending_transfer(p))
        FROM (SELECT p, p.id, state, (row_number() OVER (ORDER BY id) - 1) / {rows_per_seal} AS chunk
            FROM pending_transfers p) numbered
        GROUP BY chunk;
        INSERT INTO seals (subject, ids, revisions, digests)
        SELECT 'accounts', ARRAY[id], ARRAY[revision], ARRAY[digest_of_account(a)] FROM accounts a;
        INSERT INTO seals (subject, digests)
        SELECT 'idempotency_keys', array_agg(digest_of_idempotency_key(k))
        FROM (SELECT k, (row_number() OVER (ORDER BY key) - 1) / {rows_per_seal} AS chunk
            FROM idempotency_keys k) numbered
        GROUP BY chunk;
        SELECT link_seals(10000000)
        """,
    "statistics": "VACUUM ANALYZE",
}
CHANGE_ONE_AMOUNT = """
    UPDATE entries SET amount = amount + 1
    WHERE amount > 0 AND transfer_id = (SELECT transfer_id FROM entries WHERE account_id = (
        SELECT id FROM accounts ORDER BY id OFFSET (SELECT count(*) / 2 FROM accounts) LIMIT 1
    ) AND entry_number = 2)
    RETURNING format('account %s: entry %s', account_id, entry_number)
    """


@dataclass(frozen=True)
class CheckRun:
    """One run of `shop check`."""

    exit_code: int
    output: str
    seconds: float
    client_bytes: int
    """Peak memory of the process."""
    server_bytes: int
    """Peak private memory of all PostgreSQL processes together."""
    temporary_bytes: int


@contextlib.asynccontextmanager
async def autocommit(url: str) -> AsyncIterator[AsyncConnection]:
    async with (
        Database(url, statement_timeout=None) as database,
        database.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection,
    ):
        yield connection


async def fetch_value(connection: AsyncConnection, statement: str) -> str:
    return str((await connection.exec_driver_sql(statement)).scalar_one())


async def fill(connection: AsyncConnection, entries: int) -> None:
    """Create a ledger with this number of entries."""
    transfers = entries // 2
    accounts = max(transfers // TRANSFERS_PER_ACCOUNT // 3, 2) * 3
    started = time.monotonic()
    for step, template in FILL_STEPS.items():
        print(f"filling, {time.monotonic() - started:.0f} s: {step}", flush=True)
        script = template.format(
            transfers=transfers,
            accounts=accounts,
            initial_balance=INITIAL_BALANCE,
            max_amount=MAX_AMOUNT,
            rows_per_seal=ROWS_PER_SEAL,
        )
        for statement in script.split(";"):
            await connection.exec_driver_sql(statement)
    print(f"filled in {time.monotonic() - started:.0f} s")


async def run_check(connection: AsyncConnection, server: ShopServer) -> CheckRun:
    """Run `shop check`, and print its output, time, memory and temporary files."""

    async def temporary_bytes() -> int:
        statement = "SELECT temp_bytes FROM pg_stat_database WHERE datname = current_database()"
        return int(await fetch_value(connection, statement))

    before = await temporary_bytes()
    run = await asyncio.to_thread(_measure_check, server)
    run = dataclasses.replace(run, temporary_bytes=await temporary_bytes() - before)
    print(run.output.strip())
    print(
        f"exit code {run.exit_code} after {run.seconds:.1f} s; at most {run.client_bytes / MEGABYTE:.0f} MB in the "
        f"process and {run.server_bytes / MEGABYTE:.0f} MB in PostgreSQL's processes; "
        f"{run.temporary_bytes / MEGABYTE:,.0f} MB of temporary files",
        flush=True,
    )
    return run


def _measure_check(server: ShopServer) -> CheckRun:
    """Run `shop check`, and sample the memory of its process and of PostgreSQL's processes."""
    assert server.postgres.pid is not None
    postmaster = psutil.Process(server.postgres.pid)
    client_bytes, server_bytes, started = 0, 0, time.monotonic()
    output_file = server.folder / "check.output"
    with output_file.open("wb") as output:  # a full pipe would block the process
        process = subprocess.Popen(
            [*SHOP, "check"], env=os.environ | {"SHOP_OWNER_DATABASE_URL": server.url}, stdout=output, stderr=output
        )
        client = psutil.Process(process.pid)
        while process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                client_bytes = max(client_bytes, client.memory_info().rss)
            server_bytes = max(server_bytes, sum(map(_private_bytes, postmaster.children())))
            time.sleep(SAMPLE_SECONDS)
    return CheckRun(
        exit_code=process.returncode,
        output=output_file.read_text(),
        seconds=time.monotonic() - started,
        client_bytes=client_bytes,
        server_bytes=server_bytes,
        temporary_bytes=0,
    )


def _private_bytes(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.NoSuchProcess):
        memory = process.memory_info()
        return int(memory.rss - memory.shared)
    return 0


async def run(server: ShopServer, entries: int, megabytes: int) -> bool:
    """Check the correct ledger and the changed one. Return whether the run passed."""
    async with autocommit(server.url) as connection:
        await fill(connection, entries)
    # A new connection, because the old backend keeps the memory that it used to fill the tables.
    async with autocommit(server.url) as connection:
        size = int(await fetch_value(connection, "SELECT pg_database_size(current_database())"))
        print(f"{size / MEGABYTE:,.0f} MB of data")
        correct = await run_check(connection, server)
        await connection.exec_driver_sql("SET session_replication_role = replica")
        changed_entry = await fetch_value(connection, CHANGE_ONE_AMOUNT)
        print(f"one amount changed: {changed_entry}")
        faulty = await run_check(connection, server)
    peak = max(correct.client_bytes, correct.server_bytes, faulty.client_bytes, faulty.server_bytes)
    is_within_limit = peak <= megabytes * MEGABYTE
    print(f"peak memory is {'within' if is_within_limit else 'above'} {megabytes} MB")
    return (
        correct.exit_code == 0
        and f"{entries // 2 * 2:,} entries" in correct.output
        and faulty.exit_code == 1
        and changed_entry in faulty.output
        and is_within_limit
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=10_000_000)
    parser.add_argument("--megabytes", type=int, default=256)
    options = parser.parse_args(argv)
    # Autovacuum is off, because the memory of its workers would be measured, too.
    with shop_server({"autovacuum": "off"}) as server:
        return 0 if asyncio.run(run(server, options.entries, options.megabytes)) else 1


if __name__ == "__main__":
    sys.exit(main())
