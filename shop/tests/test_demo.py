"""The demo data."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select

from howdah import Database
from shop.demo import create_demo
from shop.ledger.check import check_ledger
from shop.ledger.models import Account, Entry
from shop.orders.models import Order, OrderItem
from shop.users.models import User
from shop_tests.support.trigger_bypass import empty_tables


async def contents(database: Database) -> list[Any]:
    """All that was made, but for keys and times of making."""
    async with database.session() as session:
        users = select(User.email, User.name, User.country).order_by(User.email)
        orders = (
            select(User.email, Order.placed_at, Order.status, Order.total_cents)
            .join(Order.user)
            .order_by(User.email, Order.placed_at, Order.total_cents)
        )
        items = (
            select(User.email, Order.placed_at, Order.total_cents, OrderItem.line_no, OrderItem.sku, OrderItem.quantity)
            .join(OrderItem.order)
            .join(Order.user)
            .order_by(User.email, Order.placed_at, Order.total_cents, OrderItem.line_no)
        )
        accounts = (
            select(User.email, Account.balance, Entry.amount)
            .join(Account, Account.user_id == User.id)
            .join(Entry, Entry.account_id == Account.id)
            .order_by(User.email)
        )
        return [(await session.execute(each)).all() for each in (users, orders, items, accounts)]


async def empty(database: Database) -> None:
    async with database.begin() as session:
        await empty_tables(session)


async def test_each_user_has_ten_orders_and_money_and_the_ledger_has_no_faults(stored: Database) -> None:
    steps: list[int] = []
    assert await create_demo(stored, users=620, seed=1, advance=steps.append) == 620
    assert steps == [500, 120]
    async with stored.session() as session:
        report = await check_ledger(session)
        assert (report.faults, report.transfers, report.entries) == ({}, 620, 1_240)
        orders_each = await session.scalars(select(func.count()).select_from(Order).group_by(Order.user_id))
        assert list(orders_each) == [10] * 620
        assert await session.scalar(select(func.count()).select_from(Account).where(Account.balance > 0)) == 620
        totals = (
            select(Order.id)
            .join(Order.items)
            .group_by(Order.id)
            .having(func.sum(OrderItem.quantity * OrderItem.unit_price_cents) != Order.total_cents)
        )
        assert list(await session.scalars(totals)) == []


async def test_the_same_seed_creates_the_same_data_and_another_seed_other_data(stored: Database) -> None:
    await create_demo(stored, users=20, seed=1)
    first = await contents(stored)
    await empty(stored)
    await create_demo(stored, users=20, seed=1)
    assert await contents(stored) == first
    await empty(stored)
    await create_demo(stored, users=20, seed=2)
    assert [row.name for row in (await contents(stored))[0]] != [row.name for row in first[0]]


async def test_a_second_run_adds_nothing_and_a_longer_one_only_new_users(stored: Database) -> None:
    await create_demo(stored, users=20, seed=1)
    first = await contents(stored)
    assert await create_demo(stored, users=20, seed=1) == 0
    assert await contents(stored) == first
    assert await create_demo(stored, users=25, seed=1) == 5
    longer = await contents(stored)
    assert [len(rows) for rows in longer[:2]] == [25, 250]
    assert set(first[0]) <= set(longer[0])
