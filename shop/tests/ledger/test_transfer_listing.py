"""Lists of transfers, and the fields of a transfer for its hold, reversals and balances."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Database, paginate, utcnow
from shop.identity.principals import Role
from shop.ledger.group_commit import Ledger
from shop.ledger.models import PendingTransfer, TransferState
from shop.ledger.requests import TransferRequest
from shop.ledger.transfer_queries import select_transfers
from shop_tests.support.factories import create, make_account, post_transfer, transfer, walk, walk_back
from shop_tests.support.funded_accounts import open_accounts
from shop_tests.support.identity import sign_in
from shop_tests.support.large_ledger import create_large_ledger
from shop_tests.support.problems import assert_problem
from shop_tests.support.query_plans import explain
from shop_tests.support.trigger_bypass import disable_triggers


async def create_transfer(
    client: httpx.AsyncClient, path: str = "/transfers", *, key: str = "", **body: Any
) -> dict[str, Any]:
    return await create(client, path, body, headers={"Idempotency-Key": key or str(uuid4())})


async def hold(client: httpx.AsyncClient, source: Any, target: Any, amount: int, **values: Any) -> dict[str, Any]:
    body = {"from_account_id": source["id"], "to_account_id": target["id"], "amount": amount, "pending_seconds": 600}
    return await create_transfer(client, **body | values)


async def listed(client: httpx.AsyncClient, **parameters: Any) -> list[str]:
    """The ids of the list. Checks that both orders, and paging backward, return the same transfers."""
    found = [each["id"] for page in await walk(client, "/transfers", limit=3, **parameters) for each in page]
    back = [[each["id"] for each in page] for page in await walk_back(client, "/transfers", limit=3, **parameters)]
    assert [id_ for page in back[::-1] for id_ in page] == found
    newest = await walk(client, "/transfers", limit=3, order="newest", **parameters)
    assert [each["id"] for page in newest for each in page] == found[::-1]
    return found


def ids(*transfers: dict[str, Any]) -> list[str]:
    return [each["id"] for each in transfers]


async def test_transfers_are_listed_by_account_and_state(client: httpx.AsyncClient, stored: Database) -> None:
    a, b, c = [await make_account(client, 100) for _ in range(3)]
    from_world = (await client.get("/transfers")).json()["items"]
    ab, ba = await transfer(client, a, b, 1), await transfer(client, b, a, 2)
    bc = await transfer(client, b, c, 3)
    pending, late, posted, voided = [await hold(client, a, b, 10 + n) for n in range(4)]
    await create_transfer(client, f"/transfers/{posted['id']}/post")
    await create_transfer(client, f"/transfers/{voided['id']}/void")
    async with stored.begin() as session:
        await disable_triggers(session)
        expired = update(PendingTransfer).where(PendingTransfer.id == UUID(late["id"]))
        await session.execute(expired.values(expires_at=utcnow() - timedelta(minutes=1)))

    assert await listed(client) == ids(*from_world, ab, ba, bc, pending, late, posted, voided)
    of_a = [from_world[0], ab, ba, pending, late, posted, voided]
    assert await listed(client, account_id=a["id"]) == ids(*of_a)
    assert await listed(client, from_account_id=a["id"]) == ids(ab, pending, late, posted, voided)
    assert await listed(client, to_account_id=a["id"]) == ids(from_world[0], ba)
    assert await listed(client, to_account_id=c["id"], from_account_id=b["id"]) == ids(bc)
    assert await listed(client, account_id=c["id"], from_account_id=b["id"]) == ids(bc)
    assert await listed(client, account_id=str(uuid4())) == []
    for state, found in (("pending", [pending]), ("posted", [ab, posted]), ("voided", [late, voided])):
        assert await listed(client, from_account_id=a["id"], state=state) == ids(*found)
        shown = (await client.get("/transfers", params={"from_account_id": a["id"], "state": state})).json()["items"]
        assert [each["state"] for each in shown] == [state] * len(found)
        for each in shown:
            assert (await client.get(f"/transfers/{each['id']}")).json() == each
    assert await listed(client, state="voided") == ids(late, voided)
    assert await listed(client, state="posted") == ids(*from_world, ab, ba, bc, posted)


async def test_transfers_are_listed_by_time(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    start = datetime(2026, 1, 1, tzinfo=UTC)
    every = [
        await create_transfer(
            client,
            from_account_id=a["id"],
            to_account_id=b["id"],
            amount=1,
            effective_at=(start + timedelta(days=n)).isoformat(),
            pending_seconds=60 if n % 2 else None,
        )
        for n in range(6)
    ]
    times = [each["created_at"] for each in every]
    for account in ({"account_id": b["id"]}, {"to_account_id": b["id"]}):
        assert await listed(client, created_from=times[1], created_before=times[4], **account) == ids(*every[1:4])
        assert await listed(client, created_from=times[4], **account) == ids(*every[4:])
        assert await listed(client, created_before=times[2], **account) == ids(*every[:2])
        assert await listed(client, created_from=times[4], created_before=times[1], **account) == []
        third = (start + timedelta(days=2)).isoformat()
        assert await listed(client, effective_from=third, **account) == ids(*every[2:])
        assert await listed(client, effective_before=third, **account) == ids(*every[:2])
    assert await listed(client, created_from=times[1], created_before=times[4]) == ids(*every[1:4])


async def test_transfers_are_listed_by_metadata(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    values = [{"region": "north", "a]b:c=d": "ä&'\""}, {"region": "north"}, {"region": "nor"}, {}]
    every = [
        await create_transfer(client, from_account_id=a["id"], to_account_id=b["id"], amount=1, metadata=each)
        for each in values
    ]
    pending = await hold(client, a, b, 1, metadata={"region": "north", "x": "y"})
    assert await listed(client, **{"metadata[region]": "north"}) == ids(every[0], every[1], pending)
    assert await listed(client, **{"metadata[region]": "north", "metadata[x]": "y"}) == ids(pending)
    assert await listed(client, **{"metadata[a]b:c=d]": "ä&'\"", "account_id": b["id"]}) == ids(every[0])
    assert await listed(client, **{"metadata[region]": "NORTH"}) == []
    for wrong in (
        (("metadata[region]", "north"), ("metadata[region]", "south")),
        (("metadata[]", "north"),),
        (("metadata", "region:north"),),
        (("metadata[region", "north"),),
        (("metadata[region]", "\x00"),),
        (("metadata[region]", "x" * 501),),
    ):
        assert_problem(await client.get("/transfers", params=wrong), 422, "validation")


async def test_transfers_are_listed_by_reversal_and_group(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    first, other = await transfer(client, a, b, 50), await transfer(client, a, b, 5)
    parts = [await create_transfer(client, f"/transfers/{first['id']}/reverse", amount=amount) for amount in (10, 15)]
    again = await create_transfer(client, f"/transfers/{parts[0]['id']}/reverse")
    assert await listed(client, reverses_id=first["id"]) == ids(*parts)
    assert await listed(client, reverses_id=other["id"]) == []
    accounts = {"from_account_id": a["id"], "to_account_id": b["id"], "amount": 1}
    both = await create_transfer(client, "/transfers/linked", transfers=[accounts, accounts | {"pending_seconds": 60}])
    group = both["transfers"]
    assert await listed(client, group_id=group[0]["group_id"]) == ids(*group)

    async def reversed_amounts(*transfers: dict[str, Any]) -> list[int]:
        found = [(await client.get(f"/transfers/{each['id']}")).json() for each in transfers]
        every = {each["id"]: each for each in (await client.get("/transfers")).json()["items"]}
        assert [every[each["id"]] for each in found] == found
        return [each["reversed_amount"] for each in found]

    assert [each["reversed_amount"] for each in (first, *parts, again)] == [0, 0, 0, 0]
    assert await reversed_amounts(first, other, *parts, again, *group) == [25, 0, 10, 0, 0, 0, 0]


async def test_transfers_are_listed_by_the_keys_of_the_requesting_principal(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    accounts = {"from_account_id": a["id"], "to_account_id": b["id"]}
    headers = {who: sign_in(Role.OPERATOR) for who in ("web", "mobile", "other")}

    async def create_as(who: str, key: str, path: str = "/transfers", **body: Any) -> dict[str, Any]:
        return await create(client, path, body, headers={"Idempotency-Key": key} | headers[who])

    async def list_by_key(who: str, key: str, **filters: str) -> list[str]:
        parameters = {"idempotency_key": key} | filters
        answer = await client.get("/transfers", params=parameters, headers=headers[who])
        assert answer.status_code == 200
        return ids(*answer.json()["items"])

    web, mobile = (
        await create_as("web", "k", **accounts, amount=1),
        await create_as("mobile", "k", **accounts, amount=2),
    )
    linked = await create_as("web", "both", "/transfers/linked", transfers=[accounts | {"amount": n} for n in (3, 4)])
    pending = await create_as("web", "hold", **accounts, amount=5, pending_seconds=60)
    await create_as("web", "settle", f"/transfers/{pending['id']}/post")
    assert (await list_by_key("web", "k"), await list_by_key("mobile", "k")) == (ids(web), ids(mobile))
    assert await list_by_key("web", "both") == ids(*linked["transfers"])
    assert (await list_by_key("web", "hold"), await list_by_key("web", "settle")) == (ids(pending), ids(pending))
    assert await list_by_key("web", "k", account_id=b["id"]) == ids(web)
    assert (
        await list_by_key("web", "none") == await list_by_key("mobile", "both") == await list_by_key("other", "k") == []
    )
    assert ids(*(await client.get("/transfers", params={"idempotency_key": "k"})).json()["items"]) == []


async def test_a_cursor_is_valid_only_for_its_list_query(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    for amount in (1, 2, 3):
        await transfer(client, a, b, amount)
    first = {"account_id": a["id"], "order": "newest", "limit": "1"}
    after = (await client.get("/transfers", params=first)).json()["next"]
    assert (await client.get("/transfers", params=first | {"after": after})).status_code == 200
    for other in (
        {"order": "oldest"},
        {"account_id": b["id"]},
        {"state": "posted"},
        {"metadata[a]": "b"},
        {"idempotency_key": "k"},
        {"created_from": "2026-01-01T00:00:00Z"},
    ):
        assert_problem(await client.get("/transfers", params=first | other | {"after": after}), 400, "invalid-cursor")
    of_web = {"idempotency_key": "k", "limit": "1"}
    assert_problem(await client.get("/transfers", params={"state": "lost"}), 422, "validation")
    assert (await client.get("/transfers", params=of_web)).json()["next"] is None


@pytest.mark.parametrize("filters", [{}, {"account_id": "a"}])
async def test_changes_between_two_pages_repeat_and_skip_no_transfer(
    client: httpx.AsyncClient, filters: dict[str, str]
) -> None:
    a, b = await make_account(client, 1_000), await make_account(client)
    parameters = dict.fromkeys(filters, a["id"]) | {"limit": "4"}
    holds = [await hold(client, a, b, 1) for _ in range(12)]
    before = await listed(client, **dict.fromkeys(filters, a["id"]))
    for order in ("newest", "oldest"):
        seen: list[str] = []
        after: dict[str, str] = {}
        while True:
            page = (await client.get("/transfers", params=parameters | {"order": order} | after)).json()
            seen += ids(*page["items"])
            for each in holds[:2]:  # read already or later: its place in the list stays the same
                await create_transfer(client, f"/transfers/{each['id']}/{'post' if len(holds) % 4 else 'void'}")
            del holds[:2]
            await transfer(client, a, b, 1)
            if page["next"] is None or len(seen) > 60:
                break
            after = {"after": page["next"]}
            if not set(before) - set(seen):
                break
        chosen = [id_ for id_ in seen if id_ in before]
        assert chosen == (before if order == "oldest" else before[::-1])
        assert len(set(seen)) == len(seen)


async def test_every_response_has_both_balances_and_a_replay_has_the_same_bytes(
    client: httpx.AsyncClient, stored: Database
) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    accounts = {"from_account_id": a["id"], "to_account_id": b["id"]}

    async def send_twice(path: str, **body: Any) -> dict[str, Any]:
        headers = {"Idempotency-Key": str(uuid4())}
        first = await client.post(path, json=body, headers=headers)
        await transfer(client, a, b, 1)  # a later transfer changes no stored answer
        again = await client.post(path, json=body, headers=headers)
        assert (again.content, again.headers["idempotency-replayed"]) == (first.content, "true")
        found: dict[str, Any] = first.json()
        return found

    def balances(transfer: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(transfer[name] for name in ("state", "from_balance", "to_balance", "held_amount"))

    plain = await send_twice("/transfers", **accounts, amount=10)
    assert balances(plain) == ("posted", 90, 10, None)
    linked = await send_twice("/transfers/linked", transfers=[accounts | {"amount": 2}, accounts | {"amount": 3}])
    assert [balances(each)[1:3] for each in linked["transfers"]] == [(87, 13), (84, 16)]
    pending = await send_twice("/transfers", **accounts, amount=20, pending_seconds=60)
    assert balances(pending) == ("pending", None, None, 20)
    posted = await send_twice(f"/transfers/{pending['id']}/post", amount=15)
    assert balances(posted) == ("posted", 67, 33, 20)
    back = await send_twice(f"/transfers/{plain['id']}/reverse", amount=4)
    assert balances(back) == ("posted", 30, 70, None)
    other = await send_twice("/transfers", **accounts, amount=20, pending_seconds=60)
    voided = await send_twice(f"/transfers/{other['id']}/void")
    assert balances(voided) == ("voided", None, None, 20)

    line = json.dumps(accounts | {"amount": 1, "idempotency_key": "line"})
    ndjson = {"Content-Type": "application/x-ndjson"}
    answers = [(await client.post("/transfers/batch", content=line, headers=ndjson)).json() for _ in range(2)]
    assert answers[0]["transfer"] == answers[1]["transfer"]

    for each in (plain, posted, back, answers[0]["transfer"]):
        found = (await client.get(f"/transfers/{each['id']}")).json()
        assert found | {"reversed_amount": 0} == each
        for account, side in ((a, "from"), (b, "to")):
            account_id, entry_number = each[f"{side}_account_id"], each[f"{side}_entry_number"]
            then = (await client.get(f"/accounts/{account_id}/balance", params={"entry_number": entry_number})).json()
            assert then["balance"] == each[f"{side}_balance"], account
    assert (await client.get(f"/transfers/{pending['id']}")).json() == posted
    assert (await client.get(f"/transfers/{other['id']}")).json() == voided
    assert (await post_transfer(client, a, b, 1)).json()["held_amount"] is None


async def test_a_replay_of_many_transfers_has_their_balances(stored: Database) -> None:
    a, b = await open_accounts(stored, 1_000, 0)
    requests = [TransferRequest(a, b, 1, key=f"k{n}") for n in range(300)]
    async with Ledger(stored) as one, Ledger(stored) as other:
        first = await one.submit_many(requests)
        assert [result.unwrap().from_balance for result in first] == [999 - n for n in range(300)]
        assert [result.unwrap().to_balance for result in first] == [n + 1 for n in range(300)]
        again = await other.submit_many(requests)
    assert again == [result._replace(replayed=True) for result in first]


async def nodes_of(session: AsyncSession, **filters: Any) -> list[dict[str, Any]]:
    """The plan of the second page of 20 transfers."""
    listing = select_transfers(scope="", **filters)
    after = (await paginate(session, listing, limit=20)).next
    return await explain(session, partial(paginate, session, listing, limit=20, after=after))


def kinds(nodes: Sequence[dict[str, Any]]) -> set[str]:
    return {node["Node Type"] for node in nodes}


def indexes(nodes: Sequence[dict[str, Any]]) -> set[str]:
    return {node["Index Name"] for node in nodes if "Index Name" in node}


@pytest.mark.parametrize("order", ["newest", "oldest"])
async def test_a_page_of_all_transfers_merges_two_primary_keys(session: AsyncSession, order: str) -> None:
    await create_large_ledger(session)
    nodes = await nodes_of(session, order=order)
    assert "Merge Append" in kinds(nodes)
    scanned = [node for node in nodes if node.get("Index Name") in {"pk_transfers", "pk_pending_transfers"}]
    assert {node["Index Name"] for node in scanned if "id" in node["Index Cond"]} >= {"pk_transfers"}
    assert not [node for node in nodes if node["Node Type"] == "Seq Scan" and node["Relation Name"] == "transfers"]


@pytest.mark.parametrize(
    ("filters", "index"),
    [
        ({"metadata": {"invoice": "770"}}, "ix_transfers_metadata"),
        ({"group_id": uuid4()}, "ix_transfers_group_id"),
        ({"reverses_id": uuid4()}, "uq_transfers_reverses_id_reversed_total"),
        ({"idempotency_key": "k"}, "pk_transfers"),
        (
            {
                "created_from": datetime(2026, 1, 2, tzinfo=UTC),
                "created_before": datetime(2026, 1, 2, 1, tzinfo=UTC),
            },
            "ix_transfers_created_at",
        ),
    ],
    ids=["metadata", "group", "reversal", "key", "time"],
)
async def test_a_filter_of_transfers_uses_its_index(session: AsyncSession, filters: dict[str, Any], index: str) -> None:
    await create_large_ledger(session)
    nodes = await nodes_of(session, **filters)
    assert index in indexes(nodes)
    assert not [node for node in nodes if node["Node Type"] == "Seq Scan" and node["Relation Name"] == "transfers"]


async def test_transfers_of_an_account_are_found_by_its_entries_and_holds(session: AsyncSession) -> None:
    account = await create_large_ledger(session)
    for filters in ({"account_id": account}, {"from_account_id": account}, {"to_account_id": account}):
        nodes = await nodes_of(session, order="newest", **filters)
        read_whole = {node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"}
        assert not read_whole & {"transfers", "entries"}, filters
        assert {"pk_entries", "pk_transfers"} <= indexes(nodes)
    nodes = await nodes_of(session, from_account_id=account, state=TransferState.PENDING)
    # the entries are read only for the balances of the page
    assert [node["Index Cond"] for node in nodes if node.get("Index Name") == "pk_entries"] == [
        node["Index Cond"] for node in nodes if node.get("Alias", "").startswith("entries_")
    ]
