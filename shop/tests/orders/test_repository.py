"""Find orders."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import pytest
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from howdah.testing import assert_indexed
from shop.orders.models import Order, OrderStatus
from shop.orders.repository import OrderRepository
from shop.orders.schemas import OrderFilters
from shop_tests.support.query_plans import explain, uses_index

_USERS: Final = text("""
    INSERT INTO users (id, email, name, created_at, updated_at, version)
    SELECT gen_random_uuid(), n || '@example.com', 'Ada', now(), now(), 1 FROM generate_series(1, 200) AS n
    """)
_ORDERS: Final = text("""
    INSERT INTO orders (id, user_id, status, currency, total_cents, placed_at, created_at, updated_at, version)
    SELECT gen_random_uuid(), users.id, CASE WHEN n % 100 = 0 THEN 'pending' ELSE 'paid' END, 'GBP',
        (n * 7919 + hashtext(email)) & 65535, '2026-01-01T00:00Z'::timestamptz + n * interval '1 hour', now(), now(), 1
    FROM generate_series(1, 100) AS n, users
    """)


@pytest.fixture
async def orders(session: AsyncSession) -> list[Order]:
    """Insert 20,000 orders. Returns 1,000 of them."""
    for statement in (_USERS, _ORDERS, text("ANALYZE orders")):
        await session.execute(statement)
    return await OrderRepository(session).list(limit=1_000)


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("user_id", "ix_orders_user_id_placed_at_id"),
        ("status", "ix_orders_status_placed_at_id"),
        ("placed_before", "ix_orders_placed_at_id"),
        ("placed", "ix_orders_placed_at_id"),
        ("total_from", "ix_orders_total_cents"),
        ("total_to", "ix_orders_total_cents"),
        ("total", "ix_orders_total_cents"),
    ],
)
async def test_each_filter_of_orders_uses_its_index(
    session: AsyncSession, orders: list[Order], name: str, index: str
) -> None:
    order = orders[500]
    filters: dict[str, dict[str, Any]] = {
        "user_id": {"user_id": order.user_id},
        "status": {"status": OrderStatus.PENDING},
        "placed_before": {"placed_before": min(each.placed_at for each in orders)},
        "placed": {"placed_from": order.placed_at, "placed_before": order.placed_at.replace(minute=1)},
        "total_from": {"total_from": 65_500},
        "total_to": {"total_to": 20},
        "total": {"total_from": order.total_cents, "total_to": order.total_cents + 10},
    }
    page = partial(OrderRepository(session).page, OrderFilters(**filters[name]).apply(select(Order)), limit=50)
    assert uses_index(await explain(session, page), index)
    await session.execute(text(f"DROP INDEX {index}"))  # the control
    assert not uses_index(await explain(session, page), index)


async def test_an_index_supports_every_filter_and_order_of_the_list(session: AsyncSession) -> None:
    await assert_indexed(session, OrderFilters)
