"""`check_ledger` finds each kind of fault, and reports none in a correct ledger."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from random import Random

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Database, DatabaseError, lock, savepoint
from shop.ledger.account_schemas import AccountIn
from shop.ledger.accounts import open_account
from shop.ledger.check import STEPS, LedgerReport, check_ledger
from shop.ledger.group_commit import Ledger
from shop.ledger.models import Account
from shop.ledger.requests import TransferRequest
from shop_tests.support.checked_ledger import create_ledger
from shop_tests.support.trigger_bypass import disable_triggers, enable_triggers


async def test_a_correct_ledger_has_no_fault_and_is_counted(session: AsyncSession) -> None:
    await create_ledger(session)
    assert await check_ledger(session) == LedgerReport(accounts=5, transfers=5, entries=10)


async def test_an_empty_ledger_is_correct(session: AsyncSession) -> None:
    assert await check_ledger(session) == LedgerReport(accounts=0, transfers=0, entries=0)


@pytest.mark.parametrize(
    ("found", "plant"),
    [
        pytest.param(
            {
                "balances differ from the sum of the entries",
                "balances differ from the last entry",
                "currencies don't sum to zero",
            },
            ["UPDATE accounts SET balance = balance + 1 WHERE id = :rich"],
            id="a balance",
        ),
        pytest.param(
            {"balances differ from the sum of the entries", "balances differ from the last entry"},
            [
                "UPDATE accounts SET balance = balance - 1 WHERE id = :rich",
                "UPDATE accounts SET balance = balance + 1 WHERE id = :poor",
            ],
            id="two balances that cancel out",
        ),
        pytest.param(
            {"balances differ from the last entry", "entry balances disagree with the previous entry"},
            ["UPDATE entries SET balance_after = balance_after + 1 WHERE account_id = :rich AND entry_number = 3"],
            id="the last entry's balance",
        ),
        pytest.param(
            {"entry balances disagree with the previous entry"},
            ["UPDATE entries SET balance_after = 9223372036854775807 WHERE account_id = :rich AND entry_number = 1"],
            id="an earlier entry's balance",
        ),
        pytest.param(
            {"entry numbers have gaps"},
            [
                "UPDATE entries SET entry_number = 7 WHERE account_id = :rich AND entry_number = 3",
                "UPDATE transfers SET to_entry_number = 7 WHERE to_account_id = :rich AND to_entry_number = 3",
                "UPDATE accounts SET entry_count = 7 WHERE id = :rich",
            ],
            id="a gap in the entry numbers",
        ),
        pytest.param(
            {"entry numbers have gaps"},
            ["UPDATE accounts SET entry_count = entry_count + 1 WHERE id = :rich"],
            id="an entry count",
        ),
        pytest.param(
            {"transfers lack an entry"},
            [
                """
                INSERT INTO transfers (
                    id, from_account_id, from_entry_number, to_account_id, to_entry_number, amount, currency,
                    effective_at, created_at
                ) VALUES (gen_random_uuid(), :world, 2, :rich, 4, 5, 'GBP', now(), now())
                """
            ],
            id="a transfer without entries",
        ),
        pytest.param(
            {"transfers lack an entry", "entries have no transfer with the same values"},
            ["UPDATE transfers SET amount = amount + 1 WHERE to_account_id = :euros"],
            id="a transfer of another amount",
        ),
        pytest.param(
            {"transfers lack an entry", "entries have no transfer with the same values"},
            [
                "UPDATE entries SET transfer_id = (SELECT id FROM transfers WHERE to_account_id = :euros)"
                " WHERE account_id = :world"
            ],
            id="entries of another transfer",
        ),
        pytest.param(
            {"entries have no transfer with the same values"},
            [
                """
                INSERT INTO entries (account_id, entry_number, transfer_id, amount, balance_after, created_at)
                SELECT :poor, n, id, further, greatest(further, 0), clock_timestamp()
                FROM transfers, (VALUES (3, 5), (4, -5)) added(n, further) WHERE to_account_id = :euros
                """,
                "UPDATE accounts SET entry_count = 4 WHERE id = :poor",
            ],
            id="more than two entries",
        ),
        pytest.param(
            {"entries have no transfer with the same values"},
            [
                """
                INSERT INTO entries (account_id, entry_number, transfer_id, amount, balance_after, created_at)
                VALUES
                    (:poor, 3, gen_random_uuid(), 5, 5, clock_timestamp()),
                    (:poor, 4, gen_random_uuid(), -5, 0, clock_timestamp())
                """,
                "UPDATE accounts SET entry_count = 4 WHERE id = :poor",
            ],
            id="an entry without a transfer",
        ),
        pytest.param(
            {"entries have no account", "entries have no transfer with the same values"},
            [
                """
                INSERT INTO entries (account_id, entry_number, transfer_id, amount, balance_after, created_at)
                VALUES (gen_random_uuid(), 1, gen_random_uuid(), 5, 5, now())
                """
            ],
            id="an entry without an account",
        ),
        pytest.param(
            {
                "entries are older than the previous entry",
                "entries have another time than their transfer",
                "entries have a time in the future",
            },
            [
                """
                UPDATE entries SET created_at = created_at + interval '1 day'
                WHERE account_id = :rich AND entry_number = 1
                """
            ],
            id="an entry's time",
        ),
        *(
            pytest.param(
                {f"{table.replace('_', ' ')} have a time in the future", *others},
                [f"UPDATE {table} SET {column} = now() + interval '1 hour' WHERE {column} IS NOT NULL"],
                id=f"{column} of {table} in the future",
            )
            for table, column, *others in (
                ("accounts", "created_at"),
                ("accounts", "updated_at"),
                ("entries", "created_at", "entries have another time than their transfer"),
                ("transfers", "created_at", "entries have another time than their transfer"),
                (
                    "pending_transfers",
                    "created_at",
                    "idempotency keys have another time than their transfer or account",
                ),
                ("pending_transfers", "settled_at", "posted transfers differ from their hold"),
            )
        ),
        pytest.param(
            {"transfers have another currency than their accounts"},
            ["UPDATE transfers SET currency = 'JPY' WHERE to_account_id = :euros"],
            id="a transfer in another currency",
        ),
        pytest.param(
            {"transfers have another currency than their accounts", "currencies don't sum to zero"},
            ["UPDATE accounts SET currency = 'EUR' WHERE id = :rich"],
            id="an account in another currency",
        ),
        pytest.param(
            {
                "reversals don't swap the accounts of the original transfer",
                "reversals exceed the original amount, or their totals are wrong",
            },
            [
                "UPDATE transfers SET reverses_id = (SELECT id FROM transfers WHERE to_account_id = :euros)"
                " WHERE reverses_id IS NOT NULL"
            ],
            id="a reversal of another transfer",
        ),
        pytest.param(
            {"reversals exceed the original amount, or their totals are wrong"},
            ["UPDATE transfers SET reversed_total = reversed_total + 1 WHERE reverses_id IS NOT NULL"],
            id="a reversal's running total",
        ),
        pytest.param(
            {"balances are above the balance limit"},
            [
                "ALTER TABLE accounts DROP CONSTRAINT ck_accounts_balance_within_limit",
                "UPDATE accounts SET balance_limit = 0 WHERE id = :rich",
            ],
            id="a limit",
        ),
        pytest.param(
            {"idempotency keys disagree with their transfer or account"},
            ["UPDATE idempotency_keys SET transfer_id = gen_random_uuid() WHERE key = 'a'"],
            id="a key without a transfer",
        ),
        pytest.param(
            {"held amounts differ from the pending transfers"},
            ["UPDATE accounts SET held = held + 1 WHERE id = :euros"],
            id="a held amount",
        ),
        pytest.param(
            {"held amounts differ from the pending transfers"},
            ["UPDATE accounts SET held = 1 WHERE id = :rich"],
            id="a held amount where nothing is pending",
        ),
        pytest.param(
            {"states of pending transfers disagree with the posted transfers"},
            ["UPDATE pending_transfers SET state = 'posted' WHERE state = 'voided'"],
            id="a posted hold without a transfer",
        ),
        pytest.param(
            {"states of pending transfers disagree with the posted transfers"},
            ["UPDATE pending_transfers SET state = 'voided' WHERE state = 'posted'"],
            id="a transfer of a hold that is not posted",
        ),
        pytest.param(
            {"posted transfers differ from their hold"},
            ["UPDATE pending_transfers SET amount = 14 WHERE state = 'posted'"],
            id="a transfer of more than the hold",
        ),
        pytest.param(
            {"posted transfers differ from their hold"},
            ["UPDATE pending_transfers SET to_account_id = :rich WHERE state = 'posted'"],
            id="a hold that was posted to another account",
        ),
        pytest.param(
            {"entries have another time than their transfer"},
            ["UPDATE transfers SET created_at = created_at + interval '1 us' WHERE to_account_id = :euros"],
            id="a transfer's time",
        ),
        pytest.param(
            {"transfers have another currency than their accounts"},
            ["UPDATE pending_transfers SET currency = 'JPY' WHERE state = 'pending'"],
            id="a pending transfer in another currency",
        ),
        pytest.param(
            {"transfers have another currency than their accounts"},
            ["UPDATE pending_transfers SET to_account_id = :rich WHERE state = 'voided'"],
            id="a pending transfer to an account in another currency",
        ),
        *(
            pytest.param(
                {"posted transfers differ from their hold"},
                [f"UPDATE pending_transfers SET {change} WHERE state = 'posted'"],
                id=f"a hold that differs from its transfer: {change}",
            )
            for change in (
                "description = ''",
                """metadata = '{"a": "b"}'""",
                "effective_at = now() + interval '1 day'",
                "group_id = gen_random_uuid()",
                "settled_at = settled_at + interval '1 us'",
            )
        ),
        *(
            pytest.param(
                {"idempotency keys have another time than their transfer or account"},
                [f"UPDATE idempotency_keys SET {change}"],
                id=f"a key's time: {change}",
            )
            for change in (
                "created_at = created_at + interval '1 us' WHERE key = 'a'",
                "created_at = created_at - interval '1 us' WHERE key = 'c'",
            )
        ),
        pytest.param(
            {"overdrafts exceed the overdraft limit"},
            [
                "ALTER TABLE accounts DROP CONSTRAINT ck_accounts_available_within_overdraft_limit",
                "UPDATE accounts SET allows_negative = false WHERE id = :world",
            ],
            id="a balance below zero",
        ),
    ],
)
async def test_a_fault_is_found(session: AsyncSession, found: set[str], plant: list[str]) -> None:
    ids = dict(zip(("world", "rich", "poor", "euros"), await create_ledger(session), strict=True))
    await disable_triggers(session)
    for statement in plant:
        planting = text(statement)
        await session.execute(planting.bindparams(**{name: ids[name] for name in planting._bindparams}))
    await enable_triggers(session)
    report = (await check_ledger(session)).faults
    assert {fault for fault in report if "seal" not in fault and "schema" not in fault} == found
    assert all(report.values())


async def test_up_to_twenty_findings_of_a_kind_are_reported(session: AsyncSession) -> None:
    for number in range(25):
        await open_account(session, AccountIn(name=str(number), currency="GBP"))
    await disable_triggers(session)
    await session.execute(text("UPDATE accounts SET balance = 1, entry_count = 1"))
    await enable_triggers(session)
    report = (await check_ledger(session)).faults
    assert len(report["balances differ from the sum of the entries"]) == 20
    assert len(report["entry numbers have gaps"]) == 20
    assert report["currencies don't sum to zero"] == ["GBP: 25"]


async def test_each_step_is_reported_when_it_begins(session: AsyncSession) -> None:
    begun: list[str] = []
    await check_ledger(session, begin=begun.append)
    assert begun == list(STEPS)


async def test_the_check_has_no_timeout_and_uses_little_memory(session: AsyncSession) -> None:
    await session.execute(text("SET LOCAL statement_timeout = '30s'"))
    await session.execute(text("SET LOCAL work_mem = '1GB'"))
    await check_ledger(session)
    for name, value in (("statement_timeout", "0"), ("work_mem", "64MB")):
        assert await session.scalar(text(f"SHOW {name}")) == value


async def test_the_ledger_is_correct_at_every_moment_of_a_busy_run(stored: Database) -> None:
    async with stored.begin() as session:
        accounts = [
            (await open_account(session, AccountIn(name=str(n), currency="GBP", allows_negative=True))).id
            for n in range(4)
        ]
    ledger, dice, stop = Ledger(stored), Random(1), asyncio.Event()

    async def move_money() -> int:
        moved = 0
        while not stop.is_set():
            source, target = dice.sample(accounts, 2)
            (await ledger.submit(TransferRequest(source, target, dice.randint(1, 100)))).unwrap()
            moved += 1
        return moved

    async def check(isolation_level: str) -> LedgerReport:
        async with stored.begin(isolation_level=isolation_level, read_only=True) as session:  # type: ignore[arg-type]
            return await check_ledger(session)

    running = [asyncio.create_task(move_money()) for _ in range(4)]
    try:
        reports = [await check("REPEATABLE READ") for _ in range(15)]
        assert [report.faults for report in reports] == [{}] * 15
        assert reports[-1].transfers > reports[0].transfers
        # the control: in READ COMMITTED each statement has its own snapshot, so the counts differ
        async with asyncio.timeout(30):
            while (seen := await check("READ COMMITTED")).entries == 2 * seen.transfers:
                pass
    finally:
        stop.set()
        moved = sum(await asyncio.gather(*running))
    async with stored.begin() as session:
        report = replace(await check_ledger(session), seal=None)  # the shared service may have linked some seals
        assert report == LedgerReport(accounts=4, transfers=moved, entries=2 * moved)
        assert sum(account.balance for account in (await lock(session, Account, accounts)).values()) == 0


@pytest.mark.parametrize("table", ["transfers", "entries"])
@pytest.mark.parametrize("change", ["UPDATE {} SET amount = amount + 1", "DELETE FROM {}", "TRUNCATE {} CASCADE"])
async def test_rows_of_the_ledger_are_never_changed(session: AsyncSession, table: str, change: str) -> None:
    await create_ledger(session)
    with pytest.raises(DatabaseError, match="never changed or deleted") as caught:
        async with savepoint(session):
            await session.execute(text(change.format(table)))
    assert caught.value.sqlstate == "55000"
    assert (await check_ledger(session)).faults == {}
