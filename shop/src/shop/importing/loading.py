"""Load a retail file into the database."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from uuid import UUID

from sqlalchemy import ARRAY, ColumnElement, String, any_, literal, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from howdah import Database, advisory_lock, bulk, run_transaction, uuid7
from shop.importing.retail import Customer, Invoice, Item, RetailFile
from shop.orders.models import Order, OrderItem, OrderStatus
from shop.users.models import User

CURRENCY: Final = "GBP"

_LOCK: Final = "shop import retail"
_CUSTOMER_BATCH_SIZE: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """The result of an import. It counts every customer of the file as a user, and every invoice as an order."""

    users_created: int
    users_existing: int
    orders_created: int
    orders_existing: int
    differing: list[str]
    """References of the existing orders whose total differs from the file."""


async def load(
    database: Database,
    retail: RetailFile,
    *,
    items: int = 20_000,
    advance: Callable[[int], None] = lambda _lines: None,
) -> Loaded:
    """Create users from the file's customers and orders from its invoices.

    A user with the same email and an order with the same reference are not changed, even if the file differs.

    A batch is one transaction: whole invoices with about `items` items. After it, `advance` is called with the
    number of its lines. If an import is interrupted, each invoice is in the database as a whole or not at all. Run the
    import again to add the rest.

    Each batch takes an advisory lock, so concurrent imports take turns, and each skips the rows of the other.
    `LockTimeout` is raised if the lock isn't available within the lock timeout. Some databases that speak PostgreSQL's
    protocol have no advisory locks. There the slower import raises `UniqueViolation`, because references are unique,
    and no order is stored twice.
    """
    user_ids: dict[int, UUID] = {}
    users_created = 0
    for first in range(0, len(retail.customers), _CUSTOMER_BATCH_SIZE):
        customers = retail.customers[first : first + _CUSTOMER_BATCH_SIZE]
        created, ids = await run_transaction(database, partial(_add_users, customers=customers))
        users_created += created
        user_ids |= ids

    orders_created, orders_existing = 0, 0
    differing: list[str] = []
    for invoices in retail.batches(items=items):
        existing = await run_transaction(database, partial(_add_orders, invoices=invoices, user_ids=user_ids))
        orders_created += len(invoices) - len(existing)
        orders_existing += len(existing)
        totals = {invoice.reference: invoice.total_cents for invoice in invoices}
        differing += [reference for reference, total_cents in existing.items() if total_cents != totals[reference]]
        advance(sum(len(invoice.items) for invoice in invoices))
    return Loaded(
        users_created=users_created,
        users_existing=len(retail.customers) - users_created,
        orders_created=orders_created,
        orders_existing=orders_existing,
        differing=differing,
    )


async def _add_users(session: AsyncSession, *, customers: Sequence[Customer]) -> tuple[int, dict[int, UUID]]:
    """Create missing users. Returns how many were created, and the ids of all users, by customer number."""
    await advisory_lock(session, _LOCK)
    numbers = {customer.email: customer.number for customer in customers}
    rows = ({"email": each.email, "name": each.name, "country": each.country} for each in customers)
    created = (await bulk.upsert_many(session, User, rows, on=["email"], update=[])).created
    found = await session.execute(select(User.email, User.id).where(_is_one_of(User.email, numbers)))
    return created, {numbers[email]: user_id for email, user_id in found}


async def _add_orders(
    session: AsyncSession, *, invoices: Sequence[Invoice], user_ids: Mapping[int, UUID]
) -> dict[str, int]:
    """Create missing orders. Returns the references and totals of the orders that existed already."""
    await advisory_lock(session, _LOCK)
    references = {invoice.reference for invoice in invoices}
    # A cancelled sale is in this batch or an earlier one, so it is found here or created below.
    cancelled = {invoice.cancels for invoice in invoices if invoice.cancels is not None}
    orders = select(Order.reference, Order.id, Order.total_cents)
    found = (await session.execute(orders.where(_is_one_of(Order.reference, references | cancelled)))).all()
    existing = {order.reference: order.total_cents for order in found if order.reference in references}
    new = [invoice for invoice in invoices if invoice.reference not in existing]
    ids = {order.reference: order.id for order in found} | {invoice.reference: uuid7() for invoice in new}

    order_rows = (_build_order(invoice, ids, user_ids) for invoice in new)
    item_rows = (_build_order_item(item, ids[invoice.reference]) for invoice in new for item in invoice.items)
    await bulk.insert_many(session, Order, order_rows, keys=False)
    await bulk.insert_many(session, OrderItem, item_rows, keys=False)
    return existing


def _is_one_of(column: InstrumentedAttribute[Any], texts: Iterable[str]) -> ColumnElement[bool]:
    """Like `in_`, but all texts are sent as one array parameter, so there may be any number of them."""
    return column == any_(literal(list(texts), ARRAY(String)))


def _build_order(invoice: Invoice, ids: Mapping[str, UUID], user_ids: Mapping[int, UUID]) -> dict[str, Any]:
    return {
        "id": ids[invoice.reference],
        "user_id": user_ids[invoice.customer_number],
        "reference": invoice.reference,
        "status": OrderStatus(invoice.status),
        "currency": CURRENCY,
        "total_cents": invoice.total_cents,
        "placed_at": invoice.placed_at,
        "cancels_id": None if invoice.cancels is None else ids[invoice.cancels],
    }


def _build_order_item(item: Item, order_id: UUID) -> dict[str, Any]:
    return {
        "order_id": order_id,
        "line_no": item.line_no,
        "sku": item.stock_code,
        "description": item.description,
        "quantity": item.quantity,
        "unit_price_cents": item.unit_price_cents,
    }
