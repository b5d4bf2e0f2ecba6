"""`get_user_order_summary`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial
from random import Random
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Database, bulk
from howdah.testing import assert_statements
from shop.orders.models import Order, OrderStatus
from shop.orders.repository import OrderRepository
from shop.user_orders.service import get_user_order_summary
from shop.users.models import User
from shop.users.repository import UserRepository
from shop_tests.support import reference
from shop_tests.support.query_plans import explain


async def create_user_with_orders(session: AsyncSession, orders: int) -> User:
    user = await UserRepository(session).create(email=f"{uuid4()}@example.com", name="Ada")
    dice = Random(orders)
    await bulk.insert_many(
        session,
        Order,
        [
            {
                "user_id": user.id,
                "total_cents": dice.randrange(10**9),
                "status": dice.choice(list(OrderStatus)),
                "placed_at": datetime(2025, 12, 1, tzinfo=UTC) + timedelta(days=dice.randrange(120)),
            }
            for _ in range(orders)
        ],
    )
    return user


async def test_the_order_summary_of_an_unknown_user_is_none(session: AsyncSession) -> None:
    assert await get_user_order_summary(session, uuid4()) is None


@pytest.mark.parametrize("orders", [0, 1, 10, 500])
async def test_the_order_summary_equals_the_sum_of_the_orders(session: AsyncSession, orders: int) -> None:
    user = await create_user_with_orders(session, orders)
    await create_user_with_orders(session, 7)
    all_orders = list(await session.scalars(select(Order).where(Order.user_id == user.id)))
    sales = [
        order.total_cents for order in all_orders if order.status not in (OrderStatus.CANCELLED, OrderStatus.REFUNDED)
    ]

    summary = await get_user_order_summary(session, user.id)

    assert summary is not None
    assert summary["user"] is user
    assert summary["total_orders"] == len(sales)
    assert summary["total_spent_cents"] == sum(sales)
    assert summary["avg_order_cents"] == pytest.approx(sum(sales) / len(sales) if sales else 0.0)
    assert {status: (totals.orders, totals.total_cents) for status, totals in summary["by_status"].items()} == {
        status: (len(totals), sum(totals))
        for status in OrderStatus
        if (totals := [order.total_cents for order in all_orders if order.status is status])
    }
    by_month: dict[str, list[int]] = {}
    for order in sorted(all_orders, key=lambda order: order.placed_at):
        if order.status.counts_as_sale:
            by_month.setdefault(f"{order.placed_at:%Y-%m}", []).append(order.total_cents)
    assert [(month, totals.orders, totals.total_cents) for month, totals in summary["by_month"].items()] == [
        (month, len(totals), sum(totals)) for month, totals in by_month.items()
    ]


async def test_the_months_of_the_summary_are_in_utc_and_count_sales_only(session: AsyncSession) -> None:
    user = await UserRepository(session).create(email="ada@example.com", name="Ada")
    placed = {
        "2025-12-31T23:59:59.999999+00:00": OrderStatus.PENDING,
        "2026-01-01T00:00:00+00:00": OrderStatus.PAID,
        "2026-03-01T00:30:00+01:00": OrderStatus.SHIPPED,
        "2026-04-02T00:00:00+00:00": OrderStatus.CANCELLED,
        "0999-05-01T00:00:00+00:00": OrderStatus.DELIVERED,
    }
    rows = [
        {"user_id": user.id, "total_cents": 1, "status": status, "placed_at": datetime.fromisoformat(time)}
        for time, status in placed.items()
    ]
    await bulk.insert_many(session, Order, rows)
    await session.execute(text("SET LOCAL timezone = 'America/New_York'"))

    summary = await get_user_order_summary(session, user.id)

    assert summary is not None
    assert list(summary["by_month"]) == ["0999-05", "2025-12", "2026-01", "2026-02"]


async def test_the_order_summary_is_an_index_only_scan(committed_database: Database) -> None:
    """Control: the same index without the included columns."""
    async with committed_database.begin() as session:
        user, *_ = [await create_user_with_orders(session, 500) for _ in range(10)]

    async def scans(*before: str) -> list[tuple[str, str]]:
        engine = committed_database.engine.execution_options(isolation_level="AUTOCOMMIT")
        async with engine.connect() as connection:
            for statement in (*before, "VACUUM (ANALYZE) orders"):
                await connection.execute(text(statement))
        async with committed_database.session() as session:
            nodes = await explain(session, partial(OrderRepository(session).sum_totals, user.id))
            return [(node["Node Type"], node["Index Name"]) for node in nodes if "Index Name" in node]

    index = "ix_orders_user_id_placed_at_id"
    assert await scans() == [("Index Only Scan", index)]
    without = f"CREATE INDEX {index} ON orders (user_id, placed_at, id)"
    assert ("Index Only Scan", index) not in await scans(f"DROP INDEX {index}", without)


async def test_the_order_summary_equals_the_reference_if_all_orders_are_sales(session: AsyncSession) -> None:
    user = await UserRepository(session).create(email="ada@example.com", name="Ada")
    await bulk.insert_many(session, Order, [{"user_id": user.id, "total_cents": n} for n in (1, 2, 4)])
    ours = await get_user_order_summary(session, user.id)
    theirs = await reference.get_user_order_summary(session, user.id)
    assert ours is not None
    assert {name: ours[name] for name in theirs or {}} == theirs


async def test_the_order_summary_takes_two_statements_and_loads_no_order(stored: Database) -> None:
    async with stored.begin() as session:
        user = await create_user_with_orders(session, 50)

    async with stored.session() as session:
        with assert_statements(session, 2):
            await get_user_order_summary(session, user.id)
        assert not [each for each in session.identity_map.values() if isinstance(each, Order)]

    async with stored.session() as session:  # the control
        with assert_statements(session, 3):
            found = await reference.get_user_order_summary(session, user.id)
        assert found is not None
        assert len(found["user"].orders) == 50


async def test_the_totals_of_the_summary_are_from_one_snapshot(
    stored: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stored.begin() as session:
        user = await create_user_with_orders(session, 5)

    async with stored.session() as session:
        held = await session.get(User, user.id)
        with assert_statements(session, 1):
            summary = await get_user_order_summary(session, user.id)
        assert summary is not None
        assert summary["user"] is held

    async with stored.session() as session:  # the control: an order is placed between its two statements
        execute = session.execute

        async def interrupted(statement: Any) -> Any:
            result = await execute(statement)
            if "FROM users" in str(statement):
                async with stored.begin() as other:
                    other.add(Order(user_id=user.id, total_cents=1))
            return result

        monkeypatch.setattr(session, "execute", interrupted)
        found = await reference.get_user_order_summary(session, user.id)
        assert found is not None
        assert (len(found["user"].orders), found["total_orders"]) == (5, 6)
