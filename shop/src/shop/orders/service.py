"""Place and pay orders, and change their status."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from sqlalchemy import ColumnElement, select
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import JsonView, MatchResult, NotFound, bulk, lock_one
from howdah.tenancy import role_in
from shop.ledger.models import Account
from shop.ledger.requests import Refusal, TransferRequest, TransferResult
from shop.ledger.service import find_replay, post_transfers
from shop.orders.models import Order, OrderItem, OrderStatus
from shop.orders.rules import is_visible
from shop.orders.schemas import OrderIn, OrderOut, OrderWithItemsOut
from shop.roles import SYSTEM_ROLE
from shop.web.access import Viewer

ORDER_VIEW: Final = JsonView(Order, OrderOut)
ORDER_WITH_ITEMS_VIEW: Final[JsonView[Order, Viewer]] = JsonView(Order, OrderWithItemsOut, where={Order: is_visible})


class OrderNotPayable(ValueError):
    """The order was paid already, isn't pending, or its total is zero."""

    def __init__(self, order: Order) -> None:
        self.order_id = order.id
        self.status = order.status
        if order.transfer_id is not None:
            reason = f"it was paid with transfer {order.transfer_id}"
        elif order.total_cents == 0:
            reason = "its total is zero: set its status instead"
        else:
            reason = f"it is {order.status}, and only a pending order can be paid"
        super().__init__(f"order {order.id} can't be paid: {reason}")


async def place_order(db: AsyncSession, order: OrderIn, user_id: UUID) -> Order:
    """Create a pending order of this user. The total is computed from the items.

    Raises `ForeignKeyViolation` if the user doesn't exist.
    """
    items = [OrderItem(line_no=number, **item.model_dump()) for number, item in enumerate(order.items, start=1)]
    placed = Order(
        user_id=user_id,
        currency=order.currency,
        total_cents=sum(item.quantity * item.unit_price_cents for item in items),
        items=items,
    )
    db.add(placed)
    await db.flush()
    return placed


async def change_status(db: AsyncSession, order_ids: Iterable[UUID], new_status: str) -> MatchResult:
    """Set the status of any number of orders. The result has their number and the ids that don't exist.

    No money moves. An order that was paid can't be paid again, whatever its status is. Rows are locked in the order of
    their keys, so two calls for the same orders can't deadlock. Raises `ValueError` for an unknown status.
    """
    return await bulk.update_by_key(db, Order, order_ids, {"status": OrderStatus(new_status)})


async def bulk_update_status(db: AsyncSession, order_ids: Iterable[UUID], new_status: str) -> int:
    """Call `change_status`, and return only the number of orders."""
    return (await change_status(db, order_ids, new_status)).count


@dataclass(frozen=True, slots=True)
class Payment:
    """An order, and the result of the transfer that pays it: posted or refused."""

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
    where: ColumnElement[bool] | None = None,
    customer_id: UUID | None = None,
    posted_by: UUID | None = None,
) -> Payment:
    """Transfer the order's total between the accounts and mark the order as paid, both or neither.

    A refusal is a result, not an error. Commit it, because it is stored under the idempotency key.

    The order is locked. If it is paid twice at the same time, the second call waits for the first. With the same key
    it replays the first result, or is refused with `key_reused` if its accounts differ. With another key or none, it
    raises `OrderNotPayable` if the first call has paid the order. Also raises `NotFound` and `KeyInUse` (see
    `post_transfers`).

    The order must meet the criterion `where`. With `customer_id`, this customer pays from an account of their own, to
    an account without an owner. Other accounts are refused like unknown ones. `posted_by` is that of `TransferRequest`:
    the trigger of `transfers` compares it with the owner of the account once more.
    """
    # with the role of the session, to which row-level security shows no order of another customer
    if await db.scalar(select(Order.id).where(Order.id == order_id)) is None:
        raise NotFound(Order, [order_id])
    async with role_in(db, SYSTEM_ROLE):  # customers may not change orders, nor post transfers
        order = await lock_one(db, Order, order_id, where=where)
        if customer_id is not None and not await _may_pay(db, customer_id, from_account_id, to_account_id):
            return Payment(order, TransferResult(refusal=Refusal.UNKNOWN_ACCOUNT))
        request = TransferRequest(
            from_account_id,
            to_account_id,
            order.total_cents,
            currency=order.currency,
            description=f"order {order_id}",
            key=key,
            scope=scope,
            posted_by=posted_by,
        )
        if key is not None and (before := await find_replay(db, request)) is not None:
            return Payment(order, before)
        if order.status is not OrderStatus.PENDING or order.transfer_id is not None or order.total_cents == 0:
            raise OrderNotPayable(order)
        [result] = await post_transfers(db, [request])
        if result.refusal is None:
            order.transfer_id = result.unwrap().id
            order.status = OrderStatus.PAID
        return Payment(order, result)


async def _may_pay(db: AsyncSession, customer_id: UUID, from_account_id: UUID, to_account_id: UUID) -> bool:
    """Whether the customer owns the first account, and nobody owns the second one. An owner never changes.

    Otherwise customers could pay to accounts of their own or of friends: the order would be paid, without the money.
    """
    owners = select(Account.id, Account.user_id).where(Account.id.in_([from_account_id, to_account_id]))
    found = {account.id: account.user_id for account in await db.execute(owners)}
    return found.get(from_account_id) == customer_id and found.get(to_account_id, customer_id) is None
