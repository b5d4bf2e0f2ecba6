"""`bulk_update_status` and payments."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

import shop.orders.routes
from howdah import Database, bulk, uuid7
from shop.ledger.account_schemas import AccountIn
from shop.ledger.lock_waits import KeyInUse
from shop.ledger.models import Account
from shop.ledger.opening import OpeningRequest, open_account_once
from shop.orders.models import Order, OrderStatus
from shop.orders.service import bulk_update_status, change_status
from shop.users.models import User
from shop_tests.support import reference
from shop_tests.support.factories import balances, make_account, make_order, make_user, post_transfer, transfer
from shop_tests.support.identity import ADMIN
from shop_tests.support.problems import assert_problem
from shop_tests.support.waiting import until_waiting

MANY_IDS = 33_000  # PostgreSQL allows 32,767 parameters per statement


async def make_orders(session: AsyncSession, count: int) -> list[UUID]:
    user = User(email=f"{uuid4()}@example.com", name="Ada")
    session.add(user)
    await session.flush()
    rows = [{"id": uuid7(), "user_id": user.id, "total_cents": 1} for _ in range(count)]
    await bulk.insert_many(session, Order, rows, keys=False)
    return [UUID(str(row["id"])) for row in rows]


async def test_the_status_of_more_orders_than_a_statement_has_parameters_is_set(session: AsyncSession) -> None:
    created = await make_orders(session, 100)
    ids = [*created[:50], *(uuid4() for _ in range(MANY_IDS)), *created[50:]]

    changed = await change_status(session, ids, "shipped")

    assert changed.count == 100
    assert changed.missing == ids[50:-50]
    shipped = select(func.count()).select_from(Order).where(Order.status == OrderStatus.SHIPPED)
    assert await session.scalar(shipped) == 100
    assert await bulk_update_status(session, ids, "delivered") == 100

    with pytest.raises(DBAPIError, match="32767"):  # the control
        await reference.bulk_update_status(session, ids, "shipped")


async def test_an_unknown_status_is_rejected(session: AsyncSession) -> None:
    ids = await make_orders(session, 1)
    with pytest.raises(ValueError, match="lost"):
        await bulk_update_status(session, ids, "lost")
    assert await session.scalar(select(Order.status)) is OrderStatus.PENDING

    connection = await session.connection()  # the control
    await connection.run_sync(reference.ReferenceBase.metadata.create_all)
    session.add(reference.ReferenceOrder(id=ids[0]))
    await session.flush()
    assert await reference.bulk_update_status(session, ids, "lost", reference.ReferenceOrder) == 1


async def test_an_order_in_the_session_has_the_new_status(session: AsyncSession) -> None:
    ids = await make_orders(session, 1)
    order = await session.get_one(Order, ids[0])
    await bulk_update_status(session, ids, "shipped")
    assert (order.status, order.version) == (OrderStatus.SHIPPED, 2)


async def test_two_changes_of_the_same_orders_in_opposite_order_both_succeed(stored: Database) -> None:
    async with stored.begin() as session:
        ids = await make_orders(session, 200)

    async def change(order_ids: list[UUID], status: str) -> int:
        async with stored.begin() as session:
            return await bulk_update_status(session, order_ids, status)

    for _ in range(5):
        assert [*await asyncio.gather(change(ids, "paid"), change(ids[::-1], "shipped"))] == [200, 200]


async def pay(
    client: httpx.AsyncClient,
    order: dict[str, str],
    source: dict[str, str],
    target: dict[str, str],
    *,
    key: str | None = None,
) -> httpx.Response:
    body = {"from_account_id": source["id"], "to_account_id": target["id"]}
    headers = {"Idempotency-Key": key or str(uuid4())}
    return await client.post(f"/orders/{order['id']}/pay", json=body, headers=headers)


async def test_a_payment_transfers_the_total_and_marks_the_order_as_paid(client: httpx.AsyncClient) -> None:
    buyer, till = await make_account(client, 1_000), await make_account(client)
    order = await make_order(client, (await make_user(client))["id"], 300, 45)

    response = await pay(client, order, buyer, till)

    assert response.status_code == 200
    paid = response.json()
    assert (paid["status"], paid["version"]) == ("paid", 2)
    moved = (await client.get(f"/transfers/{paid['transfer_id']}")).json()
    assert (moved["from_account_id"], moved["to_account_id"], moved["amount"]) == (buyer["id"], till["id"], 345)
    assert moved["description"] == f"order {order['id']}"
    assert await balances(client, buyer, till) == [655, 345]
    found = (await client.get(f"/orders/{order['id']}")).json()
    assert {name: found[name] for name in paid} == paid


async def test_a_payment_that_is_sent_again_with_its_key_is_a_replay(client: httpx.AsyncClient) -> None:
    buyer, till = await make_account(client, 10), await make_account(client)
    user_id = (await make_user(client))["id"]
    order, expensive = await make_order(client, user_id, 10), await make_order(client, user_id, 11)
    refused = [await pay(client, expensive, buyer, till, key="much") for _ in range(2)]
    paid = [await pay(client, order, buyer, till, key="k") for _ in range(2)]
    await transfer(client, till, buyer, 5)
    refused.append(await pay(client, expensive, buyer, till, key="much"))

    assert [answer.status_code for answer in paid] == [200, 200]
    assert paid[0].content == paid[1].content
    for answer in refused:
        assert_problem(answer, 409, "insufficient-funds")
    assert ["idempotency-replayed" in answer.headers for answer in (*paid, *refused)] == [
        False,
        True,
        False,
        True,
        True,
    ]
    assert_problem(await pay(client, expensive, buyer, till, key="k"), 422, "key-reused")
    body = {"from_account_id": buyer["id"], "to_account_id": till["id"]}
    assert_problem(await client.post(f"/orders/{expensive['id']}/pay", json=body), 400, "idempotency-key-missing")
    assert await balances(client, buyer, till) == [5, 5]


async def test_one_of_twenty_payments_with_the_same_key_is_posted_and_all_get_its_result(
    client: httpx.AsyncClient,
) -> None:
    buyer, till = await make_account(client, 100), await make_account(client)
    order = await make_order(client, (await make_user(client))["id"], 10)
    answers = await asyncio.gather(*(pay(client, order, buyer, till, key="k") for _ in range(20)))
    assert {answer.content for answer in answers} == {answers[0].content}
    assert sum("idempotency-replayed" in answer.headers for answer in answers) == 19
    assert await balances(client, buyer, till) == [90, 10]


async def test_a_refused_payment_changes_neither_the_order_nor_the_balances(
    client: httpx.AsyncClient,
) -> None:
    user_id = (await make_user(client))["id"]
    buyer, till = await make_account(client, 100), await make_account(client)
    euros = await make_account(client, currency="EUR")
    expensive, free = await make_order(client, user_id, 101), await make_order(client, user_id, 0)
    yen = await make_order(client, user_id, 1, currency="JPY")
    unknown = {"id": str(uuid4())}

    assert_problem(await pay(client, expensive, buyer, till), 409, "insufficient-funds")
    assert_problem(await pay(client, expensive, buyer, euros), 422, "currency-mismatch")
    assert_problem(await pay(client, yen, buyer, till), 422, "currency-mismatch")
    assert_problem(await pay(client, expensive, buyer, buyer), 422, "same-account")
    assert_problem(await pay(client, expensive, unknown, till), 422, "unknown-account")
    assert_problem(await pay(client, free, buyer, till), 409, "order-not-payable")
    assert_problem(await pay(client, unknown, buyer, till), 404, "not-found")

    for order in (expensive, free, yen):
        assert (await client.get(f"/orders/{order['id']}")).json() == order
    assert await balances(client, buyer, till, euros) == [100, 0, 0]


@pytest.mark.parametrize("body", [{}, {"from_account_id": "1", "to_account_id": "2"}, {"amount": 1}, []])
async def test_an_invalid_payment_is_rejected(client: httpx.AsyncClient, body: object) -> None:
    order = await make_order(client, (await make_user(client))["id"])
    response = await client.post(f"/orders/{order['id']}/pay", json=body, headers={"Idempotency-Key": "k"})
    assert_problem(response, 422, "validation")


@pytest.mark.parametrize("status", ["shipped", "delivered", "cancelled", "refunded", "paid"])
async def test_an_order_that_is_not_pending_can_not_be_paid(client: httpx.AsyncClient, status: str) -> None:
    buyer, till = await make_account(client, 100), await make_account(client)
    order = await make_order(client, (await make_user(client))["id"], 10)
    await client.patch("/orders/status", json={"order_ids": [order["id"]], "status": status})
    assert_problem(await pay(client, order, buyer, till), 409, "order-not-payable", order_status=status)
    assert await balances(client, buyer, till) == [100, 0]


async def test_a_paid_order_can_not_be_paid_again_whatever_its_status(client: httpx.AsyncClient) -> None:
    buyer, till = await make_account(client, 100), await make_account(client)
    order = await make_order(client, (await make_user(client))["id"], 10)
    paid = (await pay(client, order, buyer, till)).json()
    await client.patch("/orders/status", json={"order_ids": [order["id"]], "status": "pending"})
    again = await pay(client, order, buyer, till)
    assert_problem(again, 409, "order-not-payable", order_status="pending")
    assert paid["transfer_id"] in again.json()["detail"]
    assert await balances(client, buyer, till) == [90, 10]


async def test_one_of_many_concurrent_payments_is_posted(client: httpx.AsyncClient, stored: Database) -> None:
    buyer, other, till = (
        await make_account(client, 1_000),
        await make_account(client, 1_000),
        await make_account(client),
    )
    order = await make_order(client, (await make_user(client))["id"], 10)
    async with stored.begin() as session:
        await session.get_one(Account, UUID(till["id"]), with_for_update=True)
        paying = [asyncio.create_task(pay(client, order, (buyer, other)[n % 2], till)) for n in range(10)]
        await until_waiting(stored, 10)
    answers = await asyncio.gather(*paying)

    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 9
    for answer in answers:
        if answer.status_code == 409:
            assert_problem(answer, 409, "order-not-payable", order_status="paid")
    assert await balances(client, till) == [10]


async def test_a_payment_is_refused_if_the_balance_was_spent_while_it_waited(
    client: httpx.AsyncClient, stored: Database
) -> None:
    buyer, till = await make_account(client, 100), await make_account(client)
    order = await make_order(client, (await make_user(client))["id"], 100)
    async with stored.begin() as session:
        await session.get_one(Order, UUID(order["id"]), with_for_update=True)
        paying = asyncio.create_task(pay(client, order, buyer, till))
        await until_waiting(stored, 1)
        assert (await post_transfer(client, buyer, till, 1)).status_code == 201
    assert_problem(await paying, 409, "insufficient-funds")
    assert (await client.get(f"/orders/{order['id']}")).json()["status"] == "pending"


@pytest.mark.parametrize("is_committed", [True, False], ids=["committed", "rolled back"])
async def test_a_payment_waits_for_a_running_request_with_its_key(
    client: httpx.AsyncClient, stored: Database, is_committed: bool
) -> None:
    """The two requests have no account in common, so neither waits for a row lock of the other."""
    buyer, till = await make_account(client, 100), await make_account(client)
    order = await make_order(client, (await make_user(client))["id"], 10)
    async with stored.session() as session:
        await open_account_once(session, OpeningRequest(AccountIn(name="Till", currency="GBP"), "shared", ADMIN.key))
        paying = asyncio.create_task(pay(client, order, buyer, till, key="shared"))
        await until_waiting(stored, 1)
        await (session.commit() if is_committed else session.rollback())
    if is_committed:
        assert_problem(await paying, 422, "key-reused")
    else:
        assert (await paying).json()["status"] == "paid"
    assert await balances(client, till) == [0 if is_committed else 10]


async def test_a_payment_is_a_503_if_its_key_is_in_use_twice_in_a_row(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def raise_key_in_use(*args: object, **options: object) -> None:
        raise KeyInUse

    buyer, till = await make_account(client, 100), await make_account(client)
    order = await make_order(client, (await make_user(client))["id"], 10)
    monkeypatch.setattr(shop.orders.routes, "pay_order", raise_key_in_use)
    answer = await pay(client, order, buyer, till)
    assert_problem(answer, 503, "key-in-use")
    assert answer.headers["Retry-After"] in {"1", "2", "3"}
