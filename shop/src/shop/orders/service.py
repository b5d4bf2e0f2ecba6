"""What is done with orders."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Database, JsonView, JsonViewReader, MatchResult, bulk, lock
from shop.ledger.requests import TransferRequest, TransferResult
from shop.ledger.service import find_replay, post_transfers
from shop.orders.models import Order, OrderItem, OrderStatus
from shop.orders.schemas import OrderIn, OrderOut, OrderWithItemsOut


@dataclass(frozen=True, slots=True)
class OrderViews:
    """Orders as they are shown."""

    with_items: JsonViewReader[Order]
    listed: JsonViewReader[Order]


@asynccontextmanager
async def open_order_views(database: Database) -> AsyncIterator[OrderViews]:
    async with (
        JsonView(Order, OrderWithItemsOut).open(database) as with_items,
        JsonView(Order, OrderOut).open(database) as listed,
    ):
        yield OrderViews(with_items, listed)


class OrderNotPayable(ValueError):
    """Only a pending order can be paid, only once, and only if it costs something."""

    def __init__(self, order: Order) -> None:
        self.order_id = order.id
        self.status = order.status
        if order.transfer_id is not None:
            reason = f"it was paid with transfer {order.transfer_id}"
        elif order.total_cents == 0:
            reason = "it costs nothing: set its status"
        else:
            reason = f"it is {order.status}, and only a pending order can be paid"
        super().__init__(f"order {order.id} can't be paid: {reason}")


async def place_order(db: AsyncSession, order: OrderIn) -> Order:
    """A pending order; the total is computed from the items. Raises `ForeignKeyViolation` for an unknown user."""
    items = [OrderItem(line_no=number, **item.model_dump()) for number, item in enumerate(order.items, start=1)]
    placed = Order(
        user_id=order.user_id,
        currency=order.currency,
        total_cents=sum(item.quantity * item.unit_price_cents for item in items),
        items=items,
    )
    db.add(placed)
    await db.flush()
    return placed


async def change_status(db: AsyncSession, order_ids: Iterable[UUID], new_status: str) -> MatchResult:
    """Set the status of any number of orders; how many there were, and which ids no order has. No money moves: an
    order that has been paid for can't be paid for again, whatever status it is given.

    Raises `ValueError` for a text that is no status. Two such calls over the same orders can't deadlock.
    """
    return await bulk.update_by_key(db, Order, order_ids, {"status": OrderStatus(new_status)})


async def bulk_update_status(db: AsyncSession, order_ids: Iterable[UUID], new_status: str) -> int:
    """As `change_status`; only how many orders there were."""
    return (await change_status(db, order_ids, new_status)).count


@dataclass(frozen=True, slots=True)
class Payment:
    """What came of a payment; `result` says whether the money was moved."""

    order: Order
    result: TransferResult


async def pay_order(
    db: AsyncSession,
    order_id: UUID,
    from_account_id: UUID,
    to_account_id: UUID,
    *,
    key: str | None = None,
    scope: str = "",
) -> Payment:
    """Move the order's total between the accounts and mark the order paid, both or neither. A refusal is a result, to
    be committed with its idempotency key, as that of a transfer.

    Raises `NotFound`, `OrderNotPayable` and `KeyInUse` (see `post_transfers`). Paying twice at the same time: one waits
    for the other, and gets its answer if it has the same key and body.
    """
    order = (await lock(db, Order, [order_id]))[order_id]
    request = TransferRequest(
        from_account_id,
        to_account_id,
        order.total_cents,
        currency=order.currency,
        description=f"order {order_id}",
        key=key,
        scope=scope,
    )
    if key is not None and (before := await find_replay(db, request)) is not None:
        return Payment(order, before)
    if order.status is not OrderStatus.PENDING or order.transfer_id is not None or order.total_cents == 0:
        raise OrderNotPayable(order)
    [result] = await post_transfers(db, [request])
    if result.refusal is None:
        order.transfer_id = result.unwrap().id
        order.status = OrderStatus.PAID
        await db.flush()
    return Payment(order, result)
