"""The contents, filters and pages of an account statement, and the available amount."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import text, update
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Database, paginate
from shop.ledger.account_queries import AccountRepository, select_entries
from shop.ledger.account_schemas import AccountIn
from shop.ledger.accounts import open_account, read_account
from shop.ledger.models import Account, PendingTransfer
from shop.ledger.requests import TransferRequest
from shop.ledger.service import find_transfer, transfer_funds
from shop_tests.support.factories import create, make_account, transfer, walk, walk_back
from shop_tests.support.large_ledger import create_large_ledger
from shop_tests.support.problems import assert_problem
from shop_tests.support.query_plans import explain
from shop_tests.support.session_accounts import post_one
from shop_tests.support.trigger_bypass import disable_triggers


async def create_transfer(client: httpx.AsyncClient, path: str = "/transfers", **body: Any) -> dict[str, Any]:
    return await create(client, path, body, headers={"Idempotency-Key": str(uuid4())})


async def entries(client: httpx.AsyncClient, account: dict[str, Any], **parameters: Any) -> list[dict[str, Any]]:
    return [entry for page in await walk(client, f"/accounts/{account['id']}/entries", **parameters) for entry in page]


async def test_an_entry_has_the_details_of_its_transfer(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    accounts = {"from_account_id": a["id"], "to_account_id": b["id"]}
    plain = await create_transfer(client, **accounts, amount=10, description="rent", metadata={"region": "north"})
    pending = await create_transfer(
        client, **accounts, amount=20, pending_seconds=60, effective_at="2026-01-02T03:04:05Z"
    )
    posted = await create_transfer(client, f"/transfers/{pending['id']}/post", amount=15)
    reversal = await create_transfer(client, f"/transfers/{plain['id']}/reverse", amount=4)
    both = await create(
        client,
        "/transfers/linked",
        {"transfers": [accounts | {"amount": 1}, accounts | {"amount": 2}]},
        headers={"Idempotency-Key": "both"},
    )
    shared = {"transfer_id", "counterparty_account_id", "kind", "amount", "description", "effective_at", "metadata"}
    rows = [{name: entry[name] for name in shared} for entry in await entries(client, b)]
    linked = both["transfers"]
    assert rows == [
        {
            "transfer_id": each["id"],
            "counterparty_account_id": a["id"],
            "kind": kind,
            "amount": amount,
            "description": each["description"],
            "effective_at": each["effective_at"],
            "metadata": each["metadata"],
        }
        for each, kind, amount in (
            (plain, "transfer", 10),
            (posted, "posted_hold", 15),
            (reversal, "reversal", -4),
            (linked[0], "transfer", 1),
            (linked[1], "transfer", 2),
        )
    ]
    assert rows[1]["effective_at"] == "2026-01-02T03:04:05Z"
    found = await entries(client, b)
    assert {entry["group_id"] for entry in found[3:]} == {linked[0]["group_id"]}
    assert [entry["reverses_id"] for entry in found] == [None, None, plain["id"], None, None]
    assert [entry["created_at"] for entry in found[:3]] == [each["created_at"] for each in (plain, posted, reversal)]
    assert {entry["counterparty_account_id"] for entry in (await entries(client, a))[1:]} == {b["id"]}


async def test_the_statement_is_paged_newest_first_in_both_directions(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    for amount in range(1, 8):
        await transfer(client, a, b, amount)
    path = f"/accounts/{b['id']}/entries"
    pages = await walk(client, path, order="newest", limit=3)
    assert [[entry["entry_number"] for entry in page] for page in pages] == [[7, 6, 5], [4, 3, 2], [1]]
    assert await walk_back(client, path, order="newest", limit=3) == pages[::-1]
    assert [entry["entry_number"] for entry in await entries(client, b)] == [1, 2, 3, 4, 5, 6, 7]

    newest = (await client.get(path, params={"order": "newest", "limit": 3})).json()
    await transfer(client, a, b, 8)  # belongs before the first page
    second = (await client.get(path, params={"order": "newest", "limit": 3, "after": newest["next"]})).json()
    assert [entry["entry_number"] for entry in second["items"]] == [4, 3, 2]
    before = (await client.get(path, params={"order": "newest", "limit": 3, "before": second["previous"]})).json()
    assert [entry["entry_number"] for entry in before["items"]] == [7, 6, 5]

    for other in ({}, {"order": "oldest"}, {"order": "newest", "kind": "transfer"}):
        answer = await client.get(path, params=other | {"after": newest["next"]})
        assert_problem(answer, 400, "invalid-cursor")
    for wrong in ({"order": "random"}, {"kind": "gift"}, {"direction": "up"}, {"created_from": "2026-01-01T00:00:00"}):
        assert_problem(await client.get(path, params=wrong), 422, "validation")


async def test_the_statement_is_filtered(client: httpx.AsyncClient) -> None:
    a, b, c = [await make_account(client, balance) for balance in (1_000, 1_000, 0)]
    start = datetime(2026, 1, 1, tzinfo=UTC)
    for n in range(6):
        source, target = ((a, c), (b, c), (c, a))[n % 3]
        await create_transfer(
            client,
            from_account_id=source["id"],
            to_account_id=target["id"],
            amount=10 + n,
            effective_at=(start + timedelta(days=n)).isoformat(),
        )
    every = await entries(client, c)
    times = [entry["created_at"] for entry in every]

    async def numbers(**parameters: Any) -> list[int]:
        return [entry["entry_number"] for entry in await entries(client, c, limit=2, **parameters)]

    assert await numbers(created_from=times[1], created_before=times[4]) == [2, 3, 4]
    assert await numbers(created_from=times[5]) == [6]
    assert await numbers(created_before=times[0]) == []
    assert await numbers(created_before=times[2], order="newest") == [2, 1]
    assert await numbers(created_from=times[4], created_before=times[1]) == []
    day = (start + timedelta(days=2)).isoformat()
    assert await numbers(effective_from=day) == [3, 4, 5, 6]
    assert await numbers(effective_before=day) == [1, 2]
    assert await numbers(counterparty_account_id=a["id"]) == [1, 3, 4, 6]
    assert await numbers(counterparty_account_id=a["id"], direction="debit") == [3, 6]
    assert await numbers(direction="credit", created_from=times[2]) == [4, 5]
    assert await numbers(kind="transfer") == [1, 2, 3, 4, 5, 6]
    assert await numbers(kind="reversal") == []


async def test_a_page_of_a_statement_reads_only_its_own_entries(session: AsyncSession) -> None:
    account = await create_large_ledger(session)
    for order in ("newest", "oldest"):
        listing = select_entries(account, order=order)
        after = (await paginate(session, listing, limit=20)).next
        nodes = await explain(session, partial(paginate, session, listing, limit=20, after=after))
        scans = {node["Index Name"]: node for node in nodes if "Index Name" in node}
        assert not [node for node in nodes if node["Node Type"] in {"Seq Scan", "Sort", "Hash Join"}]
        assert {"pk_entries", "pk_transfers"} <= scans.keys()
        assert "entry_number" in scans["pk_entries"]["Index Cond"]


async def test_the_entries_since_a_time_are_found_by_binary_search(session: AsyncSession) -> None:
    account = await create_large_ledger(session)
    at = await session.scalar(
        text("SELECT created_at FROM entries WHERE entry_number = 301 AND account_id = :a"), {"a": account}
    )
    listing = select_entries(account, created_from=at, created_before=at + timedelta(minutes=1_000))
    counter = text("SELECT idx_tup_fetch + seq_tup_read FROM pg_stat_xact_user_tables WHERE relname = 'entries'")
    before = await session.scalar(counter)
    page = await paginate(session, listing, limit=5)
    assert [entry.entry_number for entry in page.items] == [301, 302, 303, 304, 305]
    assert (await session.scalar(counter) or 0) - (before or 0) < 60  # the account has 400 entries, the table 40,000


async def test_the_available_amount_is_the_balance_minus_the_held_amount(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 100, overdraft_limit=50), await make_account(client)
    assert (a["held"], a["available"]) == (0, 100)
    assert (b["balance"], b["held"], b["available"]) == (0, 0, 0)
    pending = await create_transfer(
        client, from_account_id=a["id"], to_account_id=b["id"], amount=120, pending_seconds=60
    )
    account = (await client.get(f"/accounts/{a['id']}")).json()
    assert (account["balance"], account["held"], account["available"]) == (100, 120, -20)
    [listed] = [
        each
        for each in (await client.get("/accounts", params={"limit": 1000})).json()["items"]
        if each["id"] == a["id"]
    ]
    assert listed == account
    path = f"/accounts/{a['id']}/balance"
    now = (await client.get(path)).json()
    assert (now["balance"], now["held"], now["available"], now["entry_number"]) == (100, 120, -20, 1)
    for then in ({"entry_number": 1}, {"at": pending["created_at"]}, {"effective_at": pending["created_at"]}):
        body = (await client.get(path, params=then)).json()
        assert (body["balance"], body["held"], body["available"]) == (100, None, None)
    holds = await walk(client, "/transfers", from_account_id=a["id"], state="pending")
    assert sum(each["amount"] for page in holds for each in page) == account["held"]
    assert [each["expires_at"] for page in holds for each in page] == [pending["expires_at"]]


async def test_an_expired_hold_is_read_as_voided_before_it_is_voided(session: AsyncSession) -> None:
    """In an uncommitted transaction, so that no background job sees the hold."""
    world = await open_account(session, AccountIn(name="World", currency="GBP", allows_negative=True))
    account = await open_account(session, AccountIn(name="Account", currency="GBP"))
    await transfer_funds(session, world.id, account.id, 100)
    late, other = [
        await post_one(session, TransferRequest(account.id, world.id, amount, pending_seconds=60)) for amount in (30, 5)
    ]
    assert ((await read_account(session, account.id)).held, (await find_transfer(session, late.id)).state) == (
        35,
        "pending",
    )
    await disable_triggers(session)
    past = datetime.now(UTC) - timedelta(seconds=60)
    await session.execute(update(PendingTransfer).where(PendingTransfer.id == late.id).values(expires_at=past))

    now = await read_account(session, account.id)
    assert (now.balance, now.held, now.available) == (100, 5, 95)
    found = await find_transfer(session, late.id)
    assert (found.state, found.expires_at, found.held_amount) == ("voided", None, 30)
    assert (await find_transfer(session, other.id)).state == "pending"
    stored = (
        await session.execute(text("SELECT state FROM pending_transfers WHERE id = :id"), {"id": late.id})
    ).scalar_one()
    assert stored == "pending"
    assert (await AccountRepository(session).get_one(account.id)).held == 35


async def test_the_snapshots_are_not_tables(stored: Database) -> None:
    assert {"account", "entry", "transfer"}.isdisjoint(Account.metadata.tables)


@pytest.mark.parametrize("path", ["entries", "balance"])
async def test_an_unknown_account_is_not_found(client: httpx.AsyncClient, path: str) -> None:
    assert_problem(await client.get(f"/accounts/{UUID(int=1)}/{path}"), 404, "not-found")
