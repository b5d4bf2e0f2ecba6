"""The ledger's times are those of the database's clock, whatever a process's own clock says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import CheckViolation, Database, bulk, utcnow
from shop.ledger.account_schemas import AccountChange
from shop.ledger.accounts import change_account, get_or_open_system_account, read_balance_at, read_effective_balance
from shop.ledger.check import check_ledger
from shop.ledger.group_commit import Ledger
from shop.ledger.maintenance import delete_old_keys, void_expired
from shop.ledger.models import Account, AccountPurpose, Entry, IdempotencyKey, PendingTransfer, Transfer
from shop.ledger.requests import Refusal, TransferRequest
from shop.ledger.service import post_transfers, transfer_funds
from shop.orders.models import Order
from shop.orders.service import pay_order
from shop_tests.support.factories import make_account, make_order, make_user, post_transfer, transfer
from shop_tests.support.funded_accounts import open_accounts
from shop_tests.support.statement_log import log_statements
from shop_tests.support.trigger_bypass import disable_triggers
from shop_tests.support.waiting import until
from shop_tests.support.wall_clock import wall_clock_off_by

HOUR = timedelta(hours=1)
skewed = pytest.mark.parametrize("difference", [HOUR, -HOUR], ids=["an hour fast", "an hour slow"])


async def database_time(database: Database) -> datetime:
    async with database.session() as session:
        found: datetime = (await session.execute(text("SELECT clock_timestamp()"))).scalar_one()
        return found


def test_a_test_can_set_a_wrong_clock() -> None:
    with wall_clock_off_by(HOUR):
        assert utcnow() - datetime.now(UTC) > HOUR / 2
    assert utcnow() - datetime.now(UTC) < HOUR / 2


async def by_submit(database: Database, a: UUID, b: UUID) -> None:
    async with Ledger(database) as ledger:
        for _ in range(3):
            (await ledger.submit(TransferRequest(a, b, 1, key=str(uuid4())))).unwrap()


async def by_submit_many(database: Database, a: UUID, b: UUID) -> None:
    async with Ledger(database) as ledger:
        for linked in (False, True):
            requests = [TransferRequest(a, b, 1, linked=linked), TransferRequest(a, b, 2)]
            assert all(result.refusal is None for result in await ledger.submit_many(requests))


async def by_hold(database: Database, a: UUID, b: UUID) -> None:
    async with Ledger(database) as ledger:
        before = await database_time(database)
        posted, voided = [
            (await ledger.submit(TransferRequest(a, b, 1, pending_seconds=60))).unwrap() for _ in range(2)
        ]
        assert posted.expires_at is not None
        assert before <= posted.expires_at - timedelta(seconds=60) <= await database_time(database)
        for request in (TransferRequest(a, b, None, posts=posted.id), TransferRequest(a, b, None, voids=voided.id)):
            (await ledger.submit(request)).unwrap()


async def by_reversal(database: Database, a: UUID, b: UUID) -> None:
    async with Ledger(database) as ledger:
        posted = (await ledger.submit(TransferRequest(a, b, 2))).unwrap()
        (await ledger.submit(TransferRequest(b, a, 1, reverses=posted.id))).unwrap()


async def by_session(database: Database, a: UUID, b: UUID) -> None:
    async with database.begin() as session:
        await transfer_funds(session, a, b, 1)
        [result] = await post_transfers(session, [TransferRequest(a, b, 1, key=str(uuid4()))])
        result.unwrap()


async def by_change(database: Database, a: UUID, b: UUID) -> None:
    async with database.begin() as session:
        await change_account(session, a, AccountChange(name="Renamed"))
        await transfer_funds(session, await system_id(session), b, 1)
    async with database.begin() as session:
        (await session.get_one(Account, b)).name = "Renamed, too"


async def by_bulk_insert(database: Database, a: UUID, b: UUID) -> None:
    accounts = ({"name": "One of many", "currency": "GBP"} for _ in range(30))
    async with database.begin() as session:
        await bulk.insert_many(session, Account, accounts)
        await transfer_funds(session, a, b, 1)


async def system_id(session: AsyncSession) -> UUID:
    return (await get_or_open_system_account(session, AccountPurpose.CASH_IN, "GBP")).id


ENTRY_POINTS = [by_submit, by_submit_many, by_hold, by_reversal, by_session, by_change, by_bulk_insert]


@skewed
@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
async def test_all_times_that_a_process_writes_are_database_times(
    stored: Database, entry_point: Callable[[Database, UUID, UUID], Awaitable[None]], difference: timedelta
) -> None:
    before = await database_time(stored)
    with wall_clock_off_by(difference):
        a, b = await open_accounts(stored, 100, 0)
        await entry_point(stored, a, b)
    after = await database_time(stored)
    written: list[Any] = [
        *(Account.created_at, Account.updated_at, Transfer.created_at, Transfer.effective_at, Entry.created_at),
        *(PendingTransfer.created_at, PendingTransfer.settled_at, IdempotencyKey.created_at),
    ]
    async with stored.session() as session:
        for column in written:
            times = (await session.scalars(select(column).where(column.is_not(None)))).all()
            assert all(before <= at <= after for at in times), column
        assert (await session.scalars(select(Entry.created_at))).first()
        assert (await check_ledger(session)).faults == {}
        balance = (await session.get_one(Account, b)).balance
        assert (
            (await read_balance_at(session, b, after))[0] == await read_effective_balance(session, b, after) == balance
        )


@skewed
async def test_current_balances_are_correct_over_http(
    client: httpx.AsyncClient, stored: Database, difference: timedelta
) -> None:
    with wall_clock_off_by(difference):  # the service runs in this process
        a, b = await make_account(client, 100), await make_account(client)
        first = [await transfer(client, a, b, amount) for amount in (1, 2)]
    later = await transfer(client, a, b, 4)
    times = [each["created_at"] for each in (*first, later)]
    assert times == sorted(times)
    now = (await database_time(stored)).isoformat()
    for parameters in ({}, {"at": now}, {"effective_at": now}):
        answer = await client.get(f"/accounts/{b['id']}/balance", params=parameters)
        assert answer.json()["balance"] == 7, parameters


@skewed
async def test_a_hold_of_a_second_lasts_a_second(
    client: httpx.AsyncClient, stored: Database, difference: timedelta
) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    body = {"from_account_id": a["id"], "to_account_id": b["id"], "amount": 60, "pending_seconds": 1}
    with wall_clock_off_by(difference):
        await post_transfer(client, a, b, 1)
        pending = (await client.post("/transfers", json=body, headers={"Idempotency-Key": "hold"})).json()
        assert pending["state"] == "pending"
        expires_at = datetime.fromisoformat(pending["expires_at"])
        held = (await client.get(f"/accounts/{a['id']}")).json()["held"]
        assert held == 60 or await database_time(stored) >= expires_at  # a busy machine may need more than a second

        async def expired() -> bool:
            return bool((await client.get(f"/transfers/{pending['id']}")).json()["state"] == "voided")

        await until(expired, seconds=5)
        assert expires_at <= await database_time(stored)
        assert (await client.get(f"/accounts/{a['id']}")).json()["held"] == 0
        assert (await post_transfer(client, a, b, 99)).status_code == 201


@skewed
async def test_an_order_is_paid_at_the_time_of_the_database(
    client: httpx.AsyncClient, stored: Database, difference: timedelta
) -> None:
    ada, till = await make_account(client, 500), await make_account(client)
    user = await make_user(client)
    before = await database_time(stored)
    with wall_clock_off_by(difference):
        order = UUID((await make_order(client, user["id"], 100))["id"])
        async with stored.begin() as session:
            paid = await pay_order(session, order, UUID(ada["id"]), UUID(till["id"]), key="pay")
    assert before <= paid.result.unwrap().created_at <= await database_time(stored)
    async with stored.session() as session:
        assert (await session.get_one(Order, order)).transfer_id == paid.result.unwrap().id


@skewed
async def test_maintenance_uses_the_time_of_the_database(stored: Database, difference: timedelta) -> None:
    a, b = await open_accounts(stored, 100, 0)
    async with Ledger(stored) as ledger:
        await ledger.submit(TransferRequest(a, b, 1, key="k"))
        await ledger.submit(TransferRequest(a, b, 60, pending_seconds=30))
        with wall_clock_off_by(difference):
            assert await void_expired(ledger) == 0
            assert await delete_old_keys(stored, timedelta(minutes=30)) == 0
        async with stored.begin() as session:
            await disable_triggers(session)
            await session.execute(update(PendingTransfer).values(expires_at=PendingTransfer.expires_at - HOUR / 2))
            await session.execute(update(IdempotencyKey).values(created_at=IdempotencyKey.created_at - HOUR))
        with wall_clock_off_by(difference):
            assert await void_expired(ledger) == 1
            assert await delete_old_keys(stored, timedelta(minutes=30)) == 1


async def set_ahead(stored: Database, *accounts: UUID) -> None:
    """Set the times of the accounts an hour ahead, as a fast clock did before the database checked times."""
    async with stored.begin() as session:
        await disable_triggers(session)
        await session.execute(
            update(Account).where(Account.id.in_(accounts)).values(updated_at=Account.updated_at + HOUR)
        )


async def test_an_account_with_a_future_time_affects_only_its_own_transfers(stored: Database) -> None:
    """Accounts that transfer with it get its time, so that their entries stay in order. Other accounts don't, even if
    one statement writes all transfers. Its holds expire on time, and its transfers take effect now."""
    cash_in, a, b, c = await open_accounts(stored, 100, 100, 100, 0)
    await set_ahead(stored, cash_in)
    for run in range(2):  # decided under locks, then by one statement for those that have no future time
        async with Ledger(stored) as ledger:
            if run:
                await ledger.submit_many([TransferRequest(cash_in, a, 1), TransferRequest(b, c, 1)])
            requests = [TransferRequest(b, c, 1), TransferRequest(cash_in, a, 1), TransferRequest(c, b, 1)]
            results = await ledger.submit_many(
                [*requests, *([TransferRequest(a, b, 1, pending_seconds=1)] * (not run))]
            )
            times = [result.unwrap().created_at for result in results]
            now = await database_time(stored)
            assert times[1] > now + HOUR / 2
            assert [at <= now for at in times[:3]] == [True, False, True]
            assert all(result.unwrap().effective_at <= now for result in results)
            if not run:
                assert results[3].unwrap().expires_at <= now + timedelta(seconds=1)  # type: ignore[operator]
    async with stored.session() as session:
        found = {id_: (await session.get_one(Account, id_)).updated_at <= now for id_ in (cash_in, a, b, c)}
        assert found == {cash_in: False, a: False, b: True, c: True}
        faults = (await check_ledger(session)).faults
    assert set(faults) == {f"{name} have a time in the future" for name in ("accounts", "entries", "transfers")}
    assert len(faults["accounts have a time in the future"]) == 2


async def test_a_rolled_back_transfer_of_an_account_with_a_future_time_affects_no_other_time(stored: Database) -> None:
    future, a, b = await open_accounts(stored, 100, 100, 0)
    await set_ahead(stored, future)
    async with stored.begin() as session:
        results = await post_transfers(
            session,
            [TransferRequest(future, a, 1, linked=True), TransferRequest(b, a, 1_000), TransferRequest(a, b, 1)],
        )
    assert [result.refusal for result in results] == [Refusal.LINKED_TRANSFER_FAILED, Refusal.INSUFFICIENT_FUNDS, None]
    assert results[2].unwrap().created_at <= await database_time(stored)


@skewed
async def test_a_wrong_clock_of_the_process_adds_no_statement(stored: Database, difference: timedelta) -> None:
    a, b = await open_accounts(stored, 100, 0)
    with wall_clock_off_by(difference):
        async with Ledger(stored) as ledger, log_statements(stored) as seen:
            for _ in range(4):
                (await ledger.submit(TransferRequest(a, b, 1))).unwrap()
            assert seen.take() == ["post"] * 4


TRANSFER = """
    INSERT INTO transfers (id, from_account_id, from_entry_number, to_account_id, to_entry_number, amount, currency,
        created_at)
    SELECT gen_random_uuid(), a.id, a.entry_count + 1, b.id, b.entry_count + 1, 1, 'GBP', {}
    FROM accounts a, accounts b WHERE a.id = :a AND b.id = :b
    """
PENDING = """
    INSERT INTO pending_transfers (id, from_account_id, to_account_id, amount, currency, state, expires_at, created_at)
    VALUES (gen_random_uuid(), :a, :b, 1, 'GBP', 'pending', now() + interval '9 years', {})
    """
ACCOUNT = """
    INSERT INTO accounts (
        id, name, currency, balance, held, allows_negative, overdraft_limit, state, metadata, entry_count, revision, {}
    ) VALUES (gen_random_uuid(), 'A', 'GBP', 0, 0, true, 0, 'open', '{{}}', 0, 0, {})
    """
LATER = "clock_timestamp() + interval '2 seconds'"


@pytest.mark.parametrize(
    ("statement", "time", "constraint"),
    [
        (TRANSFER, LATER, "transfer_not_in_future"),
        (PENDING, LATER, "pending_transfer_not_in_future"),
        (ACCOUNT.replace("{}", "created_at", 1), LATER, "account_not_in_future"),
        (ACCOUNT.replace("{}", "updated_at", 1), LATER, "account_not_in_future"),
    ],
)
async def test_the_database_rejects_times_ahead_of_its_clock(
    stored: Database, statement: str, time: str, constraint: str
) -> None:
    a, b = await open_accounts(stored, 100, 0)
    ids = {name: id_ for name, id_ in (("a", a), ("b", b)) if f":{name}" in statement}
    with pytest.raises(CheckViolation) as refused:
        async with stored.begin() as session:
            await session.execute(text(statement.format(time)), ids)
    assert refused.value.constraint == constraint
    async with stored.session() as session:  # control
        await session.execute(text(statement.format("clock_timestamp()")), ids)


async def test_the_time_of_an_account_can_not_be_set_ahead(stored: Database) -> None:
    [a] = await open_accounts(stored, 0)
    async with stored.begin() as session:
        await session.execute(
            text("UPDATE accounts SET updated_at = now() + interval '1 hour' WHERE id = :a"), {"a": a}
        )
    async with stored.session() as session:
        assert (await session.get_one(Account, a)).updated_at <= await database_time(stored)


async def test_accounts_with_a_time_ahead_of_the_server_can_still_transfer(stored: Database) -> None:
    """Every entry point transfers from an account that is ahead to one that isn't, and from there to a third one."""
    a, b, c = await open_accounts(stored, 100, 100, 0)
    await set_ahead(stored, a)
    for entry_point in ENTRY_POINTS:
        await entry_point(stored, a, b)
        await entry_point(stored, b, c)
    async with stored.session() as session:
        entries = select(Entry.created_at).where(Entry.account_id == b).order_by(Entry.entry_number)
        times = list(await session.scalars(entries))
        assert times == sorted(times)


@skewed
async def test_two_processes_with_different_clocks_share_accounts(stored: Database, difference: timedelta) -> None:
    a, b = await open_accounts(stored, 1_000, 1_000)

    async def move(ledger: Ledger, source: UUID, target: UUID) -> list[Any]:
        posted = []
        for _ in range(20):
            posted.append((await ledger.submit(TransferRequest(source, target, 1))).unwrap())
        return posted

    async with Ledger(stored) as one, Ledger(stored) as other:
        await move(one, a, b)
        with wall_clock_off_by(difference):
            await asyncio.gather(move(one, a, b), move(other, b, a))
        await move(other, b, a)
    async with stored.session() as session:
        assert (await check_ledger(session)).faults == {}
